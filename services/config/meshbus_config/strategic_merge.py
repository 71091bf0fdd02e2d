"""Strategic merge patch, for Kubernetes' own kinds. Pure: the target is left as it was.

Source: https://github.com/kubernetes/community/blob/master/contributors/devel/sig-api-machinery/strategic-merge-patch.md
"""

import copy
from typing import Any

from meshbus_config.patches import PatchError
from meshbus_config.paths import SET, list_shape

_DIRECTIVE = "$patch"
_RETAIN = "$retainKeys"
_ORDER = "$setElementOrder/"
_DELETE_SCALARS = "$deleteFromPrimitiveList/"


def strategic_merge(target: Any, patch: Any, kind: str) -> Any:
    """The target with a strategic merge patch of one of Kubernetes' kinds applied.

    Raises:
        PatchError: The patch is malformed.
    """
    if not isinstance(patch, dict):
        raise PatchError("a strategic merge patch is a map")
    return _merge_map(target if isinstance(target, dict) else {}, patch, kind, ())


def _merge_map(
    target: dict[str, Any], patch: dict[str, Any], kind: str, path: tuple[str, ...]
) -> dict[str, Any]:
    directive = patch.get(_DIRECTIVE)
    if directive == "replace":
        return {n: copy.deepcopy(v) for n, v in patch.items() if n != _DIRECTIVE}
    if directive == "delete":
        return {}
    if directive not in (None, "merge"):
        raise PatchError(f"$patch must be merge, replace or delete, not {directive!r}")
    merged = copy.deepcopy(target)
    if _RETAIN in patch:
        retained = set(_list(patch[_RETAIN], _RETAIN))
        merged = {name: value for name, value in merged.items() if name in retained}
    for name, value in patch.items():
        if name.startswith("$"):
            continue
        field = (*path, name)
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict):
            held = merged.get(name)
            merged[name] = _merge_map(held if isinstance(held, dict) else {}, value, kind, field)
        elif isinstance(value, list):
            merged[name] = _merge_list(merged.get(name), value, kind, field)
        else:
            merged[name] = value
    for name, value in patch.items():
        if name.startswith(_DELETE_SCALARS):
            gone = _list(value, name)
            held = merged.get(name.removeprefix(_DELETE_SCALARS))
            if isinstance(held, list):
                merged[name.removeprefix(_DELETE_SCALARS)] = [v for v in held if v not in gone]
    for name, value in patch.items():
        if name.startswith(_ORDER):
            field_name = name.removeprefix(_ORDER)
            held = merged.get(field_name)
            if isinstance(held, list):
                order = _list(value, name)
                merged[field_name] = _ordered(held, order, kind, (*path, field_name))
    return merged


def _merge_list(held: Any, patch: list[Any], kind: str, path: tuple[str, ...]) -> list[Any]:
    shape = list_shape(kind, True, path)
    items: list[Any] = copy.deepcopy(held) if isinstance(held, list) else []
    if shape is None:
        return copy.deepcopy(patch)
    if shape is SET:
        return items + [value for value in patch if value not in items]
    if any(isinstance(item, dict) and item.get(_DIRECTIVE) == "replace" for item in patch):
        return [
            {n: copy.deepcopy(v) for n, v in item.items() if n != _DIRECTIVE}
            for item in patch
            if isinstance(item, dict) and item.keys() != {_DIRECTIVE}
        ]
    key = shape.patch_key
    for item in patch:
        if not isinstance(item, dict) or key not in item:
            raise PatchError(f"items of {'.'.join(path)} are maps with the field {key}")
        index = next(
            (
                i
                for i, have in enumerate(items)
                if isinstance(have, dict) and have.get(key) == item[key]
            ),
            None,
        )
        if item.get(_DIRECTIVE) == "delete":
            if index is not None:
                del items[index]
        elif index is None:
            items.append(_merge_map({}, item, kind, path))
        else:
            items[index] = _merge_map(items[index], item, kind, path)
    return items


def _ordered(items: list[Any], order: list[Any], kind: str, path: tuple[str, ...]) -> list[Any]:
    """Items named in `order` in that order; the others stay before what followed them."""
    shape = list_shape(kind, True, path)
    key = shape.patch_key if shape is not None else ""

    def identity(item: Any) -> Any:
        return item.get(key) if key and isinstance(item, dict) else item

    ranks = {_hashable(identity(item)): rank for rank, item in enumerate(order)}
    placed = iter(
        sorted(
            (item for item in items if _hashable(identity(item)) in ranks),
            key=lambda item: ranks[_hashable(identity(item))],
        )
    )
    return [next(placed) if _hashable(identity(item)) in ranks else item for item in items]


def _hashable(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) else repr(value)


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise PatchError(f"{name} is a list")
    return value
