"""EVENTS of config: applied, deleted, rejected, converged. They inform; nothing waits for them."""

import asyncio
from typing import Any, NamedTuple

import structlog

from meshbus.bus.interface import Bus
from meshbus.runtime.events import publish_event
from meshbus_config.errors import ApiError
from meshbus_config.outcomes import DELETED
from meshbus_config.receipts import CONVERGED_STATE, REJECTED_STATE, Receipts
from meshbus_config.store import Written

QUEUE = 2000
CONVERGED_WAIT_S = 30.0
FOLLOWED = 16
"""Changes that are waited for at once: one that does not converge must not hold up the others."""

log = structlog.get_logger("announcements")


class _Event(NamedTuple):
    kind: str
    namespace: str
    name: str
    verb: str
    data: dict[str, Any]


class Announcer:
    """Publishes events from bounded queues; what does not fit is dropped and counted."""

    def __init__(self, bus: Bus, cluster: str, receipts: Receipts) -> None:
        self._bus = bus
        self._cluster = cluster
        self._receipts = receipts
        self._events: asyncio.Queue[_Event] = asyncio.Queue(QUEUE)
        self._changes: asyncio.Queue[tuple[int, _Event]] = asyncio.Queue(QUEUE)
        self.dropped = 0
        """Events that were not published because too many waited."""

    def committed(self, written: Written, user: str) -> None:
        """A change was written."""
        first: _Event | None = None
        for plan in written.plans:
            if not plan.writes:
                continue
            row = plan.stored.row
            verb = "deleted" if plan.action == DELETED else "applied"
            data = {
                "change": written.change,
                "action": plan.action,
                "user": user,
                "apiVersion": row.api_version,
                "generation": row.generation,
            }
            event = _Event(row.kind, row.namespace, row.name, verb, data)
            first = first or event
            self._put(self._events, event)
        if first is not None:
            self._put(self._changes, (written.change, first))

    def rejected(self, error: ApiError, user: str, namespace: str) -> None:
        """An object was refused."""
        kind = error.info.kind if error.info else "unknown"
        data = {"user": user, "message": error.message[:2000], "reason": error.reason}
        self._put(self._events, _Event(kind, namespace, error.name, "rejected", data))

    def _put(self, queue: "asyncio.Queue[Any]", item: Any) -> None:
        try:
            queue.put_nowait(item)
        except asyncio.QueueFull:
            self.dropped += 1

    async def run(self) -> None:
        """Publish until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._publish())
            for _ in range(FOLLOWED):
                group.create_task(self._follow_changes())

    async def _publish(self) -> None:
        while True:
            await self._send(await self._events.get())

    async def _send(self, event: _Event) -> None:
        await publish_event(
            self._bus,
            self._cluster,
            event.kind,
            event.namespace,
            event.name,
            event.verb,
            event.data,
        )

    async def _follow_changes(self) -> None:
        while True:
            change, event = await self._changes.get()
            receipt = await self._receipts.wait(change, CONVERGED_WAIT_S)
            if receipt.state in (CONVERGED_STATE, REJECTED_STATE):
                log.info(
                    "change settled",
                    change=change,
                    state=receipt.state,
                    proxies=receipt.total,
                    latency_s=receipt.latency_s,
                )
            if receipt.state == CONVERGED_STATE:
                await self._send(event._replace(verb="converged", data=receipt.document()))
