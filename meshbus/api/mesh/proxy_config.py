"""ProxyConfig of the mesh config: how proxies start.

Source: https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/#ProxyConfig
"""

from typing import Annotated, Literal, TypeAlias

from msgspec import UNSET, Meta, field

from meshbus.api.networking.destination_rule import ClientTLSSettings, TcpKeepalive
from meshbus.api.networking.proxy_config import ProxyImage
from meshbus.api.networking.workload import ReadinessProbe
from meshbus.api.shape import (
    AnyDuration,
    Duration,
    Free,
    Int32,
    Maybe,
    NonNegative,
    Shape,
    UInt32,
)
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


TraceContext: TypeAlias = Literal[
    "UNSPECIFIED", "W3C_TRACE_CONTEXT", "GRPC_BIN", "CLOUD_TRACE_CONTEXT", "B3"
]


class OpenCensusAgent(Shape, frozen=True, kw_only=True):
    """OpenCensus."""

    address: str = ""
    """`HOST:PORT`."""
    context: list[TraceContext] = []
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


ForwardClientCert: TypeAlias = Literal[
    "UNDEFINED",
    "SANITIZE",
    "FORWARD_ONLY",
    "APPEND_FORWARD",
    "SANITIZE_SET",
    "ALWAYS_FORWARD_ONLY",
]
"""What is done with `x-forwarded-client-cert`."""


class GatewayTopology(Shape, frozen=True, kw_only=True):
    """What stands before gateways."""

    num_trusted_proxies: UInt32 = 0
    """Proxies before a gateway that say truly whose request it is."""
    forward_client_cert_details: ForwardClientCert = "UNDEFINED"
    """What gateways do with `x-forwarded-client-cert`; SANITIZE_SET if undefined."""
    proxy_protocol: Maybe[Free] = UNSET
    """Connections to gateways begin with PROXY protocol."""


class HeaderSwitch(Shape, frozen=True, kw_only=True):
    """A header that proxies write unless it is switched off."""

    disabled: bool | None = None
    """Whether it is off."""


class HeaderWish(Shape, frozen=True, kw_only=True):
    """A header that proxies write where it is switched on."""

    enabled: bool | None = None
    """Whether it is on."""


class ServerHeader(Shape, frozen=True, kw_only=True):
    """The header `server` of responses."""

    disabled: bool | None = None
    """Whether that of the application is left as it is."""
    value: str = ""
    """Its value; `istio-envoy` if unset."""


class ClientCertDetails(Shape, frozen=True, kw_only=True):
    """Details of the caller's certificate in `x-forwarded-client-cert`."""

    subject: bool | None = None
    """Its subject; written if unset."""
    cert: bool | None = None
    """The certificate."""
    chain: bool | None = None
    """Its chain."""
    dns: bool | None = None
    """Its DNS names; written if unset."""
    uri: bool | None = None
    """Its URI; written if unset."""


class MetadataExchangeHeaders(Shape, frozen=True, kw_only=True):
    """Headers by which proxies of Istio tell each other what they are. Proxies here write none,
    to nobody."""

    mode: Literal["UNDEFINED", "IN_MESH"] = "UNDEFINED"
    """To whom."""


class ProxyHeaders(Shape, frozen=True, kw_only=True):
    """Headers that proxies write."""

    forwarded_client_cert: ForwardClientCert = "UNDEFINED"
    """`x-forwarded-client-cert` at the server side of sidecars; APPEND_FORWARD if undefined."""
    set_current_client_cert_details: Maybe[ClientCertDetails] = UNSET
    """What is written there, of the caller."""
    request_id: Maybe[HeaderSwitch] = UNSET
    """`x-request-id`."""
    server: Maybe[ServerHeader] = UNSET
    """`server`."""
    attempt_count: Maybe[HeaderSwitch] = UNSET
    """`x-envoy-attempt-count`."""
    envoy_debug_headers: Maybe[HeaderSwitch] = UNSET
    """`x-envoy-*` headers of the router."""
    metadata_exchange_headers: Maybe[MetadataExchangeHeaders] = UNSET
    """`x-envoy-peer-metadata`."""
    preserve_http1_header_case: bool | None = field(name="preserveHttp1HeaderCase", default=None)
    """Whether names of HTTP/1 headers keep their upper and lower case."""
    x_forwarded_host: Maybe[HeaderWish] = UNSET
    """`x-forwarded-host`: the host of a request whose `rewrite` changes it."""
    x_forwarded_port: Maybe[HeaderWish] = UNSET
    """`x-forwarded-port`: the port that a request came to."""


AtLeastOne: TypeAlias = Annotated[int, Meta(ge=1, le=2**31 - 1)]
WindowSize: TypeAlias = Annotated[int, Meta(ge=2**16 - 1, le=2**31 - 1)]
"""A window of flow control in bytes. Source: RFC 9113, 6.9.2."""


