"""Rules of the core kinds of Kubernetes that a mesh reads.

Source: https://kubernetes.io/docs/reference/kubernetes-api/
"""

import re

from meshbus.api.addresses import is_ip
from meshbus.api.core import ConfigMapContent, SecretContent, ServiceSpec
from meshbus.api.discovery import EndpointSliceContent
from meshbus.validate.malformed import independent
from meshbus.validate.metadata import ObjectName
from meshbus.validate.names import fqdn_problem, is_namespace
from meshbus.validate.report import Findings
from meshbus.validate.support import SILENT
from meshbus.validate.targets import check_labels

_MESH_MAP = ("istio-system", "istio")
"""Namespace and name of the ConfigMap in which Istio keeps its mesh config."""
_DATA_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")
_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_LARGEST_DATA_BYTES = 1024 * 1024
_NEEDED_KEYS = {
    "kubernetes.io/tls": ("tls.crt", "tls.key"),
    "kubernetes.io/dockerconfigjson": (".dockerconfigjson",),
    "kubernetes.io/ssh-auth": ("ssh-privatekey",),
}


@independent
def check_service(spec: ServiceSpec, name: ObjectName, out: Findings) -> None:
    """A Service."""
    if spec.type == "ExternalName":
        if problem := fqdn_problem(spec.external_name.lower()):
            out.error("spec.externalName", problem)
    elif not spec.ports and spec.cluster_ip != "None":
        out.required("spec.ports", "a service needs ports")
    names: set[str] = set()
    numbers: set[tuple[str, int]] = set()
    for index, port in enumerate(spec.ports):
        path = f"spec.ports[{index}]"
        if not port.name and len(spec.ports) > 1:
            out.required(f"{path}.name", "is required when there are several ports")
        if port.name and not is_namespace(port.name):
            out.error(f"{path}.name", f"{port.name!r}: lower-case letters, digits and `-`")
        if port.name in names:
            out.error(f"{path}.name", f"Duplicate value {port.name!r}", "Duplicate")
        if (port.protocol, port.port) in numbers:
            out.error(f"{path}.port", f"Duplicate value {port.port}", "Duplicate")
        names.add(port.name)
        numbers.add((port.protocol, port.port))
        target = port.target_port
        if isinstance(target, int) and not 1 <= target <= 65535:
            out.error(f"{path}.targetPort", f"{target}: port must be between 1-65535")
        if isinstance(target, str) and not (_PORT_NAME.fullmatch(target) and len(target) <= 15):
            message = f"{target!r}: a port's name has at most 15 lower-case letters, digits and `-`"
            out.error(f"{path}.targetPort", message)
    check_labels(spec.selector or {}, "spec.selector", out)
    for address in (spec.cluster_ip, *spec.cluster_ips):
        if address not in ("", "None") and not is_ip(address):
            out.error("spec.clusterIP", f"{address!r} is neither None nor an IP address")
    for index, address in enumerate(spec.external_ips):
        if not is_ip(address):
            out.error(f"spec.externalIPs[{index}]", f"{address!r} is not an IP address")


@independent
def check_config_map(content: ConfigMapContent, name: ObjectName, out: Findings) -> None:
    """A ConfigMap."""
    _check_keys("data", content.data, out)
    _check_keys("binaryData", content.binary_data, out)
    for key in content.data.keys() & content.binary_data.keys():
        out.error(f"binaryData[{key}]", "is in data too", "Duplicate")
    if (name.namespace, name.name) == _MESH_MAP and "mesh" in content.data:
        message = "is read on Kubernetes alone; elsewhere an object MeshConfig says it"
        out.warn("data[mesh]", message, SILENT)


@independent
def check_secret(content: SecretContent, name: ObjectName, out: Findings) -> None:
    """A Secret; no message repeats what it holds."""
    _check_keys("data", content.data, out)
    _check_keys("stringData", content.string_data, out)
    held = content.data.keys() | content.string_data.keys()
    for key in _NEEDED_KEYS.get(content.type, ()):
        if key not in held:
            out.required(f"data[{key}]", f"a Secret of type {content.type} needs it")


@independent
def _check_keys(field: str, data: dict[str, str], out: Findings) -> None:
    for key in data:
        if not _DATA_KEY.fullmatch(key) or key in (".", ".."):
            out.error(f"{field}[{key}]", "a key has letters, digits, `-`, `_` and `.`, at most 253")
    if sum(len(key) + len(value) for key, value in data.items()) > _LARGEST_DATA_BYTES * 4 // 3:
        out.error(field, "is larger than 1 MiB", "TooLong")


@independent
def check_endpoint_slice(content: EndpointSliceContent, name: ObjectName, out: Findings) -> None:
    """An EndpointSlice."""
    for index, endpoint in enumerate(content.endpoints):
        for number, address in enumerate(endpoint.addresses):
            path = f"endpoints[{index}].addresses[{number}]"
            if content.address_type == "FQDN":
                if problem := fqdn_problem(address):
                    out.error(path, problem)
            elif not is_ip(address) or (":" in address) != (content.address_type == "IPv6"):
                out.error(path, f"{address!r} is not an {content.address_type} address")
    names: set[str] = set()
    for index, port in enumerate(content.ports or ()):
        path = f"ports[{index}].name"
        if port.name and not is_namespace(port.name):
            out.error(path, f"{port.name!r}: lower-case letters, digits and `-`")
        if port.name in names:
            out.error(path, f"Duplicate value {port.name!r}", "Duplicate")
        names.add(port.name)
