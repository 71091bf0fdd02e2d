"""The objects that analysis looks at, all together: as their documents have them.

Documents may be wrong in any way: what is not of the shape that it should have counts as absent,
and the verdict on the document itself says so.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from meshbus.api.yaml_text import NotReadableError, read_yaml

NETWORKING = "networking.istio.io"
SECURITY = "security.istio.io"
TELEMETRY = "telemetry.istio.io"
EXTENSIONS = "extensions.istio.io"
GATEWAY_API = "gateway.networking.k8s.io"
WEBHOOKS = "admissionregistration.k8s.io"
SYSTEM_NAMESPACE = "istio-system"
MESH_NAME = "meshconfig"
NETWORKS_NAME = "meshnetworks"
CLUSTER_SUFFIX = ".svc.cluster.local"
_NOT_LOOKED_AT = frozenset({"kube-system", "kube-public", "kube-node-lease", "local-path-storage"})
_PROXY = "istio-proxy"
_INJECT, _REVISION, _INJECTION = "sidecar.istio.io/inject", "istio.io/rev", "istio-injection"
_TEMPLATES = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet")


def record(value: Any) -> Mapping[str, Any]:
    """An object, or nothing."""
    return value if isinstance(value, dict) else {}


def records(value: Any) -> list[dict[str, Any]]:
    """The objects of a list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def texts(value: Any) -> list[str]:
    """The texts of a list."""
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def text(value: Any) -> str:
    """A text, or an empty one."""
    return value if isinstance(value, str) else ""


