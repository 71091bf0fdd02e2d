"""Route configurations of sidecars: one for each HTTP port, made of virtual hosts.

A virtual host is built once for all views that see the same services, rules and routes, and kept as
bytes; a route configuration joins them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from envoy.config.route.v3 import route_components_pb2 as rc_pb2
from envoy.config.route.v3 import route_pb2
from google.protobuf import duration_pb2

from meshbus.compile.connection_settings import NOTHING_SAID, ConnectionSettings
from meshbus.compile.connections import Tunnel
from meshbus.compile.engine import Reader
from meshbus.compile.extensions import Extension
from meshbus.compile.families import FIRST_UNPRIVILEGED, Families
from meshbus.compile.findings import Finding, NotCompiledError, Part, Report
from meshbus.compile.headings import Labels
from meshbus.compile.http_routes import (
    Conduct,
    Made,
    RouteContext,
    default_route,
    encode_route,
    http_routes,
    joined_routes,
    set_timeout,
)
from meshbus.compile.names import (
    AS_NAMED,
    BLACK_HOLE,
    MESH_GATEWAY,
    PASSTHROUGH,
    UDP,
    ClusterName,
    bracketed,
    covers,
    full_names,
    is_http,
    is_sniffed,
    is_wildcard,
    most_specific,
    service_domains,
    with_port,
)
from meshbus.compile.on_demand import EVERYTHING_BEFORE, OnDemand
from meshbus.compile.proxy_headers import NO_WISHES, ProxyHeaders
from meshbus.compile.resources import RDS, Resource, field, resource_of
from meshbus.compile.rules_in_force import find_rules
from meshbus.compile.scope import (
    aliased_hosts,
    aliases_of,
    listener_viewer,
    reachable_services,
    visible_services,
    visible_virtual_services,
)
from meshbus.compile.sessions import Session, session_in_force, session_of_service
from meshbus.compile.settings import mesh
from meshbus.compile.traffic_policy import (
    NO_RULE,
    hash_policy_of,
    merged_rule,
    policy_in_force,
)
from meshbus.compile.values import ads, boolean, nanos_of, uint32
from meshbus.compile.viewers import Viewer
from meshbus.compile.visibility import Ref
from meshbus.model.keys import Key
from meshbus.model.rows import Service, ServicePort

HTTP_PROXY_ROUTE = "http_proxy"
MAX_DIRECT_RESPONSE_BYTES = 1024 * 1024


class View(NamedTuple):
    """What decides a sidecar's outbound traffic: proxies of one view share every resource."""

    viewer: Viewer
    sources: frozenset[Labels]
    """Selectors of `sourceLabels` that pick the proxy, of those that visible routes have."""
    rules: frozenset[Key]
    """Destination rules whose workloadSelector picks the proxy."""
    captured: bool
    """Traffic is captured (original destination known); else it comes by the HTTP proxy."""
    families: Families
    unknown: str
    """The cluster that takes what no host claims; `BlackHoleCluster`: it is refused."""
    dns: bool = False
    """Applications ask mesh DNS: allocated addresses are called."""
    extensions: tuple[Extension, ...] = ()
    """WasmPlugins and TrafficExtensions on the client side, or of a gateway."""
    headers: ProxyHeaders = NO_WISHES
    """What the proxies say of themselves and callers, in headers."""
    bound: bool = False
    """Nothing is redirected: every port of a service has a listener that binds it."""
    on_demand: OnDemand = EVERYTHING_BEFORE
    unprivileged: bool = False
    """Ports below 1024 cannot be bound."""
    treatment: ConnectionSettings = NOTHING_SAID
    """How the proxies treat connections."""

    def may_bind(self, port: int) -> bool:
        """The proxies are allowed to."""
        return not self.unprivileged or port >= FIRST_UNPRIVILEGED

    @property
    def namespace(self) -> str:
        """Of the proxies."""
        return self.viewer.namespace

    @property
    def unknown_tcp(self) -> str:
        """`unknown` for what has no name in it: tunnels, and connections that are not HTTP."""
        return PASSTHROUGH if self.unknown == AS_NAMED else self.unknown


class HostRoutes(NamedTuple):
    """Routes of one virtual host, encoded; name and domains are put before them."""

    tail: bytes
    """Fields of a VirtualHost without `name` and `domains`; empty: no route for this port."""
    origins: tuple[Key, ...]
    findings: tuple[Finding, ...]


# --------------------------------------------------------------------------- what is there


