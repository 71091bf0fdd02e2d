"""Extension providers of the mesh config: who decides and who is told.

Source: https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/#MeshConfig-ExtensionProvider
"""

from typing import Literal

from msgspec import UNSET

from meshbus.api.mesh.proxy_config import TraceContext
from meshbus.api.shape import AnyDuration, Free, Maybe, Shape, UInt32


class ExtAuthzHttp(Shape, frozen=True, kw_only=True):
    """Authorization over HTTP."""

    service: str = ""
    """`[NAMESPACE/]HOST`."""
    port: UInt32 = 0
    """Port."""
    timeout: Maybe[AnyDuration] = UNSET
    """Time for an answer."""
    path_prefix: str = ""
    """Put before the path of the request."""
    fail_open: bool = False
    """Whether requests pass if it fails."""
    clear_route_cache: bool = False
    """Whether the route is looked up again."""
    status_on_error: str = ""
    """Status if it fails."""
    include_headers_in_check: list[str] = []
    """Use `includeRequestHeadersInCheck`."""
    include_request_headers_in_check: list[str] = []
    """Headers it sees."""
    include_additional_headers_in_check: dict[str, str] = {}
    """Headers it gets besides."""
    include_request_body_in_check: Maybe[Free] = UNSET
    """How much of the body it sees."""
    headers_to_upstream_on_allow: list[str] = []
    """Headers of its answer that are passed on."""
    headers_to_downstream_on_deny: list[str] = []
    """Headers of its answer that the client gets if refused."""
    headers_to_downstream_on_allow: list[str] = []
    """Headers of its answer that the client gets if allowed."""


class ExtAuthzGrpc(Shape, frozen=True, kw_only=True):
    """Authorization over gRPC."""

    service: str = ""
    """`[NAMESPACE/]HOST`."""
    port: UInt32 = 0
    """Port."""
    timeout: Maybe[AnyDuration] = UNSET
    """Time for an answer."""
    fail_open: bool = False
    """Whether requests pass if it fails."""
    clear_route_cache: bool = False
    """Whether the route is looked up again."""
    status_on_error: str = ""
    """Status if it fails."""
    include_request_body_in_check: Maybe[Free] = UNSET
    """How much of the body it sees."""


class RemoteProvider(Shape, frozen=True, kw_only=True):
    """A collector of spans."""

    service: str = ""
    """`[NAMESPACE/]HOST`."""
    port: UInt32 = 0
    """Port."""
    max_tag_length: UInt32 = 0
    """Longest path in a span."""
    enable64bit_trace_id: bool = False
    """Zipkin: short ids."""
    path: str = ""
    """Zipkin: path of the collector."""
    trace_context_option: Literal["USE_B3", "USE_B3_WITH_W3C_PROPAGATION"] = "USE_B3"
    """Zipkin: formats of the context."""
    timeout: Maybe[AnyDuration] = UNSET
    """Time for an answer."""
    headers: list[Free] = []
    """Headers that are sent."""
    access_token: str = ""
    """Lightstep and SkyWalking: token."""
    context: list[TraceContext] = []
    """OpenCensus: formats of the context."""
    http: Maybe[Free] = UNSET
    """OpenTelemetry: over HTTP."""
    grpc: Maybe[Free] = UNSET
    """OpenTelemetry: over gRPC."""
    resource_detectors: Maybe[Free] = UNSET
    """OpenTelemetry: what else is known of the proxy."""
    dynatrace_sampler: Maybe[Free] = UNSET
    """OpenTelemetry: sampling by Dynatrace."""
    service_attribute_enrichment: Literal["ISTIO_CANONICAL", "OTEL_SEMANTIC_CONVENTIONS"] = (
        "ISTIO_CANONICAL"
    )
    """OpenTelemetry: where the name of the service comes from."""
    disable_context_propagation: bool | None = None
    """Whether the context is not passed on."""


