"""Whether JSON is an Envoy message: the values of EnvoyFilter patches.

Messages that a value names by type (`@type`) are loaded when they are met.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from meshbus.api.envoy_types import (
    PATCHED_TYPES,
    message_type,
    type_of_url,
    type_urls,
    with_protobuf_durations,
)

# json_format lets some faults of its input out as they come.
_FAULTS = (json_format.ParseError, RecursionError, AttributeError, TypeError, ValueError, KeyError)


def message_problems(apply_to: str, value: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """What is wrong with a value, and whether it refuses the patch: unknown fields do not, since
    an Envoy may be newer than the messages known here."""
    unknown = [url for url in type_urls(value) if type_of_url(url) is None]
    for url in unknown:
        hint = " (use the v3 API)" if ".v2" in url else ""
        yield f"referenced type unknown: {url}{hint}", True
    if unknown:
        return
    message = _new(PATCHED_TYPES[apply_to])
    misfit = next(_misfits(value, message.DESCRIPTOR, ""), None)
    if misfit:
        yield f"is not a {PATCHED_TYPES[apply_to]}: {misfit}", True
        return
    try:
        value = with_protobuf_durations(value, message.DESCRIPTOR)
        json_format.ParseDict(value, message, ignore_unknown_fields=True, max_recursion_depth=64)
    except _FAULTS as error:
        yield f"is not a {PATCHED_TYPES[apply_to]}: {error}", True
        return
    try:
        json_format.ParseDict(value, _new(PATCHED_TYPES[apply_to]), max_recursion_depth=64)
    except _FAULTS as error:
        yield f"holds what this release does not know: {error}", False


def _new(type_name: str) -> Message:
    found = message_type(type_name)
    assert found is not None, type_name
    return found()


def _misfits(value: Any, kind: Any, path: str) -> Iterator[str]:
    """What of JSON that `json_format` ignores along with unknown fields does not fit the message of
    this descriptor: objects, lists and names of enumerations."""
    if kind.full_name == "google.protobuf.Any" and isinstance(value, Mapping):
        held = type_of_url(str(value.get("@type")))
        if held is not None:
            yield from _misfits(value, held.DESCRIPTOR, path)
        return
    if kind.full_name.startswith("google.protobuf."):
        return
    if not isinstance(value, Mapping):
        yield f"{path or 'the value'} must be an object"
        return
    fields = {name: field for field in kind.fields for name in (field.name, field.json_name)}
    for name, item in value.items():
        if name in fields and item is not None:
            yield from _field_misfits(item, fields[name], f"{path}.{name}" if path else name)


def _field_misfits(value: Any, field: Any, path: str) -> Iterator[str]:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        if not isinstance(value, Mapping):
            yield f"{path} must be an object"
            return
        entry = kind.fields_by_name["value"]
        for key, item in value.items():
            yield from _entry_misfits(item, entry, f"{path}.{key}")
    elif field.is_repeated:
        if not isinstance(value, list):
            yield f"{path} must be a list"
            return
        for index, item in enumerate(value):
            yield from _entry_misfits(item, field, f"{path}[{index}]")
    else:
        yield from _entry_misfits(value, field, path)


def _entry_misfits(value: Any, field: Any, path: str) -> Iterator[str]:
    if field.message_type is not None:
        yield from _misfits(value, field.message_type, path)
    elif field.enum_type is not None and not _is_choice(value, field.enum_type):
        yield f"{path} cannot be {value!r}"


def _is_choice(value: Any, kind: Any) -> bool:
    """Whether it is the name of one of an enumeration, or a number that may be one."""
    if isinstance(value, str):
        return value in kind.values_by_name
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and -(2**31) <= value < 2**31 and value == int(value)