class RoutedHosts(NamedTuple):
    """Hosts that virtual services for sidecars are about, and who speaks for each: older first."""

    exact: dict[str, tuple[Key, ...]]
    wildcards: dict[str, tuple[Key, ...]]
    silent: frozenset[str]
    """Hosts whose first virtual service has nothing to say of HTTP."""
    patterns: tuple[str, ...]
    """Every wildcard, of `silent` as well."""


def routed_hosts(reader: Reader, viewer: Viewer) -> RoutedHosts:
    """Node: keys of the virtual services of each host for sidecars of a namespace."""
    found: dict[str, dict[Key, None]] = {}
    first: dict[str, bool] = {}
    for ref in reader.node(visible_virtual_services, viewer):
        if not ref.row.for_sidecars:
            continue
        speaks = "http" in ref.row.sections
        for host in ref.row.hosts:
            first.setdefault(host.lower(), speaks)
            if speaks:
                found.setdefault(host.lower(), {})[ref.key] = None
    keys = {host: tuple(found[host]) for host in sorted(found)}
    return RoutedHosts(
        {h: k for h, k in keys.items() if not is_wildcard(h)},
        {h: k for h, k in keys.items() if is_wildcard(h)},
        frozenset(host for host, speaks in first.items() if not speaks),
        tuple(sorted(host for host in first if is_wildcard(host))),
    )


def source_selectors(reader: Reader, viewer: Viewer) -> frozenset[Labels]:
    """Node: every `sourceLabels` in routes that proxies of a namespace follow."""
    visible = reader.node(visible_virtual_services, viewer)
    return frozenset[Labels]().union(*(ref.row.sources for ref in visible))


class HttpPort(NamedTuple):
    """One service at one port that may carry HTTP."""

    host: str
    service: Key
    sniffed: bool


def http_ports(reader: Reader, viewer: Viewer) -> dict[int, tuple[HttpPort, ...]]:
    """Node: services of each port number that carry HTTP, or may."""
    aliases = reader.node(aliased_hosts, viewer)
    visible = reader.node(visible_services, viewer)
    return _by_port((host, ref) for host, ref in visible.items() if host not in aliases)


def alias_ports(reader: Reader, viewer: Viewer) -> dict[int, tuple[HttpPort, ...]]:
    """Node: the same of services that stand for others, by ports of their own."""
    visible = reader.node(visible_services, viewer)
    return _by_port((host, visible[host]) for host in reader.node(aliased_hosts, viewer))


def _by_port(services: Iterable[tuple[str, Ref]]) -> dict[int, tuple[HttpPort, ...]]:
    found: dict[int, list[HttpPort]] = {}
    for host, ref in services:
        for port in ref.row.ports:
            if is_http(port.protocol) or is_sniffed(port.protocol):
                found.setdefault(port.number, []).append(
                    HttpPort(host, ref.key, is_sniffed(port.protocol))
                )
    return {number: tuple(found[number]) for number in sorted(found)}


def ports_of_hosts(reader: Reader, viewer: Viewer) -> dict[int, frozenset[str]]:
    """Node: hosts of services by their port numbers, whatever they speak there."""
    found: dict[int, set[str]] = {}
    for host, ref in reader.node(visible_services, viewer).items():
        for port in ref.row.ports:
            found.setdefault(port.number, set()).add(host)
    return {number: frozenset(hosts) for number, hosts in found.items()}


def hosts_at(reader: Reader, viewer: Viewer, port: int) -> frozenset[str]:
    """Node: one port of `ports_of_hosts`."""
    return reader.node(ports_of_hosts, viewer).get(port, frozenset())


def service_of(reader: Reader, viewer: Viewer, host: str) -> Service | None:
    """Node: the service that a host means to a viewer."""
    ref = reader.node(reachable_services, viewer).get(host)
    row: Service | None = None if ref is None else ref.row
    return row


def conduct_of(reader: Reader, view: View, host: str, port: int, subset: str) -> Conduct:
    """Node: what the destination rules of a destination ask of the caller's side."""
    service = reader.node(service_of, view.viewer, host)
    owner = view.namespace if service is None else service.namespace
    keys = find_rules(reader, view.namespace, owner, host, view.rules)
    rule = reader.node(merged_rule, keys) if keys else NO_RULE
    affinity = service is not None and service.session_affinity
    policy = policy_in_force(rule, port, rule.subset(subset), affinity=affinity)
    tcp = (policy.get("connectionPool") or {}).get("tcp") or {}
    return Conduct(
        hash_policy_of(policy),
        _tunnel_of(policy),
        _nanos(tcp.get("idleTimeout")),
        _nanos(tcp.get("maxConnectionDuration")),
        session_in_force(rule.session, service),
    )


