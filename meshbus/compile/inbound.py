"""Listeners and clusters for who calls an application."""

from typing import Any, NamedTuple

from envoy.config.core.v3 import base_pb2
from envoy.config.listener.v3 import listener_components_pb2 as lc_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_components_pb2 as rc_pb2

from meshbus.compile.clusters import inbound_application, limit_buffers
from meshbus.compile.connection_settings import (
    NOTHING_SAID,
    ConnectionSettings,
    connection_settings_of,
)
from meshbus.compile.connections import (
    HTTP_ALPN,
    Reporting,
    connection_manager,
    encode_listener,
    http_inspector_filter,
    log_refused,
    manager_filter,
    original_destination_filter,
    original_source_filter,
    tcp_proxy,
    tls_inspector_filter,
    wait_for_first_bytes,
)
from meshbus.compile.endpoints import service_addresses, target_ports
from meshbus.compile.engine import Reader
from meshbus.compile.extensions import SERVER, Extension, extensions_of
from meshbus.compile.families import ANY_V4, FIRST_UNPRIVILEGED, Families
from meshbus.compile.findings import Finding, NotCompiledError, Part, Report
from meshbus.compile.http_routes import retry_policy
from meshbus.compile.names import (
    BLACK_HOLE,
    INBOUND_PASSTHROUGH,
    UDP,
    bracketed,
    inbound_cluster,
    is_http,
    is_sniffed,
    listener_name,
)
from meshbus.compile.outbound import reporting_of
from meshbus.compile.peer_authentication import (
    DISABLE,
    NO_SELECTOR_IN_ROOT,
    PERMISSIVE,
    STRICT,
    MutualTls,
    mutual_tls,
)
from meshbus.compile.proxy_headers import NO_WISHES, ProxyHeaders, forward_certificate, headers_of
from meshbus.compile.proxy_keys import CAPTURE_NONE, ProxyKeys
from meshbus.compile.quota import inbound_quota, quota_filters
from meshbus.compile.resources import CDS, Resource, encode
from meshbus.compile.rules_in_force import find_rules
from meshbus.compile.scope import exported_services
from meshbus.compile.security_filters import (
    NO_SECURITY,
    Security,
    connection_rules,
    end_connections_with,
    http_security,
    network_security,
    security_of,
)
from meshbus.compile.settings import MeshSettings, mesh
from meshbus.compile.sidecar_ingress import (
    NO_INGRESS,
    IngressSide,
    ingress_side,
    own_endpoint,
    pool_policy,
    send_to_endpoint,
    tls_settings,
)
from meshbus.compile.sidecars import sidecar_of
from meshbus.compile.stat_names import inbound_stat_name
from meshbus.compile.telemetry import LOG_INBOUND
from meshbus.compile.tls_contexts import (
    ALPN_MESH,
    ALPN_MESH_HTTP,
    ALPN_TCP,
    gateway_server,
    mesh_server,
    socket,
)
from meshbus.compile.traffic_policy import merged_rule, policy_in_force
from meshbus.compile.values import address, boolean, uint32
from meshbus.compile.virtual_hosts import HostRoutes, encode_host, encode_table
from meshbus.compile.visibility import Ref, age
from meshbus.model.keys import Key
from meshbus.model.rows import Service

_RETRY_AMONG_HOSTS = frozenset({"retryIgnorePreviousHosts", "retryRemoteLocalities"})


