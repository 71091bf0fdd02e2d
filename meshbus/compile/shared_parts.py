"""Parts of snapshots: nodes that proxies share, each a layer of one resource type.

A node for a view is thin: it finds out what the view reaches and hands over to a node of exactly
that, which other views that reach the same share.
"""

from collections.abc import Iterable, Iterator

from envoy.config.listener.v3 import listener_pb2

from meshbus.compile.authorization import policy_heads
from meshbus.compile.cluster_secrets import cluster_secrets
from meshbus.compile.clusters import (
    ClusterStyle,
    fixed_clusters,
    named_clusters,
    service_clusters,
)
from meshbus.compile.credentials import SecretNeed, united
from meshbus.compile.endpoints import (
    crosses_networks,
    named_assignments,
    prefers_zones,
    ranks_by_place,
    service_assignments,
)
from meshbus.compile.engine import Reader
from meshbus.compile.extensions import extension_heads, extension_resource, extensions_of
from meshbus.compile.findings import Finding, Part
from meshbus.compile.gateway_servers import Router
from meshbus.compile.gateways import passes_by_name, router_listeners, router_routes
from meshbus.compile.layers import NO_RESOURCES, Layer, layer_of
from meshbus.compile.legacy_authentication import any_policy
from meshbus.compile.legacy_rbac import rbac_scope
from meshbus.compile.locality import Place, stays_in_cluster
from meshbus.compile.outbound import capture_plan
from meshbus.compile.reach import Reach, Reached, reaches
from meshbus.compile.request_authentication import authentication_heads
from meshbus.compile.resources import LDS, Resource, encode
from meshbus.compile.route_tables import port_routes
from meshbus.compile.security_filters import (
    Security,
    connection_rules,
    end_connections_with,
    security_extensions,
    security_of,
)
from meshbus.compile.settings import mesh
from meshbus.compile.targets import GATEWAY_NAME, Labels, Target
from meshbus.compile.virtual_hosts import View, sniffed_routes
from meshbus.model.keys import Key
from meshbus.model.rows import Service


class SharedPart:
    """One layer with what was found on the way. Layers are compared by identity: equal ones are
    one object."""

    __slots__ = ("findings", "resources")

    def __init__(self, resources: Layer, findings: tuple[Finding, ...] = ()) -> None:
        self.resources = resources
        self.findings = findings

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, SharedPart)
            and self.resources is other.resources
            and self.findings == other.findings
        )

    __hash__ = None  # type: ignore[assignment]


NO_PART = SharedPart(NO_RESOURCES)


def merged(parts: Iterable[Part | SharedPart]) -> SharedPart:
    """Several parts as one; of two resources of one name the first stays."""
    resources: dict[str, Resource] = {}
    findings: dict[Finding, None] = {}
    for part in parts:
        if part.findings:
            findings.update(dict.fromkeys(part.findings))
        if isinstance(part, Part):
            for resource in part.resources:
                resources.setdefault(resource.name, resource)
        elif resources.keys().isdisjoint(part.resources):
            resources.update(part.resources)
        else:
            for name, resource in part.resources.items():
                resources.setdefault(name, resource)
    return SharedPart(layer_of(resources), tuple(findings))


# --------------------------------------------------------------------------- clusters, endpoints


def reach_clusters(reader: Reader, reach: Reach, style: ClusterStyle) -> SharedPart:
    """Node: clusters of one namespace's services."""
    parts = []
    for m in reach.members:
        own = style._replace(place=_place_for(reader, m, style.place))
        parts.append(m.limited(reader.node(service_clusters, m.service, m.rules, own)))
    return merged(parts)


def reach_assignments(
    reader: Reader, reach: Reach, captured: bool, place: Place | None
) -> SharedPart:
    """Node: endpoints of one namespace's services, for those clusters that take them by EDS."""
    parts = []
    for m, whole in reader.node(assigned_members, reach, captured):
        own = _place_for(reader, m, place)
        part = reader.node(service_assignments, m.service, m.rules, own)
        parts.append(part if whole else m.limited(part))
    return merged(parts)