class LogService(Shape, frozen=True, kw_only=True):
    """Whom logs are sent to, by gRPC."""

    service: str = ""
    """`[NAMESPACE/]HOST`."""
    port: UInt32 = 0
    """Port."""
    log_name: str = ""
    """Name of the log."""
    filter_state_objects_to_log: list[str] = []
    """Filter state that is logged."""
    additional_request_headers_to_log: list[str] = []
    """Request headers that are logged."""
    additional_response_headers_to_log: list[str] = []
    """Response headers that are logged."""
    additional_response_trailers_to_log: list[str] = []
    """Response trailers that are logged."""


class TcpLogService(Shape, frozen=True, kw_only=True):
    """Whom logs of connections are sent to, by gRPC."""

    service: str = ""
    """`[NAMESPACE/]HOST`."""
    port: UInt32 = 0
    """Port."""
    log_name: str = ""
    """Name of the log."""
    filter_state_objects_to_log: list[str] = []
    """Filter state that is logged."""


class LogFormat(Shape, frozen=True, kw_only=True):
    """How a line looks."""

    text: str = ""
    """A text with Envoy's command operators."""
    labels: Maybe[Free] = UNSET
    """An object with such texts: JSON, or attributes."""


class OpenTelemetryLogs(Shape, frozen=True, kw_only=True):
    """A collector of OpenTelemetry for logs."""

    service: str = ""
    """`[NAMESPACE/]HOST`."""
    port: UInt32 = 0
    """Port."""
    log_name: str = ""
    """Name of the log."""
    log_format: Maybe[LogFormat] = UNSET
    """Body and attributes."""


class FileLogs(Shape, frozen=True, kw_only=True):
    """A file for logs."""

    path: str = ""
    """Its path; `/dev/stdout` if empty."""
    log_format: Maybe[LogFormat] = UNSET
    """Its format."""
    omit_empty_values: bool = False
    """Whether what is not there is left out, instead of `-`."""


class ExtensionProvider(Shape, frozen=True, kw_only=True):
    """Who decides, or is told."""

    one_of = (
        (
            "envoyExtAuthzHttp",
            "envoyExtAuthzGrpc",
            "zipkin",
            "lightstep",
            "datadog",
            "opencensus",
            "skywalking",
            "opentelemetry",
            "prometheus",
            "stackdriver",
            "envoyFileAccessLog",
            "envoyHttpAls",
            "envoyTcpAls",
            "envoyOtelAls",
            "sds",
        ),
    )

    name: str = ""
    """Its name, as policies use it."""
    envoy_ext_authz_http: Maybe[ExtAuthzHttp] = UNSET
    """Authorization over HTTP."""
    envoy_ext_authz_grpc: Maybe[ExtAuthzGrpc] = UNSET
    """Authorization over gRPC."""
    zipkin: Maybe[RemoteProvider] = UNSET
    """Spans, to Zipkin."""
    lightstep: Maybe[RemoteProvider] = UNSET
    """Spans, to Lightstep."""
    datadog: Maybe[RemoteProvider] = UNSET
    """Spans, to Datadog."""
    opencensus: Maybe[RemoteProvider] = UNSET
    """Spans, to OpenCensus."""
    skywalking: Maybe[RemoteProvider] = UNSET
    """Spans, to SkyWalking."""
    opentelemetry: Maybe[RemoteProvider] = UNSET
    """Spans, to OpenTelemetry."""
    prometheus: Maybe[Free] = UNSET
    """Metrics, for Prometheus."""
    stackdriver: Maybe[Free] = UNSET
    """Everything, to Stackdriver."""
    envoy_file_access_log: Maybe[FileLogs] = UNSET
    """Logs, to a file."""
    envoy_http_als: Maybe[LogService] = UNSET
    """Logs of HTTP, over gRPC."""
    envoy_tcp_als: Maybe[TcpLogService] = UNSET
    """Logs of TCP, over gRPC."""
    envoy_otel_als: Maybe[OpenTelemetryLogs] = UNSET
    """Logs, to OpenTelemetry."""
    sds: Maybe[Free] = UNSET
    """Secrets."""
