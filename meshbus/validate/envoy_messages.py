"""Whether JSON is an Envoy message: the values of EnvoyFilter patches.

Messages that a value names by type (`@type`) are loaded when they are met.
"""

import importlib
import pkgutil
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

_TYPES = {
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
# json_format lets some faults of its input out as they come.
_FAULTS = (json_format.ParseError, RecursionError, AttributeError, TypeError, ValueError, KeyError)
_NAME = re.compile(r"(envoy|xds|udpa|google\.protobuf)(\.[a-z0-9_]+)*\.[A-Za-z0-9]+")


def message_problems(apply_to: str, value: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """What is wrong with a value, and whether it refuses the patch: unknown fields do not, since
    an Envoy may be newer than the messages known here."""
    unknown = [url for url in _type_urls(value) if not _load(url.rpartition("/")[2])]
    for url in unknown:
        hint = " (use the v3 API)" if ".v2" in url else ""
        yield f"referenced type unknown: {url}{hint}", True
    if unknown:
        return
    message = _new(_TYPES[apply_to])
    try:
        json_format.ParseDict(value, message, ignore_unknown_fields=True, max_recursion_depth=64)
    except _FAULTS as error:
        yield f"is not a {_TYPES[apply_to]}: {error}", True
        return
    try:
        json_format.ParseDict(value, _new(_TYPES[apply_to]), max_recursion_depth=64)
    except _FAULTS as error:
        yield f"holds what this release does not know: {error}", False


def _type_urls(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        url = value.get("@type")
        if isinstance(url, str):
            yield url
        for item in value.values():
            yield from _type_urls(item)
    elif isinstance(value, list):
        for item in value:
            yield from _type_urls(item)


@cache
def _load(type_name: str) -> type[Message] | None:
    package, _, name = type_name.rpartition(".")
    if not _NAME.fullmatch(type_name):
        return None
    try:
        module = importlib.import_module(package)
    except ImportError:
        return None
    for info in pkgutil.iter_modules(module.__path__):
        if info.name.endswith("_pb2"):
            found = getattr(importlib.import_module(f"{package}.{info.name}"), name, None)
            if isinstance(found, type) and issubclass(found, Message):
                return found
    return None


def _new(type_name: str) -> Message:
    found = _load(type_name)
    assert found is not None, type_name
    return found()
