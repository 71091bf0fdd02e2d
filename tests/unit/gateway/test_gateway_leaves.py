"""Certificates of workloads: one per identity, renewed before half of their life, kept when the ca
is away."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace

import pytest
import structlog
from cryptography import x509
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from meshbus_ca.issue import Names, issue_leaf, make_intermediate, make_root, pem_of, public_key_of
from meshbus_xds_gateway.leaves import Leaves

from meshbus.bus.memory import MemoryBus, MemoryServer
from meshbus.model.requests import SignReply, SignRequest, sign_subject
from meshbus.runtime.calls import CallError, answer

REVIEWS = ("default", "reviews", "reviews-v1")
LIFE_S = 3600.0


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = 1_900_000_000.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.time + seconds, future))
        await future

    def advance(self, seconds: float) -> None:
        self.time += seconds
        for due, future in self._sleepers:
            if due <= self.time and not future.done():
                future.set_result(None)


class Ca:
    """Signs, or says that it cannot."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.root = make_root("cluster.local", clock.now())
        self.intermediate = make_intermediate(self.root, "cluster.local", clock.now())
        self.away = False
        self.asked: list[SignRequest] = []
        self.issued: Callable[[int], None] = lambda serial: None
        """Called with a serial number before anybody has the certificate."""

    async def sign(self, request: SignRequest) -> SignReply:
        self.asked.append(request)
        if self.away:
            raise CallError("unavailable", "away")
        key = public_key_of(request.csr_pem)
        leaf = issue_leaf(
            self.intermediate, key, Names(request.spiffe_id), request.ttl_s, self.clock.now()
        )
        self.issued(leaf.serial_number)
        begin, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
        chain = pem_of(leaf) + self.intermediate.pem
        return SignReply(chain, self.root.pem, begin.timestamp(), end.timestamp())


class World:
    def __init__(self, clock: Clock, ca: Ca, leaves: Leaves, changed: asyncio.Queue) -> None:
        self.clock, self.ca, self.leaves, self.changed = clock, ca, leaves, changed

    async def until_changed(self) -> tuple[str, str]:
        async with asyncio.timeout(5):
            changed = await self.changed.get()
        for _ in range(3):
            await asyncio.sleep(0)  # its keeper goes to rest
        return changed

    async def until_asked(self, times: int) -> None:
        async with asyncio.timeout(5):
            while len(self.ca.asked) < times:
                await asyncio.sleep(0)

    def serial(self) -> int:
        secret = secret_pb2.Secret.FromString(self.leaves.resource(REVIEWS).body)
        chain = secret.tls_certificate.certificate_chain.inline_bytes
        return x509.load_pem_x509_certificates(chain)[0].serial_number


@contextlib.asynccontextmanager
async def world() -> AsyncIterator[World]:
    clock, server = Clock(), MemoryServer()
    ca = Ca(clock)
    subject = sign_subject("xds-gateway")
    await answer(MemoryBus(server, "ca"), subject, SignRequest, ca.sign)
    context = SimpleNamespace(
        bus=MemoryBus(server, "xds-gateway"),
        clock=clock,
        log=structlog.get_logger(),
        name="xds-gateway",
        pod="xds-gateway-0",
        trust_domain="cluster.local",
    )
    changed: asyncio.Queue = asyncio.Queue()
    async with asyncio.TaskGroup() as tasks:
        leaves = Leaves(context, tasks, int(LIFE_S), changed.put_nowait)
        yield World(clock, ca, leaves, changed)
        while len(leaves):
            leaves.release(REVIEWS)


async def test_one_certificate_for_all_proxies_of_an_identity():
    async with world() as w:
        w.leaves.hold(REVIEWS)
        w.leaves.hold(REVIEWS)
        assert w.leaves.resource(REVIEWS) is None
        assert await w.until_changed() == REVIEWS
        assert w.leaves.resource(REVIEWS).name == "default"
        assert [r.spiffe_id for r in w.ca.asked] == ["spiffe://cluster.local/ns/default/sa/reviews"]
        w.leaves.release(REVIEWS)
        assert w.leaves.resource(REVIEWS) is not None
        w.leaves.release(REVIEWS)
        assert w.leaves.resource(REVIEWS) is None, "the key goes with the last proxy"


async def test_renewed_before_half_of_its_life_with_another_key():
    async with world() as w:
        w.leaves.hold(REVIEWS)
        await w.until_changed()
        before = w.serial()
        w.clock.advance(LIFE_S * 0.3)
        await asyncio.sleep(0)
        assert len(w.ca.asked) == 1
        w.clock.advance(LIFE_S * 0.21)
        await w.until_changed()
        assert w.serial() != before
        keys = {public_key_of(r.csr_pem).public_numbers() for r in w.ca.asked}
        assert len(keys) == 2


async def test_a_revoked_one_is_replaced_at_once():
    async with world() as w:
        w.leaves.hold(REVIEWS)
        await w.until_changed()
        before = w.serial()
        w.leaves.revoked(frozenset({"ffff"}))
        await asyncio.sleep(0)
        assert len(w.ca.asked) == 1
        w.leaves.revoked(frozenset({f"{before:x}"}))
        await w.until_changed()
        assert w.serial() != before
        assert len(w.ca.asked) == 2


async def test_one_that_is_revoked_on_its_way_is_replaced_too():
    async with world() as w:
        w.ca.issued = lambda serial: (
            w.leaves.revoked(frozenset({f"{serial:x}"})) if len(w.ca.asked) == 1 else None
        )
        w.leaves.hold(REVIEWS)
        await w.until_asked(2)
        await w.until_changed()
        await w.until_changed()
        assert len(w.ca.asked) == 2


async def test_without_the_ca_the_old_certificate_serves_until_it_ends():
    async with world() as w:
        w.leaves.hold(REVIEWS)
        await w.until_changed()
        w.ca.away = True
        w.clock.advance(LIFE_S * 0.6)
        await w.until_asked(2)
        assert w.leaves.resource(REVIEWS) is not None
        w.clock.advance(LIFE_S * 0.5)
        assert w.leaves.resource(REVIEWS) is None
        w.ca.away = False
        await w.until_asked(3)
        w.clock.advance(20)
        await w.until_changed()
        assert w.leaves.resource(REVIEWS) is not None


async def test_keys_do_not_show_in_logs(capsys: pytest.CaptureFixture[str]):
    async with world() as w:
        w.ca.away = True
        w.leaves.hold(REVIEWS)
        await w.until_asked(1)
        w.ca.away = False
        w.clock.advance(20)
        await w.until_changed()
        shown = capsys.readouterr()
        assert "reviews" in shown.out
        assert "PRIVATE" not in shown.out + shown.err + repr(w.leaves.resource(REVIEWS))
