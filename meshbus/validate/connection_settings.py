"""Rules of `connectionSettings` of ProxyConfig.

Source: https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/#ProxyConfig-ConnectionSettings
and Envoy's protocol options, which take no negative durations.
"""

from msgspec import UNSET

from meshbus.api.durations import nanoseconds
from meshbus.api.mesh.proxy_config import ConnectionSettings
from meshbus.validate.durations import duration_problem
from meshbus.validate.malformed import independent
from meshbus.validate.report import Findings


@independent
def check_connection_settings(said: ConnectionSettings, path: str, out: Findings) -> None:
    """Everything but its shape."""
    for field, text in (
        ("httpIdleTimeout", said.http_idle_timeout),
        ("httpDrainTimeout", said.http_drain_timeout),
        ("httpRequestTimeout", said.http_request_timeout),
        ("httpRequestHeadersTimeout", said.http_request_headers_timeout),
        ("httpStreamIdleTimeout", said.http_stream_idle_timeout),
        ("httpMaxStreamDuration", said.http_max_stream_duration),
    ):
        if text is not UNSET and nanoseconds(text) != 0 and (problem := duration_problem(text)):
            out.error(f"{path}.{field}", f"{problem}, or 0s")
