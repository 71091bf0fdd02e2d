"""Everything one proxy gets: `plan_proxy` and `compile_proxy`.

A proxy's snapshot is put together from parts that it shares with others: what its namespace sees,
what its workload serves, for routers its Gateways. The *plan* of a proxy names these parts without
their content, so that it stays the same while their content changes: who delivers snapshots finds
the proxies that a change concerns by the parts they hold, and visits no other.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from meshbus.compile.asked_clusters import (
    Split,
    early_clusters,
    endpoints_of,
    late_clusters,
    needed_names,
)
from meshbus.compile.asked_hosts import Tables, first_hosts
from meshbus.compile.bootstrap_patches import MARK, bootstrap_findings
from meshbus.compile.cluster_secrets import names_config_maps
from meshbus.compile.clusters import ClusterStyle
from meshbus.compile.connection_settings import ConnectionSettings, connection_settings_of
from meshbus.compile.credentials import SecretNeed
from meshbus.compile.engine import Reader, the_one
from meshbus.compile.envoy_filter import (
    chosen_patches,
    patched_part,
    patched_types,
    spoilt_patches,
    unfit_patches,
)
from meshbus.compile.extensions import CLIENT, extensions_of
from meshbus.compile.findings import Finding
from meshbus.compile.gateway_servers import router_of
from meshbus.compile.grpc_clients import (
    grpc_clusters,
    grpc_endpoints,
    grpc_listeners,
    grpc_routes,
)
from meshbus.compile.inbound import (
    ClusterView,
    ListenerView,
    RouteView,
    bound_listeners,
    inbound_clusters,
    inbound_routes,
    inbound_view,
    virtual_inbound,
)
from meshbus.compile.layers import Layer
from meshbus.compile.listener_limits import listener_limits
from meshbus.compile.locality import place_of
from meshbus.compile.names import BLACK_HOLE
from meshbus.compile.networks import networks
from meshbus.compile.on_demand import EVERYTHING_BEFORE, OnDemand, on_demand_of
from meshbus.compile.one_set import one_set
from meshbus.compile.outbound import (
    capture_plan,
    captured_listeners,
    http_proxy_listener,
    placed_listeners,
)
from meshbus.compile.proxy_headers import headers_of
from meshbus.compile.proxy_keys import (
    CAPTURE_NONE,
    CAPTURE_PROXY,
    ROUTER,
    ProxyKeys,
    proxy_of_instance,
    proxy_of_json,
)
from meshbus.compile.quota import quotas_count
from meshbus.compile.resources import CDS, ECDS, EDS, LDS, RDS, RTDS, VHDS, Resource
from meshbus.compile.route_tables import port_routes
from meshbus.compile.rules_in_force import selecting_rules
from meshbus.compile.settings import mesh
from meshbus.compile.shared_parts import (
    SharedPart,
    captured_routes,
    labels_that_count,
    listeners_of_router,
    merged,
    outbound_assignments,
    outbound_clusters,
    router_assignments,
    router_clusters,
    router_secrets,
    routes_of_router,
    selected_findings,
    selected_secrets,
    workload_extensions,
)
from meshbus.compile.sidecars import sidecar_of, unknown_traffic, viewer_of
from meshbus.compile.socket_listeners import socket_listeners, socket_routes, sockets_of
from meshbus.compile.tls_contexts import OWN_CERTIFICATE, TRUSTED_ROOTS
from meshbus.compile.virtual_hosts import View, http_proxy_routes, source_selectors
from meshbus.compile.zones import kind_of, own_kind, unheeded_zones, why_blind, zones_concern

Resources = Mapping[str, Resource]

MESH_SECRETS = (
    SecretNeed(OWN_CERTIFICATE, None, "certificate"),
    SecretNeed(TRUSTED_ROOTS, None, "ca"),
)
"""What every proxy may ask for: its own identity and what it trusts."""
TYPES = (CDS, EDS, LDS, RDS, ECDS)
"""What a snapshot has, besides secrets."""


class Ask(NamedTuple):
    """A node by its function and arguments: its value may change, what it is about does not."""

    node: Callable[..., Any]
    args: tuple[Any, ...]

    def read(self, reader: Reader) -> Any:
        """The present value."""
        return reader.node(self.node, *self.args)


class Plan(NamedTuple):
    """What a proxy's snapshot is put together from. Proxies of equal plans are of one class."""

    layers: tuple[tuple[str, tuple[Ask, ...]], ...]
    """For each of `TYPES`, VHDS for who asks for virtual hosts, and RTDS for whose listeners have a
    limit, the parts of that type: nodes
    whose value is a `SharedPart`. Names of parts of one type are disjoint."""
    secrets: Ask | None = None
    """Gives the secrets that its objects name."""
    late: tuple[tuple[str, Ask], ...] = ()
    """Parts of which is sent what the proxy asks for by name, by type."""
    tables: Tables | None = None
    """Route configurations whose virtual hosts it asks for."""

    def asks(self) -> tuple[Ask, ...]:
        """Every node that the snapshot depends on."""
        layers = tuple(ask for _, asks in self.layers for ask in asks)
        late = tuple(ask for _, ask in self.late)
        return (*layers, *late, *(() if self.secrets is None else (self.secrets,)))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All resources of one proxy."""

    resources: Mapping[str, Resources]
    """By type URL (CDS, EDS, LDS, RDS, ECDS, each always there) and name."""
    secrets: tuple[SecretNeed, ...] = MESH_SECRETS
    findings: tuple[Finding, ...] = field(default=())
    """What has no effect, of everything that this proxy sees."""


def outbound_view(reader: Reader, proxy: ProxyKeys, patched: frozenset[str]) -> View:
    """The view of a proxy: selectors count only as far as something visible has them. `patched`:
    types that EnvoyFilters are about, which are sent before anything asks for them."""
    held = set(proxy.labels)
    sidecar = None
    if proxy.type != ROUTER:
        sidecar = sidecar_of(reader, proxy.namespace, proxy.labels)
    viewer = viewer_of(reader, sidecar, proxy.namespace)
    sources = one_set(
        selector for selector in reader.node(source_selectors, viewer) if held.issuperset(selector)
    )
    rules = selecting_rules(reader, proxy.namespace, proxy.labels)
    settings = reader.node(mesh)
    unknown = unknown_traffic(sidecar, settings)
    extensions = tuple(
        extension
        for extension in extensions_of(reader, proxy.namespace, proxy.labels)
        if extension.is_on(CLIENT)
    )
    view = View(
        viewer,
        sources,
        rules,
        proxy.captured,
        proxy.families,
        unknown,
        proxy.dns,
        extensions,
        headers_of(settings.proxy_config, proxy.proxy_config),
        proxy.capture == CAPTURE_NONE,
        _asks(reader, proxy, patched),
        proxy.unprivileged,
        _treatment(reader, proxy),
    )
    made: View = reader.node(the_one, view)
    return made


def _treatment(reader: Reader, proxy: ProxyKeys) -> ConnectionSettings:
    settings = reader.node(mesh).proxy_config
    return connection_settings_of(settings, proxy.proxy_config, router=proxy.type == ROUTER)


def _asks(reader: Reader, proxy: ProxyKeys, patched: frozenset[str]) -> OnDemand:
    if not proxy.may_ask or proxy.type == ROUTER:
        return EVERYTHING_BEFORE
    said = on_demand_of(reader.node(mesh).proxy_config, proxy.proxy_config)
    return OnDemand(said.hosts and RDS not in patched, said.clusters and CDS not in patched)


# --------------------------------------------------------------------------- parts of one proxy


def own_clusters(reader: Reader, view: ClusterView, app_address: str) -> SharedPart:
    """Node: clusters of a workload's own ports."""
    return merged([inbound_clusters(reader, view, app_address)])


