"""Paths of fields: `spec.http[0].match`, and which lists are maps in disguise.

Istio's lists are atomic (its CRDs say nothing else); Kubernetes' own kinds have lists whose items
are found by a key. Source of `LIST_KEYS`: the `x-kubernetes-list-map-keys` and
`x-kubernetes-patch-merge-key` of Kubernetes' OpenAPI.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]|\[\"([^\"]*)\"\]|\['([^']*)'\]")


class ListShape(NamedTuple):
    """How a list of a Kubernetes kind merges."""

    keys: tuple[str, ...]
    """Fields that tell items apart in server-side apply."""
    patch_key: str
    """The one field that tells them apart in a strategic merge patch."""


SET = ListShape((), "")
"""A list of scalars, each of which is there or not."""

_BY_NAME = ListShape(("name",), "name")
_CONTAINER = {
    ("env",): _BY_NAME,
    ("ports",): ListShape(("containerPort", "protocol"), "containerPort"),
    ("volumeMounts",): ListShape(("mountPath",), "mountPath"),
}


def _pod() -> Iterator[tuple[tuple[str, ...], ListShape]]:
    for containers in ("containers", "initContainers", "ephemeralContainers"):
        yield ("spec", containers), _BY_NAME
        for path, shape in _CONTAINER.items():
            yield ("spec", containers, *path), shape
    yield ("spec", "volumes"), _BY_NAME
    yield ("spec", "imagePullSecrets"), _BY_NAME
    yield ("spec", "hostAliases"), ListShape(("ip",), "ip")


_METADATA = {
    ("metadata", "ownerReferences"): ListShape(("uid",), "uid"),
    ("metadata", "finalizers"): SET,
}
_LISTS: dict[str, dict[tuple[str, ...], ListShape]] = {
    "Service": {("spec", "ports"): ListShape(("port", "protocol"), "port")},
    "Pod": dict(_pod()),
    "ServiceAccount": {
        ("secrets",): _BY_NAME,
        ("imagePullSecrets",): _BY_NAME,
    },
    "Namespace": {("spec", "finalizers"): SET},
    "Node": {
        ("spec", "podCIDRs"): SET,
        ("spec", "taints"): ListShape(("key", "effect"), "key"),
    },
}
_CONDITIONS = ListShape(("type",), "type")
_DEFAULTS = {"protocol": "TCP"}
_ATOMIC = {("Service", ("spec", "selector"))}


def list_shape(kind: str, core: bool, path: tuple[str, ...]) -> ListShape | None:
    """How the list at `path` (field names only, without list items) merges; None: as a whole."""
    if path in _METADATA:
        return _METADATA[path]
    if not core:
        return None
    if path == ("status", "conditions"):
        return _CONDITIONS
    return _LISTS.get(kind, {}).get(path)


def is_atomic(kind: str, core: bool, path: tuple[str, ...]) -> bool:
    """Whether the map at `path` has one manager for all its fields."""
    return core and (kind, path) in _ATOMIC


def item_key(item: Any, keys: tuple[str, ...]) -> tuple[tuple[str, Any], ...] | None:
    """The key of a list item; None if a key field is missing and has no default."""
    if not isinstance(item, dict):
        return None
    found = []
    for key in keys:
        value = item.get(key, _DEFAULTS.get(key))
        if value is None or isinstance(value, dict | list):
            return None
        found.append((key, value))
    return tuple(found)


def steps(path: str) -> list[str | int]:
    """A field path as names and indexes; empty if it is not one."""
    found: list[str | int] = []
    position = 0
    while position < len(path):
        step = _STEP.match(path, position)
        if not step:
            return []
        name, index, *quoted = step.groups()
        if index is not None:
            found.append(int(index))
        else:
            found.append(name if name is not None else next(q for q in quoted if q is not None))
        position = step.end()
    return found


def remove(document: Any, path: str) -> bool:
    """Take the field at `path` out of a document, in place; False if it is not there."""
    *parents, last = steps(path) or [""]
    for step in parents:
        document = _inside(document, step)
    if isinstance(document, dict) and last in document:
        del document[last]
        return True
    return False


def _inside(document: Any, step: str | int) -> Any:
    if isinstance(document, dict):
        return document.get(step)
    if isinstance(document, list) and isinstance(step, int) and step < len(document):
        return document[step]
    return None
