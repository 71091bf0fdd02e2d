"""Endpoints: rows of discovery to cluster load assignments."""

from collections.abc import Iterable
from typing import NamedTuple

from envoy.config.core.v3 import base_pb2, health_check_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2

from meshbus.compile.engine import Reader
from meshbus.compile.findings import Part
from meshbus.compile.names import UDP, ClusterName, spiffe
from meshbus.compile.peer_authentication import DISABLE, mutual_tls
from meshbus.compile.resources import EDS, Resource, field, resource_of
from meshbus.compile.settings import mesh
from meshbus.compile.traffic_policy import NO_RULE, merged_rule
from meshbus.compile.values import address, uint32
from meshbus.model.keys import Key
from meshbus.model.rows import Endpoint, Service
from meshbus.model.world import Query

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


def canonical_service(labels: dict[str, str], workload: str) -> tuple[str, str]:
    """Canonical name and revision of a workload, for telemetry.

    Source: Istio, pkg/model labels: CanonicalServiceName, CanonicalServiceRevision.
    """
    name = next((labels[k] for k in _CANONICAL_NAME if labels.get(k)), workload)
    revision = next((labels[k] for k in _CANONICAL_REVISION if labels.get(k)), "latest")
    return name, revision


def endpoint_metadata(endpoint: Endpoint, mutual: bool) -> base_pb2.Metadata:
    """What the proxy knows of an endpoint: whether it takes mutual TLS, and whose it is.

    `istio.workload` is `name;namespace;canonical name;canonical revision;cluster`, as Istio's.
    """
    metadata = base_pb2.Metadata()
    name, revision = canonical_service(endpoint.labels, endpoint.workload)
    metadata.filter_metadata["istio"]["workload"] = ";".join(
        (endpoint.workload, endpoint.namespace, name, revision, endpoint.cluster)
    )
    if mutual:
        metadata.filter_metadata["envoy.transport_socket_match"]["tlsMode"] = "istio"
    return metadata


def encode_endpoint(endpoint: Endpoint, port: int, mutual: bool) -> bytes:
    """One endpoint as an `lb_endpoints` entry."""
    lb = endpoint_components_pb2.LbEndpoint(
        metadata=endpoint_metadata(endpoint, mutual),
        load_balancing_weight=uint32(endpoint.weight or 1),
    )
    first, *others = endpoint.addresses
    lb.endpoint.address.CopyFrom(address(first, port))
    for other in others:
        lb.endpoint.additional_addresses.add().address.CopyFrom(address(other, port))
    if endpoint.draining:
        lb.health_status = health_check_pb2.DRAINING
    return field(2, lb.SerializeToString(deterministic=True))


def shard_endpoints(reader: Reader, shard: Key, port_name: str) -> tuple[EncodedEndpoint, ...]:
    """Node: endpoints of one shard at one service port; those not ready are left out."""
    row = reader.get(shard)
    if row is None:
        return ()
    out = []
    for endpoint in row.endpoints:
        port = endpoint.ports.get(port_name)
        if port is None or not endpoint.addresses or not (endpoint.ready or endpoint.draining):
            continue
        mutual = endpoint.tls_mode == "istio" and not _refuses_mutual_tls(reader, endpoint, port)
        out.append(
            EncodedEndpoint(
                endpoint.locality,
                endpoint.weight or 1,
                frozenset(endpoint.labels.items()),
                encode_endpoint(endpoint, port, mutual),
            )
        )
    return tuple(out)


def _refuses_mutual_tls(reader: Reader, endpoint: Endpoint, port: int) -> bool:
    labels = tuple(sorted(endpoint.labels.items()))
    return reader.node(mutual_tls, endpoint.namespace, labels).at(port) == DISABLE


def shards_of(reader: Reader, namespace: str, host: str) -> tuple[Key, ...]:
    """Node: shards that hold endpoints of a service."""
    return tuple(
        e.key for e in reader.entries(Query("reg.endpoints", "service", (namespace, host)))
    )