class ServedPort(NamedTuple):
    """A port of the application."""

    port: int
    protocol: str
    services: tuple[tuple[str, str, str, int], ...]
    """(host, name, namespace, service port) of the services it belongs to."""
    endpoint: str = ""
    """Where the application listens, as a Sidecar says it; empty: at this port."""
    bind: str = ""
    """The address that a listener of its own binds, with `bound`."""
    bound: bool = False
    """Traffic is not redirected to it: it has a listener that binds its port."""
    pool: str = ""
    """Limits towards the application: see `sidecar_ingress.Ingress.pool`."""
    named_by: str = ANY_V4
    """The address in the names of its chains and of a listener of its own without `bind`."""
    tls: str = ""
    """TLS of clients outside the mesh that ends here: see `sidecar_ingress.Ingress.tls`."""
    path: str = ""
    """Where in the Sidecar it is said."""
    passes: bool = False
    """No service names it; port 0: any such port. Its traffic goes where it was going."""
    counted: str = ""
    """Its name in statistics, by `inboundClusterStatName`; empty: that of its cluster."""

    @property
    def cluster(self) -> str:
        """The cluster of what answers it, by which its routes are called as well."""
        return INBOUND_PASSTHROUGH if self.passes else inbound_cluster(self.port)

    @property
    def shown(self) -> int:
        """The port by which callers know it."""
        return self.services[0][3] if self.services else self.port

    def chain_name(self, http: bool) -> str:
        """The name that Istio gives its filter chains: EnvoyFilters match by it."""
        if self.passes:
            return "virtualInbound-catchall-http" if http else "virtualInbound"
        return listener_name(self.named_by, self.port)


class ListenerView(NamedTuple):
    """What decides the listeners of a sidecar's inbound side; workloads that are alike in it share
    them."""

    ports: tuple[ServedPort, ...]
    """Without the services, and without what concerns clusters."""
    mutual: MutualTls
    connections: Security
    """What decides about TCP connections at `ports`; nothing where all are of HTTP."""
    families: Families
    sidecar: tuple[Key, ...] = ()
    """The Sidecar that says the ports."""
    extensions: tuple[Extension, ...] = ()
    """WasmPlugins and TrafficExtensions on the server side."""
    headers: ProxyHeaders = NO_WISHES
    """What the proxy says of itself and callers, in headers."""
    transparent: bool = False
    """Connections keep the address of their client."""
    treatment: ConnectionSettings = NOTHING_SAID
    """How the proxy treats connections."""

    @property
    def origins(self) -> tuple[Key, ...]:
        """Objects that listeners come from."""
        return (*self.mutual.origins, *self.sidecar)


class ClusterView(NamedTuple):
    """What decides the clusters of a sidecar's inbound side: versions of a service share them."""

    ports: tuple[ServedPort, ...]
    families: Families
    sidecar: tuple[Key, ...]
    keep_case: bool
    """See `ProxyHeaders.keep_case`."""
    buffer: int | None = None
    """See `ConnectionSettings.cluster_buffer`."""


class RouteView(NamedTuple):
    """What decides the route configurations of a sidecar's inbound side; versions of a service
    share them as long as there are no quotas, which may tell them apart."""

    ports: tuple[ServedPort, ...]
    captured: bool
    workload: str
    """Where a port has no service that requests could be called by."""
    counted: ProxyKeys | None
    """Whose requests quotas count, without what tells replicas apart; None: there are none."""
    timed: bool = False
    """Streams end in the time that the connection manager gives them."""


def _only(ports: tuple[ServedPort, ...], **without: Any) -> tuple[ServedPort, ...]:
    """The ports with these fields as they are for most: the same objects where they are."""
    made = tuple(port._replace(**without) for port in ports)
    return ports if made == ports else made


