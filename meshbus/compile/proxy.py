"""Everything one proxy gets: `compile_proxy`.

A proxy's snapshot is put together from parts that proxies of its class share: the outbound view
(what its namespace sees), the inbound view (what its workload serves), and, for
routers, its Gateways.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from meshbus.compile.clusters import ClusterStyle, fixed_clusters, service_clusters
from meshbus.compile.endpoints import canonical_service, service_assignments
from meshbus.compile.engine import Reader
from meshbus.compile.findings import Finding, Part
from meshbus.compile.gateways import SecretNeed, router_resources
from meshbus.compile.inbound import (
    bound_listeners,
    inbound_clusters,
    inbound_routes,
    inbound_view,
    virtual_inbound,
)
from meshbus.compile.outbound import capture_plan, captured_listeners, http_proxy_listener
from meshbus.compile.proxy_keys import (
    CAPTURE_PROXY,
    ROUTER,
    ProxyKeys,
    proxy_of_instance,
    proxy_of_json,
)
from meshbus.compile.resources import CDS, ECDS, EDS, LDS, RDS, Resource
from meshbus.compile.scope import (
    Viewer,
    find_rules,
    reachable_services,
    selecting_rules,
)
from meshbus.compile.security_filters import Security, security_extensions, security_of
from meshbus.compile.settings import mesh
from meshbus.compile.sidecars import sidecar_of, unknown_traffic, viewer_of
from meshbus.compile.tls_contexts import OWN_CERTIFICATE, TRUSTED_ROOTS
from meshbus.compile.virtual_hosts import (
    View,
    http_proxy_routes,
    port_routes,
    sniffed_routes,
    source_selectors,
)
from meshbus.model.keys import Key

Resources = Mapping[str, Resource]

MESH_SECRETS = (
    SecretNeed(OWN_CERTIFICATE, None, "certificate"),
    SecretNeed(TRUSTED_ROOTS, None, "ca"),
)
"""What every proxy may ask for: its own identity and what it trusts."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All resources of one proxy. Mappings of proxies of one class may be the same objects."""

    resources: Mapping[str, Resources]
    """By type URL (CDS, EDS, LDS, RDS, ECDS, each always there) and name."""
    secrets: tuple[SecretNeed, ...] = MESH_SECRETS
    findings: tuple[Finding, ...] = field(default=())
    """What has no effect, of everything that this proxy sees."""


def outbound_view(reader: Reader, proxy: ProxyKeys) -> View:
    """The view of a proxy: selectors count only as far as something visible has them."""
    held = set(proxy.labels)
    sidecar = None
    if proxy.type != ROUTER:
        sidecar = sidecar_of(reader, proxy.namespace, proxy.labels)
    viewer = viewer_of(sidecar, proxy.namespace)
    sources = frozenset(
        selector for selector in reader.node(source_selectors, viewer) if held.issuperset(selector)
    )
    rules = reader.node(selecting_rules, proxy.namespace, proxy.labels)
    unknown = unknown_traffic(sidecar, reader.node(mesh))
    return View(viewer, sources, rules, proxy.captured, proxy.dual_stack, unknown)


# --------------------------------------------------------------------------- shared parts


@dataclass(frozen=True, slots=True)
class Merged:
    """Resources of several parts by name, with their findings."""

    resources: dict[str, Resource]
    findings: tuple[Finding, ...]


def _merge(parts: Iterable[Part | Merged]) -> Merged:
    resources: dict[str, Resource] = {}
    findings: dict[Finding, None] = {}
    for part in parts:
        if isinstance(part, Merged):
            for name, resource in part.resources.items():
                resources.setdefault(name, resource)
        else:
            for resource in part.resources:
                resources.setdefault(resource.name, resource)
        findings.update(dict.fromkeys(part.findings))
    return Merged(resources, tuple(findings))


class Owned(NamedTuple):
    """A service that a viewer reaches."""

    host: str
    service: Key
    ports: frozenset[int]
    """Of the service, those that are reached."""

    def reached(self, part: Part) -> Part:
        """Resources of these ports; the name of each begins with `outbound|PORT|`."""
        kept = [r for r in part.resources if int(r.name.split("|", 2)[1]) in self.ports]
        return part if len(kept) == len(part.resources) else Part(tuple(kept), part.findings)


def visible_owners(reader: Reader, viewer: Viewer) -> dict[str, tuple[Owned, ...]]:
    """Node: services that a viewer reaches by their namespace."""
    out: dict[str, list[Owned]] = {}
    for host, ref in reader.node(reachable_services, viewer).items():
        ports = frozenset(port.number for port in ref.row.ports)
        out.setdefault(ref.row.namespace, []).append(Owned(host, ref.key, ports))
    return {owner: tuple(members) for owner, members in sorted(out.items())}


def owned_services(reader: Reader, viewer: Viewer, owner: str) -> tuple[Owned, ...]:
    """Node: one namespace of `visible_owners`."""
    return reader.node(visible_owners, viewer).get(owner, ())


def rules_for(
    reader: Reader, viewer: str, owner: str, host: str, selected: frozenset[Key]
) -> tuple[Key, ...]:
    """Node: `find_rules`."""
    return find_rules(reader, viewer, owner, host, selected)


def owner_clusters(reader: Reader, view: View, owner: str, style: ClusterStyle) -> Merged:
    """Node: clusters of one namespace's services as a view sees them."""
    return _merge(
        owned.reached(
            reader.node(
                service_clusters,
                owned.service,
                reader.node(rules_for, view.namespace, owner, owned.host, view.rules),
                style,
            )
        )
        for owned in reader.node(owned_services, view.viewer, owner)
    )


