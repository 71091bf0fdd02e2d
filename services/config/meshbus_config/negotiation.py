"""Media types: what a client accepts, what it sends. Pure."""

import json
from typing import Any, NamedTuple

import msgspec
import yaml

from meshbus_config.errors import bad_request, not_acceptable, too_large, unsupported_media_type
from meshbus_config.protobuf_bodies import PROTOBUF, decode_object

JSON, YAML = "application/json", "application/yaml"
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
PATCH_TYPES = (JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, APPLY_PATCH)

MAX_BODY_BYTES = 10 * 1024 * 1024
MAX_YAML_BYTES = 2 * 1024 * 1024
"""YAML takes a hundred times longer to read than JSON; no single object is larger."""

_META = "meta.k8s.io"
_FORMS = ("Table", "PartialObjectMetadata", "PartialObjectMetadataList")


class Form(NamedTuple):
    """How an answer is written."""

    media_type: str = JSON
    kind: str = ""
    """`Table`, `PartialObjectMetadata(List)`, an aggregated discovery kind, or empty: as it is."""
    version: str = ""
    """Of `kind`."""


def choose_form(accept: str, *, kinds: tuple[str, ...] = _FORMS, group: str = _META) -> Form:
    """The first of the accepted media types that can be given.

    Args:
        accept: The `Accept` header; empty: anything.
        kinds: Forms (`as=`) of `group` (`g=`) that the path can give.
    Raises:
        ApiError: 406, none of them.
    """
    for part in (accept or "*/*").split(","):
        media_type, *parameters = (item.strip() for item in part.split(";"))
        values = dict(item.split("=", 1) for item in parameters if "=" in item)
        if media_type in ("*/*", "application/*"):
            media_type = JSON
        if media_type not in (JSON, YAML):
            continue
        kind = values.get("as", "")
        if kind == "":
            return Form(media_type)
        if kind in kinds and values.get("g") == group and values.get("v"):
            return Form(media_type, kind, values["v"])
    raise not_acceptable(accept)


def encode(document: Any, media_type: str = JSON, *, pretty: bool = False) -> bytes:
    """A document as the body of an answer."""
    if media_type == YAML:
        text: str = yaml.dump(document, Dumper=yaml.CSafeDumper, sort_keys=False)
        return text.encode()
    body = msgspec.json.encode(document)
    return msgspec.json.format(body, indent=2) + b"\n" if pretty else body + b"\n"


def decode(body: bytes, media_type: str) -> Any:
    """The value of a body: JSON, YAML, or Kubernetes' protobuf.

    Raises:
        ApiError: 400, it is malformed, names a field twice, or nests too deep; 415, in another
            format.
    """
    if media_type in (JSON, "", JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH):
        return _decode_json(body)
    if media_type == APPLY_PATCH and body.lstrip()[:1] == b"{":
        return _decode_json(body)
    if media_type in (YAML, "application/x-yaml", "text/yaml", APPLY_PATCH):
        return _decode_yaml(body)
    if media_type == PROTOBUF:
        return decode_object(body)
    raise unsupported_media_type(media_type, [JSON, YAML, *PATCH_TYPES])


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise bad_request(f'duplicate field "{name}"')
            seen.add(name)
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _decode_json(body: bytes) -> Any:
    try:
        value = json.loads(body, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        msgspec.msgpack.encode(value)  # integers of more than 64 bits cannot be kept
    except (ValueError, OverflowError) as error:
        raise bad_request(f"the body is not JSON: {error}") from error
    except RecursionError:
        raise bad_request("the body nests too deep") from None
    return value


class _Loader(yaml.CSafeLoader):
    """YAML as Kubernetes reads it: times stay text, a field named twice is an error."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag != "tag:yaml.org,2002:timestamp"]
    for first, rules in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for key in keys:
        if not isinstance(key, str):
            raise bad_request(f"the field name {key!r} is not text: put it in quotes")
        if keys.count(key) > 1:
            raise bad_request(f'duplicate field "{key}"')
    values = [loader.construct_object(value, deep=True) for _, value in node.value]
    return dict(zip(keys, values, strict=True))


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def _decode_yaml(body: bytes) -> Any:
    if len(body) > MAX_YAML_BYTES:
        raise too_large(f"YAML of more than {MAX_YAML_BYTES} bytes is not read: send JSON")
    try:
        for event in yaml.parse(body, Loader=yaml.CSafeLoader):
            # A few aliases in aliases stand for gigabytes.
            if isinstance(event, yaml.AliasEvent):
                raise bad_request("YAML aliases are not taken: write the value out")
        value = yaml.load(body, Loader=_Loader)  # noqa: S506 - a safe loader
        msgspec.msgpack.encode(value)
    except (yaml.YAMLError, ValueError, OverflowError, TypeError) as error:
        raise bad_request(f"the body is not YAML: {error}") from error
    except RecursionError:
        raise bad_request("the body nests too deep") from None
    return value
