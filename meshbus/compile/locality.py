"""Locality: which of a service's endpoints a proxy prefers by where both are.

Source: Istio, LocalityLoadBalancerSetting reference; pilot/pkg/networking/core/loadbalancer of
1.31 where the reference is silent (ranks, rounding, which setting is in force).
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

from meshbus.compile.engine import Reader
from meshbus.compile.names import CLUSTER_DOMAIN, most_specific
from meshbus.compile.networks import networks
from meshbus.compile.settings import MeshSettings, mesh
from meshbus.model.rows import Service
from meshbus.model.world import TRAFFIC_DISTRIBUTION, Query

REGION = "topology.kubernetes.io/region"
ZONE = "topology.kubernetes.io/zone"
SUB_ZONE = "topology.istio.io/subzone"
NETWORK = "topology.istio.io/network"
CLUSTER = "topology.istio.io/cluster"
HOSTNAME = "kubernetes.io/hostname"
_CLOSE = (NETWORK, REGION, ZONE, SUB_ZONE)
_DISTRIBUTIONS = {
    "PreferClose": _CLOSE,
    "PreferSameZone": _CLOSE,
    "PreferSameNode": (*_CLOSE, HOSTNAME),
}

Labels = tuple[tuple[str, str], ...]


class Place(NamedTuple):
    """Where a proxy is, as far as something in the mesh asks for it."""

    locality: str
    """`region/zone/subzone`."""
    labels: Labels
    """Of the proxy, with those that say its topology; only those that `failoverPriority` names."""
    network: str = ""
    """Where some endpoints are in other networks: that of the proxy."""
    ranked: bool = True
    """Endpoints are ranked by where it is."""
    cluster: str = ""
    """Where calls to some services stay in their cluster: that of the proxy."""
    said: str = ""
    """Where zones decide: the locality that its Envoy takes for its own, if that is another one.
    What is in the proxy's locality is then told to be there."""


class Ranking(NamedTuple):
    """How the endpoints of one cluster are ranked."""

    distribute: tuple[tuple[str, tuple[tuple[str, int], ...]], ...]
    """(locality of callers, ((locality of endpoints, weight), ...))."""
    failover: tuple[tuple[str, str], ...]
    """(region of callers, region that takes over)."""
    priority: tuple[str, ...]
    """`failoverPriority`: labels, or `LABEL=VALUE`."""
    zones: bool = False
    """Only regions are ranked: among the zones of one Envoy chooses by itself."""

    @property
    def weighted(self) -> bool:
        """Envoy shall keep to the weights of localities."""
        return not self.zones and bool(self.distribute or self.failover or self.priority)


BY_REGION = Ranking((), (), (), True)
"""Zones decide, and nothing else is said."""


class Located(Protocol):
    """What can be ranked."""

    @property
    def locality(self) -> str: ...
    @property
    def weight(self) -> int: ...
    @property
    def labels(self) -> frozenset[tuple[str, str]]: ...


M = TypeVar("M", bound=Located)


class Group(NamedTuple):
    """Endpoints of one locality and rank."""

    locality: str
    priority: int
    """0 is called first."""
    weight: int
    members: tuple[Any, ...]


def split_locality(locality: str) -> tuple[str, str, str]:
    """Region, zone and sub-zone; empty where they are not given."""
    region, _, rest = locality.partition("/")
    zone, _, sub_zone = rest.partition("/")
    return region, zone, sub_zone


def topology_labels(
    labels: Mapping[str, str], locality: str, network: str, cluster: str, node: str = ""
) -> dict[str, str]:
    """Labels of a workload, with those that say where it runs.

    Source: Istio, labelutil.AugmentLabels.
    """
    region, zone, sub_zone = split_locality(locality)
    where = {
        REGION: region,
        ZONE: zone,
        SUB_ZONE: sub_zone,
        NETWORK: network,
        CLUSTER: cluster,
        HOSTNAME: node,
    }
    return {**labels, **{name: value for name, value in where.items() if value}}


# --------------------------------------------------------------------------- settings in force


def zone_setting(
    policy: Mapping[str, Any], settings: MeshSettings, row: Service
) -> Mapping[str, Any] | None:
    """`zoneAwareLbSetting` in force for a service under a traffic policy, which comes before the
    service's trafficDistribution, and that before the mesh's; None: nobody speaks of zones.

    Source: Istio, ZoneAwareLoadBalancerSetting reference.
    """
    balancer = policy.get("loadBalancer") or {}
    own: Mapping[str, Any] | None = balancer.get("zoneAwareLbSetting")
    if own is not None:
        return own
    if balancer.get("localityLbSetting") is not None or distribution_of(row):
        return None
    return settings.zone_aware_lb


