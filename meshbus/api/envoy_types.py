"""Envoy's messages by name, loaded when they are met: there are too many to load them all."""

import importlib
import pkgutil
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from google.protobuf.message import Message

from meshbus.api.durations import SECOND_NS, nanoseconds

PATCHED_TYPES = {
    "LISTENER": "envoy.config.listener.v3.Listener",
    "FILTER_CHAIN": "envoy.config.listener.v3.FilterChain",
    "LISTENER_FILTER": "envoy.config.listener.v3.ListenerFilter",
    "NETWORK_FILTER": "envoy.config.listener.v3.Filter",
    "HTTP_FILTER": "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter",
    "ROUTE_CONFIGURATION": "envoy.config.route.v3.RouteConfiguration",
    "VIRTUAL_HOST": "envoy.config.route.v3.VirtualHost",
    "HTTP_ROUTE": "envoy.config.route.v3.Route",
    "CLUSTER": "envoy.config.cluster.v3.Cluster",
    "EXTENSION_CONFIG": "envoy.config.core.v3.TypedExtensionConfig",
    "BOOTSTRAP": "envoy.config.bootstrap.v3.Bootstrap",
}
"""What the patches of an EnvoyFilter are about, by `applyTo`."""
_NAME = re.compile(r"(envoy|xds|udpa|google\.protobuf)(\.[a-z0-9_]+)*\.[A-Za-z0-9]+")
_GONE = re.compile(r"^envoy\..*\bv2(alpha\d*)?\b")
"""Packages of the v2 API: no Envoy of today knows their messages."""


def type_urls(value: Any) -> Iterator[str]:
    """Every `@type` in a JSON value."""
    if isinstance(value, Mapping):
        url = value.get("@type")
        if isinstance(url, str):
            yield url
        for item in value.values():
            yield from type_urls(item)
    elif isinstance(value, list):
        for item in value:
            yield from type_urls(item)


@cache
def message_type(name: str) -> type[Message] | None:
    """The class of a message by its full name; None for a name that is not known here."""
    package, _, short = name.rpartition(".")
    if not _NAME.fullmatch(name) or _GONE.search(package):
        return None
    try:
        module = importlib.import_module(package)
    except ImportError:
        return None
    for info in pkgutil.iter_modules(module.__path__):
        if info.name.endswith("_pb2"):
            found = getattr(importlib.import_module(f"{package}.{info.name}"), short, None)
            if isinstance(found, type) and issubclass(found, Message):
                return found
    return None


def type_of_url(url: str) -> type[Message] | None:
    """The class of what an `Any` holds."""
    return message_type(url.rpartition("/")[2])


def with_protobuf_durations(value: Any, kind: Any) -> Any:
    """JSON of a message with durations as protobuf has them (`0.5s`), where Istio also reads those
    of Go (`500ms`). `kind`: the descriptor of the message."""
    if kind.full_name == "google.protobuf.Duration":
        nanos = nanoseconds(value) if isinstance(value, str) else None
        return value if nanos is None else _in_seconds(nanos)
    if not isinstance(value, Mapping):
        return value
    if kind.full_name == "google.protobuf.Any":
        held = type_of_url(str(value.get("@type")))
        return value if held is None else with_protobuf_durations(value, held.DESCRIPTOR)
    if kind.full_name.startswith("google.protobuf."):
        return value
    fields = {name: field for field in kind.fields for name in (field.name, field.json_name)}
    out = dict(value)
    for name, item in value.items():
        inner = fields[name].message_type if name in fields else None
        if inner is None:
            continue
        if inner.GetOptions().map_entry:
            inner = inner.fields_by_name["value"].message_type
            if inner is not None and isinstance(item, Mapping):
                out[name] = {key: with_protobuf_durations(one, inner) for key, one in item.items()}
        elif isinstance(item, list):
            out[name] = [with_protobuf_durations(one, inner) for one in item]
        else:
            out[name] = with_protobuf_durations(item, inner)
    return out


def _in_seconds(nanos: int) -> str:
    sign, size = ("-" if nanos < 0 else ""), abs(nanos)
    return f"{sign}{size // SECOND_NS}.{size % SECOND_NS:09}s"
