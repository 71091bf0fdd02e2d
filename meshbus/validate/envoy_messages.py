"""Whether JSON is an Envoy message: the values of EnvoyFilter patches.

Messages that a value names by type (`@type`) are loaded when they are met.
"""

from collections.abc import Iterator
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
