"""What is measured. Each scenario gives rows of the table; see `Row`."""

import asyncio
import bisect
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from processes import Bus, Driver, Gateway, cpu_seconds, peak_mb, queued_seconds, resident_mb
from topology import PORT, Rows, Topology


class Row(msgspec.Struct):
    """One line of the table. Zero or None where a scenario has no such figure."""

    scenario: str
    changes: int = 1
    reached: float = 0
    """Sidecars that something came to, per change."""
    median_ms: float | None = None
    """From just before the write to a sidecar's last message of the change."""
    p99_ms: float | None = None
    last_ms: float | None = None
    """To the last sidecar's; median of the changes."""
    known_ms: float | None = None
    """From the last sidecar's message to the gateway's word that all have the change; median."""
    server_cpu: float = 0.0
    """Seconds per change, of all processes of the gateway."""
    bus_cpu: float = 0.0
    driver_cpu: float = 0.0
    bytes: float = 0.0
    """On the wire to the sidecars, frames and all, per change."""
    over: float | None = None
    """Bytes divided by those of the resources that differ from what each sidecar had."""
    messages: float = 0.0
    wasted: float = 0.0
    """Resources sent to a sidecar that had them, per change."""
    rss_mb: float = 0.0
    note: str = ""


class Bench:
    """One mesh on one bus with one gateway and its sidecars."""

    def __init__(self, topology: Topology, bus: Bus, gateway: Gateway, driver: Driver) -> None:
        self.topology = topology
        self.bus = bus
        self.gateway = gateway
        self.driver = driver
        self.connected = 0
        self._marks = 0
        self._random = random.Random(7)

    def _cpu(self) -> tuple[float, float, float]:
        return (
            cpu_seconds(self.gateway.pids),
            cpu_seconds([self.bus.pid]),
            cpu_seconds([self.driver.pid]),
        )

    async def changes(
        self, name: str, count: int, change: Callable[[int], Rows], note: str = "", deaf: int = 0
    ) -> Row:
        """Write changes one by one, each once the one before has arrived everywhere; `deaf`: as
        many sidecars read nothing, so that the gateway cannot say when it has: then endpoints are
        waited for, and theirs are the times."""
        per_sidecar: list[float] = []
        lasts: list[float] = []
        known: list[float] = []
        totals = dict.fromkeys(("messages", "bytes", "changed", "wasted"), 0)
        reached = 0
        before = self._cpu()
        for step in range(count):
            rows = change(step)
            track = [f"outbound|{PORT}||{key.name}" for key in rows if key.table == "reg.endpoints"]
            await self.driver.tell("mark", track=track if deaf else [])
            began = time.monotonic()
            sequence = await self.bus.write(rows)
            if deaf:
                await self._heard_by(self.connected - deaf)
                times = [at - began for at, *_ in await self.driver.tell("arrivals")]
            else:
                await self.gateway.converged(sequence)
                told = time.monotonic() - began
                times = [at - began for at in (await self.driver.tell("lasts")).values()]
                known.append(told - max(times, default=told))
            stats = await self.driver.tell("stats")
            per_sidecar += times
            reached += len(times)
            lasts.append(max(times, default=0.0))
            for key in totals:
                totals[key] += stats[key]
        used = [after - b for after, b in zip(self._cpu(), before, strict=True)]
        return Row(
            name,
            count,
            reached / count,
            _ms(statistics.median(per_sidecar)) if per_sidecar else None,
            _ms(_quantile(per_sidecar, 0.99)) if per_sidecar else None,
            _ms(statistics.median(lasts)),
            _ms(statistics.median(known)) if known else None,
            *(part / count for part in used),
            bytes=totals["bytes"] / count,
            over=totals["bytes"] / totals["changed"] if totals["changed"] else None,
            messages=totals["messages"] / count,
            wasted=totals["wasted"] / count,
            rss_mb=resident_mb(self.gateway.pids),
            note=note,
        )

    async def _heard_by(self, count: int) -> None:
        """Until so many sidecars were told the endpoints of the change."""
        for _ in range(1000):
            if (await self.driver.tell("stats"))["arrived"] >= count:
                return
            await asyncio.sleep(0.01)
        raise TimeoutError("not everybody who reads was told")

    async def storm(self, name: str, act: Callable[[], Awaitable[None]]) -> Row:
        """All sidecars at once: until they are connected and nothing comes any more."""
        await self.driver.tell("mark")
        before, began = self._cpu(), time.monotonic()
        await act()
        stats = await self.driver.quiet(self.connected)
        after = self._cpu()
        lasts = [at - began for at in (await self.driver.tell("lasts")).values()]
        fresh = before[0] if after[0] >= before[0] else 0.0
        return Row(
            name,
            1,
            len(lasts),
            _ms(statistics.median(lasts)),
            _ms(_quantile(lasts, 0.99)),
            _ms(max(lasts)),
            None,
            after[0] - fresh,
            after[1] - before[1],
            after[2] - before[2],
            stats["bytes"],
            stats["bytes"] / stats["changed"] if stats["changed"] else None,
            stats["messages"],
            stats["wasted"],
            resident_mb(self.gateway.pids),
            f"peak {peak_mb(self.gateway.pids):.0f} MB, uploaded {stats['uploaded'] / 1e6:.2f} MB",
        )

    # ------------------------------------------------------------------ at once

    async def cold(self, count: int, manners: dict[str, str] | None = None) -> Row:
        """So many sidecars connect that have nothing."""
        self.connected = count

        async def connect() -> None:
            await self.driver.tell(
                "connect", **{"from": 0, "to": count}, port=self.gateway.port, manners=manners or {}
            )

        return await self.storm(f"cold start, {count}", connect)

    async def memory(self, counts: list[int]) -> list[Row]:
        """Resident memory with more and more idle sidecars."""
        rows = [Row("memory, 0 idle", 0, rss_mb=resident_mb(self.gateway.pids))]
        for count in counts:
            first = self.connected
            self.connected = count
            await self.driver.tell(
                "connect", **{"from": first, "to": count}, port=self.gateway.port
            )
            await self.driver.quiet(count, 1.0)
            row = Row(f"memory, {count} idle", 0, count, rss_mb=resident_mb(self.gateway.pids))
            more = (row.rss_mb - rows[-1].rss_mb) / max(count - first, 1) * 1000
            row.note = f"{more:.0f} kB for each further sidecar"
            rows.append(row)
        return rows

    async def reconnect(self) -> Row:
        """The gateway is killed and started again; all come back with what they have."""

        async def restart() -> None:
            self.gateway.kill()
            self.gateway.start()
            await asyncio.sleep(0.2)
            while (await self.driver.tell("stats"))["connected"] == self.connected:
                await asyncio.sleep(0.02)

        row = await self.storm(f"reconnect, {self.connected}", restart)
        row.note += "; from the kill on, with the start of Python and the read of the model"
        return row

    # ------------------------------------------------------------------ one by one

    async def endpoint(self, count: int, deaf: int = 0) -> Row:
        """An endpoint comes or goes."""
        return await self.changes("endpoint", count, self._flapped, deaf=deaf)

    def _flapped(self, step: int) -> Rows:
        self._marks += 1
        number = (7 + 13 * step) % self.topology.size.services
        return self.topology.endpoints(number, self._marks)

    async def endpoint_beside_refusals(self, count: int, deaf: int) -> Row:
        """An endpoint, and in the same change a route that some refuse."""

        def change(step: int) -> Rows:
            return {**self._flapped(step), **self.topology.route(10 * (step % 3), 10 + step % 80)}

        return await self.changes("endpoint, a route refused", count, change, deaf=deaf)

    async def service_added(self, count: int) -> Row:
        """A service with endpoints in a namespace that is there."""
        size = self.topology.size
        with_sidecar = min(size.services, self.connected)

        def add(step: int) -> Rows:
            # The last namespace that has sidecars gets it; a number that no service has.
            number = size.services + step
            namespace = self.topology.namespace(with_sidecar - 1)
            rows = {**self.topology.service(number), **self.topology.endpoints(number)}
            return {
                key._replace(namespace=namespace): msgspec.structs.replace(row, namespace=namespace)
                for key, row in rows.items()
                if row is not None
            }

        return await self.changes("service added", count, add)

    async def route(self, count: int) -> Row:
        """The weights of a route."""
        return await self.changes(
            "route", count, lambda step: self.topology.route(10 * (step % 3), 10 + step % 80)
        )

    async def policy(self, count: int) -> Row:
        """A policy of the whole mesh."""
        return await self.changes("policy for all", count, self.topology.mesh_policy)

    async def rewritten(self, count: int) -> Row:
        """Rows written again as they are."""

        def again(_: int) -> Rows:
            return {**self.topology.service(1), **self.topology.route(5, 90)}

        return await self.changes("rewritten as it is", count, again)

    # ------------------------------------------------------------------ without pause

    async def flap_storm(self, per_second: int, seconds: float) -> Row:
        """So many endpoint changes a second, all over the mesh; what tracked ones see of it."""
        topology = self.topology
        services = topology.size.services
        tracked = {topology.cluster(n): n for n in range(0, services, max(1, services // 20))}
        await self.driver.tell("mark", track=list(tracked))
        before = self._cpu()
        queued = queued_seconds(self.gateway.pids)
        written: dict[str, list[tuple[int, float]]] = {name: [] for name in tracked}
        stored: dict[str, list[tuple[int, float]]] = {name: [] for name in tracked}
        clusters = {number: name for name, number in tracked.items()}
        last = count = 0
        write_s = 0.0
        began = time.monotonic()
        peak = 0.0
        while (passed := time.monotonic() - began) < seconds:
            due = min(int(passed * per_second) - count, 1000)
            if due < 1:
                await asyncio.sleep(0.005)
                continue
            rows: Rows = {}
            wrote: list[tuple[str, int]] = []
            for _ in range(due):
                self._marks += 1
                number = self._random.randrange(services)
                rows.update(topology.endpoints(number, self._marks))
                if number in clusters:
                    wrote.append((clusters[number], self._marks))
            at = time.monotonic()
            last = await self.bus.write(rows)
            has_it = time.monotonic()
            write_s = max(write_s, has_it - at)
            for name, mark in wrote:
                written[name].append((mark, at))
                stored[name].append((mark, has_it))
            count += due
            if count % (per_second // 2 or 1) < due:
                peak = max(peak, resident_mb(self.gateway.pids))
        wrote_s = time.monotonic() - began
        await self.gateway.converged(last)
        settled_s = time.monotonic() - began - wrote_s
        after = self._cpu()
        all_s = wrote_s + settled_s
        queued = queued_seconds(self.gateway.pids) - queued
        stats = await self.driver.tell("stats")
        arrivals = await self.driver.tell("arrivals")
        stale = staleness(written, arrivals)
        from_bus = staleness(stored, arrivals)
        final = {name: marks[-1][0] for name, marks in written.items() if marks}
        seen = {(index, name): mark for _, index, name, mark in arrivals}
        wrong = sum(mark != final[name] for (_, name), mark in seen.items())
        return Row(
            f"flap storm, {count / wrote_s:.0f}/s for {wrote_s:.0f} s",
            count,
            0,
            _ms(statistics.median(stale)) if stale else None,
            _ms(_quantile(stale, 0.99)) if stale else None,
            _ms(max(stale, default=0.0)),
            None,
            *((a - b) / count for a, b in zip(after, before, strict=True)),
            bytes=stats["bytes"] / count,
            over=stats["bytes"] / stats["changed"] if stats["changed"] else None,
            messages=stats["messages"] / count,
            wasted=stats["wasted"] / count,
            rss_mb=max(peak, resident_mb(self.gateway.pids)),
            note=f"staleness; since the bus had it: median {_ms(statistics.median(from_bus)):.0f}, "
            f"p99 {_ms(_quantile(from_bus, 0.99)):.0f} ms; a write took {_ms(write_s):.0f} ms at "
            f"most; settled {settled_s:.2f} s after the last, {wrong} wrong in the end; gateway "
            f"{(after[0] - before[0]) / all_s:.2f} cores, and waited for one {queued / all_s:.2f} "
            f"of the time; sidecars {(after[2] - before[2]) / all_s:.2f} cores, late by "
            f"{_ms(stats['late_p99']):.0f} ms at p99",
        )

    async def rounds(self, count: int, concerned: int) -> tuple[Row, list[float]]:
        """Endpoint changes that concern everybody; processor seconds of each worker."""
        before = [cpu_seconds([pid]) for pid in self.gateway.pids]
        row = await self.changes(
            f"throughput, {self.gateway.workers} workers",
            count,
            lambda step: self.topology.endpoints(concerned, self._next_mark()),
        )
        after = [cpu_seconds([pid]) for pid in self.gateway.pids]
        return row, [a - b for a, b in zip(after, before, strict=True)]

    def _next_mark(self) -> int:
        self._marks += 1
        return self._marks


def _ms(seconds: float) -> float:
    return seconds * 1000


def _quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def staleness(
    written: dict[str, list[tuple[int, float]]], arrivals: list[list[Any]]
) -> list[float]:
    """How old what a sidecar had was when the next value came: since the first write that it had
    not seen. Of each arrival."""
    stale = []
    seen: dict[tuple[int, str], int] = {}
    for at, index, name, mark in arrivals:
        marks = written[name]
        place = bisect.bisect_left(marks, (mark, 0.0))
        if place == len(marks) or marks[place][0] != mark:
            continue  # of before the storm
        missed = seen.get((index, name), -1) + 1
        stale.append(at - marks[min(missed, place)][1])
        seen[index, name] = place
    return stale
