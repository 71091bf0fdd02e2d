"""Istio's standard metrics, with a limit on how many series there may be.

Source: Istio, standard metrics; buckets are Envoy's defaults, which Istio's are.
"""

from collections import OrderedDict
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from meshbus_telemetry.entries import Connection, Ends, Request

BUCKETS = (
    0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000,
    1800000, 3600000,
)  # fmt: skip
_LE = [*(f"{float(bound):g}" if bound < 1 else str(int(bound)) for bound in BUCKETS), "+Inf"]
COMMON_LABELS = (
    "reporter",
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_canonical_service",
    "source_canonical_revision",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_cluster",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "response_flags",
    "connection_security_policy",
    "request_protocol",
)
HTTP_LABELS = (*COMMON_LABELS, "response_code", "grpc_response_status")
OVERFLOW = "overflow"
"""Value of every label of the series that takes what is over the limit: sums stay right."""
MAX_CONNECTIONS = 100_000

Labels = tuple[str, ...]


class Histogram:
    """Counts by bucket, and their sum."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """One observation."""
        self.total += value
        for index, bound in enumerate(BUCKETS):
            if value <= bound:
                self.counts[index] += 1
                return
        self.counts[-1] += 1

    def cumulative(self) -> list[tuple[str, float]]:
        """As Prometheus has it."""
        out, sum_ = [], 0
        for text, count in zip(_LE, self.counts, strict=True):
            sum_ += count
            out.append((text, float(sum_)))
        return out


class _Http:
    __slots__ = ("duration", "received", "requests", "sent")

    def __init__(self) -> None:
        self.requests = 0
        self.duration, self.received, self.sent = Histogram(), Histogram(), Histogram()


class _Tcp:
    __slots__ = ("closed", "opened", "received", "sent")

    def __init__(self) -> None:
        self.opened = self.closed = self.received = self.sent = 0


class StandardMetrics(Collector):
    """Takes reports and shows the sums. Register it in a CollectorRegistry."""

    def __init__(self, max_series: int) -> None:
        self._max = max_series
        self._http: dict[Labels, _Http] = {}
        self._tcp: dict[Labels, _Tcp] = {}
        self._connections: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self.overflowed = 0
        """Reports that went to the overflow series."""

    @property
    def series(self) -> int:
        """Sets of labels that there are."""
        return len(self._http) + len(self._tcp)

    def request(self, report: Request) -> None:
        """Count one request."""
        labels = (
            *_labels(report.ends, report.protocol),
            str(report.code),
            report.grpc_status,
        )
        held = self._http.get(labels)
        if held is None:
            held = self._http.setdefault(self._admit(labels), _Http())
        held.requests += 1
        held.duration.observe(report.duration_ms)
        held.received.observe(report.request_bytes)
        held.sent.observe(report.response_bytes)

    def connection(self, report: Connection) -> None:
        """Count what a connection did since its last report."""
        labels = _labels(report.ends, "tcp")
        held = self._tcp.get(labels)
        if held is None:
            held = self._tcp.setdefault(self._admit(labels), _Tcp())
        key = report.stream
        before = self._connections.pop(key, None) if key else None
        if before is None:
            held.opened += 1
        received, sent = before or (0, 0)
        held.received += max(report.received_bytes - received, 0)
        held.sent += max(report.sent_bytes - sent, 0)
        if report.phase == "close":
            held.closed += 1
        elif key:
            self._connections[key] = (report.received_bytes, report.sent_bytes)
            if len(self._connections) > MAX_CONNECTIONS:
                self._connections.popitem(last=False)

    def _admit(self, labels: Labels) -> Labels:
        if self.series < self._max:
            return labels
        self.overflowed += 1
        return (OVERFLOW,) * len(labels)

    def collect(self) -> Iterator[Metric]:
        """Every series, for Prometheus."""
        requests = CounterMetricFamily(
            "istio_requests", "Requests that proxies handled.", labels=HTTP_LABELS
        )
        families = {
            "duration": _histogram("istio_request_duration_milliseconds", "Time of requests."),
            "received": _histogram("istio_request_bytes", "Size of requests with headers."),
            "sent": _histogram("istio_response_bytes", "Size of responses with headers."),
        }
        for labels, http in list(self._http.items()):
            requests.add_metric(labels, http.requests)
            for name, family in families.items():
                histogram: Histogram = getattr(http, name)
                family.add_metric(labels, histogram.cumulative(), histogram.total)
        yield requests
        yield from families.values()
        yield from self._tcp_families()

    def _tcp_families(self) -> Iterator[Metric]:
        about = {
            "sent": ("istio_tcp_sent_bytes", "Bytes that connections sent to clients."),
            "received": ("istio_tcp_received_bytes", "Bytes that connections got from clients."),
            "opened": ("istio_tcp_connections_opened", "Connections opened."),
            "closed": ("istio_tcp_connections_closed", "Connections closed."),
        }
        for field, (name, text) in about.items():
            family = CounterMetricFamily(name, text, labels=COMMON_LABELS)
            for labels, tcp in list(self._tcp.items()):
                family.add_metric(labels, getattr(tcp, field))
            yield family


def _histogram(name: str, text: str) -> HistogramMetricFamily:
    return HistogramMetricFamily(name, text, labels=HTTP_LABELS)


def _labels(ends: Ends, protocol: str) -> Labels:
    """Values of COMMON_LABELS: the fields of Party, and the names of Target, stand in
    their order."""
    return (
        ends.reporter,
        *ends.source,
        *ends.destination,
        *ends.target[:3],
        ends.flags,
        ends.security,
        protocol,
    )
