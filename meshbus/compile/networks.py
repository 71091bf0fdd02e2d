"""Networks: which endpoints a proxy reaches by itself, and which through a gateway.

Source: Istio, MeshNetworks reference and "Install Multi-Primary on different networks";
pilot/pkg/xds/endpoints of 1.31 where they are silent (weights, what is left out).
"""

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from math import lcm
from typing import Any, NamedTuple

from envoy.config.endpoint.v3 import endpoint_components_pb2

from meshbus.api.yaml_text import NotReadableError, read_yaml
from meshbus.compile.engine import Reader
from meshbus.compile.settings import mesh
from meshbus.compile.values import address, uint32
from meshbus.model.keys import Key
from meshbus.model.world import NETWORK_LABEL, Query

GATEWAY_PORT_LABEL = "networking.istio.io/gatewayPort"
GATEWAY_PORT = 15443
_CONFIG_MAP = "istio"
_CONFIG_KEY = "meshNetworks"


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


def networks(reader: Reader) -> Networks:
    """Node: all networks: of ConfigMap `istio` of the root namespace (key `meshNetworks`), and of
    services with the label `topology.istio.io/network`."""
    root = reader.node(mesh).root_namespace
    gateways: dict[str, set[NetworkGateway]] = {}
    registries: list[tuple[str, str]] = []
    ranges: list[tuple[str, str]] = []
    for name, spec in _written(reader, root).items():
        for member in _records(spec.get("endpoints")):
            if member.get("fromRegistry"):
                registries.append((str(member["fromRegistry"]), name))
            if member.get("fromCidr") and _parsed(str(member["fromCidr"])) is not None:
                ranges.append((str(member["fromCidr"]), name))
        for gateway in _records(spec.get("gateways")):
            port = int(gateway.get("port") or GATEWAY_PORT)
            found = gateways.setdefault(name, set())
            if gateway.get("registryServiceName"):
                host = str(gateway["registryServiceName"])
                for entry in reader.entries(Query("reg.services", "host", host)):
                    found.update(_outside(reader, entry.key.cluster, entry.row, port))
            elif _is_address(str(gateway.get("address") or "")):
                found.add(NetworkGateway(str(gateway["address"]), port))
    for entry in reader.entries(Query("reg.services", "network", True)):
        row = entry.row
        port = int(row.labels.get(GATEWAY_PORT_LABEL) or GATEWAY_PORT)
        if any(p.number == port for p in row.ports):
            found = gateways.setdefault(row.labels[NETWORK_LABEL], set())
            found.update(_outside(reader, entry.key.cluster, row, port))
    labels = [
        e.row.labels
        for e in reader.entries(Query("reg.namespaces", "all", None))
        if e.key.name == root
    ]
    default = labels[0].get(NETWORK_LABEL, "") if labels else ""
    return Networks(
        tuple((name, tuple(sorted(found))) for name, found in sorted(gateways.items()) if found),
        tuple(sorted(registries)),
        tuple(sorted(ranges, key=lambda r: (-_prefix_length(r[0]), r))),
        default,
    )


def _written(reader: Reader, root: str) -> dict[str, dict[str, Any]]:
    for entry in reader.entries(Query("cfg.configmaps", "namespace", root)):
        if entry.key.name != _CONFIG_MAP:
            continue
        text = (entry.row.spec.get("data") or {}).get(_CONFIG_KEY)
        try:
            held = read_yaml(text) if isinstance(text, str) else None
        except NotReadableError:
            held = None
        found = held.get("networks") if isinstance(held, dict) else None
        if isinstance(found, dict):
            return {str(n): s for n, s in sorted(found.items()) if isinstance(s, dict)}
    return {}


def _outside(reader: Reader, cluster: str, row: Any, port: int) -> Iterable[NetworkGateway]:
    """Addresses at which a service is reached from other networks."""
    key = Key(cluster, "cfg", "services", row.namespace, row.name)
    written = reader.get(key)
    if written is None:
        return
    status: Any = written.spec.get("status")
    if not isinstance(status, dict):
        reported = reader.get(key._replace(plane="st"))
        status = reported.status if reported is not None else {}
    given = [str(a) for a in written.spec.get("externalIPs") or ()]
    ingress = _records((status.get("loadBalancer") or {}).get("ingress"))
    # Discovery puts what Kubernetes says of the load balancer beside the rest of the spec.
    ingress += _records(written.spec.get("ingress"))
    given += [str(item.get("ip") or "") for item in ingress]
    for where in given:
        if _is_address(where):
            yield NetworkGateway(where, port)


def _records(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


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
    if parsed is None or not _is_address(where):
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
