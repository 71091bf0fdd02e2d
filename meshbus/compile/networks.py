"""Networks: which endpoints a proxy reaches by itself, and which through a gateway.

Source: Istio, MeshNetworks reference and "Install Multi-Primary on different networks";
pilot/pkg/xds/endpoints of 1.31 where they are silent (weights, what is left out).
"""

import contextlib
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from math import lcm
from typing import Any, NamedTuple

from envoy.config.endpoint.v3 import endpoint_components_pb2

from meshbus.api.addresses import is_ip
from meshbus.api.yaml_text import NotReadableError, read_yaml
from meshbus.compile.engine import Reader
from meshbus.compile.findings import Finding, Report
from meshbus.compile.registry.outside import selector_of
from meshbus.compile.settings import mesh
from meshbus.compile.values import address, uint32
from meshbus.compile.written import entries, fields, number
from meshbus.model.keys import Key
from meshbus.model.rows import Service
from meshbus.model.world import NETWORK_LABEL, NODE_SELECTOR, Entry, Query

GATEWAY_PORT_LABEL = "networking.istio.io/gatewayPort"
GATEWAY_PORT = 15443
_CONFIG_MAP = "istio"
_CONFIG_KEY = "meshNetworks"


MESH_NETWORKS = "meshnetworks"
"""Kind of the objects that say the same as the ConfigMap."""


class NetworkGateway(NamedTuple):
    """Where connections into a network go: it passes mutual TLS on by SNI."""

    address: str
    port: int


class Networks(NamedTuple):
    """What is known of networks."""

    gateways: tuple[tuple[str, tuple[NetworkGateway, ...]], ...] = ()
    """By network."""
    registries: tuple[tuple[str, str], ...] = ()
    """(cluster, network) of `fromRegistry`."""
    ranges: tuple[tuple[str, str], ...] = ()
    """(CIDR, network) of `fromCidr`, the narrowest first."""
    default: str = ""
    """Of the root namespace: that of whatever says nothing else."""
    names: tuple[str, ...] = ()
    """Names of gateways that somebody must look up: endpoints of Envoy have addresses alone."""
    findings: tuple[Finding, ...] = ()
    """Gateways that nothing can be sent to."""

    def network_of(self, said: str, cluster: str, where: str) -> str:
        """The network of a workload that says `said` of itself and is at an address."""
        if said or self.default:
            return said or self.default
        for registry, network in self.registries:
            if registry == cluster:
                return network
        for cidr, network in self.ranges:
            if _within(where, cidr):
                return network
        return ""

    def gateways_of(self, network: str) -> tuple[NetworkGateway, ...]:
        """Those that lead into a network."""
        return next((found for name, found in self.gateways if name == network), ())


NO_NETWORKS = Networks()


class _Written(NamedTuple):
    """One network as an object says it."""

    source: Key
    path: str
    name: str
    spec: Mapping[str, Any]


class _Collected:
    """Gateways as they are found."""

    def __init__(self, known: Mapping[str, list[str]]) -> None:
        self.known = known
        """Addresses of names."""
        self.gateways: dict[str, set[NetworkGateway]] = {}
        self.names: set[str] = set()
        self.report = Report()

    def add(self, network: str, places: Iterable[str], port: int, key: Key, path: str) -> None:
        """A gateway at addresses, or names of them."""
        found = self.gateways.setdefault(network, set())
        for place in places:
            if is_ip(place):
                found.add(NetworkGateway(place, port))
                continue
            name = place.lower().rstrip(".")
            self.names.add(name)
            addresses = self.known.get(name, ())
            found.update(NetworkGateway(address, port) for address in addresses)
            if not addresses:
                message = f"{place} has not been looked up yet: nothing is sent there"
                self.report.add(key, path, message)


def networks(reader: Reader) -> Networks:
    """Node: all networks: of MeshNetworks (objects, or key `meshNetworks` of ConfigMap `istio` of
    the root namespace), and of services with the label `topology.istio.io/network`."""
    root = reader.node(mesh).root_namespace
    rows = reader.entries(Query("reg.names", "all", None))
    found = _Collected({e.row.name: e.row.addresses for e in rows})
    registries: list[tuple[str, str]] = []
    ranges: list[tuple[str, str]] = []
    for written in _written(reader, root):
        clusters = set()
        for member in entries(written.spec.get("endpoints")):
            if cluster := _said(member, "fromRegistry"):
                clusters.add(cluster)
                registries.append((cluster, written.name))
            if (cidr := _said(member, "fromCidr")) and _parsed(cidr) is not None:
                ranges.append((cidr, written.name))
        for index, gateway in enumerate(entries(written.spec.get("gateways"))):
            _take_gateway(reader, found, written, index, gateway, clusters)
    for entry in reader.entries(Query("reg.services", "network", True)):
        row = entry.row
        port = int(row.labels.get(GATEWAY_PORT_LABEL) or GATEWAY_PORT)
        if any(p.number == port for p in row.ports):
            source, network = _object_of(entry), row.labels[NETWORK_LABEL]
            there = dict(row.outside_ports).get(port, port)
            found.add(network, row.outside, there, source, "status.loadBalancer")
            _tell_selector(found, source, f"metadata.annotations.{NODE_SELECTOR}", row)
    labels = [
        e.row.labels
        for e in reader.entries(Query("reg.namespaces", "all", None))
        if e.key.name == root
    ]
    default = labels[0].get(NETWORK_LABEL, "") if labels else ""
    return Networks(
        tuple((name, tuple(sorted(held))) for name, held in sorted(found.gateways.items()) if held),
        tuple(sorted(set(registries))),
        tuple(sorted(set(ranges), key=lambda r: (-_prefix_length(r[0]), r))),
        default,
        tuple(sorted(found.names)),
        found.report.findings(),
    )


