"""Server-side apply, and who manages what after any other write. Pure.

Source: https://kubernetes.io/docs/reference/using-api/server-side-apply/
"""

import copy
from collections.abc import Iterable
from typing import Any, NamedTuple

from meshbus_config.field_sets import (
    APPLY,
    UPDATE,
    FieldSet,
    Owner,
    Path,
    Shapes,
    leaves,
    list_elements,
)


class Writer(NamedTuple):
    """Who writes, for `managedFields`."""

    manager: str
    api_version: str
    time: str
    subresource: str = ""


class FieldConflict(NamedTuple):
    """A field that another manager owns with another value."""

    owner: Owner
    path: str
    """As kubectl shows it: `.spec.hosts`."""


def conflicts(
    applied: dict[str, Any],
    live: dict[str, Any],
    owners: Iterable[Owner],
    by: Writer,
    shapes: Shapes,
) -> list[FieldConflict]:
    """Fields that `applied` would change and that others manage."""
    wanted, held = leaves(applied, shapes), leaves(live, shapes)
    found = []
    for owner in owners:
        if owner.identity == (by.manager, APPLY, by.subresource):
            continue
        found += [
            FieldConflict(owner, _shown(path))
            for path in sorted(_overlap(wanted, owner.fields))
            if path not in held or held[path] != wanted[path]
        ]
    return found


def _overlap(wanted: dict[Path, Any], owned: FieldSet) -> Iterable[Path]:
    """Wanted fields that are owned, or that replace something owned inside or around them."""
    prefixes = {path[:end] for path in owned for end in range(1, len(path))}
    for path, value in wanted.items():
        if path[-1] == ".":
            continue
        # An empty map or list leaves what others have in it.
        around = path in prefixes and value not in ({}, [])
        if path in owned or around or any(path[:n] in owned for n in range(1, len(path))):
            yield path


def apply(
    applied: dict[str, Any],
    live: dict[str, Any],
    owners: list[Owner],
    by: Writer,
    shapes: Shapes,
) -> tuple[dict[str, Any], list[Owner]]:
    """The object after an apply, and its owners. Conflicts are settled for the applier.

    What the manager applied before and applies no longer is removed, unless others manage it too.
    """
    wanted, held = leaves(applied, shapes), leaves(live, shapes)
    me = (by.manager, APPLY, by.subresource)
    before: FieldSet = next((o.fields for o in owners if o.identity == me), frozenset())
    lost = {path for path in _overlap(wanted, frozenset(held)) if held.get(path) != wanted[path]}
    others = [
        owner._replace(fields=_without(owner.fields, lost))
        for owner in owners
        if owner.identity != me
    ]
    merged: dict[str, Any] = _merge(copy.deepcopy(live), applied, (), shapes)
    kept = frozenset(wanted).union(*(owner.fields for owner in others))
    # Keyed items go whole first: one that loses its key field could no longer be found.
    for path in sorted(before - kept, key=lambda path: (path[-1] != ".", path)):
        _prune(merged, path, (), shapes, kept)
    return merged, [*others, _owner(by, APPLY, frozenset(wanted), owners)]


def update(
    new: dict[str, Any], live: dict[str, Any], owners: list[Owner], by: Writer, shapes: Shapes
) -> list[Owner]:
    """The owners after an object was written as a whole: what changed is the writer's."""
    after, held = leaves(new, shapes), leaves(live, shapes)
    changed = frozenset(p for p, value in after.items() if p not in held or held[p] != value)
    present = frozenset(after)
    me = (by.manager, UPDATE, by.subresource)
    mine: FieldSet = next((o.fields for o in owners if o.identity == me), frozenset())
    others = [
        owner._replace(fields=(owner.fields & present) - changed)
        if owner.subresource == by.subresource
        else owner
        for owner in owners
        if owner.identity != me
    ]
    return [*others, _owner(by, UPDATE, (mine & present) | changed, owners)]


def _owner(by: Writer, operation: str, fields: FieldSet, owners: list[Owner]) -> Owner:
    """The writer's entry; its time moves only with its fields."""
    owner = Owner(by.manager, operation, by.subresource, by.api_version, by.time, fields)
    for held in owners:
        if held.identity == owner.identity and held.fields == fields:
            return owner._replace(time=held.time)
    return owner


def _without(fields: FieldSet, lost: set[Path]) -> FieldSet:
    """Fields but those lost, and those inside or around them."""
    if not lost:
        return fields
    return frozenset(
        path
        for path in fields
        if path not in lost
        and not any(path[:n] in lost for n in range(1, len(path)))
        and not any(gone[: len(path)] == path for gone in lost)
    )


def _merge(live: Any, applied: Any, names: tuple[str, ...], shapes: Shapes) -> Any:
    if isinstance(applied, dict) and isinstance(live, dict) and not shapes.atomic(names):
        for name, value in applied.items():
            live[name] = _merge(live.get(name), value, (*names, name), shapes)
        return live
    if isinstance(applied, list) and isinstance(live, list):
        ours = list_elements(applied, names, shapes)
        theirs = list_elements(live, names, shapes)
        if ours is not None and theirs is not None:
            merged = dict(theirs)
            for element, item in ours:
                merged[element] = _merge(merged.get(element), item, names, shapes)
            return list(merged.values())
    return copy.deepcopy(applied)


def _prune(
    holder: Any, path: Path, names: tuple[str, ...], shapes: Shapes, kept: FieldSet, at: Path = ()
) -> None:
    """Remove the field at `path` (relative to `holder`, which is at `at`), and what it leaves
    empty."""
    element, rest = path[0], path[1:]
    here = (*at, element)
    if isinstance(holder, dict) and element.startswith("f:"):
        name = element[2:]
        if name not in holder:
            return
        if not rest:
            del holder[name]
            return
        _prune(holder[name], rest, (*names, name), shapes, kept, here)
        if holder[name] in ({}, []) and not any(path[: len(here)] == here for path in kept):
            del holder[name]
    elif isinstance(holder, list):
        keyed = list_elements(holder, names, shapes)
        for index, (known, item) in enumerate(keyed or ()):
            if known != element:
                continue
            if not rest or rest == (".",):
                if not any(path[: len(here)] == here for path in kept):
                    del holder[index]
            else:
                _prune(item, rest, names, shapes, kept, here)
            return


def _shown(path: Path) -> str:
    text = ""
    for element in path:
        kind, _, rest = element.partition(":")
        if kind == "f":
            text += f".{rest}"
        elif kind == "k":
            text += "[" + rest.strip("{}").replace('":', "=").replace('"', "", 1) + "]"
        elif kind == "v":
            text += f"[={rest}]"
    return text