def number(value: Any) -> int:
    """A whole number, or 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def strings(value: Any) -> dict[str, str]:
    """The texts of an object, by name: labels, for example."""
    return {str(k): v for k, v in record(value).items() if isinstance(v, str)}


class Object(msgspec.Struct, frozen=True, eq=False):
    """One object."""

    kind: str
    group: str
    """API group; empty for the core kinds."""
    namespace: str
    """`default` if the document says none."""
    name: str
    content: Mapping[str, Any]
    """The whole document."""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    place: int = -1
    """Index of the document in the input; -1: nobody wrote it."""

    @property
    def spec(self) -> Mapping[str, Any]:
        """What it is about."""
        return record(self.content.get("spec"))

    @property
    def status(self) -> Mapping[str, Any]:
        """What became of it."""
        return record(self.content.get("status"))

    @property
    def full_name(self) -> str:
        """`NAMESPACE/NAME`."""
        return f"{self.namespace}/{self.name}"

    @property
    def reference(self) -> str:
        """`KIND NAMESPACE/NAME`."""
        return f"{self.kind} {self.full_name}"


class Pod(msgspec.Struct, frozen=True, eq=False):
    """A pod, or what pods will be made of: the template of a Deployment, a Workload."""

    namespace: str
    name: str
    labels: dict[str, str]
    annotations: dict[str, str]
    spec: Mapping[str, Any]
    in_mesh: bool
    """A sidecar is in it, or will be."""
    source: Object


class Objects:
    """Everything that is analysed."""

    def __init__(
        self,
        documents: Iterable[Any],
        mesh: Mapping[str, Any] | None = None,
        *,
        assumed: bool = True,
    ) -> None:
        """
        Args:
            documents: As people wrote them.
            mesh: Fields of the mesh config; None: those of a document of kind MeshConfig.
            assumed: An ingress gateway is taken to be there, unless the mesh config has none.
        """
        self._by_kind: dict[tuple[str, str], dict[str, Object]] = {}
        found: dict[str, Any] = {}
        for place, document in enumerate(documents):
            one = _object(document, place)
            if one is None or {one.namespace, one.name} & _NOT_LOOKED_AT:
                continue
            if one.kind == "MeshConfig":
                found = dict(one.spec)
            self._put(one)
        self.mesh: Mapping[str, Any] = found if mesh is None else mesh
        for one in _default_gateway(self.mesh) if assumed else ():
            if self.find(one.group, one.kind, one.namespace, one.name) is None:
                self._put(one)
        self.pods: tuple[Pod, ...] = tuple(self._pods())

    def _put(self, one: Object) -> None:
        self._by_kind.setdefault((one.group, one.kind), {})[one.full_name] = one

    def of(self, group: str, *kinds: str) -> Iterator[Object]:
        """All objects of these kinds, in order of the input."""
        for kind in kinds:
            yield from self._by_kind.get((group, kind), {}).values()

    def find(self, group: str, kind: str, namespace: str, name: str) -> Object | None:
        """One object, or None."""
        return self._by_kind.get((group, kind), {}).get(f"{namespace}/{name}")

    def namespace(self, name: str) -> Object | None:
        """The Namespace of that name, if it is among the objects."""
        held = self._by_kind.get(("", "Namespace"), {})
        return next((one for one in held.values() if one.name == name), None)

    def written(self, place: int) -> Iterator[Object]:
        """The object of a document of the input."""
        for held in self._by_kind.values():
            yield from (one for one in held.values() if place >= 0 and one.place == place)

    @property
    def root_namespace(self) -> str:
        """Where policies are of the whole mesh."""
        return text(self.mesh.get("rootNamespace")) or SYSTEM_NAMESPACE

    def networks(self) -> Mapping[str, Any]:
        """The networks of the mesh, by name."""
        for one in self.of("mesh.istio.io", "MeshNetworks"):
            return record(one.spec.get("networks"))
        config = self.find("", "ConfigMap", SYSTEM_NAMESPACE, "istio")
        held = text(record(config.content.get("data")).get("meshNetworks")) if config else ""
        try:
            return record(record(read_yaml(held)).get("networks")) if held else {}
        except NotReadableError:
            return {}

    def _pods(self) -> Iterator[Pod]:
        written = [
            self._pod(one, one.labels, one.annotations, one.spec) for one in self.of("", "Pod")
        ]
        yield from written
        for one in (*self.of("apps", *_TEMPLATES), *self.of("batch", "Job")):
            template = record(one.spec.get("template"))
            metadata = record(template.get("metadata"))
            labels = strings(metadata.get("labels"))
            running = any(
                pod.namespace == one.namespace and labels.items() <= pod.labels.items()
                for pod in written
            )
            # Pods of a template that are there speak for themselves.
            if not running:
                annotations = strings(metadata.get("annotations"))
                yield self._pod(one, labels, annotations, record(template.get("spec")))
        for one in self.of("standalone.meshbus.io", "Workload"):
            sidecar = one.spec.get("sidecar") is not False
            yield Pod(one.namespace, one.name, one.labels, one.annotations, {}, sidecar, one)

    def _pod(
        self,
        one: Object,
        labels: dict[str, str],
        annotations: dict[str, str],
        spec: Mapping[str, Any],
    ) -> Pod:
        inside = self.in_mesh(one.namespace, labels, annotations, spec)
        return Pod(one.namespace, one.name, labels, annotations, spec, inside, one)

    def in_mesh(
        self,
        namespace: str,
        labels: Mapping[str, str],
        annotations: Mapping[str, str],
        spec: Mapping[str, Any],
    ) -> bool:
        """A pod has a sidecar, or will have one."""
        if any(one.get("name") == _PROXY and one.get("image") for one in containers(spec)):
            return True
        for said in (labels, annotations):
            if _INJECT in said:
                return said[_INJECT] == "true"
        found = self.namespace(namespace)
        return found is not None and found.labels.get(_INJECTION) == "enabled"


def containers(spec: Mapping[str, Any], *, initial: bool = True) -> list[dict[str, Any]]:
    """Containers of a pod, those that run first included."""
    found = records(spec.get("containers"))
    return found + records(spec.get("initContainers")) if initial else found


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """All labels of the selector are there."""
    return all(labels.get(key) == value for key, value in selector.items())


def shown(selector: Mapping[str, str]) -> str:
    """A selector in one line: `app=a,version=b`."""
    return ",".join(f"{key}={value}" for key, value in sorted(selector.items()))


def _object(document: Any, place: int) -> Object | None:
    if not isinstance(document, dict):
        return None
    version, kind = text(document.get("apiVersion")), text(document.get("kind"))
    metadata = record(document.get("metadata"))
    name = text(metadata.get("name")) or text(metadata.get("generateName"))
    if not kind or not (name or kind == "MeshConfig"):
        return None
    return Object(
        kind=kind,
        group=version.rpartition("/")[0],
        namespace=text(metadata.get("namespace")) or "default",
        name=name,
        content=document,
        labels=strings(metadata.get("labels")),
        annotations=strings(metadata.get("annotations")),
        place=place,
    )


def _default_gateway(mesh: Mapping[str, Any]) -> Iterator[Object]:
    """An ingress gateway, its Service and its pod: who analyses files has it elsewhere.

    Source: Istio, `istioctl analyze` of files.
    """
    if mesh.get("ingressControllerMode") == "OFF":
        return
    service = text(mesh.get("ingressService")) or "istio-ingressgateway"
    labels = {"istio": "ingressgateway"}
    ports = [
        {"name": name, "port": port, "protocol": "TCP", "targetPort": port}
        for name, port in (("http2", 80), ("https", 443), ("tcp", 31400), ("tls", 15443))
    ]
    for kind, name, spec in (
        ("Pod", f"{service}-dummypod", {"containers": [{"name": _PROXY}]}),
        ("Service", service, {"ports": ports, "selector": labels}),
    ):
        metadata = {"name": name, "namespace": SYSTEM_NAMESPACE, "labels": labels}
        found = _object({"apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": spec}, -1)
        if found is not None:
            yield found
