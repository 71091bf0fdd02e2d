"""Statuses of objects, from what proxies refuse. Written by the leader, differences only."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import structlog

from meshbus.model.keys import Key
from meshbus.model.rows import ObjectStatus
from meshbus.model.status import GatewayReport, ProxyProblem
from meshbus_config.documents import Space, Stored, object_key, status_key, timestamp
from meshbus_config.errors import ApiError
from meshbus_config.outcomes import CONFIGURED, Plan
from meshbus_config.status_board import StatusBoard
from meshbus_config.store import Store

RECONCILED = "Reconciled"
_PAUSE_S = 0.5
_RETRY_S = 5.0
_MESSAGE_CHARACTERS = 1024
_PER_WRITE = 500
_SHOWN = 3

log = structlog.get_logger("object-status")


def problems_by_object(
    reports: Iterable[GatewayReport], cluster: str
) -> dict[Key, list[ProxyProblem]]:
    """What proxies refuse, by the row of the object that it came from."""
    found: dict[Key, list[ProxyProblem]] = {}
    for report in reports:
        for problem in report.problems:
            for text in problem.object_keys:
                key = _key(text, cluster)
                if key is not None:
                    found.setdefault(key, []).append(problem)
    return found


def _key(text: str, cluster: str) -> Key | None:
    """The key of `cfg.virtualservices/default/reviews`."""
    table, _, rest = text.partition("/")
    namespace, slash, name = rest.partition("/")
    plane, dot, kind = table.partition(".")
    return Key(cluster, plane, kind, namespace, name) if slash and dot else None


def condition(
    problems: list[ProxyProblem], generation: int, before: Mapping[str, Any] | None, now: float
) -> dict[str, Any]:
    """The condition `Reconciled` of an object; its time moves only with its status."""
    status = "False" if problems else "True"
    since = timestamp(now)
    if before is not None and before.get("status") == status:
        since = str(before.get("lastTransitionTime", since))
    return {
        "type": RECONCILED,
        "status": status,
        "reason": "ProxyRejected" if problems else "Accepted",
        "message": _message(problems),
        "lastTransitionTime": since,
        "observedGeneration": generation,
    }


def _message(problems: list[ProxyProblem]) -> str:
    if not problems:
        return "all connected proxies take it"
    ordered = sorted(problems, key=lambda p: (p.proxy, p.type_url, p.message))
    texts = [f"{p.proxy} refuses {', '.join(p.resources)}: {p.message}" for p in ordered[:_SHOWN]]
    if len(ordered) > _SHOWN:
        texts.append(f"and {len(ordered) - _SHOWN} more")
    return "; ".join(texts)[:_MESSAGE_CHARACTERS]


def plan_statuses(
    space: Space, problems: Mapping[Key, list[ProxyProblem]], now: float
) -> list[Plan]:
    """The statuses to write: of objects with problems, and of those that had some.

    Objects that never had one keep no status row: a mesh without problems writes nothing.
    """
    keys = {key for key in problems if key.plane == "cfg"}
    for table in space.world.tables():
        if table.startswith("st."):
            keys.update(
                object_key(entry.key)
                for entry in space.world.all(table)
                if _reconciled(entry.row) is not None
            )
    plans = []
    for key in sorted(keys):
        stored = space.at(key)
        plan = None if stored is None else _plan(stored, problems.get(key, []), now)
        if plan is not None:
            plans.append(plan)
    return plans[:_PER_WRITE]


def _plan(stored: Stored, problems: list[ProxyProblem], now: float) -> Plan | None:
    # A refusal of an older version of the object says nothing about this one: the gateways' next
    # reports will.
    current = [p for p in problems if p.sequence >= stored.entry.sequence]
    if problems and not current:
        return None
    problems = current
    held = stored.status
    before = None if held is None else _reconciled(held)
    if before is None and not problems:
        return None
    generation = stored.row.generation
    fresh = condition(problems, generation, before, now)
    if before == fresh:
        return None
    status = {} if held is None else held.status
    others = [c for c in status.get("conditions") or [] if c.get("type") != RECONCILED]
    row = ObjectStatus(
        stored.row.uid,
        generation,
        {**status, "observedGeneration": generation, "conditions": [*others, fresh]},
    )
    return Plan(CONFIGURED, stored, ((status_key(stored.entry.key), row),))


def _reconciled(row: ObjectStatus) -> Mapping[str, Any] | None:
    conditions = row.status.get("conditions")
    for one in conditions if isinstance(conditions, list) else ():
        if isinstance(one, dict) and one.get("type") == RECONCILED:
            return one
    return None


class StatusWriter:
    """Keeps statuses what the reports say, at most twice a second."""

    def __init__(
        self, store: Store, board: StatusBoard, cluster: str, now: Callable[[], float]
    ) -> None:
        self._store = store
        self._board = board
        self._cluster = cluster
        self._now = now

    async def run(self) -> None:
        """Write until cancelled."""
        seen = -1
        while True:
            await self._board.moved(seen, _RETRY_S)
            seen = self._board.version
            if self._store.leading:
                await self._write()
            await asyncio.sleep(_PAUSE_S)

    async def _write(self) -> None:
        problems = problems_by_object(self._board.gateways.values(), self._cluster)
        if not plan_statuses(self._store.space, problems, self._now()):
            return
        try:
            await self._store.write(
                lambda space: plan_statuses(space, problems, self._now()), announce=False
            )
        except ApiError as error:
            log.info("statuses not written; trying again", error=error.message)
