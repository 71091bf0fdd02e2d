"""Ingress listeners of a Sidecar: the ports on which a workload is reached, and where its
application listens.

Source: https://istio.io/latest/docs/reference/config/networking/sidecar/#IstioIngressListener
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import address_pb2

from meshbus.compile.names import with_port
from meshbus.compile.values import address, uint32
from meshbus.compile.visibility import Ref
from meshbus.compile.written import entries, fields, number

_UNIX = "unix://"
_AFTER_TLS = {"HTTPS": "HTTP", "TLS": "TCP"}
_LOCAL = "127.0.0.1"
_LOOPBACK = frozenset({_LOCAL, "::1"})
_OWN = {"0.0.0.0": "IPv4", "[::]": "IPv6", "::": "IPv6"}  # noqa: S104 - stands for one address


class Ingress(NamedTuple):
    """One ingress listener."""

    port: int
    protocol: str
    """What is spoken within its own TLS, where it has any."""
    bind: str
    captured: bool
    """Traffic is redirected to it; else it binds its port."""
    endpoint: str
    """Where the application listens, as written; empty: at the same port."""
    pool: str
    """Its `connectionPool`, else that of the whole Sidecar, as JSON; empty: none."""
    tls: str = ""
    """Its `tls`, as JSON; empty: none."""
    path: str = ""
    """Where in the Sidecar it is."""


class IngressSide(NamedTuple):
    """What a Sidecar says about a workload's inbound side."""

    listeners: tuple[Ingress, ...]
    """Empty: the services of the workload say its ports."""
    pool: str
    """`inboundConnectionPool` as JSON; empty: none."""


NO_INGRESS = IngressSide((), "")


def ingress_side(sidecar: Ref | None) -> IngressSide:
    """The inbound side of workloads under a Sidecar."""
    if sidecar is None:
        return NO_INGRESS
    spec: Mapping[str, Any] = sidecar.row.spec
    pool = _text(spec.get("inboundConnectionPool"))
    found: dict[int, Ingress] = {}
    for index, listener in enumerate(entries(spec.get("ingress"))):
        port = fields(listener.get("port"))
        tls = _text(listener.get("tls"))
        protocol = str(port.get("protocol") or "").upper()
        made = Ingress(
            number(port.get("number")),
            _AFTER_TLS.get(protocol, protocol) if tls else protocol,
            str(listener.get("bind") or ""),
            listener.get("captureMode") != "NONE",
            str(listener.get("defaultEndpoint") or ""),
            _text(listener.get("connectionPool")) or pool,
            tls,
            f"spec.ingress[{index}]",
        )
        if made.port:
            found.setdefault(made.port, made)
    return IngressSide(tuple(found[port] for port in sorted(found)), pool)


def _text(settings: Any) -> str:
    """Settings as something that can be an argument of a node."""
    if not isinstance(settings, Mapping) or not settings:
        return ""
    return msgspec.json.encode(settings, order="deterministic").decode()


def pool_policy(text: str) -> dict[str, Any]:
    """A traffic policy with the connection pool of `Ingress.pool`."""
    return {"connectionPool": msgspec.json.decode(text)} if text else {}


def tls_settings(text: str) -> dict[str, Any]:
    """The server's TLS settings of `Ingress.tls`."""
    settings: dict[str, Any] = msgspec.json.decode(text) if text else {}
    return settings


def own_endpoint(endpoint: str, addresses: tuple[str, ...]) -> str:
    """`defaultEndpoint` with the instance's own address where it says `0.0.0.0` or `[::]`; as it
    is, when the instance has none of that family.

    Source: networking IstioIngressListener.
    """
    host, _, port = endpoint.rpartition(":")
    family = _OWN.get(host)
    if family is None:
        return endpoint
    own = next((a for a in addresses if (":" in a) == (family == "IPv6")), "")
    return with_port(own, int(port)) if own else endpoint


def send_to_endpoint(cluster: cluster_pb2.Cluster, endpoint: str, app_address: str) -> None:
    """Point an application's cluster to `defaultEndpoint`: this machine, the instance's own address
    or a Unix socket. `app_address`: the address of an application whose sidecar has another one;
    both kinds of address stand for it.
    """
    if endpoint.startswith(_UNIX):
        _fixed(cluster, address_pb2.Address(pipe=address_pb2.Pipe(path=endpoint[len(_UNIX) :])))
        return
    host, _, port = endpoint.rpartition(":")
    if app_address:
        _fixed(cluster, address(app_address, int(port)))
    elif host in _OWN:
        # The address that the caller asked for is the instance's; only the port may be another.
        cluster.original_dst_lb_config.upstream_port_override.CopyFrom(uint32(int(port)))
    else:
        host = host.strip("[]") or _LOCAL
        source = cluster.upstream_bind_config if cluster.HasField("upstream_bind_config") else None
        kept = None if host in _LOOPBACK else source
        _fixed(cluster, address(host, int(port)), kept)


def _fixed(
    cluster: cluster_pb2.Cluster,
    where: address_pb2.Address,
    source: address_pb2.BindConfig | None = None,
) -> None:
    """One endpoint. `source`: where connections come from, so that capture leaves them alone."""
    kept = address_pb2.BindConfig()
    if source is not None:
        kept.CopyFrom(source)
    cluster.type = cluster_pb2.Cluster.STATIC
    cluster.ClearField("lb_policy")
    cluster.ClearField("cleanup_interval")
    cluster.ClearField("upstream_bind_config")
    cluster.ClearField("load_assignment")
    if source is not None:
        cluster.upstream_bind_config.CopyFrom(kept)
    cluster.load_assignment.cluster_name = cluster.name
    group = cluster.load_assignment.endpoints.add()
    group.lb_endpoints.add().endpoint.address.CopyFrom(where)