class InboundView(NamedTuple):
    """What decides a sidecar's inbound side; replicas of a workload share it."""

    ports: tuple[ServedPort, ...]
    mutual: MutualTls
    connections: Security
    """See `ListenerView`."""
    proxy: ProxyKeys
    """Without what tells replicas apart."""
    sidecar: tuple[Key, ...] = ()
    """The Sidecar that says the ports or their limits."""
    extensions: tuple[Extension, ...] = ()
    """WasmPlugins and TrafficExtensions on the server side."""
    headers: ProxyHeaders = NO_WISHES
    """What the proxy says of itself and callers, in headers."""
    treatment: ConnectionSettings = NOTHING_SAID
    """How the proxy treats connections."""

    @property
    def listeners(self) -> ListenerView:
        """What of it decides the listeners."""
        return ListenerView(
            _only(self.ports, services=(), endpoint="", pool=""),
            self.mutual,
            self.connections,
            self.proxy.families,
            self.sidecar,
            self.extensions,
            self.headers,
            self.proxy.transparent,
            self.treatment,
        )

    @property
    def clusters(self) -> ClusterView:
        """What of it decides the clusters."""
        ports = _only(self.ports, bind="", bound=False, named_by=ANY_V4, tls="", path="")
        return ClusterView(
            ports,
            self.proxy.families,
            self.sidecar,
            self.headers.keep_case,
            self.treatment.cluster_buffer,
        )

    def routes(self, *, counted: bool) -> RouteView:
        """What of it decides the route configurations; `counted`: quotas may count requests."""
        ports = _only(
            self.ports, bind="", bound=False, named_by=ANY_V4, tls="", path="", endpoint="", pool=""
        )
        workload = "" if all(port.services for port in ports) else self.proxy.workload
        counts = self.proxy if counted else None
        timed = self.treatment.stream_lifetime_ns is not None
        return RouteView(ports, self.proxy.captured, workload, counts, timed)


def namespace_services(reader: Reader, namespace: str) -> tuple[Ref, ...]:
    """Node: services of a namespace, whoever sees them."""
    visible = reader.node(exported_services, namespace)
    refs = [*visible.public, *(ref for ref, _ in visible.restricted)]
    return tuple(sorted(refs, key=lambda ref: ref.key))


def serves(reader: Reader, row: Service, proxy: ProxyKeys) -> bool:
    """A service leads to a proxy."""
    if row.selector:
        return row.selector.items() <= proxy.label_map.items()
    if row.external_name or row.resolution.startswith("DNS"):
        return False
    found = reader.node(service_addresses, row.namespace, row.host)
    return not found.isdisjoint(proxy.ips)


def served_ports(reader: Reader, proxy: ProxyKeys) -> tuple[ServedPort, ...]:
    """Ports of a workload: those of the services that select it, and those it declares.

    The protocol is the service's; of two services that differ the older counts, of equal age the
    first by host.
    """
    found: dict[int, tuple[str, list[tuple[str, str, str, int]]]] = {}
    declared = {number: protocol for _, number, protocol in proxy.ports}
    by_name = {name: number for name, number, _ in proxy.ports}
    for ref in sorted(reader.node(namespace_services, proxy.namespace), key=age):
        row: Service = ref.row
        if not serves(reader, row, proxy):
            continue
        targets = {t.name: t.ports for t in reader.node(target_ports, row.namespace, row.host)}
        for port in row.ports:
            if port.protocol == UDP:
                continue
            numbers = targets.get(port.name) or (
                port.target_port or by_name.get(port.name) or port.number,
            )
            for number in numbers:
                if len(numbers) > 1 and declared and number not in declared:
                    continue
                protocol = declared.get(number) or port.protocol
                entry = found.setdefault(number, (protocol, []))
                entry[1].append((row.host, row.name, row.namespace, port.number))
    for number, protocol in declared.items():
        if protocol != UDP:
            found.setdefault(number, (protocol, []))
    return tuple(
        ServedPort(number, protocol, tuple(services))
        for number, (protocol, services) in sorted(found.items())
    )


def inbound_view(reader: Reader, proxy: ProxyKeys) -> InboundView:
    """What the inbound side of a proxy is made of."""
    sidecar = sidecar_of(reader, proxy.namespace, proxy.labels)
    side = ingress_side(sidecar)
    ports = tuple(
        port._replace(counted=_stat_name(reader, port))
        for port in _with_ingress(served_ports(reader, proxy), side, proxy)
        if not (port.bound and proxy.unprivileged and port.port < FIRST_UNPRIVILEGED)
    )
    connections = NO_SECURITY
    if any(not is_http(port.protocol) for port in ports):
        connections = security_of(reader, proxy.namespace, proxy.labels)
    return InboundView(
        ports,
        mutual_tls(reader, proxy.namespace, proxy.labels),
        connections,
        proxy.as_class(),
        (sidecar.key,) if sidecar is not None and side != NO_INGRESS else (),
        tuple(
            extension
            for extension in extensions_of(reader, proxy.namespace, proxy.labels)
            if extension.is_on(SERVER)
        ),
        headers_of(reader.node(mesh).proxy_config, proxy.proxy_config),
        connection_settings_of(reader.node(mesh).proxy_config, proxy.proxy_config, router=False),
    )


