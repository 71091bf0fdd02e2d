"""DestinationRule: what happens to traffic after it was routed.

Source: https://istio.io/latest/docs/reference/config/networking/destination-rule/
"""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, field

from meshbus.api.networking.virtual_service import PortSelector
from meshbus.api.selectors import WorkloadSelector
from meshbus.api.shape import AnyDuration, Duration, Int32, Maybe, Shape, UInt32, UInt64


class TcpKeepalive(Shape, frozen=True, kw_only=True):
    """`SO_KEEPALIVE` of connections."""

    probes: UInt32 = 0
    """Unanswered probes before a connection counts as dead."""
    time: Maybe[Duration] = UNSET
    """Idle time before the first probe."""
    interval: Maybe[Duration] = UNSET
    """Time between probes."""


class TCPSettings(Shape, frozen=True, kw_only=True):
    """Limits of connections."""

    max_connections: Int32 = 0
    """Connections to a host at the same time; unlimited if 0."""
    connect_timeout: Maybe[Duration] = UNSET
    """Time to connect; 10s if unset."""
    tcp_keepalive: Maybe[TcpKeepalive] = UNSET
    """Keepalive probes."""
    max_connection_duration: Maybe[Duration] = UNSET
    """After this time a connection is closed."""
    idle_timeout: Maybe[AnyDuration] = UNSET
    """A connection without traffic for this time is closed; never if 0s."""


class Http2KeepAlive(Shape, frozen=True, kw_only=True):
    """HTTP/2 PING frames on upstream connections."""

    interval: Maybe[Duration] = UNSET
    """Time between pings."""
    timeout: Maybe[Duration] = UNSET
    """Time for the answer."""


class HTTPSettings(Shape, frozen=True, kw_only=True):
    """Limits of HTTP requests."""

    http1_max_pending_requests: Int32 = 0
    """Requests that wait for a connection."""
    http2_max_requests: Int32 = 0
    """Requests to a host at the same time."""
    max_requests_per_connection: Int32 = 0
    """Requests on one connection before it is closed; 1 turns keep-alive off."""
    max_retries: Int32 = 0
    """Retries outstanding at the same time."""
    idle_timeout: Maybe[Duration] = UNSET
    """Time without a request after which a connection is closed."""
    h2_upgrade_policy: Literal["DEFAULT", "DO_NOT_UPGRADE", "UPGRADE"] = "DEFAULT"
    """Whether HTTP/1.1 is upgraded to HTTP/2."""
    use_client_protocol: bool = False
    """Whether the protocol of the client is kept."""
    max_concurrent_streams: Int32 = 0
    """Streams on one HTTP/2 connection."""
    http2_keep_alive: Maybe[Http2KeepAlive] = UNSET
    """HTTP/2 keepalive."""


class ConnectionPoolSettings(Shape, frozen=True, kw_only=True):
    """Limits of connections and requests to a host."""

    tcp: Maybe[TCPSettings] = UNSET
    """For TCP and HTTP."""
    http: Maybe[HTTPSettings] = UNSET
    """For HTTP."""


class OutlierDetection(Shape, frozen=True, kw_only=True):
    """When a host that fails is left out for a while."""

    consecutive_errors: Int32 = 0
    """Istio 1.4: use `consecutive5xxErrors`."""
    split_external_local_origin_errors: bool = False
    """Whether errors of our side are counted apart."""
    consecutive_local_origin_failures: UInt32 | None = None
    """Errors of our side in a row; needs `splitExternalLocalOriginErrors`."""
    consecutive_gateway_errors: UInt32 | None = None
    """502, 503, 504 in a row; 0 turns it off."""
    consecutive_5xx_errors: UInt32 | None = field(name="consecutive5xxErrors", default=None)
    """Errors 5xx in a row; 5 if unset, 0 turns it off."""
    interval: Maybe[Duration] = UNSET
    """Time between looks; 10s if unset."""
    base_ejection_time: Maybe[Duration] = UNSET
    """Least time out; grows with each ejection; 30s if unset."""
    max_ejection_percent: Int32 = 0
    """Share of the hosts that may be out at the same time; 10 if unset."""
    min_health_percent: Int32 = 0
    """Below this share of healthy hosts detection stops."""
    outlier_detection_http_error_codes: list[Annotated[int, Meta(ge=100, le=599)]] = []
    """Status codes that count as errors, and no others; 5xx if empty."""


