"""Messages of patches: made from JSON, and merged into others."""

from collections.abc import Mapping
from typing import Any

from google.protobuf import any_pb2, json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from udpa.type.v1 import typed_struct_pb2 as udpa_struct_pb2
from xds.type.v3 import typed_struct_pb2 as xds_struct_pb2

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
    kind = type_of_url(target.type_url)
    if kind is None or url_within(patch) != target.type_url:
        target.CopyFrom(patch)
        return
    whole, part = kind.FromString(target.value), kind()
    inner = _struct_of(patch)
    if inner is None:
        part.MergeFromString(patch.value)
    else:
        json = with_protobuf_durations(json_format.MessageToDict(inner.value), part.DESCRIPTOR)
        json_format.ParseDict(dict(json), part, max_recursion_depth=_DEPTH)
    merge(whole, part)
    target.CopyFrom(any_of(whole))


def _struct_of(message: any_pb2.Any) -> Any:
    """The `TypedStruct` that a message is; None: it is of another type."""
    for kind in (udpa_struct_pb2.TypedStruct, xds_struct_pb2.TypedStruct):
        if message.Is(kind.DESCRIPTOR):
            return kind.FromString(message.value)
    return None


def url_within(message: any_pb2.Any) -> str:
    """The type of a message, that of its content where it is a `TypedStruct`."""
    inner = _struct_of(message)
    return message.type_url if inner is None else str(inner.type_url)


def merge_filter(target: Any, patch: Any, path: str, *, replace_lists: bool = False) -> None:
    """Fields of a filter over those of one that is there, which stays of its type.

    Raises:
        NotCompiledError: The patch has a configuration, and that of the filter is of another type,
            or comes apart from the listener.
    Source: Istio, mergeHTTPFilter and patchNetworkFilter: what they leave as it is is told here.
    """
    if patch.HasField("typed_config"):
        if not target.HasField("typed_config"):
            if target.HasField("config_discovery"):
                raise NotCompiledError(
                    path, f"what configures {target.name} comes by ECDS: nothing merges into it"
                )
        elif url_within(patch.typed_config) != url_within(target.typed_config):
            held, wanted = _short(target.typed_config), _short(patch.typed_config)
            raise NotCompiledError(
                path, f"{target.name} is configured by {held}, not by {wanted}: REPLACE it"
            )
    merge(target, patch, replace_lists=replace_lists)


def _short(message: any_pb2.Any) -> str:
    return url_within(message).rpartition("/")[2]
