"""Keeps what a carrier tells, so that a test can wait for it."""

import asyncio
from collections.abc import Callable

from meshbus_xds_gateway.carrier import (
    Batch,
    Carrier,
    Closed,
    Event,
    Limits,
    Opened,
    Tls,
)

PATIENCE_S = 20.0


class Recorder:
    """A carrier and its events, by stream in order of opening."""

    def __init__(self, carrier: Carrier) -> None:
        self.carrier = carrier
        self.port = 0
        self.events: dict[int, list[Event]] = {}
        self.echo = False
        """Send every message back to where it came from."""
        self._moved = asyncio.Event()

    async def start(self, tls: Tls | None = None, limits: Limits | None = None) -> None:
        """Listen on a port of the system's choice."""
        self.port = await self.carrier.start("127.0.0.1:0", self._note, tls, limits or Limits())

    async def stop(self) -> None:
        """End what is still open."""
        await self.carrier.stop(0)

    def _note(self, batch: Batch) -> None:
        for stream, event in batch:
            if isinstance(event, Opened):
                assert stream not in self.events, "a number is used once"
                self.events[stream] = []
            events = self.events[stream]
            assert not (events and isinstance(events[-1], Closed)), "nothing follows the end"
            events.append(event)
            if self.echo and isinstance(event, bytes):
                self.carrier.send([(event, [stream])])
        self._moved.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for events to make it true."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._moved.clear()
                await self._moved.wait()

    async def opened(self, count: int = 1) -> list[int]:
        """The streams, once so many have been opened."""
        await self.until(lambda: len(self.events) >= count)
        return list(self.events)

    async def message(self, stream: int, count: int = 1) -> list[bytes]:
        """What a stream has said, once it is so many messages."""
        await self.until(lambda: len(self.messages(stream)) >= count)
        return self.messages(stream)

    def messages(self, stream: int) -> list[bytes]:
        """What a stream has said."""
        return [e for e in self.events[stream] if isinstance(e, bytes)]

    async def told(self, stream: int, event: Event) -> None:
        """Until this has happened."""
        await self.until(lambda: event in self.events[stream])

    async def closed(self, stream: int) -> str:
        """Why a stream is no more."""
        await self.until(lambda: isinstance(self.events[stream][-1], Closed))
        last = self.events[stream][-1]
        assert isinstance(last, Closed)
        return last.reason
