"""Listeners for what an application calls: captured traffic, or an HTTP proxy."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from envoy.config.core.v3 import base_pb2
from envoy.config.listener.v3 import listener_components_pb2 as lc_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)

from meshbus.compile.chains import Chains, unclaimed_chain
from meshbus.compile.clusters import source_key
from meshbus.compile.connection_settings import ConnectionSettings
from meshbus.compile.connections import (
    HTTP_ALPN,
    Reporting,
    client_filters,
    connection_manager,
    encode_listener,
    http_inspector_filter,
    log_refused,
    manager_filter,
    tcp_proxy,
    tls_inspector_filter,
    wait_for_first_bytes,
)
from meshbus.compile.dynamic_names import named_as_met, names_cache, resolve_sni
from meshbus.compile.endpoints import service_addresses
from meshbus.compile.engine import Reader
from meshbus.compile.extensions import CLIENT, PHASES, http_filters, network_filters
from meshbus.compile.families import FIRST_UNPRIVILEGED
from meshbus.compile.findings import Part, Report
from meshbus.compile.l4_routes import (
    L4Route,
    is_for_all,
    l4_routes,
    l4_speakers,
    restrict,
    straight,
    tcp_filter,
)
from meshbus.compile.names import (
    AS_NAMED,
    BLACK_HOLE,
    TLS,
    UDP,
    UNKNOWN,
    ClusterName,
    is_http,
    is_sniffed,
    listener_name,
    service_domains,
)
from meshbus.compile.on_demand import on_demand_filter
from meshbus.compile.proxy_headers import ProxyHeaders
from meshbus.compile.scope import (
    aliased_hosts,
    aliases_of,
    egress_services,
    imports_some,
    in_precedence,
    listener_of,
    listener_viewer,
    visible_services,
)
from meshbus.compile.sessions import session_filters
from meshbus.compile.settings import MeshSettings, mesh
from meshbus.compile.telemetry import LOG_OUTBOUND, has_service
from meshbus.compile.values import address, boolean, uint32
from meshbus.compile.viewers import HTTP_PROXY, Egress, Viewer, alone
from meshbus.compile.virtual_hosts import (
    HTTP_PROXY_ROUTE,
    View,
    mesh_routes,
    sniffed_route_name,
)
from meshbus.compile.visibility import Ref
from meshbus.model.keys import Key
from meshbus.model.rows import Service

PASSED_ON = "PassthroughFilterChain"
"""The chain for what no other chain of a listener is for."""
SPEAK_FIRST = frozenset({"MONGO", "MYSQL"})
"""Protocols that share no port with others. Source: Istio, isConflictWithWellKnownPort."""
ELSEWHERE = Egress(0, "", "", False, ())
"""Where a port that no Sidecar speaks of is bound."""


class Placed(NamedTuple):
    """A service at an address and port."""

    host: str
    protocol: str
    service: Key
    networks: tuple[str, ...] = ()
    """Where connections go to that are meant for it; empty: all."""


class Bound(NamedTuple):
    """A port on addresses of its own."""

    addresses: tuple[str, ...]
    port: int
    services: tuple[Placed, ...]
    """Those who have it, in precedence: what one does not take goes to the next."""

    @property
    def http(self) -> str:
        """The host whose routes HTTP takes; empty: it is not looked for."""
        return next((s.host for s in self.services if is_sniffed(s.protocol)), "")


_STATIC_PORTS = (15021, 15090)
"""Whether the proxy is ready, and its statistics: listeners of the bootstrap."""


class SharedPort(NamedTuple):
    """A port that several services share on every address."""

    http: bool
    """Routes by host: route configuration `PORT`."""
    services: tuple[Placed, ...] = ()
    """Those whose connections are told apart by SNI, where they have TLS, and by network; of those
    that are not the first takes all."""
    bind: str = ""
    """Address of the listener; empty: every address."""
    captured: bool = True
    """Traffic is redirected to it; else it binds the port."""
    http_proxy: bool = False
    """An HTTP proxy for the application, to hosts at any port."""


class Lost(NamedTuple):
    """A service that cannot be reached at a port, for another has it."""

    service: Key
    port: int
    winner: str
    """Host; empty: the proxy may not bind the port."""

    @property
    def message(self) -> str:
        """For whoever wrote the service."""
        if not self.winner:
            return f"port {self.port} is below {FIRST_UNPRIVILEGED}: the proxy may not bind it"
        return f"port {self.port} is taken by {self.winner}: nothing tells the two apart"


class Plan(NamedTuple):
    """Which listeners captured traffic needs."""

    bound: tuple[Bound, ...]
    shared: tuple[tuple[int, SharedPort], ...]
    lost: tuple[Lost, ...] = ()

    def placed(self) -> tuple[tuple[int, SharedPort], ...]:
        """Those that bind their port."""
        return tuple((port, shared) for port, shared in self.shared if not shared.captured)

    def route_names(self) -> tuple[tuple[str, str, int], ...]:
        """(name, host, port) of the route configurations that the listeners ask for; the host is
        empty for those that are shared by a port."""
        out = [(str(port), "", port) for port, shared in self.shared if shared.http]
        out += [(sniffed_route_name(b.http, b.port), b.http, b.port) for b in self.bound if b.http]
        return tuple(sorted(set(out)))


class _Places:
    """Addresses with a port, while it is found out who has them. In front of each, as of all at
    once, who declares TCP shares with others what it does not take itself; of those who declare
    nothing one has the connections; and servers that speak first share with nobody.

    Source: Istio, buildSidecarOutboundListener.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, int], tuple[tuple[str, ...], list[Placed]]] = {}
        self._spoken: dict[tuple[str, int], tuple[str, str]] = {}

    def let_in(self, address: str, port: int, host: str, protocol: str) -> str:
        """Returns the host that cannot be beside a protocol at a place; empty: nobody."""
        own = "" if is_http(protocol) else protocol
        held, first = self._spoken.setdefault((address, port), (own, host))
        if held != own and not SPEAK_FIRST.isdisjoint((held, own)):
            return first
        if not own:
            self._spoken[address, port] = ("", first)
        return ""

    def add(self, addresses: tuple[str, ...], port: int, service: Placed) -> str:
        """Give a service a place. Returns the host that stands in its way; empty: nobody does."""
        _, held = self._held.setdefault((addresses[0], port), (addresses, []))
        sniffed = next((s for s in held if is_sniffed(s.protocol)), None)
        if sniffed is not None and is_sniffed(service.protocol):
            return sniffed.host
        in_way = self.let_in(addresses[0], port, service.host, service.protocol)
        if not in_way:
            held.append(service)
        return in_way

    def bound(self) -> tuple[Bound, ...]:
        """What there is, in order of address and port."""
        made = (Bound(a, port, tuple(held)) for (_, port), (a, held) in self._held.items())
        return tuple(sorted(made))