def own_routes(reader: Reader, view: RouteView) -> SharedPart:
    """Node: route configurations of a workload's own ports."""
    return merged([inbound_routes(reader, view)])


def own_listener(reader: Reader, view: ListenerView) -> SharedPart:
    """Node: the listener of captured inbound traffic."""
    return merged([reader.node(virtual_inbound, view)])


def shared_listeners(reader: Reader, view: View) -> SharedPart:
    """Node: listeners for captured traffic of a view."""
    return merged([reader.node(captured_listeners, view)])


def proxy_listeners(
    reader: Reader,
    inbound: ListenerView,
    ips: tuple[str, ...],
    view: View,
    http_proxy: tuple[str, int],
) -> SharedPart:
    """Node: listeners of a sidecar that traffic is not captured for; one part, for a port of the
    workload and that of the HTTP proxy may have the same name."""
    parts = [reader.node(bound_listeners, inbound, ips)]
    bind, port = http_proxy
    if port:
        parts.append(reader.node(http_proxy_listener, view, bind, port))
    parts.append(reader.node(placed_listeners, view, bind))
    return merged(parts)


def http_proxy_beside(reader: Reader, view: View, port: int) -> SharedPart:
    """Node: the HTTP proxy of a sidecar that traffic is captured for."""
    return merged([reader.node(http_proxy_listener, view, view.families.localhost, port)])


def http_proxy_tables(reader: Reader, view: View) -> SharedPart:
    """Node: its route configuration."""
    return merged([reader.node(http_proxy_routes, view)])