def owner_assignments(reader: Reader, view: View, owner: str, style: ClusterStyle) -> Merged:
    """Node: endpoints of one namespace's services, for those clusters that take them by EDS."""
    parts = []
    for owned in reader.node(owned_services, view.viewer, owner):
        rules = reader.node(rules_for, view.namespace, owner, owned.host, view.rules)
        if reader.node(takes_endpoints, owned.service, style):
            parts.append(owned.reached(reader.node(service_assignments, owned.service, rules)))
    return _merge(parts)


def takes_endpoints(reader: Reader, service: Key, style: ClusterStyle) -> bool:
    """Node: clusters of a service get their endpoints by EDS."""
    row = reader.get(service)
    if row is None or row.external_name or row.resolution != "STATIC":
        return False
    return not (row.headless and style.captured)


def outbound_clusters(reader: Reader, view: View, style: ClusterStyle) -> Merged:
    """Node: clusters of everything that a view sees."""
    owners = reader.node(visible_owners, view.viewer)
    return _merge(
        [
            reader.node(fixed_clusters, style),
            *(reader.node(owner_clusters, view, owner, style) for owner in owners),
        ]
    )


def outbound_assignments(reader: Reader, view: View, style: ClusterStyle) -> Merged:
    """Node: endpoints of everything that a view sees."""
    owners = reader.node(visible_owners, view.viewer)
    return _merge(reader.node(owner_assignments, view, owner, style) for owner in owners)


def captured_routes(reader: Reader, view: View) -> Merged:
    """Node: route configurations that the listeners for captured traffic ask for."""
    plan = reader.node(capture_plan, view)
    return _merge(
        reader.node(sniffed_routes, view, host, port)
        if host
        else reader.node(port_routes, view, port)
        for _, host, port in plan.route_names()
    )


def extensions(reader: Reader, security: Security) -> Merged:
    """Node: filters that come by ECDS, for workloads that follow the same objects."""
    return _merge([reader.node(security_extensions, security)])


# --------------------------------------------------------------------------- proxies


def compile_proxy(reader: Reader, proxy: ProxyKeys) -> Snapshot:
    """Node: everything that a proxy gets.

    `engine.get(compile_proxy, proxy)`; two proxies of one class get the same Resource objects. What
    cannot be compiled is in `findings`; a fault in one object does not take down another.
    """
    view = outbound_view(reader, proxy)
    style = ClusterStyle(proxy.type == ROUTER, proxy.captured, proxy.dual_stack)
    clusters = [reader.node(outbound_clusters, view, style)]
    endpoints = reader.node(outbound_assignments, view, style)
    if proxy.type == ROUTER:
        return _router(reader, proxy, view, clusters, endpoints)
    name, _ = canonical_service(proxy.label_map, proxy.workload)
    inbound = inbound_view(reader, proxy)
    app_address = proxy.app_address if not proxy.captured else ""
    own = _merge([reader.node(inbound_clusters, inbound, app_address)])
    listeners: list[Part | Merged] = []
    routes: list[Part | Merged] = [reader.node(inbound_routes, inbound)]
    if proxy.captured:
        listeners.append(reader.node(captured_listeners, view, name))
        listeners.append(reader.node(virtual_inbound, inbound))
        routes.append(reader.node(captured_routes, view))
    else:
        listeners.append(reader.node(bound_listeners, inbound, proxy.ips))
        if proxy.http_proxy_port:
            bind = proxy.http_proxy_address or "127.0.0.1"
            listeners.append(
                reader.node(http_proxy_listener, view, bind, proxy.http_proxy_port, name)
            )
            routes.append(reader.node(http_proxy_routes, view))
    return _snapshot(
        _merge([*clusters, own]),
        endpoints,
        _merge(listeners),
        _merge(routes),
        reader.node(extensions, security_of(reader, proxy)),
    )


def _router(
    reader: Reader, proxy: ProxyKeys, view: View, clusters: list[Merged], endpoints: Merged
) -> Snapshot:
    binds = proxy.ips if proxy.capture == CAPTURE_PROXY else ()
    part = reader.node(router_resources, proxy.as_class(), view, binds)
    listeners = Part(tuple(r for r in part.resources if r.type_url == LDS), part.findings)
    routes = Part(tuple(r for r in part.resources if r.type_url == RDS))
    return _snapshot(
        _merge(clusters),
        endpoints,
        _merge([listeners]),
        _merge([routes]),
        reader.node(extensions, security_of(reader, proxy)),
        tuple(sorted(part.secrets)),
    )


def _snapshot(
    clusters: Merged,
    endpoints: Merged,
    listeners: Merged,
    routes: Merged,
    extended: Merged,
    secrets: tuple[SecretNeed, ...] = (),
) -> Snapshot:
    findings: dict[Finding, None] = {}
    for part in (clusters, endpoints, listeners, routes, extended):
        findings.update(dict.fromkeys(part.findings))
    return Snapshot(
        {
            CDS: clusters.resources,
            EDS: endpoints.resources,
            LDS: listeners.resources,
            RDS: routes.resources,
            ECDS: extended.resources,
        },
        (*MESH_SECRETS, *secrets),
        tuple(sorted(findings)),
    )


__all__ = [
    "MESH_SECRETS",
    "Finding",
    "ProxyKeys",
    "SecretNeed",
    "Snapshot",
    "compile_proxy",
    "proxy_of_instance",
    "proxy_of_json",
]
