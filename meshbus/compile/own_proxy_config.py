"""What a proxy says of itself: fields of ProxyConfig in its annotation `proxy.istio.io/config`.

Source: https://istio.io/latest/docs/reference/config/annotations/
"""

from typing import Any

from meshbus.api.mesh.proxy_config import MeshProxyConfig
from meshbus.api.proto_json import as_json
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
    """Fields of ProxyConfig as JSON has them (`meshbus.api.proto_json`)."""
    named: dict[str, Any] = as_json(written, MeshProxyConfig)
    return named
