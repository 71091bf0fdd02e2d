"""What objects name and is not there: a warning for who writes, a condition on the object.

Also the other way round: what a write takes away from objects that name it is a warning, and is
refused where somebody has asked for that.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from meshbus.analyze.references import (
    Labels,
    Missing,
    has_references,
    missing_references,
    selector_of,
    some_gateway,
)
from meshbus.compile.engine import Engine, Reader
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject
from meshbus.model.world import Entry, Put, Query, World
from meshbus_config.documents import Space
from meshbus_config.errors import ApiError, Cause
from meshbus_config.outcomes import CREATED, DELETED, UNCHANGED, Plan

PROTECTED = "meshbus.io/keep-while-referenced"
"""Annotation of an object, or of its namespace: `true` refuses to take away what others name."""


class _WorldRows:
    """A world as the analysis asks it."""

    def __init__(self, world: World) -> None:
        self._world = world

    def entries(self, query: Query) -> tuple[Entry, ...]:
        return self._world.entries(query)

    def get(self, key: Key) -> Any:
        return self._world.get(key)

    def has_gateway(self, selector: Labels) -> bool:
        return some_gateway(self._world, selector)


class _ReadRows:
    """Rows as a node of the engine asks for them."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.entries = reader.entries
        self.get = reader.get

    def has_gateway(self, selector: Labels) -> bool:
        return self._reader.node(_some_gateway, selector)


def text_of(missing: Missing) -> str:
    """For people."""
    return f"{missing.path}: {missing.message}"


