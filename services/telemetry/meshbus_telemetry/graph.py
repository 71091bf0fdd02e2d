"""The service graph of the last minutes: who calls whom, how often and how well. Pure.

Both ends of a call report it. The client's report counts where there is one: it sees what never
arrived. The server's says whether mutual TLS was used.
"""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from meshbus_telemetry.entries import DESTINATION, SOURCE, Connection, Ends, Request
from meshbus_telemetry.parties import UNKNOWN, Party, Target

SLOT_S = 5
MAX_WINDOW_S = 600
_BASE = math.log(1.15)


class Node(NamedTuple):
    """A workload, a service whose workload is not known, or `unknown`."""

    kind: str
    """`workload`, `service`, `unknown`."""
    namespace: str
    name: str
    app: str = ""
    version: str = ""

    @property
    def id(self) -> str:
        """`NAMESPACE/NAME`, a host, or `unknown`."""
        return f"{self.namespace}/{self.name}" if self.kind == "workload" else self.name


class _Edge(NamedTuple):
    source: Node
    destination: Node
    service: str
    protocol: str


class _Slot:
    __slots__ = ("durations", "errors", "mutual", "received", "requests", "sent")

    def __init__(self) -> None:
        self.requests = self.errors = self.mutual = self.received = self.sent = 0
        self.durations: Counter[int] = Counter()


class ServiceGraph:
    """Edges in slots of SLOT_S seconds, kept for MAX_WINDOW_S, at most `max_edges` of them."""

    def __init__(self, max_edges: int) -> None:
        self._max = max_edges
        self._edges: dict[tuple[_Edge, str], dict[int, _Slot]] = {}
        self._swept = 0
        self.overflowed = 0
        """Reports of edges over the limit, which were left out."""

    def __len__(self) -> int:
        return len(self._edges)

    def request(self, report: Request, now: float) -> None:
        """Count one request."""
        slot = self._slot(report.ends, report.protocol, now)
        if slot is None:
            return
        slot.requests += 1
        slot.errors += report.failed
        slot.mutual += report.ends.security == "mutual_tls"
        slot.durations[_step(report.duration_ms)] += 1
        slot.received += report.request_bytes
        slot.sent += report.response_bytes

    def connection(self, report: Connection, now: float) -> None:
        """Count one connection, when it ends."""
        if report.phase != "close":
            return
        slot = self._slot(report.ends, "tcp", now)
        if slot is None:
            return
        slot.requests += 1
        slot.errors += report.ends.flags not in {"-", "DC"}
        slot.mutual += report.ends.security == "mutual_tls"
        slot.durations[_step(report.duration_ms)] += 1
        slot.received += report.received_bytes
        slot.sent += report.sent_bytes

    def _slot(self, ends: Ends, protocol: str, now: float) -> _Slot | None:
        number = int(now // SLOT_S)
        self._sweep(number)
        edge = _Edge(
            _node(ends.source, None),
            _node(ends.destination, ends.target),
            ends.target.host,
            protocol,
        )
        slots = self._edges.get((edge, ends.reporter))
        if slots is None:
            if len(self._edges) >= self._max:
                self.overflowed += 1
                return None
            slots = self._edges[(edge, ends.reporter)] = {}
        slot = slots.get(number)
        if slot is None:
            slot = slots[number] = _Slot()
        return slot

    def _sweep(self, number: int) -> None:
        if number == self._swept:
            return
        self._swept = number
        oldest = number - MAX_WINDOW_S // SLOT_S
        for key, slots in list(self._edges.items()):
            for old in [n for n in slots if n <= oldest]:
                del slots[old]
            if not slots:
                del self._edges[key]

    def describe(self, now: float, window_s: float = 60.0) -> dict[str, Any]:
        """`{"nodes", "edges", "window"}` of the last seconds.

        Durations are milliseconds, at a resolution of 15 percent; `rate` is calls per second.
        """
        window_s = min(max(window_s, SLOT_S), MAX_WINDOW_S)
        first = int((now - window_s) // SLOT_S) + 1
        sums: dict[_Edge, dict[str, _Slot]] = {}
        for (edge, reporter), slots in self._edges.items():
            recent = [slot for number, slot in slots.items() if number >= first]
            if recent:
                sums.setdefault(edge, {})[reporter] = _sum(recent)
        edges = [_describe(edge, by, window_s) for edge, by in sorted(sums.items())]
        nodes = {node for edge in sums for node in (edge.source, edge.destination)}
        return {
            "nodes": [{"id": node.id, **node._asdict()} for node in sorted(nodes)],
            "edges": edges,
            "window": window_s,
        }


def _node(party: Party, target: Target | None) -> Node:
    if party.workload != UNKNOWN:
        app = party.app if party.app != UNKNOWN else party.canonical_service
        version = party.version if party.version != UNKNOWN else party.canonical_revision
        return Node("workload", party.namespace, party.workload, app, version)
    if target is not None and target.host != UNKNOWN:
        return Node("service", target.namespace, target.host)
    if target is not None and target.name != UNKNOWN:
        return Node("service", UNKNOWN, target.name)
    return Node("unknown", UNKNOWN, UNKNOWN)


def _sum(slots: Iterable[_Slot]) -> _Slot:
    out = _Slot()
    for slot in slots:
        out.requests += slot.requests
        out.errors += slot.errors
        out.mutual += slot.mutual
        out.received += slot.received
        out.sent += slot.sent
        out.durations.update(slot.durations)
    return out


def _describe(edge: _Edge, by: dict[str, _Slot], window_s: float) -> dict[str, Any]:
    counted = by.get(SOURCE) or by[DESTINATION]
    server = by.get(DESTINATION)
    return {
        "source": edge.source.id,
        "destination": edge.destination.id,
        "service": edge.service,
        "protocol": edge.protocol,
        "requests": counted.requests,
        "errors": counted.errors,
        "rate": round(counted.requests / window_s, 3),
        "p50": _percentile(counted.durations, 0.50),
        "p99": _percentile(counted.durations, 0.99),
        "received": counted.received,
        "sent": counted.sent,
        "mtls": None if server is None else server.mutual == server.requests,
    }


def _step(milliseconds: float) -> int:
    return math.ceil(math.log(max(milliseconds, 0.01)) / _BASE)


def _percentile(durations: Counter[int], share: float) -> float:
    rank, seen = math.ceil(share * durations.total()), 0
    for step in sorted(durations):
        seen += durations[step]
        if seen >= rank:
            return round(math.exp(step * _BASE), 3)
    return 0.0