def is_on(setting: Mapping[str, Any] | None) -> bool:
    """A setting that is written is on unless it says otherwise."""
    return setting is not None and setting.get("enabled") is not False


def ranking_of(policy: Mapping[str, Any], settings: MeshSettings, row: Service) -> Ranking | None:
    """How endpoints of a service are ranked under a traffic policy; None: locality is of no matter.

    The policy's setting comes before the service's trafficDistribution, and that before the mesh's.
    Failover needs outlier detection, for without it Envoy never notices that a locality fails;
    trafficDistribution does without. Where zones decide, regions are ranked in any case.
    """
    zones = zone_setting(policy, settings, row)
    if zones is not None and is_on(zones):
        return Ranking((), _failover(zones), _priority(zones), True)
    own = (policy.get("loadBalancer") or {}).get("localityLbSetting")
    forced = False
    if own is not None:
        setting = own
    elif distribution_of(row):
        setting, forced = {"failoverPriority": distribution_of(row)}, True
    else:
        setting = settings.locality_lb
    if setting.get("enabled") is False:
        return None
    distribute = tuple(
        (str(d.get("from") or ""), tuple((str(t), int(w)) for t, w in (d.get("to") or {}).items()))
        for d in setting.get("distribute") or ()
    )
    if distribute:
        return Ranking(distribute, (), ())
    if not forced and policy.get("outlierDetection") is None:
        return None
    return Ranking((), _failover(setting), _priority(setting))


def _failover(setting: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (str(f.get("from") or ""), str(f.get("to") or "")) for f in setting.get("failover") or ()
    )


def _priority(setting: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(p) for p in setting.get("failoverPriority") or ())


def distribution_of(row: Service) -> tuple[str, ...]:
    """Labels by which a service's trafficDistribution ranks; empty without one."""
    return _DISTRIBUTIONS.get(row.annotations.get(TRAFFIC_DISTRIBUTION, ""), ())


def place_of(
    reader: Reader,
    locality: str,
    labels: Mapping[str, str],
    network: str,
    cluster: str,
    at: str,
    said: str = "",
) -> Place | None:
    """Where a proxy is; None while nothing in the mesh asks for it, so that proxies in different
    places share everything. `at`: its address; `said`: where its Envoy thinks that it is."""
    wanted = reader.node(ranking_labels)
    known = reader.node(networks)
    reached = known.network_of(network, cluster, at) if known.gateways else ""
    held = cluster if reader.node(mesh).cluster_local else ""
    if wanted is None:
        return Place("", (), reached, False, held) if reached or held else None
    where = topology_labels(labels, locality, network, cluster)
    named = tuple(sorted((k, v) for k, v in where.items() if k in wanted))
    if said == locality or not reader.node(zones_decide):
        said = ""
    return Place(locality, named, reached, cluster=held, said=said)


_OF_CLUSTERS = {
    f"*.kube-system.svc.{CLUSTER_DOMAIN}": True,
    f"kubernetes.default.svc.{CLUSTER_DOMAIN}": True,
}
"""What every cluster has for itself. Source: Istio, clusterLocalProvider."""


def stays_in_cluster(reader: Reader, host: str) -> bool:
    """Node: calls to a host stay in the cluster of the caller: the most specific of the hosts of
    `serviceSettings` says so. Without any, and without a second cluster, nobody asks."""
    said = reader.node(mesh).cluster_local
    hosts = {**_OF_CLUSTERS, **dict(said)} if said else {}
    found = most_specific(hosts, host)
    return found is not None and hosts[found]


def zones_decide(reader: Reader) -> bool:
    """Node: for some service of the mesh zones may decide which endpoints are called."""
    if is_on(reader.node(mesh).zone_aware_lb):
        return True
    return any(
        is_on((policy.get("loadBalancer") or {}).get("zoneAwareLbSetting"))
        for entry in reader.entries(Query("cfg.destinationrules", "zones", True))
        for policy in _policies(entry.row.spec)
    )


def ranking_labels(reader: Reader) -> frozenset[str] | None:
    """Node: labels that some `failoverPriority` names; None: nothing ranks by place."""
    settings = reader.node(mesh)
    common = _labels_in(settings.locality_lb)
    if is_on(settings.zone_aware_lb):
        common = (common or frozenset()) | _named_in(settings.zone_aware_lb or {})
    rules = reader.entries(Query("cfg.destinationrules", "ranking", True))
    services = reader.entries(Query("reg.services", "ranking", True))
    if common is None and not rules and not services:
        return None
    found = set(common or ())
    for entry in rules:
        for policy in _policies(entry.row.spec):
            balancer = policy.get("loadBalancer") or {}
            found |= _labels_in(balancer.get("localityLbSetting") or {}) or set()
            found |= _named_in(balancer.get("zoneAwareLbSetting") or {})
    for entry in services:
        found.update(distribution_of(entry.row))
    return frozenset(found)


