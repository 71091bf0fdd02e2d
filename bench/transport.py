"""What a push and its ACK cost each carrier: CPU, time and memory per stream, without any xDS.

    python bench/transport.py [--streams 500 2000] [--tls both] [--size 2048] [--rounds 30]

A server that is nothing but a carrier runs on the first core, on the last one peers that speak
HTTP/2 by hand, one connection and one stream each. A round sends one message to all streams and
waits for an answer from each. Runs of the carriers are interleaved; the table has medians. A
machine that does other work moves all figures: read the ratios. A JSON line a run goes to --out.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import multiprocessing
import os
import resource
import ssl
import statistics
import struct
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/integration/transport"))

import uvloop
from meshbus_xds_gateway.carrier import Batch, Limits, Opened, Tls
from meshbus_xds_gateway.carrier_choice import make_carrier, native_is_installed
from raw_http2 import (
    ACK,
    DATA,
    END_HEADERS,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PING,
    PREFACE,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    message,
    request_headers,
    setting,
)
from transport_certificates import Authority

_ACK = frame(DATA, 0, 1, message(b"a" * 90))
_CONNECTS = 64
_STUCK_S = 60.0


class Peer(asyncio.Protocol):
    """Answers every message."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.message = bytearray()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        window = struct.pack("!I", 0x3FFF_0000)
        transport.write(
            PREFACE
            + frame(SETTINGS, 0, 0, setting(INITIAL_WINDOW_SIZE, 0x3FFF_FFFF))
            + frame(WINDOW_UPDATE, 0, 0, window)
            + frame(HEADERS, END_HEADERS, 1, request_headers())
            + _ACK
        )

    def data_received(self, data: bytes) -> None:
        buffer = self.buffer
        buffer += data
        out = b""
        while len(buffer) >= 9:
            size, kind, flags = int.from_bytes(buffer[:3]), buffer[3], buffer[4]
            if len(buffer) < 9 + size:
                break
            if kind == DATA:
                out += self._data(bytes(buffer[9 : 9 + size]))
            elif kind == SETTINGS and not flags & ACK:
                out += frame(SETTINGS, ACK, 0)
            elif kind == PING and not flags & ACK:
                out += frame(PING, ACK, 0, bytes(buffer[9 : 9 + size]))
            del buffer[: 9 + size]
        if out:
            self.transport.write(out)

    def _data(self, data: bytes) -> bytes:
        """Answers to the messages that end in a frame's payload."""
        self.message += data
        out = b""
        while len(self.message) >= 5:
            end = 5 + int.from_bytes(self.message[1:5])
            if len(self.message) < end:
                break
            del self.message[:end]
            out += _ACK
        return out


def peers(port: int, count: int, root_pem: bytes) -> None:
    """The process of the peers."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    raise_descriptors()

    async def run() -> None:
        context = None
        if root_pem:
            context = ssl.create_default_context(cadata=root_pem.decode())
            context.set_alpn_protocols(["h2"])
        gate = asyncio.Semaphore(_CONNECTS)
        loop = asyncio.get_running_loop()

        async def one() -> None:
            async with gate:
                await loop.create_connection(
                    Peer,
                    "127.0.0.1",
                    port,
                    ssl=context,
                    server_hostname="localhost" if context else None,
                )

        await asyncio.gather(*(one() for _ in range(count)))
        await loop.create_future()

    uvloop.run(run())


def raise_descriptors() -> None:
    """As many as the system lets a process have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def resident_kb() -> int:
    """Memory of this process now."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1])
    return 0


def cpu_s() -> float:
    """CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Server:
    """A carrier that sends one message to all, round by round."""

    def __init__(self, transport: str, count: int) -> None:
        self.carrier = make_carrier(transport)
        self.count = count
        self.streams: list[int] = []
        self.answers = 0
        self.complete = asyncio.Event()

    def handle(self, batch: Batch) -> None:
        """Count answers."""
        for stream, event in batch:
            if isinstance(event, bytes):
                self.answers += 1
            elif isinstance(event, Opened):
                self.streams.append(stream)
        if self.answers >= self.count:
            self.complete.set()

    async def round(self, data: bytes | None) -> float:
        """Seconds until all have answered; without data: until all are there."""
        began = time.perf_counter()
        if data is not None:
            self.answers = 0
            self.complete.clear()
            self.carrier.send([(data, self.streams)])
        async with asyncio.timeout(_STUCK_S):
            await self.complete.wait()
        return time.perf_counter() - began