class HTTPCookieAttribute(Shape, frozen=True, kw_only=True):
    """An attribute of a cookie."""

    name: str
    """Its name."""
    value: str = ""
    """Its value."""


class HTTPCookie(Shape, frozen=True, kw_only=True):
    """A cookie to hash by; made if it is missing."""

    name: str = ""
    """Its name."""
    path: str = ""
    """Its path."""
    ttl: Maybe[AnyDuration] = UNSET
    """Its lifetime."""
    attributes: list[HTTPCookieAttribute] = []
    """Further attributes."""


class RingHash(Shape, frozen=True, kw_only=True):
    """Ring hashing."""

    minimum_ring_size: UInt64 = 0
    """Least number of virtual nodes."""


class Maglev(Shape, frozen=True, kw_only=True):
    """Maglev hashing."""

    table_size: UInt64 = 0
    """Size of the table: a prime up to 5000011."""


class ConsistentHashLB(Shape, frozen=True, kw_only=True):
    """Requests with the same key go to the same host."""

    one_of = (
        ("httpHeaderName", "httpCookie", "useSourceIp", "httpQueryParameterName"),
        ("ringHash", "maglev"),
    )

    http_header_name: Maybe[str] = UNSET
    """The key is this header."""
    http_cookie: Maybe[HTTPCookie] = UNSET
    """The key is this cookie."""
    use_source_ip: Maybe[bool] = UNSET
    """The key is the address of the caller."""
    http_query_parameter_name: Maybe[str] = UNSET
    """The key is this query parameter."""
    ring_hash: Maybe[RingHash] = UNSET
    """Ring hashing."""
    maglev: Maybe[Maglev] = UNSET
    """Maglev hashing."""
    minimum_ring_size: UInt64 = 0
    """Use `ringHash.minimumRingSize`."""


class LocalityDistribute(Shape, frozen=True, kw_only=True):
    """How traffic of a locality is shared out."""

    from_: str = field(name="from", default="")
    """Locality of the callers: `region/zone/sub-zone`, `*` at the end."""
    to: dict[str, UInt32] = {}
    """Share of each locality, in percent; 100 in all."""


class LocalityFailover(Shape, frozen=True, kw_only=True):
    """Where traffic of a region goes when its hosts fail."""

    from_: str = field(name="from", default="")
    """Region."""
    to: str = ""
    """Region."""


class LocalityLoadBalancerSetting(Shape, frozen=True, kw_only=True):
    """Load balancing by locality."""

    distribute: list[LocalityDistribute] = []
    """Shares by locality."""
    failover: list[LocalityFailover] = []
    """Order of regions."""
    failover_priority: list[str] = []
    """Labels by which hosts are ranked: the more of them equal, the better."""
    enabled: bool | None = None
    """Overrides the mesh config."""


class ZoneAwareLbSetting(Shape, frozen=True, kw_only=True):
    """Load balancing that prefers the own zone as far as its capacity goes. The own region comes
    before the others."""

    enabled: bool | None = None
    """Whether it is on; it is if this is unset. Overrides the mesh config."""
    failover: list[LocalityFailover] = []
    """Order of the other regions."""
    failover_priority: list[str] = []
    """Labels by which hosts are ranked first: the more of them equal, the better."""
    min_cluster_size: Annotated[int, Meta(ge=1, le=2**32 - 1)] | None = None
    """Hosts that a service must have in the region; 6 if unset."""


class WarmupConfiguration(Shape, frozen=True, kw_only=True):
    """New hosts get their share gradually."""

    duration: Duration
    """How long."""
    minimum_percent: Annotated[float, Meta(ge=0, le=100)] | None = None
    """Share at the beginning, in percent; 10 if unset."""
    aggression: Annotated[float, Meta(ge=1)] | None = None
    """How fast the share grows; 1 is linear."""


class LoadBalancerSettings(Shape, frozen=True, kw_only=True):
    """How a host is chosen."""

    one_of = (("simple", "consistentHash"),)

    simple: Maybe[
        Literal[
            "UNSPECIFIED", "LEAST_CONN", "RANDOM", "PASSTHROUGH", "ROUND_ROBIN", "LEAST_REQUEST"
        ]
    ] = UNSET
    """A standard algorithm."""
    consistent_hash: Maybe[ConsistentHashLB] = UNSET
    """By a key of the request."""
    locality_lb_setting: Maybe[LocalityLoadBalancerSetting] = UNSET
    """By locality; overrides the mesh config."""
    zone_aware_lb_setting: Maybe[ZoneAwareLbSetting] = UNSET
    """By zone; overrides the mesh config."""
    warmup_duration_secs: Maybe[Duration] = UNSET
    """Use `warmup`."""
    warmup: Maybe[WarmupConfiguration] = UNSET
    """Slow start of new hosts."""


