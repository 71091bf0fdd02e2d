"""Protobuf JSON, in which the mesh config and the kinds of Istio 1.4 are written, as JSON alone.

A field may have its snake_case name, a number may be a string, and a value of an enumeration may
be its number. What means nothing here stays as it is written, for validation to refuse.
Source: https://protobuf.dev/programming-guides/json/
"""

import math
import re
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import msgspec
from msgspec import Meta, UnsetType

from meshbus.api.kinds import kind_of

_BLANK = "[ \t\r\n]*"
_INTEGER = re.compile(rf"{_BLANK}-?(?:0|[1-9]\d{{0,19}}){_BLANK}", re.ASCII)
_NUMBER = re.compile(rf"{_BLANK}-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?{_BLANK}", re.ASCII)


class _Field(NamedTuple):
    name: str
    """In JSON."""
    kind: Any


def document_as_json(document: dict[str, Any]) -> dict[str, Any]:
    """The object with its spec as JSON alone; the same one if its kind is not protobuf JSON."""
    info = kind_of(str(document.get("apiVersion")), str(document.get("kind")))
    shape = info.shape() if info and info.proto_json else None
    if shape is None or not isinstance(document.get("spec"), dict):
        return document
    return document | {"spec": as_json(document["spec"], shape)}


def as_json(value: Any, shape: type[msgspec.Struct]) -> Any:
    """A value of this shape with JSON's names and values."""
    return _read(value, shape, renames=True)


def values_as_json(value: Any, shape: type[msgspec.Struct]) -> Any:
    """A value of this shape with JSON's values, and the names that are written."""
    return _read(value, shape, renames=False)


def _read(value: Any, kind: Any, *, renames: bool, numbers: dict[int, str] | None = None) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        metas = [meta.extra for meta in args[1:] if isinstance(meta, Meta) and meta.extra]
        numbers = next((extra["numbers"] for extra in metas if "numbers" in extra), None)
        return _read(value, args[0], renames=renames, numbers=numbers)
    if origin in (Union, UnionType):
        held = [one for one in args if one not in (UnsetType, type(None))]
        return _read(value, held[0], renames=renames) if len(held) == 1 else value
    if origin is list and isinstance(value, list):
        return [_read(item, args[0], renames=renames) for item in value]
    if origin is dict and isinstance(value, dict):
        return {key: _read(item, args[1], renames=renames) for key, item in value.items()}
    if origin is Literal and type(value) is int:
        return (numbers or dict(enumerate(args))).get(value, value)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and isinstance(value, dict):
        return _read_fields(value, kind, renames)
    return _number(value, kind) if isinstance(value, str) else value


def _read_fields(value: dict[Any, Any], shape: type[msgspec.Struct], renames: bool) -> Any:
    known, out = _fields(shape), {}
    for written, held in value.items():
        field = known.get(str(written))
        name = field.name if field and renames else str(written)
        out[name] = _read(held, field.kind, renames=renames) if field else held
    return out


def _number(text: str, kind: Any) -> Any:
    if kind is int and _INTEGER.fullmatch(text):
        return int(text)
    if kind is float and _NUMBER.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return text


@cache
def _fields(shape: type[msgspec.Struct]) -> dict[str, _Field]:
    """The fields of a message, by both of their names."""
    found = {}
    for field in msgspec.structs.fields(shape):
        found[field.name] = found[field.encode_name] = _Field(field.encode_name, field.type)
    return found
