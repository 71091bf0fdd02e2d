"""Endpoints: rows of discovery to cluster load assignments."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from envoy.config.core.v3 import base_pb2, health_check_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2

from meshbus.compile.engine import Reader
from meshbus.compile.findings import Part
from meshbus.compile.locality import (
    CLUSTER,
    Place,
    Ranking,
    arranged,
    ranking_of,
    split_locality,
    topology_labels,
)
from meshbus.compile.names import UDP, ClusterName, spiffe
from meshbus.compile.networks import (
    Networks,
    gateway_endpoint,
    networks,
    weight_scale,
    with_weight,
)
from meshbus.compile.one_set import one_set
from meshbus.compile.peer_authentication import (
    DISABLE,
    Labels,
    MutualTls,
    labels_for_mutual_tls,
    modes,
)
from meshbus.compile.resources import EDS, Resource, field, resource_of
from meshbus.compile.settings import mesh
from meshbus.compile.traffic_policy import NO_RULE, merged_rule, policy_in_force
from meshbus.compile.values import address, uint32
from meshbus.model.keys import Key
from meshbus.model.rows import Endpoint, EndpointShard, Service
from meshbus.model.world import NETWORK_LABEL, Query

_CANONICAL_NAME = ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app")
_CANONICAL_REVISION = (
    "service.istio.io/canonical-revision",
    "app.kubernetes.io/version",
    "version",
)


class EncodedEndpoint(NamedTuple):
    """One endpoint at one service port, ready to be joined into an assignment."""

    locality: str
    weight: int
    labels: frozenset[tuple[str, str]]
    data: bytes
    """A `LocalityLbEndpoints.lb_endpoints` entry, with tag and length."""
    network: str = ""
    mutual: bool = False
    """It takes mutual TLS."""
    source: Endpoint | None = None
    """What it was encoded from, where that is one endpoint."""


def canonical_service(labels: dict[str, str], workload: str) -> tuple[str, str]:
    """Canonical name and revision of a workload, for telemetry.

    Source: Istio, pkg/model labels: CanonicalServiceName, CanonicalServiceRevision.
    """
    name = next((labels[k] for k in _CANONICAL_NAME if labels.get(k)), workload)
    revision = next((labels[k] for k in _CANONICAL_REVISION if labels.get(k)), "latest")
    return name, revision


def endpoint_metadata(endpoint: Endpoint, mutual: bool) -> bytes:
    """What the proxy knows of an endpoint, as a serialized `Metadata`: whether it takes mutual TLS,
    and whose it is.

    `istio.workload` is `name;namespace;canonical name;canonical revision;cluster`, as Istio's.
    """
    name, revision = canonical_service(endpoint.labels, endpoint.workload)
    parts = (endpoint.workload, endpoint.namespace, name, revision, endpoint.cluster)
    return _metadata(";".join(parts), mutual)


@functools.lru_cache(maxsize=1024)
def _metadata(workload: str, mutual: bool) -> bytes:
    """The same for all instances of a workload, of which one after the other comes and goes."""
    metadata = base_pb2.Metadata()
    metadata.filter_metadata["istio"]["workload"] = workload
    if mutual:
        metadata.filter_metadata["envoy.transport_socket_match"]["tlsMode"] = "istio"
    encoded: bytes = metadata.SerializeToString(deterministic=True)
    return encoded


def encode_endpoint(endpoint: Endpoint, port: int, mutual: bool, *, host: str = "") -> bytes:
    """One endpoint as an `lb_endpoints` entry. `host`: a name that the proxy resolves itself,
    instead of the addresses."""
    # Fields in the order of their numbers, as protobuf writes them: metadata is the third.
    lb = endpoint_components_pb2.LbEndpoint()
    first, *others = [host] if host else endpoint.addresses
    lb.endpoint.address.CopyFrom(address(first, port))
    for other in others:
        lb.endpoint.additional_addresses.add().address.CopyFrom(address(other, port))
    if endpoint.draining:
        lb.health_status = health_check_pb2.DRAINING
    head: bytes = lb.SerializeToString(deterministic=True)
    metadata = field(3, endpoint_metadata(endpoint, mutual))
    return field(2, head + metadata + _weight(endpoint.weight or 1))


@functools.lru_cache(maxsize=256)
def _weight(weight: int) -> bytes:
    """`LbEndpoint.load_balancing_weight`, with tag and length."""
    lb = endpoint_components_pb2.LbEndpoint(load_balancing_weight=uint32(weight))
    encoded: bytes = lb.SerializeToString(deterministic=True)
    return encoded


def crosses_networks(reader: Reader, service: Key) -> bool:
    """Node: some endpoints of a service are in networks that have gateways."""
    row: Service | None = reader.get(service)
    held = reader.node(networks)
    if row is None or not held.gateways:
        return False
    for shard in reader.node(shards_of, row.namespace, row.host):
        found = reader.get(shard)
        for endpoint in () if found is None else found.endpoints:
            if held.gateways_of(_network_of(held, endpoint)):
                return True
    return False


def _network_of(held: Networks, endpoint: Endpoint) -> str:
    where = endpoint.addresses[0] if endpoint.addresses else ""
    return held.network_of(endpoint.network, endpoint.cluster, where)


def reached_from(
    held: Networks, endpoints: Iterable[EncodedEndpoint], network: str
) -> list[EncodedEndpoint]:
    """What a proxy in a network calls: endpoints there, and the gateways of other networks in place
    of the endpoints in them. Those that do not take mutual TLS cannot be told apart by a gateway:
    they are left out."""
    near: list[EncodedEndpoint] = []
    far: dict[str, list[EncodedEndpoint]] = {}
    for endpoint in endpoints:
        if endpoint.network in ("", network) or not held.gateways_of(endpoint.network):
            if endpoint.data:
                near.append(endpoint)
        elif endpoint.mutual:
            far.setdefault(endpoint.locality, []).append(endpoint)
    if not far:
        return near
    scale = weight_scale(held)
    out = [
        e._replace(weight=e.weight * scale, data=field(2, with_weight(_bare(e), e.weight * scale)))
        for e in near
    ]
    for locality in sorted(far):
        weights: dict[str, int] = {}
        labels = dict[str, frozenset[tuple[str, str]]]()
        for endpoint in far[locality]:
            weights[endpoint.network] = weights.get(endpoint.network, 0) + endpoint.weight * scale
            labels[endpoint.network] = frozenset({(NETWORK_LABEL, endpoint.network)})
        for name in sorted(weights):
            for gateway in held.gateways_of(name):
                weight = weights[name] // len(held.gateways_of(name))
                data = field(2, gateway_endpoint(gateway, weight))
                out.append(EncodedEndpoint(locality, weight, labels[name], data, name, True))
    return out


def _bare(endpoint: EncodedEndpoint) -> bytes:
    """The LbEndpoint without tag and length."""
    group = endpoint_components_pb2.LocalityLbEndpoints.FromString(endpoint.data)
    encoded: bytes = group.lb_endpoints[0].SerializeToString(deterministic=True)
    return encoded


def shard_endpoints(reader: Reader, shard: Key, port_name: str) -> tuple[EncodedEndpoint, ...]:
    """Node: endpoints of one shard at one service port; those not ready are left out. Those that
    are as they were are not encoded again."""
    row = reader.get(shard)
    if row is None:
        return ()
    held = reader.node(networks)
    refuses = refusals_of_mutual_tls(reader)
    before = {_place_in_shard(e.source): e for e in reader.before() or ()}
    out = []
    for endpoint in row.endpoints:
        port = endpoint.ports.get(port_name)
        if port is None or not (endpoint.ready or endpoint.draining):
            continue
        network = _network_of(held, endpoint) if held.gateways else endpoint.network
        if not endpoint.addresses and not held.gateways_of(network):
            continue
        mutual = endpoint.tls_mode == "istio" and not refuses(endpoint, port)
        known = before.get(_place_in_shard(endpoint))
        if (
            known is None
            or known.mutual is not mutual
            or known.source != endpoint
            or known.network != network
        ):
            data = encode_endpoint(endpoint, port, mutual) if endpoint.addresses else b""
            made = encoded_endpoint(endpoint, data)
            known = made._replace(network=network, mutual=mutual, source=endpoint)
        out.append(known)
    return tuple(out)


def _place_in_shard(endpoint: Endpoint | None) -> tuple[str, str]:
    """What an endpoint is found again by; it may differ in all else."""
    assert endpoint is not None
    return endpoint.instance, endpoint.addresses[0] if endpoint.addresses else ""


def bare_endpoint(host: str, port: int) -> EncodedEndpoint:
    """A host that nothing more is known of."""
    lb = endpoint_components_pb2.LbEndpoint(load_balancing_weight=uint32(1))
    lb.endpoint.address.CopyFrom(address(host, port))
    data = field(2, lb.SerializeToString(deterministic=True))
    return EncodedEndpoint("", 1, frozenset(), data)


def encoded_endpoint(endpoint: Endpoint, data: bytes) -> EncodedEndpoint:
    """An endpoint of these bytes, with what it is chosen and ranked by."""
    labels = topology_labels(endpoint.labels, endpoint.locality, endpoint.network, endpoint.cluster)
    return EncodedEndpoint(endpoint.locality, endpoint.weight or 1, one_set(labels.items()), data)


def refusals_of_mutual_tls(reader: Reader) -> Callable[[Endpoint, int], bool]:
    """Whether the workload behind an endpoint takes only plaintext at a port of its own: asked for
    each endpoint of a service, answered once for those that no policy tells apart."""
    held: dict[str, dict[Labels, MutualTls]] = {}
    labels_of: dict[str, Callable[[Mapping[str, str]], Labels]] = {}

    def refuses(endpoint: Endpoint, port: int) -> bool:
        namespace = endpoint.namespace
        if namespace not in held:
            held[namespace] = {}
            labels_of[namespace] = labels_for_mutual_tls(reader, namespace)
        labels = labels_of[namespace](endpoint.labels)
        found = held[namespace].get(labels)
        if found is None:
            found = held[namespace][labels] = reader.node(modes, namespace, labels)
        return found.at(port) == DISABLE

    return refuses


def shards_of(reader: Reader, namespace: str, host: str) -> tuple[Key, ...]:
    """Node: shards that hold endpoints of a service."""
    return reader.keys(Query("reg.endpoints", "service", (namespace, host)))


def service_port_endpoints(
    reader: Reader, namespace: str, host: str, port_name: str
) -> tuple[EncodedEndpoint, ...]:
    """Endpoints of a service at one port, in order of shard."""
    found = [
        reader.node(shard_endpoints, shard, port_name)
        for shard in reader.node(shards_of, namespace, host)
    ]
    return found[0] if len(found) == 1 else tuple(e for part in found for e in part)


def assignment(
    name: str,
    endpoints: Iterable[EncodedEndpoint],
    ranking: Ranking | None = None,
    place: Place | None = None,
) -> bytes:
    """A serialized ClusterLoadAssignment: endpoints by locality and rank, in order of both.

    Source: envoy/config/endpoint/v3/endpoint.proto: cluster_name=1, endpoints=2;
    LocalityLbEndpoints: locality=1, lb_endpoints=2, load_balancing_weight=3, priority=5.
    """
    out = [field(1, name.encode())]
    renamed = place if ranking is not None and ranking.zones and place and place.said else None
    for group in arranged(endpoints, ranking, place):
        locality = group.locality
        if renamed is not None and locality == renamed.locality:
            locality = renamed.said
        head, tail = _frame_of(locality, group.weight, group.priority)
        out.append(field(2, head + b"".join(m.data for m in group.members) + tail))
    return b"".join(out)


@functools.lru_cache(maxsize=1024)
def _frame_of(locality: str, weight: int, priority: int) -> tuple[bytes, bytes]:
    """What stands before and behind the endpoints of a `LocalityLbEndpoints`."""
    region, zone, sub_zone = split_locality(locality)
    where = base_pb2.Locality(region=region, zone=zone, sub_zone=sub_zone)
    tail = endpoint_components_pb2.LocalityLbEndpoints(
        load_balancing_weight=uint32(weight), priority=priority
    )
    head = field(1, where.SerializeToString(deterministic=True))
    return head, tail.SerializeToString(deterministic=True)


def ranks_by_place(reader: Reader, service: Key, rules: tuple[Key, ...]) -> bool:
    """Node: some endpoints of a service are ranked by where the proxy is."""
    return any(ranking is not None for ranking in _rankings(reader, service, rules))


def prefers_zones(reader: Reader, service: Key, rules: tuple[Key, ...]) -> bool:
    """Node: zones decide which of some endpoints of a service are called."""
    return any(ranking and ranking.zones for ranking in _rankings(reader, service, rules))


def _rankings(reader: Reader, service: Key, rules: tuple[Key, ...]) -> Iterator[Ranking | None]:
    row: Service | None = reader.get(service)
    if row is None:
        return
    rule = reader.node(merged_rule, rules) if rules else NO_RULE
    settings = reader.node(mesh)
    for port in row.ports:
        for subset in (None, *rule.subsets):
            yield ranking_of(policy_in_force(rule, port.number, subset), settings, row)


def service_assignments(
    reader: Reader, service: Key, rules: tuple[Key, ...], place: Place | None = None
) -> Part:
    """Node: EDS resources of a service: one for each port, and for each subset of each port, for
    proxies at a place (None, unless `ranks_by_place`)."""
    row: Service | None = reader.get(service)
    if row is None:
        return Part()
    rule = reader.node(merged_rule, rules) if rules else NO_RULE
    settings = reader.node(mesh)
    out: list[Resource] = []
    for port in row.ports:
        if port.protocol == UDP:
            continue
        endpoints = service_port_endpoints(reader, row.namespace, row.host, port.name)
        if place is not None and place.cluster:
            own = (CLUSTER, place.cluster)
            endpoints = tuple(e for e in endpoints if own in e.labels)
        for subset in (None, *rule.subsets):
            wanted = frozenset(subset.labels.items()) if subset else frozenset()
            name = str(ClusterName(port.number, subset.name if subset else "", row.host))
            ranking = None
            if place is not None and place.ranked:
                ranking = ranking_of(policy_in_force(rule, port.number, subset), settings, row)
            chosen = [e for e in endpoints if wanted <= e.labels and e.data]
            if place is not None and place.network:
                every = [e for e in endpoints if wanted <= e.labels]
                chosen = reached_from(reader.node(networks), every, place.network)
            reader.encoded("eds")
            out.append(resource_of(EDS, name, assignment(name, chosen, ranking, place)))
    return Part(tuple(out))


def named_assignments(
    reader: Reader,
    service: Key,
    rules: tuple[Key, ...],
    network: str,
    place: Place | None = None,
) -> Part:
    """Node: endpoints of a service for connections that name it by SNI at a gateway of a network:
    those there that take mutual TLS, for it is passed on as it comes. `place`: where the gateway
    is, if they are ranked by it."""
    row: Service | None = reader.get(service)
    if row is None or row.external or row.external_name or row.resolution not in ("STATIC", "NONE"):
        return Part()
    rule = reader.node(merged_rule, rules) if rules else NO_RULE
    settings = reader.node(mesh)
    out: list[Resource] = []
    for port in row.ports:
        if port.protocol == UDP:
            continue
        endpoints = service_port_endpoints(reader, row.namespace, row.host, port.name)
        for subset in (None, *rule.subsets):
            wanted = frozenset(subset.labels.items()) if subset else frozenset()
            name = ClusterName(port.number, subset.name if subset else "", row.host).sni
            chosen = [
                e
                for e in endpoints
                if wanted <= e.labels and e.data and e.mutual and e.network in ("", network)
            ]
            ranking = None
            if place is not None and place.ranked:
                ranking = ranking_of(policy_in_force(rule, port.number, subset), settings, row)
            reader.encoded("eds")
            out.append(resource_of(EDS, name, assignment(name, chosen, ranking, place)))
    return Part(tuple(out))


class ShardTraits(NamedTuple):
    """What clusters and listeners follow of the endpoints of a shard: it stays as it is while
    endpoints of one kind come and go."""

    accounts: frozenset[tuple[str, str]] = frozenset()
    """(namespace, service account) of those that take mutual TLS; a namespace may be missing."""
    ports: frozenset[tuple[str, int]] = frozenset()
    """(service port name, port at an endpoint)."""
    mutual: frozenset[bool] = frozenset()
    """Whether endpoints take mutual TLS; both where they differ."""


def shard_traits(reader: Reader, shard: Key) -> ShardTraits:
    """Node: traits of one shard's endpoints, ready or not."""
    row: EndpointShard | None = reader.get(shard)
    if row is None:
        return ShardTraits()
    accounts: set[tuple[str, str]] = set()
    ports: set[tuple[str, int]] = set()
    mutual: set[bool] = set()
    for endpoint in row.endpoints:
        ports.update(endpoint.ports.items())
        takes = endpoint.tls_mode == "istio"
        mutual.add(takes)
        if takes and endpoint.service_account:
            accounts.add((endpoint.namespace, endpoint.service_account))
    return ShardTraits(frozenset(accounts), frozenset(ports), frozenset(mutual))


