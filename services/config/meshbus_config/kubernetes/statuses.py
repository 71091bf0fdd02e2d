"""Statuses of the cluster's objects: accepted, references resolved, programmed on how many proxies.

Written by who holds the Lease, differences only. What is said of an object that all proxies have
is not said again because proxies come and go.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import structlog

from meshbus.kube.client import (
    MERGE_PATCH,
    Conflict,
    KubeClient,
    KubeError,
    NotFound,
    object_path,
)
from meshbus.kube.lease import KubeLease
from meshbus.model.keys import Key
from meshbus.model.status import GatewayReport, ProxyProblem
from meshbus.model.world import Query
from meshbus.validate.report import Violation
from meshbus_config.documents import timestamp
from meshbus_config.kubernetes.following import PLATFORM_GROUP, Following
from meshbus_config.kubernetes.ingress_statuses import IngressStatuses
from meshbus_config.kubernetes.objects import Judged
from meshbus_config.kubernetes.tenants import Tenants
from meshbus_config.object_status import (
    EFFECTIVE,
    RESOLVED_REFS,
    Found,
    Verdict,
    found_now,
    loss_verdict,
    reference_verdict,
    refusal_verdict,
)
from meshbus_config.references import References
from meshbus_config.rounds import Rounds
from meshbus_config.status_board import StatusBoard
from meshbus_config.store import Store

ACCEPTED, PROGRAMMED = "Accepted", "Programmed"
PENDING = "Pending"
"""Reason of `Programmed` that goes by itself."""
OURS = (ACCEPTED, RESOLVED_REFS, EFFECTIVE, PROGRAMMED)
_ONCE_BAD = (RESOLVED_REFS, EFFECTIVE)
"""Conditions that an object has only once one was not so."""
_SHOWN = 3
_CHARACTERS = 1024

log = structlog.get_logger("kubernetes-status")


class Fleet(NamedTuple):
    """How far the proxies of all gateways have come."""

    proxies: int
    converged: int
    """The version that every proxy has converged at."""


def fleet_of(reports: Sequence[GatewayReport]) -> Fleet:
    """The fleet of the gateways' last reports."""
    busy = [report for report in reports if report.proxies]
    return Fleet(
        sum(report.proxies for report in busy),
        min((report.converged for report in busy), default=0),
    )


def accepted_verdict(problems: Sequence[Violation], refusal: str | None, malformed: str) -> Verdict:
    """The condition `Accepted`."""
    if malformed:
        return Verdict(False, "Malformed", f"it cannot be read: {malformed}"[:_CHARACTERS])
    if problems:
        texts = [f"{one.path}: {one.message}" if one.path else one.message for one in problems]
        shown = "; ".join(texts[:_SHOWN])
        more = f"; and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
        return Verdict(False, "Invalid", (shown + more)[:_CHARACTERS])
    if refusal:
        return Verdict(False, "NotAllowed", refusal[:_CHARACTERS])
    return Verdict(True, "Accepted", "it is valid and in force")


def programmed_verdict(
    sequence: int, fleet: Fleet, problems: list[ProxyProblem], accepted: bool
) -> Verdict:
    """The condition `Programmed`."""
    if not accepted or not sequence:
        return Verdict(False, "NotAccepted", "what is in force is an older version, or nothing")
    if problems:
        refused = refusal_verdict(problems)
        return Verdict(False, "ProxyRejected", refused.message)
    if not fleet.proxies:
        return Verdict(True, "Programmed", "no proxy is connected")
    if fleet.converged >= sequence:
        return Verdict(True, "Programmed", f"{fleet.proxies} of {fleet.proxies} proxies have it")
    return Verdict(False, PENDING, f"not all of {fleet.proxies} proxies have it yet")


def next_status(
    before: Mapping[str, Any], verdicts: Mapping[str, Verdict], generation: int, now: float
) -> dict[str, Any] | None:
    """The status to write; None: it says all that already.

    The message of a condition that holds, and held for this generation, stays as it is: it counts
    the proxies of when it came true. Conditions of others stay.
    """
    held = {
        str(one.get("type")): one
        for one in before.get("conditions") or ()
        if isinstance(one, Mapping)
    }
    fresh: dict[str, dict[str, Any]] = {}
    for kind, verdict in verdicts.items():
        was = held.get(kind)
        if was is None and verdict.good and kind in _ONCE_BAD:
            continue
        fresh[kind] = _condition(kind, verdict, generation, was, now)
    if (
        all(held.get(kind) == one for kind, one in fresh.items())
        and _number(before.get("observedGeneration")) == generation
    ):
        return None
    others = [one for one in before.get("conditions") or () if one.get("type") not in fresh]
    return {
        "observedGeneration": generation,
        "conditions": [*others, *(fresh[kind] for kind in OURS if kind in fresh)],
    }


