"""Keys of issuers: fetched, kept as rows, never given up.

The leader fetches each source again every `jwks_refresh_s`; after a failure it tries again, later
each time. The last good keys stand for ever: an issuer that is away locks nobody out, and how old
they are shows in the row, the metric and the status of the objects that name them.
"""

import contextlib
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
from meshbus.runtime.service import Context
from meshbus_policy.fetch import Fetcher, FetchError
from meshbus_policy.fetching import Keeper

MAX_SOURCES = 1000
AT_ONCE = 8
TIMEOUT_S, MAX_TIMEOUT_S = 5.0, 30.0


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


def fetched_well(row: KeySet | None) -> float | None:
    """When its keys were fetched, seconds since the epoch; None where the last attempt failed or
    there was none."""
    return row.fetched if row is not None and row.jwks and not row.error else None


class KeySets(Keeper):
    """Keeps the rows of `jwks.keys`."""

    def __init__(
        self,
        context: Context[Any],
        mirror: WorldMirror,
        writer: ModelWriter,
        fetcher: Fetcher,
        refresh_s: float,
    ) -> None:
        super().__init__(
            context,
            mirror,
            writer,
            fetcher,
            touching=TOUCHING,
            fetches=Counter(
                "meshbus_policy_key_set_fetches",
                "Attempts to fetch keys of tokens, by outcome (good, failed).",
                ["outcome"],
                registry=context.metrics,
            ),
            refresh_s=refresh_s,
            at_once=AT_ONCE,
        )
        self._needed: dict[str, Need] = {}
        ages = Gauge(
            "meshbus_policy_key_set_age_seconds",
            "Since keys of tokens were last fetched well; of the source that is oldest.",
            registry=context.metrics,
        )
        ages.set_function(self._oldest_s)
        failing = Gauge(
            "meshbus_policy_key_sets_failing",
            "Sources of keys whose last attempt failed.",
            registry=context.metrics,
        )
        failing.set_function(lambda: sum(bool(row.error) for row in self._rows().values()))

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

    async def _review(self, now: float) -> None:
        self._needed = dict(sorted(needed_sources(self._mirror.world).items())[:MAX_SOURCES])
        rows = self._rows()
        for source in sorted(set(rows) - set(self._needed)):
            with contextlib.suppress(BusError):
                await self._commit([(key_set_key(self._context.cluster, source), None)])
        self._schedule.keep({s: fetched_well(rows.get(s)) for s in self._needed}, now)

    async def _fetch(self, name: str) -> bool:
        known = self._rows().get(name) or KeySet(name)
        clock = self._context.clock
        try:
            keys = await fetch_keys(self._fetcher, name, self._needed[name])
        except FetchError as error:
            row = msgspec.structs.replace(
                known,
                error=str(error)[:500],
                failing_since=known.failing_since if known.error else clock.now(),
            )
            self._context.log.warning("keys not fetched", source=name, error=str(error))
        else:
            row = KeySet(name, keys, clock.now())
        self._fetches.labels("failed" if row.error else "good").inc()
        if row != known:
            await self._commit([(key_set_key(self._context.cluster, name), row)])
        return not row.error