def with_missing(space: Space, plans: Sequence[Plan]) -> tuple[Plan, ...]:
    """The plans, with a warning for each thing that their objects name and that is not there once
    all of them are written."""
    concerned = {
        plan.stored.entry.key
        for plan in plans
        if plan.action not in (DELETED, UNCHANGED)
        and has_references(plan.stored.entry.key)
        and any(key == plan.stored.entry.key for key, _ in plan.writes)
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
    return missing_references(_ReadRows(reader), key)


def _some_gateway(reader: Reader, selector: Labels) -> bool:
    """Node: a gateway has these labels."""
    return some_gateway(reader, selector)


class References:
    """What is missing now, by object; looks again only at what a change concerns."""

    def __init__(self) -> None:
        self._engine = Engine(World())
        self._objects: set[Key] = set()
        self._new: set[Key] = set()
        """Objects that were not looked at yet."""
        self._missing: dict[Key, tuple[Missing, ...]] = {}
        self._moved: set[Key] = set()

    def changed(self, world: World, touched: Iterable[Query]) -> None:
        """The next world, as the mirror gives it."""
        queries = list(touched)
        self._engine.update(world, queries)
        for query in queries:
            key = query.value
            if query.by == "key" and isinstance(key, Key) and has_references(key):
                if world.get(key) is None:
                    self._objects.discard(key)
                    self._new.discard(key)
                    self._say(key, ())
                    self._engine.release(_missing, key)
                elif key not in self._objects:
                    self._objects.add(key)
                    self._new.add(key)

    def missing(self) -> Mapping[Key, tuple[Missing, ...]]:
        """Objects that name something missing. Costs what has changed since it was asked last."""
        for key in sorted(self._new):
            self._say(key, self._engine.get(_missing, key))
        self._new.clear()
        self._engine.advance()
        for function, (asked, *_) in self._engine.take_changed():
            if function is _missing and isinstance(asked, Key) and asked in self._objects:
                self._say(asked, self._engine.get(_missing, asked))
        return self._missing

    def _say(self, key: Key, found: tuple[Missing, ...]) -> None:
        if found == self._missing.get(key, ()):
            return
        self._moved.add(key)
        if found:
            self._missing[key] = found
        else:
            del self._missing[key]

    def take_moved(self) -> set[Key]:
        """Objects of which `missing` says something else than when this was asked last."""
        self.missing()
        moved, self._moved = self._moved, set()
        return moved

    def taken_away(self, space: Space, plans: Sequence[Plan]) -> dict[Key, tuple[Missing, ...]]:
        """What objects that are not written will name in vain once the plans are done."""
        puts = [
            Put(key, space.world.sequence, 0.0, row)
            for plan in plans
            if plan.action not in (CREATED, UNCHANGED)
            for key, row in (*plan.writes, *_derived(space.world, plan))
        ]
        if not puts:
            return {}
        self.missing()
        world, touched = space.world.apply(puts)
        rows = _WorldRows(world)
        written = {plan.stored.entry.key for plan in plans}
        found = {}
        for key in self._concerned(touched):
            if key in written:
                continue
            before = set(self._engine.get(_missing, key))
            lost = tuple(m for m in missing_references(rows, key) if m not in before)
            if lost:
                found[key] = lost
        return dict(sorted(found.items()))

    def _concerned(self, touched: Iterable[Query]) -> Iterator[Key]:
        """Objects that would be looked at again if the answers changed."""
        selectors = set()
        for function, (asked, *_) in self._engine.askers(touched):
            if function is _some_gateway:
                selectors.add(asked)
            elif function is _missing and isinstance(asked, Key):
                yield asked
        if not selectors:
            return
        for key in self._objects:
            row = self._engine.world.get(key) if key.kind == "gateways" else None
            if isinstance(row, ConfigObject) and selector_of(row) in selectors:
                yield key

    def checked(self, space: Space, plans: Sequence[Plan], *, refuse: bool) -> tuple[Plan, ...]:
        """The plans, with a warning for each object from which they take away what it names.

        Args:
            refuse: Whoever asks does not want that.
        Raises:
            ApiError: 409, what is taken away may not be: `refuse`, or `PROTECTED`.
        """
        whole = self.taken_away(space, plans)
        if not whole:
            return tuple(plans)
        out = []
        for plan in plans:
            # What another plan of the same change brings back is not lost.
            lost = self.taken_away(space, [plan])
            lost = {key: many for key, many in lost.items() if key in whole}
            named = [
                (_name(space.world, key), missing) for key, many in lost.items() for missing in many
            ]
            if named and (refuse or _protected(space, plan)):
                raise _refusal(plan, named)
            warnings = [f"{name} names it: {text_of(m)} any more" for name, m in named]
            out.append(plan._replace(warnings=(*plan.warnings, *warnings)))
        return tuple(out)


def _derived(world: World, plan: Plan) -> list[tuple[Key, None]]:
    """Rows of the registry that go with the object: discovery removes them a moment later."""
    key = plan.stored.entry.key
    if plan.action != DELETED or key.kind not in ("services", "serviceentries"):
        return []
    source = f"{key.table}/{key.namespace}/{key.name}"
    held = world.entries(Query("reg.services", "namespace", key.namespace))
    return [(entry.key, None) for entry in held if entry.row.source == source]


def _name(world: World, key: Key) -> str:
    row = world.get(key)
    kind = row.kind if isinstance(row, ConfigObject) else key.kind
    return f"{kind} {key.namespace}/{key.name}"


def _protected(space: Space, plan: Plan) -> bool:
    key = plan.stored.entry.key
    namespace = space.world.get(Key(key.cluster, "cfg", "namespaces", "", key.namespace))
    for row in (space.world.get(key), namespace):
        if isinstance(row, ConfigObject) and row.annotations.get(PROTECTED, "").lower() == "true":
            return True
    return False


def _refusal(plan: Plan, named: Sequence[tuple[str, Missing]]) -> ApiError:
    row = plan.stored.row
    causes = [Cause("Referenced", f"{name}: {m.message}", f"{m.path}") for name, m in named]
    by = ", ".join(dict.fromkeys(name for name, _ in named))
    message = f"{row.kind} {row.namespace}/{row.name} is still named by {by}"
    return ApiError(409, "Conflict", message, name=row.name, causes=causes)
