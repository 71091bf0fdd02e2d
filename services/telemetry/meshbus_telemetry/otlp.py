"""OTLP's messages, by field number.

Two distributions install the package `opentelemetry.proto`: xds-protos, with a version from before
`scope_spans` got its name (same number, same bytes), and opentelemetry-proto. Which of them one
imports depends on the order of installation, so nothing here relies on what has changed its name,
or on stubs that only one of them has.
"""

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
EXPORT = f"/{SERVICE}/Export"
ExportRequest = trace_service_pb2.ExportTraceServiceRequest
ExportResponse = trace_service_pb2.ExportTraceServiceResponse

_SCOPES = trace_pb2.ResourceSpans.DESCRIPTOR.fields_by_number[2].name


def resources_of(request: Any) -> Iterator[tuple[Any, list[Any]]]:
    """(Resource, its spans) of an ExportTraceServiceRequest."""
    for resource_spans in request.resource_spans:
        spans = [span for scope in getattr(resource_spans, _SCOPES) for span in scope.spans]
        yield resource_spans.resource, spans


def trace_handler(export: Callable[[Any, Any], Awaitable[Any]]) -> Any:
    """A generic handler of TraceService for a gRPC server."""
    method = grpc.unary_unary_rpc_method_handler(
        export,
        request_deserializer=ExportRequest.FromString,
        response_serializer=ExportResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(SERVICE, {"Export": method})
