"""The bus in memory: streams, followers, fences, leases and requests of one process, for tests
and for looking at what services do without a server. Passes the contract tests of the real one.
"""

import asyncio
from collections.abc import Callable, Sequence

from meshbus.bus.interface import (
    CERTS,
    EVENTS,
    LEASE,
    MODEL,
    STATUS,
    Applier,
    BusUnavailable,
    Change,
    Fence,
    FollowerHandle,
    Handler,
    Message,
    NoResponders,
    TooLarge,
    WriteConflict,
)

BATCH_LIMIT = 1000
MAX_MESSAGE_BYTES = 4 * 1024 * 1024 - 4096


def subject_matches(pattern: str, subject: str) -> bool:
    """NATS wildcards: `*` is one token, `>` one or more at the end."""
    wanted, tokens = pattern.split("."), subject.split(".")
    for index, token in enumerate(wanted):
        if token == ">":  # noqa: S105 - a wildcard
            return len(tokens) > index
        if index >= len(tokens) or token not in {"*", tokens[index]}:
            return False
    return len(wanted) == len(tokens)


class _Stream:
    def __init__(self) -> None:
        self.sequence = 0
        self.epoch = 0
        self.last: dict[str, Message] = {}
        self.readers: set[_MemoryFollower] = set()

    def last_sequence(self, subject: str) -> int:
        held = self.last.get(subject)
        return held.sequence if held else 0

    def store(self, items: Sequence[tuple[str, bytes]], *, keep_empty: bool) -> list[Message]:
        stored = []
        for subject, data in items:
            self.sequence += 1
            message = Message(subject, data, self.sequence)
            if data or keep_empty:
                self.last[subject] = message
            else:
                self.last.pop(subject, None)
            stored.append(message)
        for reader in list(self.readers):
            reader.feed(stored)
        return stored


class MemoryServer:
    """What several `MemoryBus` share: the server's side."""

    def __init__(self) -> None:
        self.streams = {name: _Stream() for name in (MODEL, STATUS, LEASE, EVENTS, CERTS)}
        self.handlers: list[tuple[str, str, Handler]] = []
        self.up = True
        self.buses: list[MemoryBus] = []

    def stop(self) -> None:
        """The server is away: nothing can be written, asked or followed."""
        self.up = False

    def restart(self) -> None:
        """The server is back with all it had."""
        self.up = True
        for stream in self.streams.values():
            for reader in list(stream.readers):
                reader.catch_up()
        for bus in self.buses:
            bus.reconnected()

    def wipe(self, stream: str) -> None:
        """Lose a stream with all it held; it begins again, empty."""
        held = self.streams[stream]
        held.sequence = 0
        held.epoch += 1
        held.last = {}
        for reader in list(held.readers):
            reader.restart()


