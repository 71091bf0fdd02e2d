"""The parts of a pod that make it a workload of the mesh: what is merged over what people wrote.

Names of containers, volumes, labels and variables are Istio's, so that its users and tools find
them. What they hold is ours: Envoy alone, see `bootstrap`.
"""

import json
from typing import Any

from meshbus.inject import annotations as a
from meshbus.inject.bootstrap import (
    FOLDER,
    ROOTS_FOLDER,
    TOKEN_FILE,
    TOKEN_FOLDER,
    carrier_bootstrap,
)
from meshbus.inject.capture import capture_annotations, capture_container, seccomp
from meshbus.inject.context import PROXY_ID, PodContext
from meshbus.inject.hooks import drain_hook, hold_hook
from meshbus.inject.status_listener import READY_PATH, READY_PORT, STATS_PORT
from meshbus.inject.values import lookup, text

PROXY = "istio-proxy"
ARGS_LATER = "meshbus:args"
"""Stands for the proxy's arguments until everything they depend on is known."""


def sidecar_overlay(context: PodContext) -> dict[str, Any]:
    """Template `sidecar`: capture, and a proxy beside the application."""
    proxy = _proxy_container(context, "sidecar")
    if context.transparent:
        security = proxy["securityContext"]
        added = [*security["capabilities"].get("add", ()), "NET_ADMIN"]
        proxy["securityContext"] = security | {
            "capabilities": {"add": added, "drop": ["ALL"]},
            "runAsGroup": PROXY_ID,
            "runAsNonRoot": False,
            "runAsUser": 0,
        }
    inits = []
    if context.interception != "NONE":
        inits.append(capture_container(context, resources_of(context)))
    if context.native:
        inits.append({**proxy, "restartPolicy": "Always"})
    spec: dict[str, Any] = {
        "initContainers": inits,
        "containers": [] if context.native else [proxy],
        "volumes": _volumes(context),
    }
    labels = {"security.istio.io/tlsMode": context.labels.get("security.istio.io/tlsMode", "istio")}
    return _pod(context, spec, labels=labels, annotations=capture_annotations(context))


def gateway_overlay(context: PodContext) -> dict[str, Any]:
    """Template `gateway`: a proxy that is the application."""
    spec = {"containers": [_proxy_container(context, "router")], "volumes": _volumes(context)}
    return _pod(context, spec)


def _pod(
    context: PodContext,
    spec: dict[str, Any],
    *,
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
) -> dict[str, Any]:
    secrets = context.value("imagePullSecrets") or []
    names = [item.get("name") if isinstance(item, dict) else item for item in secrets]
    if names:
        spec["imagePullSecrets"] = [{"name": text(name)} for name in names]
    notes = {a.REVISION: context.revision or "default", **(annotations or {})}
    for name in (a.DEFAULT_CONTAINER, a.DEFAULT_LOGS_CONTAINER):
        if context.app_containers and name not in context.annotations:
            notes[name] = context.app_containers[0]
    return {
        "metadata": {
            "labels": {
                **(labels or {}),
                "service.istio.io/canonical-name": context.canonical_name,
                "service.istio.io/canonical-revision": context.canonical_revision,
            },
            "annotations": notes,
        },
        "spec": spec,
    }


def _proxy_container(context: PodContext, kind: str) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": PROXY,
        "image": context.image(
            context.annotations.get(a.PROXY_IMAGE, ""), text(context.value("proxy", "image"))
        ),
        **context.image_pull,
        "command": [context.proxy.binary_path],
        "args": [ARGS_LATER],
        "ports": [{"containerPort": STATS_PORT, "protocol": "TCP", "name": "http-envoy-prom"}],
        "env": _environment(context, kind),
        "lifecycle": _lifecycle(context, kind),
        "resources": resources_of(context),
        "securityContext": _proxy_security(context),
        "volumeMounts": _mounts(context),
        **_ready_probes(context),
    }
    return container


