"""Which line of its text each field of a document stands on: YAML and JSON. Pure.

A path is what messages have: `spec.http[0].route[1].weight`, `metadata.labels[app]`, or empty for
the document as a whole.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MERGE = "<<"
_TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^\s{}\[\]:,"]+)')
_INDEX = re.compile(r"\[(\d+)\]")
_END = frozenset(".[")


class Place:
    """A value of a document: the line it begins on, and where what it holds stands.

    Attributes:
        line: Of the text, from 1.
        fields: Of an object: (line of the key, value) by key.
        items: Of a list.
    """

    __slots__ = ("fields", "items", "line")

    def __init__(self, line: int) -> None:
        self.line = line
        self.fields: dict[str, tuple[int, Place]] = {}
        self.items: list[Place] = []


def places(text: str, line: int = 1) -> Place:
    """Where the values of a document stand.

    Args:
        text: One document that can be read (`meshbus.api.yaml_text`).
        line: Line of its file that the text begins at.
    """
    if text.lstrip()[:1] == "{":
        try:
            return _of_json(_tokens(text, line))
        except (StopIteration, ValueError):
            pass  # YAML after all: `{a: b}`
    return _Events(text, line).document()


def line_of(root: Place, path: str) -> int:
    """The line of a field; where it is missing, of the nearest that holds it."""
    at, line = root, root.line
    while path:
        step = _step(at, path)
        if step is None:
            break
        line, at, path = step
    return line


def at_path(root: Place, path: str) -> Place:
    """The value of a field; where it is missing, the nearest that would hold it."""
    at = root
    while path and (step := _step(at, path)) is not None:
        _, at, path = step
    return at


def _step(at: Place, path: str) -> tuple[int, Place, str] | None:
    """(line, value, what is left of the path) of the first field of a path; None: not there.

    Keys may have dots and brackets in them, so the longest one that fits is meant.
    """
    if at.items:
        found = _INDEX.match(path)
        if found is None or int(found[1]) >= len(at.items):
            return None
        item = at.items[int(found[1])]
        return item.line, item, path[found.end() :]
    plain = path.removeprefix(".")
    best: tuple[str, str] | None = None
    for key in at.fields:
        for written in (f"[{key}]", f"['{key}']", f'["{key}"]', key, _camel(key)):
            rest = path if written.startswith("[") else plain
            ends = rest.startswith(written) and rest[len(written) :][:1] in ("", *_END)
            if ends and (best is None or len(key) > len(best[0])):
                best = key, rest[len(written) :]
    if best is None:
        return None
    line, value = at.fields[best[0]]
    return line, value, best[1]


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in rest)


class _Events:
    """Builds places from the events of the YAML parser: an alias stands where its anchor does."""

    def __init__(self, text: str, line: int) -> None:
        self._events: Iterator[Any] = iter(yaml.parse(text, Loader=_Loader))
        self._line = line
        self._anchors: dict[str | None, Place] = {}

    def document(self) -> Place:
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                return self._value(next(self._events))[1]
        return Place(self._line)

    def _value(self, event: Any) -> tuple[str, Place]:
        """(text of a scalar, place) of the value that an event begins."""
        if isinstance(event, yaml.AliasEvent):
            return "", self._anchors.get(event.anchor) or Place(self._at(event))
        place = Place(self._at(event))
        if event.anchor is not None:
            self._anchors[event.anchor] = place
        if isinstance(event, yaml.SequenceStartEvent):
            self._list(place)
        elif isinstance(event, yaml.MappingStartEvent):
            self._object(place)
        return getattr(event, "value", ""), place

    def _at(self, event: Any) -> int:
        return self._line + int(event.start_mark.line)

    def _list(self, place: Place) -> None:
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            _, item = self._value(event)
            if isinstance(event, yaml.AliasEvent):
                # The item is written here, what is in it elsewhere.
                item, held = Place(self._at(event)), item
                item.fields, item.items = held.fields, held.items
            place.items.append(item)

    def _object(self, place: Place) -> None:
        merged: list[Place] = []
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            line = self._at(event)
            key, _ = self._value(event)
            _, value = self._value(next(self._events))
            if key == _MERGE and not event.style:
                merged += value.items or [value]
            else:
                place.fields[key] = line, value
        for other in merged:
            for key, field in other.fields.items():
                place.fields.setdefault(key, field)


def _tokens(text: str, line: int) -> Iterator[tuple[str, int]]:
    """(token, its line) of a JSON text."""
    end = 0
    while (found := _TOKEN.match(text, end)) is not None:
        line += text.count("\n", end, found.start(1))
        yield found[1], line
        end = found.end()


def _of_json(tokens: Iterator[tuple[str, int]]) -> Place:
    def value(first: str, line: int) -> Place:
        place = Place(line)
        if first == "{":
            for key, at in tokens:
                if key == "}":
                    break
                if key == ",":
                    continue
                if next(tokens)[0] != ":":
                    raise ValueError(key)
                place.fields[json.loads(key)] = at, value(*next(tokens))
        elif first == "[":
            for item, at in tokens:
                if item == "]":
                    break
                if item != ",":
                    place.items.append(value(item, at))
        return place

    return value(*next(tokens))
