"""How a proxy treats connections: `connectionSettings` of ProxyConfig, of the mesh config's
`defaultConfig` or of a proxy's own annotation.

They are fields of connection managers, listeners and clusters. The limit of a listener is none: it
is a value of the proxy's runtime by the listener's name, which comes by RTDS (`listener_limits`).
The limit of the whole proxy is in its bootstrap.

Source: https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/#ProxyConfig-ConnectionSettings
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)

from meshbus.api.durations import MILLISECOND_NS, SECOND_NS, nanoseconds
from meshbus.compile.own_proxy_config import own_fields
from meshbus.compile.request_paths import PathRules, rules_of
from meshbus.compile.values import duration_of_nanos, uint32

_WHOLE_HOUR_NS, _MINUTE_NS = 3600 * SECOND_NS, 60 * SECOND_NS
_MOST = 2**31 - 1
_LEAST_WINDOW = 2**16 - 1
_ESCAPED_SLASHES = (
    "KEEP_UNCHANGED",
    "REJECT_REQUEST",
    "UNESCAPE_AND_REDIRECT",
    "UNESCAPE_AND_FORWARD",
)
_UNDERSCORES = "HEADERS_WITH_UNDERSCORES_"
_ACTIONS = ("ALLOW", "REJECT_REQUEST", "DROP_HEADER")


class ConnectionSettings(NamedTuple):
    """What is said; None, and an empty text: nothing."""

    listener_buffer: int | None = None
    """Bytes."""
    cluster_buffer: int | None = None
    """Bytes."""
    idle_ns: int | None = None
    lifetime_ns: int | None = None
    """Of a connection."""
    drain_ns: int | None = None
    request_ns: int | None = None
    request_headers_ns: int | None = None
    stream_idle_ns: int | None = None
    stream_lifetime_ns: int | None = None
    streams: int | None = None
    """At once on a connection of HTTP/2."""
    stream_window: int | None = None
    """Bytes."""
    connection_window: int | None = None
    """Bytes."""
    underscores: str = ""
    """A `HeadersWithUnderscoresAction` of Envoy."""
    merge_slashes: bool | None = None
    escaped_slashes: str = ""
    """A `PathWithEscapedSlashesAction` of Envoy."""
    listener_connections: int | None = None
    """Connections that a listener takes at once."""

    def paths(self, normalization: str) -> PathRules:
        """What is done to paths of requests, by `pathNormalization` where nothing is said here."""
        rules = rules_of(normalization)
        merge = rules.merge_slashes if self.merge_slashes is None else self.merge_slashes
        escaped = self.escaped_slashes or rules.escaped_slashes
        return rules._replace(merge_slashes=merge, escaped_slashes=escaped)


NOTHING_SAID = ConnectionSettings()
EDGE = ConnectionSettings(
    listener_buffer=32 * 1024,
    cluster_buffer=32 * 1024,
    idle_ns=_WHOLE_HOUR_NS,
    request_ns=5 * _MINUTE_NS,
    request_headers_ns=_MINUTE_NS,
    stream_idle_ns=5 * _MINUTE_NS,
    streams=100,
    stream_window=64 * 1024,
    connection_window=1024 * 1024,
    underscores="REJECT_REQUEST",
    merge_slashes=True,
    escaped_slashes="UNESCAPE_AND_REDIRECT",
)
"""The profile of that name. Source:
https://istio.io/latest/docs/ops/configuration/traffic-management/edge-proxy/"""


def connection_settings_of(
    settings: Mapping[str, Any], own: str = "", *, router: bool
) -> ConnectionSettings:
    """What holds of a proxy: `connectionSettings` of its annotation `proxy.istio.io/config`, or
    else of `defaultConfig`, and for routers what the profile says of the rest. A value that Envoy
    would refuse says nothing.

    Source: Istio, resolveConnectionSettings.
    """
    mine = own_fields(own).get("connectionSettings")
    said = mine if isinstance(mine, dict) else settings.get("connectionSettings")
    if not isinstance(said, dict):
        return NOTHING_SAID
    merge = said.get("httpMergeSlashes")
    underscores = str(said.get("httpHeadersWithUnderscoresAction")).removeprefix(_UNDERSCORES)
    escaped = said.get("httpPathWithEscapedSlashesAction")
    written = ConnectionSettings(
        listener_buffer=_number(said, "listenerPerConnectionBufferLimitBytes", 0),
        cluster_buffer=_number(said, "clusterPerConnectionBufferLimitBytes", 0),
        idle_ns=_time(said, "httpIdleTimeout"),
        lifetime_ns=_time(said, "httpMaxConnectionDuration", MILLISECOND_NS),
        drain_ns=_time(said, "httpDrainTimeout"),
        request_ns=_time(said, "httpRequestTimeout"),
        request_headers_ns=_time(said, "httpRequestHeadersTimeout"),
        stream_idle_ns=_time(said, "httpStreamIdleTimeout"),
        stream_lifetime_ns=_time(said, "httpMaxStreamDuration"),
        streams=_number(said, "httpMaxConcurrentStreams", 1),
        stream_window=_number(said, "http2InitialStreamWindowSize", _LEAST_WINDOW),
        connection_window=_number(said, "http2InitialConnectionWindowSize", _LEAST_WINDOW),
        underscores=underscores if underscores in _ACTIONS else "",
        merge_slashes=merge if isinstance(merge, bool) else None,
        escaped_slashes=escaped if escaped in _ESCAPED_SLASHES else "",
        listener_connections=_number(said, "listenerConnectionLimit", 1),
    )
    if not router or said.get("profile") != "EDGE":
        return written
    unsaid = {k: v for k, v in EDGE._asdict().items() if getattr(written, k) in (None, "")}
    return written._replace(**unsaid)


def _number(said: Mapping[str, Any], field: str, least: int) -> int | None:
    value = said.get(field)
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)  # as proto JSON may have it
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if least <= value <= _MOST else None


def _time(said: Mapping[str, Any], field: str, least: int = 0) -> int | None:
    value = said.get(field)
    nanos = nanoseconds(value) if isinstance(value, str) else None
    return nanos if nanos is not None and nanos >= least else None


def apply_to_manager(manager: hcm_pb2.HttpConnectionManager, said: ConnectionSettings) -> None:
    """What holds of every connection manager, but for paths.

    Source: Istio, applyConnectionSettingsToHCM.
    """
    common = "common_http_protocol_options"
    for nanos, field in (
        (said.idle_ns, f"{common}.idle_timeout"),
        (said.lifetime_ns, f"{common}.max_connection_duration"),
        (said.stream_lifetime_ns, f"{common}.max_stream_duration"),
        (said.drain_ns, "drain_timeout"),
        (said.request_ns, "request_timeout"),
        (said.request_headers_ns, "request_headers_timeout"),
        (said.stream_idle_ns, "stream_idle_timeout"),
    ):
        if nanos is not None:
            inner, _, name = field.rpartition(".")
            owner = getattr(manager, inner) if inner else manager
            getattr(owner, name).CopyFrom(duration_of_nanos(nanos))
    http2 = "http2_protocol_options"
    for number, name in (
        (said.streams, "max_concurrent_streams"),
        (said.stream_window, "initial_stream_window_size"),
        (said.connection_window, "initial_connection_window_size"),
    ):
        if number is not None:
            getattr(getattr(manager, http2), name).CopyFrom(uint32(number))
    if said.underscores:
        options = manager.common_http_protocol_options
        actions = type(options).HeadersWithUnderscoresAction
        options.headers_with_underscores_action = actions.Value(said.underscores)