def _stat_name(reader: Reader, served: ServedPort) -> str:
    pattern = reader.node(mesh).inbound_stat_name
    if not pattern or not served.services:
        return ""
    host, _, namespace, port = served.services[0]
    return inbound_stat_name(reader, pattern, host, namespace, port, served.port)


def _with_ingress(
    served: tuple[ServedPort, ...], side: IngressSide, proxy: ProxyKeys
) -> tuple[ServedPort, ...]:
    """The ports that a Sidecar says in place of those of the services, where it says any; where
    nothing is redirected only it can say them, for the application has those of the services.

    Source: Istio, buildInboundChainConfigs: they are at the instance's address unless `bind` says
    another.
    """
    own_address = proxy.ips[0] if proxy.ips else ANY_V4
    uncaptured = proxy.capture == CAPTURE_NONE
    if not side.listeners:
        anywhere = proxy.families.anywhere[0]
        kept = (port._replace(pool=side.pool, named_by=anywhere) for port in served)
        return () if uncaptured else tuple(kept)
    known = {port.port: port for port in served}
    out = []
    local = bracketed(proxy.families.localhost)
    for ingress in side.listeners:
        held = known.get(ingress.port, ServedPort(ingress.port, "", ()))
        out.append(
            held._replace(
                protocol=ingress.protocol or held.protocol,
                endpoint=own_endpoint(ingress.endpoint, proxy.ips)
                or (f"{local}:{ingress.port}" if uncaptured else ""),
                bind=ingress.bind,
                bound=uncaptured or not ingress.captured,
                named_by=ingress.bind or own_address,
                pool=ingress.pool,
                tls=ingress.tls,
                path=ingress.path,
            )
        )
    return tuple(port for port in out if port.protocol != UDP)


# --------------------------------------------------------------------------- chains


def _manager(
    reader: Reader,
    served: ServedPort,
    settings: MeshSettings,
    reporting: Reporting,
    extensions: tuple[Extension, ...],
) -> lc_pb2.Filter:
    manager = connection_manager(
        stat_prefix=f"inbound_{served.chain_name(True)};",
        route_name=served.cluster,
        filters=[
            *http_security(reader, extensions, SERVER, served.port),
            *([] if served.passes else quota_filters(reader)),
        ],
        settings=settings,
        reporting=reporting,
    )
    forward_certificate(manager, reporting.headers, gateway=False)
    return manager_filter(manager)


