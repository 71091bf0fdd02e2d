"""Keys of issuers: fetched, kept as rows, never given up.

The leader fetches each source again every `jwks_refresh_s`; after a failure it tries again, later
each time. The last good keys stand for ever: an issuer that is away locks nobody out, and how old
they are shows in the row, the metric and the status of the objects that name them.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec
from prometheus_client import Counter, Gauge

from meshbus.bus.interface import BusError
from meshbus.bus.mirror import WorldMirror
from meshbus.bus.writer import ModelWriter
from meshbus.compile.findings import NotCompiledError
from meshbus.compile.key_sets import public_key_set
from meshbus.compile.values import nanos_of
from meshbus.model.key_sources import DISCOVERY, TOUCHING, Need, key_set_key, needed_sources
from meshbus.model.rows import KeySet
from meshbus.model.world import Query, World
from meshbus.runtime.service import Context
from meshbus_policy.fetch import Fetcher, FetchError

MAX_SOURCES = 1000
AT_ONCE = 8
TIMEOUT_S, MAX_TIMEOUT_S = 5.0, 30.0
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

    def keep(self, sources: dict[str, KeySet | None], now: float) -> None:
        """These sources and no others; of those that are new, what is known already."""
        for source in set(self._plans) - set(sources):
            del self._plans[source]
        for source, known in sources.items():
            if source not in self._plans:
                fresh = known is not None and known.jwks and not known.error
                at = known.fetched + self._refresh_s if known is not None and fresh else now
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


def timeout_of(need: Need) -> float:
    """The longest that a rule allows."""
    given = []
    for text in need.timeouts:
        with contextlib.suppress(NotCompiledError):
            given.append(nanos_of(text) / 1e9)
    return min(max(given, default=TIMEOUT_S), MAX_TIMEOUT_S) or TIMEOUT_S


async def fetch_keys(fetcher: Fetcher, source: str, need: Need) -> str:
    """The public keys of a source, by way of the OpenID configuration where it is one.

    Raises:
        FetchError: There are none.
    """
    timeout_s = timeout_of(need)
    body = await fetcher.get(source, timeout_s)
    if urlsplit(source).path.endswith(DISCOVERY):
        configuration = _object(body)
        issuer, uri = configuration.get("issuer"), configuration.get("jwks_uri")
        if issuer not in need.issuers:
            raise FetchError("the OpenID configuration is of another issuer")
        if not isinstance(uri, str) or not uri.startswith(("https://", "http://")):
            raise FetchError("the OpenID configuration names no jwks_uri")
        if source.startswith("https://") and not uri.startswith("https://"):
            raise FetchError("the OpenID configuration sends from HTTPS to plain text")
        body = await fetcher.get(uri, timeout_s)
    found = public_key_set(body.decode(errors="replace"))
    if not found:
        raise FetchError("no key that can be used is in the answer")
    return found


def _object(body: bytes) -> dict[str, Any]:
    try:
        parsed = msgspec.json.decode(body)
    except msgspec.DecodeError:
        parsed = None
    if not isinstance(parsed, dict):
        raise FetchError("the OpenID configuration is not a JSON object")
    return parsed


class KeySets:
    """Keeps the rows of `jwks.keys`. `run` it where the mirror is followed."""

    def __init__(
        self,
        context: Context[Any],
        mirror: WorldMirror,
        writer: ModelWriter,
        fetcher: Fetcher,
        refresh_s: float,
    ) -> None:
        self._context = context
        self._mirror = mirror
        self._writer = writer
        self._fetcher = fetcher
        # Jitter is no secret.
        self._schedule = Schedule(refresh_s, random.random)
        self._moved = asyncio.Event()
        self._fetches = Counter(
            "meshbus_policy_key_set_fetches",
            "Attempts to fetch keys of tokens, by outcome (good, failed).",
            ["outcome"],
            registry=context.metrics,
        )
        self._ages = Gauge(
            "meshbus_policy_key_set_age_seconds",
            "Since keys of tokens were last fetched well; of the source that is oldest.",
            registry=context.metrics,
        )
        self._ages.set_function(self._oldest_s)
        self._failing = Gauge(
            "meshbus_policy_key_sets_failing",
            "Sources of keys whose last attempt failed.",
            registry=context.metrics,
        )
        self._failing.set_function(lambda: sum(bool(row.error) for row in self._rows().values()))
        mirror.subscribe(self._changed)

    def _changed(self, _world: World, touched: frozenset[Query]) -> None:
        if any(query.table in TOUCHING for query in touched):
            self._moved.set()

    def _rows(self) -> dict[str, KeySet]:
        return {e.row.source: e.row for e in self._mirror.world.all("jwks.keys")}

    def _oldest_s(self) -> float:
        fetched = [row.fetched for row in self._rows().values() if row.jwks]
        return max(0.0, self._context.clock.now() - min(fetched)) if fetched else 0.0

    def describe(self) -> Any:
        """For `/debug`: what there is, and how old."""
        now = self._context.clock.now()
        return [
            {
                "source": row.source,
                "age_s": round(now - row.fetched, 1) if row.jwks else None,
                "error": row.error,
                "failing_s": round(now - row.failing_since, 1) if row.error else 0,
            }
            for row in self._rows().values()
        ]

    async def run(self) -> None:
        """Fetch what is due whenever this replica leads, until cancelled."""
        clock = self._context.clock
        while True:
            await self._writer.wait_leading()
            await self._mirror.reached(self._writer.fenced_at, _LOOK_S)
            self._moved.clear()
            needed = dict(sorted(needed_sources(self._mirror.world).items())[:MAX_SOURCES])
            rows = self._rows()
            await self._drop(set(rows) - set(needed))
            self._schedule.keep({source: rows.get(source) for source in needed}, clock.now())
            due = self._schedule.due(clock.now())[:AT_ONCE]
            if due:
                await asyncio.gather(*(self._fetch(s, needed[s], rows.get(s)) for s in due))
                continue
            wait_s = self._schedule.next_at(clock.now() + _LOOK_S) - clock.now()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(max(wait_s, 0.01), _LOOK_S)):
                    await self._moved.wait()

    async def _drop(self, sources: set[str]) -> None:
        cluster = self._context.cluster
        for source in sorted(sources):
            with contextlib.suppress(BusError):
                sequence = await self._writer.commit([(key_set_key(cluster, source), None)])
                await self._mirror.reached(sequence, _LOOK_S)

    async def _fetch(self, source: str, need: Need, known: KeySet | None) -> None:
        known = known or KeySet(source)
        clock = self._context.clock
        try:
            keys = await fetch_keys(self._fetcher, source, need)
        except FetchError as error:
            row = msgspec.structs.replace(
                known,
                error=str(error)[:500],
                failing_since=known.failing_since if known.error else clock.now(),
            )
            self._context.log.warning("keys not fetched", source=source, error=str(error))
        else:
            row = KeySet(source, keys, clock.now())
        self._fetches.labels("failed" if row.error else "good").inc()
        if row != known:
            try:
                key = key_set_key(self._context.cluster, source)
                await self._mirror.reached(await self._writer.commit([(key, row)]), _LOOK_S)
            except BusError as error:
                self._context.log.info("keys not written yet", source=source, error=str(error))
                self._schedule.done(source, clock.now(), good=False)
                return
        self._schedule.done(source, clock.now(), good=not row.error)
