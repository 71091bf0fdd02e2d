"""`tls` and `tcp` of a virtual service: where connections go by SNI, port and address."""

from ipaddress import ip_network
from typing import Any, NamedTuple

from envoy.config.core.v3 import address_pb2
from envoy.config.listener.v3 import listener_components_pb2 as lc_pb2

from meshbus.compile.connections import Reporting, Tunnel, tcp_proxy
from meshbus.compile.engine import Reader
from meshbus.compile.findings import NotCompiledError, Report
from meshbus.compile.http_routes import (
    RouteContext,
    destination_cluster,
    names_caller,
    names_gateway,
)
from meshbus.compile.names import MESH_GATEWAY, ClusterName, is_wildcard, overlaps
from meshbus.compile.scope import visible_virtual_services
from meshbus.compile.stat_names import outbound_stat_name
from meshbus.compile.values import uint32
from meshbus.compile.viewers import Viewer
from meshbus.compile.visibility import Ref
from meshbus.model.keys import Key

MAX_COMBINATIONS = 10_000
"""Of names with networks, in the matches of one virtual service that have several of both: Envoy
keeps each of them, and a few thousand of either would take all of its memory."""


class L4Route(NamedTuple):
    """Connections that match go to one of the clusters, by weight."""

    server_names: tuple[str, ...]
    subnets: tuple[str, ...]
    """Of the destination."""
    clusters: tuple[tuple[str, int], ...]
    sources: tuple[str, ...] = ()
    """Subnets that callers are of; empty: any."""
    hashed: bool = False
    """Connections of one address go to one endpoint."""
    tunnel: Tunnel | None = None
    idle_ns: int | None = None
    """After which a connection without traffic is closed; 0: never, None: Envoy's default."""
    lifetime_ns: int | None = None
    """After which a connection is closed whatever is on it; None: never."""
    owner: str = ""
    """`NAME.NAMESPACE` of the virtual service that says it."""
    counted: str = ""
    """What MeshConfig's pattern makes of the name of its one cluster; empty: no pattern."""

    @property
    def stat_prefix(self) -> str:
        """Under which its connections are counted: the cluster, or who divides them.
        Source: Istio, buildOutboundNetworkFilters."""
        return (self.counted or self.clusters[0][0]) if len(self.clusters) == 1 else self.owner


def straight(cluster: ClusterName, context: RouteContext) -> L4Route:
    """Every connection to one cluster."""
    return _as_asked(L4Route((), (), ((str(cluster), 1),)), (cluster,), context)


def _as_asked(route: L4Route, clusters: tuple[ClusterName, ...], context: RouteContext) -> L4Route:
    """A route, with what the destination rules of its clusters ask for. A tunnel has one end: with
    several clusters there is none.

    Source: Istio, tunnelingconfig.Apply and maybeSetHashPolicy (pilot/pkg/networking/core).
    """
    asked = [context.policy(c.host, c.port, c.subset) for c in clusters]
    return route._replace(
        hashed=any((conduct.hashing or {}).get("useSourceIp") for conduct in asked),
        tunnel=asked[0].tunnel if len(asked) == 1 else None,
        idle_ns=asked[0].idle_ns,
        lifetime_ns=asked[0].lifetime_ns,
        counted=_counted(clusters[0], context) if len(clusters) == 1 else "",
    )


def _counted(cluster: ClusterName, context: RouteContext) -> str:
    """As the cluster itself is counted, without what ends a tag."""
    pattern = context.settings.outbound_stat_name
    row = context.service(cluster.host) if pattern else None
    port = next((p for p in row.ports if p.number == cluster.port), None) if row else None
    if row is None or port is None:
        return ""
    return outbound_stat_name(pattern, row, port, cluster.subset).removesuffix(";")


def tcp_filter(route: L4Route, reporting: Reporting) -> lc_pb2.Filter:
    """The network filter of a route."""
    return tcp_proxy(
        route.stat_prefix,
        route.clusters,
        reporting,
        hashed=route.hashed,
        tunnel=route.tunnel,
        idle_ns=route.idle_ns,
        lifetime_ns=route.lifetime_ns,
    )


def restrict(chain: lc_pb2.FilterChain, route: L4Route) -> None:
    """The subnets of a route in the match of its chain; Envoy refuses one that is there twice."""
    match = chain.filter_chain_match
    for held, subnets in (
        (match.prefix_ranges, route.subnets),
        (match.source_prefix_ranges, route.sources),
    ):
        known = {r.SerializeToString() for r in held}
        for wanted in map(prefix_range, subnets):
            if (body := wanted.SerializeToString()) not in known:
                known.add(body)
                held.append(wanted)


def prefix_range(network: str) -> address_pb2.CidrRange:
    """A network, or a single address."""
    parsed = ip_network(network, strict=False)
    return address_pb2.CidrRange(
        address_prefix=str(parsed.network_address), prefix_len=uint32(parsed.prefixlen)
    )