def _ready_probes(context: PodContext) -> dict[str, Any]:
    if context.setting(a.STATUS_PORT, "proxy", "statusPort") == "0":
        return {}
    ask = {"httpGet": {"path": READY_PATH, "port": READY_PORT}}
    probes = {
        "readinessProbe": {
            **ask,
            "initialDelaySeconds": int(
                context.setting(a.READY_DELAY, "proxy", "readinessInitialDelaySeconds") or 0
            ),
            "periodSeconds": int(
                context.setting(a.READY_PERIOD, "proxy", "readinessPeriodSeconds") or 15
            ),
            "timeoutSeconds": 3,
            "failureThreshold": int(
                context.setting(a.READY_FAILURES, "proxy", "readinessFailureThreshold") or 4
            ),
        }
    }
    if context.value("proxy", "startupProbe", "enabled"):
        failures = text(context.value("proxy", "startupProbe", "failureThreshold")) or "600"
        probes["startupProbe"] = {
            **ask,
            "initialDelaySeconds": 0,
            "periodSeconds": 1,
            "timeoutSeconds": 3,
            "failureThreshold": int(failures),
        }
    return probes


def holds_application(context: PodContext) -> bool:
    """Whether a classic sidecar starts first and the application waits for it."""
    return bool(
        context.proxy.hold_application_until_proxy_starts
        or context.value("proxy", "holdApplicationUntilProxyStarts")
    )


def _lifecycle(context: PodContext, kind: str) -> dict[str, Any]:
    own = context.value("proxy", "lifecycle")
    if own:
        return dict(own)
    hooks: dict[str, Any] = {"preStop": drain_hook(context.proxy, gateway=kind == "router")}
    if holds_application(context) and not context.native:
        hooks["postStart"] = hold_hook(READY_PORT)
    return hooks


