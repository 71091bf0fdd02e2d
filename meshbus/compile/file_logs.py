"""Access logs that proxies write to files.

Source: https://istio.io/latest/docs/tasks/observability/logs/access-log/ (the default format).
"""

from typing import Any, NamedTuple

import msgspec
from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.extensions.access_loggers.file.v3 import file_pb2

from meshbus.compile.values import any_of

FILE_LOG = "envoy.access_loggers.file"
_TEXT = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" '
    "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% "
    '%CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% '
    '%BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" '
    '"%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" '
    "%UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% "
    "%DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n"
)
_JSON = {
    "start_time": "%START_TIME%",
    "route_name": "%ROUTE_NAME%",
    "method": "%REQ(:METHOD)%",
    "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
    "protocol": "%PROTOCOL%",
    "response_code": "%RESPONSE_CODE%",
    "response_flags": "%RESPONSE_FLAGS%",
    "response_code_details": "%RESPONSE_CODE_DETAILS%",
    "connection_termination_details": "%CONNECTION_TERMINATION_DETAILS%",
    "bytes_received": "%BYTES_RECEIVED%",
    "bytes_sent": "%BYTES_SENT%",
    "duration": "%DURATION%",
    "upstream_service_time": "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
    "x_forwarded_for": "%REQ(X-FORWARDED-FOR)%",
    "user_agent": "%REQ(USER-AGENT)%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "authority": "%REQ(:AUTHORITY)%",
    "upstream_host": "%UPSTREAM_HOST%",
    "upstream_cluster": "%UPSTREAM_CLUSTER_RAW%",
    "upstream_local_address": "%UPSTREAM_LOCAL_ADDRESS%",
    "downstream_local_address": "%DOWNSTREAM_LOCAL_ADDRESS%",
    "downstream_remote_address": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "requested_server_name": "%REQUESTED_SERVER_NAME%",
    "upstream_transport_failure_reason": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
}


class FileLog(NamedTuple):
    """Where a proxy writes its access logs, and how."""

    path: str = ""
    """Empty: nowhere."""
    format: str = ""
    """As written; empty: the default."""
    json: bool = False
    listeners: bool = True
    """Listeners log connections that no chain takes."""
    omit_empty: bool = False
    """Values that are not there are left out, instead of `-`."""


def file_log(log: FileLog) -> accesslog_pb2.AccessLog:
    """The log of a listener, a connection manager or a TCP proxy."""
    config = file_pb2.FileAccessLog(path=log.path)
    config.log_format.omit_empty_values = log.omit_empty
    if log.json:
        config.log_format.json_format.update(_json_format(log.format))
    else:
        text = log.format or _TEXT
        config.log_format.text_format_source.inline_string = (
            text if text.endswith("\n") else f"{text}\n"
        )
    return accesslog_pb2.AccessLog(name=FILE_LOG, typed_config=any_of(config))


def _json_format(text: str) -> dict[str, Any]:
    """What is written; what is no JSON object is the default format."""
    try:
        held = msgspec.json.decode(text) if text else None
    except msgspec.DecodeError:
        held = None
    return held if isinstance(held, dict) else dict(_JSON)