def _chains(
    reader: Reader, view: ListenerView, served: ServedPort, bound: bool
) -> list[lc_pb2.FilterChain]:
    """Filter chains of one port.

    Mutual TLS and plaintext as the port's mode allows; HTTP apart from TCP where the protocol is
    not declared: by ALPN of the mesh inside TLS, by looking at it in plaintext.
    Source: Istio, getMTLSInfo and the inbound filter chain options of 1.31.
    """
    settings = reader.node(mesh)
    reporting = reporting_of(reader, LOG_INBOUND, view)
    mode = view.mutual.at(served.port)
    cluster = served.cluster
    before = network_security(reader, view.extensions, SERVER, served.port)
    counted = served.counted.removesuffix(";") or cluster
    tcp = [*before, tcp_proxy(counted, [(cluster, 1)], reporting)]
    http = None
    if is_http(served.protocol) or is_sniffed(served.protocol):
        http = [_manager(reader, served, settings, reporting, view.extensions)]
    secured = socket(mesh_server(settings))
    if served.tls and mode == DISABLE:
        # TLS of its own in place of the mesh's. Source: networking Sidecar, IstioIngressListener.
        ends = gateway_server(tls_settings(served.tls), http is not None, served.path, settings)
        secured = socket(ends)
    out: list[lc_pb2.FilterChain] = []

    def chain(
        filters: list[lc_pb2.Filter], transport: str, alpn: tuple[str, ...], secure: bool
    ) -> None:
        made = lc_pb2.FilterChain(name=served.chain_name(filters is http))
        match = made.filter_chain_match
        if served.port and not bound:
            match.destination_port.CopyFrom(uint32(served.port))
        match.transport_protocol = transport
        match.application_protocols.extend(alpn)
        if secure:
            made.transport_socket.CopyFrom(secured)
        made.filters.extend(filters)
        out.append(made)

    if served.tls and mode == DISABLE:
        chain(http or tcp, "tls", (), True)
    elif http is not None and is_sniffed(served.protocol):
        if mode != DISABLE:
            chain(http, "tls", ALPN_MESH_HTTP, True)
            chain(tcp, "tls", ALPN_TCP if mode == PERMISSIVE else (), True)
        if mode != STRICT:
            chain(http, "raw_buffer", HTTP_ALPN, False)
            chain(tcp, "raw_buffer", (), False)
            chain(tcp, "tls", (), False)
    elif mode == DISABLE:
        # Whatever comes: nobody waits for the client to speak first.
        chain(http or tcp, "", (), False)
    else:
        chain(http or tcp, "tls", ALPN_MESH if mode == PERMISSIVE else (), True)
        if mode == PERMISSIVE:
            chain(http or tcp, "raw_buffer", (), False)
            if http is None:
                chain(tcp, "tls", (), False)
    return out


def _guarded_chains(
    reader: Reader, view: ListenerView, served: ServedPort, bound: bool, report: Report
) -> list[lc_pb2.FilterChain]:
    """The chains of one port; what is wrong with its TLS is told, and nothing gets in without."""
    if served.tls and view.mutual.at(served.port) != DISABLE:
        message = (
            "the mutual TLS of the mesh holds at this port: PeerAuthentication must DISABLE it"
        )
        report.add(view.sidecar[0], f"{served.path}.tls", message)
    try:
        chains = _chains(reader, view, served, bound)
        if not is_http(served.protocol):
            end_connections_with(chains, reader.node(connection_rules, view.connections))
        return chains
    except NotCompiledError as fault:
        report.add(view.sidecar[0], fault.path, fault.message)
        closed = lc_pb2.FilterChain(name=served.chain_name(False))
        if not bound:
            closed.filter_chain_match.destination_port.CopyFrom(uint32(served.port))
        reporting = reporting_of(reader, LOG_INBOUND, view)
        closed.filters.append(tcp_proxy(BLACK_HOLE, [(BLACK_HOLE, 1)], reporting))
        return [closed]


def _inspect(listener: listener_pb2.Listener, settings: MeshSettings) -> None:
    """Look at the first bytes where a chain asks what they are, and nowhere else: at a port of a
    server that speaks first nothing would ever come.

    Source: Istio, populateListenerFilters.
    """
    ports: dict[int, tuple[bool, bool]] = {}
    for chain in listener.filter_chains:
        match = chain.filter_chain_match
        tls, http = ports.get(match.destination_port.value, (False, False))
        ports[match.destination_port.value] = (
            tls or bool(match.transport_protocol),
            http or not set(HTTP_ALPN).isdisjoint(match.application_protocols),
        )
    for index, inspector in enumerate((tls_inspector_filter(), http_inspector_filter())):
        blind = sorted(port for port, asks in ports.items() if not asks[index])
        if len(blind) == len(ports):
            continue
        if blind:
            inspector.filter_disabled.CopyFrom(_at_ports(blind))
        listener.listener_filters.append(inspector)
    wait_for_first_bytes(listener, settings)


def _at_ports(ports: list[int]) -> lc_pb2.ListenerFilterChainMatchPredicate:
    """Connections to one of these ports."""
    rules = []
    for port in ports:
        rule = lc_pb2.ListenerFilterChainMatchPredicate()
        rule.destination_port_range.start = port
        rule.destination_port_range.end = port + 1
        rules.append(rule)
    if len(rules) == 1:
        return rules[0]
    out = lc_pb2.ListenerFilterChainMatchPredicate()
    out.or_match.rules.extend(rules)
    return out


