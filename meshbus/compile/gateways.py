"""Routers: listeners and routes of the Gateways that select them."""

from typing import NamedTuple

from envoy.config.core.v3 import base_pb2
from envoy.config.listener.v3 import listener_components_pb2 as lc_pb2
from envoy.config.listener.v3 import listener_pb2

from meshbus.compile.connections import (
    Reporting,
    client_filters,
    connection_manager,
    log_refused,
    manager_filter,
    proxy_protocol_filter,
    tcp_proxy,
    tls_inspector_filter,
)
from meshbus.compile.credentials import (
    GATEWAY,
    SecretNeed,
    Wanting,
    certificate_need,
    named_roots_need,
    roots_need,
    united,
)
from meshbus.compile.dynamic_names import named_as_met, names_cache
from meshbus.compile.engine import Reader
from meshbus.compile.extensions import CLIENT
from meshbus.compile.findings import Finding, Report
from meshbus.compile.gateway_servers import AUTO_PASSTHROUGH, Router, Server, router_servers
from meshbus.compile.http_routes import (
    Made,
    RouteContext,
    bound_gateways,
    http_routes,
    joined_routes,
)
from meshbus.compile.ingress import ingress_routes
from meshbus.compile.l4_routes import L4Route, l4_routes, restrict, tcp_filter
from meshbus.compile.names import UDP, ClusterName, covers, listener_name, with_port
from meshbus.compile.outbound import any_address, reporting_of
from meshbus.compile.proxy_headers import forward_certificate
from meshbus.compile.proxy_keys import CAPTURE_PROXY, ProxyKeys
from meshbus.compile.resources import LDS, Resource, encode
from meshbus.compile.scope import (
    Ref,
    Viewer,
    find_rules,
    visible_services,
    visible_virtual_services,
)
from meshbus.compile.security_filters import http_security, network_security
from meshbus.compile.settings import mesh
from meshbus.compile.telemetry import LOG_OUTBOUND
from meshbus.compile.tls_contexts import ALPN_MESH, credential_names, gateway_server, socket
from meshbus.compile.traffic_policy import merged_rule
from meshbus.compile.values import address, boolean
from meshbus.compile.virtual_hosts import (
    View,
    conduct_of,
    encode_host,
    encode_table,
    encode_tail,
    service_of,
)
from meshbus.model.keys import Key


class RouterPart(NamedTuple):
    """What a router gets from its Gateways."""

    resources: tuple[Resource, ...]
    findings: tuple[Finding, ...]
    secrets: tuple[SecretNeed, ...]


def router_resources(
    reader: Reader, router: Router, view: View, binds: tuple[str, ...]
) -> RouterPart:
    """Node: listeners and route configurations of a router. `binds`: addresses of its own that it
    binds (capture mode `proxy`), else all."""
    report = Report()
    proxy = router.proxy
    servers = router_servers(reader, router, report)
    report.extend(reader.node(ingress_routes).findings)
    reporting = reporting_of(reader, LOG_OUTBOUND, view.headers)
    secrets: list[SecretNeed] = []
    resources: list[Resource] = []
    ports: dict[tuple[str, int], list[Server]] = {}
    for server in servers:
        ports.setdefault((server.bind, server.port), []).append(server)
    routed: dict[str, list[Server]] = {}
    for (bind, port), members in sorted(ports.items()):
        listener = _listener(bind, port, proxy, binds)
        for server in members:
            with report.guard(server.gateway, server.path):
                needs = _secrets(reader, proxy, server)
                chains = _server_chains(reader, view, server, members, reporting, report)
                if server.is_http or server.ends_https:
                    routed.setdefault(server.route_name(), []).append(server)
                _add_chains(listener, chains, server, report)
                secrets += needs
        if not listener.filter_chains:
            continue
        if reporting.headers.proxy_protocol:
            listener.listener_filters.append(proxy_protocol_filter())
        if any(s.mode for s in members):
            listener.listener_filters.append(tls_inspector_filter())
        log_refused(listener, reporting)
        origins = {s.gateway for s in members}
        resources.append(encode(reader, LDS, listener.name, listener, origins))
    for route_name, members in sorted(routed.items()):
        resources.append(_routes(reader, view, route_name, members, report))
    return RouterPart(tuple(resources), report.findings(), united(secrets))


def _listener(
    bind: str, port: int, proxy: ProxyKeys, binds: tuple[str, ...]
) -> listener_pb2.Listener:
    if bind:
        addresses: tuple[str, ...] = (bind,)
    elif proxy.capture == CAPTURE_PROXY and binds:
        addresses = binds
    else:
        addresses = any_address(proxy.dual_stack)
    out = listener_pb2.Listener(
        name=listener_name(addresses[0], port),
        address=address(addresses[0], port),
        traffic_direction=base_pb2.OUTBOUND,
    )
    for other in addresses[1:]:
        out.additional_addresses.add().address.CopyFrom(address(other, port))
    return out


