"""Fetching what objects name from elsewhere: when, how often, and by whom."""

import asyncio
import contextlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from prometheus_client import Counter

from meshbus.bus.interface import BusError
from meshbus.bus.mirror import WorldMirror
from meshbus.bus.writer import ModelWriter, Write
from meshbus.model.world import Query, World
from meshbus.runtime.service import Context
from meshbus_policy.fetch import Fetcher

FIRST_RETRY_S, LAST_RETRY_S = 1.0, 300.0
JITTER = 0.1
_LOOK_S = 5.0


@dataclass
class _Plan:
    """When a source is fetched next."""

    at: float
    failures: int = 0


class Schedule:
    """When which source is due. Pure but for the chance it is given."""

    def __init__(self, refresh_s: float, chance: Callable[[], float]) -> None:
        """
        Args:
            chance: A number from 0 to 1, another one each time.
        """
        self._refresh_s = refresh_s
        self._chance = chance
        self._plans: dict[str, _Plan] = {}

    def keep(self, sources: Mapping[str, float | None], now: float) -> None:
        """These sources and no others; of those that are new, when they were fetched well, seconds
        since the epoch, if they were."""
        for source in set(self._plans) - set(sources):
            del self._plans[source]
        for source, fetched in sources.items():
            if source not in self._plans:
                at = now if fetched is None else fetched + self._refresh_s
                # A clock that was set back must not keep it from being fetched.
                self._plans[source] = _Plan(min(at, now + self._refresh_s))

    def due(self, now: float) -> list[str]:
        """Sources whose time has come, the longest due first."""
        return sorted(
            (s for s, p in self._plans.items() if p.at <= now), key=lambda s: self._plans[s].at
        )

    def next_at(self, otherwise: float) -> float:
        """When something is due next."""
        return min((plan.at for plan in self._plans.values()), default=otherwise)

    def done(self, source: str, now: float, *, good: bool) -> None:
        """It was tried."""
        plan = self._plans.get(source)
        if plan is None:
            return
        spread = 1 + JITTER * (2 * self._chance() - 1)
        if good:
            plan.failures = 0
            plan.at = now + self._refresh_s * spread
            return
        plan.failures += 1
        wait_s = min(FIRST_RETRY_S * 2 ** min(plan.failures - 1, 30), LAST_RETRY_S)
        plan.at = now + wait_s * (0.5 + self._chance() / 2)


class Keeper(ABC):
    """Keeps rows of what is fetched. `run` it where the mirror is followed; the leader fetches."""

    def __init__(
        self,
        context: Context[Any],
        mirror: WorldMirror,
        writer: ModelWriter,
        fetcher: Fetcher,
        *,
        touching: Set[str],
        fetches: Counter,
        refresh_s: float,
        at_once: int,
    ) -> None:
        """
        Args:
            touching: Tables whose rows say what is needed.
            fetches: Counts attempts by outcome (good, failed).
            refresh_s: From one good fetch of a source to the next.
            at_once: Sources that are fetched together.
        """
        self._context = context
        self._mirror = mirror
        self._writer = writer
        self._fetcher = fetcher
        self._touching = touching
        self._fetches = fetches
        self._at_once = at_once
        # Jitter is no secret.
        self._schedule = Schedule(refresh_s, random.random)
        self._moved = asyncio.Event()
        mirror.subscribe(self._changed)

    def _changed(self, _world: World, touched: frozenset[Query]) -> None:
        if any(query.table in self._touching for query in touched):
            self._moved.set()

    @abstractmethod
    async def _review(self, now: float) -> None:
        """What is needed now: drop rows that are not, bring the schedule up to date."""

    @abstractmethod
    async def _fetch(self, name: str) -> bool:
        """Fetch a source and write its row, or what is wrong with it.

        Returns:
            Whether it was fetched well.

        Raises:
            BusError: The row could not be written.
        """

    async def _commit(self, writes: list[Write]) -> None:
        """Write and wait until the mirror has it, within limits."""
        await self._mirror.reached(await self._writer.commit(writes), _LOOK_S)

    async def run(self) -> None:
        """Fetch what is due whenever this replica leads, until cancelled."""
        clock = self._context.clock
        while True:
            await self._writer.wait_leading()
            await self._mirror.reached(self._writer.fenced_at, _LOOK_S)
            self._moved.clear()
            await self._review(clock.now())
            due = self._schedule.due(clock.now())[: self._at_once]
            if due:
                await asyncio.gather(*map(self._try, due))
                continue
            wait_s = self._schedule.next_at(clock.now() + _LOOK_S) - clock.now()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(max(wait_s, 0.01), _LOOK_S)):
                    await self._moved.wait()

    async def _try(self, name: str) -> None:
        good = False
        try:
            good = await self._fetch(name)
        except BusError as error:
            self._context.log.info("not written yet", source=name, error=str(error))
        self._schedule.done(name, self._context.clock.now(), good=good)
