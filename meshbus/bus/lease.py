"""Leader election: one holder per service at a time, by a message with a time to live in LEASE.

The lease decides who tries to write; the fence in MODEL is what keeps the others out, whatever
their clocks say.
"""

import asyncio
import json
from collections.abc import Callable

import structlog

from meshbus.bus.backoff import Backoff
from meshbus.bus.interface import LEASE, Bus, BusError, WriteConflict
from meshbus.model.keys import escape_token

LEASE_TTL_S = 6.0
RENEW_S = 2.0
POLL_S = 0.5

log = structlog.get_logger("lease")


class Lease:
    """The lease of one service, wanted by one replica."""

    def __init__(self, bus: Bus, service: str, pod: str, monotonic: Callable[[], float]) -> None:
        self._bus = bus
        self._subject = f"lease.{escape_token(service)}"
        self._pod = pod
        self._monotonic = monotonic
        self._sequence = 0
        self._renewed = 0.0
        self.held_elsewhere = False
        """Another replica had it when we last looked."""

    @property
    def held(self) -> bool:
        """It is ours, by our own clock, with a second to spare."""
        return bool(self._sequence) and self._monotonic() - self._renewed < LEASE_TTL_S - 1

    async def acquire(self) -> None:
        """Wait until it is ours. A replica that comes back under its own name need not wait for
        the lease of the process that it was."""
        backoff = Backoff(POLL_S, POLL_S)
        while True:
            try:
                last = await self._bus.last(LEASE, self._subject)
                free = last is None or not last.data or _holder(last.data) == self._pod
                self.held_elsewhere = not free
                if free:
                    await self._store(last.sequence if last else 0)
                    return
            except BusError as error:
                log.debug("no lease yet", subject=self._subject, error=str(error))
            await asyncio.sleep(backoff.next_s())

    async def renew(self) -> bool:
        """Prolong it. False: it is somebody else's now; or the bus was away for too long."""
        try:
            await self._store(self._sequence)
        except WriteConflict:
            self._sequence = 0
            return False
        except BusError:
            return self.held
        return True

    async def release(self) -> None:
        """Give it up, so that another replica need not wait for it to expire."""
        if self._sequence:
            sequence, self._sequence = self._sequence, 0
            try:
                await self._bus.publish(LEASE, self._subject, b"", expect=sequence, ttl_s=1)
            except BusError as error:
                log.debug("lease not released", subject=self._subject, error=str(error))

    async def _store(self, expect: int) -> None:
        started = self._monotonic()
        data = json.dumps({"holder": self._pod}).encode()
        self._sequence = await self._bus.publish(
            LEASE, self._subject, data, expect=expect, ttl_s=LEASE_TTL_S
        )
        self._renewed = started


def _holder(data: bytes) -> str:
    try:
        return str(json.loads(data)["holder"])
    except (ValueError, KeyError, TypeError):
        return ""