class L4Hosts(NamedTuple):
    """Hosts of virtual services with `tls` or `tcp` for sidecars, and whose they are."""

    exact: dict[str, tuple[Key, ...]]
    wildcards: dict[str, tuple[Key, ...]]
    order: dict[Key, int]
    """Which comes first."""


def l4_hosts(reader: Reader, viewer: Viewer) -> L4Hosts:
    """Node: those that a viewer follows."""
    found: dict[str, list[Key]] = {}
    order: dict[Key, int] = {}
    for ref in reader.node(visible_virtual_services, viewer):
        if ref.row.for_sidecars and not ref.row.sections.isdisjoint({"tls", "tcp"}):
            order[ref.key] = len(order)
            for host in ref.row.hosts:
                found.setdefault(host.lower(), []).append(ref.key)
    keys = {host: tuple(found[host]) for host in sorted(found)}
    return L4Hosts(
        {h: k for h, k in keys.items() if not is_wildcard(h)},
        {h: k for h, k in keys.items() if is_wildcard(h)},
        order,
    )


def l4_speakers(reader: Reader, viewer: Viewer, host: str) -> tuple[Key, ...]:
    """Virtual services with a host that overlaps a service's, in their order.

    Source: Istio, getConfigsForHost.
    """
    hosts = reader.node(l4_hosts, viewer)
    found = dict.fromkeys(hosts.exact.get(host, ()))
    asked = hosts.exact if is_wildcard(host) else {}
    for pattern, keys in {**asked, **hosts.wildcards}.items():
        if overlaps(pattern, host):
            found.update(dict.fromkeys(keys))
    return tuple(sorted(found, key=hosts.order.__getitem__))


def is_for_all(route: L4Route) -> bool:
    """Every connection takes it: those after it are never reached."""
    return not route.server_names and not route.subnets and not route.sources


def _combinations(route: L4Route, networks: tuple[str, ...]) -> int:
    """Of its names with its networks; 0: it has not several of both."""
    names, subnets = len(route.server_names), len(route.subnets or networks)
    return names * subnets if min(names, subnets) > 1 else 0


def l4_routes(
    vs: Ref,
    section: str,
    context: RouteContext,
    report: Report,
    *,
    networks: tuple[str, ...] = (),
) -> list[L4Route]:
    """Routes of `tls` or `tcp` that hold for this port and proxy, in order.

    For `tcp` the first that matches everything ends the list. Who calls and at what address counts
    for sidecars, unlike in `http` beside `gateways` too, and not for gateways.

    Args:
        networks: Where connections go that a match says no subnets of; they count as combinations.
    Source: Istio, TLSMatchAttributes and L4MatchAttributes references, matchTLS, matchTCP and
    l4SingleMatch.
    """
    out: list[L4Route] = []
    combined = 0
    mesh = MESH_GATEWAY in context.gateways
    for index, rule in enumerate(vs.row.spec.get(section) or ()):
        path = f"spec.{section}[{index}]"
        for match in rule.get("match") or ([{}] if section == "tcp" else []):
            with report.guard(vs.key, path):
                if match.get("port") and int(match["port"]) != context.port:
                    continue
                if match.get("gateways") and not names_gateway(match, context, vs.row.namespace):
                    continue
                if mesh and not names_caller(match, context):
                    continue
                targets = weighted_targets(rule.get("route") or [], vs, context, path)
                route = L4Route(
                    tuple(dict.fromkeys(str(n).lower() for n in match.get("sniHosts") or ())),
                    tuple(str(n) for n in match.get("destinationSubnets") or ()) if mesh else (),
                    tuple((str(cluster), weight) for cluster, weight in targets),
                    (str(match["sourceSubnet"]),) if mesh and match.get("sourceSubnet") else (),
                    owner=f"{vs.row.name}.{vs.row.namespace}",
                )
                route = _as_asked(route, tuple(cluster for cluster, _ in targets), context)
                if section == "tls" and not route.server_names:
                    raise NotCompiledError(f"{path}.match", "sniHosts is needed")
                more = combined + _combinations(route, networks)
                if more > MAX_COMBINATIONS:
                    message = (
                        f"sniHosts with networks are more than {MAX_COMBINATIONS} combinations, "
                        "together with the matches before"
                    )
                    raise NotCompiledError(f"{path}.match", message)
                combined = more
                out.append(route)
                if section == "tcp" and is_for_all(route):
                    return out
    return out


def weighted_targets(
    routes: list[dict[str, Any]], vs: Ref, context: RouteContext, path: str
) -> tuple[tuple[ClusterName, int], ...]:
    """Clusters with weights; a single destination has weight 1.

    Raises:
        NotCompiledError: There is no destination, or all weights are 0.
    """
    out = []
    for index, target in enumerate(routes):
        weight = 1 if len(routes) == 1 else int(target.get("weight") or 0)
        if weight:
            cluster = destination_cluster(
                target.get("destination") or {},
                vs.row.namespace,
                context,
                f"{path}.route[{index}].destination",
            )
            out.append((cluster, weight))
    if not out:
        raise NotCompiledError(f"{path}.route", "a destination with a weight is needed")
    return tuple(out)
