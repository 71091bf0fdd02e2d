"""Routers: listeners and routes of the Gateways that select them."""

from collections.abc import Iterator
from typing import NamedTuple

from envoy.config.core.v3 import address_pb2, base_pb2
from envoy.config.listener.v3 import listener_components_pb2 as lc_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)

from meshbus.compile.clusters import is_named
from meshbus.compile.connections import (
    Reporting,
    client_filters,
    connection_manager,
    encode_listener,
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
from meshbus.compile.findings import Part, Report
from meshbus.compile.gateway_routes import (
    facing_of,
    gateway_services,
    gateway_table,
    route_context,
    written_service,
)
from meshbus.compile.gateway_servers import AUTO_PASSTHROUGH, Router, Server, servers_of
from meshbus.compile.ingress import ingress_routes
from meshbus.compile.l4_routes import L4Route, l4_routes, restrict, tcp_filter
from meshbus.compile.names import UDP, ClusterName, covers, listener_name
from meshbus.compile.outbound import reporting_of
from meshbus.compile.proxy_headers import forward_certificate
from meshbus.compile.proxy_keys import CAPTURE_PROXY, ProxyKeys
from meshbus.compile.resources import Resource
from meshbus.compile.rules_in_force import find_rules
from meshbus.compile.scope import visible_services
from meshbus.compile.security_filters import http_security, network_security
from meshbus.compile.sessions import session_filters
from meshbus.compile.settings import mesh
from meshbus.compile.telemetry import LOG_OUTBOUND
from meshbus.compile.tls_contexts import (
    ALPN_MESH,
    credential_names,
    gateway_server,
    quic_socket,
    socket,
)
from meshbus.compile.traffic_policy import merged_rule
from meshbus.compile.values import address, boolean, listener_address
from meshbus.compile.virtual_hosts import (
    View,
)
from meshbus.compile.visibility import Ref


class RouterListeners(NamedTuple):
    """What a router gets from its Gateways, but for the routes of HTTP."""

    part: Part
    secrets: tuple[SecretNeed, ...]
    routed: tuple[tuple[str, tuple[int, ...]], ...]
    """Names of the route configurations that they ask for, each with its servers: indexes of
    `servers_of`."""


def router_listeners(
    reader: Reader, router: Router, view: View, binds: tuple[str, ...]
) -> RouterListeners:
    """Node: listeners of a router. `binds`: addresses of its own that it binds (capture mode
    `proxy`), else all."""
    report = Report()
    proxy = router.proxy
    servers, findings = reader.node(servers_of, router)
    report.extend(findings)
    report.extend(reader.node(ingress_routes).findings)
    reporting = reporting_of(reader, LOG_OUTBOUND, view)
    secrets: list[SecretNeed] = []
    resources: list[Resource] = []
    ports: dict[tuple[str, int], list[int]] = {}
    for index, server in enumerate(servers):
        ports.setdefault((server.bind, server.port), []).append(index)
    routed: dict[str, list[int]] = {}
    over_udp: dict[tuple[str, int], list[Server]] = {}
    for (bind, port), indexes in sorted(ports.items()):
        listener = _listener(bind, port, proxy, binds)
        members = [servers[index] for index in indexes]
        for index, server in zip(indexes, members, strict=True):
            with report.guard(server.gateway, server.path):
                needs = _secrets(reader, proxy, server)
                chains = _server_chains(reader, view, server, members, reporting, report)
                if server.is_http or server.ends_https:
                    routed.setdefault(server.route_name(), []).append(index)
                _add_chains(listener, chains, server, report)
                secrets += needs
                if server.udp_port:
                    over_udp.setdefault((server.bind, server.udp_port), []).append(server)
        if not listener.filter_chains:
            continue
        if reporting.headers.proxy_protocol:
            listener.listener_filters.append(proxy_protocol_filter())
        if any(s.mode for s in members):
            listener.listener_filters.append(tls_inspector_filter())
        log_refused(listener, reporting)
        origins = {s.gateway for s in members}
        resources.append(encode_listener(reader, listener, reporting, origins))
    for (bind, port), members in sorted(over_udp.items()):
        origins = {s.gateway for s in members}
        for own in _addresses(bind, proxy, binds):
            made = _quic_listener(reader, view, own, port, members, reporting, report)
            if made.filter_chains:
                resources.append(encode_listener(reader, made, reporting, origins))
    tables = tuple((name, tuple(routed[name])) for name in sorted(routed))
    return RouterListeners(Part(tuple(resources), report.findings()), united(secrets), tables)


def router_routes(
    reader: Reader, router: Router, view: View, binds: tuple[str, ...]
) -> tuple[Part, ...]:
    """Node: route configurations of a router."""
    routed = reader.node(router_listeners, router, view, binds).routed
    return tuple(
        reader.node(gateway_table, router, view, name, indexes) for name, indexes in routed
    )


def _addresses(bind: str, proxy: ProxyKeys, binds: tuple[str, ...]) -> tuple[str, ...]:
    """What a server listens on."""
    if bind:
        return (bind,)
    if proxy.capture == CAPTURE_PROXY and binds:
        return binds
    return proxy.families.anywhere


def _quic_listener(
    reader: Reader,
    view: View,
    own: str,
    port: int,
    servers: list[Server],
    reporting: Reporting,
    report: Report,
) -> listener_pb2.Listener:
    """HTTP/3 of servers at one UDP port: the same routes as over TCP.

    Source: https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/http/http3
    """
    out = listener_pb2.Listener(
        name=f"udp_{listener_name(own, port)}",
        address=address(own, port),
        traffic_direction=base_pb2.OUTBOUND,
    )
    out.address.socket_address.protocol = address_pb2.SocketAddress.UDP
    out.udp_listener_config.quic_options.SetInParent()
    out.udp_listener_config.downstream_socket_config.prefer_gro.value = True
    for server in servers:
        with report.guard(server.gateway, server.path):
            chain = _http_chain(reader, view, server, reporting, http3=True)
            chain.filter_chain_match.server_names.extend(server.server_names())
            context = gateway_server(
                server.tls or {}, True, f"{server.path}.tls", reader.node(mesh)
            )
            chain.transport_socket.CopyFrom(quic_socket(context))
            _add_chains(out, [chain], server, Report())
    return out


def _listener(
    bind: str, port: int, proxy: ProxyKeys, binds: tuple[str, ...]
) -> listener_pb2.Listener:
    addresses = _addresses(bind, proxy, binds)
    out = listener_pb2.Listener(
        name=listener_name(addresses[0], port),
        address=listener_address(addresses[0], port),
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
    reader: Reader, view: View, server: Server, reporting: Reporting, *, http3: bool = False
) -> lc_pb2.FilterChain:
    dynamic = reader.node(named_as_met, view.viewer)
    sessions = session_filters(reader, view.viewer)
    resolved = client_filters(names_cache(view.families) if dynamic else None, (), sessions)
    manager = connection_manager(
        stat_prefix=server.stat_prefix,
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
    if http3:
        manager.codec_type = hcm_pb2.HttpConnectionManager.HTTP3
        manager.http3_protocol_options.SetInParent()
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
        if not is_named(row):
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
    return any(s.mode == AUTO_PASSTHROUGH for s in reader.node(servers_of, router).servers)


def _services(reader: Reader, view: View, server: Server, section: str) -> Iterator[Ref]:
    """Virtual services with routes for the connections of a server."""
    for ref in reader.node(gateway_services, view.viewer, server.name):
        if section in ref.row.sections and server.matching_hosts(ref):
            found = written_service(reader, (ref.key, ref.row.name))
            if found is not None:
                yield found


def _passthrough_chains(
    reader: Reader, view: View, server: Server, reporting: Reporting, report: Report
) -> list[lc_pb2.FilterChain]:
    out = []
    for vs in _services(reader, view, server, "tls"):
        routes = l4_routes(vs, "tls", route_context(reader, view, facing_of(server)), report)
        out += [_tcp_chain(reader, view, server, route, reporting) for route in routes]
    return out


def _tcp_chains(
    reader: Reader, view: View, server: Server, reporting: Reporting, report: Report
) -> list[lc_pb2.FilterChain]:
    for vs in _services(reader, view, server, "tcp"):
        routes = l4_routes(vs, "tcp", route_context(reader, view, facing_of(server)), report)
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
    chain.filters.append(tcp_filter(route, reporting))
    return chain