def _labels_in(setting: Mapping[str, Any]) -> frozenset[str] | None:
    if setting.get("distribute"):
        return frozenset()
    return _named_in(setting) or None


def _named_in(setting: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(name.partition("=")[0] for name in _priority(setting))


def _policies(spec: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    for holder in (spec, *(spec.get("subsets") or ())):
        policy = holder.get("trafficPolicy") or {}
        yield policy
        yield from policy.get("portLevelSettings") or ()


# --------------------------------------------------------------------------- ranking


def arranged(members: Iterable[M], ranking: Ranking | None, place: Place | None) -> list[Group]:
    """Endpoints by locality and rank, in order of both; ranks run from 0 without a gap."""
    groups: dict[str, list[M]] = {}
    for member in members:
        groups.setdefault(member.locality, []).append(member)
    held = [_group(locality, 0, groups[locality]) for locality in sorted(groups)]
    if ranking is None or place is None:
        return held
    if ranking.distribute:
        return _distributed(held, ranking, place)
    if ranking.priority:
        held = _without_gaps(
            [part for group in held for part in _by_labels(group, ranking.priority, place)]
        )
        if not (ranking.failover or ranking.zones):
            return held
    return _without_gaps(
        [
            group._replace(priority=group.priority * 5 + _distance(group, ranking, place))
            for group in held
        ]
    )


def _group(locality: str, priority: int, members: Iterable[M]) -> Group:
    listed = tuple(members)
    return Group(locality, priority, sum(m.weight for m in listed), listed)


def locality_matches(locality: str, pattern: str) -> bool:
    """A locality is one of `region/zone/sub-zone`, where `*` and what is left out stand for any."""
    parts = zip(split_locality(locality), split_locality(pattern), strict=True)
    return all(
        wanted in ("*", part) or (wanted == "" and index > 0)
        for index, (part, wanted) in enumerate(parts)
    )


def _distributed(groups: list[Group], ranking: Ranking, place: Place) -> list[Group]:
    """Weights of the first rule for the proxy's locality; endpoints that it does not name get
    nothing. Several localities under one pattern share its weight by their own."""
    for source, targets in ranking.distribute:
        if not locality_matches(place.locality, source):
            continue
        left = list(groups)
        out = []
        for pattern, weight in sorted(targets, key=lambda t: (t[0].count("*"), t[0])):
            matched = [g for g in left if locality_matches(g.locality, pattern)]
            left = [g for g in left if g not in matched]
            total = sum(g.weight for g in matched)
            # Rounded up: a locality with a share never gets nothing.
            out += [g._replace(weight=-(-g.weight * weight // total)) for g in matched]
        return sorted(out, key=lambda g: g.locality)
    return groups


def _by_labels(group: Group, priority: tuple[str, ...], place: Place) -> list[Group]:
    """One locality cut by how many labels, in order, equal the proxy's."""
    own = dict(place.labels)
    ranks: dict[int, list[Any]] = {}
    for member in group.members:
        labels = dict(member.labels)
        rank = 0
        for index, text in enumerate(priority):
            name, equals, value = text.partition("=")
            if labels.get(name, "") != (value if equals else own.get(name, "")):
                rank = len(priority) - index
                break
        ranks.setdefault(rank, []).append(member)
    return [_group(group.locality, rank, ranks[rank]) for rank in sorted(ranks)]


def _distance(group: Group, ranking: Ranking, place: Place) -> int:
    """0: the same sub-zone, 1: zone, 2: region; 3: the region that takes over, or any when none is
    named for the proxy's; 4: the others. Where zones decide 0 is the whole region."""
    own, other = split_locality(place.locality), split_locality(group.locality)
    if own[0] == other[0]:
        if ranking.zones:
            return 0
        return 2 if own[1] != other[1] else 0 if own[2] == other[2] else 1
    for source, target in ranking.failover:
        if source == own[0]:
            return 3 if other[0] == target else 4
    return 3


def _without_gaps(groups: list[Group]) -> list[Group]:
    order = {p: i for i, p in enumerate(sorted({g.priority for g in groups}))}
    ranked = [group._replace(priority=order[group.priority]) for group in groups]
    return sorted(ranked, key=lambda g: (g.priority, g.locality))
