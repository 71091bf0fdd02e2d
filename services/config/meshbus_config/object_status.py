"""Statuses of objects: what proxies refuse, what has no effect, what is named and not there.

Written by the leader, differences only.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import structlog

from meshbus.analyze.references import Missing
from meshbus.model.keys import Key
from meshbus.model.rows import ObjectStatus
from meshbus.model.status import ConfigLoss, GatewayReport, ProxyProblem
from meshbus.model.world import Query, World
from meshbus_config.documents import Space, Stored, object_key, status_key, timestamp
from meshbus_config.errors import ApiError
from meshbus_config.ingress_status import IngressStatuses
from meshbus_config.outcomes import CONFIGURED, Plan
from meshbus_config.references import References, text_of
from meshbus_config.rounds import Rounds
from meshbus_config.status_board import StatusBoard
from meshbus_config.store import Store

RECONCILED = "Reconciled"
RESOLVED_REFS = "ResolvedRefs"
EFFECTIVE = "Effective"
_OURS = (RECONCILED, RESOLVED_REFS, EFFECTIVE)
_MESSAGE_CHARACTERS = 1024
_PER_WRITE = 500
_SHOWN = 3

log = structlog.get_logger("object-status")


class Verdict(NamedTuple):
    """What one condition should say. Its time moves only with `good`."""

    good: bool
    reason: str
    message: str


class Found(NamedTuple):
    """What is known of objects, besides what they say."""

    refused: Mapping[Key, list[ProxyProblem]] = {}
    missing: Mapping[Key, Sequence[Missing]] = {}
    lost: Mapping[Key, list[ConfigLoss]] = {}

    def differing(self, before: "Found") -> Iterator[Key]:
        """Objects of which gateways said something else before."""
        for now, then in ((self.refused, before.refused), (self.lost, before.lost)):
            yield from (key for key in now.keys() | then.keys() if now.get(key) != then.get(key))


def found_now(board: StatusBoard, references: References, cluster: str) -> Found:
    """What gateways report and references say."""
    reports = board.gateways.values()
    return Found(
        problems_by_object(reports, cluster),
        references.missing(),
        losses_by_object(reports, cluster),
    )


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


def losses_by_object(reports: Iterable[GatewayReport], cluster: str) -> dict[Key, list[ConfigLoss]]:
    """What has no effect, by the row of the object: each part once, with the proxies of all
    gateways."""
    found: dict[Key, dict[tuple[str, str], ConfigLoss]] = {}
    for report in reports:
        for loss in report.losses:
            key = _key(loss.object_key, cluster)
            if key is None:
                continue
            of_object = found.setdefault(key, {})
            part = (loss.path, loss.message)
            held = of_object.get(part)
            of_object[part] = (
                loss
                if held is None
                else msgspec.structs.replace(
                    held,
                    proxies=held.proxies + loss.proxies,
                    example=min(held.example, loss.example),
                    sequence=min(held.sequence, loss.sequence),
                )
            )
    return {key: list(parts.values()) for key, parts in found.items()}


def _key(text: str, cluster: str) -> Key | None:
    """The key of `cfg.virtualservices/default/reviews`."""
    table, _, rest = text.partition("/")
    namespace, slash, name = rest.partition("/")
    plane, dot, kind = table.partition(".")
    return Key(cluster, plane, kind, namespace, name) if slash and dot else None


def refusal_verdict(problems: list[ProxyProblem]) -> Verdict:
    """The condition `Reconciled`."""
    if not problems:
        return Verdict(True, "Accepted", "all connected proxies take it")
    ordered = sorted(problems, key=lambda p: (p.proxy, p.type_url, p.message))
    texts = [f"{p.proxy} refuses {', '.join(p.resources)}: {p.message}" for p in ordered]
    if all(problem.left_out for problem in problems):
        return Verdict(False, "Quarantined", f"left out where it is refused: {_joined(texts)}")
    return Verdict(False, "ProxyRejected", _joined(texts))


def reference_verdict(missing: Sequence[Missing]) -> Verdict:
    """The condition `ResolvedRefs`, named as the Gateway API names it."""
    if not missing:
        return Verdict(True, "ResolvedRefs", "everything that it names is there")
    return Verdict(False, "ReferenceNotFound", _joined([text_of(m) for m in missing]))


def loss_verdict(losses: Sequence[ConfigLoss]) -> Verdict:
    """The condition `Effective`."""
    if not losses:
        return Verdict(True, "Effective", "all of it has effect")
    ordered = sorted(losses, key=lambda loss: (loss.path, loss.message))
    return Verdict(False, "PartlyWithoutEffect", _joined([_told(loss) for loss in ordered]))


def _told(loss: ConfigLoss) -> str:
    where = loss.example if loss.proxies == 1 else f"{loss.proxies} proxies, as {loss.example}"
    return f"{loss.path}: {loss.message} ({where})"


def _joined(texts: list[str]) -> str:
    shown = texts[:_SHOWN]
    if len(texts) > _SHOWN:
        shown.append(f"and {len(texts) - _SHOWN} more")
    return "; ".join(shown)[:_MESSAGE_CHARACTERS]


def condition(
    kind: str, verdict: Verdict, generation: int, before: Mapping[str, Any] | None, now: float
) -> dict[str, Any]:
    """A condition as Kubernetes writes it."""
    status = "True" if verdict.good else "False"
    since = timestamp(now)
    if before is not None and before.get("status") == status:
        since = str(before.get("lastTransitionTime", since))
    return {
        "type": kind,
        "status": status,
        "reason": verdict.reason,
        "message": verdict.message,
        "lastTransitionTime": since,
        "observedGeneration": generation,
    }


def plan_statuses(space: Space, keys: Iterable[Key], found: Found, now: float) -> list[Plan]:
    """The statuses to write, of these objects.

    Objects that never had a problem keep no status row: a mesh without problems writes nothing.
    """
    objects = (space.at(key) for key in keys)
    plans = (_plan(stored, found, now) for stored in objects if stored is not None)
    return [plan for plan in plans if plan is not None]


def objects_with_conditions(world: World) -> Iterator[Key]:
    """Objects of which something was said."""
    for table in world.tables():
        if table.startswith("st."):
            for entry in world.all(table):
                if any(_held(entry.row, kind) is not None for kind in _OURS):
                    yield object_key(entry.key)


def _plan(stored: Stored, found: Found, now: float) -> Plan | None:
    key, held = stored.entry.key, stored.status
    verdicts = {RESOLVED_REFS: reference_verdict(found.missing.get(key, ()))}
    problems = found.refused.get(key, [])
    # A refusal of an older version of the object says nothing about this one: the gateways' next
    # reports will.
    current = [p for p in problems if p.sequence >= stored.entry.sequence]
    if current or not problems:
        verdicts[RECONCILED] = refusal_verdict(current)
    losses = found.lost.get(key, [])
    lost = [loss for loss in losses if loss.sequence >= stored.entry.sequence]
    if lost or not losses:
        verdicts[EFFECTIVE] = loss_verdict(lost)
    generation = stored.row.generation
    conditions = {kind: _held(held, kind) for kind in _OURS} if held is not None else {}
    fresh = {}
    for kind, verdict in verdicts.items():
        before = conditions.get(kind)
        if before is None and verdict.good:
            continue
        fresh[kind] = condition(kind, verdict, generation, before, now)
    if all(conditions.get(kind) == one for kind, one in fresh.items()):
        return None
    status = {} if held is None else held.status
    others = [c for c in status.get("conditions") or [] if c.get("type") not in fresh]
    row = ObjectStatus(
        stored.row.uid,
        generation,
        {
            **status,
            "observedGeneration": generation,
            "conditions": [*others, *(fresh[kind] for kind in _OURS if kind in fresh)],
        },
    )
    return Plan(CONFIGURED, stored, ((status_key(key), row),))


def _held(row: ObjectStatus, kind: str) -> Mapping[str, Any] | None:
    conditions = row.status.get("conditions")
    for one in conditions if isinstance(conditions, list) else ():
        if isinstance(one, dict) and one.get("type") == kind:
            return one
    return None


class StatusWriter:
    """Keeps statuses what reports and references say, at most twice a second.

    An object is looked at when it or what is known of it has changed, not when others have.
    """

    def __init__(
        self,
        store: Store,
        board: StatusBoard,
        references: References,
        cluster: str,
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._board = board
        self._references = references
        self._cluster = cluster
        self._now = now
        self._ingresses = IngressStatuses()
        self._open: set[Key] = set()
        self._found = Found()
        self._led_since: int | None = None
        self._rounds = Rounds()
        self.looks = 0
        """Looks at single objects."""

    def wake(self) -> None:
        """Something has changed."""
        self._rounds.wake()

    def changed(self, world: World, touched: Iterable[Query]) -> None:
        """The next world, as the mirror gives it."""
        queries = list(touched)
        self._ingresses.changed(world, queries)
        for query in queries:
            if query.by == "key" and isinstance(query.value, Key):
                self._open.add(query.value._replace(plane="cfg"))
        self.wake()

    async def run(self) -> None:
        """Write until cancelled."""
        await self._rounds.run(self._write_if_leading)

    async def _write_if_leading(self) -> None:
        if self._store.leading:
            await self.write()

    async def write(self) -> None:
        """Write what differs, once; what is too much for one change is left for the next time."""
        found = found_now(self._board, self._references, self._cluster)
        self._open.update(found.differing(self._found), self._references.take_moved())
        if self._led_since != self._store.fenced_at:
            # Who led before may have stopped anywhere.
            self._led_since = self._store.fenced_at
            self._open.update(*found, objects_with_conditions(self._store.space.world))
        self._found = found
        keys, self._open = sorted(self._open), set()
        self.looks += len(keys)

        def plans(space: Space) -> list[Plan]:
            own = plan_statuses(space, keys, found, self._now())
            return [*own, *self._ingresses.plans(space)][:_PER_WRITE]

        planned = plans(self._store.space)
        if not planned:
            return
        try:
            await self._store.write(plans, announce=False)
        except ApiError as error:
            self._open.update(keys)
            log.info("statuses not written; trying again", error=error.message)
            return
        if len(planned) == _PER_WRITE:
            self._open.update(keys)
            self.wake()
