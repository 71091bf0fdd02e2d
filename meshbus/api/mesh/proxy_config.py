"""ProxyConfig of the mesh config: how proxies start.

Source: https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/#ProxyConfig
"""

from typing import Literal

from msgspec import UNSET, field

from meshbus.api.networking.destination_rule import ClientTLSSettings, TcpKeepalive
from meshbus.api.networking.proxy_config import ProxyImage
from meshbus.api.networking.workload import ReadinessProbe
from meshbus.api.shape import AnyDuration, Free, Int32, Maybe, Shape, UInt32
from meshbus.api.telemetry import CustomTag


class RemoteService(Shape, frozen=True, kw_only=True):
    """A service that proxies report to."""

    address: str = ""
    """`HOST:PORT`."""
    tls_settings: Maybe[ClientTLSSettings] = UNSET
    """TLS."""
    tcp_keepalive: Maybe[TcpKeepalive] = UNSET
    """Keepalive."""


class Zipkin(Shape, frozen=True, kw_only=True):
    """Zipkin."""

    address: str = ""
    """`HOST:PORT`."""


class Lightstep(Shape, frozen=True, kw_only=True):
    """Lightstep."""

    address: str = ""
    """`HOST:PORT`."""
    access_token: str = ""
    """Its token."""
    secure: bool = False
    """Whether TLS is used."""
    cacert_path: str = ""
    """File of its authorities."""


class Datadog(Shape, frozen=True, kw_only=True):
    """Datadog."""

    address: str = ""
    """`HOST:PORT`."""


class OpenCensusAgent(Shape, frozen=True, kw_only=True):
    """OpenCensus."""

    address: str = ""
    """`HOST:PORT`."""
    context: list[
        Literal["UNSPECIFIED", "W3C_TRACE_CONTEXT", "GRPC_BIN", "CLOUD_TRACE_CONTEXT", "B3"]
    ] = []
    """Formats of the context."""


class Tracing(Shape, frozen=True, kw_only=True):
    """Where spans go."""

    one_of = (("zipkin", "lightstep", "datadog", "stackdriver", "openCensusAgent"),)

    zipkin: Maybe[Zipkin] = UNSET
    """Zipkin."""
    lightstep: Maybe[Lightstep] = UNSET
    """Lightstep."""
    datadog: Maybe[Datadog] = UNSET
    """Datadog."""
    stackdriver: Maybe[Free] = UNSET
    """Stackdriver."""
    open_census_agent: Maybe[OpenCensusAgent] = UNSET
    """OpenCensus."""
    custom_tags: dict[str, CustomTag] = {}
    """Further tags."""
    max_path_tag_length: UInt32 = 0
    """Longest path in a span."""
    sampling: float = 1.0
    """Share of the requests, in percent."""
    tls_settings: Maybe[ClientTLSSettings] = UNSET
    """TLS towards the collector."""
    enable_istio_tags: bool | None = None
    """Whether spans carry the names of the mesh."""


class PrivateKeyBackend(Shape, frozen=True, kw_only=True):
    """Keys in hardware."""

    poll_delay: Maybe[AnyDuration] = UNSET
    """Time between looks."""
    fallback: bool | None = None
    """Whether software is used if it is missing."""


class PrivateKeyProvider(Shape, frozen=True, kw_only=True):
    """Who does the arithmetic of private keys."""

    one_of = (("cryptomb", "qat"),)

    cryptomb: Maybe[PrivateKeyBackend] = UNSET
    """Vector instructions."""
    qat: Maybe[PrivateKeyBackend] = UNSET
    """QuickAssist."""