class _MemoryFollower:
    def __init__(self, stream: _Stream, filters: Sequence[str], applier: Applier) -> None:
        self._stream = stream
        self._filters = filters
        self._applier = applier
        self._waiting: list[list[Message]] = []
        self._wake = asyncio.Event()
        self._synced = asyncio.Event()
        self._fresh = True
        self.sequence = 0

    @property
    def synced(self) -> bool:
        return self._synced.is_set()

    async def wait_synced(self) -> None:
        await self._synced.wait()

    def _wants(self, message: Message) -> bool:
        return any(subject_matches(pattern, message.subject) for pattern in self._filters)

    def feed(self, stored: Sequence[Message]) -> None:
        mine = [m for m in stored if self._wants(m)]
        if mine:
            self._waiting.append(mine)
            self._wake.set()

    def restart(self) -> None:
        self._fresh = True
        self._waiting.clear()
        self._wake.set()

    def catch_up(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        self._stream.readers.add(self)
        try:
            while True:
                if self._fresh:
                    self._fresh = False
                    self._waiting.clear()
                    self._applier.begin()
                    held = sorted(self._stream.last.values(), key=lambda m: m.sequence)
                    mine = [m for m in held if self._wants(m)]
                    if mine:
                        self._applier.apply(mine)
                    self.sequence = self._stream.sequence
                    self._applier.end(self.sequence)
                    self._synced.set()
                while self._waiting and not self._fresh:
                    messages = self._waiting.pop(0)
                    self._applier.apply(messages)
                    self.sequence = messages[-1].sequence
                if not self._fresh:
                    self._wake.clear()
                    await self._wake.wait()
        finally:
            self._stream.readers.discard(self)


class MemoryBus:
    """`meshbus.bus.interface.Bus` on a `MemoryServer`."""

    def __init__(self, server: MemoryServer, identity: str) -> None:
        self._server = server
        self.identity = identity
        self._callbacks: list[Callable[[], None]] = []
        self._mine: list[tuple[str, str, Handler]] = []
        self._timers: set[asyncio.TimerHandle] = set()
        server.buses.append(self)

    @property
    def connected(self) -> bool:
        return self._server.up

    def _stream(self, name: str) -> _Stream:
        if not self._server.up:
            raise BusUnavailable("not connected to the bus")
        return self._server.streams[name]

    async def ensure_streams(self) -> None:
        self._stream(MODEL)

    def follower(
        self, stream: str, filters: Sequence[str], applier: Applier, *, name: str = ""
    ) -> FollowerHandle:
        return _MemoryFollower(self._server.streams[stream], list(filters), applier)

    async def commit(
        self, changes: Sequence[Change], fence: Fence, *, timeout: float = 10.0
    ) -> int:
        if not 0 < len(changes) <= BATCH_LIMIT:
            raise ValueError(f"a batch holds 1 to {BATCH_LIMIT} changes, not {len(changes)}")
        for change in changes:
            self._check_size(change.subject, change.data or b"")
        await asyncio.sleep(0)
        stream = self._stream(MODEL)
        if stream.last_sequence(fence.subject) != fence.sequence:
            raise WriteConflict(f"{fence.subject}: the fence has moved")
        stored = stream.store([(c.subject, c.data or b"") for c in changes], keep_empty=True)
        return stored[-1].sequence

    async def take_fence(self, subject: str, holder: str) -> Fence:
        stored = self._stream(MODEL).store([(subject, holder.encode())], keep_empty=True)
        return Fence(subject, stored[0].sequence)

    async def last(self, stream: str, subject: str) -> Message | None:
        held = self._stream(stream).last.values()
        found = [message for message in held if subject_matches(subject, message.subject)]
        return max(found, key=lambda message: message.sequence, default=None)

    async def publish(
        self,
        stream: str,
        subject: str,
        data: bytes,
        *,
        expect: int | None = None,
        ttl_s: float | None = None,
    ) -> int:
        self._check_size(subject, data)
        held = self._stream(stream)
        if expect is not None and held.last_sequence(subject) != expect:
            raise WriteConflict(f"{subject}: wrong last sequence")
        message = held.store([(subject, data)], keep_empty=True)[0]
        if ttl_s is not None:

            def expire() -> None:
                if held.last.get(subject) == message:
                    del held.last[subject]

            self._timers.add(asyncio.get_running_loop().call_later(max(1, ttl_s), expire))
        return message.sequence

    def _check_size(self, subject: str, data: bytes) -> None:
        if len(data) > MAX_MESSAGE_BYTES:
            raise TooLarge(
                f"{subject}: {len(data)} bytes are more than the {MAX_MESSAGE_BYTES} "
                "that the bus takes"
            )

    async def request(self, subject: str, data: bytes, *, timeout: float = 2.0) -> bytes:
        self._check_size(subject, data)
        if not self._server.up:
            raise BusUnavailable("not connected to the bus")
        for pattern, _, handler in self._server.handlers:
            if subject_matches(pattern, subject):
                try:
                    async with asyncio.timeout(timeout):
                        return await handler(data)
                except TimeoutError:
                    raise BusUnavailable(f"{subject}: no answer in {timeout} s") from None
        raise NoResponders(f"nobody serves {subject}")

    async def serve(self, subject: str, handler: Handler, *, queue: str = "") -> None:
        entry = (subject, queue, handler)
        self._mine.append(entry)
        self._server.handlers.append(entry)

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def reconnected(self) -> None:
        """The server came back."""
        for callback in self._callbacks:
            callback()

    async def close(self) -> None:
        for timer in self._timers:
            timer.cancel()
        for entry in self._mine:
            self._server.handlers.remove(entry)
        self._mine.clear()
        if self in self._server.buses:
            self._server.buses.remove(self)
