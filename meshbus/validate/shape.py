"""Whether a document has the shape of its struct: every violation, with its path.

msgspec's own conversion stops at the first; people want them all. Rules work on typed structs; a
value of the wrong shape is one that they cannot read (`meshbus.validate.malformed`).
"""

import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from meshbus.api.proto_json import values_as_json
from meshbus.api.shape import Shape
from meshbus.validate.formats import FORMATS
from meshbus.validate.malformed import Malformed
from meshbus.validate.report import Findings

S = TypeVar("S", bound=msgspec.Struct)
_LONGEST_SHOWN = 60
_DEEPEST = 64


class _Reader:
    """Walks one document; collects findings and a copy that converts to the struct."""

    def __init__(self, out: Findings, *, proto_json: bool, secret: bool) -> None:
        self.out = out
        self.secret = secret
        self.proto_json = proto_json

    def read(self, kind: inspect.Type, value: Any, path: str, depth: int = 0) -> Any:
        if depth > _DEEPEST:
            self.out.error(path, "is nested too deeply", "TooLong")
            return Malformed()
        if isinstance(kind, inspect.Metadata):
            before = len(self.out.errors)
            result = self.read(kind.type, value, path, depth)
            name = (kind.extra or {}).get("format")
            if name and len(self.out.errors) == before and (problem := FORMATS[name](result)):
                self.out.error(path, problem)
                return Malformed()
            return result
        reader = _READERS.get(type(kind))
        if reader is None:
            return value
        before = len(self.out.errors)
        result = reader(self, kind, value, path, depth)
        scalar = not isinstance(kind, inspect.UnionType | _HOLDERS)
        return Malformed() if scalar and len(self.out.errors) > before else result

    def union(self, kind: inspect.UnionType, value: Any, path: str, depth: int) -> Any:
        meant = _meant(kind, value)
        return None if meant is None else self.read(meant, value, path, depth)

    def struct(self, kind: inspect.StructType, value: Any, path: str, depth: int) -> Any:
        if not isinstance(value, Mapping):
            return self._wrong(path, "an object", value)
        known, cls = _fields_of(kind.cls), kind.cls
        found: dict[str, Any] = {}
        meant: list[str] = []
        for name, item in value.items():
            field = known.get(str(name))
            if field is None and self.proto_json:
                field = known.get(_camel(str(name)))
            at = f"{path}.{name}" if path else str(name)
            if field is None:
                meant.append(self._unknown(at, str(name), known))
                continue
            if item is None and not isinstance(field.type, inspect.AnyType):
                continue
            found[field.encode_name] = self.read(field.type, item, at, depth + 1)
        # Who misspells a field has set it.
        found |= {name: Malformed() for name in meant if name and name not in found}
        for name, field in known.items():
            if field.required and name not in found:
                self.out.required(f"{path}.{name}" if path else name)
                found[name] = Malformed()
        if issubclass(cls, Shape):
            self._groups(cls, found, path)
        return found

    def _groups(self, cls: type[Shape], found: dict[str, Any], path: str) -> None:
        for group in cls.one_of:
            set_ = [name for name in group if name in found]
            if len(set_) > 1:
                self.out.error(path, f"only one of {', '.join(set_)} can be set", "Conflict")
                found |= {name: Malformed() for name in set_}
        for group in cls.required_together:
            set_ = [name for name in group if name in found]
            if len(set_) != 1:
                self.out.error(path, f"exactly one of {', '.join(group)} must be set", "Conflict")
                found |= {name: Malformed() for name in set_ or group}

    def list(self, kind: inspect.ListType, value: Any, path: str, depth: int) -> Any:
        if not isinstance(value, list | tuple):
            return self._wrong(path, "a list", value)
        right = self._size(kind, len(value), path, "entries")
        found = [
            self.read(kind.item_type, item, f"{path}[{index}]", depth + 1)
            for index, item in enumerate(value)
        ]
        return found if right else Malformed()

    def map(self, kind: inspect.DictType, value: Any, path: str, depth: int) -> Any:
        if not isinstance(value, Mapping):
            return self._wrong(path, "an object", value)
        right = self._size(kind, len(value), path, "entries")
        found = {
            str(key): self.read(kind.value_type, item, f"{path}[{key}]", depth + 1)
            for key, item in value.items()
        }
        return found if right else Malformed()

    def text(self, kind: inspect.StrType, value: Any, path: str, depth: int) -> Any:
        if not isinstance(value, str):
            return self._wrong(path, "a string", value)
        self._size(kind, len(value), path, "characters")
        if kind.pattern and not re.search(kind.pattern, value):
            self.out.error(path, f"{_shown(value)} does not match {kind.pattern}")
        return value

    def integer(self, kind: inspect.IntType, value: Any, path: str, depth: int) -> Any:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            return self._wrong(path, "an integer", value)
        self._range(kind, value, path)
        return value

    def number(self, kind: inspect.FloatType, value: Any, path: str, depth: int) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return self._wrong(path, "a number", value)
        self._range(kind, value, path)
        return value

    def truth(self, kind: inspect.BoolType, value: Any, path: str, depth: int) -> Any:
        if not isinstance(value, bool):
            self._wrong(path, "true or false", value)
        return value

    def literal(self, kind: inspect.LiteralType, value: Any, path: str, depth: int) -> Any:
        if value not in kind.values or isinstance(value, bool):
            names = [str(v) for v in kind.values]
            hint = _did_you_mean(_nearest(str(value), names))
            self.out.error(
                path,
                f"Unsupported value: {_shown(value)}{hint}; supported: {', '.join(names)}",
                "Enum",
            )
        return value

    def _range(self, kind: inspect.IntType | inspect.FloatType, value: float, path: str) -> None:
        low, high = kind.ge, kind.le
        if (low is not None and value < low) or (high is not None and value > high):
            if (low, high) == (1, 65535):
                self.out.error(path, f"{value}: port must be between 1-65535")
            elif high is None:
                self.out.error(path, f"{value} must be at least {low}")
            else:
                self.out.error(path, f"{value} must be between {low} and {high}")

    def _size(
        self,
        kind: inspect.StrType | inspect.ListType | inspect.DictType,
        size: int,
        path: str,
        unit: str,
    ) -> bool:
        before = len(self.out.errors)
        if kind.min_length is not None and size < kind.min_length:
            if kind.min_length == 1:
                self.out.error(path, "must not be empty", "Required")
            else:
                self.out.error(path, f"must have at least {kind.min_length} {unit}")
        if kind.max_length is not None and size > kind.max_length:
            self.out.error(path, f"must have at most {kind.max_length} {unit}", "TooLong")
        return len(self.out.errors) == before

    def _wrong(self, path: str, wanted: str, value: Any) -> Malformed:
        shown = type(value).__name__ if self.secret else _shown(value)
        self.out.error(path, f"must be {wanted}, is {shown}", "Type")
        return Malformed()

    def _unknown(self, path: str, name: str, known: Mapping[str, inspect.Field]) -> str:
        """The field that may have been meant; empty: nobody knows."""
        meant = _nearest(name, list(known))
        self.out.error(path, f"unknown field {name!r}{_did_you_mean(meant)}", "Unknown")
        return meant