def assigned_members(
    reader: Reader, reach: Reach, captured: bool
) -> tuple[tuple[Reached, bool], ...]:
    """Node: services of one namespace whose clusters take endpoints by EDS, and whether they are
    reached at all of their ports."""
    out = []
    for m in reach.members:
        row: Service | None = reader.get(m.service)
        if row is not None and _takes_endpoints(row, captured):
            out.append((m, m.ports.issuperset(port.number for port in row.ports)))
    return tuple(out)


def _place_for(reader: Reader, member: Reached, place: Place | None) -> Place | None:
    """The place of a proxy, as far as the endpoints of a service are chosen by it."""
    if place is None:
        return None
    if not (place.network and reader.node(crosses_networks, member.service)):
        place = place._replace(network="")
    if not (place.cluster and reader.node(stays_in_cluster, member.host)):
        place = place._replace(cluster="")
    if place.said and not reader.node(prefers_zones, member.service, member.rules):
        place = place._replace(said="")
    if place.ranked and reader.node(ranks_by_place, member.service, member.rules):
        return place
    if not place.network and not place.cluster:
        return None
    return Place("", (), place.network, False, place.cluster)


def _takes_endpoints(row: Service, captured: bool) -> bool:
    if row.external_name or row.resolution != "STATIC":
        return False
    return not (row.headless and captured)


def joined_clusters(reader: Reader, reached: tuple[Reach, ...], style: ClusterStyle) -> SharedPart:
    """Node: clusters of all that is reached, and the fixed ones."""
    parts = [reader.node(reach_clusters, reach, style) for reach in reached]
    fixed = style._replace(place=None, zoned=False)
    return merged([reader.node(fixed_clusters, fixed), *parts])


def joined_assignments(
    reader: Reader, reached: tuple[Reach, ...], captured: bool, place: Place | None
) -> SharedPart:
    """Node: endpoints of all that is reached."""
    return merged(reader.node(reach_assignments, reach, captured, place) for reach in reached)


def outbound_clusters(reader: Reader, view: View, style: ClusterStyle) -> SharedPart:
    """Node: clusters of everything that a view sees."""
    return reader.node(joined_clusters, reader.node(reaches, view), style)


def outbound_assignments(
    reader: Reader, view: View, captured: bool, place: Place | None
) -> SharedPart:
    """Node: endpoints of everything that a view sees, for proxies at a place."""
    return reader.node(joined_assignments, reader.node(reaches, view), captured, place)


# --------------------------------------------------------------------------- routes, filters


def captured_routes(reader: Reader, view: View) -> SharedPart:
    """Node: route configurations that the listeners for captured traffic ask for."""
    plan = reader.node(capture_plan, view)
    return merged(
        reader.node(sniffed_routes, view, host, port)
        if host
        else reader.node(port_routes, view, port)
        for _, host, port in plan.route_names()
    )


def extensions(reader: Reader, security: Security, more: tuple[tuple[Key, str], ...]) -> SharedPart:
    """Node: filters that come by ECDS, for workloads that follow the same objects. `more`: objects
    of extensions.istio.io and their kinds."""
    own = [reader.node(extension_resource, key, kind) for key, kind in more]
    return merged([reader.node(security_extensions, security), *own])


def labels_that_count(reader: Reader, namespace: str, labels: Labels) -> Labels:
    """Node: those labels of a workload that decide which filters it gets by ECDS, so that workloads
    which differ in others share them. All labels where objects of Istio 1.4 go by services."""
    if any_policy(reader, namespace) or reader.node(rbac_scope)[0].mode != "OFF":
        return labels
    chosen, gateways = reader.node(selected_labels, namespace)
    return tuple(
        pair for pair in labels if pair in chosen or (gateways and pair[0] == GATEWAY_NAME)
    )