def service_port_endpoints(
    reader: Reader, namespace: str, host: str, port_name: str
) -> tuple[EncodedEndpoint, ...]:
    """Node: endpoints of a service at one port, in order of shard."""
    out: list[EncodedEndpoint] = []
    for shard in reader.node(shards_of, namespace, host):
        out += reader.node(shard_endpoints, shard, port_name)
    return tuple(out)


def assignment(name: str, endpoints: Iterable[EncodedEndpoint]) -> bytes:
    """A serialized ClusterLoadAssignment: endpoints by locality, localities in order.

    Source: envoy/config/endpoint/v3/endpoint.proto: cluster_name=1, endpoints=2;
    LocalityLbEndpoints: locality=1, lb_endpoints=2, load_balancing_weight=3.
    """
    groups: dict[str, list[EncodedEndpoint]] = {}
    for endpoint in endpoints:
        groups.setdefault(endpoint.locality, []).append(endpoint)
    out = [field(1, name.encode())]
    for locality in sorted(groups):
        members = groups[locality]
        tail = endpoint_components_pb2.LocalityLbEndpoints(
            load_balancing_weight=uint32(sum(m.weight for m in members))
        )
        region, _, rest = locality.partition("/")
        zone, _, sub_zone = rest.partition("/")
        place = base_pb2.Locality(region=region, zone=zone, sub_zone=sub_zone)
        body = field(1, place.SerializeToString(deterministic=True))
        body += b"".join(m.data for m in members)
        body += tail.SerializeToString(deterministic=True)
        out.append(field(2, body))
    return b"".join(out)


def service_assignments(reader: Reader, service: Key, rules: tuple[Key, ...]) -> Part:
    """Node: EDS resources of a service: one for each port, and for each subset of each port."""
    row: Service | None = reader.get(service)
    if row is None:
        return Part()
    rule = reader.node(merged_rule, rules) if rules else NO_RULE
    out: list[Resource] = []
    for port in row.ports:
        if port.protocol == UDP:
            continue
        endpoints = reader.node(service_port_endpoints, row.namespace, row.host, port.name)
        name = str(ClusterName(port.number, "", row.host))
        out.append(_resource(reader, name, endpoints))
        for subset in rule.subsets:
            wanted = frozenset(subset.labels.items())
            name = str(ClusterName(port.number, subset.name, row.host))
            out.append(_resource(reader, name, [e for e in endpoints if wanted <= e.labels]))
    return Part(tuple(out))


def _resource(reader: Reader, name: str, endpoints: Iterable[EncodedEndpoint]) -> Resource:
    reader.encoded("eds")
    return resource_of(EDS, name, assignment(name, endpoints))


def service_identities(reader: Reader, namespace: str, host: str) -> tuple[str, ...]:
    """Node: SPIFFE ids that the endpoints of a service may prove, ready or not."""
    domain = reader.node(mesh).trust_domain
    found = set()
    for shard in reader.node(shards_of, namespace, host):
        row = reader.get(shard)
        if row is None:
            continue
        for endpoint in row.endpoints:
            if endpoint.service_account and endpoint.tls_mode == "istio":
                account = endpoint.service_account
                found.add(
                    account
                    if account.startswith("spiffe://")
                    else spiffe(domain, endpoint.namespace or namespace, account)
                )
    return tuple(sorted(found))


class TargetPorts(NamedTuple):
    """Ports behind a service port."""

    name: str
    ports: tuple[int, ...]


def target_ports(reader: Reader, namespace: str, host: str) -> tuple[TargetPorts, ...]:
    """Node: which ports of endpoints each port of a service leads to."""
    found: dict[str, set[int]] = {}
    for shard in reader.node(shards_of, namespace, host):
        row = reader.get(shard)
        if row is None:
            continue
        for endpoint in row.endpoints:
            for name, port in endpoint.ports.items():
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
    """Node: every endpoint of a service has a mesh proxy in front."""
    found = False
    for shard in reader.node(shards_of, namespace, host):
        row = reader.get(shard)
        for endpoint in () if row is None else row.endpoints:
            if endpoint.tls_mode != "istio":
                return False
            found = True
    return found
