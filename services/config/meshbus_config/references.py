"""What objects name and is not there: a warning for who writes, a condition on the object."""

from collections.abc import Iterable, Sequence
from typing import Any

from meshbus.analyze.references import Missing, has_references, missing_references
from meshbus.compile.engine import Engine, Reader
from meshbus.model.keys import Key
from meshbus.model.world import Entry, Put, Query, World
from meshbus_config.documents import Space
from meshbus_config.outcomes import DELETED, UNCHANGED, Plan


class _WorldRows:
    """A world as the analysis asks it."""

    def __init__(self, world: World) -> None:
        self._world = world

    def entries(self, query: Query) -> tuple[Entry, ...]:
        return self._world.entries(query)

    def get(self, key: Key) -> Any:
        return self._world.get(key)


def text_of(missing: Missing) -> str:
    """For people."""
    return f"{missing.path}: {missing.message}"


def with_missing(space: Space, plans: Sequence[Plan]) -> tuple[Plan, ...]:
    """The plans, with a warning for each thing that their objects name and that is not there once
    all of them are written."""
    concerned = {
        plan.stored.entry.key
        for plan in plans
        if plan.action not in (DELETED, UNCHANGED) and has_references(plan.stored.entry.key)
    }
    if not concerned:
        return tuple(plans)
    writes = (write for plan in plans for write in plan.writes)
    world, _ = space.world.apply(Put(key, space.world.sequence, 0.0, row) for key, row in writes)
    rows = _WorldRows(world)
    return tuple(
        plan._replace(
            warnings=(
                *plan.warnings,
                *(f"{text_of(m)} yet" for m in missing_references(rows, plan.stored.entry.key)),
            )
        )
        if plan.stored.entry.key in concerned
        else plan
        for plan in plans
    )


def _missing(reader: Reader, key: Key) -> tuple[Missing, ...]:
    """Node: what one object names and is not there."""
    return missing_references(reader, key)


class References:
    """What is missing now, by object; looks again only at what a change concerns."""

    def __init__(self) -> None:
        self._engine = Engine(World())
        self._objects: set[Key] = set()

    def changed(self, world: World, touched: Iterable[Query]) -> None:
        """The next world, as the mirror gives it."""
        queries = list(touched)
        self._engine.update(world, queries)
        for query in queries:
            key = query.value
            if query.by == "key" and isinstance(key, Key) and has_references(key):
                if world.get(key) is None:
                    self._objects.discard(key)
                    self._engine.release(_missing, key)
                else:
                    self._objects.add(key)

    def missing(self) -> dict[Key, tuple[Missing, ...]]:
        """Objects that name something missing."""
        found = {key: self._engine.get(_missing, key) for key in sorted(self._objects)}
        return {key: missing for key, missing in found.items() if missing}
