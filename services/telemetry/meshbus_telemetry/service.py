"""The telemetry service: access logs to metrics and the service graph, spans to a collector."""

import asyncio
from typing import Annotated, Any, ClassVar

import msgspec
from envoy.service.accesslog.v3 import als_pb2_grpc
from prometheus_client import Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from meshbus.bus.mirror import WorldMirror
from meshbus.model.keys import Key
from meshbus.model.requests import OBSERVED, ObservedReply, ObservedRequest
from meshbus.model.revisions import view_of
from meshbus.model.rows import Trust, WorkloadInstance
from meshbus.runtime.calls import CallError, answer
from meshbus.runtime.events import publish_event
from meshbus.runtime.proxy_server import ProxyServer
from meshbus.runtime.service import Context
from meshbus_telemetry.access import RBAC, Access
from meshbus_telemetry.denials import Denials
from meshbus_telemetry.egress import REFUSED, REGISTERED, UNREGISTERED, EgressReport
from meshbus_telemetry.entries import Connection, Request
from meshbus_telemetry.forward import Batch, Forwarder, exporter_of
from meshbus_telemetry.graph import ServiceGraph
from meshbus_telemetry.metrics import StandardMetrics
from meshbus_telemetry.observed import Observed
from meshbus_telemetry.otlp import trace_handler
from meshbus_telemetry.parties import Directory
from meshbus_telemetry.servers import AccessLogServer, TraceServer
from meshbus_telemetry.spans import spans_of
from meshbus_telemetry.traces import TraceRing

GRAPH = "x.telemetry.graph"
EGRESS = "x.telemetry.egress"
TRACES = "x.telemetry.traces"
MAX_TRACES = 100


class TelemetrySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of telemetry."""

    listen: Annotated[str, msgspec.Meta(description="gRPC for proxies; port 0: any")] = (
        "127.0.0.1:15031"
    )
    advertise: Annotated[
        str, msgspec.Meta(description="HOST:PORT that proxies call; empty: as bound")
    ] = ""
    otlp: Annotated[
        str, msgspec.Meta(description="forward spans: HOST:PORT or grpc(s)://, or an http(s) URL")
    ] = ""
    zipkin: Annotated[str, msgspec.Meta(description="forward spans: URL of a Zipkin")] = ""
    series: Annotated[int, msgspec.Meta(description="sets of labels in metrics, at most", ge=1)] = (
        20_000
    )
    edges: Annotated[int, msgspec.Meta(description="edges of the graph, at most", ge=1)] = 10_000
    observed: Annotated[
        int, msgspec.Meta(description="kinds of calls kept for `authz suggest`, at most", ge=1)
    ] = 20_000
    denials_s: Annotated[
        float, msgspec.Meta(description="refusals are told in events once in this time", ge=0.1)
    ] = 10.0
    spans: Annotated[int, msgspec.Meta(description="spans kept for /v1/traces, at most", ge=1)] = (
        20_000
    )


class GraphQuestion(msgspec.Struct, frozen=True):
    """What of the graph is wanted."""

    window: str = "60"
    """Seconds."""


class EgressQuestion(msgspec.Struct, frozen=True):
    """Which ways out are wanted."""

    namespace: str = ""
    """Of callers; empty: all."""
    way: str = ""
    """`registered`, `unregistered`, `refused`; empty: all."""


class TracesQuestion(msgspec.Struct, frozen=True):
    """Which traces are wanted."""

    limit: str = "20"
    service: str = ""
    id: str = ""


class TelemetryService:
    """Serves `accesslog.v3.AccessLogService` and OTLP's `TraceService`."""

    name: ClassVar[str] = "telemetry"
    settings_type: ClassVar[type[msgspec.Struct]] = TelemetrySettings

    def __init__(self, context: Context[TelemetrySettings]) -> None:
        settings = context.settings
        self._context = context
        self._mirror = WorldMirror(view=view_of(context.revision))
        self._directory = Directory(context.cluster)
        self._mirror.subscribe(self._directory.moved)
        self.metrics = StandardMetrics(settings.series)
        """Istio's metrics."""
        self.graph = ServiceGraph(settings.edges)
        """Who calls whom."""
        self.egress = EgressReport(settings.edges, context.clock.now())
        """Who reaches what outside."""
        self.denials = Denials()
        """What policies refused since the last events."""
        self.observed = Observed(settings.observed)
        """What policies would have to allow."""
        self.ring = TraceRing(settings.spans)
        """The latest traces."""
        self.forwarder = Forwarder(context.clock, context.log)
        """Spans on their way to a collector."""
        self._left_out = Counter(
            "meshbus_telemetry_left_out",
            "Entries and spans that could not be used, by reason.",
            ["reason"],
            registry=context.metrics,
        )
        self._refused = Counter(
            "meshbus_telemetry_denied",
            "Requests that policies refused, by cause; dry_run: that they would have refused.",
            ["cause", "dry_run"],
            registry=context.metrics,
        )
        context.metrics.register(self.metrics)
        context.metrics.register(_Own(self))
        self._forwards = bool(settings.otlp or settings.zipkin)
        self._server = ProxyServer(
            context,
            self._mirror,
            reads=("reg",),
            listen=settings.listen,
            advertise=settings.advertise,
            register=self._register,
        )

    # -------------------------------------------------------------- what the servers need

    @property
    def trust(self) -> Trust | None:
        """What callers are checked with."""
        return self._server.trust

    @property
    def trust_domain(self) -> str:
        """Of the workloads that may report."""
        return self._context.trust_domain

    @property
    def directory(self) -> Directory:
        """Who is who."""
        return self._directory

    def instance(self, namespace: str, name: str) -> WorkloadInstance | None:
        """One workload instance."""
        key = Key(self._context.cluster, "reg", "workloads", namespace, name)
        row: WorkloadInstance | None = self._mirror.world.get(key)
        return row

    def request(self, report: Request) -> None:
        """Take one request."""
        self.metrics.request(report)
        self.graph.request(report, self._context.clock.now())
        self.egress.request(report, self._context.clock.now())

    def connection(self, report: Connection) -> None:
        """Take one report of a connection."""
        self.metrics.connection(report)
        self.graph.connection(report, self._context.clock.now())
        self.egress.connection(report, self._context.clock.now())

    def access(self, access: Access | None) -> None:
        """Take what was decided about a request."""
        if access is None:
            return
        now = self._context.clock.now()
        self.observed.add(access, now)
        if not (access.cause or access.dry_run or access.audited):
            return
        self.denials.add(access, now)
        if access.cause:
            self._refused.labels(access.cause, "false").inc()
        if access.dry_run:
            self._refused.labels(RBAC, "true").inc(len(access.dry_run))

    def spans(self, request: Any) -> int:
        """Take an export; gives how many of its spans could be used."""
        count = 0
        for span in spans_of(request):
            self.ring.add(span)
            count += 1
        if self._forwards and count:
            self.forwarder.offer(Batch(request.SerializeToString(), count))
        return count

    def left_out(self, why: str, count: int) -> None:
        """Count what could not be used."""
        self._left_out.labels(why).inc(count)

    # -------------------------------------------------------------- the service

    async def run(self) -> None:
        """Until cancelled."""
        context = self._context
        context.admin.add_ready("proxies", self._server.not_ready)
        context.admin.add_debug("graph", lambda: self.graph.describe(context.clock.now()))
        exporter = exporter_of(context.settings.otlp, context.settings.zipkin)
        await answer(context.bus, GRAPH, GraphQuestion, self._answer_graph, queue=self.name)
        await answer(context.bus, EGRESS, EgressQuestion, self._answer_egress, queue=self.name)
        await answer(context.bus, TRACES, TracesQuestion, self._answer_traces, queue=self.name)
        await answer(context.bus, OBSERVED, ObservedRequest, self._answer_observed, queue=self.name)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._server.run())
            tasks.create_task(self._tell_denials())
            if exporter is not None:
                tasks.create_task(self.forwarder.run(exporter))

    def _register(self, server: Any) -> None:
        als_pb2_grpc.add_AccessLogServiceServicer_to_server(AccessLogServer(self), server)
        server.add_generic_rpc_handlers((trace_handler(TraceServer(self).export),))

    async def _answer_graph(self, question: GraphQuestion) -> dict[str, Any]:
        try:
            window_s = float(question.window.removesuffix("s"))
        except ValueError:
            raise CallError("invalid", f"window: seconds, not {question.window!r}") from None
        if not 0 < window_s < float("inf"):
            raise CallError("invalid", "window: more than 0 seconds")
        return self.graph.describe(self._context.clock.now(), window_s)

    async def _answer_egress(self, question: EgressQuestion) -> dict[str, Any]:
        if question.way not in ("", REGISTERED, UNREGISTERED, REFUSED):
            raise CallError(
                "invalid", f"way: registered, unregistered or refused, not {question.way!r}"
            )
        return self.egress.describe(self._context.clock.now(), question.namespace, question.way)

    async def _tell_denials(self) -> None:
        """An event for each kind of refusal of a window; never one for each request."""
        context, before = self._context, 0
        while True:
            await context.clock.sleep(context.settings.denials_s)
            for event in self.denials.take():
                name, data = (event.kind, event.namespace, event.name), event.data
                await publish_event(context.bus, context.cluster, *name, event.verb, data)
            if self.denials.left_out > before:
                self.left_out("refusals", self.denials.left_out - before)
                before = self.denials.left_out

    async def _answer_observed(self, question: ObservedRequest) -> ObservedReply:
        now = self._context.clock.now()
        calls = self.observed.since(now, question.since_s, question.namespace)
        return ObservedReply(calls, self.observed.overflowed)

    async def _answer_traces(self, question: TracesQuestion) -> dict[str, Any]:
        if not question.limit.isdecimal() or len(question.limit) > 6:
            raise CallError("invalid", f"limit: a number, not {question.limit!r}")
        limit = min(int(question.limit), MAX_TRACES)
        return self.ring.describe(limit=limit, service=question.service, trace_id=question.id)


