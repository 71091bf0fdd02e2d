"""Rules of traffic policies: load balancing, limits, outliers, TLS.

Source: https://istio.io/latest/docs/reference/config/networking/destination-rule/#TrafficPolicy
"""

from math import isqrt

from msgspec import UnsetType

from meshbus.api.addresses import is_ip
from meshbus.api.durations import MILLISECOND_NS, nanoseconds
from meshbus.api.networking.destination_rule import (
    ConnectionPoolSettings,
    ConsistentHashLB,
    HTTPSettings,
    LoadBalancerSettings,
    OutlierDetection,
    PortTrafficPolicy,
    RetryBudget,
    TCPSettings,
    TrafficPolicy,
    TunnelSettings,
)
from meshbus.validate.client_tls import check_client_tls
from meshbus.validate.durations import duration_problem
from meshbus.validate.locality import check_locality, check_zones
from meshbus.validate.malformed import independent
from meshbus.validate.names import fqdn_problem
from meshbus.validate.report import Findings

_LARGEST_TABLE = 5000011


@independent
def check_traffic_policy(
    policy: TrafficPolicy | UnsetType, path: str, namespace: str, out: Findings
) -> None:
    """The policy for all ports, and those for single ones, of an object of a namespace."""
    if isinstance(policy, UnsetType):
        return
    parts = (
        policy.outlier_detection,
        policy.connection_pool,
        policy.load_balancer,
        policy.tls,
        policy.tunnel,
        policy.proxy_protocol,
        policy.retry_budget,
    )
    if all(isinstance(part, UnsetType) for part in parts) and not policy.port_level_settings:
        out.required(path, "traffic policy must have at least one field")
        return
    if not isinstance(policy.tunnel, UnsetType) and not isinstance(
        policy.proxy_protocol, UnsetType
    ):
        out.error(path, "only one of tunnel or proxyProtocol can be set", "Conflict")
    _check_parts(policy, path, namespace, out)
    _check_tunnel(policy.tunnel, f"{path}.tunnel", out)
    _check_retry_budget(policy.retry_budget, f"{path}.retryBudget", out)
    for index, port in enumerate(policy.port_level_settings):
        at = f"{path}.portLevelSettings[{index}]"
        if isinstance(port.port, UnsetType):
            out.required(f"{at}.port")
        own = (port.outlier_detection, port.connection_pool, port.load_balancer, port.tls)
        if all(isinstance(part, UnsetType) for part in own):
            out.required(at, "port traffic policy must have at least one field")
        _check_parts(port, at, namespace, out)


@independent
def _check_parts(
    policy: TrafficPolicy | PortTrafficPolicy, path: str, namespace: str, out: Findings
) -> None:
    check_outliers(policy.outlier_detection, f"{path}.outlierDetection", out)
    check_connection_pool(policy.connection_pool, f"{path}.connectionPool", out)
    outliers = not isinstance(policy.outlier_detection, UnsetType)
    _check_load_balancer(policy.load_balancer, f"{path}.loadBalancer", out, outliers=outliers)
    check_client_tls(policy.tls, f"{path}.tls", out, namespace=namespace)


@independent
def _check_duration(value: str | UnsetType, path: str, out: Findings) -> None:
    if isinstance(value, str) and (problem := duration_problem(value)):
        out.error(path, problem)


@independent
def check_outliers(outliers: OutlierDetection | UnsetType, path: str, out: Findings) -> None:
    """When hosts are left out."""
    if isinstance(outliers, UnsetType):
        return
    _check_duration(outliers.base_ejection_time, f"{path}.baseEjectionTime", out)
    _check_duration(outliers.interval, f"{path}.interval", out)
    if outliers.consecutive_errors:
        message = "is deprecated, use consecutive5xxErrors or consecutiveGatewayErrors"
        out.warn(f"{path}.consecutiveErrors", message, "Deprecated")
    local = outliers.consecutive_local_origin_failures
    if local and not outliers.split_external_local_origin_errors:
        message = "has no effect without splitExternalLocalOriginErrors"
        out.error(f"{path}.consecutiveLocalOriginFailures", message, "Conflict")
    for field, value in (
        ("maxEjectionPercent", outliers.max_ejection_percent),
        ("minHealthPercent", outliers.min_health_percent),
    ):
        if not 0 <= value <= 100:
            out.error(f"{path}.{field}", f"percentage {value} is not in range 0..100")


@independent
def check_connection_pool(
    pool: ConnectionPoolSettings | UnsetType, path: str, out: Findings
) -> None:
    """Limits of connections and requests."""
    if isinstance(pool, UnsetType):
        return
    if isinstance(pool.http, UnsetType) and isinstance(pool.tcp, UnsetType):
        out.required(path, "connection pool must have at least one field")
    if not isinstance(pool.http, UnsetType):
        _check_http(pool.http, f"{path}.http", out)
    if not isinstance(pool.tcp, UnsetType):
        _check_tcp(pool.tcp, f"{path}.tcp", out)


