"""Services and Deployments: names of ports, and Services that share pods.

Source: Istio, analysis messages IST0116, IST0118, IST0137, IST0144, IST0150.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from meshbus.analyze.messages import Message, about
from meshbus.analyze.objects import (
    Object,
    Objects,
    containers,
    number,
    record,
    records,
    selects,
    strings,
    text,
)

_PROTOCOLS = frozenset(
    (
        *("tcp", "udp", "grpc", "grpc-web", "http", "http_proxy", "http2", "https", "tls", "mongo"),
        *("redis", "mysql", "hbone", "double-hbone"),
    )
)
_APP_PROTOCOLS = ("kubernetes.io/h2c", "kubernetes.io/ws", "kubernetes.io/wss")
_SERVER_FIRST = (25, 53, 3306, 27017)
_MANAGED = "gateway.istio.io/managed"
_PROXY_UID = 1337
_NOT_APPLICATIONS = ("istio-proxy", "istio-operator")


def _of_the_mesh(one: Object) -> bool:
    return "istio" in one.labels or one.labels.get("release") == "istio"


def port_names(objects: Objects) -> Iterator[Message]:
    """Names of ports say the protocol."""
    for one in objects.of("", "Service"):
        if _of_the_mesh(one) or one.labels.get(_MANAGED, "").startswith("istio.io-"):
            continue
        external = one.spec.get("type") == "ExternalName"
        for index, port in enumerate(records(one.spec.get("ports"))):
            path = f"spec.ports[{index}].name"
            name = text(port.get("name"))
            if _is_known(port) and not (external and name == "tcp"):
                continue
            if external:
                message = "names of ports of an ExternalName Service must say the protocol, not tcp"
                yield about(one, "IST0150", message, path)
            else:
                message = (
                    f"port {name!r} ({number(port.get('port'))}) does not begin with a protocol"
                )
                yield about(one, "IST0118", message, path)


def _is_known(port: Mapping[str, Any]) -> bool:
    if port.get("protocol") in ("UDP", "SCTP"):
        return True
    spoken = text(port.get("appProtocol"))
    if spoken:
        return spoken in _APP_PROTOCOLS or spoken.lower() in _PROTOCOLS
    name = text(port.get("name")).lower()
    if name.startswith("grpc-web"):
        return True
    known = name in _PROTOCOLS or name.partition("-")[0] in _PROTOCOLS
    return known or number(port.get("port")) in _SERVER_FIRST


def _matching(objects: Objects, deployment: Object) -> Iterator[Object]:
    template = record(record(deployment.spec.get("template")).get("metadata"))
    labels = strings(template.get("labels"))
    for one in objects.of("", "Service"):
        selector = strings(one.spec.get("selector"))
        if selector and one.namespace == deployment.namespace and selects(selector, labels):
            yield one


def _deployments(objects: Objects) -> Iterator[Object]:
    for one in objects.of("apps", "Deployment"):
        template = record(one.spec.get("template"))
        metadata = record(template.get("metadata"))
        said = strings(metadata.get("labels")), strings(metadata.get("annotations"))
        if objects.in_mesh(one.namespace, *said, record(template.get("spec"))):
            yield one


def shared_ports(objects: Objects) -> Iterator[Message]:
    """Services of one Deployment agree about their ports."""
    for one in _deployments(objects):
        protocols: dict[int, dict[str, list[str]]] = {}
        targets: dict[str, dict[int, str]] = {}
        for service in _matching(objects, one):
            for port in records(service.spec.get("ports")):
                at = number(port.get("port"))
                spoken = text(port.get("protocol")) or "TCP"
                protocols.setdefault(at, {}).setdefault(spoken, []).append(service.full_name)
                target = str(port.get("targetPort") or at)
                targets.setdefault(target, {})[at] = service.full_name
        for at, by_protocol in protocols.items():
            if len(by_protocol) > 1:
                names = ", ".join(name for names in by_protocol.values() for name in names)
                message = f"port {at} of {one.name} has several protocols: {names}"
                yield about(one, "IST0116", message)
        for target, by_port in targets.items():
            if len(by_port) > 1:
                names = ", ".join(sorted(set(by_port.values())))
                ports = ", ".join(map(str, sorted(by_port)))
                message = f"target port {target} of {one.name} is ports {ports} of {names}"
                yield about(one, "IST0137", message)


def user_ids(objects: Objects) -> Iterator[Message]:
    """No application runs as the user of the proxy: its calls would not be captured."""
    for one in (*objects.of("", "Pod"), *objects.of("apps", "Deployment")):
        if _of_the_mesh(one):
            continue
        template = record(one.spec.get("template")) if one.kind == "Deployment" else one.content
        spec = record(template.get("spec"))
        applications = [
            c for c in containers(spec, initial=False) if c.get("name") not in _NOT_APPLICATIONS
        ]
        if _runs_as_proxy(spec) or any(map(_runs_as_proxy, applications)):
            message = (
                f"user {_PROXY_UID} is that of the proxy: calls of the application are not captured"
            )
            pods = "spec.template.spec" if one.kind == "Deployment" else "spec"
            own = ".securityContext.runAsUser" if _runs_as_proxy(spec) else ".containers"
            yield about(one, "IST0144", message, pods + own)


def _runs_as_proxy(holder: Mapping[str, Any]) -> bool:
    return record(holder.get("securityContext")).get("runAsUser") == _PROXY_UID
