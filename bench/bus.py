"""How fast a service reads MODEL: a snapshot, then changes as fast as they are written.

    python bench/bus.py [--rows 100000] [--changes 50000] [--profile]

A real nats-server, the writer in a process of its own, the reader (follower and mirror, without
compile) in this one. Printed as JSON: seconds, rows per second, processor microseconds of the
reader per row, of nats-server per row.
"""

import argparse
import asyncio
import cProfile
import json
import multiprocessing
import os
import pstats
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import structlog
from meshbus_xds_gateway.classes import collect_rarely
from processes import Bus, bus, cpu_seconds, resident_mb
from topology import Rows, Size, Topology

from meshbus.bus.connection import NatsBus
from meshbus.bus.mirror import WorldMirror
from meshbus.bus.nkeys import UserKey
from meshbus.bus.writer import ModelWriter

_BATCH = 500


def write_changes(url: str, seed: str, size: Size, changes: int) -> None:
    """The process of the writer: endpoint changes one after the other."""

    async def run() -> None:
        connection = NatsBus(url, "discovery", UserKey.from_seed(seed))
        connection.start()
        await connection.wait_connected()
        writer = ModelWriter(connection, cluster="c", service="discovery", pod="discovery-0")
        task = asyncio.create_task(writer.run())
        await writer.wait_leading()
        topology = Topology(size)
        for at in range(0, changes, _BATCH):
            rows: Rows = {}
            for step in range(at, at + _BATCH):
                rows.update(topology.endpoints(step % size.services, step))
            await writer.commit(list(rows.items()))
        task.cancel()
        await connection.close()

    import uvloop

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    uvloop.run(run())


async def measure(rows: int, changes: int, profile: bool) -> dict[str, Any]:
    """Everything that is printed."""
    with tempfile.TemporaryDirectory(prefix="meshbus-bench.") as name:
        async with bus(Path(name)) as made:
            return await _measure(made, rows, changes, profile)


async def _measure(made: Bus, rows: int, changes: int, profile: bool) -> dict[str, Any]:
    # A service is a row of its own, one of endpoints and one for each of its two instances.
    size = Size(rows // 4, calls=(0, 0), scoped=False)
    topology = Topology(size)
    all_rows = topology.rows()
    last = await made.write(all_rows)

    own = [os.getpid()]
    collect_rarely()
    mirror = WorldMirror()
    follower = mirror.follow(made.connections["xds-gateway"], name="bench")
    profiler = cProfile.Profile()
    began, used, nats = time.monotonic(), cpu_seconds(own), cpu_seconds([made.pid])
    if profile:
        profiler.enable()
    task = asyncio.create_task(follower.run())
    await follower.wait_synced()
    took = time.monotonic() - began
    if profile:
        profiler.disable()
        _show(profiler)
    out: dict[str, Any] = {
        "rows": len(all_rows),
        "snapshot_s": round(took, 2),
        "snapshot_rows_per_s": round(len(all_rows) / took),
        "snapshot_cpu_us": round((cpu_seconds(own) - used) / len(all_rows) * 1e6, 1),
        "snapshot_bus_cpu_us": round((cpu_seconds([made.pid]) - nats) / len(all_rows) * 1e6, 1),
        "resident_mb": round(resident_mb(own)),
    }
    await made.stop()
    await asyncio.sleep(0)
    context = multiprocessing.get_context("spawn")
    seed = made.server.keys["discovery"].seed
    child = context.Process(
        target=write_changes, args=(made.server.url, seed, size, changes), daemon=True
    )
    child.start()
    while mirror.world.sequence == last:
        await asyncio.sleep(0.001)
    # Fence and first batch: from here on it only writes.
    first = mirror.world.sequence
    target = first + changes - _BATCH
    began, used, nats = time.monotonic(), cpu_seconds(own), cpu_seconds([made.pid])
    profiler = cProfile.Profile()
    if profile:
        profiler.enable()
    lag = 0.0
    while not await mirror.reached(target, 1.0):
        lag = max(lag, time.monotonic() - began)
    took = time.monotonic() - began
    if profile:
        profiler.disable()
        _show(profiler)
    followed = mirror.world.sequence - first
    out |= {
        "changes": followed,
        "follow_s": round(took, 2),
        "follow_rows_per_s": round(followed / took),
        "follow_cpu_us": round((cpu_seconds(own) - used) / followed * 1e6, 1),
        "follow_bus_cpu_us": round((cpu_seconds([made.pid]) - nats) / followed * 1e6, 1),
        "resets": getattr(follower, "resets", 0),
    }
    child.join()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return out


def _show(profiler: cProfile.Profile) -> None:
    pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(22)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--changes", type=int, default=50_000)
    parser.add_argument("--profile", action="store_true", help="where the reader's time goes")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    import uvloop

    print(json.dumps(uvloop.run(measure(given.rows, given.changes, given.profile)), indent=1))


if __name__ == "__main__":
    main()
