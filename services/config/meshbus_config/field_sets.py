"""Who manages which field: sets of field paths, and `managedFields` that hold them. Pure.

A path is a tuple of elements in the notation of `FieldsV1`: `f:NAME` a field, `k:{...}` a list item
by key, `v:VALUE` an item of a set, `.` the item or map itself. Only leaves are in a set, and `.` of
keyed items.
Source: https://kubernetes.io/docs/reference/using-api/server-side-apply/,
sigs.k8s.io/structured-merge-diff fieldpath.
"""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from meshbus_config.paths import SET, ListShape, is_atomic, item_key, list_shape

Path = tuple[str, ...]
FieldSet = frozenset[Path]

APPLY, UPDATE = "Apply", "Update"
_UNMANAGED = frozenset(
    {
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "managedFields",
        "generateName",
        "selfLink",
    }
)


class Owner(NamedTuple):
    """One manager's entry of `managedFields`."""

    manager: str
    operation: str
    subresource: str
    api_version: str
    time: str
    fields: FieldSet

    @property
    def identity(self) -> tuple[str, str, str]:
        """What makes it the same entry: manager, operation, subresource."""
        return (self.manager, self.operation, self.subresource)


class FieldsV1Error(Exception):
    """`managedFields` that cannot be read."""


class _Entry(msgspec.Struct, kw_only=True):
    manager: str = ""
    operation: str
    api_version: str = msgspec.field(name="apiVersion", default="")
    time: str | None = None
    fields_type: str = msgspec.field(name="fieldsType", default="FieldsV1")
    fields: dict[str, Any] = msgspec.field(name="fieldsV1", default={})
    subresource: str = ""


def owners_of(managed_fields: Any) -> list[Owner]:
    """The entries of an object's `managedFields`.

    Raises:
        FieldsV1Error: They are malformed.
    """
    try:
        entries = msgspec.convert(managed_fields or [], list[_Entry])
    except msgspec.ValidationError as error:
        raise FieldsV1Error(f"metadata.managedFields: {error}") from error
    return [
        Owner(
            entry.manager,
            entry.operation,
            entry.subresource,
            entry.api_version,
            entry.time or "",
            frozenset(_flatten(entry.fields, ())),
        )
        for entry in entries
        if entry.operation in (APPLY, UPDATE) and entry.fields
    ]


def _flatten(fields: dict[str, Any], path: Path) -> Iterable[Path]:
    for element, inside in fields.items():
        if element == ".":
            yield (*path, ".")
        elif isinstance(inside, dict) and inside:
            yield from _flatten(inside, (*path, element))
        else:
            yield (*path, element)


def managed_fields_of(owners: Iterable[Owner]) -> list[dict[str, Any]]:
    """`managedFields` of these owners; those without fields are left out."""
    rendered = []
    for owner in sorted(owners, key=lambda o: (o.operation != APPLY, o.time, o.identity)):
        if not owner.fields:
            continue
        entry: dict[str, Any] = {
            "manager": owner.manager,
            "operation": owner.operation,
            "apiVersion": owner.api_version,
            "time": owner.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": _nest(owner.fields),
        }
        if owner.subresource:
            entry["subresource"] = owner.subresource
        rendered.append(entry)
    return rendered


def _nest(fields: FieldSet) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path in sorted(fields):
        level = nested
        for element in path:
            level = level.setdefault(element, {})
    return nested


class Shapes(NamedTuple):
    """How lists and maps of a kind merge."""

    kind: str
    core: bool

    def of_list(self, path: tuple[str, ...]) -> ListShape | None:
        """See `meshbus_config.paths.list_shape`."""
        return list_shape(self.kind, self.core, path)

    def atomic(self, path: tuple[str, ...]) -> bool:
        """See `meshbus_config.paths.is_atomic`."""
        return is_atomic(self.kind, self.core, path)


def leaves(document: dict[str, Any], shapes: Shapes) -> dict[Path, Any]:
    """Every field of a document that can have a manager, with its value."""
    found: dict[Path, Any] = {}
    for name, value in document.items():
        if name in ("apiVersion", "kind"):
            continue
        if name == "metadata" and isinstance(value, dict):
            value = {n: v for n, v in value.items() if n not in _UNMANAGED}
            if not value:
                continue
        _collect(value, (f"f:{name}",), (name,), shapes, found)
    return found


def _collect(
    value: Any, path: Path, names: tuple[str, ...], shapes: Shapes, found: dict[Path, Any]
) -> None:
    if isinstance(value, dict) and value and not shapes.atomic(names):
        for name, inside in value.items():
            _collect(inside, (*path, f"f:{name}"), (*names, name), shapes, found)
        return
    keyed = list_elements(value, names, shapes) if isinstance(value, list) and value else None
    if keyed is None:
        found[path] = value
        return
    for element, item in keyed:
        if isinstance(item, dict):
            found[(*path, element, ".")] = None
            for name, inside in item.items():
                _collect(inside, (*path, element, f"f:{name}"), (*names, name), shapes, found)
        else:
            found[(*path, element)] = item


def list_elements(
    items: list[Any], names: tuple[str, ...], shapes: Shapes
) -> list[tuple[str, Any]] | None:
    """Items of a list by their path element; None for a list that has one manager as a whole
    (also one whose items lack their keys or repeat them)."""
    shape = shapes.of_list(names)
    if shape is None:
        return None
    found: dict[str, Any] = {}
    for item in items:
        if shape is SET:
            element = f"v:{json.dumps(item)}"
        else:
            key = item_key(item, shape.keys)
            if key is None:
                return None
            element = "k:" + json.dumps(dict(key), sort_keys=True, separators=(",", ":"))
        if element in found:
            return None
        found[element] = item
    return list(found.items())