def _nanos(text: Any) -> int | None:
    """A duration in nanoseconds; None without one, and for what is none: its cluster reports it."""
    try:
        return nanos_of(str(text), "") if text else None
    except NotCompiledError:
        return None


def _tunnel_of(policy: dict[str, Any]) -> Tunnel | None:
    spec = policy.get("tunnel")
    if not spec:
        return None
    target = with_port(str(spec.get("targetHost") or ""), int(spec.get("targetPort") or 0))
    return Tunnel(target, spec.get("protocol") == "POST")


def mesh_routes(reader: Reader, view: View, port: int) -> RouteContext:
    """What the routes of a sidecar's port are made with."""
    return RouteContext(
        namespace=view.namespace,
        port=port,
        gateways=frozenset({MESH_GATEWAY}),
        sources=view.sources,
        tls=False,
        settings=reader.node(mesh),
        service=lambda host: reader.node(service_of, view.viewer, host),
        read=reader.get,
        policy=lambda host, number, subset: reader.node(conduct_of, view, host, number, subset),
        headers=view.headers,
    )


# --------------------------------------------------------------------------- one host


def virtual_service_tail(
    reader: Reader, keys: tuple[Key, ...], view: View, port: int
) -> HostRoutes:
    """Node: routes of the virtual services of one host for sidecars of a view at one port."""
    report = Report()
    context = mesh_routes(reader, view, port)
    made: list[Made] = []
    origins: dict[Key, None] = {}
    for key in keys:
        row = reader.get(key)
        if row is None:
            continue
        own = http_routes(Ref(key, row), context, report)
        if own:
            made += own
            origins.update(dict.fromkeys((key, *(m.source for m in own))))
    routes = joined_routes(made, report)
    reader.encoded("vhost")
    tail = encode_tail(routes, view.headers) if routes else b""
    return HostRoutes(tail, tuple(origins), report.findings())


class Treatment(NamedTuple):
    """What a service and its callers ask of its default route, besides destination rules."""

    affinity: bool
    """The service has `sessionAffinity: ClientIP`."""
    session: Session | None
    """What its labels say."""
    counted: bool
    """See `ProxyHeaders.attempt_count`."""


def _treatment(row: Service | None, view: View) -> Treatment:
    affinity = row is not None and row.session_affinity
    return Treatment(affinity, session_of_service(row), view.headers.attempt_count)


def service_tail(
    reader: Reader, host: str, port: int, rules: tuple[Key, ...], treatment: Treatment
) -> HostRoutes:
    """Node: the default route of a service that no virtual service speaks for. `rules`: its
    destination rules."""
    rule = reader.node(merged_rule, rules) if rules else NO_RULE
    spec = hash_policy_of(policy_in_force(rule, port, None, affinity=treatment.affinity))
    session = treatment.session
    if rule.session:
        session = session_in_force(rule.session, None) or session
    route = default_route(
        str(ClusterName(port, "", host)), f"{host}:{port}/*", reader.node(mesh), spec, session
    )
    reader.encoded("vhost")
    headers = NO_WISHES._replace(attempt_count=treatment.counted)
    return HostRoutes(encode_tail([encode_route(route)], headers), (), ())


def encode_tail(routes: list[bytes], headers: ProxyHeaders, require_tls: bool = False) -> bytes:
    """Encoded routes and the settings of a virtual host, without name and domains."""
    host = rc_pb2.VirtualHost(include_request_attempt_count=headers.attempt_count)
    if require_tls:
        host.require_tls = rc_pb2.VirtualHost.ALL
    return b"".join((*routes, host.SerializeToString(deterministic=True)))


def encode_host(name: str, domains: list[str], tail: bytes) -> bytes:
    """A `RouteConfiguration.virtual_hosts` entry, with tag and length.

    Source: envoy/config/route/v3/route.proto: virtual_hosts=2; VirtualHost: name=1, domains=2.
    """
    return field(2, encode_host_body(name, domains, tail))


def encode_host_body(name: str, domains: list[str], tail: bytes) -> bytes:
    """The same without tag and length: a `VirtualHost`."""
    return field(1, name.encode()) + b"".join(field(2, d.encode()) for d in domains) + tail


