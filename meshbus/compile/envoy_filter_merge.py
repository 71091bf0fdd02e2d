"""Messages of patches: made from JSON, and merged into others."""

from collections.abc import Mapping
from typing import Any

from google.protobuf import any_pb2, json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from meshbus.api.envoy_types import (
    message_type,
    type_of_url,
    type_urls,
    with_protobuf_durations,
)
from meshbus.compile.findings import NotCompiledError
from meshbus.compile.values import any_of

_DEPTH = 64
_WHOLE = frozenset(
    f"google.protobuf.{name}"
    for name in (
        "Duration", "Timestamp", "BoolValue", "BytesValue", "DoubleValue", "FloatValue",
        "Int32Value", "Int64Value", "StringValue", "UInt32Value", "UInt64Value",
    )
)  # fmt: skip
"""Messages that are one value: a new one takes the place of the old one."""


def message_of_value(type_name: str, value: Mapping[str, Any], path: str) -> Any:
    """The message that a patch's value is.

    Raises:
        NotCompiledError: It is not one, or holds a type that is not known here.
    """
    for url in type_urls(value):
        if type_of_url(url) is None:
            raise NotCompiledError(path, f"unknown type {url}")
    found = message_type(type_name)
    assert found is not None, type_name
    message = found()
    try:
        json = with_protobuf_durations(value, message.DESCRIPTOR)
        json_format.ParseDict(dict(json), message, max_recursion_depth=_DEPTH)
    except (json_format.ParseError, RecursionError, TypeError, ValueError) as error:
        raise NotCompiledError(path, f"is not a {type_name}: {error}") from error
    return message


def merge(target: Message, patch: Message, *, replace_lists: bool = False) -> None:
    """Fields of `patch` over those of `target`: messages field by field, also inside an `Any` of
    the same type; lists are added to, or replaced, but for those in an `Any`.

    Source: Istio, EnvoyFilter reference, MERGE and MERGE_AND_REPLACE_LIST.
    """
    if isinstance(target, any_pb2.Any) and isinstance(patch, any_pb2.Any):
        _merge_any(target, patch)
        return
    for field, value in patch.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            _merge_map(getattr(target, field.name), field, value, replace_lists)
        elif field.is_repeated:
            held = getattr(target, field.name)
            if replace_lists:
                del held[:]
            held.extend(value)
        elif field.message_type is not None and field.message_type.full_name in _WHOLE:
            getattr(target, field.name).CopyFrom(value)
        elif field.message_type is not None:
            merge(getattr(target, field.name), value, replace_lists=replace_lists)
            getattr(target, field.name).SetInParent()
        else:
            setattr(target, field.name, value)


def _merge_map(held: Any, field: FieldDescriptor, value: Any, replace_lists: bool) -> None:
    entry = field.message_type
    assert entry is not None
    of_messages = entry.fields_by_name["value"].message_type is not None
    for name in value:
        if of_messages:
            merge(held[name], value[name], replace_lists=replace_lists)
        else:
            held[name] = value[name]


def _merge_any(target: any_pb2.Any, patch: any_pb2.Any) -> None:
    kind = type_of_url(patch.type_url) if patch.type_url == target.type_url else None
    if kind is None:
        target.CopyFrom(patch)
        return
    whole, part = kind.FromString(target.value), kind.FromString(patch.value)
    merge(whole, part)
    target.CopyFrom(any_of(whole))