def _add_chains(
    listener: listener_pb2.Listener,
    chains: list[lc_pb2.FilterChain],
    server: Server,
    report: Report,
) -> None:
    """Envoy refuses a listener with two equal matches: names of an earlier server are left out."""
    taken = {n for c in listener.filter_chains for n in _names(c)}
    for chain in chains:
        names = _names(chain)
        free = [n for n in names if n not in taken]
        if len(free) < len(names):
            message = "hosts are taken at this port" if not free else "some hosts are taken"
            report.add(server.gateway, f"{server.path}.hosts", message)
        if not free:
            continue
        if len(free) < len(names):
            del chain.filter_chain_match.server_names[:]
            chain.filter_chain_match.server_names.extend(n for n, _ in free)
        taken.update(free)
        listener.filter_chains.append(chain)


def _names(chain: lc_pb2.FilterChain) -> list[tuple[str, bytes]]:
    match = lc_pb2.FilterChainMatch()
    match.CopyFrom(chain.filter_chain_match)
    names = list(match.server_names) or [""]
    del match.server_names[:]
    rest = match.SerializeToString(deterministic=True)
    return [(name, rest) for name in names]


def _secrets(reader: Reader, proxy: ProxyKeys, server: Server) -> list[SecretNeed]:
    """Secrets of a server.

    Raises:
        NotCompiledError: One is not there; without a certificate there is no listener.
    """
    tls = server.tls or {}
    if server.mode not in {"SIMPLE", "MUTUAL", "OPTIONAL_MUTUAL"}:
        return []
    who = Wanting(GATEWAY, server.gateway, proxy.namespace)
    names, path = credential_names(tls), f"{server.path}.tls"
    out = [certificate_need(reader, who, n, f"{path}.credentialName") for n in names]
    if names and server.mode != "SIMPLE":
        own = str(tls.get("caCertCredentialName") or "")
        if own:
            out.append(named_roots_need(reader, who, own, f"{path}.caCertCredentialName"))
        else:
            out.append(roots_need(reader, who, names[0], f"{path}.credentialName"))
    return out


# --------------------------------------------------------------------------- chains


def _server_chains(
    reader: Reader,
    view: View,
    server: Server,
    members: list[Server],
    reporting: Reporting,
    report: Report,
) -> list[lc_pb2.FilterChain]:
    if server.is_http:
        return [_http_chain(reader, view, server, reporting)] if server is members[0] else []
    if server.ends_https:
        assert server.tls is not None
        chain = _http_chain(reader, view, server, reporting)
        chain.filter_chain_match.server_names.extend(server.server_names())
        context = gateway_server(server.tls, True, f"{server.path}.tls", reader.node(mesh))
        chain.transport_socket.CopyFrom(socket(context))
        return [chain]
    if server.mode == AUTO_PASSTHROUGH:
        return _named_chains(reader, view, server, reporting)
    if server.mode == "PASSTHROUGH":
        return _passthrough_chains(reader, view, server, reporting, report)
    return _tcp_chains(reader, view, server, reporting, report)


def _http_chain(
    reader: Reader, view: View, server: Server, reporting: Reporting
) -> lc_pb2.FilterChain:
    dynamic = reader.node(named_as_met, view.viewer)
    resolved = client_filters(names_cache(view.ipv6) if dynamic else None)
    manager = connection_manager(
        stat_prefix=f"outbound_{server.bind or '0.0.0.0'}_{server.port};",  # noqa: S104 - a name
        route_name=server.route_name(),
        filters=[
            *http_security(reader, view.extensions, CLIENT, server.number),
            *resolved,
        ],
        settings=reader.node(mesh),
        reporting=reporting,
    )
    manager.use_remote_address.CopyFrom(boolean(True))
    forward_certificate(manager, reporting.headers, gateway=True)
    manager.xff_num_trusted_hops = reporting.headers.trusted_hops
    chain = lc_pb2.FilterChain()
    chain.filters.append(manager_filter(manager))
    return chain


def _named_chains(
    reader: Reader, view: View, server: Server, reporting: Reporting
) -> list[lc_pb2.FilterChain]:
    """Connections of mesh proxies, to the cluster that their SNI names: a chain for each port and
    subset of the services of this mesh that the server's hosts cover. Nothing else gets in.

    Source: Istio, Gateway reference, AUTO_PASSTHROUGH.
    """
    out = []
    for host, ref in reader.node(visible_services, view.viewer).items():
        row = ref.row
        if row.external or row.external_name or row.resolution != "STATIC":
            continue
        if not any(covers(name, host) for name in server.host_names()):
            continue
        keys = find_rules(reader, view.namespace, row.namespace, host, view.rules)
        subsets = reader.node(merged_rule, keys).subsets if keys else ()
        for port in row.ports:
            if port.protocol == UDP:
                continue
            for subset in ("", *(s.name for s in subsets)):
                name = ClusterName(port.number, subset, host).sni
                chain = lc_pb2.FilterChain()
                chain.filter_chain_match.server_names.append(name)
                chain.filter_chain_match.application_protocols.extend(ALPN_MESH)
                chain.filters.extend(
                    network_security(reader, view.extensions, CLIENT, server.number)
                )
                chain.filters.append(tcp_proxy(name, [(name, 1)], reporting))
                out.append(chain)
    return out


