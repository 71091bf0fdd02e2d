"""Validation of one document: metadata, shape, and the rules of its kind."""

import importlib
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, cast

from meshbus.api.kinds import KindInfo, all_kinds, kind_of
from meshbus.validate.malformed import NotKnownError
from meshbus.validate.metadata import ObjectName, read_metadata
from meshbus.validate.report import Findings, Report
from meshbus.validate.shape import has_required_fields, read_shape

Rules = Callable[[Any, ObjectName, Findings], None]

_NETWORKING, _SECURITY = "networking.istio.io", "security.istio.io"
_RULES = {
    ("", "Service"): "kubernetes:check_service",
    ("", "ConfigMap"): "kubernetes:check_config_map",
    ("", "Secret"): "kubernetes:check_secret",
    ("discovery.k8s.io", "EndpointSlice"): "kubernetes:check_endpoint_slice",
    ("networking.k8s.io", "Ingress"): "ingress:check",
    ("networking.k8s.io", "IngressClass"): "ingress:check_class",
    (_NETWORKING, "VirtualService"): "virtual_service:check",
    (_NETWORKING, "DestinationRule"): "destination_rule:check",
    (_NETWORKING, "Gateway"): "gateway:check",
    (_NETWORKING, "ServiceEntry"): "service_entry:check",
    (_NETWORKING, "Sidecar"): "sidecar:check",
    (_NETWORKING, "WorkloadEntry"): "workload_entry:check",
    (_NETWORKING, "WorkloadGroup"): "workload_group:check",
    (_NETWORKING, "EnvoyFilter"): "envoy_filter:check",
    (_NETWORKING, "ProxyConfig"): "proxy_config:check",
    (_SECURITY, "PeerAuthentication"): "peer_authentication:check",
    (_SECURITY, "RequestAuthentication"): "request_authentication:check",
    (_SECURITY, "AuthorizationPolicy"): "authorization_policy:check",
    ("telemetry.istio.io", "Telemetry"): "telemetry:check",
    ("extensions.istio.io", "WasmPlugin"): "wasm_plugin:check",
    ("extensions.istio.io", "TrafficExtension"): "wasm_plugin:check_traffic_extension",
    ("mesh.istio.io", "MeshConfig"): "mesh_config:check",
    ("mesh.istio.io", "MeshNetworks"): "mesh_networks:check",
    ("standalone.meshbus.io", "Workload"): "workload:check",
    ("config.istio.io", "handler"): "mixer:check_handler",
    ("config.istio.io", "instance"): "mixer:check_instance",
    ("config.istio.io", "rule"): "mixer:check_rule",
    ("config.istio.io", "quota"): "mixer:check_old_quota",
    ("config.istio.io", "listentry"): "mixer:check_old_listentry",
    ("config.istio.io", "memquota"): "mixer:check_old_memquota",
    ("config.istio.io", "QuotaSpec"): "mixer_client:check_quota_spec",
    ("config.istio.io", "QuotaSpecBinding"): "mixer_client:check_quota_spec_binding",
    ("config.istio.io", "HTTPAPISpec"): "mixer_client:check_http_api_spec",
    ("config.istio.io", "HTTPAPISpecBinding"): "mixer_client:check_http_api_spec_binding",
    ("authentication.istio.io", "Policy"): "authentication:check_policy",
    ("authentication.istio.io", "MeshPolicy"): "authentication:check_mesh_policy",
    ("rbac.istio.io", "ServiceRole"): "rbac:check_service_role",
    ("rbac.istio.io", "ServiceRoleBinding"): "rbac:check_service_role_binding",
    ("rbac.istio.io", "RbacConfig"): "rbac:check_rbac_config",
    ("rbac.istio.io", "ClusterRbacConfig"): "rbac:check_rbac_config",
}
_TOP = frozenset({"apiVersion", "kind", "metadata", "spec", "status"})


def validate_object(document: Mapping[str, Any]) -> Report:
    """Everything that is wrong with one document, judged alone.

    Where its shape is wrong, the rules of its kind run on the rest. A kind that nobody knows is an
    error; one that Kubernetes knows and nothing here reads is a warning.
    """
    out = Findings()
    info = _read_kind(document, out)
    if info is None:
        return out.report()
    name = read_metadata(info, document["apiVersion"], document.get("metadata"), out)
    if not info.served:
        out.warn("kind", f"nothing here reads a {info.kind}", "Unused")
        return out.report()
    before = len(out.errors)
    content, path = _read_content(info, document, out)
    shape = info.shape()
    if shape is None or (content is None and len(out.errors) > before):
        return out.report()
    spec = read_shape(
        shape,
        content,
        path,
        out,
        proto_json=info.proto_json,
        secret=info.group == "" and info.kind == "Secret",
    )
    rules = _rules_of(info)
    if spec is not None and rules is not None:
        try:
            rules(spec, name, out)
        except (NotKnownError, TypeError):
            # Functions in C say in their own way that they cannot read what is malformed.
            if len(out.errors) == before:
                raise
    return out.report()


def _read_kind(document: Mapping[str, Any], out: Findings) -> KindInfo | None:
    api_version, kind = document.get("apiVersion"), document.get("kind")
    for field, value in (("apiVersion", api_version), ("kind", kind)):
        if value is None or value == "":
            out.required(field)
        elif not isinstance(value, str):
            out.error(field, "must be a string", "Type")
    if out.errors or not isinstance(api_version, str) or not isinstance(kind, str):
        return None
    info = kind_of(api_version, kind)
    if info is None:
        out.error("kind", _unknown_kind(api_version, kind), "UnknownKind")
    return info


def _unknown_kind(api_version: str, kind: str) -> str:
    same = [i for i in all_kinds() if i.kind.lower() == kind.lower()]
    if same:
        choices = ", ".join(f"{i.kind} of {i.api_version}" for i in same[:3])
        return f"no kind {kind!r} in {api_version!r}; there is {choices}"
    close = get_close_matches(kind, [i.kind for i in all_kinds()], n=1, cutoff=0.7)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"no kind {kind!r} in {api_version!r}{hint}"


def _read_content(info: KindInfo, document: Mapping[str, Any], out: Findings) -> tuple[Any, str]:
    status = document.get("status")
    if status is not None and not isinstance(status, Mapping):
        out.error("status", "must be an object", "Type")
    if not info.spec_field:
        top = _TOP - {"spec", "status"}
        return {str(k): v for k, v in document.items() if k not in top}, ""
    for field in document:
        if field not in _TOP:
            out.error(str(field), f"unknown field {field!r}", "Unknown")
    if (spec := document.get("spec")) is not None:
        if info.shape() is None and not isinstance(spec, Mapping):
            out.error("spec", "must be an object", "Type")
        return spec, "spec"
    shape = info.shape()
    if shape is not None and has_required_fields(shape):
        out.required("spec")
        return None, "spec"
    return {}, "spec"


def _rules_of(info: KindInfo) -> Rules | None:
    place = _RULES.get((info.group, info.kind))
    if place is None:
        return None
    module, _, name = place.partition(":")
    # Only the rules of the kinds at hand are loaded: a validation of one file starts quickly.
    return cast(Rules, getattr(importlib.import_module(f"meshbus.validate.{module}"), name))