def proxied_routes(reader: Reader, view: View, http_proxy: bool) -> SharedPart:
    """Node: route configurations of the HTTP proxy listener, and of ports of the Sidecar's."""
    parts = [reader.node(http_proxy_routes, view)] if http_proxy else []
    placed = reader.node(capture_plan, view).placed()
    parts += [reader.node(port_routes, view, port) for port, shared in placed if shared.http]
    return merged(parts)


def own_sockets(reader: Reader, view: View) -> SharedPart:
    """Node: listeners of a view at Unix sockets."""
    return merged([reader.node(socket_listeners, view)])


def socket_tables(reader: Reader, view: View) -> SharedPart:
    """Node: route configurations of those."""
    return merged(socket_routes(reader, view))


# --------------------------------------------------------------------------- proxies


def plan_proxy(reader: Reader, proxy: ProxyKeys) -> Plan:
    """Node: which parts a proxy's snapshot is put together from."""
    if proxy.speaks_grpc:
        return _plan_of_grpc(reader, proxy)
    chosen = chosen_patches(reader, proxy)
    types = patched_types(reader, chosen.fit)
    plan = _generated(reader, proxy, types)
    spoilt = spoilt_patches(reader, proxy, chosen.fit)

    def patched(type_url: str, asks: tuple[Ask, ...]) -> Ask:
        without = spoilt.get(type_url, ())
        return Ask(patched_part, (asks, type_url, proxy.type, chosen.fit, without))

    layers = [
        (type_url, (patched(type_url, asks),) if type_url in types else asks)
        for type_url, asks in plan.layers
    ]
    # What versions of a service, or a whole namespace, have in common.
    layers = [layer if layer[0] in (CDS, RDS) else reader.node(the_one, layer) for layer in layers]
    most = _treatment(reader, proxy).listener_connections
    if most is not None:
        listeners = tuple(ask for kind, asks in layers if kind == LDS for ask in asks)
        layers.insert(0, (RTDS, (Ask(listener_limits, (listeners, most)),)))
    told = []
    if chosen.unfit:
        told.append(Ask(unfit_patches, (chosen.unfit,)))
    if chosen.started:
        mark = dict(proxy.metadata).get(MARK, "")
        told.append(Ask(bootstrap_findings, (chosen.started, mark)))
    if told:
        layers.append((ECDS, (*layers.pop()[1], *told)))
    made: Plan = reader.node(the_one, plan._replace(layers=tuple(layers)))
    return made


def _plan_of_grpc(reader: Reader, proxy: ProxyKeys) -> Plan:
    """The plan of an application that speaks xDS through gRPC. EnvoyFilters are not for it."""
    view = outbound_view(reader, proxy, frozenset())
    at = proxy.ips[0] if proxy.ips else ""
    place = place_of(reader, proxy.locality, proxy.label_map, proxy.network, proxy.cluster, at)
    style = ClusterStyle(False, False, proxy.families, place, view.headers.keep_case)
    return Plan(
        (
            (CDS, (Ask(grpc_clusters, (view, style)),)),
            (EDS, (Ask(grpc_endpoints, (view, place)),)),
            (LDS, (Ask(grpc_listeners, (view,)),)),
            (RDS, (Ask(grpc_routes, (view,)),)),
            (ECDS, ()),
        )
    )


