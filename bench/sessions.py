"""Sessions and fan-out alone: the gateway's Python in this process, without sockets and bus.

    python bench/sessions.py [--services N] [--sidecars N] [--scoped] [--rounds N]
                             [--profile CHANGE] [--memory] [--storm PER_S [--storm-s N]]

Prints microseconds of processor for each push and its acknowledgement, the least of some rounds,
and with `--memory` what Python has allocated for each idle stream, by file. What the carrier adds
is told by `transport.py`. With `--storm` so many endpoints change a second, where a second is one
of processor of the gateway: how stale sidecars are of a gateway that has a core to itself, whatever
else is on the machine.
"""

import argparse
import asyncio
import cProfile
import gc
import pstats
import random
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import structlog
from fleet_state import NO_NAMES, NOTHING, Held, Names, forget, request, told
from meshbus_xds_gateway.carrier import (
    Batch,
    Carrier,
    Certificate,
    Handler,
    Limits,
    Opened,
    Status,
    Tls,
)
from meshbus_xds_gateway.classes import NOT_COMPILED
from meshbus_xds_gateway.content import forget_responses
from meshbus_xds_gateway.fleet import Fleet
from meshbus_xds_gateway.load import Load, LoadLimits
from meshbus_xds_gateway.metrics import GatewayMetrics
from meshbus_xds_gateway.streams import SERVICE, StreamLimits, XdsServer
from prometheus_client import CollectorRegistry
from scenarios import staleness
from topology import CLUSTER, Rows, Size, Topology

from meshbus.bus.interface import Message
from meshbus.bus.memory import MemoryBus, MemoryServer
from meshbus.bus.mirror import WorldMirror
from meshbus.compile.resources import CDS, LDS
from meshbus.model.envelope import seal
from meshbus.model.keys import subject_of
from meshbus.model.rows import encode_row
from meshbus.model.world import Put, World
from meshbus.runtime.admin import Admin
from meshbus.runtime.clock import SystemClock
from meshbus.runtime.service import Context

METHOD = SERVICE + "DeltaAggregatedResources"
_ROW_S = 12e-6
"""What NATS's client and the follower take of a row in a storm, by a profile of a whole gateway."""
_PUSH_S = 15e-6
"""What the native carrier takes of a push and its acknowledgement."""
_IDLE_S = 0.0005


class Sidecar:
    """What a simulated sidecar holds; `sidecars.py` has the one with a socket."""

    __slots__ = ("held", "names")

    def __init__(self) -> None:
        self.held: dict[str, Held] = {}
        self.names: dict[str, Names] = {}

    def answers(self, message: bytes) -> list[bytes]:
        """What it says to a response."""
        response = told(message)
        self.held[response.type_url] = self.held.get(response.type_url, NOTHING).after(response)[0]
        out = [response.ack]
        for asked, names in response.asks.items():
            self.names[asked], new = self.names.get(asked, NO_NAMES).after(names)
            if new:
                out.append(request(asked, new))
        return out


class NoCarrier:
    """Keeps what is sent until the sidecars are asked for their answers."""

    name: ClassVar[str] = "none"

    def __init__(self) -> None:
        self.handler: Handler | None = None
        self.sent: list[tuple[bytes, Sequence[int]]] = []
        self.paused: set[int] = set()

    async def start(self, listen: str, handler: Handler, tls: Tls | None, limits: Limits) -> int:
        """See `Carrier`."""
        self.handler = handler
        return 0

    def send(self, messages: Sequence[tuple[bytes, Sequence[int]]]) -> None:
        """See `Carrier`."""
        self.sent.extend(messages)

    def close(self, stream: int, status: Status, message: str = "", *, leave: bool = False) -> None:
        """See `Carrier`."""
        raise RuntimeError(f"stream {stream} was ended: {status.name} {message}")

    def pause(self, stream: int) -> None:
        """See `Carrier`."""
        self.paused.add(stream)

    def resume(self, stream: int) -> None:
        """See `Carrier`."""
        self.paused.discard(stream)

    def renew(self, certificate: Certificate) -> None:
        """See `Carrier`."""

    def rotate_tickets(self, keys: Sequence[bytes]) -> None:
        """See `Carrier`."""

    def counters(self) -> Mapping[str, int]:
        """See `Carrier`."""
        return {}

    async def stop(self, grace_s: float) -> None:
        """See `Carrier`."""


