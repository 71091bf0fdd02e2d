"""What simulated sidecars hold and ask for; those that were told the same share it.

A response is decoded once, however many get it; what a sidecar holds after it is looked up by what
it held before. So a thousand sidecars cost a thousand small objects, not a thousand tables.
"""

from dataclasses import dataclass, field

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm,
)
from envoy.service.discovery.v3 import discovery_pb2
from topology import mark_of_address

from meshbus.compile.resources import CDS, ECDS, EDS, LDS, RDS

_REMEMBERED = 64
_RESPONSES = 4096


@dataclass(eq=False, slots=True)
class Told:
    """One response, decoded."""

    type_url: str
    ack: bytes
    versions: dict[str, tuple[str, int]]
    """By name: version and bytes of the resource in the response."""
    removed: tuple[str, ...]
    asks: dict[str, tuple[str, ...]]
    """Names of other types that these resources lead to."""
    marks: dict[str, int]
    """Of endpoints: the number that their addresses tell."""


_told: dict[bytes, Told] = {}


def told(message: bytes) -> Told:
    """The decoded response."""
    known = _told.get(message)
    if known is None:
        if len(_told) > _RESPONSES:
            _told.clear()
        known = _told[message] = _decode(message)
    return known


def forget() -> None:
    """The responses that were decoded."""
    _told.clear()


def nack(of: Told, why: str) -> bytes:
    """A refusal of a response."""
    request = discovery_pb2.DeltaDiscoveryRequest.FromString(of.ack)
    request.error_detail.code = 3
    request.error_detail.message = why
    return request.SerializeToString()


def _decode(message: bytes) -> Told:
    response = discovery_pb2.DeltaDiscoveryResponse.FromString(message)
    type_url = response.type_url
    asks: dict[str, set[str]] = {}
    marks: dict[str, int] = {}
    versions = {}
    for resource in response.resources:
        versions[resource.name] = (resource.version, resource.ByteSize())
        value = resource.resource.value
        if type_url == CDS:
            cluster = cluster_pb2.Cluster.FromString(value)
            if cluster.type == cluster_pb2.Cluster.EDS:
                name = cluster.eds_cluster_config.service_name or cluster.name
                asks.setdefault(EDS, set()).add(name)
        elif type_url == LDS:
            _ask_of_listener(listener_pb2.Listener.FromString(value), asks)
        elif type_url == EDS:
            for group in endpoint_pb2.ClusterLoadAssignment.FromString(value).endpoints:
                for item in group.lb_endpoints:
                    mark = mark_of_address(item.endpoint.address.socket_address.address)
                    if mark is not None:
                        marks[resource.name] = mark
    ack = discovery_pb2.DeltaDiscoveryRequest(type_url=type_url, response_nonce=response.nonce)
    return Told(
        type_url,
        ack.SerializeToString(),
        versions,
        tuple(response.removed_resources),
        {asked: tuple(sorted(names)) for asked, names in asks.items()},
        marks,
    )


def _ask_of_listener(listener: listener_pb2.Listener, asks: dict[str, set[str]]) -> None:
    for chain in (*listener.filter_chains, listener.default_filter_chain):
        for network in chain.filters:
            if network.HasField("config_discovery"):
                asks.setdefault(ECDS, set()).add(network.name)
            if network.typed_config.Is(hcm.HttpConnectionManager.DESCRIPTOR):
                manager = hcm.HttpConnectionManager.FromString(network.typed_config.value)
                if manager.HasField("rds"):
                    asks.setdefault(RDS, set()).add(manager.rds.route_config_name)
                for http in manager.http_filters:
                    if http.HasField("config_discovery"):
                        asks.setdefault(ECDS, set()).add(http.name)


@dataclass(eq=False, slots=True)
class Held:
    """Resources of one type that a sidecar has: version by name."""

    versions: dict[str, str] = field(default_factory=dict)
    _after: dict[Told, tuple["Held", int, int]] = field(default_factory=dict)

    def after(self, response: Told) -> tuple["Held", int, int]:
        """What is held then, the bytes of what differs, and how many came for nothing."""
        known = self._after.get(response)
        if known is None:
            versions = dict(self.versions)
            changed = wasted = 0
            for name, (version, size) in response.versions.items():
                if versions.get(name) == version:
                    wasted += 1
                else:
                    changed += size
                versions[name] = version
            for name in response.removed:
                if versions.pop(name, None) is None:
                    wasted += 1
                changed += len(name)
            if len(self._after) > _REMEMBERED:
                self._after.clear()
            known = self._after[response] = (Held(versions), changed, wasted)
        return known


@dataclass(eq=False, slots=True)
class Names:
    """Names of one type that a sidecar has asked for."""

    names: frozenset[str] = frozenset()
    _after: dict[tuple[str, ...], tuple["Names", tuple[str, ...]]] = field(default_factory=dict)

    def after(self, asked: tuple[str, ...]) -> tuple["Names", tuple[str, ...]]:
        """What is asked for then, and which of it is new."""
        known = self._after.get(asked)
        if known is None:
            new = tuple(name for name in asked if name not in self.names)
            known = (Names(self.names.union(new)) if new else self, new)
            if len(self._after) > _REMEMBERED:
                self._after.clear()
            self._after[asked] = known
        return known


NOTHING = Held()
NO_NAMES = Names()


def request(
    type_url: str,
    names: tuple[str, ...] = (),
    held: Held = NOTHING,
    node: tuple[str, dict[str, object]] | None = None,
) -> bytes:
    """A request for a type; with what is held of it already, and who asks, on a new stream."""
    message = discovery_pb2.DeltaDiscoveryRequest(
        type_url=type_url,
        resource_names_subscribe=names,
        initial_resource_versions=held.versions,
    )
    if node is not None:
        message.node.id = node[0]
        message.node.metadata.update(node[1])
    return message.SerializeToString()