def serve(pipe: Connection, args: argparse.Namespace, transport: str, count: int, tls: Any) -> None:
    """The process of the server; sends the port, then the figures."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    raise_descriptors()

    async def run() -> None:
        server = Server(transport, count)
        empty = resident_kb()
        port = await server.carrier.start("127.0.0.1:0", server.handle, tls, Limits())
        pipe.send(port)
        figures: dict[str, Any] = {"transport": transport, "streams": count, "tls": bool(tls)}
        before = cpu_s()
        try:
            await server.round(None)
        except TimeoutError:
            pipe.send({**figures, "stuck": "connecting", "answered": server.answers})
            return
        figures["connect_us"] = (cpu_s() - before) / count * 1e6
        figures["idle_kb"] = (resident_kb() - empty) / count
        gc.collect()
        gc.freeze()
        times = []
        for number in range(-3, args.rounds):
            if number == 0:
                before = cpu_s()
            took = await server.round(os.urandom(args.size))
            if number >= 0:
                times.append(took)
        figures["push_us"] = (cpu_s() - before) / args.rounds / count * 1e6
        figures["round_ms"] = statistics.median(times) * 1e3
        figures["after_kb"] = (resident_kb() - empty) / count
        pipe.send(figures)
        with contextlib.suppress(EOFError):
            await asyncio.to_thread(pipe.recv)

    uvloop.run(run())


def measure(args: argparse.Namespace, transport: str, count: int, *, tls: bool) -> dict[str, Any]:
    """One run."""
    authority = Authority()
    given = Tls(authority.issue()) if tls else None
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(theirs, args, transport, count, given))
    server.start()
    theirs.close()
    client = None
    try:
        port = ours.recv()
        root = authority.root_pem if tls else b""
        client = multiprocessing.Process(target=peers, args=(port, count, root))
        client.start()
        figures: dict[str, Any] = ours.recv()
        return figures
    finally:
        for process in (client, server):
            if process is not None:
                process.kill()
                process.join()


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[500, 2000])
    parser.add_argument("--tls", choices=["both", "yes", "no"], default="both")
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", default=str(Path(tempfile.gettempdir()) / "transport.jsonl"))
    args = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    transports = ["grpc", "native"] if native_is_installed() else ["grpc"]
    tls = {"both": [False, True], "yes": [True], "no": [False]}[args.tls]
    print(
        f"{args.size} bytes, {args.rounds} rounds, medians of {args.runs} runs; us and kB a stream"
    )
    columns = ("push_us", "round_ms", "connect_us", "idle_kb", "after_kb")
    print("streams  tls    carrier  " + "".join(f"{c:>12}" for c in columns))
    with Path(args.out).open("a") as out:
        for count in args.streams:
            for secure in tls:
                found: dict[str, list[dict[str, Any]]] = {name: [] for name in transports}
                for _ in range(args.runs):
                    for transport in transports:
                        figures = measure(args, transport, count, tls=secure)
                        print(json.dumps({"size": args.size, **figures}), file=out, flush=True)
                        found[transport].append(figures)
                for transport, runs in found.items():
                    good = [run for run in runs if "stuck" not in run]
                    cells = "".join(
                        f"{statistics.median(r[c] for r in good):12.1f}" if good else f"{'-':>12}"
                        for c in columns
                    )
                    stuck = f"  {len(runs) - len(good)} stuck" if len(good) < len(runs) else ""
                    name = "yes" if secure else "no"
                    print(f"{count:7}  {name:5}  {transport:7}  {cells}{stuck}", flush=True)


if __name__ == "__main__":
    main()