def encode_table(
    reader: Reader,
    name: str,
    hosts: list[bytes],
    origins: set[Key],
    *,
    ignore_port: bool,
    asks: bool = False,
    answers: Mapping[str, str] = MappingProxyType({}),
) -> Resource:
    """A route configuration of encoded virtual hosts. `asks`: others are asked for when a request
    needs them; `answers`: headers that every answer has."""
    rest = route_pb2.RouteConfiguration(
        validate_clusters=boolean(False),
        ignore_port_in_host_matching=ignore_port,
        max_direct_response_body_size_bytes=uint32(MAX_DIRECT_RESPONSE_BYTES),
    )
    if asks:
        rest.vhds.config_source.CopyFrom(ads())
    for header, value in sorted(answers.items()):
        added = rest.response_headers_to_add.add(append_action="OVERWRITE_IF_EXISTS_OR_ADD")
        added.header.key, added.header.value = header, value
    tail = rest.SerializeToString(deterministic=True)
    reader.encoded("rds")
    return resource_of(RDS, name, field(1, name.encode()) + b"".join(hosts) + tail, origins)


def routes_of(
    reader: Reader, view: View, keys: tuple[Key, ...], port: int, report: Report
) -> HostRoutes | None:
    """Routes of the virtual services of a host, None when they have none for this port."""
    routes = reader.node(virtual_service_tail, keys, view, port)
    report.extend(routes.findings)
    return routes if routes.tail else None


class Table:
    """Virtual hosts of one route configuration while it is put together: no name and no domain
    twice, which Envoy would refuse."""

    def __init__(self) -> None:
        self.hosts: dict[str, bytes] = {}
        self.origins: set[Key] = set()
        self.by_domain: dict[str, HostRoutes] = {}
        """Routes by domain, in lower case."""
        self._reserved: set[str] = set()

    def reserve(self, domains: list[str]) -> None:
        """Full names belong to their services, whatever short names others have."""
        self._reserved = {d.lower() for d in domains}

    def add(self, name: str, domains: list[str], routes: HostRoutes, own: str) -> None:
        """Put in a host; domains that are taken are left out. `own`: its full name."""
        if name in self.hosts:
            return
        free = []
        for domain in domains:
            lower = domain.lower()
            if lower in self.by_domain or (domain != own and lower in self._reserved):
                continue
            self.by_domain[lower] = routes
            free.append(domain)
        if free:
            self.hosts[name] = encode_host(name, free, routes.tail)
            self.origins.update(routes.origins)

    def encoded(self, last: bytes) -> list[bytes]:
        """Hosts by name, the one for everything else at the end."""
        return [*(self.hosts[name] for name in sorted(self.hosts)), last]


def service_names(row: Service, viewer: str, aliases: tuple[str, ...] = ()) -> list[str]:
    """Every name and address that a service may be called by, without port. `aliases`: hosts that
    stand for it."""
    names = [n for host in (row.host, *aliases) for n in service_domains(host, viewer)]
    if row.headless and row.origin == "kubernetes":
        names += [f"*.{name}" for name in names]
    return [*names, *(bracketed(a) for a in row.addresses if "/" not in a)]


def speakers_for(host: str, routed: RoutedHosts) -> tuple[Key, ...]:
    """Virtual services that speak for a service: of its host, else the first of the longest
    wildcard. One that has nothing to say of HTTP is the longest as well.

    Source: Istio, computeWildcardHostVirtualServiceIndex.
    """
    exact = routed.exact.get(host)
    if exact or host in routed.silent:
        return exact or ()
    pattern = most_specific(routed.patterns, host)
    if pattern is None or pattern in routed.silent:
        return ()
    return routed.wildcards[pattern][:1]


# --------------------------------------------------------------------------- tables


def http_proxy_routes(reader: Reader, view: View) -> Part:
    """Node: the route configuration `http_proxy`, for all services at all ports.

    A name without port is that of port 80. CONNECT opens a TCP connection to a port of a service:
    the way for what is not HTTP.
    """
    if view.on_demand.hosts:
        return asked_table(reader, HTTP_PROXY_ROUTE, ignore_port=False)
    return proxy_table(reader, view, HTTP_PROXY_ROUTE)


def asked_table(reader: Reader, name: str, *, ignore_port: bool) -> Part:
    """A route configuration without virtual hosts: each is asked for, also those that nobody
    claims, for Envoy asks only where it finds no route."""
    return Part((encode_table(reader, name, [], set(), ignore_port=ignore_port, asks=True),))


