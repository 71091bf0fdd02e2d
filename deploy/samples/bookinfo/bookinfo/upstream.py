"""Calls from one Bookinfo service to another: plain HTTP to the service's name.

In a mesh without traffic capture the call goes through `http_proxy`, which urllib honours; with
capture nothing is set and the name resolves.
"""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

FORWARDED_HEADERS = (
    "x-request-id",
    "x-ot-span-context",
    "x-datadog-trace-id",
    "x-datadog-parent-id",
    "x-datadog-sampling-priority",
    "traceparent",
    "tracestate",
    "x-cloud-trace-context",
    "grpc-trace-bin",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "b3",
    "sw8",
    "end-user",
    "user-agent",
    "cookie",
    "authorization",
    "jwt",
)
"""What an application passes on, so that a trace stays one and routes see the end user.
Source: https://istio.io/latest/docs/tasks/observability/distributed-tracing/overview/"""

MAX_ANSWER_BYTES = 1024 * 1024


class UpstreamError(Exception):
    """The other service did not give a good answer. `status` 0: no answer at all."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status} {reason}" if status else reason)
        self.status = status


def service_url(service: str) -> str:
    """Base URL of a Bookinfo service; `<SERVICE>_HOSTNAME` and `<SERVICE>_SERVICE_PORT` as in
    Istio's images."""
    host = os.environ.get(f"{service.upper()}_HOSTNAME", service)
    port = os.environ.get(f"{service.upper()}_SERVICE_PORT", "9080")
    return f"http://{host}:{port}"


def forwarded(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of a request that calls made for it carry on."""
    return {name: headers[name] for name in FORWARDED_HEADERS if name in headers}


def get_json(url: str, headers: Mapping[str, str], timeout_s: float) -> Any:
    """The JSON document at a URL.

    Raises:
        UpstreamError: No connection, a status but 200, too slow, or no JSON.
    """
    request = urllib.request.Request(url, headers=dict(headers))  # noqa: S310 - our own http URLs
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
            return json.loads(answer.read(MAX_ANSWER_BYTES))
    except urllib.error.HTTPError as error:
        error.close()
        raise UpstreamError(error.code, error.reason) from error
    except (OSError, ValueError) as error:
        raise UpstreamError(0, str(error)) from error
