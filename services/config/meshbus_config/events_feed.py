"""`GET /v1/events`: EVENTS as server-sent events, from a bounded ring of the latest."""

import asyncio
import fnmatch
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import NamedTuple

import msgspec

from meshbus.bus.interface import Message
from meshbus.model.keys import unescape_token
from meshbus_config.documents import seconds_of
from meshbus_config.errors import bad_request

RING = 4096
HEARTBEAT_S = 15.0


class FeedEvent(NamedTuple):
    """One CloudEvent."""

    sequence: int
    kind: str
    namespace: str
    name: str
    verb: str
    time: float
    data: bytes
    """The CloudEvent, JSON."""


class _Time(msgspec.Struct):
    time: str = ""


class EventsFeed:
    """An Applier of EVENTS."""

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self._ring: deque[FeedEvent] = deque(maxlen=RING)
        self._last = 0
        self._moved = asyncio.Event()
        self.closed = False

    def begin(self) -> None:
        """A snapshot begins: the last event of each subject, of which the ring may have some."""

    def apply(self, messages: Sequence[Message]) -> None:
        """Events."""
        fresh = [m for m in messages if m.sequence > self._last and m.data]
        found = [event for m in fresh if (event := _event(m, self._cluster)) is not None]
        self._ring.extend(sorted(found))
        if fresh:
            self._last = max(m.sequence for m in fresh)
            self._wake()

    def end(self, sequence: int) -> None:
        """The snapshot is whole."""
        if sequence < self._last:
            # The stream began again; its sequences are new ones.
            self._ring.clear()
        self._last = sequence
        self._ring = deque(sorted(self._ring), maxlen=RING)
        self._wake()

    def close(self) -> None:
        """No more events: readers end."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    @property
    def last(self) -> int:
        """Sequence of the latest event."""
        return self._last

    def after(self, sequence: int) -> list[FeedEvent]:
        """Events after a sequence that are still remembered."""
        found = []
        for event in reversed(self._ring):
            if event.sequence <= sequence:
                break
            found.append(event)
        return found[::-1]

    async def wait(self, timeout: float) -> None:
        """Until an event comes, or `timeout` seconds have gone."""
        moved = self._moved
        try:
            async with asyncio.timeout(timeout):
                await moved.wait()
        except TimeoutError:
            return


def _event(message: Message, cluster: str) -> FeedEvent | None:
    tokens = [unescape_token(token) for token in message.subject.split(".")]
    if len(tokens) != 7 or tokens[2] != cluster:
        return None
    try:
        time = seconds_of(msgspec.json.decode(message.data, type=_Time).time) or 0.0
    except msgspec.MsgspecError:
        return None
    kind, namespace, name, verb = tokens[3:]
    return FeedEvent(message.sequence, kind, namespace, name, verb, time, message.data)


Wanted = Callable[[FeedEvent], bool]


def parse_filter(text: str) -> Wanted:
    """A predicate on events: `kind=VirtualService,verb=nack*`, fields kind, namespace, name, verb;
    values are shell patterns. All must hold.

    Raises:
        ApiError: 400.
    """
    tests: list[tuple[str, str]] = []
    for part in filter(None, text.split(",")):
        field, equals, pattern = part.partition("=")
        if not equals or field.strip() not in ("kind", "namespace", "name", "verb"):
            raise bad_request(
                f"filter: expected kind=, namespace=, name= or verb= with a pattern, not {part!r}"
            )
        tests.append((field.strip(), pattern.strip()))
    return lambda event: all(
        fnmatch.fnmatchcase(getattr(event, field), pattern) for field, pattern in tests
    )


def parse_since(text: str, now: float, name: str = "since") -> float:
    """The moment that a parameter names: seconds back (`90s`, `5m`, `2h`, `1d`), or an
    RFC 3339 time.

    Raises:
        ApiError: 400.
    """
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:])
    if unit is not None and text[:-1].isdecimal():
        return now - int(text[:-1]) * unit
    moment = seconds_of(text)
    if moment is None:
        raise bad_request(f"{name}: a duration such as 5m or an RFC 3339 time, not {text!r}")
    return moment


async def server_sent(
    feed: EventsFeed, wanted: Wanted, since: float | None, last_id: int | None, *, follow: bool
) -> AsyncIterator[bytes]:
    """Events as `text/event-stream`: past ones if asked for, then those that come.

    Args:
        since: Moment of the first event; None: from now on.
        last_id: Go on after this event (`Last-Event-ID`); wins over `since`.
        follow: False ends after the past ones.
    """
    position = feed.last if last_id is None else last_id
    if last_id is None and since is not None:
        position = 0
    yield b": events\n\n"
    while True:
        for event in feed.after(position):
            position = event.sequence
            if wanted(event) and (since is None or event.time >= since):
                yield b"id: %d\nevent: %s\ndata: %s\n\n" % (
                    event.sequence,
                    event.verb.encode(),
                    event.data.replace(b"\n", b" "),
                )
        if not follow or feed.closed:
            return
        before = position
        await feed.wait(HEARTBEAT_S)
        if not feed.after(before):
            yield b": still here\n\n"