class MeshProxyConfig(Shape, frozen=True, kw_only=True):
    """How proxies start."""

    one_of = (("serviceCluster", "tracingServiceName"),)

    config_path: str = "./etc/istio/proxy"
    """Directory of generated files."""
    binary_path: str = "/usr/local/bin/envoy"
    """The proxy."""
    service_cluster: Maybe[str] = UNSET
    """Name of its cluster."""
    tracing_service_name: Maybe[
        Literal["APP_LABEL_AND_NAMESPACE", "CANONICAL_NAME_ONLY", "CANONICAL_NAME_AND_NAMESPACE"]
    ] = UNSET
    """Name of its cluster in traces."""
    drain_duration: AnyDuration = "45s"
    """Time for connections to end after a restart."""
    parent_shutdown_duration: Maybe[AnyDuration] = UNSET
    """Istio 1.4."""
    discovery_address: str = "istiod.istio-system.svc:15012"
    """Where configuration comes from."""
    discovery_refresh_delay: Maybe[AnyDuration] = UNSET
    """Istio 1.4."""
    zipkin_address: str = ""
    """Istio 1.4: use `tracing.zipkin`."""
    connect_timeout: Maybe[AnyDuration] = UNSET
    """Istio 1.4."""
    statsd_udp_address: str = ""
    """`HOST:PORT` of statsd."""
    envoy_metrics_service_address: str = ""
    """Use `envoyMetricsService`."""
    proxy_admin_port: Int32 = 15000
    """Port of the admin interface."""
    availability_zone: str = ""
    """Istio 1.4."""
    control_plane_auth_policy: Literal["NONE", "MUTUAL_TLS", "INHERIT"] = "MUTUAL_TLS"
    """How the control plane is authenticated."""
    custom_config_file: str = ""
    """A bootstrap of one's own."""
    stat_name_length: Int32 = 0
    """Longest name of a statistic."""
    concurrency: Int32 | None = None
    """Worker threads; 0 means one per CPU."""
    proxy_bootstrap_template_path: str = ""
    """A template of the bootstrap."""
    interception_mode: Literal["REDIRECT", "TPROXY", "NONE"] = "REDIRECT"
    """How traffic is captured."""
    tracing: Maybe[Tracing] = UNSET
    """Where spans go."""
    sds: Maybe[Free] = UNSET
    """Istio 1.4."""
    envoy_access_log_service: Maybe[RemoteService] = UNSET
    """Where logs go."""
    envoy_metrics_service: Maybe[RemoteService] = UNSET
    """Where metrics go."""
    proxy_metadata: dict[str, str] = {}
    """Further environment."""
    runtime_values: dict[str, str] = {}
    """Runtime settings of Envoy."""
    status_port: Int32 = 15020
    """Port of the status."""
    extra_stat_tags: list[str] = []
    """Further tags of statistics."""
    gateway_topology: Maybe[Free] = UNSET
    """What stands before gateways."""
    termination_drain_duration: Maybe[AnyDuration] = UNSET
    """Time for connections to end at the end."""
    mesh_id: str = ""
    """Name of the mesh."""
    readiness_probe: Maybe[ReadinessProbe] = UNSET
    """Readiness of VMs."""
    proxy_stats_matcher: Maybe[Free] = UNSET
    """Statistics that are kept."""
    hold_application_until_proxy_starts: bool | None = None
    """Whether the application waits."""
    ca_certificates_pem: list[str] = []
    """Further authorities."""
    image: Maybe[ProxyImage] = UNSET
    """Image of the proxy."""
    private_key_provider: Maybe[PrivateKeyProvider] = UNSET
    """Who does the arithmetic of private keys."""
    proxy_headers: Maybe[Free] = UNSET
    """Headers that proxies add."""
    stats_compression: bool | None = None
    """Whether statistics are compressed."""
    file_flush_interval: Maybe[AnyDuration] = UNSET
    """Time between writes of logs."""
    file_flush_min_size_kb: UInt32 | None = None
    """Size of writes of logs."""
    stats_eviction_interval: Maybe[AnyDuration] = UNSET
    """Time after which unused statistics go."""
    connection_settings: Maybe[Free] = field(default=UNSET)
    """Limits of connections."""