def proxy_table(reader: Reader, view: View, name: str) -> Part:
    """A table of all services at all ports, for a proxy that is asked by full names."""
    report = Report()
    table = fill_all(reader, view, report)
    resource = encode_table(
        reader,
        name,
        table.encoded(catch_all(view)),
        table.origins,
        ignore_port=False,
    )
    return Part((resource,), report.findings())


def fill_all(reader: Reader, view: View, report: Report) -> Table:
    """The virtual hosts of all services at all ports."""
    table = Table()
    ports = reader.node(http_ports, view.viewer)
    for port in sorted(ports):
        fill(reader, view, port, ports.get(port, ()), table, report, all_ports=True)
    for host, ref in reader.node(visible_services, view.viewer).items():
        for port_row in ref.row.ports:
            if is_http(port_row.protocol) or is_sniffed(port_row.protocol):
                continue
            if port_row.protocol != UDP:
                _add_tunnel(reader, view, table, host, ref.row, port_row)
    return table


def service_routes(
    reader: Reader,
    view: View,
    member: HttpPort,
    keys: tuple[Key, ...],
    port: int,
    report: Report,
) -> tuple[HostRoutes, tuple[Key, ...]]:
    """Routes of a service, and the virtual services that they are of. `keys`: those that speak for
    it."""
    routes = routes_of(reader, view, keys, port, report) if keys else None
    if routes is not None:
        return routes, keys
    row: Service = reader.get(member.service)
    rules = find_rules(reader, view.namespace, row.namespace, row.host, view.rules)
    return reader.node(service_tail, member.host, port, rules, _treatment(row, view)), ()


class Routed(NamedTuple):
    """A virtual host of virtual services that is not a service's own."""

    host: str
    names: tuple[str, ...]
    routes: HostRoutes


def routed_beside(
    reader: Reader,
    view: View,
    viewer: Viewer,
    port: int,
    speaks: Callable[[], Iterable[Key]],
    report: Report,
    *,
    all_ports: bool,
) -> Iterator[Routed]:
    """Hosts of virtual services that no service has at a port, and names that stand for services
    where virtual services speak for the name itself.

    A host that is no service is here with the services its virtual service also speaks for, or in
    the table of port 80; a service that speaks something else at the port is none of them.

    Args:
        viewer: Who sees these services and virtual services.
        speaks: Virtual services that speak for services at the port.
    Source: Istio, separateVSHostsAndServices and buildSidecarVirtualHostsForVirtualService.
    """
    routed = reader.node(routed_hosts, listener_viewer(reader, viewer, port))
    spoken: set[Key] = set()
    for alias in reader.node(alias_ports, viewer).get(port, ()):
        keys = speakers_for(alias.host, routed)
        found = routes_of(reader, view, keys, port, report) if keys else None
        if found is not None:
            spoken.update(keys)
            names = service_names(reader.get(alias.service), view.namespace)
            yield Routed(alias.host, tuple(names), found)
    if not (routed.exact or routed.wildcards):
        return
    held = reader.node(hosts_at, viewer, port)
    every = all_ports or port != 80
    if every:
        spoken.update(speaks())
    for host, keys in {**routed.exact, **routed.wildcards}.items():
        if host in held or (every and not spoken.intersection(keys)):
            continue
        if is_wildcard(host) and any(covers(host, h) for h in held):
            continue
        found = routes_of(reader, view, keys, port, report)
        if found is not None:
            yield Routed(host, full_names(host), found)


def fill(
    reader: Reader,
    view: View,
    port: int,
    members: tuple[HttpPort, ...],
    table: Table,
    report: Report,
    *,
    all_ports: bool,
) -> None:
    """Put in the virtual hosts of one port."""
    routed = reader.node(routed_hosts, listener_viewer(reader, view.viewer, port))
    table.reserve([with_port(m.host, port) if all_ports else m.host for m in members])
    by_service: list[tuple[HttpPort, HostRoutes]] = []
    speaks: set[Key] = set()
    for member in members:
        keys = speakers_for(member.host, routed)
        routes, keys = service_routes(reader, view, member, keys, port, report)
        speaks.update(keys)
        by_service.append((member, routes))
    for host, names, routes in routed_beside(
        reader, view, view.viewer, port, lambda: speaks, report, all_ports=all_ports
    ):
        own = with_port(host, port) if all_ports else host
        table.add(with_port(host, port), domains_at(names, port, all_ports), routes, own)
    for member, routes in by_service:
        row = reader.get(member.service)
        aliases = reader.node(aliases_of, view.viewer, member.host)
        names = tuple(service_names(row, view.namespace, aliases))
        if all_ports:
            routes = routes._replace(tail=_tunnel_route(member.host, port) + routes.tail)
        own = with_port(member.host, port) if all_ports else member.host
        table.add(with_port(member.host, port), domains_at(names, port, all_ports), routes, own)