def _reserved(reader: Reader, view: View, placed: Mapping[int, Egress]) -> set[int]:
    """Ports that the proxy itself has at every address: a second listener at one is refused by
    Envoy, with all others of its update.

    Source: Istio, conflictWithReservedListener; there, connections that are not HTTP are let in.
    """
    settings = reader.node(mesh)
    ports = {*_STATIC_PORTS, settings.outbound_port, settings.inbound_port}
    elsewhere = (
        number
        for number, egress in placed.items()
        if (egress.bind or view.families.localhost) not in view.families.anywhere
    )
    return ports.difference(elsewhere)


def capture_plan(reader: Reader, view: View) -> Plan:
    """Node: what the services that a view sees need.

    HTTP shares a listener per port; what is not declared HTTP needs an address to be told apart,
    its virtual ones or, without, those of its endpoints; external hosts without address share a
    port, by SNI where they have TLS. Of two that cannot be told apart the older has the port.
    """
    places = _Places()
    http: set[int] = set()
    sharing: dict[int, list[Placed]] = {}
    lost: list[Lost] = []
    own = {
        e.port: e
        for e in view.viewer.egress
        if e.only_port and reader.node(imports_some, view.viewer, e)
    }
    placed = {n: e for n, e in own.items() if e.bind or not e.captured or view.bound}
    placed_hosts = {
        number: reader.node(egress_services, view.namespace, e.hosts, number)
        for number, e in placed.items()
    }
    stands_for = reader.node(aliased_hosts, view.viewer)
    visible = reader.node(visible_services, view.viewer)
    anywhere = next((e for e in view.viewer.egress if not e.port and not e.is_socket), ELSEWHERE)
    numbers = {port.number for ref in visible.values() for port in ref.row.ports}
    if view.bound:
        wanted = dict.fromkeys(numbers, anywhere) | own
        placed = {number: e._replace(captured=False) for number, e in wanted.items()}
    elif anywhere is not ELSEWHERE and (anywhere.bind or not anywhere.captured):
        # Its address, or that of the machine, is every service's.
        placed |= dict.fromkeys(numbers.difference(own), anywhere)
    reserved = _reserved(reader, view, placed)
    barred = {n for n, e in placed.items() if not (e.captured or view.may_bind(n))}
    for host, ref in in_precedence(reader, visible, view.namespace):
        if host in stands_for:
            continue
        row: Service = ref.row
        known = row.addresses or (row.auto_addresses if view.dns else [])
        single = tuple(a for a in known if "/" not in a and view.families.has(a))
        networks = tuple(a for a in row.addresses if "/" in a and view.families.has(a))
        if not row.addresses and row.headless and row.resolution in ("STATIC", "NONE"):
            found = reader.node(service_addresses, row.namespace, row.host)
            single = tuple(sorted(a for a in found if view.families.has(a)))
        for port in row.ports:
            if port.protocol == UDP:
                continue
            number = port.number
            if number in http and is_http(port.protocol):
                continue
            here = Placed(host, port.protocol, ref.key)
            everywhere = not (single or networks or row.headless)
            shares = is_http(port.protocol) or bool(networks) or everywhere
            if number in barred:
                lost.append(Lost(ref.key, number, ""))
                continue
            if number in reserved and shares:
                lost.append(Lost(ref.key, number, "the proxy itself"))
                continue
            asked_for = host in placed_hosts.get(number, visible)
            if number in placed and asked_for and not is_http(port.protocol):
                # There is no address to tell services apart by.
                if is_sniffed(port.protocol):
                    http.add(number)
                sharing.setdefault(number, []).append(here)
                continue
            if number in placed:
                shares = is_http(port.protocol)
            elif shares:
                winner = places.let_in("", number, host, port.protocol)
                if winner:
                    lost.append(Lost(ref.key, number, winner))
                    shares = False
            if is_http(port.protocol):
                if shares:
                    http.add(number)
                continue
            if row.headless:
                for address_ in single:
                    places.add((address_,), number, here)
                continue
            together = _v4_first(single)
            # Each address of a ServiceEntry stands for itself.
            groups = [(a,) for a in together] if row.origin == "external" else [together]
            for addresses in filter(None, groups):
                winner = places.add(addresses, number, here)
                if winner:
                    lost.append(Lost(ref.key, number, winner))
            if shares and not (is_sniffed(port.protocol) and number in http):
                # Beside HTTP that is older there is no chain for its other connections.
                sharing.setdefault(number, []).append(here._replace(networks=networks))
            if shares and is_sniffed(port.protocol):
                http.add(number)
    shared = sorted({*http, *sharing})
    proxies = tuple(
        (e.port, SharedPort(True, (), e.bind or view.families.localhost, False, True))
        for e in view.viewer.egress
        if e.protocol == HTTP_PROXY and e.port and view.may_bind(e.port) and e.port not in shared
    )
    return Plan(
        places.bound(),
        proxies
        + tuple(
            (
                n,
                SharedPort(
                    n in http,
                    tuple(sharing.get(n, ())),
                    placed[n].bind or view.families.localhost if n in placed else "",
                    n not in placed or placed[n].captured,
                ),
            )
            for n in shared
        ),
        tuple(sorted(lost)),
    )


