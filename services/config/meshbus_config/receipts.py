"""Where is my change? `GET /v1/changes/<n>`: discovery has read it, every proxy has taken it.

A change is live when discovery's progress has passed it, and every proxy of every live gateway has
ACKed what the model at the resulting version gives it.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec

from meshbus.bus.interface import Bus, BusError, NoResponders
from meshbus.compile.registry.derive import SOURCES
from meshbus.model.requests import CONVERGED, ConvergedReply, ConvergedRequest, replica_subject
from meshbus.model.world import Query, World
from meshbus.runtime.calls import CallError, call
from meshbus_config.documents import timestamp
from meshbus_config.status_board import StatusBoard
from meshbus_config.store import Written

CONVERGED_STATE, PENDING_STATE, REJECTED_STATE = "converged", "pending", "rejected"
MAX_WAIT_S = 120.0
_ASK_S = 2.0
"""A gateway answers within this, so that one that died is noticed."""
_REMEMBERED = 256
_NAMES = 10
_NAMED = 200
"""Objects of a change that are asked about."""


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """How far a change has come."""

    change: int
    state: str
    """`converged`, `pending` or `rejected`."""
    total: int = 0
    """Proxies connected."""
    converged: int = 0
    """Those of them that have the change."""
    waiting: list[str] = []
    """What is waited for: names of proxies (at most 10), a service, or the change itself."""
    rejected: list[dict[str, str]] = []
    """{"proxy", "resource", "object", "message"} of refusals."""
    latency_s: float | None = None
    """From the change to the last ACK."""
    without_effect: list[dict[str, Any]] = []
    """{"object", "path", "message", "proxies"}: parts of its objects that have no effect at so many
    proxies, once it is live."""

    def document(self) -> dict[str, Any]:
        """As the API answers it."""
        return {
            "change": self.change,
            "state": self.state,
            "proxies": {"total": self.total, "converged": self.converged},
            "waiting": self.waiting,
            "rejected": self.rejected,
            "latency_ms": None if self.latency_s is None else round(self.latency_s * 1000, 1),
            "without_effect": self.without_effect,
        }


class ChangeRecord(NamedTuple):
    """One change that this replica wrote."""

    change: int
    time: float
    user: str
    objects: list[dict[str, str]]
    derived: bool
    """Whether discovery has something to derive from it."""
    names: dict[str, str]
    """`Kind namespace/name` of its objects by row key, of the first few hundred."""

    def document(self) -> dict[str, Any]:
        """As the API answers it."""
        return {
            "change": self.change,
            "time": timestamp(self.time),
            "user": self.user,
            "objects": self.objects,
        }


class Receipts:
    """Answers how far changes have come, and remembers the latest ones."""

    def __init__(
        self,
        bus: Bus,
        board: StatusBoard,
        world: Callable[[], World],
        *,
        now: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._bus = bus
        self._board = board
        self._world = world
        self._now = now
        self._monotonic = monotonic
        self._written_at: OrderedDict[int, float] = OrderedDict()
        """When the latest versions were written, seconds since the epoch."""
        self.recent: deque[ChangeRecord] = deque(maxlen=_REMEMBERED)
        """Changes of this replica since it started, oldest first."""

    def record(self, written: Written, user: str) -> None:
        """Remember a change."""
        objects = [
            {
                "kind": plan.stored.row.kind,
                "namespace": plan.stored.row.namespace,
                "name": plan.stored.row.name,
                "action": plan.action,
            }
            for plan in written.plans
            if plan.writes
        ]
        tables = {key.table for plan in written.plans for key, _ in plan.writes}
        names = {}
        for plan in written.plans[:_NAMED]:
            key, kind = plan.stored.entry.key, plan.stored.row.kind
            place = f"{key.namespace}/{key.name}"
            names[f"{key.table}/{place}"] = f"{kind} {place.removeprefix('/')}"
        derived = not SOURCES.isdisjoint(tables)
        self.recent.append(ChangeRecord(written.change, self._now(), user, objects, derived, names))

    def changed(self, world: World, touched: Iterable[Query]) -> None:
        """The next world, as the mirror gives it: when each version was written is kept a while."""
        for query in touched:
            entry = world.entry(query.value) if query.by == "key" else None  # type: ignore[arg-type]
            if entry is not None:
                self._written_at[entry.sequence] = entry.ts
        while len(self._written_at) > _REMEMBERED:
            self._written_at.popitem(last=False)

    async def wait(self, change: int, timeout_s: float) -> Receipt:
        """The receipt of a change as soon as its state is final, at the latest after `timeout_s`
        seconds."""
        end = self._monotonic() + min(timeout_s, MAX_WAIT_S)
        while (target := self._target(change)) is None:
            left = end - self._monotonic()
            if left <= 0:
                return Receipt(change=change, state=PENDING_STATE, waiting=[self._missing(change)])
            await self._board.moved(self._board.version, left)
        while True:
            left = max(0.0, end - self._monotonic())
            seen = self._board.version
            receipt = await self._ask(change, target, min(left, _ASK_S))
            if receipt.state != PENDING_STATE or self._monotonic() >= end:
                return receipt
            # Gateways wait on their own; only one that cannot be reached answers at once.
            await self._board.moved(seen, min(0.2, max(0.0, end - self._monotonic())))

    def _missing(self, change: int) -> str:
        """What has to happen before a gateway can be asked."""
        latest = max(self._world().sequence, *(r.change for r in self.recent), 0)
        return "discovery" if change <= latest else f"a change of that number (latest: {latest})"

    def _target(self, change: int) -> int | None:
        """The version that proxies must have for the change to be live; None: not known yet."""
        record = next((r for r in self.recent if r.change == change), None)
        if record is not None and not record.derived:
            return change
        derived = self._board.derived_at(change)
        return None if derived is None else max(change, derived)

    async def _ask(self, change: int, target: int, timeout_s: float) -> Receipt:
        pods = sorted(self._board.gateways)
        names = next((r.names for r in self.recent if r.change == change), {})
        request = ConvergedRequest(target, timeout_s, change, list(names))
        replies = await asyncio.gather(*(self._ask_one(pod, request) for pod in pods))
        total = converged = 0
        waiting: list[str] = []
        rejected: list[dict[str, str]] = []
        latencies: list[float] = []
        lost: dict[tuple[str, str, str], int] = {}
        for pod, reply in zip(pods, replies, strict=True):
            if reply is None:
                continue
            if isinstance(reply, str):
                waiting.append(f"{pod}: {reply}")
                continue
            total += reply.total
            converged += reply.converged
            rejected += reply.rejected
            waiting += reply.waiting
            if reply.sequence < target and not reply.waiting:
                waiting.append(pod)
            for loss in reply.losses:
                part = (names.get(loss.object_key, loss.object_key), loss.path, loss.message)
                lost[part] = lost.get(part, 0) + loss.proxies
            if reply.latency_s is not None:
                latencies.append(reply.latency_s)
        if not any(isinstance(reply, ConvergedReply) for reply in replies) and not waiting:
            waiting.append("xds-gateway")
        if rejected:
            state = REJECTED_STATE
        elif waiting or converged < total:
            state = PENDING_STATE
        else:
            state = CONVERGED_STATE
        latency = max(latencies) + self._between(change, target) if latencies else None
        return Receipt(
            change=change,
            state=state,
            total=total,
            converged=converged,
            waiting=waiting[:_NAMES],
            rejected=rejected[:_NAMES],
            latency_s=latency if state == CONVERGED_STATE else None,
            without_effect=[
                {"object": name, "path": path, "message": message, "proxies": proxies}
                for (name, path, message), proxies in sorted(lost.items())
            ]
            if state == CONVERGED_STATE
            else [],
        )

    async def _ask_one(self, pod: str, request: ConvergedRequest) -> ConvergedReply | str | None:
        """The reply of a gateway replica, why there is none, or None: it is no longer there."""
        subject, limit_s = replica_subject(CONVERGED, pod), request.timeout_s + 1
        try:
            return await call(self._bus, subject, request, ConvergedReply, timeout=limit_s)
        except CallError as error:
            # A replica that nobody answers for has gone, and its proxies with it.
            if isinstance(error.__context__, NoResponders):
                return None
            return error.message
        except BusError as error:
            return str(error)

    def _between(self, change: int, target: int) -> float:
        """Seconds from a change to what discovery wrote because of it; gateways measure from the
        latter."""
        if target == change:
            return 0.0
        started = next((r.time for r in self.recent if r.change == change), None)
        written = self._written_at.get(target)
        return 0.0 if started is None or written is None else max(0.0, written - started)