def virtual_inbound(reader: Reader, view: ListenerView) -> Part:
    """Node: the listener of captured inbound traffic; other ports of the application pass through
    under the workload's mutual TLS mode."""
    out = listener_pb2.Listener(name="virtualInbound", traffic_direction=base_pb2.INBOUND)
    addresses = view.families.anywhere
    settings = reader.node(mesh)
    out.address.CopyFrom(address(addresses[0], settings.inbound_port))
    for other in addresses[1:]:
        out.additional_addresses.add().address.CopyFrom(address(other, settings.inbound_port))
    out.listener_filters.append(original_destination_filter())
    if view.transparent:
        out.transparent.CopyFrom(boolean(True))
        out.listener_filters.append(original_source_filter())
    reporting = reporting_of(reader, LOG_INBOUND, view)
    log_refused(out, reporting)
    for port in (settings.inbound_port, settings.outbound_port):
        loop = out.filter_chains.add(name="virtualInbound-blackhole")
        loop.filter_chain_match.destination_port.CopyFrom(uint32(port))
        loop.filters.append(tcp_proxy(BLACK_HOLE, [(BLACK_HOLE, 1)], reporting))
    report = _report_of(view)
    for served in view.ports:
        if not served.bound:
            out.filter_chains.extend(_guarded_chains(reader, view, served, False, report))
    for served in unserved_ports(view):
        out.filter_chains.extend(_chains(reader, view, served, False))
    _inspect(out, settings)
    own = [
        _bound_listener(reader, view, served, (served.named_by,), report)
        for served in view.ports
        if served.bound
    ]
    return Part((encode_listener(reader, out, reporting, view.origins), *own), report.findings())


def _report_of(view: ListenerView) -> Report:
    """Begins with the policies that the workload passes over."""
    report = Report()
    for key in view.mutual.passed_over:
        report.add(key, "spec.selector", NO_SELECTOR_IN_ROOT)
    return report


ANY_OTHER_PORT = ServedPort(0, "", (), passes=True)


def unserved_ports(view: ListenerView) -> list[ServedPort]:
    """Ports that no service names, all of them as one, and those with a mode of their own."""
    served = {port.port for port in view.ports if not port.bound}
    numbers = (port for port, _ in view.mutual.ports if port not in served)
    return [ANY_OTHER_PORT, *(ANY_OTHER_PORT._replace(port=number) for number in numbers)]


def bound_listeners(reader: Reader, view: ListenerView, ips: tuple[str, ...]) -> Part:
    """Node: inbound listeners that bind the workload's own addresses, one for each port."""
    out: list[Resource] = []
    if not ips:
        return Part()
    report = _report_of(view)
    for served in view.ports:
        addresses = (served.bind,) if served.bind else ips
        out.append(_bound_listener(reader, view, served, addresses, report))
    return Part(tuple(out), report.findings())


def _bound_listener(
    reader: Reader,
    view: ListenerView,
    served: ServedPort,
    addresses: tuple[str, ...],
    report: Report,
) -> Resource:
    listener = listener_pb2.Listener(
        name=listener_name(addresses[0], served.port),
        address=address(addresses[0], served.port),
        traffic_direction=base_pb2.INBOUND,
    )
    for other in addresses[1:]:
        listener.additional_addresses.add().address.CopyFrom(address(other, served.port))
    listener.filter_chains.extend(_guarded_chains(reader, view, served, True, report))
    _inspect(listener, reader.node(mesh))
    reporting = reporting_of(reader, LOG_INBOUND, view)
    return encode_listener(reader, listener, reporting, view.origins)


# --------------------------------------------------------------------------- routes, clusters