class ClientTLSSettings(Shape, frozen=True, kw_only=True):
    """TLS of connections to a host."""

    mode: Literal["DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"] = "DISABLE"
    """Whether TLS is used, and whose certificate is shown."""
    client_certificate: str = ""
    """File of the client's certificate."""
    private_key: str = ""
    """File of the client's key."""
    ca_certificates: str = ""
    """File of the authorities that may have signed the host's certificate."""
    credential_name: str = ""
    """Secret with certificates, at gateways; or `configmap://NAMESPACE/NAME` with authorities, for
    all."""
    subject_alt_names: list[str] = []
    """Names of which the host's certificate must hold one."""
    sni: str = ""
    """Server name that is sent."""
    insecure_skip_verify: bool | None = None
    """Whether the host's certificate is taken unseen."""
    ca_crl: str = ""
    """File of revoked certificates."""


class TunnelSettings(Shape, frozen=True, kw_only=True):
    """TCP inside HTTP."""

    protocol: str = ""
    """`CONNECT` or `POST`."""
    target_host: str
    """Where the tunnel leads."""
    target_port: UInt32
    """Port there."""


class ProxyProtocol(Shape, frozen=True, kw_only=True):
    """The PROXY protocol, to the host."""

    version: Literal["V1", "V2"] = "V1"
    """Version of the protocol."""


class RetryBudget(Shape, frozen=True, kw_only=True):
    """Limits retries relative to requests."""

    percent: Annotated[float, Meta(ge=0, le=100)] | None = None
    """Share of the active requests; 20 if unset."""
    min_retry_concurrency: UInt32 = 0
    """Retries that are always allowed; 3 if unset."""
    budget_interval: Maybe[AnyDuration] = UNSET
    """Time over which requests are counted; those that are active alone, if 0s or unset."""


class PortTrafficPolicy(Shape, frozen=True, kw_only=True):
    """The policy for one port; replaces the one for all ports whole."""

    port: Maybe[PortSelector] = UNSET
    """Port of the service."""
    load_balancer: Maybe[LoadBalancerSettings] = UNSET
    """How a host is chosen."""
    connection_pool: Maybe[ConnectionPoolSettings] = UNSET
    """Limits."""
    outlier_detection: Maybe[OutlierDetection] = UNSET
    """When a host is left out."""
    tls: Maybe[ClientTLSSettings] = UNSET
    """TLS."""


class TrafficPolicy(Shape, frozen=True, kw_only=True):
    """The policy for all ports."""

    load_balancer: Maybe[LoadBalancerSettings] = UNSET
    """How a host is chosen."""
    connection_pool: Maybe[ConnectionPoolSettings] = UNSET
    """Limits."""
    outlier_detection: Maybe[OutlierDetection] = UNSET
    """When a host is left out."""
    tls: Maybe[ClientTLSSettings] = UNSET
    """TLS."""
    port_level_settings: Annotated[list[PortTrafficPolicy], Meta(max_length=4096)] = []
    """Policies for single ports."""
    tunnel: Maybe[TunnelSettings] = UNSET
    """TCP inside HTTP."""
    proxy_protocol: Maybe[ProxyProtocol] = UNSET
    """The PROXY protocol."""
    retry_budget: Maybe[RetryBudget] = UNSET
    """Limits of retries."""


class Subset(Shape, frozen=True, kw_only=True):
    """Some of a service's endpoints."""

    name: str
    """Its name, as routes use it."""
    labels: dict[str, str] = {}
    """Labels that its endpoints have."""
    traffic_policy: Maybe[TrafficPolicy] = UNSET
    """Overrides that of the host."""


class DestinationRule(Shape, frozen=True, kw_only=True):
    """Policies for traffic to a host, and its subsets."""

    host: str
    """Name of a service in the registry."""
    traffic_policy: Maybe[TrafficPolicy] = UNSET
    """Policy for the whole host."""
    subsets: list[Subset] = []
    """Named sets of endpoints."""
    export_to: list[str] = []
    """Namespaces that see it: `*` all, `.` its own."""
    workload_selector: Maybe[WorkloadSelector] = UNSET
    """Workloads whose calls it concerns; all of the namespace if unset."""
