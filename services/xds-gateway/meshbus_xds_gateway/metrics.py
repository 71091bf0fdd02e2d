"""What the gateway counts."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class GatewayMetrics:
    """Prometheus metrics of one gateway."""

    def __init__(self, registry: CollectorRegistry) -> None:
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