@independent
def _check_http(http: HTTPSettings, path: str, out: Findings) -> None:
    for field, value in (
        ("http1MaxPendingRequests", http.http1_max_pending_requests),
        ("http2MaxRequests", http.http2_max_requests),
        ("maxRequestsPerConnection", http.max_requests_per_connection),
        ("maxRetries", http.max_retries),
        ("maxConcurrentStreams", http.max_concurrent_streams),
    ):
        if value < 0:
            out.error(f"{path}.{field}", "must be non-negative")
    _check_duration(http.idle_timeout, f"{path}.idleTimeout", out)
    if http.h2_upgrade_policy == "UPGRADE" and http.use_client_protocol:
        message = "must not be true when h2UpgradePolicy is UPGRADE"
        out.error(f"{path}.useClientProtocol", message, "Conflict")
    if not isinstance(http.http2_keep_alive, UnsetType):
        for field, pause in (
            ("interval", http.http2_keep_alive.interval),
            ("timeout", http.http2_keep_alive.timeout),
        ):
            at = f"{path}.http2KeepAlive.{field}"
            if isinstance(pause, UnsetType):
                out.required(at)
            _check_duration(pause, at, out)


@independent
def _check_tcp(tcp: TCPSettings, path: str, out: Findings) -> None:
    if tcp.max_connections < 0:
        out.error(f"{path}.maxConnections", "must be non-negative")
    _check_duration(tcp.connect_timeout, f"{path}.connectTimeout", out)
    _check_duration(tcp.max_connection_duration, f"{path}.maxConnectionDuration", out)
    if isinstance(tcp.idle_timeout, str) and not _is_off(tcp.idle_timeout):
        _check_duration(tcp.idle_timeout, f"{path}.idleTimeout", out)
    if not isinstance(tcp.tcp_keepalive, UnsetType):
        _check_duration(tcp.tcp_keepalive.time, f"{path}.tcpKeepalive.time", out)
        _check_duration(tcp.tcp_keepalive.interval, f"{path}.tcpKeepalive.interval", out)


def _is_off(timeout: str) -> bool:
    """Whether it is below what is counted: no timeout at all."""
    value = nanoseconds(timeout)
    return value is not None and abs(value) < MILLISECOND_NS


@independent
def _check_load_balancer(
    balancer: LoadBalancerSettings | UnsetType, path: str, out: Findings, *, outliers: bool
) -> None:
    if isinstance(balancer, UnsetType):
        return
    if not isinstance(balancer.consistent_hash, UnsetType):
        _check_hash(balancer.consistent_hash, f"{path}.consistentHash", out)
    locality = f"{path}.localityLbSetting"
    check_locality(balancer.locality_lb_setting, locality, out, outliers=outliers)
    zones = balancer.zone_aware_lb_setting
    check_zones(zones, f"{path}.zoneAwareLbSetting", out, outliers=outliers)
    if not (isinstance(zones, UnsetType) or isinstance(balancer.locality_lb_setting, UnsetType)):
        message = "only one of localityLbSetting or zoneAwareLbSetting can be set"
        out.error(path, message, "Conflict")
    if not isinstance(balancer.warmup, UnsetType):
        _check_duration(balancer.warmup.duration, f"{path}.warmup.duration", out)
        if not isinstance(balancer.warmup_duration_secs, UnsetType):
            out.error(path, "only one of warmupDurationSecs or warmup can be set", "Conflict")


@independent
def _check_hash(hashing: ConsistentHashLB, path: str, out: Findings) -> None:
    if not isinstance(hashing.http_cookie, UnsetType) and not hashing.http_cookie.name:
        out.required(f"{path}.httpCookie.name", "name required for HttpCookie")
    if hashing.minimum_ring_size:
        at = f"{path}.minimumRingSize"
        out.warn(at, "is deprecated, use ringHash.minimumRingSize", "Deprecated")
        algorithms = (hashing.ring_hash, hashing.maglev)
        if not all(isinstance(algorithm, UnsetType) for algorithm in algorithms):
            out.error(at, "only one of minimumRingSize or ringHash/maglev can be set", "Conflict")
    if not isinstance(hashing.maglev, UnsetType):
        size = hashing.maglev.table_size
        if not 0 < size < _LARGEST_TABLE or not _is_prime(size):
            out.error(f"{path}.maglev.tableSize", "must be a prime number below 5000011")


def _is_prime(number: int) -> bool:
    if number < 4:
        return number > 0
    return all(number % factor for factor in (2, *range(3, isqrt(number) + 1, 2)))


@independent
def _check_tunnel(tunnel: TunnelSettings | UnsetType, path: str, out: Findings) -> None:
    if isinstance(tunnel, UnsetType):
        return
    if tunnel.protocol not in ("", "CONNECT", "POST"):
        out.error(f"{path}.protocol", 'must be "CONNECT" or "POST"')
    if not is_ip(tunnel.target_host) and (problem := fqdn_problem(tunnel.target_host)):
        out.error(f"{path}.targetHost", problem)
    if not 1 <= tunnel.target_port <= 65535:
        out.error(f"{path}.targetPort", f"{tunnel.target_port}: port must be between 1-65535")


@independent
def _check_retry_budget(budget: RetryBudget | UnsetType, path: str, out: Findings) -> None:
    if isinstance(budget, UnsetType) or isinstance(budget.budget_interval, UnsetType):
        return
    if (nanoseconds(budget.budget_interval) or 0) < 0:
        out.error(f"{path}.budgetInterval", "must not be negative")
