"""Spans as OTLP has them, as people see them, and as Zipkin takes them. Pure."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from meshbus_telemetry.otlp import resources_of

_KINDS = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
_ERROR = 2
SERVICE_NAME = "service.name"
NODE_ID = "node_id"
"""Set by Envoy on each span. Source: Envoy, "Tracing", what data each trace contains."""
MAX_ATTRIBUTES = 128
MAX_VALUE_CHARACTERS = 4096


class Span(NamedTuple):
    """One span. Ids are lower-case hex, times nanoseconds since the epoch."""

    trace_id: str
    id: str
    parent_id: str
    """Empty for a root."""
    name: str
    kind: str
    service: str
    start_ns: int
    end_ns: int
    error: bool
    attributes: dict[str, str]

    @property
    def duration_ms(self) -> float:
        """How long it took."""
        return max(self.end_ns - self.start_ns, 0) / 1e6


def nodes_of(request: Any) -> Iterator[tuple[str, Any]]:
    """(id of the proxy, resource) of each resource whose spans say from which proxy they are."""
    for resource, spans in resources_of(request):
        for pair in spans[0].attributes[:MAX_ATTRIBUTES] if spans else ():
            if pair.key == NODE_ID:
                yield pair.value.string_value, resource


def name_service(resource: Any, name: str) -> None:
    """Give the spans of a resource the name of their service."""
    for pair in resource.attributes:
        if pair.key == SERVICE_NAME:
            pair.value.string_value = name
            return
    resource.attributes.add(key=SERVICE_NAME).value.string_value = name


def spans_of(request: Any) -> Iterator[Span]:
    """The spans of an OTLP `ExportTraceServiceRequest`; those without ids are left out."""
    for resource, spans in resources_of(request):
        service = _attributes(resource.attributes).get(SERVICE_NAME, "unknown")
        for span in spans:
            if len(span.trace_id) != 16 or len(span.span_id) != 8:
                continue
            yield Span(
                span.trace_id.hex(),
                span.span_id.hex(),
                span.parent_span_id.hex(),
                span.name[:MAX_VALUE_CHARACTERS],
                _KINDS[span.kind] if span.kind < len(_KINDS) else _KINDS[0],
                service,
                span.start_time_unix_nano,
                span.end_time_unix_nano,
                span.status.code == _ERROR,
                _attributes(span.attributes),
            )


def _attributes(pairs: Any) -> dict[str, str]:
    return {
        pair.key[:256]: _text(pair.value)[:MAX_VALUE_CHARACTERS] for pair in pairs[:MAX_ATTRIBUTES]
    }


def _text(value: Any) -> str:
    field = value.WhichOneof("value")
    if field is None:
        return ""
    content = getattr(value, field)
    if field == "bool_value":
        return "true" if content else "false"
    if field == "bytes_value":
        return str(content.hex())
    if field == "array_value":
        return ",".join(_text(item) for item in content.values)
    if field == "kvlist_value":
        return ",".join(f"{pair.key}={_text(pair.value)}" for pair in content.values)
    return str(content)


def zipkin_of(span: Span) -> dict[str, Any]:
    """A span of Zipkin's v2 JSON.

    Source: Zipkin v2 API; OpenTelemetry, "Trace SDK exporters: Zipkin".
    """
    out: dict[str, Any] = {
        "traceId": span.trace_id,
        "id": span.id,
        "name": span.name,
        "timestamp": span.start_ns // 1000,
        "duration": max((span.end_ns - span.start_ns) // 1000, 1),
        "localEndpoint": {"serviceName": span.service},
        "tags": {**span.attributes, **({"error": "true"} if span.error else {})},
    }
    if span.parent_id:
        out["parentId"] = span.parent_id
    if span.kind in {"SERVER", "CLIENT", "PRODUCER", "CONSUMER"}:
        out["kind"] = span.kind
    return out