def _v4_first(addresses: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(addresses, key=lambda a: ":" in a))


# --------------------------------------------------------------------------- captured


class Manners(Protocol):
    """What of a view holds of all connections of its proxies."""

    @property
    def headers(self) -> ProxyHeaders:
        """What they say of themselves and callers."""

    @property
    def treatment(self) -> ConnectionSettings:
        """How they treat connections."""


def reporting_of(reader: Reader, log_name: str, view: Manners) -> Reporting:
    """What is reported, when there is somebody to report to."""
    settings = reader.node(mesh)
    told = reader.node(has_service, "telemetry")
    return Reporting(log_name, told, settings.logs, view.headers, view.treatment)


def captured_listeners(reader: Reader, view: View) -> Part:
    """Node: listeners for captured traffic of a view."""
    report = Report()
    reporting = reporting_of(reader, LOG_OUTBOUND, view)
    out = [_virtual_outbound(reader, view, reporting)]
    plan = reader.node(capture_plan, view)
    out += [_bound_listener(reader, view, bound, reporting, report) for bound in plan.bound]
    for port, shared in plan.shared:
        out.append(_shared_listener(reader, view, port, shared, reporting, report))
    for loser in plan.lost:
        _tell(reader, loser, report)
    resources = tuple(encode_listener(reader, listener, reporting) for listener in out)
    return Part(resources, report.findings())


