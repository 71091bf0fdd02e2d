"""All scenarios on this machine: `make bench`, or

    python bench/run.py [--sidecars N] [--services N] [--only NAME ...] [--out FILE]
    python bench/run.py --compare BEFORE.json AFTER.json

Prints one table and writes the same as JSON. README.md beside this file says how it measures.
"""

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import msgspec
import structlog
from processes import Gateway, bus, driver, pin
from scenarios import Bench, Row
from topology import Size, Topology

SCENARIOS = (
    "scoped",
    "unscoped",
    "flap",
    "slow",
    "memory",
    "workers",
    "tail",
    "policy-scoped",
    "policy-unscoped",
)
_SERIES = (250, 500, 1000, 2000, 4000)
_BY_DEFAULT = 6
"""Of them are run when nothing is said."""
COLUMNS = (
    ("scenario", "<34", lambda r: r.scenario),
    ("n", ">6", lambda r: r.changes or ""),
    ("reached", ">7", lambda r: f"{r.reached:.0f}" if r.reached else ""),
    ("median ms", ">9", lambda r: _number(r.median_ms, 1)),
    ("p99 ms", ">9", lambda r: _number(r.p99_ms, 1)),
    ("last ms", ">9", lambda r: _number(r.last_ms, 1)),
    ("known ms", ">8", lambda r: _number(r.known_ms, 1)),
    ("server CPU s", ">12", lambda r: _number(r.server_cpu, 4)),
    ("bus CPU s", ">9", lambda r: _number(r.bus_cpu, 4)),
    ("kB", ">9", lambda r: _number(r.bytes / 1000, 1)),
    ("over", ">6", lambda r: _number(r.over, 2)),
    ("messages", ">8", lambda r: _number(r.messages, 1)),
    ("MB", ">6", lambda r: f"{r.rss_mb:.0f}"),
)
_COMPARED = ("median_ms", "p99_ms", "server_cpu", "bus_cpu", "bytes", "messages", "rss_mb")


def _number(value: float | None, digits: int) -> str:
    return "" if not value else f"{value:.{digits}f}"


def line(row: Row | None = None) -> str:
    """A row of the table, or its head."""
    cells = [f"{title if row is None else show(row):{form}}" for title, form, show in COLUMNS]
    return "  ".join(cells)