def _number(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return -1


def _condition(
    kind: str, verdict: Verdict, generation: int, was: Mapping[str, Any] | None, now: float
) -> dict[str, Any]:
    status = "True" if verdict.good else "False"
    since, message = timestamp(now), verdict.message
    if was is not None and was.get("status") == status:
        since = str(was.get("lastTransitionTime") or since)
        same = (was.get("observedGeneration"), was.get("reason")) == (generation, verdict.reason)
        if verdict.good and same:
            message = str(was.get("message") or message)
    return {
        "type": kind,
        "status": status,
        "reason": verdict.reason,
        "message": message,
        "lastTransitionTime": since,
        "observedGeneration": generation,
    }


class StatusWriting:
    """Keeps statuses what is known, at most twice a second each.

    An object is looked at when it, its row or what is known of it has changed, and until all
    proxies have it: what goes on elsewhere in the mesh does not cost by the number of objects.
    """

    def __init__(
        self,
        client: KubeClient,
        lease: KubeLease,
        following: Following,
        store: Store,
        board: StatusBoard,
        references: References,
        ingresses: IngressStatuses,
        *,
        cluster: str,
        now: Callable[[], float],
        tenants: Tenants,
    ) -> None:
        self._client = client
        self._lease = lease
        self._following = following
        self._store = store
        self._board = board
        self._references = references
        self._ingresses = ingresses
        self._cluster = cluster
        self._now = now
        self._tenants = tenants
        self._inbox = following.inbox()
        self._open: set[Key] = set()
        self._known = Found()
        self._led = False
        self._rounds = Rounds()
        self.written = 0
        """Statuses written since this process began."""
        self.looks = 0
        """Looks at single objects since then."""

    def wake(self) -> None:
        """Something has changed."""
        self._rounds.wake()

    def world_changed(self, touched: Iterable[Query]) -> None:
        """Rows have changed."""
        for query in touched:
            if query.by == "key" and isinstance(query.value, Key):
                self._inbox.put(query.value)
        self.wake()

    async def run(self) -> None:
        """Until cancelled."""
        await self._rounds.run(self._write_if_leading)

    async def _write_if_leading(self) -> None:
        leads = self._lease.held and self._following.synced
        if leads:
            await self.write_all()
            await self._ingresses.write()
        self._led = leads

    async def write_all(self) -> None:
        """Look at every object that is to be looked at, once."""
        self._tenants.settle()
        known = found_now(self._board, self._references, self._cluster)
        self._open |= self._inbox.take() | self._references.take_moved()
        # Who led before may have stopped anywhere.
        self._open.update(known.differing(self._known) if self._led else self._following.objects)
        self._known = known
        fleet = fleet_of(list(self._board.gateways.values()))
        for index, key in enumerate(sorted(self._open)):
            if index % 200 == 199:
                await asyncio.sleep(0)
            judged = self._following.objects.get(key)
            if judged is None or await self._look(key, judged, fleet):
                self._open.discard(key)

    async def _look(self, key: Key, judged: Judged, fleet: Fleet) -> bool:
        """Whether there is no more to say of it."""
        self.looks += 1
        verdicts = self._verdicts(key, judged, fleet)
        if verdicts is None:
            return True
        status = next_status(judged.status, verdicts, judged.row.generation, self._now())
        if status is not None:
            if self._lease.held:
                await self._write(key, judged, status)
            return False  # It has been said once we are told so.
        return verdicts[PROGRAMMED].reason != PENDING

    def _verdicts(self, key: Key, judged: Judged, fleet: Fleet) -> dict[str, Verdict] | None:
        """What is to be said; None: nothing, for it is not ours."""
        info = self._following.kind_of(key)
        if info is None or not info.has_status or info.group == PLATFORM_GROUP:
            return None
        revisions = self._following.revisions
        if not revisions.is_ours(judged.row.labels) or not self._following.selected(key.namespace):
            return None
        accepted = accepted_verdict(
            judged.problems, self._tenants.refusal(judged), self._following.malformed.get(key, "")
        )
        entry = self._store.space.world.entry(key)
        in_force = entry is not None and entry.row == revisions.in_model(judged.row)
        if accepted.good and not in_force:
            return None  # It is on its way to the model: the next look says more.
        known = self._known
        problems = [
            one
            for one in known.refused.get(key, ())
            if entry is not None and one.sequence >= entry.sequence
        ]
        losses = [
            one
            for one in known.lost.get(key, ())
            if entry is not None and one.sequence >= entry.sequence
        ]
        sequence = entry.sequence if entry is not None and in_force else 0
        return {
            ACCEPTED: accepted,
            RESOLVED_REFS: reference_verdict(known.missing.get(key, ())),
            EFFECTIVE: loss_verdict(losses),
            PROGRAMMED: programmed_verdict(sequence, fleet, problems, accepted.good),
        }

    async def _write(self, key: Key, judged: Judged, status: dict[str, Any]) -> None:
        info = self._following.kind_of(key)
        assert info is not None
        path = object_path(
            info.group,
            self._following.version_of(key) or info.version,
            info.plural,
            key.namespace,
            key.name,
            "status",
        )
        body = {"metadata": {"resourceVersion": judged.version}, "status": status}
        try:
            await self._client.send("PATCH", path, body, content_type=MERGE_PATCH)
            self.written += 1
        except (Conflict, NotFound):
            return  # It has changed, and we hear of it: the next look is of what it is then.
        except KubeError as error:
            log.info("status not written; trying again", object=str(key), error=str(error))
