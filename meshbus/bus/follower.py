"""Snapshot and follow over JetStream's pull consumers: nothing lost, nothing twice, bounded memory.

One session = one ephemeral consumer. Any doubt (a gap, a missed heartbeat, a change of leader, a
reconnect) ends it; the next one goes on after the last sequence applied, or, when the stream is
another one or the cursor is too old, starts over with a snapshot that is built aside.
"""

import asyncio
import contextlib
import json
import secrets
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import nats.errors
import structlog

from meshbus.bus.backoff import Backoff
from meshbus.bus.client import RawMessage, headers_of
from meshbus.bus.interface import Applier, BusError, Message
from meshbus.bus.streams import TOMBSTONE_TTL_S

if TYPE_CHECKING:
    from meshbus.bus.connection import NatsBus

_PULL_BATCH = 1000
_HEARTBEAT_S = 1.0
_PULL_EXPIRES_S = 30.0
_INACTIVE_S = 60.0
_GATHER_S = 0.02
"""How long rows wait for those that are on their way behind them."""

log = structlog.get_logger("bus")


class SessionOverError(Exception):
    """This consumer cannot be trusted to go on."""


class Follower:
    """One reader of one stream; see `meshbus.bus.interface.FollowerHandle`."""

    def __init__(
        self, bus: "NatsBus", stream: str, filters: Sequence[str], applier: Applier, *, name: str
    ) -> None:
        self._bus = bus
        self._stream = stream
        self._filters = list(filters)
        self._applier = applier
        self._name = name
        self._epoch = ""
        self._sequence = 0
        self._seen_at = time.monotonic()
        self._synced = asyncio.Event()
        self._reading: _Session | None = None
        self.resets = 0
        """Sessions that ended, since the start."""
        self.snapshots = 0
        """Snapshots that were read whole, since the start."""

    @property
    def synced(self) -> bool:
        """The first snapshot is whole."""
        return self._synced.is_set()

    @property
    def sequence(self) -> int:
        """Last sequence applied."""
        return self._sequence

    async def wait_synced(self) -> None:
        """Until the first snapshot is whole."""
        await self._synced.wait()

    def kick(self) -> None:
        """The connection is another one: what was asked on the old one will not come."""
        if self._reading is not None:
            self._reading.put(None)

    async def run(self) -> None:
        """Follow until cancelled."""
        backoff = Backoff(0.05, 5.0)
        while True:
            before = self._sequence
            try:
                await self._session()
            except (SessionOverError, BusError, nats.errors.Error, OSError) as cause:
                self.resets += 1
                log.info(
                    "follower starts over", stream=self._stream, name=self._name, cause=str(cause)
                )
            if self._sequence != before:
                backoff.reset()
            await asyncio.sleep(backoff.next_s())

    # ------------------------------------------------------------------ one session

    async def _session(self) -> None:
        info = await self._bus.api(f"STREAM.INFO.{self._stream}")
        epoch, last = str(info["created"]), int(info["state"]["last_seq"])
        stale = time.monotonic() - self._seen_at > TOMBSTONE_TTL_S / 2
        fresh = epoch != self._epoch or self._sequence > last or stale or not self.synced
        consumer = f"{self._name}-{secrets.token_hex(6)}"
        created = await self._bus.api(
            f"CONSUMER.CREATE.{self._stream}.{consumer}",
            {"stream_name": self._stream, "config": self._consumer(consumer, fresh)},
        )
        # Asked after the consumer was made: what was there then is below this mark.
        info = await self._bus.api(f"STREAM.INFO.{self._stream}")
        target = int(info["state"]["last_seq"])
        session = _Session(self, consumer, epoch, fresh, target)
        try:
            await session.read(int(created.get("num_pending", 0)))
        finally:
            self._reading = None
            with contextlib.suppress(Exception):
                await self._bus.api(f"CONSUMER.DELETE.{self._stream}.{consumer}", timeout=1)

    def _consumer(self, name: str, fresh: bool) -> dict[str, Any]:
        config: dict[str, Any] = {
            "name": name,
            "ack_policy": "none",
            "replay_policy": "instant",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": int(_INACTIVE_S * 1e9),
            "max_waiting": 4,
        }
        if len(self._filters) == 1:
            config["filter_subject"] = self._filters[0]
        else:
            config["filter_subjects"] = self._filters
        if fresh:
            config["deliver_policy"] = "last_per_subject"
        else:
            config["deliver_policy"] = "by_start_sequence"
            config["opt_start_seq"] = self._sequence + 1
        return config

    # ------------------------------------------------------------------ called by the session

    def _begin(self) -> None:
        self._applier.begin()

    def _end(self, epoch: str, sequence: int) -> None:
        self._applier.end(sequence)
        self._epoch = epoch
        self._sequence = sequence
        self._seen_at = time.monotonic()
        self.snapshots += 1
        self._synced.set()

    def _apply(self, messages: list[Message], *, following: bool) -> None:
        self._applier.apply(messages)
        if following:
            self._sequence = messages[-1].sequence
            self._seen_at = time.monotonic()