def _take_gateway(
    reader: Reader,
    found: _Collected,
    written: _Written,
    index: int,
    gateway: Mapping[str, Any],
    clusters: set[str],
) -> None:
    path = f"{written.path}.gateways[{index}]"
    port = number(gateway.get("port")) or GATEWAY_PORT
    host = _said(gateway, "registryServiceName")
    if not host:
        places = [place] if (place := _said(gateway, "address")) else []
        found.add(written.name, places, port, written.source, f"{path}.address")
        return
    # The same host may be a service of several clusters: that of the network counts.
    services = [
        entry
        for entry in reader.entries(Query("reg.services", "host", host))
        if not clusters or entry.key.cluster in clusters
    ]
    path = f"{path}.registryServiceName"
    for entry in services:
        there = dict(entry.row.outside_ports).get(port, port)
        found.add(written.name, entry.row.outside, there, written.source, path)
        _tell_selector(found, written.source, path, entry.row)
    if not any(entry.row.outside for entry in services):
        what = "has no address outside its cluster" if services else "is not known in its clusters"
        found.report.add(written.source, path, f"service {host} {what}")


def _tell_selector(found: _Collected, source: Key, path: str, row: Service) -> None:
    """Nodes are chosen by an annotation that cannot be read."""
    if row.outside_ports and selector_of(row.annotations.get(NODE_SELECTOR, "")) is None:
        message = (
            f"annotation {NODE_SELECTOR} of service {row.host} is no JSON object of labels: all "
            "nodes count"
        )
        found.report.add(source, path, message)


def _said(record: Mapping[str, Any], name: str) -> str:
    """A field, in either of the spellings of proto JSON."""
    snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in name)
    return str(record.get(name) or record.get(snake) or "")


def _object_of(entry: Entry) -> Key:
    """The Service that a row of the registry came from."""
    row = entry.row
    return Key(entry.key.cluster, "cfg", "services", row.namespace, row.name)


def _written(reader: Reader, root: str) -> Iterable[_Written]:
    for entry in reader.entries(Query(f"cfg.{MESH_NETWORKS}", "all", None)):
        if entry.row.deletion is None:
            yield from _networks_in(entry.key, "spec.networks", entry.row.spec)
    for entry in reader.entries(Query("cfg.configmaps", "namespace", root)):
        if entry.key.name != _CONFIG_MAP:
            continue
        text = (entry.row.spec.get("data") or {}).get(_CONFIG_KEY)
        with contextlib.suppress(NotReadableError):
            held = read_yaml(text) if isinstance(text, str) else None
            yield from _networks_in(entry.key, f"data.{_CONFIG_KEY}.networks", held)


def _networks_in(source: Key, path: str, held: Any) -> Iterable[_Written]:
    found = fields(fields(held).get("networks"))
    for name, spec in sorted(found.items()):
        if isinstance(spec, Mapping):
            yield _Written(source, f"{path}.{name}", str(name), spec)


def _parsed(cidr: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(cidr, strict=False)
    except ValueError:
        return None


def _prefix_length(cidr: str) -> int:
    parsed = _parsed(cidr)
    return parsed.prefixlen if parsed is not None else 0


def _within(where: str, cidr: str) -> bool:
    parsed = _parsed(cidr)
    if parsed is None or not is_ip(where):
        return False
    held = ip_address(where)
    return held.version == parsed.version and held in parsed


# --------------------------------------------------------------------------- endpoints


def weight_scale(held: Networks) -> int:
    """By what weights are multiplied, so that those of the endpoints of a network can be divided
    among its gateways without rest."""
    return lcm(*(len(found) for _, found in held.gateways))


def gateway_endpoint(gateway: NetworkGateway, weight: int) -> bytes:
    """A gateway in place of the endpoints behind it, serialized: always by mutual TLS."""
    lb = endpoint_components_pb2.LbEndpoint(load_balancing_weight=uint32(weight))
    lb.endpoint.address.CopyFrom(address(gateway.address, gateway.port))
    lb.metadata.filter_metadata["envoy.transport_socket_match"]["tlsMode"] = "istio"
    encoded: bytes = lb.SerializeToString(deterministic=True)
    return encoded


def with_weight(data: bytes, weight: int) -> bytes:
    """A serialized LbEndpoint with another weight."""
    lb = endpoint_components_pb2.LbEndpoint.FromString(data)
    lb.load_balancing_weight.value = weight
    encoded: bytes = lb.SerializeToString(deterministic=True)
    return encoded