class _Own(Collector):
    """What the service says of itself."""

    def __init__(self, service: TelemetryService) -> None:
        self._service = service

    def collect(self) -> list[Metric]:
        """Its sizes and losses."""
        service = self._service
        overflow = CounterMetricFamily(
            "meshbus_telemetry_overflow",
            "Reports over the limit of series or edges.",
            labels=["of"],
        )
        overflow.add_metric(["series"], service.metrics.overflowed)
        overflow.add_metric(["edges"], service.graph.overflowed)
        overflow.add_metric(["egress"], service.egress.overflowed)
        overflow.add_metric(["calls"], service.observed.overflowed)
        spans = CounterMetricFamily(
            "meshbus_telemetry_forwarded_spans",
            "Spans by what became of them on the way to the collector.",
            labels=["outcome"],
        )
        for outcome in ("sent", "dropped", "refused"):
            spans.add_metric([outcome], getattr(service.forwarder, outcome))
        sizes = GaugeMetricFamily(
            "meshbus_telemetry_held", "What is held in memory.", labels=["what"]
        )
        sizes.add_metric(["series"], service.metrics.series)
        sizes.add_metric(["edges"], len(service.graph))
        sizes.add_metric(["egress"], len(service.egress))
        sizes.add_metric(["calls"], len(service.observed))
        sizes.add_metric(["spans"], service.ring.spans)
        sizes.add_metric(["batches"], service.forwarder.waiting)
        return [overflow, spans, sizes]
