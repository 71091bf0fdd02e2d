"""Zones: what a proxy has to know of its own kind, so that its Envoy can prefer a zone.

A zone gets as many calls from its own proxies as its share of the endpoints is worth: so Envoy
compares, zone by zone, the endpoints of a service with the callers. The callers are the endpoints
of `LOCAL_CLUSTER`: the instances that are what the proxy is, in its region.

Source: https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/zone_aware;
Istio, ZoneAwareLoadBalancerSetting reference, and the change that brought it (istio/istio#60765).
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from meshbus.compile.clusters import MESH
from meshbus.compile.endpoints import assignment, bare_endpoint, prefers_zones, shards_of
from meshbus.compile.engine import Reader
from meshbus.compile.findings import Finding
from meshbus.compile.inbound import namespace_services, serves
from meshbus.compile.layers import NO_RESOURCES, layer_of
from meshbus.compile.locality import BY_REGION, Labels, Place, is_on, split_locality, zones_decide
from meshbus.compile.names import LOCAL_CLUSTER, UDP
from meshbus.compile.proxy_keys import SELF_DISCOVERY, ProxyKeys
from meshbus.compile.reach import reaches
from meshbus.compile.resources import EDS, resource_of
from meshbus.compile.settings import mesh
from meshbus.compile.shared_parts import SharedPart
from meshbus.compile.traffic_policy import merged_rule
from meshbus.compile.virtual_hosts import View
from meshbus.compile.visibility import age
from meshbus.model.rows import Service

GROUPING = "SELF_DISCOVERY_GROUPING_LABEL_NAMES"
"""Metadata, as Istio's: which labels instances of a kind share, instead of `_GENERATION`."""
_GENERATION = ("pod-template-hash", "rollouts-pod-template-hash")
"""Labels by which the versions of a service, and the generations of a version, differ."""


class Kind(NamedTuple):
    """What a proxy and its like have in common; replicas of a zone share it."""

    namespace: str
    host: str
    """The first service that leads to them."""
    port: str
    """Name of its first port."""
    labels: Labels
    """What they have in common besides; an empty value is none."""
    place: Place
    """Without what concerns only endpoints of others."""


def zones_concern(reader: Reader, view: View) -> bool:
    """Node: zones decide which endpoints of some service are called that a view reaches."""
    if not reader.node(zones_decide):
        return False
    everywhere = is_on(reader.node(mesh).zone_aware_lb)
    return any(
        reader.node(prefers_zones, m.service, m.rules)
        for reach in reader.node(reaches, view)
        for m in reach.members
        if m.rules or everywhere
    )


def kind_of(reader: Reader, proxy: ProxyKeys, place: Place) -> Kind | None:
    """The kind of a proxy at a place; None: no service leads to it.

    Source: Istio, the first of a proxy's service targets: the oldest.
    """
    for ref in sorted(reader.node(namespace_services, proxy.namespace), key=age):
        row: Service = ref.row
        port = next((port.name for port in row.ports if port.protocol != UDP), None)
        if port is not None and serves(reader, row, proxy):
            said = dict(proxy.metadata).get(GROUPING, "")
            names = tuple(name.strip() for name in said.split(",") if name.strip())
            held = proxy.label_map
            labels = tuple((name, held.get(name, "")) for name in names or _GENERATION)
            where = Place(place.locality, (), said=place.said)
            return Kind(row.namespace, row.host, port, labels, where)
    return None


def why_blind(proxy: ProxyKeys, place: Place | None, kind: Kind | None) -> str:
    """Why a proxy cannot prefer its zone, whatever rules say; empty: it can."""
    if not proxy.has_local_cluster:
        return f"proxies that were started without {SELF_DISCOVERY} do not know zones"
    if place is None or not place.locality:
        return "proxies whose locality is not known have no zone to prefer"
    if kind is None:
        return "proxies that no Service leads to do not know the zones of their own kind"
    return ""


def unheeded_zones(reader: Reader, view: View, why: str) -> SharedPart:
    """Node: what is said of zones to proxies that cannot heed them, by the rules that they follow
    and by the mesh config."""
    found: dict[Finding, None] = {}
    if is_on(reader.node(mesh).zone_aware_lb):
        found[Finding(MESH, "zoneAwareLbSetting", why)] = None
    for reach in reader.node(reaches, view):
        for rules in {m.rules: None for m in reach.members if m.rules}:
            rule = reader.node(merged_rule, rules)
            parts = [(subset.policy, subset.origin, subset.path) for subset in rule.subsets]
            if rule.policy_origin is not None:
                parts.insert(0, (rule.policy, rule.policy_origin, "spec"))
            for policy, origin, path in parts:
                for at in _zones_in(policy, f"{path}.trafficPolicy"):
                    found[Finding(origin, at, why)] = None
    return SharedPart(NO_RESOURCES, tuple(found))


def _zones_in(policy: Mapping[str, Any], path: str) -> Iterator[str]:
    """Where a traffic policy asks for zones."""
    ports = enumerate(policy.get("portLevelSettings") or ())
    places = [(policy, path), *((one, f"{path}.portLevelSettings[{n}]") for n, one in ports)]
    for holder, at in places:
        if is_on((holder.get("loadBalancer") or {}).get("zoneAwareLbSetting")):
            yield f"{at}.loadBalancer.zoneAwareLbSetting"


def own_kind(reader: Reader, kind: Kind) -> SharedPart:
    """Node: the endpoints of `LOCAL_CLUSTER`. Envoy counts them and calls none."""
    region = split_locality(kind.place.locality)[0]
    found: dict[str, tuple[str, int]] = {}
    for shard in reader.node(shards_of, kind.namespace, kind.host):
        row = reader.get(shard)
        for endpoint in () if row is None else row.endpoints:
            port = endpoint.ports.get(kind.port)
            if (
                port is not None
                and endpoint.ready
                and endpoint.addresses
                and split_locality(endpoint.locality)[0] == region
                and all(endpoint.labels.get(name, "") == value for name, value in kind.labels)
            ):
                found.setdefault(endpoint.addresses[0], (endpoint.locality, port))
    members = [
        bare_endpoint(address, port)._replace(locality=locality)
        for address, (locality, port) in sorted(found.items())
    ]
    reader.encoded("eds")
    data = assignment(LOCAL_CLUSTER, members, BY_REGION, kind.place)
    resource = resource_of(EDS, LOCAL_CLUSTER, data)
    return SharedPart(layer_of({LOCAL_CLUSTER: resource}))
