"""The bus when its server dies, restarts, forgets; and what it refuses."""

import asyncio
import contextlib
import shutil
from pathlib import Path

import pytest
from nats_process import BusFor, NatsServer

from meshbus.bus.interface import EVENTS, MODEL, BusUnavailable, Change
from meshbus.bus.mirror import WorldMirror
from meshbus.bus.writer import ModelWriter, NotLeading
from meshbus.model.keys import Key
from meshbus.model.rows import Namespace

pytestmark = pytest.mark.real


def _key(name: object) -> Key:
    return Key("c", "reg", "namespaces", "", str(name))


async def test_nothing_acknowledged_is_lost_when_the_server_is_killed(
    nats_server: NatsServer, bus_for: BusFor
) -> None:
    bus = await bus_for("discovery")
    writer = ModelWriter(bus, cluster="c", service="discovery", pod="discovery-0")
    mirror = WorldMirror()
    follower = mirror.follow(bus)
    tasks = [asyncio.create_task(writer.run()), asyncio.create_task(follower.run())]
    await asyncio.wait_for(writer.wait_leading(), 10)
    acknowledged: set[int] = set()
    smallest = 0
    largest = 0

    def watch(world: object, touched: object) -> None:
        nonlocal smallest
        count = len(mirror.world.all("reg.namespaces"))
        if count < largest:
            smallest = min(smallest, count - largest)

    mirror.subscribe(watch)
    kills = 0
    last = 0
    for number in range(600):
        if number in (200, 400):
            nats_server.kill()
            kills += 1
            asyncio.get_running_loop().call_later(0.3, nats_server.start)
        while True:
            try:
                last = await writer.commit([(_key(number), Namespace(str(number)))])
                acknowledged.add(number)
                break
            except (BusUnavailable, NotLeading):
                await asyncio.sleep(0.05)
        largest = max(largest, len(mirror.world.all("reg.namespaces")))
    assert kills == 2
    assert await mirror.reached(last, 20)
    rows = {entry.key.name for entry in mirror.world.all("reg.namespaces")}
    assert rows == {str(number) for number in acknowledged}
    assert smallest == 0, "the mirror lost rows on the way"
    for task in tasks:
        task.cancel()


async def test_a_mirror_survives_the_loss_of_the_stream(
    nats_server: NatsServer, bus_for: BusFor, tmp_path: Path
) -> None:
    bus = await bus_for("discovery")
    writer = ModelWriter(bus, cluster="c", service="discovery", pod="discovery-0")
    mirror = WorldMirror()
    tasks = [asyncio.create_task(writer.run()), asyncio.create_task(mirror.follow(bus).run())]
    await asyncio.wait_for(writer.wait_leading(), 10)
    sequence = await writer.commit([(_key("a"), Namespace("a")), (_key("b"), Namespace("b"))])
    assert await mirror.reached(sequence, 10)
    nats_server.kill()
    shutil.rmtree(nats_server.folder / "store")
    nats_server.start()
    config = await bus_for("config")
    await config.ensure_streams()

    async def written() -> None:
        while True:
            try:
                await writer.commit([(_key("c"), Namespace("c"))])
                return
            except (BusUnavailable, NotLeading):
                await asyncio.sleep(0.05)

    await asyncio.wait_for(written(), 20)

    async def followed() -> None:
        while mirror.world.get(_key("c")) is None:
            await asyncio.sleep(0.02)

    await asyncio.wait_for(followed(), 20)
    assert {e.key.name for e in mirror.world.all("reg.namespaces")} == {"c"}
    for task in tasks:
        task.cancel()


async def test_a_service_may_write_its_own_rows_only(
    nats_server: NatsServer, bus_for: BusFor
) -> None:
    policy = await bus_for("policy")
    fence = await policy.take_fence("m.ctl.fence.policy", "policy-0")
    await policy.commit([Change("m.c.mesh.addresses.-.policy", b"x")], fence)
    with pytest.raises(BusUnavailable):
        await policy.commit([Change("m.c.cfg.virtualservices.default.a", b"x")], fence, timeout=0.5)
    with pytest.raises(BusUnavailable):
        await policy.api("STREAM.DELETE.MODEL", timeout=0.5)
    with pytest.raises(BusUnavailable):
        await policy.publish(MODEL, "m.ctl.fence.config", b"x")
    config = await bus_for("config")
    assert await config.last(MODEL, "m.c.cfg.virtualservices.default.a") is None


async def test_without_a_key_there_is_no_connection(nats_server: NatsServer) -> None:
    from meshbus.bus.connection import NatsBus
    from meshbus.bus.nkeys import UserKey

    for key in (None, UserKey.generate()):
        bus = NatsBus(nats_server.url, "config", key)
        bus.start()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(bus.wait_connected(), 1)
        await bus.close()


async def test_a_bus_that_comes_later_is_found(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats")
    server.start()
    server.kill()
    bus = server.bus("config")
    bus.start()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(bus.wait_connected(), 0.5)
    with pytest.raises(BusUnavailable):
        await bus.publish(EVENTS, "events.v1.c.a.b.c.d", b"x")
    server.start()
    await asyncio.wait_for(bus.wait_connected(), 10)
    await bus.ensure_streams()
    await bus.ensure_streams()
    with contextlib.suppress(Exception):
        await bus.close()
    server.kill()