class Bench:
    """A gateway that has read a mesh, and its sidecars."""

    def __init__(self, topology: Topology, folder: Path, tasks: asyncio.TaskGroup) -> None:
        self.topology = topology
        clock = SystemClock()
        registry = CollectorRegistry()
        log = structlog.get_logger("xds-gateway")
        bus = MemoryBus(MemoryServer(), "xds-gateway")
        self.context: Context[Any] = Context(
            "xds-gateway",
            "gw",
            CLUSTER,
            "istio-system",
            "cluster.local",
            folder,
            None,
            bus,
            clock,
            log,
            registry,
            Admin(),
        )
        metrics = GatewayMetrics(registry)
        self.fleet = Fleet(self.context, metrics, tasks, 3600)
        self.carrier = NoCarrier()
        self.server = XdsServer(
            self.context,
            self.fleet,
            metrics,
            StreamLimits(2700.0, 100_000),
            cast(Carrier, self.carrier),
            Load(CLUSTER, "gw", LoadLimits(9.0, 0), clock.monotonic),
            first_uses=None,
            refused=lambda refusal, objects: None,
        )
        self.world = World()
        self.sidecars: dict[int, Sidecar] = {}
        self.pushes = 0
        self.used = 0.0
        """Processor seconds of the gateway since `begin`."""
        self.marks = 0
        self.mirror = WorldMirror(NOT_COMPILED)
        """Where rows of a storm come in."""
        tasks.create_task(self.fleet.run())

    async def start(self) -> None:
        """Read the mesh."""
        await self.server.start("", None)
        self.step(self.topology.rows())

    def step(self, rows: Rows) -> None:
        """The next version of the world."""
        sequence = self.world.sequence + 1
        self.world, touched = self.world.apply([Put(k, sequence, 0.0, r) for k, r in rows.items()])
        self.fleet.world_changed(self.world, touched)

    def messages(self, rows: Rows) -> list[Message]:
        """What a writer sends."""
        out = []
        for key, row in rows.items():
            assert row is not None
            self.marks += 1
            data = seal(key, encode_row(row), ts=0.0, writer="bench")
            out.append(Message(subject_of(key), data, self.marks))
        return out

    async def storm(self, per_second: int, seconds: float) -> str:
        """Endpoint changes all over the mesh, in time that passes as the gateway uses it."""
        handler = self.carrier.handler
        assert handler is not None
        services = self.topology.size.services
        tracked = {self.topology.cluster(n): n for n in range(0, services, max(1, services // 20))}
        names = {number: name for name, number in tracked.items()}
        written: dict[str, list[tuple[int, float]]] = {name: [] for name in tracked}
        arrivals: list[list[Any]] = []
        chosen = random.Random(7)
        batch: Batch = []
        count, idle, quiet = 0, 0.0, 0
        self.begin()
        while self.used < seconds or self.fleet.sequence < self.marks or quiet < 3:
            due = int(min(self.used, seconds) * per_second) - count
            messages: list[Message] = []
            for _ in range(due):
                number, count = chosen.randrange(services), count + 1
                mark = self.marks + 1
                messages += self.messages(self.topology.endpoints(number, mark))
                if number in names:
                    written[names[number]].append((mark, self.used))
            began = time.process_time()
            if messages:
                self.mirror.apply(messages)
            if batch:
                handler(batch)
            await asyncio.sleep(0)
            self.used += time.process_time() - began + due * _ROW_S
            sent, self.carrier.sent = self.carrier.sent, []
            pushes = sum(len(streams) for _, streams in sent)
            self.used += pushes * _PUSH_S
            self.pushes += pushes
            batch = []
            for message, streams in sent:
                marks = told(message).marks
                for number in streams:
                    batch += [(number, answer) for answer in self.sidecars[number].answers(message)]
                    arrivals += [
                        [self.used, number, name, marks[name]] for name in marks if name in tracked
                    ]
            quiet = 0 if messages or sent else quiet + 1
            if quiet:
                self.used += _IDLE_S
                idle += _IDLE_S
        stale = sorted(staleness(written, arrivals))
        seen = {(number, name): mark for _, number, name, mark in arrivals}
        wrong = sum(mark != written[name][-1][0] for (_, name), mark in seen.items())
        median, p99 = (stale[len(stale) * share // 100] * 1e3 for share in (50, 99))
        return (
            f"storm: {count / seconds:.0f}/s for {seconds:.0f} s of processor, stale by "
            f"{median:.0f} ms in the median, {p99:.0f} at p99, {stale[-1] * 1e3:.0f} at most; "
            f"{self.pushes / count:.2f} responses a change, busy {1 - idle / self.used:.2f} of the "
            f"time, {wrong} wrong in the end"
        )

    def begin(self) -> None:
        """Count from now on."""
        gc.collect()
        self.pushes, self.used = 0, 0.0

    async def settle(self) -> None:
        """Until nobody has anything to say any more."""
        handler = self.carrier.handler
        assert handler is not None
        quiet = 0
        while quiet < 3:
            began = time.process_time()
            for _ in range(3):
                await asyncio.sleep(0)
            self.used += time.process_time() - began
            sent, self.carrier.sent = self.carrier.sent, []
            batch: Batch = [
                (number, answer)
                for message, streams in sent
                for number in streams
                for answer in self.sidecars[number].answers(message)
            ]
            self.pushes += sum(len(streams) for _, streams in sent)
            began = time.process_time()
            if batch:
                handler(batch)
            self.used += time.process_time() - began
            idle = not sent and self.fleet.sequence == self.world.sequence
            quiet = quiet + 1 if idle and not self.server.waiting else 0

    async def connect(self, count: int) -> None:
        """So many more sidecars."""
        handler = self.carrier.handler
        assert handler is not None
        nodes = list(self.topology.sidecars())
        first = len(self.sidecars)
        for number in range(first, first + count):
            self.sidecars[number] = Sidecar()
            more, at = divmod(number, len(nodes))
            identity, metadata = nodes[at]
            if more:
                # Beyond the instances of the mesh come more of the same workloads.
                kind, address, instance, domain = identity.split("~")
                name, _, namespace = instance.rpartition(".")
                identity = f"{kind}~{address}~{name}-more{more}.{namespace}~{domain}"
            batch: Batch = [
                (number, Opened(METHOD, (), "127.0.0.1:9", None)),
                (number, request(CDS, node=(identity, metadata))),
                (number, request(LDS)),
            ]
            began = time.process_time()
            handler(batch)
            self.used += time.process_time() - began
        await self.settle()

    def forget(self) -> None:
        """What the simulated sidecars hold."""
        forget()
        for sidecar in self.sidecars.values():
            sidecar.held, sidecar.names = {}, {}
        while not forget_responses():
            pass

    def change(self, kind: str, step: int) -> Rows:
        """Rows of a change."""
        self.marks += 1
        topology = self.topology
        if kind == "endpoint":
            return topology.endpoints(7, self.marks)
        if kind == "route":
            return topology.route(10, 10 + self.marks % 80)
        if kind == "policy":
            return topology.mesh_policy(self.marks)
        number = topology.size.services + step
        return {**topology.service(number), **topology.endpoints(number)}

    async def measure(self, kind: str, rounds: int, profile: bool) -> tuple[float, float, float]:
        """(pushes, processor us a push, processor ms a change): the least of the rounds."""
        best = (0.0, float("inf"), float("inf"))
        profiler = cProfile.Profile()
        for step in range(rounds):
            self.begin()
            if profile:
                profiler.enable()
            self.step(self.change(kind, step))
            await self.settle()
            profiler.disable()
            us = self.used / max(self.pushes, 1) * 1e6
            if us < best[1]:
                best = (self.pushes, us, self.used * 1e3)
        if profile:
            pstats.Stats(profiler).sort_stats("tottime").print_stats(35)
        return best


def by_file(before: tracemalloc.Snapshot, count: int) -> None:
    """What was allocated since, for each of so many."""
    found = tracemalloc.take_snapshot().compare_to(before, "lineno")
    total = sum(stat.size_diff for stat in found)
    print(f"{total / count / 1000:.2f} kB of Python objects for each stream")
    for stat in found[:40]:
        frame = stat.traceback[0]
        name = "/".join(frame.filename.split("/")[-2:])
        print(
            f"  {stat.size_diff / count:8.0f} B  {stat.count_diff / count:6.1f}  "
            f"{name}:{frame.lineno}"
        )


async def run(given: argparse.Namespace) -> None:
    """All measurements."""
    topology = Topology(Size(given.services, scoped=given.scoped))
    with tempfile.TemporaryDirectory() as folder:
        async with asyncio.TaskGroup() as tasks:
            bench = Bench(topology, Path(folder), tasks)
            await bench.start()
            if given.storm:
                rows = bench.messages(topology.rows())
                bench.mirror.begin()
                bench.fleet.follow(bench.mirror)
                bench.mirror.apply(rows)
                bench.mirror.end(bench.marks)
                bench.world = bench.mirror.world
            await bench.settle()
            bench.begin()
            snapshot: Callable[[], tracemalloc.Snapshot] = tracemalloc.take_snapshot
            if given.memory:
                tracemalloc.start()
                for count in (given.sidecars // 2, given.sidecars - given.sidecars // 2):
                    gc.collect()
                    before = snapshot()
                    await bench.connect(count)
                    bench.forget()
                    gc.collect()
                    by_file(before, count)
                tracemalloc.stop()
            else:
                await bench.connect(given.sidecars)
                print(f"cold: {bench.used:.2f} s, {bench.pushes} responses")
                if given.storm:
                    print(await bench.storm(given.storm, given.storm_s))
                    given.changes = ()
                for kind in given.changes:
                    profile = given.profile == kind
                    pushes, us, ms = await bench.measure(kind, given.rounds, profile)
                    print(f"{kind}: {pushes:.0f} pushes, {us:.1f} us each, {ms:.1f} ms", flush=True)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--services", type=int, default=200)
    parser.add_argument("--sidecars", type=int, default=2000)
    parser.add_argument("--scoped", action="store_true")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--changes", nargs="*", default=("endpoint", "route", "policy", "service"))
    parser.add_argument("--profile", default="")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--storm", type=int, default=0, help="endpoint changes a second")
    parser.add_argument("--storm-s", type=float, default=10.0, dest="storm_s")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    asyncio.run(run(given))


if __name__ == "__main__":
    main()