def placed_listeners(reader: Reader, view: View, own_address: str) -> Part:
    """Node: listeners of a Sidecar that bind their port, for a proxy whose traffic is not captured.
    Without `bind` that is at the address at which the application reaches its proxy."""
    report = Report()
    reporting = reporting_of(reader, LOG_OUTBOUND, view)
    out = []
    for port, shared in reader.node(capture_plan, view).placed():
        bind = own_address if shared.bind == view.families.localhost else shared.bind
        placed = shared._replace(bind=bind)
        out.append(_shared_listener(reader, view, port, placed, reporting, report))
    resources = tuple(encode_listener(reader, listener, reporting) for listener in out)
    return Part(resources, report.findings())


def _listener(
    name: str, addresses: tuple[str, ...], port: int, bind: bool
) -> listener_pb2.Listener:
    out = listener_pb2.Listener(
        name=name,
        address=address(addresses[0], port),
        traffic_direction=base_pb2.OUTBOUND,
    )
    for other in addresses[1:]:
        out.additional_addresses.add().address.CopyFrom(address(other, port))
    if not bind:
        out.bind_to_port.CopyFrom(boolean(False))
    return out


def _virtual_outbound(reader: Reader, view: View, reporting: Reporting) -> listener_pb2.Listener:
    """Takes all captured traffic and hands it to the listener of its original destination."""
    own_port = reader.node(mesh).outbound_port
    out = _listener("virtualOutbound", view.families.anywhere, own_port, True)
    out.use_original_dst.CopyFrom(boolean(True))
    log_refused(out, reporting)
    loop = out.filter_chains.add(name="virtualOutbound-blackhole")
    loop.filter_chain_match.destination_port.CopyFrom(uint32(own_port))
    loop.filters.append(tcp_proxy(BLACK_HOLE, [(BLACK_HOLE, 1)], reporting))
    unknown = view.unknown_tcp
    out.default_filter_chain.name = "virtualOutbound-catchall-tcp"
    out.default_filter_chain.filters.append(tcp_proxy(unknown, [(unknown, 1)], reporting))
    return out


def inspect(listener: listener_pb2.Listener, settings: MeshSettings, *, http: bool) -> None:
    """Look at the first bytes; a silent client is waited for, then taken for what is left."""
    listener.listener_filters.append(tls_inspector_filter())
    if http:
        listener.listener_filters.append(http_inspector_filter())
    wait_for_first_bytes(listener, settings)


def _on_client(view: View, port: int) -> list[hcm_pb2.HttpFilter]:
    extensions = http_filters(view.extensions, PHASES, CLIENT, port)
    return [*on_demand_filter(view.on_demand), *extensions]


