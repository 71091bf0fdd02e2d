"""Objects of Kubernetes' own kinds, read as far as the mesh needs them: a pod in under 1 kB.

Each becomes a `ConfigObject` whose spec holds what services and endpoints are derived from. Parts
that many objects have alike (labels and ports of the pods of a Deployment) are kept once: rows are
never changed, so they can share.
"""

from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

import msgspec

from meshbus.model.rows import ConfigObject

_KEPT_ANNOTATIONS = ("istio.io/", "meshbus.io/", "openshift.io/sa.scc.")
_INJECTED = "sidecar.istio.io/status"
_SHARED = 65536
_PROXY = "istio-proxy"
_READY: list[dict[str, str]] = [{"type": "Ready", "status": "True"}]
_NOT_READY: list[dict[str, str]] = [{"type": "Ready", "status": "False"}]


class PlatformKind(NamedTuple):
    """A kind of Kubernetes that services and endpoints are derived from."""

    plural: str
    path: str
    """`api/v1` or `apis/GROUP/VERSION`."""
    namespaced: bool
    read: Callable[[bytes], ConfigObject]
    """Raises msgspec.MsgspecError or ValueError for an object that cannot be read."""
    fields: str = ""
    """Field selector."""

    def collection(self, namespace: str = "") -> str:
        """The path of all its objects, or of those of a namespace."""
        place = f"/namespaces/{namespace}" if namespace and self.namespaced else ""
        return f"/{self.path}{place}/{self.plural}"


class Shared:
    """Equal values kept once. Bounded: it begins again when it is full."""

    def __init__(self) -> None:
        self._values: dict[object, Any] = {}

    def get(self, key: object, make: Callable[[], Any]) -> Any:
        """The value of a key, made when it is first asked for."""
        found = self._values.get(key)
        if found is None:
            if len(self._values) >= _SHARED:
                self._values.clear()
            found = self._values[key] = make()
        return found

    def text(self, value: str) -> str:
        """The text itself, kept once."""
        if len(self._values) >= _SHARED:
            self._values.clear()
        return str(self._values.setdefault(value, value))


_shared = Shared()
_NONE: dict[str, str] = {}


class _Owner(msgspec.Struct, frozen=True, gc=False):
    kind: str = ""
    name: str = ""
    controller: bool = False


class _Meta(msgspec.Struct, frozen=True, gc=False):
    name: str
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    created: str | None = msgspec.field(name="creationTimestamp", default=None)
    deleted: str | None = msgspec.field(name="deletionTimestamp", default=None)
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owners: list[_Owner] | None = msgspec.field(name="ownerReferences", default=None)


def seconds(text: str | None) -> float:
    """Seconds since the epoch of a time as Kubernetes writes it; 0 for none.

    Raises:
        ValueError: It is no time.
    """
    return datetime.fromisoformat(text).timestamp() if text else 0.0


def _object(
    kind: str,
    meta: _Meta,
    spec: dict[str, Any],
    *,
    api_version: str = "v1",
    labels: dict[str, str] | None = None,
) -> ConfigObject:
    owners: list[dict[str, Any]] = []
    for owner in meta.owners or ():
        if owner.controller:
            said = [{"kind": owner.kind, "name": owner.name}]
            owners = _shared.get(("owner", owner.kind, owner.name), partial(list, said))
    annotations = {
        name: ("" if name == _INJECTED else value)
        for name, value in (meta.annotations or _NONE).items()
        if any(part in name for part in _KEPT_ANNOTATIONS)
    }
    kept = labels if labels is not None else meta.labels or _NONE
    return ConfigObject(
        api_version=api_version,
        kind=kind,
        namespace=_shared.text(meta.namespace),
        name=meta.name,
        uid=meta.uid,
        generation=meta.generation,
        created=seconds(meta.created),
        labels=_alike(kept),
        annotations=_alike(annotations),
        spec=spec,
        managed_fields=_NOTHING,
        owner_references=owners or _NOTHING,
        finalizers=_NO_TEXTS,
        deletion=seconds(meta.deleted) if meta.deleted else None,
    )


_NOTHING: list[dict[str, Any]] = []
_NO_TEXTS: list[str] = []


def _alike(values: dict[str, str]) -> dict[str, str]:
    if not values:
        return _NONE
    found: dict[str, str] = _shared.get(("map", *sorted(values.items())), lambda: values)
    return found


# --------------------------------------------------------------------------- pods


