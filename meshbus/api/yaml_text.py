"""YAML and JSON as kubectl reads them: YAML becomes what JSON can hold. Keys are strings, dates
stay text, no key stands twice, and aliases cannot make a small text stand for a large value. Pure.
"""

import json
import math
import re
from typing import Any

import yaml

LARGEST_DOCUMENT_BYTES = 10 * 1024 * 1024
_MOST_VALUES = 1_000_000
"""Aliases can make a small text stand for more values than there is memory for."""
_DEEPEST = 100


class NotReadableError(ValueError):
    """A text that is not YAML.

    Attributes:
        line: Line of the file where it is wrong.
    """

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


def read_yaml(part: str, line: int = 1) -> Any:
    """The one document of a text.

    Args:
        line: Line of its file that the text begins at.

    Raises:
        NotReadableError: It is not one.
    """
    if len(part) > LARGEST_DOCUMENT_BYTES or len(part.encode()) > LARGEST_DOCUMENT_BYTES:
        size = LARGEST_DOCUMENT_BYTES // 2**20
        raise NotReadableError(line, f"is larger than {size} MiB")
    if part.lstrip()[:1] == "{" and (parsed := _json(part)) is not None:
        return parsed
    try:
        loader = _Loader(part)
        try:
            content = loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = line + (mark.line if mark else 0)
        raise NotReadableError(at, f"not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise NotReadableError(line, f"not YAML: {error}") from error
    except (RecursionError, ValueError) as error:
        raise NotReadableError(line, f"not YAML: {error}") from error
    return _Plain(line).copy(content, 0)


def _json(part: str) -> Any:
    """A JSON document; None if it is YAML after all. YAML's own reader refuses tabs."""
    try:
        return json.loads(part, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("duplicate key")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(name)


_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


_NOT_RESOLVED = (":timestamp", ":value")


class _Loader(_Safe):  # type: ignore[misc]
    """YAML as kubectl reads it: no dates, no numbers of base 60, no key twice; `=` is text, and
    `y` and `n` are true and false."""

    bool_values = _Safe.bool_values | {"y": True, "n": False}
    yaml_implicit_resolvers = {
        first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith(_NOT_RESOLVED)]
        for first, resolvers in _Safe.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"duplicate key {key.value!r}", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def construct_number(self, node: Any) -> Any:
        """A number, or text where base 60 is meant by YAML 1.1 alone (`12:30`)."""
        if ":" in node.value:
            return node.value
        if node.tag == "tag:yaml.org,2002:int":
            return self.construct_yaml_int(node)
        return self.construct_yaml_float(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)
# What Go's reader takes for a number or a truth, and PyYAML's does not: exponents without a dot or
# a sign, a sign before a dot, octal digits after 0o, and decimal ones after 0.
for _tag, _pattern, _first in (
    ("float", r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$", "-+.0123456789"),
    ("float", r"[-+]\.\d+$", "-+"),
    ("float", r"[-+]?0\d*[89]\d*$", "-+0"),
    ("int", r"[-+]?0[oO][0-7]+$", "-+0"),
    ("bool", r"[yYnN]$", "yYnN"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(_pattern, re.ASCII), list(_first)
    )


class _Plain:
    """Copies what YAML holds into what JSON can hold."""

    def __init__(self, line: int) -> None:
        self._line = line
        self._left = _MOST_VALUES

    def copy(self, value: Any, depth: int) -> Any:
        self._left -= 1
        if self._left < 0 or depth > _DEEPEST:
            reason = "nested too deeply" if depth > _DEEPEST else "too many values (aliases?)"
            raise NotReadableError(self._line, reason)
        if isinstance(value, dict):
            return {self._key(k): self.copy(v, depth + 1) for k, v in value.items()}
        if isinstance(value, list):
            return [self.copy(item, depth + 1) for item in value]
        if value is None or isinstance(value, str | bool | int):
            return value
        if isinstance(value, float) and math.isfinite(value):
            return int(value) if value.is_integer() and abs(value) < 2**53 else value
        raise NotReadableError(self._line, f"{value!r} cannot be written as JSON")

    def _key(self, key: Any) -> str:
        if isinstance(key, str):
            return key
        if isinstance(key, float) and key.is_integer():
            key = int(key)
        if isinstance(key, bool | int | float):
            return json.dumps(key)
        raise NotReadableError(self._line, f"{key!r} cannot be a key")
