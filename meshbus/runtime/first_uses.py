"""Who used a join token first, known to all replicas of a service.

The first use is a message of STATUS that only one replica can create; it lasts as long as the
token. STATUS is in memory: what the bus forgot in a restart is said again by those who know it.
"""

import asyncio
from collections import OrderedDict

import structlog

from meshbus.bus.interface import STATUS, Bus, BusError, BusUnavailable, WriteConflict
from meshbus.model.status import status_subject
from meshbus.runtime.clock import Clock
from meshbus.runtime.workload_tokens import LEEWAY_S

PLACE = "tokens"
"""In place of a replica's name in the subjects of STATUS."""
_SAID_AT_ONCE = 64
_RETRY_S = 1.0

log = structlog.get_logger("tokens")


class FirstUses:
    """For the tokens that one service takes; `run` keeps them known."""

    def __init__(self, bus: Bus, cluster: str, service: str, clock: Clock) -> None:
        self._bus = bus
        self._cluster = cluster
        self._service = service
        self._clock = clock
        self._held: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._again = asyncio.Event()
        bus.on_reconnect(self._again.set)

    def first(self, token_id: str) -> str:
        """Who used a token first, as far as this replica knows; empty: it does not."""
        return self._held.get(token_id, ("", 0.0))[0]

    def note(self, token_id: str, user: str, expires: float) -> None:
        """It is known from elsewhere who used a token first."""
        self._held.setdefault(token_id, (user, expires))

    async def claim(self, token_id: str, user: str, expires: float) -> str:
        """Use a token that holds until `expires` (epoch seconds); gives who used it first.

        Raises:
            BusError: That is not known now.
        """
        self._forget()
        held = self.first(token_id)
        if not held:
            held = await self._create(token_id, user, expires)
            self.note(token_id, held, expires)
        return held

    async def run(self) -> None:
        """Until cancelled: after each reconnect say again what the bus may have forgotten."""
        while True:
            await self._again.wait()
            self._again.clear()
            try:
                await self._say_again()
            except BusError as error:
                log.info("first uses of tokens are not said again yet", error=str(error))
                await self._clock.sleep(_RETRY_S)
                self._again.set()

    async def _say_again(self) -> None:
        self._forget()
        held = list(self._held.items())
        for start in range(0, len(held), _SAID_AT_ONCE):
            batch = held[start : start + _SAID_AT_ONCE]
            known = await asyncio.gather(*(self._create(token, *use) for token, use in batch))
            for (token, (user, _)), first in zip(batch, known, strict=True):
                if first != user:
                    log.error("a token was used twice while the bus was away", token=token)

    async def _create(self, token_id: str, user: str, expires: float) -> str:
        subject = status_subject(self._cluster, self._service, PLACE, token_id)
        left_s = expires + LEEWAY_S - self._clock.now()
        try:
            await self._bus.publish(STATUS, subject, user.encode(), expect=0, ttl_s=left_s)
        except WriteConflict:
            message = await self._bus.last(STATUS, subject)
            if message is None:
                raise BusUnavailable("the first use of a token is gone: try again") from None
            return message.data.decode()
        return user

    def _forget(self) -> None:
        """Drop those that have ended, from the oldest on."""
        now = self._clock.now()
        while self._held:
            token_id, (_, expires) = next(iter(self._held.items()))
            if expires + LEEWAY_S > now:
                return
            del self._held[token_id]
