"""JSON Schemas of structs, nested ones in place, as Kubernetes' structural schemas have them."""

from typing import Any

import msgspec
from msgspec import inspect

from meshbus.api.shape import Shape
from meshbus.schema.describe import describe_class, describe_fields

_PRESERVE = "x-kubernetes-preserve-unknown-fields"
_FORMATS = {"date-time": "date-time", "byte": "byte"}
_UINT32, _INT32 = (0, 2**32 - 1), (-(2**31), 2**31 - 1)

_VALIDATIONS = "x-kubernetes-validations"
_DURATION = {
    "rule": "duration(self) >= duration('1ms')",
    "message": "must be a valid duration greater than 1ms",
}
"""In the words of Istio's definitions."""


def struct_schema(cls: type[msgspec.Struct], *, closed: bool = False) -> dict[str, Any]:
    """The schema of a struct.

    Args:
        closed: Say that unknown fields are refused (`additionalProperties`), which Kubernetes'
            schemas leave unsaid.
    """
    info = inspect.type_info(cls)
    assert isinstance(info, inspect.StructType)
    return _struct(info, closed)


def _struct(info: inspect.StructType, closed: bool) -> dict[str, Any]:
    described = describe_fields(info.cls)
    properties: dict[str, Any] = {}
    for field in info.fields:
        schema = _type(field.type, closed)
        if text := described.get(field.name):
            schema = {"description": text, **schema}
        properties[field.encode_name] = schema
    result: dict[str, Any] = {
        "type": "object",
        "description": describe_class(info.cls),
        "properties": dict(sorted(properties.items())),
    }
    required = sorted(field.encode_name for field in info.fields if field.required)
    if required:
        result["required"] = required
    if closed:
        result["additionalProperties"] = False
    if issubclass(info.cls, Shape) and (groups := _groups(info.cls)):
        result["allOf"] = groups
    return result


def _groups(cls: type[Shape]) -> list[dict[str, Any]]:
    """At most, or exactly, one of the fields: `oneOf` with or without a branch for none."""
    found: list[dict[str, Any]] = []
    for group in cls.one_of:
        each: list[dict[str, Any]] = [{"required": [name]} for name in group]
        found.append({"oneOf": [{"not": {"anyOf": list(each)}}, *each]})
    found.extend(
        {"oneOf": [{"required": [name]} for name in group]} for group in cls.required_together
    )
    return found


def _type(kind: inspect.Type, closed: bool) -> dict[str, Any]:
    if isinstance(kind, inspect.Metadata):
        schema = _type(kind.type, closed)
        name = (kind.extra or {}).get("format")
        if name in _FORMATS:
            schema["format"] = _FORMATS[name]
        if name == "duration":
            schema[_VALIDATIONS] = [dict(_DURATION)]
        return {**schema, **(kind.extra_json_schema or {})}
    if isinstance(kind, inspect.UnionType):
        return _union(kind, closed)
    if isinstance(kind, inspect.StructType):
        return _struct(kind, closed)
    if isinstance(kind, inspect.ListType):
        schema = {"type": "array", "items": _type(kind.item_type, closed)}
        return schema | _limits(kind.min_length, kind.max_length, "Items")
    if isinstance(kind, inspect.DictType):
        value = _type(kind.value_type, closed)
        schema = {"type": "object"}
        schema |= {"additionalProperties": value} if value else {_PRESERVE: True}
        return schema | _limits(kind.min_length, kind.max_length, "Properties")
    return _scalar(kind)


def _scalar(kind: inspect.Type) -> dict[str, Any]:
    if isinstance(kind, inspect.StrType):
        schema: dict[str, Any] = {"type": "string"}
        schema |= _limits(kind.min_length, kind.max_length, "Length")
        return schema | ({"pattern": kind.pattern} if kind.pattern else {})
    if isinstance(kind, inspect.IntType):
        schema = {"type": "integer"}
        if (kind.ge, kind.le) == _INT32:
            return schema | {"format": "int32"}
        if (kind.ge, kind.le) == _UINT32:
            return schema | {"minimum": 0, "maximum": _UINT32[1]}
        return schema | _range(kind.ge, kind.le)
    if isinstance(kind, inspect.FloatType):
        return {"type": "number", "format": "double"} | _range(kind.ge, kind.le)
    if isinstance(kind, inspect.BoolType):
        return {"type": "boolean"}
    if isinstance(kind, inspect.LiteralType):
        return {"type": "string", "enum": list(kind.values)}
    return {}


def _union(kind: inspect.UnionType, closed: bool) -> dict[str, Any]:
    others = [t for t in kind.types if not isinstance(t, inspect.NoneType)]
    nullable = len(others) < len(kind.types)
    if {type(t) for t in others} == {inspect.IntType, inspect.StrType}:
        schema: dict[str, Any] = {"x-kubernetes-int-or-string": True}
    else:
        assert len(others) == 1, kind
        schema = _type(others[0], closed)
    return schema | {"nullable": True} if nullable else schema


def _limits(least: int | None, most: int | None, what: str) -> dict[str, Any]:
    found = {f"min{what}": least, f"max{what}": most}
    return {name: value for name, value in found.items() if value is not None}


def _range(least: float | None, most: float | None) -> dict[str, Any]:
    found = {"minimum": least, "maximum": most}
    return {name: value for name, value in found.items() if value is not None}