class ConnectionSettings(Shape, frozen=True, kw_only=True):
    """How a proxy treats the connections that it takes, and what it buffers."""

    profile: Literal["SIDECAR", "EDGE"] = "SIDECAR"
    """What holds of fields that are not set: EDGE gives gateways what Envoy advises for untrusted
    clients, SIDECAR and sidecars get nothing."""
    listener_per_connection_buffer_limit_bytes: NonNegative | None = None
    """Bytes kept of a connection from a client; 0: without limit; EDGE: 32768."""
    cluster_per_connection_buffer_limit_bytes: NonNegative | None = None
    """Bytes kept of a connection to a server; 0: without limit; EDGE: 32768."""
    http_idle_timeout: Maybe[AnyDuration] = UNSET
    """How long a connection without requests is kept; 0: for ever; EDGE: 1h."""
    http_max_connection_duration: Maybe[Duration] = UNSET
    """How long a connection is kept at most: it ends once its requests have."""
    http_drain_timeout: Maybe[AnyDuration] = UNSET
    """How long a connection that is to end still takes requests."""
    http_request_timeout: Maybe[AnyDuration] = UNSET
    """How long a whole request may take to arrive; 0: for ever; EDGE: 5m."""
    http_request_headers_timeout: Maybe[AnyDuration] = UNSET
    """How long its headers may take; 0: for ever; EDGE: 1m."""
    http_stream_idle_timeout: Maybe[AnyDuration] = UNSET
    """How long nothing may come in a request or its answer; 0: for ever; EDGE: 5m."""
    http_max_stream_duration: Maybe[AnyDuration] = UNSET
    """How long a request and its answer may take together; 0: for ever."""
    http_max_concurrent_streams: AtLeastOne | None = None
    """Requests at once on a connection of HTTP/2; EDGE: 100."""
    http2_initial_stream_window_size: WindowSize | None = field(
        name="http2InitialStreamWindowSize", default=None
    )
    """Window of a request of HTTP/2; EDGE: 65536."""
    http2_initial_connection_window_size: WindowSize | None = field(
        name="http2InitialConnectionWindowSize", default=None
    )
    """Window of a connection of HTTP/2; EDGE: 1048576."""
    http_headers_with_underscores_action: Literal[
        "HEADERS_WITH_UNDERSCORES_UNSPECIFIED",
        "HEADERS_WITH_UNDERSCORES_ALLOW",
        "HEADERS_WITH_UNDERSCORES_REJECT_REQUEST",
        "HEADERS_WITH_UNDERSCORES_DROP_HEADER",
    ] = "HEADERS_WITH_UNDERSCORES_UNSPECIFIED"
    """What is done with headers that have `_` in their name; EDGE: the request is refused."""
    http_merge_slashes: bool | None = None
    """Whether `//` in paths becomes `/`; over `pathNormalization`; EDGE: it does."""
    http_path_with_escaped_slashes_action: Literal[
        "PATH_WITH_ESCAPED_SLASHES_UNSPECIFIED",
        "KEEP_UNCHANGED",
        "REJECT_REQUEST",
        "UNESCAPE_AND_REDIRECT",
        "UNESCAPE_AND_FORWARD",
    ] = "PATH_WITH_ESCAPED_SLASHES_UNSPECIFIED"
    """What is done with `%2F` and `%5C` in paths; over `pathNormalization`; EDGE:
    UNESCAPE_AND_REDIRECT."""
    listener_connection_limit: AtLeastOne | None = None
    """Connections that a listener takes at once."""
    global_downstream_connection_limit: AtLeastOne | None = None
    """Connections that all listeners of a proxy take at once."""


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
    control_plane_auth_policy: Annotated[
        Literal["NONE", "MUTUAL_TLS", "INHERIT"],
        Meta(extra={"numbers": {0: "NONE", 1: "MUTUAL_TLS", 1000: "INHERIT"}}),
    ] = "MUTUAL_TLS"
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
    """Further environment; MESHBUS_VIRTUAL_HOSTS and MESHBUS_CLUSTERS: what is sent on demand."""
    runtime_values: dict[str, str] = {}
    """Runtime settings of Envoy."""
    status_port: Int32 = 15020
    """Port of the status."""
    extra_stat_tags: list[str] = []
    """Further tags of statistics."""
    gateway_topology: Maybe[GatewayTopology] = UNSET
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
    proxy_headers: Maybe[ProxyHeaders] = UNSET
    """Headers that proxies add."""
    stats_compression: bool | None = None
    """Whether statistics are compressed."""
    file_flush_interval: Maybe[AnyDuration] = UNSET
    """Time between writes of logs."""
    file_flush_min_size_kb: UInt32 | None = None
    """Size of writes of logs."""
    stats_eviction_interval: Maybe[AnyDuration] = UNSET
    """Time after which unused statistics go."""
    connection_settings: Maybe[ConnectionSettings] = UNSET
    """How connections are treated. Those of a proxy stand in place of the mesh's, all of them."""
