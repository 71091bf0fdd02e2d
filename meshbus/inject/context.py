"""What the parts of an injection know of the pod and its mesh."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from meshbus.api.mesh.proxy_config import MeshProxyConfig
from meshbus.inject import annotations as a
from meshbus.inject.values import lookup, text
from meshbus.inject.workloads import Owner

PROXY_ID = 1337
OUTBOUND_PORT, INBOUND_PORT = 15001, 15006
_SUFFIXES = {
    "n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000), "k": Fraction(1000),
}  # fmt: skip


@dataclass(frozen=True)
class PodContext:
    """One pod that is injected; the pod as people wrote it, without earlier injections."""

    values: Mapping[str, Any]
    mesh: Mapping[str, Any]
    proxy: MeshProxyConfig
    proxy_given: Mapping[str, Any]
    """The fields of `proxy` that somebody wrote."""
    annotations: Mapping[str, str]
    labels: Mapping[str, str]
    spec: Mapping[str, Any]
    owner: Owner
    namespace: str
    revision: str
    native: bool
    cluster: str
    network: str
    user: int = PROXY_ID
    group: int = PROXY_ID

    def value(self, *path: str) -> Any:
        """A value of the chart below `global`."""
        return lookup(self.values, "global", *path)

    def setting(self, annotation: str, *path: str) -> str:
        """An annotation, or the chart's value in its place."""
        if annotation in self.annotations:
            return self.annotations[annotation]
        return text(self.value(*path))

    @property
    def interception(self) -> str:
        """`REDIRECT`, `TPROXY` or `NONE`."""
        return self.annotations.get(a.INTERCEPTION) or self.proxy.interception_mode

    @property
    def transparent(self) -> bool:
        """Whether inbound connections keep the address of their client: the proxy then needs rights
        in its network, which only root is given, and is told by its group."""
        return self.interception == "TPROXY"

    @property
    def node_captures(self) -> bool:
        """Whether the node's CNI plugin sets capture up, and no container of the pod."""
        return bool(lookup(self.values, "pilot", "cni", "enabled"))

    @property
    def status_port(self) -> int:
        """Port of rewritten probes; 0: none are rewritten."""
        if a.STATUS_PORT in self.annotations:
            return int(self.annotations[a.STATUS_PORT])
        return int(text(self.value("proxy", "statusPort")) or 0) or self.proxy.status_port

    @property
    def metrics_port(self) -> int:
        """Port of merged metrics: the mesh's status port, whatever a pod says of its own."""
        return int(lookup(self.mesh, "defaultConfig", "statusPort") or 15020)

    @property
    def app_containers(self) -> list[str]:
        """Names of the containers that people wrote, without the proxy."""
        containers = self.spec.get("containers") or ()
        return [str(c.get("name")) for c in containers if c.get("name") != "istio-proxy"]

    @property
    def image_pull(self) -> dict[str, str]:
        """`imagePullPolicy`, if the chart has one."""
        policy = text(self.value("imagePullPolicy"))
        return {"imagePullPolicy": policy} if policy else {}

    @property
    def xds_gateway(self) -> tuple[str, int]:
        """Where the proxy gets its configuration from."""
        given = text(self.proxy_given.get("discoveryAddress")) or text(self.value("caAddress"))
        if given:
            host, _, port = given.rpartition(":")
            return host.strip("[]"), int(port)
        suffix = "" if self.revision in ("", "default") else f"-{self.revision}"
        return f"xds-gateway{suffix}.{self.root_namespace}.svc", 15012

    @property
    def root_namespace(self) -> str:
        """Namespace of the control plane."""
        return text(self.value("istioNamespace")) or "istio-system"

    @property
    def trust_domain(self) -> str:
        """Of identities."""
        return text(self.mesh.get("trustDomain")) or "cluster.local"

    @property
    def canonical_name(self) -> str:
        """Istio's name of the service a pod belongs to."""
        for label in ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app"):
            if self.labels.get(label):
                return self.labels[label]
        return self.owner.label

    @property
    def canonical_revision(self) -> str:
        """Istio's version of the service a pod belongs to."""
        for label in (
            "service.istio.io/canonical-revision",
            "app.kubernetes.io/version",
            "version",
        ):
            if self.labels.get(label):
                return self.labels[label]
        return "latest"

    def image(self, annotation_value: str, name: str) -> str:
        """The image of a container: a whole name, or one below `global.hub`."""
        image = annotation_value or name
        if "/" in image:
            return image
        tag = text(self.value("tag")) or "latest"
        kind = self.annotations.get(a.PROXY_IMAGE_TYPE, "")
        if not kind and self.proxy.image:
            kind = str(self.proxy.image.image_type)
        if kind:
            tag = re.sub(r"-(distroless|debug)$", "", tag)
            tag = tag if kind == "default" else f"{tag}-{kind}"
        return f"{text(self.value('hub'))}/{image}:{tag}"


def cores(quantity: Any) -> Fraction | None:
    """A CPU quantity in cores; None if it is none."""
    word = text(quantity)
    scale = _SUFFIXES.get(word[-1:])
    try:
        return Fraction(word[:-1]) * scale if scale is not None else Fraction(word)
    except (ValueError, ZeroDivisionError):
        return None
