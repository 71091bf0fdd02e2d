"""What the bus promises, asked of the real server and of the one in memory."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from nats_process import NatsServer, connections, nats_binary

from meshbus.bus.interface import (
    LEASE,
    MODEL,
    STATUS,
    Bus,
    BusUnavailable,
    Change,
    Message,
    NoResponders,
    TooLarge,
    WriteConflict,
)
from meshbus.bus.memory import MemoryBus, MemoryServer
from meshbus.bus.mirror import WorldMirror
from meshbus.bus.writer import ModelWriter, NotLeading
from meshbus.model.keys import Key
from meshbus.model.rows import Namespace, ServiceAddress

Connect = Callable[[str], Awaitable[Bus]]
FENCE = "m.ctl.fence.config"
SUBJECT = "m.c.cfg.things.default."


@pytest_asyncio.fixture(params=["memory", pytest.param("nats", marks=pytest.mark.real)])
async def connect(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Connect]:
    if request.param == "memory":
        memory = MemoryServer()

        async def make(identity: str) -> Bus:
            return MemoryBus(memory, identity)

        yield make
        return
    if nats_binary() is None:
        pytest.skip("nats-server is not installed (extra `standalone`)")
    server = NatsServer(tmp_path / "nats")
    server.start()
    async with connections(server) as bus_for:
        yield bus_for
    server.kill()


class Recorder:
    """Keeps what a follower gives."""

    def __init__(self) -> None:
        self.state: dict[str, bytes] = {}
        self.building: dict[str, bytes] | None = None
        self.calls: list[list[Message]] = []
        self.ends = 0
        self.changed = asyncio.Event()

    def begin(self) -> None:
        self.building = {}

    def apply(self, messages: list[Message]) -> None:
        state = self.state if self.building is None else self.building
        if self.building is None:
            self.calls.append(list(messages))
        for message in messages:
            if message.data:
                state[message.subject] = message.data
            else:
                state.pop(message.subject, None)
        self.changed.set()

    def end(self, sequence: int) -> None:
        assert self.building is not None
        self.state, self.building = self.building, None
        self.ends += 1
        self.changed.set()

    async def until(self, condition: Callable[[], bool], timeout: float = 10) -> None:
        async def wait() -> None:
            while not condition():
                self.changed.clear()
                await self.changed.wait()

        await asyncio.wait_for(wait(), timeout)


async def test_a_follower_sees_the_snapshot_and_then_each_change(connect: Connect) -> None:
    bus = await connect("config")
    fence = await bus.take_fence(FENCE, "config-0")
    await bus.commit([Change(SUBJECT + "a", b"1"), Change(SUBJECT + "b", b"1")], fence)
    await bus.commit([Change(SUBJECT + "b", None)], fence)
    recorder = Recorder()
    follower = bus.follower(MODEL, ["m.c.>"], recorder)
    task = asyncio.create_task(follower.run())
    await asyncio.wait_for(follower.wait_synced(), 10)
    assert recorder.state == {SUBJECT + "a": b"1"}
    last = await bus.commit([Change(SUBJECT + "a", b"2"), Change(SUBJECT + "c", b"1")], fence)
    await recorder.until(lambda: SUBJECT + "c" in recorder.state)
    assert recorder.state == {SUBJECT + "a": b"2", SUBJECT + "c": b"1"}
    assert follower.sequence == last
    await bus.commit([Change(SUBJECT + "a", None)], fence)
    await recorder.until(lambda: SUBJECT + "a" not in recorder.state)
    task.cancel()


async def test_a_batch_arrives_whole(connect: Connect) -> None:
    bus = await connect("config")
    fence = await bus.take_fence(FENCE, "config-0")
    recorder = Recorder()
    follower = bus.follower(MODEL, ["m.c.>"], recorder)
    task = asyncio.create_task(follower.run())
    await asyncio.wait_for(follower.wait_synced(), 10)
    for number in range(20):
        changes = [Change(f"{SUBJECT}{index}", b"%d" % number) for index in range(50)]
        await bus.commit(changes, fence)
    await recorder.until(lambda: recorder.state.get(SUBJECT + "49") == b"19")
    for messages in recorder.calls:
        versions = [m.data for m in messages]
        for _, group in itertools.groupby(versions):
            assert len(list(group)) == 50, "a batch was split"
    task.cancel()


async def test_sequences_are_contiguous_in_a_batch(connect: Connect) -> None:
    bus = await connect("config")
    fence = await bus.take_fence(FENCE, "config-0")
    one = await bus.commit([Change(SUBJECT + "a", b"1")], fence)
    three = await bus.commit([Change(SUBJECT + str(i), b"1") for i in range(3)], fence)
    assert three == one + 3
    last = await bus.last(MODEL, SUBJECT + "0")
    assert last is not None
    assert last.sequence == one + 1
    newest = await bus.last(MODEL, SUBJECT.rstrip(".") + ".>")
    assert newest is not None
    assert (newest.subject, newest.sequence) == (SUBJECT + "2", three)


async def test_a_new_fence_voids_the_old_one(connect: Connect) -> None:
    bus = await connect("config")
    old = await bus.take_fence(FENCE, "config-0")
    new = await bus.take_fence(FENCE, "config-1")
    with pytest.raises(WriteConflict):
        await bus.commit([Change(SUBJECT + "a", b"old")], old)
    with pytest.raises(WriteConflict):
        await bus.commit([Change(SUBJECT + str(i), b"old") for i in range(5)], old)
    assert await bus.last(MODEL, SUBJECT + "a") is None
    assert await bus.last(MODEL, SUBJECT + "0") is None
    await bus.commit([Change(SUBJECT + "a", b"new")], new)


async def test_too_large_is_refused_before_it_is_sent(connect: Connect) -> None:
    bus = await connect("config")
    fence = await bus.take_fence(FENCE, "config-0")
    with pytest.raises(TooLarge):
        await bus.commit(
            [Change(SUBJECT + "a", b"ok"), Change(SUBJECT + "b", bytes(5_000_000))], fence
        )
    assert await bus.last(MODEL, SUBJECT + "a") is None
    await bus.commit([Change(SUBJECT + "a", bytes(3_000_000))], fence)
    with pytest.raises(TooLarge):
        await bus.publish(STATUS, "s.c.config.config-0.x", bytes(5_000_000))


async def test_publish_checks_what_it_expects(connect: Connect) -> None:
    bus = await connect("config")
    first = await bus.publish(LEASE, "lease.config", b"a", expect=0, ttl_s=30)
    with pytest.raises(WriteConflict):
        await bus.publish(LEASE, "lease.config", b"b", expect=0, ttl_s=30)
    second = await bus.publish(LEASE, "lease.config", b"c", expect=first, ttl_s=1)
    assert second > first
    for _ in range(100):
        if await bus.last(LEASE, "lease.config") is None:
            break
        await asyncio.sleep(0.05)
    assert await bus.last(LEASE, "lease.config") is None


async def test_request_and_reply(connect: Connect) -> None:
    server, client = await connect("ca"), await connect("xds-gateway")
    with pytest.raises(NoResponders):
        await client.request("x.ca.sign.xds-gateway", b"?")

    async def handle(data: bytes) -> bytes:
        if data == b"slow":
            await asyncio.sleep(30)
        return b"<" + data + b">"

    await server.serve("x.ca.sign.xds-gateway", handle, queue="ca")
    assert await client.request("x.ca.sign.xds-gateway", b"hi") == b"<hi>"
    slow = asyncio.create_task(client.request("x.ca.sign.xds-gateway", b"slow", timeout=0.2))
    assert await client.request("x.ca.sign.xds-gateway", b"quick") == b"<quick>"
    with pytest.raises(BusUnavailable):
        await slow


async def test_what_is_served_is_answered_at_once(connect: Connect) -> None:
    server, client = await connect("config"), await connect("config")

    async def handle(data: bytes) -> bytes:
        return data

    for number in range(60):
        subject = f"x.config.number-{number}"
        await server.serve(subject, handle)
        assert await client.request(subject, b"hi", timeout=20) == b"hi"


def _address(port: int) -> ServiceAddress:
    return ServiceAddress("policy", "127.0.0.1", port)


async def test_the_writer_leads_writes_and_reconciles(connect: Connect) -> None:
    bus = await connect("config")
    writer = ModelWriter(bus, cluster="c", service="config", pod="config-0")
    key = Key("c", "mesh", "config", "", "one")
    with pytest.raises(NotLeading):
        await writer.commit([(key, Namespace("x"))])
    task = asyncio.create_task(writer.run())
    await asyncio.wait_for(writer.wait_leading(), 10)
    mirror = WorldMirror()
    follower = mirror.follow(bus)
    following = asyncio.create_task(follower.run())
    await asyncio.wait_for(follower.wait_synced(), 10)
    rows = {Key("c", "cfg", "namespaces", "", str(n)): Namespace(str(n)) for n in range(3)}
    # `cfg` rows are ConfigObjects; a Namespace there cannot be read, and must not stop the mirror.
    sequence = await writer.reconcile(rows, [])
    assert sequence is not None
    assert await mirror.reached(sequence, 10)
    assert len(mirror.poisoned) == 3
    assert await writer.reconcile(rows, list(rows.items())) is None
    rest = dict(list(rows.items())[:1])
    assert await writer.reconcile(rest, list(rows.items())) == sequence + 2
    task.cancel()
    following.cancel()


async def test_only_one_writer_leads_and_the_next_takes_over(connect: Connect) -> None:
    bus, other = await connect("config"), await connect("config")
    first = ModelWriter(bus, cluster="c", service="config", pod="config-0")
    second = ModelWriter(other, cluster="c", service="config", pod="config-1")
    one = asyncio.create_task(first.run())
    await asyncio.wait_for(first.wait_leading(), 10)
    two = asyncio.create_task(second.run())
    key = Key("c", "mesh", "config", "", "mesh")
    await first.commit([(key, Namespace("one"))])
    assert not second.leading
    one.cancel()
    await asyncio.wait_for(second.wait_leading(), 10)
    await second.commit([(key, Namespace("two"))])
    with pytest.raises(NotLeading):
        await first.commit([(key, Namespace("late"))])
    two.cancel()


async def test_the_same_replica_comes_back_at_once(connect: Connect) -> None:
    bus, again = await connect("config"), await connect("config")
    first = ModelWriter(bus, cluster="c", service="config", pod="config-0")
    one = asyncio.create_task(first.run())
    await asyncio.wait_for(first.wait_leading(), 10)
    # No release: as after kill -9, the lease still stands.
    second = ModelWriter(again, cluster="c", service="config", pod="config-0")
    two = asyncio.create_task(second.run())
    await asyncio.wait_for(second.wait_leading(), 3)
    key = Key("c", "mesh", "config", "", "mesh")
    await second.commit([(key, Namespace("two"))])
    with pytest.raises(NotLeading):
        await first.commit([(key, Namespace("late"))])
    one.cancel()
    two.cancel()


async def test_the_mirror_follows_rows(connect: Connect) -> None:
    bus = await connect("discovery")
    writer = ModelWriter(bus, cluster="c", service="discovery", pod="d")
    task = asyncio.create_task(writer.run())
    await asyncio.wait_for(writer.wait_leading(), 10)
    key = Key("c", "reg", "namespaces", "", "default")
    await writer.commit([(key, Namespace("default", {"a": "1"}))])
    mirror = WorldMirror()
    steps: list[tuple[int, int]] = []
    mirror.subscribe(lambda world, touched: steps.append((world.sequence, len(touched))))
    follower = mirror.follow(bus)
    following = asyncio.create_task(follower.run())
    await asyncio.wait_for(follower.wait_synced(), 10)
    assert mirror.world.get(key) == Namespace("default", {"a": "1"})
    same = await writer.commit([(key, Namespace("default", {"a": "1"}))])
    assert await mirror.reached(same, 10)
    assert steps[-1] == (same, 0), "a row that did not change touches nothing"
    gone = await writer.commit([(key, None)])
    assert await mirror.reached(gone, 10)
    assert mirror.world.get(key) is None
    task.cancel()
    following.cancel()
