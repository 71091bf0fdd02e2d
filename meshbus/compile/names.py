"""Names and hosts: what resources are called, which host matches which, protocols of ports.

Names are Istio's (DESIGN §5), so that its users and tools feel at home.
"""

from collections.abc import Iterable
from typing import NamedTuple

BLACK_HOLE = "BlackHoleCluster"
PASSTHROUGH = "PassthroughCluster"
AS_NAMED = "AllowAnyDynamicDNSCluster"
"""Takes requests to unknown hosts to where their names lead."""
INBOUND_PASSTHROUGH = "InboundPassthroughCluster"
LOCAL_CLUSTER = "local_cluster"
"""Of the bootstrap: the instances of a proxy's own workload, of which Envoy wants to know the zones
(`cluster_manager.local_cluster_name`)."""
LISTENER_LIMITS = "listener-limits"
"""Runtime values where listeners have limits, and the layer of the bootstrap for them."""
UNKNOWN = frozenset({PASSTHROUGH, AS_NAMED})
"""Clusters that let what nobody claims through."""
MESH_GATEWAY = "mesh"
"""The name that stands for all sidecars in `VirtualService.gateways`."""
CLUSTER_DOMAIN = "cluster.local"
_SERVICES = f".svc.{CLUSTER_DOMAIN}"

HTTP = frozenset({"HTTP", "HTTP2", "GRPC", "GRPC-WEB", "HTTP_PROXY"})
HTTP2 = frozenset({"HTTP2", "GRPC", "GRPC-WEB"})
TLS = frozenset({"TLS", "HTTPS"})
UDP = "UDP"


class ClusterName(NamedTuple):
    """The parts of an outbound cluster's name."""

    port: int
    subset: str
    host: str

    def __str__(self) -> str:
        return f"outbound|{self.port}|{self.subset}|{self.host}"

    @classmethod
    def parse(cls, name: str) -> "ClusterName":
        """Of the text of one."""
        _, port, subset, host = name.split("|", 3)
        return cls(int(port), subset, host)

    @property
    def sni(self) -> str:
        """What the client side of mutual TLS puts in SNI."""
        return f"outbound_.{self.port}_.{self.subset}_.{self.host}"


def inbound_cluster(port: int) -> str:
    """Cluster of the application behind a sidecar."""
    return f"inbound|{port}||"


def spiffe(trust_domain: str, namespace: str, service_account: str) -> str:
    """The identity of a workload."""
    return f"spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"


def config_path(plural: str, namespace: str, name: str) -> str:
    """How Istio writes the object behind a resource in metadata `istio.config`."""
    return f"/apis/networking.istio.io/v1/namespaces/{namespace}/{plural}/{name}"


def is_http(protocol: str) -> bool:
    """Declared to be HTTP of some version."""
    return protocol in HTTP


def is_sniffed(protocol: str) -> bool:
    """Not declared: detected at run time."""
    return protocol == ""


def fqdn(host: str, namespace: str) -> str:
    """A short host belongs to the namespace of the object that says it; names with a dot and
    wildcards stand for themselves.

    Source: Istio, VirtualService reference, `Destination.host`.
    """
    if host == "*" or "." in host or not host:
        return host
    return f"{host}.{namespace}.svc.{CLUSTER_DOMAIN}"


def is_wildcard(host: str) -> bool:
    """`*` or `*.suffix`."""
    return host.startswith("*")


def covers(pattern: str, host: str) -> bool:
    """Every name of `host` is one of `pattern`: `*.com` covers `a.com` and `*.a.com`."""
    if pattern == host:
        return True
    if not is_wildcard(pattern):
        return False
    tail = pattern[1:]
    return host[1:].endswith(tail) if is_wildcard(host) else host.endswith(tail)


def overlaps(one: str, other: str) -> bool:
    """Some name belongs to both."""
    return covers(one, other) or covers(other, one)


def narrower(one: str, other: str) -> str | None:
    """The more specific of two hosts that overlap."""
    if covers(one, other):
        return other
    return one if covers(other, one) else None


def most_specific(patterns: Iterable[str], host: str) -> str | None:
    """The longest pattern that covers a host; an exact one wins."""
    best: str | None = None
    for pattern in patterns:
        if covers(pattern, host):
            if not is_wildcard(pattern):
                return pattern
            if best is None or len(pattern) > len(best):
                best = pattern
    return best


def service_domains(host: str, namespace: str) -> tuple[str, ...]:
    """The names a proxy in `namespace` may call a service by, without port.

    `reviews.default.svc.cluster.local` is `reviews`, `reviews.default.svc`, `reviews.default` for
    its neighbours, the last two for others; other hosts have no short names.
    Source: Istio, GenerateAltVirtualHosts.
    """
    full = full_names(host)
    owner = namespace_in(host)
    if not owner:
        return full
    base = host.removesuffix(_SERVICES)
    if owner == namespace:
        return (*full, base.partition(".")[0], f"{base}.svc", base)
    return (*full, base, f"{base}.svc")


def namespace_in(host: str) -> str:
    """The namespace that a host names, `NAME.NAMESPACE.svc.cluster.local`; empty: it names none."""
    if not host.endswith(_SERVICES):
        return ""
    return host.removesuffix(_SERVICES).partition(".")[2]


def full_names(host: str) -> tuple[str, ...]:
    """A host, and with a dot at the end, as clients write it that will not have it completed."""
    return (host,) if host == "*" or host.endswith(".") or _is_address(host) else (host, f"{host}.")


def _is_address(host: str) -> bool:
    return ":" in host or host.rpartition(".")[2].isdecimal()


def bracketed(host: str) -> str:
    """An IPv6 address as it stands in an authority."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def with_port(host: str, port: int) -> str:
    """`HOST:PORT`."""
    return f"{bracketed(host)}:{port}"


def listener_name(address: str, port: int) -> str:
    """`ADDRESS_PORT`."""
    return f"{address}_{port}"