def selected_labels(reader: Reader, namespace: str) -> tuple[frozenset[tuple[str, str]], bool]:
    """Node: labels that objects of a namespace, or of the root namespace, select workloads by for
    filters that come by ECDS; and whether some are attached to Gateways."""
    targets: list[Target] = []
    for owner in dict.fromkeys((reader.node(mesh).root_namespace, namespace)):
        targets += [head.target for head in reader.node(policy_heads, owner)]
        targets += [head.target for head in reader.node(authentication_heads, owner)]
        targets += [head.target for head in reader.node(extension_heads, owner)]
    pairs = frozenset(pair for target in targets for pair in target.selector)
    return pairs, any(target.gateways for target in targets)


def workload_extensions(reader: Reader, namespace: str, labels: Labels) -> SharedPart:
    """Node: filters that come by ECDS for workloads whose `labels_that_count` are these."""
    more = tuple(sorted((e.key, e.kind) for e in extensions_of(reader, namespace, labels)))
    return reader.node(extensions, security_of(reader, namespace, labels), more)


# --------------------------------------------------------------------------- routers


def listeners_of_router(
    reader: Reader, router: Router, view: View, binds: tuple[str, ...]
) -> SharedPart:
    """Node: listeners of a router."""
    part = reader.node(router_listeners, router, view, binds).part
    security = security_of(reader, router.proxy.namespace, router.proxy.labels)
    rules = reader.node(connection_rules, security)
    listeners = tuple(_with_rules(reader, listener, rules) for listener in part.resources)
    return merged([Part(listeners, part.findings)])


def _with_rules(reader: Reader, resource: Resource, rules: str) -> Resource:
    """A router's listener whose TCP connections end with the rules that let them in. Here, so that
    listeners of HTTP are not made again when a policy changes."""
    if not rules:
        return resource
    listener = listener_pb2.Listener.FromString(resource.body)
    if not end_connections_with(listener.filter_chains, rules):
        return resource
    return encode(reader, LDS, resource.name, listener, resource.origins)


def routes_of_router(
    reader: Reader, router: Router, view: View, binds: tuple[str, ...]
) -> SharedPart:
    """Node: route configurations of a router."""
    return merged(reader.node(router_routes, router, view, binds))


def router_clusters(
    reader: Reader, router: Router, view: View, style: ClusterStyle, network: str
) -> SharedPart:
    """Node: clusters of a router for connections that name a service by SNI, as seen from a
    network; and what is wrong with the secrets of its clusters."""
    findings = Part((), reader.node(cluster_secrets, view, True).findings)
    if not reader.node(passes_by_name, router):
        return merged([findings]) if findings.findings else NO_PART
    named = []
    for m in _members(reader, view):
        own = style._replace(place=_place_for(reader, m, style.place))
        named.append(reader.node(named_clusters, m.service, m.rules, own, network))
    return merged([findings, *named])


def router_assignments(
    reader: Reader, router: Router, view: View, network: str, place: Place | None
) -> SharedPart:
    """Node: endpoints of those clusters, for routers at a place."""
    if not reader.node(passes_by_name, router):
        return NO_PART
    parts = []
    for m in _members(reader, view):
        own = _place_for(reader, m, place)
        parts.append(reader.node(named_assignments, m.service, m.rules, network, own))
    return merged(parts)


def _members(reader: Reader, view: View) -> Iterator[Reached]:
    for reach in reader.node(reaches, view):
        yield from reach.members


def router_secrets(
    reader: Reader, router: Router, view: View, binds: tuple[str, ...]
) -> tuple[SecretNeed, ...]:
    """Node: secrets that the Gateways of a router name, and the rules of what it calls."""
    gateways = reader.node(router_listeners, router, view, binds).secrets
    return united([*gateways, *reader.node(cluster_secrets, view, True).needs])


def selected_secrets(reader: Reader, view: View) -> tuple[SecretNeed, ...]:
    """Node: secrets that the rules for a sidecar of its own name."""
    return reader.node(cluster_secrets, view, False).needs


def selected_findings(reader: Reader, view: View) -> SharedPart:
    """Node: what is wrong with those."""
    return merged([Part((), reader.node(cluster_secrets, view, False).findings)])