_READERS: dict[type, Callable[[_Reader, Any, Any, str, int], Any]] = {
    inspect.UnionType: _Reader.union,
    inspect.StructType: _Reader.struct,
    inspect.ListType: _Reader.list,
    inspect.DictType: _Reader.map,
    inspect.StrType: _Reader.text,
    inspect.IntType: _Reader.integer,
    inspect.FloatType: _Reader.number,
    inspect.BoolType: _Reader.truth,
    inspect.LiteralType: _Reader.literal,
}

_PLAIN: dict[type, tuple[type, ...]] = {
    inspect.StrType: (str,),
    inspect.IntType: (int,),
    inspect.FloatType: (int, float),
    inspect.BoolType: (bool,),
    inspect.ListType: (list,),
    inspect.DictType: (dict,),
    inspect.StructType: (dict,),
}


_HOLDERS = inspect.StructType | inspect.ListType | inspect.DictType


def _meant(kind: inspect.UnionType, value: Any) -> inspect.Type | None:
    """Which of several types a value is of; None: it is null, and may be."""
    others = [t for t in kind.types if not isinstance(t, inspect.NoneType)]
    if value is None and len(others) < len(kind.types):
        return None
    fitting = [t for t in others if _fits(t, value)] if len(others) > 1 else []
    return (fitting or others)[0]