def service_traits(reader: Reader, namespace: str, host: str) -> ShardTraits:
    """Traits of all endpoints of a service."""
    found = [reader.node(shard_traits, s) for s in reader.node(shards_of, namespace, host)]
    if len(found) == 1:
        return found[0]
    return ShardTraits(*(frozenset().union(*parts) for parts in zip(*found, strict=True)))


def service_identities(reader: Reader, namespace: str, host: str) -> tuple[str, ...]:
    """Node: SPIFFE ids that the endpoints of a service may prove, ready or not."""
    domain = reader.node(mesh).trust_domain
    found = {
        account if account.startswith("spiffe://") else spiffe(domain, owner or namespace, account)
        for owner, account in service_traits(reader, namespace, host).accounts
    }
    return tuple(sorted(found))


class TargetPorts(NamedTuple):
    """Ports behind a service port."""

    name: str
    ports: tuple[int, ...]


def target_ports(reader: Reader, namespace: str, host: str) -> tuple[TargetPorts, ...]:
    """Node: which ports of endpoints each port of a service leads to."""
    found: dict[str, set[int]] = {}
    for name, port in service_traits(reader, namespace, host).ports:
        found.setdefault(name, set()).add(port)
    return tuple(TargetPorts(name, tuple(sorted(found[name]))) for name in sorted(found))


def service_addresses(reader: Reader, namespace: str, host: str) -> frozenset[str]:
    """Node: addresses of all endpoints of a service."""
    found = set()
    for shard in reader.node(shards_of, namespace, host):
        row = reader.get(shard)
        for endpoint in () if row is None else row.endpoints:
            found.update(endpoint.addresses)
    return frozenset(found)


def all_mutual(reader: Reader, namespace: str, host: str) -> bool:
    """Node: every endpoint of a service has a mesh proxy in front, and there are some."""
    return service_traits(reader, namespace, host).mutual == {True}