def _field(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def _environment(context: PodContext, kind: str) -> list[dict[str, Any]]:
    ports = [
        port
        for container in context.spec.get("containers") or ()
        if container.get("name") != PROXY
        for port in container.get("ports") or ()
    ]
    given: dict[str, str] = {
        "ISTIO_META_POD_PORTS": json.dumps(ports, separators=(",", ":")),
        "ISTIO_META_APP_CONTAINERS": ",".join(context.app_containers),
        "ISTIO_META_CLUSTER_ID": context.cluster,
        "ISTIO_META_INTERCEPTION_MODE": (
            context.interception if kind == "sidecar" else context.proxy.interception_mode
        ),
        "ISTIO_META_MESH_ID": text(context.value("meshID")) or context.trust_domain,
        "TRUST_DOMAIN": context.trust_domain,
    }
    if context.network:
        given["ISTIO_META_NETWORK"] = context.network
    if context.owner.name:
        given["ISTIO_META_WORKLOAD_NAME"] = context.owner.name
        if context.owner.api_version:
            given["ISTIO_META_OWNER"] = context.owner.uri
    if lookup(context.mesh, "inboundTrafficPolicy", "mode") == "LOCALHOST":
        given["REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION"] = "true"
    if attributes := _semantic_attributes(context):
        given["OTEL_RESOURCE_ATTRIBUTES"] = attributes
    given.update(context.proxy.proxy_metadata)
    return [
        _field("POD_NAME", "metadata.name"),
        _field("POD_NAMESPACE", "metadata.namespace"),
        _field("POD_UID", "metadata.uid"),
        _field("INSTANCE_IP", "status.podIP"),
        _field("INSTANCE_IPS", "status.podIPs"),
        _field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        _field("HOST_IP", "status.hostIP"),
        _field("ISTIO_META_NODE_NAME", "spec.nodeName"),
        *({"name": name, "value": value} for name, value in given.items()),
    ]


def _semantic_attributes(context: PodContext) -> str:
    """Attributes of OpenTelemetry's conventions, where a provider of the mesh asks for them.

    Source: ServiceAttributeEnrichment of
    https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/
    """
    wished = any(
        lookup(provider, "opentelemetry", "serviceAttributeEnrichment")
        == "OTEL_SEMANTIC_CONVENTIONS"
        for provider in context.mesh.get("extensionProviders") or ()
    )
    if not wished:
        return ""
    known = {
        "k8s.container.name": next(iter(context.app_containers), ""),
        "k8s.namespace.name": "$(POD_NAMESPACE)",
        "k8s.pod.name": "$(POD_NAME)",
        "k8s.node.name": "$(ISTIO_META_NODE_NAME)",
        "service.instance.id": "$(POD_NAMESPACE).$(POD_NAME)",
        "service.name": context.canonical_name,
        "service.namespace": "$(POD_NAMESPACE)",
        "service.version": context.canonical_revision,
    }
    return ",".join(f"{name}={value}" for name, value in known.items() if value)


def _mounts(context: PodContext) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [
        {"name": "istio-envoy", "mountPath": FOLDER, "readOnly": True},
        {"name": "istiod-ca-cert", "mountPath": ROOTS_FOLDER, "readOnly": True},
        {"name": "istio-token", "mountPath": TOKEN_FOLDER, "readOnly": True},
    ]
    if context.value("mountMtlsCerts"):
        mounts.append({"name": "istio-certs", "mountPath": "/etc/certs/", "readOnly": True})
    user = json.loads(context.annotations.get(a.USER_MOUNT, "{}"))
    mounts += [{"name": name, **mount} for name, mount in user.items()]
    return mounts


def _volumes(context: PodContext) -> list[dict[str, Any]]:
    token = {
        "serviceAccountToken": {
            "audience": text(context.value("sds", "token", "aud")),
            "expirationSeconds": 43200,
            "path": TOKEN_FILE,
        }
    }
    bundle = text(context.value("trustBundleName"))
    volumes: list[dict[str, Any]] = [
        {"name": "istio-envoy", "configMap": {"name": proxy_config_map(context.revision)}},
        {"name": "istiod-ca-cert", "configMap": {"name": bundle}},
        {"name": "istio-token", "projected": {"sources": [token]}},
    ]
    if context.value("mountMtlsCerts"):
        account = text(context.spec.get("serviceAccountName")) or "default"
        secret = {"optional": True, "secretName": f"istio.{account}"}
        volumes.append({"name": "istio-certs", "secret": secret})
    user = json.loads(context.annotations.get(a.USER_VOLUME, "{}"))
    volumes += [{"name": name, **volume} for name, volume in user.items()]
    return volumes


def token_volumes(context: PodContext) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The volumes with the pod's token and the mesh's roots, and their mounts."""
    names = ("istiod-ca-cert", "istio-token")
    volumes = [volume for volume in _volumes(context) if volume["name"] in names]
    return volumes, [mount for mount in _mounts(context) if mount["name"] in names]


def grpc_proxy_overlay(context: PodContext, socket: str) -> dict[str, Any]:
    """A proxy that carries the application's own xDS stream, from a socket, to the gateway."""
    proxy = _proxy_container(context, "router")
    folder = socket.rpartition("/")[0]
    document = json.dumps(carrier_bootstrap(context.xds_gateway, socket), separators=(",", ":"))
    proxy["args"] = ["--config-yaml", document, "--concurrency", "1", "--disable-hot-restart"]
    proxy["env"].append({"name": "ISTIO_META_GENERATOR", "value": "grpc"})
    proxy["volumeMounts"].append({"name": "istio-xds", "mountPath": folder})
    volumes = [*_volumes(context), {"name": "istio-xds", "emptyDir": {}}]
    return _pod(context, {"containers": [proxy], "volumes": volumes})


def proxy_config_map(revision: str) -> str:
    """The ConfigMap with the files of `bootstrap_files`, in each namespace."""
    return "meshbus-proxy" if revision in ("", "default") else f"meshbus-proxy-{revision}"


def resources_of(context: PodContext) -> dict[str, Any]:
    """Resources of what is injected: the pod's annotations, or the chart's values."""
    names = ((a.CPU, "requests", "cpu"), (a.MEMORY, "requests", "memory"),
             (a.CPU_LIMIT, "limits", "cpu"), (a.MEMORY_LIMIT, "limits", "memory"))  # fmt: skip
    if any(name in context.annotations for name, _, _ in names):
        resources: dict[str, Any] = {}
        for name, part, kind in names:
            if name in context.annotations:
                resources.setdefault(part, {})[kind] = context.annotations[name]
        return resources
    held = context.value("proxy", "resources") or {}
    return {
        part: {kind: text(amount) for kind, amount in amounts.items() if amount is not None}
        for part, amounts in held.items()
        if amounts
    }


def _proxy_security(context: PodContext) -> dict[str, Any]:
    privileged = bool(context.value("proxy", "privileged"))
    binds = context.setting(a.CAP_NET_BIND, "proxy", "capNetBindService") == "true"
    added = ["NET_BIND_SERVICE"] if binds else []
    return {
        "allowPrivilegeEscalation": privileged,
        "capabilities": {**({"add": added} if added else {}), "drop": ["ALL"]},
        "privileged": privileged,
        "readOnlyRootFilesystem": True,
        "runAsGroup": context.group,
        # A user other than root has an added capability only if the image's file grants it.
        "runAsNonRoot": not binds,
        "runAsUser": 0 if binds else context.user,
        **seccomp(context),
    }
