"""JSON Patch (RFC 6902) and JSON Merge Patch (RFC 7386). Pure: the target is left as it was.

Strategic merge is in `strategic_merge`, server-side apply in `apply_merge`.
"""

import copy
from typing import Any

import msgspec

MAX_OPERATIONS = 10_000
"""As many as Kubernetes takes."""


class PatchError(Exception):
    """The patch cannot be carried out: malformed, or it does not fit the object."""


class PatchTestError(PatchError):
    """A `test` operation of a JSON patch does not hold."""


def merge_patch(target: Any, patch: Any) -> Any:
    """The target with a JSON merge patch applied: null removes, maps merge, all else replaces."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


class _Operation(msgspec.Struct, forbid_unknown_fields=True):
    op: str
    path: str
    value: Any = msgspec.UNSET
    from_: Any = msgspec.field(default=msgspec.UNSET, name="from")


def json_patch(target: Any, patch: Any) -> Any:
    """The target after all operations of a JSON patch, or none of them.

    Raises:
        PatchTestError: A `test` does not hold.
        PatchError: The patch is malformed, or names what is not there.
    """
    try:
        operations = msgspec.convert(patch, list[_Operation])
    except msgspec.ValidationError as error:
        raise PatchError(f"not a JSON patch: {error}") from error
    if len(operations) > MAX_OPERATIONS:
        raise PatchError(f"{len(operations)} operations; at most {MAX_OPERATIONS} are taken")
    document = copy.deepcopy(target)
    for index, operation in enumerate(operations):
        try:
            document = _run(document, operation)
        except PatchTestError:
            raise
        except PatchError as error:
            raise PatchError(f"operation {index} ({operation.op} {operation.path}): {error}") from (
                error
            )
    return document


def _run(document: Any, operation: _Operation) -> Any:
    path = _pointer(operation.path)
    match operation.op:
        case "add":
            return _add(document, path, copy.deepcopy(_value(operation)))
        case "remove":
            return _remove(document, path)[0]
        case "replace":
            _get(document, path)
            return _replace(document, path, copy.deepcopy(_value(operation)))
        case "move":
            source = _source(operation)
            if path[: len(source)] == source and path != source:
                raise PatchError("cannot move a value into itself")
            document, taken = _remove(document, source)
            return _add(document, path, taken)
        case "copy":
            return _add(document, path, copy.deepcopy(_get(document, _source(operation))))
        case "test":
            if not _same(_get(document, path), _value(operation)):
                raise PatchTestError(f"testing value {operation.path} failed")
            return document
    raise PatchError("op must be add, remove, replace, move, copy or test")


def _value(operation: _Operation) -> Any:
    if operation.value is msgspec.UNSET:
        raise PatchError("value is missing")
    return operation.value


def _source(operation: _Operation) -> list[str]:
    if not isinstance(operation.from_, str):
        raise PatchError("from is missing")
    return _pointer(operation.from_)


def _pointer(text: str) -> list[str]:
    if text == "":
        return []
    if not text.startswith("/"):
        raise PatchError("a path starts with /")
    return [step.replace("~1", "/").replace("~0", "~") for step in text[1:].split("/")]


def _index(items: list[Any], step: str, *, end: bool) -> int:
    if end and step == "-":
        return len(items)
    if not step.isdecimal() or (len(step) > 1 and step[0] == "0"):
        raise PatchError(f"{step!r} is not an index")
    index = int(step)
    if index >= len(items) + (1 if end else 0):
        raise PatchError(f"index {index} is out of range")
    return index


def _get(document: Any, path: list[str]) -> Any:
    for step in path:
        if isinstance(document, dict):
            if step not in document:
                raise PatchError(f"{step!r} does not exist")
            document = document[step]
        elif isinstance(document, list):
            document = document[_index(document, step, end=False)]
        else:
            raise PatchError(f"{step!r} does not exist: its parent is not a map or list")
    return document


def _add(document: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    parent = _get(document, path[:-1])
    if isinstance(parent, dict):
        parent[path[-1]] = value
    elif isinstance(parent, list):
        parent.insert(_index(parent, path[-1], end=True), value)
    else:
        raise PatchError("the parent is not a map or list")
    return document


def _replace(document: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    parent = _get(document, path[:-1])
    if isinstance(parent, dict):
        parent[path[-1]] = value
    else:
        parent[_index(parent, path[-1], end=False)] = value
    return document


def _remove(document: Any, path: list[str]) -> tuple[Any, Any]:
    taken = _get(document, path)
    if not path:
        raise PatchError("the whole document cannot be removed")
    parent = _get(document, path[:-1])
    if isinstance(parent, dict):
        del parent[path[-1]]
    else:
        del parent[_index(parent, path[-1], end=False)]
    return document, taken


def _same(left: Any, right: Any) -> bool:
    """Equality as JSON has it: true is not 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[k], right[k]) for k in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same, left, right))
    return bool(left == right)
