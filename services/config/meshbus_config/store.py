"""Where plans become rows: one writer at a time, on the world as it is after all writes before.

Reads come from the mirror and work on any replica, also while the bus is away; a replica that is
behind finds out which rows are the newest, and waits for them. Writes need the lease; after one the
mirror has it, so who wrote reads it back.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from meshbus.api.kinds import KindInfo
from meshbus.bus.interface import MODEL, Bus, BusError, BusUnavailable, TooLarge
from meshbus.bus.mirror import WorldMirror
from meshbus.bus.writer import BATCH_ROWS, ModelWriter, NotLeading
from meshbus.model.keys import MODEL_PREFIX, escape_token, subject_of
from meshbus_config.documents import BOTH, Space
from meshbus_config.errors import ApiError, timed_out, too_large, unavailable
from meshbus_config.outcomes import Plan, Write
from meshbus_config.references import References, with_missing
from meshbus_config.secret_box import SecretBox

CATCH_UP_S = 5.0
"""How long a write waits for the lease, and for the mirror."""

P = TypeVar("P")


class Written(NamedTuple):
    """A change that is in MODEL."""

    plans: tuple[Plan, ...]
    change: int
    """Its id; 0 when nothing had to be written."""


Committed = Callable[[Written, str], None]
"""Told of each change and of who wrote it. Must not wait."""


class Store:
    """The objects of a mesh, in MODEL."""

    def __init__(
        self,
        bus: Bus,
        mirror: WorldMirror,
        writer: ModelWriter,
        box: SecretBox,
        *,
        cluster: str,
        root_namespace: str,
        references: References,
        families: tuple[str, ...] = BOTH,
    ) -> None:
        self.mirror = mirror
        self._bus = bus
        self._writer = writer
        self._box = box
        self._cluster = cluster
        self._root_namespace = root_namespace
        self._references = references
        self._families = families
        self._lock = asyncio.Lock()
        self._committed: list[Committed] = []

    @property
    def space(self) -> Space:
        """All objects as of now."""
        return Space(
            self.mirror.world, self._cluster, self._box, self._root_namespace, self._families
        )

    async def newest(self, info: KindInfo, namespace: str = "", name: str = "") -> int:
        """The version that has the newest row of an object (without a name: of all of the kind),
        which this replica may not have read yet; 0: there is none, or the bus is away."""
        subject = (
            subject_of(self.space.key(info, namespace, name))
            if name
            else f"{MODEL_PREFIX}.{escape_token(self._cluster)}.cfg.{escape_token(info.table)}.>"
        )
        if not self._bus.connected:
            return 0
        try:
            message = await self._bus.last(MODEL, subject)
        except BusError:
            return 0
        return message.sequence if message is not None else 0

    @property
    def leading(self) -> bool:
        """This replica may write."""
        return self._writer.leading

    @property
    def fenced_at(self) -> int:
        """Sequence of the fence that this replica writes under; another one when it leads anew."""
        return self._writer.fenced_at

    async def ready_to_write(self) -> None:
        """Until this replica leads and has read all that was written before."""
        await self._writer.wait_leading()
        await self.mirror.reached(self._writer.fenced_at)

    def on_commit(self, callback: Committed) -> None:
        """Call after each change."""
        self._committed.append(callback)

    async def write(
        self,
        plan: Callable[[Space], Sequence[Plan]],
        *,
        user: str = "",
        dry_run: bool = False,
        atomic: bool = False,
        announce: bool = True,
        in_thread: bool = False,
        keep_referenced: bool = False,
    ) -> Written:
        """Plan on the current world and commit what comes of it, as one change.

        Args:
            plan: Called once, with the world that the rows will be written on.
            user: Who asks, for events and the log.
            dry_run: Plan only.
            announce: Tell those that `on_commit` named.
            in_thread: Plan in a thread, for plans that take long: the process has more to do.
            keep_referenced: Refuse to take away what other objects name.
            atomic: Refuse what does not fit one change (1000 rows) instead of splitting it.
        Returns:
            The plans with the versions that their objects have now.
        Raises:
            ApiError: What `plan` raised; 413; 503 when this replica does not lead or the bus is
                away.
        """
        async with self._lock:
            if not dry_run:
                await self._catch_up()
            if in_thread:
                plans = tuple(await asyncio.to_thread(plan, self.space))
            else:
                plans = tuple(plan(self.space))
            writes = [write for one in plans for write in one.writes]
            plans = with_missing(self.space, plans)
            plans = self._references.checked(self.space, plans, refuse=keep_referenced)
            if dry_run or not writes:
                return Written(plans, 0)
            if atomic and len(writes) > BATCH_ROWS:
                raise too_large(
                    f"{len(writes)} rows do not fit one change of at most {BATCH_ROWS}: apply "
                    "fewer objects at once, or with atomic=false"
                )
            change = await self._commit(writes)
            written = Written(tuple(self._current(one, change) for one in plans), change)
            for callback in self._committed if announce else ():
                callback(written, user)
            return written

    async def _catch_up(self) -> None:
        if not self._writer.leading and not self._writer.led_elsewhere:
            # After a restart, ours or the bus's: the lease is a moment away.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CATCH_UP_S):
                    await self._writer.wait_leading()
        if not self._writer.leading:
            raise unavailable("this replica does not write now: another one leads, or none can")
        if not await self.mirror.reached(self._writer.fenced_at, CATCH_UP_S):
            raise unavailable("this replica has not read all changes yet")

    async def _commit(self, writes: list[Write]) -> int:
        change = 0
        try:
            for start in range(0, len(writes), BATCH_ROWS):
                change = await self._writer.commit(writes[start : start + BATCH_ROWS])
        except NotLeading as error:
            raise unavailable(str(error)) from error
        except TooLarge as error:
            raise too_large(str(error)) from error
        except BusUnavailable as error:
            raise ApiError(503, "ServiceUnavailable", str(error)) from error
        except BusError as error:
            raise unavailable(str(error)) from error
        if not await self.mirror.reached(change, CATCH_UP_S):
            raise timed_out(f"change {change} is written, but this replica has not read it back")
        return change

    def _current(self, plan: Plan, change: int) -> Plan:
        """The plan with the object as the mirror has it; a deleted one: the change."""
        held = self.space.at(plan.stored.entry.key)
        if held is not None:
            return plan._replace(stored=held)
        entry = plan.stored.entry._replace(sequence=change)
        return plan._replace(stored=plan.stored._replace(entry=entry))

    def state(self) -> dict[str, Any]:
        """For people who look into a running service."""
        world = self.mirror.world
        return {
            "leading": self.leading,
            "sequence": world.sequence,
            "objects": {
                table: len(world.all(table)) for table in world.tables() if table[:4] == "cfg."
            },
            "unreadable": dict(self.mirror.poisoned),
        }