class Runner:
    """Runs scenarios and keeps their rows."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.rows: list[Row] = []

    def add(self, row: Row, prefix: str = "") -> None:
        """Print and keep."""
        row.scenario = f"{prefix}{row.scenario}"
        self.rows.append(row)
        print(line(row), flush=True)
        if row.note:
            print(f"    {row.note}", flush=True)

    @contextlib.asynccontextmanager
    async def bench(self, *, scoped: bool, workers: int = 1) -> AsyncIterator[Bench]:
        """A mesh with a gateway that has read it; nobody is connected."""
        given = self.given
        topology = Topology(Size(given.services, scoped=scoped, seed=given.seed))
        with tempfile.TemporaryDirectory(prefix="meshbus-bench.") as name:
            folder = Path(name)
            async with bus(folder) as rows, driver(topology.size) as sidecars:
                sequence = await rows.write(topology.rows())
                gateway = Gateway(rows, folder, workers, given.transport)
                gateway.start()
                try:
                    await gateway.converged(sequence)
                    await asyncio.sleep(0.3)
                    if given.pin and workers == 1:
                        pin(gateway.pids, 0)
                        pin([sidecars.pid, rows.pid, os.getpid()], (os.cpu_count() or 1) - 1)
                    else:
                        pin([os.getpid()], None)
                    yield Bench(topology, rows, gateway, sidecars)
                finally:
                    gateway.kill()

    async def changes(self, *, scoped: bool) -> None:
        """Cold start, each kind of change, reconnect."""
        given = self.given
        prefix = "scoped: " if scoped else "unscoped: "
        async with self.bench(scoped=scoped) as bench:
            self.add(await bench.cold(given.sidecars), prefix)
            for scenario in (
                bench.endpoint,
                bench.service_added,
                bench.route,
                bench.policy,
                bench.rewritten,
            ):
                self.add(await scenario(given.rounds), prefix)
            self.add(await bench.reconnect(), prefix)

    async def scoped(self) -> None:
        """Each namespace sees what it calls."""
        await self.changes(scoped=True)

    async def unscoped(self) -> None:
        """Everybody sees everything."""
        await self.changes(scoped=False)

    async def policy(self, *, scoped: bool) -> None:
        """A policy of the whole mesh alone."""
        prefix = "scoped: " if scoped else "unscoped: "
        async with self.bench(scoped=scoped) as bench:
            await bench.cold(self.given.sidecars)
            self.add(await bench.policy(self.given.rounds), prefix)

    async def policy_scoped(self) -> None:
        """Each namespace sees what it calls."""
        await self.policy(scoped=True)

    async def policy_unscoped(self) -> None:
        """Everybody sees everything."""
        await self.policy(scoped=False)

    async def flap(self) -> None:
        """Endpoint changes faster than anyone needs them."""
        # Three processes are busy at once: they share what cores there are.
        self.given.pin = False
        async with self.bench(scoped=True) as bench:
            await bench.cold(self.given.sidecars)
            self.add(await bench.flap_storm(self.given.flaps, self.given.flap_s))

    async def slow(self) -> None:
        """Some sidecars read nothing, some refuse everything: what the others notice."""
        given = self.given
        everybody = range(given.sidecars)
        for title, deaf, nacking in (
            ("nobody slow: ", (), ()),
            ("5 % deaf: ", everybody[::20], ()),
            ("5 % deaf, 25 % nacking: ", everybody[::20], everybody[1::4]),
        ):
            async with self.bench(scoped=False) as bench:
                manners = dict.fromkeys(map(str, deaf), "deaf")
                manners |= dict.fromkeys(map(str, nacking), "nacking")
                await bench.cold(given.sidecars, manners)
                if nacking:
                    row = await bench.endpoint_beside_refusals(given.rounds, len(deaf))
                else:
                    row = await bench.endpoint(given.rounds, len(deaf))
                self.add(row, title)

    async def memory(self) -> None:
        """Idle sidecars."""
        async with self.bench(scoped=True) as bench:
            top = self.given.idle or self.given.sidecars
            for row in await bench.memory([top // 10, top // 2, top]):
                self.add(row)

    async def workers(self) -> None:
        """What a second worker is worth."""
        busiest = {}
        for workers in (1, 2):
            async with self.bench(scoped=False, workers=workers) as bench:
                await bench.cold(self.given.sidecars)
                row, used = await bench.rounds(self.given.rounds * 4, 7)
                busiest[workers] = max(used)
                row.note = "CPU s of each worker: " + ", ".join(f"{u:.2f}" for u in used)
                if workers == 2:
                    row.note += (
                        f"; the busiest does {busiest[2] / busiest[1]:.2f} of what one alone does: "
                        f"{busiest[1] / busiest[2]:.2f} times the throughput where each has a core"
                    )
                self.add(row)

    async def tail(self) -> None:
        """Cost of one change by the number of sidecars (unscoped) and of services (scoped)."""
        given = argparse.Namespace(**vars(self.given))
        for sidecars in _SERIES:
            self.given = argparse.Namespace(**{**vars(given), "sidecars": sidecars})
            async with self.bench(scoped=False) as bench:
                await bench.cold(sidecars)
                for scenario in (bench.endpoint, bench.route):
                    self.add(await scenario(given.rounds), f"{sidecars} sidecars: ")
        for services in _SERIES:
            self.given = argparse.Namespace(**{**vars(given), "services": services})
            async with self.bench(scoped=True) as bench:
                await bench.cold(given.sidecars)
                for scenario in (bench.endpoint, bench.service_added, bench.route):
                    self.add(await scenario(given.rounds), f"{services} services: ")
        self.given = given


def compare(before: Path, after: Path) -> int:
    """Print how the second run differs from the first."""
    runs = [json.loads(path.read_text()) for path in (before, after)]
    for key in ("services", "sidecars", "transport", "seed"):
        values = [run["settings"].get(key) for run in runs]
        if values[0] != values[1]:
            print(f"settings differ: {key} {values[0]} and {values[1]}", file=sys.stderr)
    first, second = ({row["scenario"]: row for row in run["rows"]} for run in runs)
    print(f"{'scenario':<34}  " + "  ".join(f"{name:>10}" for name in _COMPARED))
    for name, row in second.items():
        if name not in first:
            continue
        cells = []
        for column in _COMPARED:
            was, is_ = first[name].get(column), row.get(column)
            cells.append(f"{is_ / was:>9.2f}x" if was and is_ else f"{'':>10}")
        print(f"{name:<34}  " + "  ".join(cells))
    return 0


def settings(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--services", type=int, default=200)
    parser.add_argument("--sidecars", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5, help="changes of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--flaps", type=int, default=2000, help="endpoint changes a second")
    parser.add_argument("--flap-s", type=float, default=5.0, dest="flap_s")
    parser.add_argument("--idle", type=int, default=0, help="sidecars of the memory rows")
    parser.add_argument("--transport", choices=("auto", "grpc", "native"), default="auto")
    parser.add_argument("--no-pin", action="store_false", dest="pin")
    parser.add_argument("--only", nargs="*", choices=SCENARIOS, default=SCENARIOS[:_BY_DEFAULT])
    parser.add_argument("--out", type=Path, default=Path("bench-result.json"))
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"))
    return parser.parse_args(argv)


async def measure(given: argparse.Namespace) -> list[Row]:
    """The rows of all scenarios that were asked for."""
    runner = Runner(given)
    print(line())
    for name in given.only:
        await getattr(runner, name.replace("-", "_"))()
    return runner.rows


def main() -> int:
    """Parse, measure, print, write."""
    given = settings(sys.argv[1:])
    if given.compare:
        return compare(*given.compare)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    import uvloop

    rows = uvloop.run(measure(given))
    document: dict[str, Any] = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(given).items()},
        "rows": [msgspec.to_builtins(row) for row in rows],
    }
    given.out.write_text(json.dumps(document, indent=1) + "\n")
    print(f"written to {given.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