class _ContainerPort(msgspec.Struct, frozen=True, gc=False):
    container_port: int = msgspec.field(name="containerPort", default=0)
    name: str = ""


class _Container(msgspec.Struct, frozen=True, gc=False):
    name: str = ""
    ports: list[_ContainerPort] | None = None


class _PodSpec(msgspec.Struct, frozen=True, gc=False):
    account: str = msgspec.field(name="serviceAccountName", default="")
    node: str = msgspec.field(name="nodeName", default="")
    host_network: bool = msgspec.field(name="hostNetwork", default=False)
    containers: list[_Container] | None = None
    init: list[_Container] | None = msgspec.field(name="initContainers", default=None)


class _PodIp(msgspec.Struct, frozen=True, gc=False):
    ip: str = ""


class _Condition(msgspec.Struct, frozen=True, gc=False):
    type: str = ""
    status: str = ""


class _PodStatus(msgspec.Struct, frozen=True, gc=False):
    phase: str = ""
    ip: str = msgspec.field(name="podIP", default="")
    ips: list[_PodIp] | None = msgspec.field(name="podIPs", default=None)
    conditions: list[_Condition] | None = None


class _Pod(msgspec.Struct, frozen=True, gc=False):
    metadata: _Meta
    spec: _PodSpec
    status: _PodStatus = _PodStatus()


def _containers(containers: list[_Container] | None) -> list[dict[str, Any]]:
    """Those with ports, and the sidecar, whose presence says that the pod is in the mesh."""
    key = (
        "containers",
        *(
            (
                c.name if c.name == _PROXY else "",
                *((p.name, p.container_port) for p in c.ports or ()),
            )
            for c in containers or ()
        ),
    )
    found: list[dict[str, Any]] = _shared.get(
        key,
        lambda: [
            {
                "name": c.name if c.name == _PROXY else "",
                "ports": [
                    {"name": p.name, "containerPort": p.container_port} for p in c.ports or ()
                ],
            }
            for c in containers or ()
            if c.ports or c.name == _PROXY
        ],
    )
    return found


_pods = msgspec.json.Decoder(_Pod)


def read_pod(body: bytes) -> ConfigObject:
    """A pod: labels, owner, account, node, ports, addresses, readiness."""
    pod = _pods.decode(body)
    spec, status = pod.spec, pod.status
    ready = any(c.type == "Ready" and c.status == "True" for c in status.conditions or ())
    said: dict[str, Any] = {
        "phase": _shared.text(status.phase),
        "conditions": _READY if ready else _NOT_READY,
    }
    if status.ips and len(status.ips) > 1:
        said["podIPs"] = [{"ip": ip.ip} for ip in status.ips]
    elif status.ip:
        said["podIP"] = status.ip
    content: dict[str, Any] = {
        "serviceAccountName": _shared.text(spec.account),
        "nodeName": _shared.text(spec.node),
        "containers": _containers(spec.containers),
        "status": said,
    }
    if spec.init and any(c.ports or c.name == _PROXY for c in spec.init):
        content["initContainers"] = _containers(spec.init)
    if spec.host_network:
        content["hostNetwork"] = True
    return _object("Pod", pod.metadata, content)


# --------------------------------------------------------------------------- services


