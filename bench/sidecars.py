"""Thousands of simulated sidecars in one process, each on a connection of its own.

Started by the bench, told what to do by lines of JSON on its standard input, answers on its output.
A sidecar does as Envoy does: asks for clusters and listeners, then for what those lead to,
acknowledges what comes, and comes back with what it has when its stream ends.
"""

import asyncio
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from fleet_state import NO_NAMES, NOTHING, Held, Names, Told, nack, request, told
from http2_client import GrpcStream
from topology import Size, Topology

from meshbus.compile.resources import CDS, EDS, LDS, RDS

METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
_BACK_S = 0.05
_PROBE_S = 0.01
_AT_ONCE = 64
"""Connections that are being opened at one time."""


class Fleet:
    """All sidecars of this process, and what was measured since the last mark."""

    def __init__(self, topology: Topology) -> None:
        self.nodes = list(topology.sidecars())
        self.sidecars: dict[int, Sidecar] = {}
        self.port = 0
        self.tracked: set[str] = set()
        self.opening = asyncio.Semaphore(_AT_ONCE)
        self.marks = -1
        self.mark()

    def node(self, index: int) -> tuple[str, dict[str, Any]]:
        """Of a sidecar; beyond the instances of the mesh come more of the same workloads."""
        more, at = divmod(index, len(self.nodes))
        identity, metadata = self.nodes[at]
        if more:
            kind, address, instance, domain = identity.split("~")
            name, _, namespace = instance.rpartition(".")
            identity = f"{kind}~{address}~{name}-more{more}.{namespace}~{domain}"
        return identity, metadata

    def mark(self) -> None:
        """Measure from now on."""
        self.marks += 1
        self.messages = self.bytes = self.changed = self.wasted = self.resources = 0
        self.uploaded = self.ends = self.refused = 0
        self.last_at = 0.0
        self.last_of: dict[int, float] = {}
        self.arrivals: list[tuple[float, int, str, int]] = []
        self.late: list[float] = []
        """By how much this process came late to what was due: so much it adds to its times."""
        for sidecar in self.sidecars.values():
            sidecar.base = sidecar.stream.received if sidecar.stream is not None else 0

    async def probe(self) -> None:
        """Measure `late`, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _PROBE_S
            await asyncio.sleep(_PROBE_S)
            self.late.append(loop.time() - due)

    def wire_bytes(self) -> int:
        """Received since the mark on connections that are open."""
        return self.bytes + sum(
            s.stream.received - s.base for s in self.sidecars.values() if s.stream is not None
        )

    def stats(self) -> dict[str, Any]:
        """What was measured since the mark."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        late = sorted(self.late) or [0.0]
        return {
            "connected": sum(s.ready for s in self.sidecars.values()),
            "arrived": len({index for _, index, _, _ in self.arrivals}),
            "messages": self.messages,
            "bytes": self.wire_bytes(),
            "changed": self.changed,
            "wasted": self.wasted,
            "resources": self.resources,
            "uploaded": self.uploaded,
            "ends": self.ends,
            "refused": self.refused,
            "last_at": self.last_at,
            "late_p99": late[len(late) * 99 // 100],
            "now": time.monotonic(),
            "cpu": used.ru_utime + used.ru_stime,
        }


class Sidecar:
    """One proxy."""

    __slots__ = (
        "answered",
        "base",
        "closed",
        "fleet",
        "held",
        "index",
        "manner",
        "names",
        "node",
        "ready",
        "stream",
    )

    def __init__(self, fleet: Fleet, index: int, manner: str) -> None:
        self.fleet = fleet
        self.index = index
        self.manner = manner
        """`good`, `deaf` (reads nothing once it is connected) or `nacking` (refuses every
        route that comes once all are connected)."""
        self.node = fleet.node(index)
        self.held: dict[str, Held] = {}
        self.names: dict[str, Names] = {}
        self.answered: set[str] = set()
        self.stream: GrpcStream | None = None
        self.base = 0
        self.ready = False
        self.closed = False

    async def connect(self) -> None:
        """Open a stream; until it stands."""
        loop = asyncio.get_running_loop()
        while not self.closed:
            try:
                async with self.fleet.opening:
                    _, stream = await loop.create_connection(
                        lambda: GrpcStream(METHOD, self._message, self._ended),
                        "127.0.0.1",
                        self.fleet.port,
                    )
            except OSError:
                self.fleet.refused += 1
                await asyncio.sleep(_BACK_S)
                continue
            self.stream, self.base = stream, 0
            self.answered.clear()
            for type_url, node in ((CDS, self.node), (LDS, None)):
                self._say(request(type_url, (), self.held.get(type_url, NOTHING), node))
            for type_url, names in self.names.items():
                listed = tuple(sorted(names.names))
                self._say(request(type_url, listed, self.held.get(type_url, NOTHING)))
            return

    def _say(self, data: bytes) -> None:
        assert self.stream is not None
        self.fleet.uploaded += len(data)
        self.stream.send(data)

    def _ended(self, why: str) -> None:
        fleet = self.fleet
        if self.stream is not None:
            fleet.bytes += self.stream.received - self.base
        self.stream = None
        self.ready = False
        fleet.ends += 1
        if not self.closed:
            asyncio.get_running_loop().call_later(_BACK_S, self._come_back)

    def _come_back(self) -> None:
        task = asyncio.get_running_loop().create_task(self.connect())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def _message(self, data: bytes) -> None:
        fleet = self.fleet
        response = told(data)
        now = time.monotonic()
        fleet.messages += 1
        fleet.resources += len(response.versions) + len(response.removed)
        fleet.last_at = fleet.last_of[self.index] = now
        type_url = response.type_url
        if self.manner == "nacking" and fleet.marks > 1 and type_url == RDS:
            self._say(nack(response, f"refused by the bench: {next(iter(response.versions))}"))
            return
        held, changed, wasted = self.held.get(type_url, NOTHING).after(response)
        self.held[type_url] = held
        fleet.changed += changed
        fleet.wasted += wasted
        self._say(response.ack)
        if fleet.tracked and response.marks:
            self._track(response, now)
        for asked, names in response.asks.items():
            self._ask(asked, names)
        if not self.ready:
            self.answered.add(type_url)
            if {CDS, LDS} <= self.answered:
                self.ready = True
                if self.manner == "deaf":
                    assert self.stream is not None
                    assert self.stream.transport is not None
                    self.stream.transport.pause_reading()

    def _ask(self, type_url: str, names: tuple[str, ...]) -> None:
        asked, new = self.names.get(type_url, NO_NAMES).after(names)
        self.names[type_url] = asked
        if new:
            self._say(request(type_url, new))

    def _track(self, response: Told, now: float) -> None:
        for name, mark in response.marks.items():
            if name in self.fleet.tracked:
                self.fleet.arrivals.append((now, self.index, name, mark))


tasks: set[asyncio.Task[None]] = set()


async def obey(fleet: Fleet, order: dict[str, Any]) -> Any:
    """Do one thing and answer."""
    match order["do"]:
        case "connect":
            fleet.port = order["port"]
            made = []
            for index in range(order["from"], order["to"]):
                manner = order.get("manners", {}).get(str(index), "good")
                sidecar = fleet.sidecars[index] = Sidecar(fleet, index, manner)
                made.append(sidecar)
            await asyncio.gather(*(sidecar.connect() for sidecar in made))
            return len(made)
        case "mark":
            fleet.tracked = set(order.get("track", ()))
            fleet.mark()
            return time.monotonic()
        case "stats":
            return fleet.stats()
        case "lasts":
            return {str(index): at for index, at in fleet.last_of.items()}
        case "arrivals":
            return fleet.arrivals
        case "marks":
            return {
                str(index): held.versions.get(order["name"])
                for index, sidecar in fleet.sidecars.items()
                if (held := sidecar.held.get(EDS)) is not None
            }
        case "close":
            for sidecar in fleet.sidecars.values():
                sidecar.closed = True
                if sidecar.stream is not None and sidecar.stream.transport is not None:
                    sidecar.stream.transport.abort()
            fleet.sidecars.clear()
            return True
    raise ValueError(order)


async def main() -> None:
    """Until the input ends."""
    fleet = Fleet(Topology(Size(**json.loads(sys.argv[1]))))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    reader = asyncio.StreamReader(limit=1 << 26)
    loop = asyncio.get_running_loop()
    tasks.add(loop.create_task(fleet.probe()))
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        answer = await obey(fleet, json.loads(line))
        out = json.dumps(answer).encode() + b"\n"
        await asyncio.to_thread(os.write, 1, out) if len(out) < 65536 else _write(out)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
