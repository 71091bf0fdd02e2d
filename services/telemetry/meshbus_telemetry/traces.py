"""The latest traces, in memory: at most so many spans; the oldest trace goes first."""

from collections import OrderedDict
from typing import Any

from meshbus_telemetry.spans import Span

MAX_SPANS_OF_A_TRACE = 2_000
MAX_SPANS_OF_AN_ANSWER = 1_000


class TraceRing:
    """Traces by id, in the order in which they began to arrive."""

    def __init__(self, max_spans: int) -> None:
        self._max = max_spans
        self._traces: OrderedDict[str, dict[str, Span]] = OrderedDict()
        self.spans = 0
        """Spans held."""
        self.dropped = 0
        """Spans of traces that are too long."""

    def add(self, span: Span) -> None:
        """Keep one span."""
        trace = self._traces.setdefault(span.trace_id, {})
        if span.id not in trace:
            if len(trace) >= MAX_SPANS_OF_A_TRACE:
                self.dropped += 1
                return
            self.spans += 1
        trace[span.id] = span
        while self.spans > self._max and self._traces:
            _, oldest = self._traces.popitem(last=False)
            self.spans -= len(oldest)

    def describe(self, *, limit: int = 20, service: str = "", trace_id: str = "") -> dict[str, Any]:
        """`{"traces": [...]}`, the latest first, at most MAX_SPANS_OF_AN_ANSWER spans in all.

        Args:
            limit: Traces at most.
            service: Only traces with a span of it.
            trace_id: Only this one.
        """
        out: list[dict[str, Any]] = []
        left = MAX_SPANS_OF_AN_ANSWER
        for key in reversed(self._traces):
            spans = list(self._traces[key].values())
            if trace_id and key != trace_id:
                continue
            if service and all(service not in {s.service, _short(s.service)} for s in spans):
                continue
            if len(out) >= limit or left <= 0:
                break
            out.append(_describe(key, spans, left))
            left -= len(spans)
        return {"traces": out}


def _short(service: str) -> str:
    return service.partition(".")[0]


def _describe(trace_id: str, spans: list[Span], most: int) -> dict[str, Any]:
    spans.sort(key=lambda span: (span.start_ns, span.id))
    ids = {span.id for span in spans}
    root = next((span for span in spans if span.parent_id not in ids), spans[0])
    start = spans[0].start_ns
    end = max(span.end_ns for span in spans)
    return {
        "id": trace_id,
        "root": root.name,
        "service": root.service,
        "start": start / 1e9,
        "durationMs": round(max(end - start, 0) / 1e6, 3),
        "services": sorted({span.service for span in spans}),
        "errors": sum(span.error for span in spans),
        "spanCount": len(spans),
        "spans": [
            {
                "id": span.id,
                "parentId": span.parent_id,
                "name": span.name,
                "kind": span.kind,
                "service": span.service,
                "start": span.start_ns / 1e9,
                "durationMs": round(span.duration_ms, 3),
                "error": span.error,
                "attributes": span.attributes,
            }
            for span in spans[:most]
        ],
    }
