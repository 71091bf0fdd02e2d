"""The latest changes of objects, for watches. State machine without IO.

The mirror reports each step of the world; what changed is kept in a bounded ring, so a watcher is
nothing but a position in it. A watcher that falls out of the ring is told to list again (410).
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from meshbus.model.keys import Key
from meshbus.model.world import Query, World
from meshbus_config.documents import Stored, object_key, status_key

RING = 8192
"""Changes remembered."""


class ObjectChange(NamedTuple):
    """One object before and after a step. `sequence` is what a watcher resumes from."""

    sequence: int
    key: Key
    before: Stored | None
    after: Stored | None


class Expired(Exception):
    """The position is older than what is remembered."""


class History:
    """Subscribe `record` to a mirror; read with `since`, sleep with `wait`."""

    def __init__(self, capacity: int = RING) -> None:
        self._ring: deque[ObjectChange] = deque()
        self._capacity = capacity
        self._world = World()
        self._moved = asyncio.Event()
        self.floor = -1
        """Changes after this sequence are remembered; -1 until the first world is whole."""
        self.closed = False

    @property
    def world(self) -> World:
        """The world that the last change led to."""
        return self._world

    def record(self, world: World, touched: frozenset[Query]) -> None:
        """Take one step of the mirror."""
        before, self._world = self._world, world
        if self.floor < 0 or world.sequence < before.sequence:
            # The first snapshot, or a stream that began again: nothing before it is known.
            self._ring.clear()
            self.floor = world.sequence
        else:
            for change in _changes(before, world, touched):
                self._ring.append(change)
            while len(self._ring) > self._capacity:
                self.floor = self._ring.popleft().sequence
        self._wake()

    def close(self) -> None:
        """No more changes: watchers end."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    def since(self, sequence: int) -> tuple[list[ObjectChange], int]:
        """Changes after a sequence, oldest first, and the sequence to go on from.

        Raises:
            Expired: Some of them are forgotten.
        """
        if sequence < self.floor:
            raise Expired
        if not self._ring or self._ring[-1].sequence <= sequence:
            return [], max(sequence, self._world.sequence)
        found = []
        for change in reversed(self._ring):
            if change.sequence <= sequence:
                break
            found.append(change)
        return found[::-1], max(sequence, self._world.sequence)

    async def wait(self, sequence: int, timeout: float) -> None:
        """Until the world is past a sequence, or `timeout` seconds have gone."""
        moved = self._moved
        if self.closed or self._world.sequence > sequence:
            return
        try:
            async with asyncio.timeout(timeout):
                await moved.wait()
        except TimeoutError:
            return


def _changes(before: World, after: World, touched: Iterable[Query]) -> list[ObjectChange]:
    keys: set[Key] = set()
    for query in touched:
        if query.by != "key" or not isinstance(query.value, Key):
            continue
        if query.value.plane == "cfg":
            keys.add(query.value)
        elif query.value.plane == "st":
            keys.add(object_key(query.value))
    changes = []
    for key in keys:
        old, new = _stored(before, key), _stored(after, key)
        if old is None and new is None:
            continue
        if old is not None and new is not None and old.row.uid != new.row.uid:
            # Deleted and made again within one step.
            changes.append(ObjectChange(new.version - 1, key, old, None))
            old = None
        # Deletions carry the world's version: that of their tombstone is not kept.
        sequence = after.sequence if new is None else max(new.version, before.sequence + 1)
        changes.append(ObjectChange(sequence, key, old, new))
    # Positions must never run back, whatever order rows had within the step.
    return sorted(changes, key=lambda change: (change.sequence, change.key))


def _stored(world: World, key: Key) -> Stored | None:
    entry = world.entry(key)
    return None if entry is None else Stored(entry, world.entry(status_key(key)))