class _ServicePort(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    port: int
    name: str = ""
    protocol: str = "TCP"
    app_protocol: str | None = msgspec.field(name="appProtocol", default=None)
    target_port: int | str | None = msgspec.field(name="targetPort", default=None)
    node_port: int = msgspec.field(name="nodePort", default=0)


class _ServiceSpec(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    type: str = ""
    cluster_ip: str = msgspec.field(name="clusterIP", default="")
    cluster_ips: list[str] | None = msgspec.field(name="clusterIPs", default=None)
    ports: list[_ServicePort] | None = None
    selector: dict[str, str] | None = None
    external_name: str = msgspec.field(name="externalName", default="")
    external_ips: list[str] | None = msgspec.field(name="externalIPs", default=None)
    session_affinity: str = msgspec.field(name="sessionAffinity", default="")
    ip_families: list[str] | None = msgspec.field(name="ipFamilies", default=None)
    ip_family_policy: str = msgspec.field(name="ipFamilyPolicy", default="")
    traffic_distribution: str | None = msgspec.field(name="trafficDistribution", default=None)
    publish_not_ready: bool = msgspec.field(name="publishNotReadyAddresses", default=False)
    traffic_policy: str = msgspec.field(name="internalTrafficPolicy", default="")


class _Ingress(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    ip: str = ""
    hostname: str = ""


class _LoadBalancer(msgspec.Struct, frozen=True, gc=False):
    ingress: list[_Ingress] | None = None


class _ServiceStatus(msgspec.Struct, frozen=True, gc=False):
    balancer: _LoadBalancer | None = msgspec.field(name="loadBalancer", default=None)


class _Service(msgspec.Struct, frozen=True, gc=False):
    metadata: _Meta
    spec: _ServiceSpec = _ServiceSpec()
    status: _ServiceStatus = _ServiceStatus()


_services = msgspec.json.Decoder(_Service)


def read_service(body: bytes) -> ConfigObject:
    """A Service; the addresses of its load balancer stand in its spec as `ingress`."""
    service = _services.decode(body)
    spec: dict[str, Any] = msgspec.to_builtins(service.spec)
    balancer = service.status.balancer
    if balancer is not None and balancer.ingress:
        spec["ingress"] = msgspec.to_builtins(balancer.ingress)
    return _object("Service", service.metadata, spec)


# --------------------------------------------------------------------------- endpoint slices


class _Target(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    kind: str = ""
    name: str = ""
    namespace: str = ""


class _Conditions(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class _Endpoint(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    addresses: list[str] = []
    conditions: _Conditions = _Conditions()
    target: _Target | None = msgspec.field(name="targetRef", default=None)
    zone: str | None = None
    node: str | None = msgspec.field(name="nodeName", default=None)
    hostname: str | None = None


class _SlicePort(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    name: str | None = None
    port: int | None = None
    protocol: str | None = None


class _Slice(msgspec.Struct, frozen=True, gc=False):
    metadata: _Meta
    address_type: str = msgspec.field(name="addressType", default="IPv4")
    endpoints: list[_Endpoint] | None = None
    ports: list[_SlicePort] | None = None


_slices = msgspec.json.Decoder(_Slice)
_SERVICE_NAME = "kubernetes.io/service-name"


def read_slice(body: bytes) -> ConfigObject:
    """An EndpointSlice; of its labels the one that names its service."""
    read = _slices.decode(body)
    name = (read.metadata.labels or _NONE).get(_SERVICE_NAME, "")
    spec = {
        "addressType": _shared.text(read.address_type),
        "endpoints": msgspec.to_builtins(read.endpoints or []),
        "ports": msgspec.to_builtins(read.ports or []),
    }
    return _object(
        "EndpointSlice",
        read.metadata,
        spec,
        api_version="discovery.k8s.io/v1",
        labels={_SERVICE_NAME: name} if name else _NONE,
    )


# --------------------------------------------------------------------------- nodes, namespaces


class _Bare(msgspec.Struct, frozen=True, gc=False):
    metadata: _Meta


_bare = msgspec.json.Decoder(_Bare)


class _NodeAddress(msgspec.Struct, frozen=True, gc=False):
    type: str = ""
    address: str = ""


class _NodeStatus(msgspec.Struct, frozen=True, gc=False):
    addresses: list[_NodeAddress] | None = None


class _Node(msgspec.Struct, frozen=True, gc=False):
    metadata: _Meta
    status: _NodeStatus = _NodeStatus()


_nodes = msgspec.json.Decoder(_Node)


def read_node(body: bytes) -> ConfigObject:
    """A Node: its labels, and the address at which it is reached from elsewhere. The rest changes
    every few seconds and concerns nobody here."""
    node = _nodes.decode(body)
    meta = msgspec.structs.replace(node.metadata, generation=0, annotations=None)
    places = [
        {"type": place.type, "address": place.address}
        for place in node.status.addresses or ()
        if place.type == "ExternalIP"
    ]
    return _object("Node", meta, {"status": {"addresses": places}} if places else {})


def read_namespace(body: bytes) -> ConfigObject:
    """A Namespace: its labels, and annotations of the mesh."""
    return _object("Namespace", _bare.decode(body).metadata, {})


NAMESPACES = PlatformKind("namespaces", "api/v1", False, read_namespace)
NODES = PlatformKind("nodes", "api/v1", False, read_node)
SERVICES = PlatformKind("services", "api/v1", True, read_service)
PODS = PlatformKind(
    "pods", "api/v1", True, read_pod, "status.phase!=Failed,status.phase!=Succeeded"
)
SLICES = PlatformKind("endpointslices", "apis/discovery.k8s.io/v1", True, read_slice)
"""Kinds that discovery follows."""
