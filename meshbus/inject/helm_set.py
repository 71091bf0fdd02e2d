"""Values in the syntax of Helm's `--set`: `a.b=1,c={x,y},d[0].e=text`.

Source: https://helm.sh/docs/intro/using_helm/#the-format-and-limitations-of---set
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

MOST_ITEMS = 65536
"""Highest index of a list, as Helm's."""
_DEEPEST = 30


class SetError(ValueError):
    """An argument of `--set` that cannot be read; the message names the key."""


def set_values(values: dict[str, Any], text: str, *, strings: bool = False) -> None:
    """Write what `text` says into `values`. A value of null removes the key.

    Args:
        strings: Every value is text, as with `--set-string`.

    Raises:
        SetError: The text is not of the syntax, or a list is used as a map.
    """
    assignments: list[str] = []
    for part in _split(text, ","):
        if not _cut(part)[1] and assignments:
            # Helm refuses it; Istio's own command takes it for more of the value, as is meant.
            assignments[-1] += f"\\,{part}"
        else:
            assignments.append(part)
    for assignment in assignments:
        key, equals, value = _cut(assignment)
        path = _path(key)
        if not equals:
            raise SetError(f"--set {key!r}: has no value (KEY=VALUE)")
        _put(values, path, _value(value, strings), key)


def put_value(values: dict[str, Any], key: str, value: Any) -> None:
    """Write one value of any form, as `--set-json` and `--set-file` do."""
    _put(values, _path(key), value, key)


def merge_values(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Values with others over them: maps are merged, the rest replaced, null removes."""
    merged = dict(base)
    for key, value in over.items():
        held = merged.get(key)
        if value is None:
            merged.pop(key, None)
        elif isinstance(held, Mapping) and isinstance(value, Mapping):
            merged[key] = merge_values(held, value)
        else:
            merged[key] = merge_values({}, value) if isinstance(value, Mapping) else value
    return merged


def _split(text: str, separator: str) -> list[str]:
    """Parts between separators that no backslash or brace protects; escapes stay."""
    parts, current, depth, position = [], "", 0, 0
    while position < len(text):
        char = text[position]
        if char == "\\" and position + 1 < len(text):
            current += text[position : position + 2]
            position += 2
            continue
        depth += (char == "{") - (char == "}" and depth > 0)
        if char == separator and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += char
        position += 1
    parts.append(current)
    return [part for part in parts if part]


def _cut(text: str) -> tuple[str, str, str]:
    position = 0
    while position < len(text):
        if text[position] == "\\":
            position += 2
            continue
        if text[position] == "=":
            return text[:position], "=", text[position + 1 :]
        position += 1
    return text, "", ""


def _plain(text: str) -> str:
    """Text without its backslashes."""
    out, position = "", 0
    while position < len(text):
        if text[position] == "\\" and position + 1 < len(text):
            position += 1
        out += text[position]
        position += 1
    return out


def _value(text: str, strings: bool) -> Any:
    if text.startswith("{") and text.endswith("}"):
        return [_scalar(part, strings) for part in _split(text[1:-1], ",")]
    return _scalar(text, strings)


def _scalar(text: str, strings: bool) -> Any:
    value = _plain(text)
    if strings:
        return value
    lower = value.lower()
    if lower in ("true", "false"):
        return lower == "true"
    if lower == "null":
        return None
    digits = value.removeprefix("-").removeprefix("+")
    if value == "0" or (digits.isascii() and digits.isdigit() and not value.startswith("0")):
        number = int(value)
        return number if -(2**63) <= number < 2**63 else value
    return value


def _path(key: str) -> list[str | int]:
    path: list[str | int] = []
    for part in _split(key, "."):
        name, bracket, rest = _cut_index(part)
        if name:
            path.append(_plain(name))
        while bracket:
            index, closing, rest = rest.partition("]")
            if not closing or not (index.isascii() and index.isdigit()):
                raise SetError(f"--set {key!r}: [{index}] is not an index")
            if int(index) > MOST_ITEMS:
                raise SetError(f"--set {key!r}: [{index}] is above {MOST_ITEMS}")
            path.append(int(index))
            if rest and not rest.startswith("["):
                raise SetError(f"--set {key!r}: {rest!r} after an index")
            bracket, rest = rest[:1], rest[1:]
    if not path or isinstance(path[0], int):
        raise SetError(f"--set {key!r}: needs a key")
    if len(path) > _DEEPEST:
        raise SetError(f"--set {key!r}: nested deeper than {_DEEPEST}")
    return path


def _cut_index(part: str) -> tuple[str, str, str]:
    position = 0
    while position < len(part):
        if part[position] == "\\":
            position += 2
            continue
        if part[position] == "[":
            return part[:position], "[", part[position + 1 :]
        position += 1
    return part, "", ""


def _put(values: dict[str, Any], path: list[str | int], value: Any, key: str) -> None:
    place: Any = values
    for step, following in pairwise(path):
        fresh: Any = [] if isinstance(following, int) else {}
        held = _held(place, step, key)
        if not isinstance(held, type(fresh)):
            held = fresh
            _set(place, step, held)
        place = held
    last = path[-1]
    if value is None and isinstance(last, str):
        # Kept as null: it removes a default when the values are merged over the defaults.
        place[last] = None
        return
    _held(place, last, key)
    _set(place, last, value)


def _held(place: Any, step: str | int, key: str) -> Any:
    if isinstance(step, int):
        if not isinstance(place, list):
            raise SetError(f"--set {key!r}: not a list")
        while len(place) <= step:
            place.append(None)
        return place[step]
    if not isinstance(place, dict):
        raise SetError(f"--set {key!r}: {step!r} is not in a map")
    return place.get(step)


def _set(place: Any, step: str | int, value: Any) -> None:
    place[step] = value