def _generated(reader: Reader, proxy: ProxyKeys, patched: frozenset[str]) -> Plan:
    """The plan without EnvoyFilters; `patched`: types that they are about."""
    view = outbound_view(reader, proxy, patched)
    at = proxy.ips[0] if proxy.ips else ""
    place = place_of(
        reader,
        proxy.locality,
        proxy.label_map,
        proxy.network,
        proxy.cluster,
        at,
        proxy.node_locality,
    )
    kind = None
    peers: tuple[Ask, ...] = ()
    if reader.node(zones_concern, view):
        if place is not None and proxy.has_local_cluster:
            kind = kind_of(reader, proxy, place)
        peers = () if kind is None else (Ask(own_kind, (kind,)),)
        if why := why_blind(proxy, place, kind):
            peers += (Ask(unheeded_zones, (view, why)),)
    zoned = kind is not None
    keep_case = view.headers.keep_case
    buffer = view.treatment.cluster_buffer
    style = ClusterStyle(
        proxy.type == ROUTER, proxy.captured, proxy.families, place, keep_case, zoned, buffer
    )
    clusters = Ask(outbound_clusters, (view, style))
    endpoints = Ask(outbound_assignments, (view, proxy.captured, place))
    labels = reader.node(labels_that_count, proxy.namespace, proxy.labels)
    filters = Ask(workload_extensions, (proxy.namespace, labels))
    if proxy.type == ROUTER:
        binds = proxy.ips if proxy.capture == CAPTURE_PROXY else ()
        router = router_of(reader, proxy)
        served = (router, view, binds)
        network = reader.node(networks).network_of(proxy.network, proxy.cluster, at)
        return Plan(
            (
                (CDS, (clusters, Ask(router_clusters, (router, view, style, network)))),
                (EDS, (endpoints, Ask(router_assignments, (router, view, network, place)), *peers)),
                (LDS, (Ask(listeners_of_router, served),)),
                (RDS, (Ask(routes_of_router, served),)),
                (ECDS, (filters,)),
            ),
            Ask(router_secrets, served),
        )
    inbound = inbound_view(reader, proxy)
    app_address = proxy.app_address if not proxy.captured else ""
    routes: tuple[Ask, ...] = (
        Ask(own_routes, (inbound.routes(counted=reader.node(quotas_count)),)),
    )
    http_port = proxy.http_proxy_port
    if proxy.capture != CAPTURE_PROXY:
        http_port = http_port or reader.node(mesh).http_proxy_port
    if proxy.captured:
        listeners: tuple[Ask, ...] = (
            Ask(shared_listeners, (view,)),
            Ask(own_listener, (inbound.listeners,)),
        )
        routes = (Ask(captured_routes, (view,)), *routes)
        if http_port:
            # What is called by the proxy has no other destination than the proxy itself.
            behind = view._replace(
                captured=False,
                unknown=BLACK_HOLE,
                on_demand=view.on_demand._replace(hosts=False),
            )
            listeners += (Ask(http_proxy_beside, (behind, http_port)),)
            routes += (Ask(http_proxy_tables, (behind,)),)
    else:
        http_proxy = (proxy.http_proxy_address or proxy.families.localhost, http_port)
        listeners = (Ask(proxy_listeners, (inbound.listeners, proxy.ips, view, http_proxy)),)
        routes = (Ask(proxied_routes, (view, http_port > 0)), *routes)
    if sockets_of(view):
        listeners += (Ask(own_sockets, (view,)),)
        routes += (Ask(socket_tables, (view,)),)
    late: tuple[tuple[str, Ask], ...] = ()
    if view.on_demand.clusters:
        seen = [ask for ask in listeners if ask.node is shared_listeners]
        own_naming = (*(ask for ask in listeners if ask not in seen), filters)
        named = reader.node(needed_names, own_naming)
        split = Split(clusters, tuple(seen), named, view)
        clusters, after = Ask(early_clusters, (split,)), Ask(late_clusters, (split,))
        late = ((CDS, after), (EDS, Ask(endpoints_of, (endpoints, after))))
        endpoints = Ask(endpoints_of, (endpoints, clusters))
    tables: Tables | None = None
    hosts: tuple[tuple[str, tuple[Ask, ...]], ...] = ()
    if view.on_demand.hosts:
        tables = Tables(view, not proxy.captured and http_port > 0)
        hosts = ((VHDS, (Ask(first_hosts, (tables,)),)),)
    own: tuple[Ask, ...] = (clusters, Ask(own_clusters, (inbound.clusters, app_address)))
    secrets = None
    if bool(view.rules) or reader.node(names_config_maps, view):
        own += (Ask(selected_findings, (view,)),)
        secrets = Ask(selected_secrets, (view,))
    return Plan(
        (
            (CDS, own),
            (EDS, (endpoints, *peers)),
            (LDS, listeners),
            (RDS, routes),
            *hosts,
            (ECDS, (filters,)),
        ),
        secrets,
        late,
        tables,
    )


def compile_proxy(reader: Reader, proxy: ProxyKeys) -> Snapshot:
    """Node: everything that a proxy gets.

    `engine.get(compile_proxy, proxy)`. What cannot be compiled is in `findings`; a fault in one
    object does not take down another.
    """
    return snapshot_of(reader.node(plan_proxy, proxy), lambda ask: ask.read(reader))


def snapshot_of(plan: Plan, value: Callable[[Ask], Any]) -> Snapshot:
    """The snapshot of a plan, put together from the values of its nodes."""
    resources: dict[str, Resources] = {}
    findings: dict[Finding, None] = {}
    for type_url, asks in plan.layers:
        parts: list[SharedPart] = [value(ask) for ask in asks]
        layers: list[Layer] = [part.resources for part in parts]
        resources[type_url] = (
            layers[0] if len(layers) == 1 else {n: r for layer in layers for n, r in layer.items()}
        )
        for part in parts:
            findings.update(dict.fromkeys(part.findings))
    secrets = () if plan.secrets is None else value(plan.secrets)
    return Snapshot(resources, (*MESH_SECRETS, *secrets), tuple(sorted(findings)))


__all__ = [
    "MESH_SECRETS",
    "TYPES",
    "Ask",
    "Finding",
    "Plan",
    "ProxyKeys",
    "SecretNeed",
    "Snapshot",
    "compile_proxy",
    "plan_proxy",
    "proxy_of_instance",
    "proxy_of_json",
    "snapshot_of",
]