def domains_at(names: Iterable[str], port: int, all_ports: bool) -> list[str]:
    """What authorities may say for these names at a port. In the table of one port alone the port
    in an authority does not count (`ignore_port_in_host_matching`)."""
    if not all_ports:
        return list(names)
    out = []
    for name in names:
        if port == 80:
            out.append(name)
        if name != "*":
            out.append(name if _has_port(name) else f"{name}:{port}")
    return out


def _has_port(name: str) -> bool:
    return name.rsplit("]", 1)[-1].count(":") == 1


def _tunnel_route(host: str, port: int) -> bytes:
    """A `VirtualHost.routes` entry for CONNECT: bytes go to the service as they are."""
    route = rc_pb2.Route(name="connect")
    route.match.connect_matcher.SetInParent()
    _forward_tunnel(route, str(ClusterName(port, "", host)))
    return encode_route(route)


def _forward_tunnel(route: rc_pb2.Route, cluster: str) -> None:
    route.route.cluster = cluster
    route.route.timeout.SetInParent()
    upgrade = route.route.upgrade_configs.add(upgrade_type="CONNECT")
    upgrade.connect_config.SetInParent()


def _add_tunnel(
    reader: Reader, view: View, table: Table, host: str, row: Service, port: ServicePort
) -> None:
    rules = find_rules(reader, view.namespace, row.namespace, row.host, view.rules)
    routes = reader.node(service_tail, host, port.number, rules, _treatment(row, view))
    tail = _tunnel_route(host, port.number) + routes.tail
    names = [with_port(n.strip("[]"), port.number) for n in service_names(row, view.namespace)]
    own = with_port(host, port.number)
    table.add(own, names, routes._replace(tail=tail), own)


def catch_all(view: View) -> bytes:
    """The virtual host for what nobody else claims: `allow_any` lets it through, `block_all`
    answers 502, by the outboundTrafficPolicy of the Sidecar or the mesh."""
    name = "block_all" if view.unknown == BLACK_HOLE else "allow_any"
    return encode_host(name, ["*"], unclaimed_tail(view))


def unclaimed_tail(view: View) -> bytes:
    """What that virtual host says, without its name and domain."""
    if view.unknown == BLACK_HOLE:
        route = rc_pb2.Route(name="block_all")
        route.match.prefix = "/"
        route.direct_response.status = 502
        routes = [route]
        if not view.captured:
            connect = rc_pb2.Route(name="block_all")
            connect.match.connect_matcher.SetInParent()
            connect.direct_response.status = 502
            routes.insert(0, connect)
        return _tail(routes, view)
    route = rc_pb2.Route(name="allow_any")
    route.match.prefix = "/"
    route.route.cluster = view.unknown
    set_timeout(route.route, duration_pb2.Duration())
    routes = [route]
    if not view.captured:
        connect = rc_pb2.Route(name="allow_any")
        connect.match.connect_matcher.SetInParent()
        _forward_tunnel(connect, view.unknown_tcp)
        routes.insert(0, connect)
    return _tail(routes, view)


def _tail(routes: list[rc_pb2.Route], view: View) -> bytes:
    return encode_tail([encode_route(route) for route in routes], view.headers)


def sniffed_route_name(host: str, port: int) -> str:
    """Name of the route configuration of one service whose protocol is detected."""
    return with_port(host, port)


def sniffed_routes(reader: Reader, view: View, host: str, port: int) -> Part:
    """Node: the route configuration `HOST:PORT` of a service whose protocol is not declared."""
    report = Report()
    keys = speakers_for(host, reader.node(routed_hosts, listener_viewer(reader, view.viewer, port)))
    routes = routes_of(reader, view, keys, port, report) if keys else None
    if routes is None:
        row = reader.node(service_of, view.viewer, host)
        owner = view.namespace if row is None else row.namespace
        rules = find_rules(reader, view.namespace, owner, host, view.rules)
        routes = reader.node(service_tail, host, port, rules, _treatment(row, view))
    name = sniffed_route_name(host, port)
    resource = encode_table(
        reader,
        name,
        [encode_host(name, ["*"], routes.tail)],
        set(routes.origins),
        ignore_port=True,
    )
    return Part((resource,), report.findings())