def passes_by_name(reader: Reader, router: Router) -> bool:
    """Node: some server of a router is AUTO_PASSTHROUGH."""
    return any(s.mode == AUTO_PASSTHROUGH for s in router_servers(reader, router, Report()))


def gateway_services(reader: Reader, viewer: Viewer, gateway: str) -> tuple[Ref, ...]:
    """Node: virtual services bound to a gateway, as seen from a router's namespace, and those that
    Ingress objects stand for."""
    every = (*reader.node(visible_virtual_services, viewer), *reader.node(ingress_routes).services)
    return tuple(ref for ref in every if gateway in bound_gateways(ref))


def _context(reader: Reader, view: View, server: Server) -> RouteContext:
    return RouteContext(
        namespace=view.namespace,
        port=server.number,
        gateways=frozenset({server.name}),
        sources=view.sources,
        tls=server.tls is not None,
        settings=reader.node(mesh),
        service=lambda host: reader.node(service_of, view.viewer, host),
        read=reader.get,
        policy=lambda host, number, subset: reader.node(conduct_of, view, host, number, subset),
        headers=view.headers,
    )


def _passthrough_chains(
    reader: Reader, view: View, server: Server, reporting: Reporting, report: Report
) -> list[lc_pb2.FilterChain]:
    out = []
    for vs in reader.node(gateway_services, view.viewer, server.name):
        hosts = server.matching_hosts(vs)
        if not hosts:
            continue
        routes = l4_routes(vs, "tls", _context(reader, view, server), report)
        out += [_tcp_chain(reader, view, server, route, reporting) for route in routes]
    return out


def _tcp_chains(
    reader: Reader, view: View, server: Server, reporting: Reporting, report: Report
) -> list[lc_pb2.FilterChain]:
    for vs in reader.node(gateway_services, view.viewer, server.name):
        if not server.matching_hosts(vs):
            continue
        routes = l4_routes(vs, "tcp", _context(reader, view, server), report)
        if routes:
            chain = _tcp_chain(reader, view, server, routes[0], reporting)
            if server.mode:
                assert server.tls is not None
                chain.filter_chain_match.server_names.extend(server.server_names())
                settings = reader.node(mesh)
                context = gateway_server(server.tls, False, f"{server.path}.tls", settings)
                chain.transport_socket.CopyFrom(socket(context))
            return [chain]
    return []


def _tcp_chain(
    reader: Reader, view: View, server: Server, route: L4Route, reporting: Reporting
) -> lc_pb2.FilterChain:
    chain = lc_pb2.FilterChain()
    if "*" not in route.server_names:
        chain.filter_chain_match.server_names.extend(route.server_names)
    restrict(chain, route)
    chain.filters.extend(network_security(reader, view.extensions, CLIENT, server.number))
    chain.filters.append(tcp_filter(route.clusters[0][0], route, reporting))
    return chain


# --------------------------------------------------------------------------- routes


class _VirtualHost:
    """One host of a route configuration: routes of all virtual services for it, older first."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.routes: list[Made] = []
        self.require_tls = False


def _routes(
    reader: Reader, view: View, name: str, servers: list[Server], report: Report
) -> Resource:
    """A gateway's route configuration. Several virtual services may share a host: their routes
    follow each other by age, those that catch everything at the end.

    Source: Istio, buildGatewayHTTPRouteConfig.
    """
    hosts: dict[str, _VirtualHost] = {}
    origins: set[Key] = {s.gateway for s in servers}
    done: set[tuple[str, Key, str]] = set()
    for server in servers:
        context = _context(reader, view, server)
        for vs in reader.node(gateway_services, view.viewer, server.name):
            matching = server.matching_hosts(vs)
            if not matching or not vs.row.spec.get("http"):
                continue
            routes = http_routes(vs, context, report)
            if not routes:
                continue
            origins.update((vs.key, *(made.source for made in routes)))
            for host in matching:
                mark = (server.name, vs.key, host)
                held = hosts.setdefault(host, _VirtualHost(server.number))
                held.require_tls |= server.redirects
                if mark not in done:
                    done.add(mark)
                    held.routes += routes
        if server.redirects:
            for host in server.host_names():
                hosts.setdefault(host, _VirtualHost(server.number)).require_tls = True
    encoded = [
        encode_host(
            with_port(host, held.port),
            [host],
            encode_tail(joined_routes(held.routes, report), view.headers, held.require_tls),
        )
        for host, held in sorted(hosts.items())
    ]
    if not encoded:
        tail = encode_tail([], view.headers)
        encoded = [encode_host(f"blackhole:{servers[0].number}", ["*"], tail)]
    return encode_table(reader, name, encoded, origins, ignore_port=True)