class _Session:
    """The reading half: pulls, checks order, puts batches together."""

    def __init__(
        self, follower: Follower, consumer: str, epoch: str, fresh: bool, target: int
    ) -> None:
        self._follower = follower
        self._consumer = consumer
        self._epoch = epoch
        self._snapshot = fresh
        self._target = target
        self._arrived: deque[RawMessage | None] = deque()
        self._wake = asyncio.Event()
        self._behind = 0
        """Messages that the server had for us behind the last one taken."""
        self._wanted = 0
        self._consumer_sequence = 0
        self._batch_id = ""
        self._batch: list[Message] = []
        self._ready: list[Message] = []

    def put(self, message: RawMessage | None) -> None:
        """A message has come; None: the connection is another one."""
        self._arrived.append(message)
        self._wake.set()

    async def read(self, pending: int) -> None:
        follower = self._follower
        client = follower._bus.client
        follower._reading = self
        inbox = client.new_inbox()
        # At most one and a half pulls are outstanding: that bounds what waits here.
        subscription = await client.subscribe_raw(inbox, self.put)
        try:
            if self._snapshot:
                follower._begin()
                if pending == 0:
                    self._finish(self._target)
            await self._pull(inbox)
            while True:
                await self._step(inbox)
        finally:
            with contextlib.suppress(Exception):
                await client.unsubscribe_raw(subscription)

    def _finish(self, sequence: int) -> None:
        self._snapshot = False
        self._follower._end(self._epoch, max(sequence, 0))

    async def _pull(self, inbox: str) -> None:
        follower = self._follower
        body = {
            "batch": _PULL_BATCH,
            "expires": int(_PULL_EXPIRES_S * 1e9),
            "idle_heartbeat": int(_HEARTBEAT_S * 1e9),
        }
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{follower._stream}.{self._consumer}"
        await follower._bus.client.publish(subject, json.dumps(body).encode(), reply=inbox)
        self._wanted += _PULL_BATCH

    async def _step(self, inbox: str) -> None:
        """Take everything that has arrived, then apply it in one go."""
        try:
            async with asyncio.timeout(2.5 * _HEARTBEAT_S):
                await self._wake.wait()
        except TimeoutError:
            raise SessionOverError("heartbeats are missing") from None
        expired = self._take_all()
        if self._behind > len(self._ready) and self._wanted > 0 and not expired:
            # More is on its way. A step of the world copies tables: a few large ones cost less
            # than many small ones, and nobody sees the rows a moment later than they could.
            expired = await self._gather()
        self._flush()
        if expired:
            self._wanted = 0
        if self._wanted <= _PULL_BATCH // 2:
            await self._pull(inbox)

    async def _gather(self) -> bool:
        """Take what comes within a moment; whether the pull has expired."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + _GATHER_S
        expired = False
        while self._behind and not expired and self._wanted > _PULL_BATCH // 2:
            try:
                async with asyncio.timeout_at(ends):
                    await self._wake.wait()
            except TimeoutError:
                break
            expired = self._take_all()
        return expired

    def _take_all(self) -> bool:
        """File what has arrived; whether the pull has expired."""
        self._wake.clear()
        expired = False
        while self._arrived:
            message = self._arrived.popleft()
            if message is None:
                raise SessionOverError("reconnected")
            headers = headers_of(message.headers) if message.headers else None
            status = headers.get("Status") if headers else None
            if status is None:
                self._take(message, headers)
            elif status == "408":
                expired = True
            elif status != "100":
                description = (headers or {}).get("Description", "")
                raise SessionOverError(f"{status} {description}")
        return expired

    def _take(self, message: RawMessage, headers: dict[str, str] | None) -> None:
        """Check the order of one message and file it."""
        tokens = message.reply.split(".")
        sequence, consumer_sequence, pending = int(tokens[-4]), int(tokens[-3]), int(tokens[-1])
        self._behind = pending
        if consumer_sequence != self._consumer_sequence + 1:
            raise SessionOverError(
                f"messages {self._consumer_sequence + 1} to {consumer_sequence - 1} are missing"
            )
        self._consumer_sequence = consumer_sequence
        self._wanted -= 1
        marker = headers and (headers.get("Nats-Marker-Reason") or headers.get("KV-Operation"))
        data = b"" if marker else message.data
        item = Message(message.subject, data, sequence)
        batch = headers.get("Nats-Batch-Id", "") if headers else ""
        if self._snapshot or not batch:
            self._close_batch()
            self._ready.append(item)
        else:
            if batch != self._batch_id:
                self._close_batch()
                self._batch_id = batch
            self._batch.append(item)
            if headers and "Nats-Batch-Commit" in headers:
                self._close_batch()
        if self._snapshot and (sequence >= self._target or pending == 0):
            self._flush()
            self._finish(max(sequence, self._target))

    def _close_batch(self) -> None:
        """A batch is whole; or all that is left of it, because newer writes took the place of its
        end: those come next, so it never waits for long."""
        self._ready.extend(self._batch)
        self._batch.clear()
        self._batch_id = ""

    def _flush(self) -> None:
        if self._ready:
            self._follower._apply(self._ready, following=not self._snapshot)
            self._ready = []
