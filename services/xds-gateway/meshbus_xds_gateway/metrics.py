"""What the gateway counts."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from meshbus.compile.engine import Engine

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class GatewayMetrics:
    """Prometheus metrics of one gateway."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.connected = Gauge(
            "meshbus_xds_connected", "Streams of proxies that are open.", registry=registry
        )
        self.streams = Counter(
            "meshbus_xds_streams", "Streams opened, by outcome.", ["outcome"], registry=registry
        )
        self.pushes = Counter(
            "meshbus_xds_pushes", "Responses sent, by type.", ["type"], registry=registry
        )
        self.resources = Counter(
            "meshbus_xds_pushed_resources", "Resources sent, by type.", ["type"], registry=registry
        )
        self.bytes = Counter(
            "meshbus_xds_pushed_bytes", "Bytes of responses, by type.", ["type"], registry=registry
        )
        self.nacks = Counter(
            "meshbus_xds_nacks", "Responses refused, by type.", ["type"], registry=registry
        )
        self.compile_errors = Counter(
            "meshbus_xds_compile_errors", "Snapshots that could not be made.", registry=registry
        )
        self.recompute = Histogram(
            "meshbus_xds_recompute_seconds",
            "From a change's arrival until every proxy's new snapshot is there.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.ack = Histogram(
            "meshbus_xds_ack_seconds",
            "From a response to its acknowledgement.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.convergence = Histogram(
            "meshbus_xds_convergence_seconds",
            "From the write of a change to its last acknowledgement at this replica.",
            buckets=_SECONDS,
            registry=registry,
        )

    def compiled_by(self, engine: Engine) -> None:
        """Expose what an engine counts."""
        self._registry.register(_EngineCounters(engine))

    def carried_by(self, listener: str, counters: Callable[[], Mapping[str, int]]) -> None:
        """Expose what the carrier of a listener counts."""
        self._registry.register(_CarrierCounters(listener, counters))


class _CarrierCounters(Collector):
    """Read from a carrier when they are scraped."""

    def __init__(self, listener: str, counters: Callable[[], Mapping[str, int]]) -> None:
        self._listener = listener
        self._counters = counters

    def collect(self) -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            f"meshbus_xds_carrier_{self._listener}",
            f"What the carrier of the {self._listener} listener counts.",
            labels=["counter"],
        )
        for name, count in sorted(self._counters().items()):
            family.add_metric([name], count)
        yield family


class _EngineCounters(Collector):
    """Read from the engine when they are scraped."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterable[CounterMetricFamily]:
        counters = self._engine.counters
        for name, text, counts in (
            ("nodes_recomputed", "Runs of compile's nodes, by function.", counters.recomputed),
            ("cutoffs", "Runs whose value was the one before, by function.", counters.cutoffs),
            ("encodes", "Resources encoded, by type.", counters.encodes),
        ):
            family = CounterMetricFamily(f"meshbus_compile_{name}", text, labels=["kind"])
            for kind, count in sorted(counts.items()):
                family.add_metric([kind], count)
            yield family