def inbound_routes(reader: Reader, view: RouteView) -> Part:
    """Route configurations `inbound|PORT||`: everything to the application, and the quotas
    that count on the way. They come by RDS, so that a new quota reaches open connections."""
    out = []
    findings: set[Finding] = set()
    ports = [*view.ports, *((ANY_OTHER_PORT,) if view.captured else ())]
    for served in ports:
        if not (is_http(served.protocol) or is_sniffed(served.protocol)):
            continue
        vhost = rc_pb2.VirtualHost(routes=[_application_route(reader, view, served)])
        if not served.passes and view.counted is not None:
            quota = reader.node(inbound_quota, view.counted, served.services)
            vhost.rate_limits.extend(quota.rate_limits)
            findings.update(quota.findings)
        tail = HostRoutes(vhost.SerializeToString(deterministic=True), (), ()).tail
        encoded = encode_host(f"inbound|http|{served.shown}", ["*"], tail)
        out.append(encode_table(reader, served.cluster, [encoded], set(), ignore_port=False))
    return Part(tuple(out), tuple(sorted(findings)))


def _application_route(reader: Reader, view: RouteView, served: ServedPort) -> rc_pb2.Route:
    """Everything to the application, tried again where it cannot have seen the request, unless
    `defaultInboundHttpRetryPolicy` says otherwise."""
    route = rc_pb2.Route(name="default")
    route.match.prefix = "/"
    host = served.services[0][0] if served.services else view.workload
    # What passes is called the same everywhere, so that all workloads share the resource.
    operation = INBOUND_PASSTHROUGH if served.passes else f"{host}:{served.shown}/*"
    route.decorator.operation = operation
    route.route.cluster = served.cluster
    route.route.timeout.SetInParent()
    if not view.timed:
        route.route.max_stream_duration.max_stream_duration.SetInParent()
    route.route.max_stream_duration.grpc_timeout_header_max.SetInParent()
    wanted = reader.node(mesh).inbound_retry_policy
    if wanted is None:
        route.route.retry_policy.retry_on = "reset-before-request"
        route.route.retry_policy.num_retries.value = 2
        return route
    # There is one host behind: what chooses among hosts has no effect here.
    chosen = {k: v for k, v in wanted.items() if k not in _RETRY_AMONG_HOSTS}
    retry = retry_policy(chosen, True)
    if retry is not None:
        retry.ClearField("host_selection_retry_max_attempts")
        if not wanted.get("retryOn"):
            retry.retry_on = "reset-before-request"
        route.route.retry_policy.CopyFrom(retry)
    return route


def inbound_clusters(reader: Reader, view: ClusterView, app_address: str) -> Part:
    """Clusters `inbound|PORT||` of the application."""
    settings = reader.node(mesh)
    out = []
    for served in view.ports:
        said, origins = _pool_of_rules(reader, served)
        cluster = inbound_application(
            settings,
            served.port,
            served.protocol,
            app_address,
            view.families,
            pool_policy(served.pool) or said or settings.default_pool,
            keep_case=view.keep_case,
        )
        limit_buffers(cluster, view.buffer)
        cluster.alt_stat_name = served.counted
        if served.endpoint:
            send_to_endpoint(cluster, served.endpoint, app_address)
        if served.services:
            cluster.metadata.filter_metadata["istio"].update(
                {
                    "services": [
                        {"host": host, "name": name, "namespace": namespace}
                        for host, name, namespace, _ in served.services
                    ]
                }
            )
        out.append(encode(reader, CDS, cluster.name, cluster, (*view.sidecar, *origins)))
    return Part(tuple(out))


def _pool_of_rules(reader: Reader, served: ServedPort) -> tuple[dict[str, Any], tuple[Key, ...]]:
    """The limits that the destination rules of its service put on a port, and the rules: what
    callers may send, their server must be ready to take.

    Source: Istio, buildInboundCluster.
    """
    if not served.services:
        return {}, ()
    host, _, namespace, port = served.services[0]
    keys = find_rules(reader, namespace, namespace, host, frozenset())
    if not keys:
        return {}, ()
    pool = policy_in_force(reader.node(merged_rule, keys), port, None).get("connectionPool")
    return ({"connectionPool": pool}, keys) if pool else ({}, ())
