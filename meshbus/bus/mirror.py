"""The world of a service: rows of MODEL, followed and indexed."""

import asyncio
import contextlib
import zlib
from collections.abc import Callable, Container, Iterable, Sequence

import msgspec
import structlog

from meshbus.bus.interface import MODEL, Bus, FollowerHandle, Message
from meshbus.model.envelope import unseal
from meshbus.model.keys import Key, key_of
from meshbus.model.revisions import RevisionView
from meshbus.model.rows import decode_row
from meshbus.model.world import Put, Query, World

ALL_ROWS = ("m.>",)
Subscriber = Callable[[World, frozenset[Query]], None]

log = structlog.get_logger("mirror")


class WorldMirror:
    """Keeps a `World` up to date: give it to a follower, or `follow` with it.

    A resync builds the next world aside and swaps it in at its end: subscribers see one step from
    the old world to the new, never an empty one.
    """

    def __init__(self, without: Container[str] = (), view: RevisionView | None = None) -> None:
        """
        Args:
            without: Tables whose rows are not kept; the version moves with them all the same.
            view: Whose model it is; None: everything as it is.
        """
        self._without = without
        self._view = view
        self.world = World()
        """All rows at one version."""
        self.poisoned: dict[str, str] = {}
        """Subjects whose last message could not be read (the value before it stands), and why."""
        self._subscribers: list[Subscriber] = []
        self._aside: dict[Key, Put] | None = None
        self._kept: set[Key] = set()
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._held: dict[str, Message] | None = None
        self._held_to = 0

    def follow(
        self, bus: Bus, filters: Sequence[str] = ALL_ROWS, *, name: str = ""
    ) -> FollowerHandle:
        """A follower of MODEL that feeds this mirror; `run` it in the service's task group."""
        return bus.follower(MODEL, filters, self, name=name)

    def subscribe(self, callback: Subscriber) -> None:
        """Call after each step with the new world and the queries whose answers changed (none,
        when only the version did). The callback must not raise nor wait."""
        self._subscribers.append(callback)

    def hold(self) -> None:
        """Make no steps for now: of what comes the last message of each row is kept, unread, so
        that a row which changes ten times meanwhile is read once."""
        if self._held is None and self._aside is None:
            self._held = {}

    def release(self) -> None:
        """Make one step of all that has come since `hold`."""
        held, self._held = self._held, None
        if held:
            self._apply(held.values(), self._held_to)

    async def reached(self, sequence: int, timeout: float | None = None) -> bool:
        """Wait until the world is at `sequence` or later; False after `timeout` seconds."""
        if self.world.sequence >= sequence:
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (sequence, future)
        self._waiters.append(entry)
        try:
            async with asyncio.timeout(timeout):
                await future
        except TimeoutError:
            return False
        finally:
            with contextlib.suppress(ValueError):
                self._waiters.remove(entry)
        return True

    # ------------------------------------------------------------------ Applier

    def begin(self) -> None:
        """A snapshot begins."""
        self.release()
        self._aside = {}
        self._kept = set()

    def apply(self, messages: Sequence[Message]) -> None:
        """Messages of the snapshot, or one or more whole batches."""
        if self._aside is not None:
            for message in messages:
                put = self._put_of(message)
                if put is not None:
                    self._aside[put.key] = put
            return
        if self._held is None:
            self._apply(messages, messages[-1].sequence)
            return
        for message in messages:
            self._held.pop(message.subject, None)
            self._held[message.subject] = message
        self._held_to = messages[-1].sequence

    def _apply(self, messages: Iterable[Message], sequence: int) -> None:
        puts = [put for message in messages if (put := self._put_of(message)) is not None]
        self._step(puts, sequence)

    def end(self, sequence: int) -> None:
        """The snapshot is whole."""
        assert self._aside is not None
        puts = list(self._aside.values())
        puts += [
            Put(entry.key, sequence, entry.ts, None)
            for table in self.world.tables()
            for entry in self.world.all(table)
            if entry.key not in self._aside and entry.key not in self._kept
        ]
        self._aside = None
        if sequence < self.world.sequence:
            self.world = self.world.begun_again()
        self._step(puts, sequence)

    def _step(self, puts: list[Put], sequence: int) -> None:
        world, touched = self.world.apply(puts)
        world.sequence = max(world.sequence, sequence)
        self.world = world
        for callback in self._subscribers:
            callback(world, touched)
        if self._waiters:
            for wanted, future in self._waiters:
                if wanted <= world.sequence and not future.done():
                    future.set_result(None)

    def _put_of(self, message: Message) -> Put | None:
        try:
            key = key_of(message.subject)
        except ValueError:
            return None  # a fence or another control subject
        if key.table in self._without:
            return None
        table = key.table
        if self._view is not None:
            seen = self._view.key(key)
            if seen is None:
                return None
            key = seen
        if not message.data:
            self.poisoned.pop(message.subject, None)
            return Put(key, message.sequence, 0.0, None)
        try:
            envelope = unseal(message.data)
            row = decode_row(table, envelope.body)
        except KeyError:
            return None  # a table of a newer version
        except (msgspec.MsgspecError, zlib.error) as error:
            self.poisoned[message.subject] = str(error)
            self._kept.add(key)
            log.error("a row cannot be read; the one before it stands", key=str(key), error=error)
            return None
        self.poisoned.pop(message.subject, None)
        seen_row = row if self._view is None else self._view.row(row)
        return Put(key, message.sequence, envelope.ts, seen_row)
