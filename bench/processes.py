"""The processes of a bench: nats-server, gateways with one or more workers, the sidecars; and what
each has used of processor and memory."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from nats_process import NatsServer, connections
from topology import CLUSTER, Rows, Size, Topology

from meshbus.bus.connection import NatsBus
from meshbus.bus.interface import BusError
from meshbus.bus.writer import ModelWriter
from meshbus.model.keys import Key
from meshbus.model.requests import CONVERGED, ConvergedReply, ConvergedRequest, replica_subject
from meshbus.model.rows import Row
from meshbus.runtime.calls import CallError, call

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_BATCH = 500
POD = "gw"


def cpu_seconds(pids: Iterable[int]) -> float:
    """What processes have used so far; those that have ended count nothing."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / _TICKS
    return total


def queued_seconds(pids: Iterable[int]) -> float:
    """How long the main threads of processes have been ready to run and had no core, so far: what
    else is on the machine took that from them. 0 where the kernel does not tell."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[1]) / 1e9
    return total


def resident_mb(pids: Iterable[int]) -> float:
    """What processes have in memory."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    return total / 1e6


def peak_mb(pids: Iterable[int]) -> float:
    """What processes had in memory at most, since each started."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            total += int(status.split("VmHWM:")[1].split()[0])
    return total / 1e3


def children(pid: int) -> list[int]:
    """Pids of the processes that a process has started."""
    with contextlib.suppress(OSError):
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def pin(pids: Iterable[int], core: int | None) -> None:
    """Keep processes on one core; None: any."""
    cores = set(range(os.cpu_count() or 1)) if core is None else {core}
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                os.sched_setaffinity(int(thread.name), cores)


class Bus:
    """A nats-server with the rows of a mesh."""

    def __init__(self, server: NatsServer, connection: dict[str, NatsBus]) -> None:
        self.server = server
        self.connections = connection
        self._writers: dict[str, ModelWriter] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Become the writer of all tables."""
        for name in ("config", "discovery"):
            writer = ModelWriter(
                self.connections[name], cluster=CLUSTER, service=name, pod=f"{name}-0"
            )
            self._writers[name] = writer
            self._tasks.append(asyncio.create_task(writer.run()))
            await writer.wait_leading()

    async def stop(self) -> None:
        """Write no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def pid(self) -> int:
        """Of nats-server."""
        assert self.server.process is not None
        return self.server.process.pid

    async def write(self, rows: Rows) -> int:
        """Rows by those who may write them; the id of the last change."""
        last = 0
        for writer, plane in (("discovery", "reg"), ("config", "cfg")):
            mine: list[tuple[Key, Row | None]] = [
                (key, row) for key, row in rows.items() if key.plane == plane
            ]
            for at in range(0, len(mine), _BATCH):
                last = await self._writers[writer].commit(mine[at : at + _BATCH])
        return last


@contextlib.asynccontextmanager
async def bus(folder: Path) -> AsyncIterator[Bus]:
    """A fresh one."""
    server = NatsServer(folder / "nats")
    server.start()
    try:
        async with connections(server) as connect:
            names = ("config", "discovery", "xds-gateway")
            made = Bus(server, {name: await connect(name) for name in names})
            await made.start()
            try:
                yield made
            finally:
                await made.stop()
    finally:
        server.kill()


class Gateway:
    """`meshbus serve xds-gateway`, serving plaintext on loopback."""

    def __init__(self, bus: Bus, folder: Path, workers: int, transport: str) -> None:
        self._bus = bus
        self._folder = folder
        self.workers = workers
        self._transport = transport
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])

    def start(self) -> None:
        """Without waiting for it."""
        self._starts += 1
        state = self._folder / "gateway"
        state.mkdir(exist_ok=True)
        env = {
            **os.environ,
            "MESHBUS_BUS_URL": self._bus.server.url,
            "MESHBUS_BUS_SEEDS": str(self._bus.server.seeds),
            "MESHBUS_CLUSTER": CLUSTER,
            "MESHBUS_POD": POD,
            "MESHBUS_STATE": str(state),
            "MESHBUS_ADMIN": "127.0.0.1:0",
            "MESHBUS_LOG_LEVEL": "warning",
            "MESHBUS_XDS_GATEWAY_LISTEN": "127.0.0.1:0",
            "MESHBUS_XDS_GATEWAY_PLAINTEXT": f"127.0.0.1:{self.port}",
            "MESHBUS_XDS_GATEWAY_TRANSPORT": self._transport,
            "MESHBUS_XDS_GATEWAY_WORKERS": str(self.workers),
        }
        with (self._folder / f"gateway-{self._starts}.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "meshbus.local.serving", "xds-gateway"],
                env=env,
                stdout=log,
                stderr=log,
            )

    @property
    def pids(self) -> list[int]:
        """Of the processes that serve."""
        if self._process is None:
            return []
        if self.workers == 1:
            return [self._process.pid]
        return children(self._process.pid)

    def kill(self) -> None:
        """Without warning, all of it."""
        if self._process is not None:
            pids = children(self._process.pid)
            self._process.kill()
            self._process.wait()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process = None

    def log(self) -> str:
        """What the last one has printed."""
        return (self._folder / f"gateway-{self._starts}.log").read_text()

    async def converged(self, sequence: int, timeout_s: float = 120.0) -> list[ConvergedReply]:
        """Until every proxy has a version, by what the gateway itself says."""
        pods = [POD] if self.workers == 1 else [f"{POD}-w{i}" for i in range(self.workers)]
        return await asyncio.gather(*(self._ask(pod, sequence, timeout_s) for pod in pods))

    async def _ask(self, pod: str, sequence: int, timeout_s: float) -> ConvergedReply:
        connection = self._bus.connections["config"]
        ends = asyncio.get_running_loop().time() + timeout_s
        while True:
            request = ConvergedRequest(sequence, 20.0)
            try:
                reply = await call(
                    connection, replica_subject(CONVERGED, pod), request, ConvergedReply, timeout=25
                )
                if reply.sequence >= sequence and not reply.waiting:
                    return reply
            except (CallError, BusError):
                await asyncio.sleep(0.05)
            if self._process is not None and self._process.poll() is not None:
                raise RuntimeError("the gateway has ended: " + self.log()[-2000:])
            if asyncio.get_running_loop().time() > ends:
                raise TimeoutError(f"{pod} is not at {sequence}: {self.log()[-2000:]}")


class Driver:
    """The process of the sidecars."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    async def tell(self, do: str, **more: Any) -> Any:
        """Have it do something; its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **more}).encode() + b"\n")
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process of the sidecars has ended")
        return json.loads(line)

    async def quiet(self, connected: int, quiet_s: float = 0.4, timeout_s: float = 300.0) -> Any:
        """Until so many are connected and nothing has come for a moment; its figures."""
        ends = asyncio.get_running_loop().time() + timeout_s
        while True:
            stats = await self.tell("stats")
            if stats["connected"] >= connected and stats["now"] - stats["last_at"] > quiet_s:
                return stats
            if asyncio.get_running_loop().time() > ends:
                raise TimeoutError(f"not quiet: {stats}")
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def driver(size: Size) -> AsyncIterator[Driver]:
    """Sidecars of a mesh; nobody is connected yet."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__).parent / "sidecars.py"), json.dumps(asdict(size))),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        limit=1 << 28,
    )
    try:
        yield Driver(process)
    finally:
        process.kill()
        await process.wait()


__all__ = ["Bus", "Driver", "Gateway", "Topology", "bus", "driver"]
