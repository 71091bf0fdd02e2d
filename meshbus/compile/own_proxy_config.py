"""What a proxy says of itself: fields of ProxyConfig in its annotation `proxy.istio.io/config`.

Source: https://istio.io/latest/docs/reference/config/annotations/
"""

from functools import cache
from typing import Any, get_args, get_origin

import msgspec

from meshbus.api.mesh.proxy_config import MeshProxyConfig
from meshbus.api.yaml_text import NotReadableError, read_yaml


def own_fields(text: str) -> dict[str, Any]:
    """The fields that an annotation says. One that cannot be read is refused where it is written,
    and says nothing here."""
    try:
        held = read_yaml(text) if text else None
    except NotReadableError:
        return {}
    return json_names(held) if isinstance(held, dict) else {}


def json_names(written: dict[Any, Any]) -> dict[str, Any]:
    """Fields of ProxyConfig by their names in JSON: as proto JSON they may be in snake_case."""
    named: dict[str, Any] = _named(written, MeshProxyConfig)
    return named


def _named(value: Any, shape: type[msgspec.Struct]) -> Any:
    if isinstance(value, list):
        return [_named(item, shape) for item in value]
    if not isinstance(value, dict):
        return value
    out = {}
    for written, held in value.items():
        name, inner = _fields(shape).get(str(written), (str(written), None))
        out[name] = held if inner is None else _named(held, inner)
    return out


@cache
def _fields(shape: type[msgspec.Struct]) -> dict[str, tuple[str, type[msgspec.Struct] | None]]:
    """Name in JSON and message of each field, by both of its names."""
    found = {}
    for field in msgspec.structs.fields(shape):
        found[field.name] = found[field.encode_name] = (field.encode_name, _message(field.type))
    return found


def _message(kind: Any) -> type[msgspec.Struct] | None:
    """The message that a field holds, also in a list. Keys of maps are no names of fields."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    if get_origin(kind) is dict:
        return None
    return next((found for one in get_args(kind) if (found := _message(one))), None)