def http_chain(
    reader: Reader, view: View, port: int, stat: str, route: str, reporting: Reporting
) -> lc_pb2.FilterChain:
    """HTTP in plaintext, told by its first bytes; `route`: its route configuration."""
    chain = lc_pb2.FilterChain()
    chain.filter_chain_match.transport_protocol = "raw_buffer"
    chain.filter_chain_match.application_protocols.extend(HTTP_ALPN)
    dynamic = view.unknown == AS_NAMED or reader.node(named_as_met, view.viewer)
    cache = names_cache(view.families) if dynamic else None
    manager = connection_manager(
        stat_prefix=stat,
        route_name=route,
        filters=client_filters(cache, _on_client(view, port), session_filters(reader, view.viewer)),
        settings=reader.node(mesh),
        reporting=reporting,
    )
    chain.filters.append(manager_filter(manager))
    return chain


def _importer(reader: Reader, viewer: Viewer, host: str, port: int) -> Viewer:
    """Whose virtual services count for connections to a service: those of the egress listener that
    imports it. Beside one for the port, another may import what has an address of its own."""
    own = listener_of(reader, viewer, port)
    if own is None or not own.only_port:
        return listener_viewer(reader, viewer, port)
    if host in reader.node(egress_services, viewer.namespace, own.hosts, port):
        return alone(viewer.namespace, own)
    # No port is 0: the listener for every other.
    return listener_viewer(reader, viewer, 0)


def _l4(
    reader: Reader,
    view: View,
    host: str,
    port: int,
    section: str,
    networks: tuple[str, ...],
    report: Report,
) -> list[L4Route]:
    """Routes of every virtual service that has a host which covers this one, older first; for
    `tcp` up to the first that takes every connection.

    Source: Istio, getConfigsForHost and buildSidecarOutboundTLSFilterChainOpts.
    """
    out: list[L4Route] = []
    context = mesh_routes(reader, view, port)
    for key in l4_speakers(reader, _importer(reader, view.viewer, host, port), host):
        row = reader.get(key)
        if row is None:
            continue
        out += l4_routes(Ref(key, row), section, context, report, networks=networks)
        if section == "tcp" and out and is_for_all(out[-1]):
            break
    return out


def _tcp_chain(view: View, port: int, route: L4Route, reporting: Reporting) -> lc_pb2.FilterChain:
    chain = lc_pb2.FilterChain()
    if "*" not in route.server_names:
        chain.filter_chain_match.server_names.extend(route.server_names)
    restrict(chain, route)
    chain.filters.extend(network_filters(view.extensions, PHASES, CLIENT, port))
    chain.filters.append(tcp_filter(route, reporting))
    return chain


def service_chains(
    reader: Reader,
    view: View,
    host: str,
    port: int,
    protocol: str,
    reporting: Reporting,
    report: Report,
    *,
    names: tuple[str, ...] = (),
    networks: tuple[str, ...] = (),
) -> list[lc_pb2.FilterChain]:
    """Chains of a service's connections: by SNI and subnet where a virtual service says so, and one
    for the rest. Of TLS that a virtual service routes there is no rest: what it does not name is
    nobody's.

    Args:
        names: SNI by which the rest of TLS is told from what is meant for other services.
        networks: Where connections go to that are meant for this service; empty: all.
    Source: Istio, buildSidecarOutboundTLSFilterChainOpts, buildSidecarOutboundTCPFilterChainOpts.
    """
    rest = straight(ClusterName(port, "", host), mesh_routes(reader, view, port))
    named = protocol in TLS
    routes = _l4(reader, view, host, port, "tls" if named else "tcp", networks, report)
    by_name = named and not routes
    if by_name:
        routes = [rest._replace(server_names=names)]
    elif not named and not (routes and is_for_all(routes[-1])):
        routes.append(rest)
    if networks:
        routes = [r if r.subnets else r._replace(subnets=networks) for r in routes]
    chains = [_tcp_chain(view, port, route, reporting) for route in routes]
    if by_name and names and host in reader.node(named_as_met, view.viewer):
        resolve_sni(chains[0], port, view.families)
    return chains


