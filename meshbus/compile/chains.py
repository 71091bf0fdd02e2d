"""Filter chains of one listener, put together from those of several services."""

from itertools import product
from typing import NamedTuple

from envoy.config.core.v3.address_pb2 import CidrRange
from envoy.config.listener.v3 import listener_components_pb2 as lc_pb2
from envoy.config.listener.v3 import listener_pb2

from meshbus.compile.connections import Reporting, tcp_proxy


class Chains:
    """Chains while they are put together. Envoy refuses a listener with two chains for one name at
    one network: what an earlier one matches, a later one has not."""

    def __init__(self) -> None:
        self._chains: list[lc_pb2.FilterChain] = []
        self._taken: set[_Way] = set()

    def add(self, chains: list[lc_pb2.FilterChain]) -> bool:
        """Put in what is left of some chains. Returns whether anything is."""
        before = len(self._taken)
        for chain in chains:
            ways = _ways(chain.filter_chain_match)
            free = [way for way in ways if way not in self._taken]
            self._taken.update(free)
            self._chains += [chain] if len(free) == len(ways) else _narrowed(chain, free)
        return len(self._taken) > before

    def put(self, listener: listener_pb2.Listener, unclaimed: lc_pb2.FilterChain) -> None:
        """Into a listener: one that matches everything takes what no other does, else
        `unclaimed`."""
        some = [c for c in self._chains if c.filter_chain_match.ByteSize()]
        listener.filter_chains.extend(some)
        last = next((c for c in self._chains if not c.filter_chain_match.ByteSize()), unclaimed)
        listener.default_filter_chain.CopyFrom(last)
        if last is not unclaimed:
            listener.default_filter_chain.ClearField("filter_chain_match")


def unclaimed_chain(name: str, cluster: str, reporting: Reporting) -> lc_pb2.FilterChain:
    """What no chain of a listener is for goes to a cluster."""
    return lc_pb2.FilterChain(name=name, filters=[tcp_proxy(cluster, [(cluster, 1)], reporting)])


class _Way(NamedTuple):
    """One of the ways to match a chain."""

    network: bytes
    source: bytes
    name: str
    rest: bytes
    """The match without these."""


def _ways(match: lc_pb2.FilterChainMatch) -> list[_Way]:
    rest = lc_pb2.FilterChainMatch()
    rest.CopyFrom(match)
    for field in ("prefix_ranges", "source_prefix_ranges", "server_names"):
        rest.ClearField(field)
    kept = rest.SerializeToString(deterministic=True)
    networks = [r.SerializeToString() for r in match.prefix_ranges] or [b""]
    sources = [r.SerializeToString() for r in match.source_prefix_ranges] or [b""]
    names = list(match.server_names) or [""]
    return [_Way(*way, kept) for way in product(networks, sources, names)]


def _narrowed(chain: lc_pb2.FilterChain, free: list[_Way]) -> list[lc_pb2.FilterChain]:
    """A chain that matches in these ways alone: one for each set of names and source."""
    names: dict[tuple[bytes, bytes], list[str]] = {}
    for way in free:
        names.setdefault((way.network, way.source), []).append(way.name)
    networks: dict[tuple[bytes, tuple[str, ...]], list[bytes]] = {}
    for (network, source), held in names.items():
        networks.setdefault((source, tuple(held)), []).append(network)
    out = []
    for (source, together), places in networks.items():
        made = lc_pb2.FilterChain()
        made.CopyFrom(chain)
        match = made.filter_chain_match
        for field in ("prefix_ranges", "source_prefix_ranges", "server_names"):
            match.ClearField(field)
        match.prefix_ranges.extend(map(CidrRange.FromString, filter(None, places)))
        match.source_prefix_ranges.extend(map(CidrRange.FromString, filter(None, (source,))))
        match.server_names.extend(filter(None, together))
        out.append(made)
    return out