def _built(kind: inspect.Type, value: Any) -> Any:
    """What a copy is as structs; msgspec's own conversion takes nothing that is malformed."""
    if type(value) is Malformed:
        return value
    if isinstance(kind, inspect.Metadata):
        return _built(kind.type, value)
    if isinstance(kind, inspect.UnionType):
        meant = _meant(kind, value)
        return None if meant is None else _built(meant, value)
    if isinstance(kind, inspect.StructType):
        fields = _fields_of(kind.cls)
        given = {fields[k].name: _built(fields[k].type, item) for k, item in value.items()}
        return kind.cls(**given)
    if isinstance(kind, inspect.ListType):
        return [_built(kind.item_type, item) for item in value]
    if isinstance(kind, inspect.DictType):
        return {key: _built(kind.value_type, item) for key, item in value.items()}
    return float(value) if isinstance(kind, inspect.FloatType) else value


def _fits(kind: inspect.Type, value: Any) -> bool:
    plain = kind.type if isinstance(kind, inspect.Metadata) else kind
    return isinstance(value, _PLAIN.get(type(plain), (object,)))


@cache
def _fields_of(cls: type) -> dict[str, inspect.Field]:
    info = inspect.type_info(cls)
    assert isinstance(info, inspect.StructType)
    return {field.encode_name: field for field in info.fields}


@cache
def has_required_fields(cls: type[msgspec.Struct]) -> bool:
    """Whether an empty document would not have the shape of the struct."""
    return any(field.required for field in _fields_of(cls).values())


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in rest)


def _nearest(name: str, known: list[str]) -> str:
    lower = {k.lower(): k for k in known}
    if name.lower() in lower:
        return lower[name.lower()]
    close = get_close_matches(name, known, n=1, cutoff=0.7)
    return close[0] if close else ""


def _did_you_mean(name: str) -> str:
    return f" (did you mean {name!r}?)" if name else ""


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    text = msgspec.json.encode(value, enc_hook=str).decode()
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


@cache
def _type_of(cls: type[msgspec.Struct]) -> inspect.Type:
    return inspect.type_info(cls)


def read_shape(
    cls: type[S],
    value: Any,
    path: str,
    out: Findings,
    *,
    proto_json: bool = False,
    secret: bool = False,
) -> S | None:
    """The document as its struct, with what is wrong with its shape in `out`, and malformed values
    in its place (`meshbus.validate.malformed`). None if nothing of it can be read. A field that is
    null is left out (`meshbus.api.nulls`).

    Args:
        proto_json: It is protobuf JSON (`meshbus.api.proto_json`).
        secret: Values are never repeated in messages.
    """
    before = len(out.errors)
    if proto_json:
        value = values_as_json(value, cls)
    reader = _Reader(out, proto_json=proto_json, secret=secret)
    copy = reader.read(_type_of(cls), value, path)
    if len(out.errors) > before:
        built = _built(_type_of(cls), copy)
        return None if type(built) is Malformed else built
    try:
        return msgspec.convert(copy, cls)
    except msgspec.ValidationError as error:
        out.error(path, str(error), "Type")
        return None