def _bound_listener(
    reader: Reader, view: View, bound: Bound, reporting: Reporting, report: Report
) -> listener_pb2.Listener:
    port = bound.port
    name = listener_name(bound.addresses[0], port)
    out = _listener(name, bound.addresses, port, False)
    if bound.http:
        stat = f"outbound_{name};"
        route = sniffed_route_name(bound.http, port)
        out.filter_chains.append(http_chain(reader, view, port, stat, route, reporting))
    chains = Chains()
    for service in bound.services:
        own = service_chains(reader, view, service.host, port, service.protocol, reporting, report)
        if not chains.add(own) and service.host != bound.http:
            _tell(reader, Lost(service.service, port, bound.services[0].host), report)
    chains.put(out, unclaimed_chain(PASSED_ON, view.unknown_tcp, reporting))
    if bound.http or any(service.protocol in TLS for service in bound.services):
        inspect(out, reader.node(mesh), http=bool(bound.http))
    return out


def _tell(reader: Reader, loser: Lost, report: Report) -> None:
    row: Service = reader.get(loser.service)
    report.add(source_key(loser.service, row), "spec.ports", loser.message)


def _shared_listener(
    reader: Reader,
    view: View,
    port: int,
    shared: SharedPort,
    reporting: Reporting,
    report: Report,
) -> listener_pb2.Listener:
    if shared.http_proxy:
        return _proxy_listener(view, reader, shared.bind, port, str(port), reporting)
    addresses = (shared.bind,) if shared.bind else view.families.anywhere
    name = listener_name(addresses[0], port)
    out = _listener(name, addresses, port, not shared.captured)
    if shared.http:
        out.filter_chains.append(
            http_chain(reader, view, port, f"outbound_{name};", str(port), reporting)
        )
    chains = Chains()
    for host, protocol, key, networks in shared.services:
        names = _sni_of(reader, view, host) if protocol in TLS else ()
        own = service_chains(
            reader,
            view,
            host,
            port,
            protocol,
            reporting,
            report,
            names=names,
            networks=networks,
        )
        if not chains.add(own) and not is_sniffed(protocol):
            _tell(reader, Lost(key, port, shared.services[0].host), report)
    # What was not redirected has no other destination than this very listener.
    unknown = view.unknown_tcp if shared.captured else BLACK_HOLE
    chains.put(out, unclaimed_chain(PASSED_ON, unknown, reporting))
    if shared.http or any(service.protocol in TLS for service in shared.services):
        inspect(out, reader.node(mesh), http=shared.http)
    return out


def _sni_of(reader: Reader, view: View, host: str) -> tuple[str, ...]:
    """What a service is named by in SNI: its host, and every name of those that stand for it."""
    aliases = reader.node(aliases_of, view.viewer, host)
    names = (n for alias in aliases for n in service_domains(alias, view.namespace) if n[-1] != ".")
    return (host, *names)


# --------------------------------------------------------------------------- HTTP proxy


def http_proxy_listener(reader: Reader, view: View, bind: str, port: int) -> Part:
    """Node: the HTTP proxy that an application uses when its traffic is not captured."""
    reporting = reporting_of(reader, LOG_OUTBOUND, view)
    cache = None
    if view.unknown in UNKNOWN:
        cache = names_cache(view.families)
    out = _proxy_listener(view, reader, bind, port, HTTP_PROXY_ROUTE, reporting, cache)
    return Part((encode_listener(reader, out, reporting),))


def _proxy_listener(
    view: View,
    reader: Reader,
    bind: str,
    port: int,
    route: str,
    reporting: Reporting,
    cache: Any = None,
) -> listener_pb2.Listener:
    name = listener_name(bind, port)
    manager = connection_manager(
        stat_prefix=f"outbound_{name};",
        route_name=route,
        filters=client_filters(cache, _on_client(view, port), session_filters(reader, view.viewer)),
        settings=reader.node(mesh),
        reporting=reporting,
    )
    manager.upgrade_configs.add(upgrade_type="CONNECT")
    out = _listener(name, (bind,), port, True)
    out.filter_chains.add().filters.append(manager_filter(manager))
    return out
