"""What proxies tell the telemetry service: access logs and spans, by gRPC.

The reporter is the log name; the instance is the node id, which Envoy sends once per stream and
with each span: listeners name nobody, so that workloads share them.
"""

from functools import cache
from typing import Any

from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.core.v3 import config_source_pb2, grpc_service_pb2
from envoy.config.trace.v3 import opentelemetry_pb2
from envoy.extensions.access_loggers.grpc.v3 import als_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from envoy.type.v3 import percent_pb2

from meshbus.compile.engine import Reader
from meshbus.compile.proxy_logs import HTTP_LOG, TCP_LOG
from meshbus.compile.settings import MeshSettings
from meshbus.compile.values import any_of, seconds, uint32
from meshbus.model.world import Query

LOG_INBOUND = "meshbus_inbound"
"""Log name of the server side: reporter `destination`."""
LOG_OUTBOUND = "meshbus_outbound"
"""Log name of the client side, and of gateways: reporter `source`."""
REQUEST_HEADERS = ("content-type", "x-request-id", "x-b3-traceid", "traceparent")
"""Request headers in access logs besides those that Envoy always logs."""
RESPONSE_HEADERS = ("grpc-status",)
"""Of responses, in headers or trailers."""
TCP_REPORT_S = 10.0
"""How often an open TCP connection is reported."""
SPAN_SERVICE = "proxy"
"""Service name of all spans until the telemetry service gives them that of their workload."""
CONTROL_SERVICES = ("policy", "telemetry")


def control_cluster(service: str) -> str:
    """The cluster by which proxies reach a service of the control plane."""
    return f"meshbus-{service}"


def has_service(reader: Reader, service: str) -> bool:
    """Node: proxies can reach this service of the control plane."""
    return any(
        e.row.service == service for e in reader.entries(Query("mesh.addresses", "all", None))
    )


def grpc_service(service: str) -> grpc_service_pb2.GrpcService:
    """How a filter calls a service of the control plane."""
    return grpc_service_pb2.GrpcService(
        envoy_grpc=grpc_service_pb2.GrpcService.EnvoyGrpc(cluster_name=control_cluster(service))
    )


def _common(log_name: str) -> als_pb2.CommonGrpcAccessLogConfig:
    return als_pb2.CommonGrpcAccessLogConfig(
        log_name=log_name,
        grpc_service=grpc_service("telemetry"),
        transport_api_version=config_source_pb2.ApiVersion.V3,
        buffer_flush_interval=seconds(1),
        buffer_size_bytes=uint32(65536),
    )


@cache
def http_access_log(log_name: str) -> accesslog_pb2.AccessLog:
    """Each HTTP request. One message for all: copied, never changed."""
    return accesslog_pb2.AccessLog(
        name=HTTP_LOG,
        typed_config=any_of(
            als_pb2.HttpGrpcAccessLogConfig(
                common_config=_common(log_name),
                additional_request_headers_to_log=REQUEST_HEADERS,
                additional_response_headers_to_log=RESPONSE_HEADERS,
                additional_response_trailers_to_log=RESPONSE_HEADERS,
            )
        ),
    )


@cache
def tcp_access_log(log_name: str) -> accesslog_pb2.AccessLog:
    """Each TCP connection. One message for all: copied, never changed."""
    return accesslog_pb2.AccessLog(
        name=TCP_LOG,
        typed_config=any_of(als_pb2.TcpGrpcAccessLogConfig(common_config=_common(log_name))),
    )


def tracing(settings: MeshSettings) -> Any:
    """Spans by OTLP to the telemetry service, which names the service of each by its `node_id`."""
    out = hcm_pb2.HttpConnectionManager.Tracing(
        client_sampling=percent_pb2.Percent(value=100.0),
        random_sampling=percent_pb2.Percent(value=settings.sampling_percent),
        overall_sampling=percent_pb2.Percent(value=100.0),
    )
    out.provider.name = "envoy.tracers.opentelemetry"
    out.provider.typed_config.CopyFrom(
        any_of(
            opentelemetry_pb2.OpenTelemetryConfig(
                grpc_service=grpc_service("telemetry"),
                service_name=SPAN_SERVICE,
            )
        )
    )
    return out
