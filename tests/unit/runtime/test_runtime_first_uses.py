"""First uses of join tokens: one user for all replicas."""

import asyncio

import pytest
from structlog.testing import capture_logs

from meshbus.bus.interface import BusError
from meshbus.bus.memory import MemoryBus, MemoryServer
from meshbus.runtime.clock import SystemClock
from meshbus.runtime.first_uses import FirstUses


class At(SystemClock):
    """A clock that a test sets."""

    time = 1000.0

    def now(self) -> float:
        return self.time


def replicas(count: int, server: MemoryServer, clock: At) -> list[FirstUses]:
    buses = [MemoryBus(server, "xds-gateway") for _ in range(count)]
    return [FirstUses(bus, "c", "xds-gateway", clock) for bus in buses]


async def test_of_many_at_once_one_is_first_for_all() -> None:
    server, clock = MemoryServer(), At()
    uses = replicas(5, server, clock)
    for token in map(str, range(20)):
        claims = (one.claim(token, f"user-{n}", 2000.0) for n, one in enumerate(uses))
        assert len(set(await asyncio.gather(*claims))) == 1
        assert len({one.first(token) for one in uses}) == 1


async def test_services_do_not_share_their_tokens() -> None:
    server, clock = MemoryServer(), At()
    ca = FirstUses(MemoryBus(server, "ca"), "c", "ca", clock)
    gateway = FirstUses(MemoryBus(server, "xds-gateway"), "c", "xds-gateway", clock)
    assert await ca.claim("t", "a key", 2000.0) == "a key"
    assert await gateway.claim("t", "an address", 2000.0) == "an address"


async def test_without_the_bus_only_what_is_known_can_be_told() -> None:
    server, clock = MemoryServer(), At()
    first, second = replicas(2, server, clock)
    assert await first.claim("t", "a", 2000.0) == "a"
    server.stop()
    assert await first.claim("t", "b", 2000.0) == "a"
    with pytest.raises(BusError):
        await second.claim("t", "b", 2000.0)


async def test_what_was_used_twice_while_the_bus_was_away_is_told() -> None:
    server, clock = MemoryServer(), At()
    first, second = replicas(2, server, clock)
    first.note("t", "a", 2000.0)
    second.note("t", "b", 2000.0)
    with capture_logs() as logs:
        tasks = [asyncio.create_task(one.run()) for one in (first, second)]
        server.stop()
        server.restart()
        async with asyncio.timeout(5):
            while not logs:
                await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert [entry["token"] for entry in logs] == ["t"]
    assert "used twice" in logs[0]["event"]


async def test_what_has_ended_is_forgotten() -> None:
    clock = At()
    (uses,) = replicas(1, MemoryServer(), clock)
    await uses.claim("short", "a", 1010.0)
    clock.time = 1039.0
    await uses.claim("long", "a", 9000.0)
    assert uses.first("short") == "a", "clocks may differ"
    clock.time = 1041.0
    await uses.claim("other", "a", 9000.0)
    assert uses.first("short") == ""
    assert uses.first("long") == "a"
