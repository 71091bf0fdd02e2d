"""Who reaches what outside the mesh: by which rule, how often, since when. Pure.

Kept in memory for KEEP_S, at most so many pairs of a caller and a destination. What sidecars and
gateways report of their calls counts; a call by an egress gateway is that gateway's own.
"""

from typing import Any, NamedTuple

from meshbus_telemetry.entries import SOURCE, Connection, Ends, Request
from meshbus_telemetry.parties import UNKNOWN

KEEP_S = 7 * 86400.0
REGISTERED, UNREGISTERED, REFUSED = "registered", "unregistered", "refused"
"""Ways out: by a ServiceEntry, because everything is allowed, not at all."""
_BLACK_HOLE, _REFUSED = "BlackHoleCluster", "block_all"
_OPEN, _ALLOWED = frozenset({"PassthroughCluster", "http_proxy"}), "allow_any"
"""Clusters and routes for what no host claims."""


class _Way(NamedTuple):
    source: str
    """`NAMESPACE/WORKLOAD`."""
    principal: str
    host: str
    """Name that was called, or address where there is no name."""
    port: str
    way: str
    by: str
    """`ServiceEntry NAMESPACE/NAME`; empty: nobody has registered it."""
    protocol: str


class _Sums:
    __slots__ = ("errors", "first", "last", "received", "requests", "sent")

    def __init__(self, now: float) -> None:
        self.requests = self.errors = self.received = self.sent = 0
        self.first = self.last = now


class EgressReport:
    """Sums by caller and destination."""

    def __init__(self, most: int, now: float) -> None:
        self._most = most
        self._ways: dict[_Way, _Sums] = {}
        self._since = now
        self.overflowed = 0
        """Calls of pairs over the limit, which were left out."""

    def __len__(self) -> int:
        return len(self._ways)

    def request(self, report: Request, now: float) -> None:
        """Count one request."""
        sums = self._sums(report.ends, report.protocol, now)
        if sums is not None:
            sums.requests += 1
            sums.errors += report.failed
            sums.received += report.response_bytes
            sums.sent += report.request_bytes

    def connection(self, report: Connection, now: float) -> None:
        """Count one connection, when it ends."""
        if report.phase != "close":
            return
        sums = self._sums(report.ends, "tcp", now)
        if sums is not None:
            sums.requests += 1
            sums.errors += report.ends.flags not in {"-", "DC"}
            sums.received += report.sent_bytes
            sums.sent += report.received_bytes

    def _sums(self, ends: Ends, protocol: str, now: float) -> _Sums | None:
        way = _way(ends, protocol)
        if way is None:
            return None
        sums = self._ways.get(way)
        if sums is None:
            if len(self._ways) >= self._most:
                self._forget(now)
            if len(self._ways) >= self._most:
                self.overflowed += 1
                return None
            sums = self._ways[way] = _Sums(now)
        sums.last = now
        return sums

    def _forget(self, now: float) -> None:
        for way in [w for w, sums in self._ways.items() if sums.last < now - KEEP_S]:
            del self._ways[way]

    def describe(self, now: float, namespace: str = "", way: str = "") -> dict[str, Any]:
        """`{"since", "egress": [...]}`: newest first; times are seconds since the epoch.

        Args:
            namespace: Of callers; empty: all.
            way: `registered`, `unregistered`, `refused`; empty: all.
        """
        self._forget(now)
        found = [
            {
                **one._asdict(),
                "requests": sums.requests,
                "errors": sums.errors,
                "received": sums.received,
                "sent": sums.sent,
                "first": sums.first,
                "last": sums.last,
            }
            for one, sums in self._ways.items()
            if (not namespace or one.source.startswith(f"{namespace}/"))
            and (not way or one.way == way)
        ]
        found.sort(key=lambda e: (-float(e["last"]), str(e["source"]), str(e["host"])))
        return {"since": self._since, "egress": found, "leftOut": self.overflowed}


def _way(ends: Ends, protocol: str) -> _Way | None:
    """What a call means for the report; None: it does not leave the mesh."""
    if ends.reporter != SOURCE or ends.source.workload == UNKNOWN:
        return None
    source = f"{ends.source.namespace}/{ends.source.workload}"
    principal = "" if ends.source.principal == UNKNOWN else ends.source.principal
    name, port = _split(ends.authority)
    if ends.target.external:
        host = ends.target.host
        if host.startswith("*") and name:
            host = name
        number = ends.cluster.split("|")[1]
        by = f"ServiceEntry {ends.target.namespace}/{ends.target.name}"
        return _Way(source, principal, host, number, REGISTERED, by, protocol)
    if ends.cluster in _OPEN or ends.route == _ALLOWED:
        address, number = _split(ends.address)
        return _Way(source, principal, name or address, number or port, UNREGISTERED, "", protocol)
    if ends.cluster == _BLACK_HOLE or ends.route == _REFUSED:
        address, number = _split(ends.local)
        if name:
            # A name is asked for by HTTP. Where that came in may be the port of an HTTP proxy.
            number = "80"
        return _Way(source, principal, name or address, port or number, REFUSED, "", protocol)
    return None


def _split(address: str) -> tuple[str, str]:
    """Host and port of `HOST:PORT`, `[::1]:80` or a host alone."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and (":" not in host or host.startswith("[")):
        return host.strip("[]"), port
    return address.strip("[]"), ""
