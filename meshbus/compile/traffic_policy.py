"""DestinationRule: the policy in force for one port and subset, and what it makes of a cluster."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from envoy.config.cluster.v3 import circuit_breaker_pb2, cluster_pb2, outlier_detection_pb2
from envoy.config.common.matcher.v3 import matcher_pb2
from envoy.config.core.v3 import address_pb2, base_pb2, protocol_pb2, proxy_protocol_pb2
from envoy.extensions.transport_sockets.proxy_protocol.v3 import upstream_proxy_protocol_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from envoy.type.v3 import percent_pb2
from google.protobuf import duration_pb2
from google.protobuf.unknown_fields import UnknownFieldSet

from meshbus.api.health_check import HEALTH_CHECK
from meshbus.api.sticky_session import STICKY_SESSION
from meshbus.compile.engine import Reader
from meshbus.compile.findings import Finding, NotCompiledError, Report
from meshbus.compile.locality import Ranking, is_on
from meshbus.compile.names import HTTP2, is_http
from meshbus.compile.resources import field as encoded_field
from meshbus.compile.settings import MeshSettings
from meshbus.compile.tls_contexts import plaintext
from meshbus.compile.values import any_of, boolean, duration, duration_of_nanos, uint32
from meshbus.model.keys import Key

HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
UNLIMITED = 4294967295
_FIELDS = (
    "connectionPool",
    "loadBalancer",
    "outlierDetection",
    "tls",
    "proxyProtocol",
    "tunnel",
    "retryBudget",
)
_PORT_FIELDS = ("connectionPool", "loadBalancer", "outlierDetection", "tls")
_SIMPLE = {
    "": cluster_pb2.Cluster.LEAST_REQUEST,
    "UNSPECIFIED": cluster_pb2.Cluster.LEAST_REQUEST,
    "LEAST_CONN": cluster_pb2.Cluster.LEAST_REQUEST,
    "LEAST_REQUEST": cluster_pb2.Cluster.LEAST_REQUEST,
    "ROUND_ROBIN": cluster_pb2.Cluster.ROUND_ROBIN,
    "RANDOM": cluster_pb2.Cluster.RANDOM,
    "PASSTHROUGH": cluster_pb2.Cluster.CLUSTER_PROVIDED,
}


class Subset(NamedTuple):
    """One subset of a rule."""

    name: str
    labels: dict[str, str]
    policy: dict[str, Any]
    origin: Key
    path: str


class Rule(NamedTuple):
    """Destination rules of one host, merged."""

    policy: dict[str, Any]
    policy_origin: Key | None
    subsets: tuple[Subset, ...]
    origins: tuple[Key, ...]
    losses: tuple[Finding, ...] = ()
    """What of a rule has no effect, because another one of the host says it."""
    selects: bool = False
    """It is for workloads that it selects."""
    health: str = ""
    """Annotation `traffic.meshbus.io/health-check`, of the first that has one."""
    session: str = ""
    """Annotation `traffic.meshbus.io/sticky-session`, of the first that has one."""

    def subset(self, name: str) -> Subset | None:
        """A subset by name."""
        return next((s for s in self.subsets if s.name == name), None)


NO_RULE = Rule({}, None, (), ())


def merged_rule(reader: Reader, keys: tuple[Key, ...]) -> Rule:
    """Node: several rules of one host as one. The first (oldest) that has a trafficPolicy gives it,
    and of subsets of one name the first stays.

    Source: Istio, mergeDestinationRule (pilot/pkg/model/destination_rule.go).
    """
    policy: dict[str, Any] = {}
    policy_origin: Key | None = None
    subsets: dict[str, Subset] = {}
    origins = []
    report = Report()
    selects = False
    health = session = ""
    for key in keys:
        row = reader.get(key)
        if row is None:
            continue
        origins.append(key)
        selects |= bool(row.spec.get("workloadSelector"))
        own = row.spec.get("trafficPolicy") or {}
        health = health or row.annotations.get(HEALTH_CHECK, "")
        session = session or row.annotations.get(STICKY_SESSION, "")
        if own and policy_origin is None:
            policy, policy_origin = own, key
        elif own and policy_origin is not None:
            report.add(key, "spec.trafficPolicy", _taken(policy_origin, "the trafficPolicy"))
        for index, subset in enumerate(row.spec.get("subsets") or ()):
            name = str(subset.get("name", ""))
            if name in subsets:
                message = _taken(subsets[name].origin, f"subset {name}")
                report.add(key, f"spec.subsets[{index}]", message)
            elif name:
                subsets[name] = Subset(
                    name,
                    dict(subset.get("labels") or {}),
                    subset.get("trafficPolicy") or {},
                    key,
                    f"spec.subsets[{index}]",
                )
    held = tuple(subsets.values())
    losses = report.findings()
    return Rule(policy, policy_origin, held, tuple(origins), losses, selects, health, session)


def _taken(winner: Key, what: str) -> str:
    return f"DestinationRule {winner.namespace}/{winner.name} of the same host gives {what}"


def policy_in_force(
    rule: Rule, port: int, subset: Subset | None, *, affinity: bool = False
) -> dict[str, Any]:
    """The traffic policy of one port, and of one subset of it.

    Port-level settings replace the rule's whole; a subset's fields replace the rule's one by one.
    `affinity`: the service has `sessionAffinity: ClientIP`, which counts unless a rule says how
    endpoints are chosen.
    Source: Istio, TrafficPolicy reference and MergeTrafficPolicy.
    """
    policy = _at_port({}, rule.policy, port)
    if subset is not None:
        policy = _at_port(policy, subset.policy, port)
    balancer = policy.get("loadBalancer") or {}
    if affinity and not balancer.keys() & {"simple", "consistentHash"}:
        hashed = {"useSourceIp": True, "maglev": {}}
        policy["loadBalancer"] = {**balancer, "consistentHash": hashed}
    return policy


def _at_port(base: dict[str, Any], policy: dict[str, Any], port: int) -> dict[str, Any]:
    out = dict(base)
    for field in _FIELDS:
        if policy.get(field) is not None:
            out[field] = policy[field]
    for settings in policy.get("portLevelSettings") or ():
        if (settings.get("port") or {}).get("number") == port:
            for field in _PORT_FIELDS:
                out.pop(field, None)
                if settings.get(field) is not None:
                    out[field] = settings[field]
    return out


def hash_policy_of(policy: dict[str, Any]) -> dict[str, Any] | None:
    """`loadBalancer.consistentHash`, when the policy has one."""
    found = (policy.get("loadBalancer") or {}).get("consistentHash")
    return found if isinstance(found, dict) else None


def apply_connection_pool(
    cluster: cluster_pb2.Cluster,
    options: http_protocol_options_pb2.HttpProtocolOptions,
    policy: dict[str, Any],
    settings: MeshSettings,
) -> None:
    """Circuit breakers, timeouts, keepalive and limits of connections.

    Without settings every limit of Envoy is lifted, as in Istio.
    """
    pool = policy.get("connectionPool") or {}
    tcp = pool.get("tcp") or {}
    http = pool.get("http") or {}
    cluster.circuit_breakers.thresholds.append(
        circuit_breaker_pb2.CircuitBreakers.Thresholds(
            max_connections=uint32(tcp.get("maxConnections") or UNLIMITED),
            max_pending_requests=uint32(http.get("http1MaxPendingRequests") or UNLIMITED),
            max_requests=uint32(http.get("http2MaxRequests") or UNLIMITED),
            max_retries=uint32(http.get("maxRetries") or UNLIMITED),
            track_remaining=True,
        )
    )
    budget = policy.get("retryBudget")
    if budget is not None:
        _apply_retry_budget(cluster.circuit_breakers.thresholds[0], budget)
    if tcp.get("connectTimeout"):
        cluster.connect_timeout.CopyFrom(
            duration(tcp["connectTimeout"], "trafficPolicy.connectionPool.tcp.connectTimeout")
        )
    else:
        cluster.connect_timeout.CopyFrom(duration_of_nanos(settings.connect_timeout_ns))
    keepalive = tcp.get("tcpKeepalive") or settings.tcp_keepalive
    if keepalive is not None:
        cluster.upstream_connection_options.tcp_keepalive.CopyFrom(_keepalive(keepalive))
    common = options.common_http_protocol_options
    if http.get("maxRequestsPerConnection"):
        common.max_requests_per_connection.CopyFrom(uint32(http["maxRequestsPerConnection"]))
    for section, found in (("http", http), ("tcp", tcp)):
        if found.get("idleTimeout"):
            where = f"connectionPool.{section}.idleTimeout"
            common.idle_timeout.CopyFrom(duration(found["idleTimeout"], where))
            break
    if tcp.get("maxConnectionDuration"):
        common.max_connection_duration.CopyFrom(
            duration(tcp["maxConnectionDuration"], "connectionPool.tcp.maxConnectionDuration")
        )


def _apply_retry_budget(
    thresholds: circuit_breaker_pb2.CircuitBreakers.Thresholds, budget: dict[str, Any]
) -> None:
    """Retries in proportion to the active requests, instead of a fixed number of them."""
    thresholds.ClearField("max_retries")
    share = budget.get("percent")
    thresholds.retry_budget.budget_percent.value = 20.0 if share is None else float(share)
    thresholds.retry_budget.min_retry_concurrency.CopyFrom(
        uint32(budget.get("minRetryConcurrency") or 3)
    )
    if budget.get("budgetInterval"):
        # Known to Envoy 1.40, and not yet to xds-protos 1.85: by number until it is.
        interval = duration(budget["budgetInterval"], "trafficPolicy.retryBudget.budgetInterval")
        encoded = interval.SerializeToString(deterministic=True)
        thresholds.retry_budget.MergeFromString(encoded_field(BUDGET_INTERVAL, encoded))


BUDGET_INTERVAL = 3
"""Number of `RetryBudget.budget_interval`."""


def budget_intervals(cluster: cluster_pb2.Cluster) -> list[str]:
    """What `_apply_retry_budget` has written of each threshold, which JSON would leave out: empty
    where there is none."""
    out = []
    for thresholds in cluster.circuit_breakers.thresholds:
        found = ""
        unknown = UnknownFieldSet(thresholds.retry_budget)
        for index in range(len(unknown)):
            if unknown[index].field_number == BUDGET_INTERVAL:
                found = duration_pb2.Duration.FromString(unknown[index].data).ToJsonString()
        out.append(found)
    return out


def _keepalive(keepalive: dict[str, Any]) -> address_pb2.TcpKeepalive:
    out = address_pb2.TcpKeepalive()
    if keepalive.get("probes"):
        out.keepalive_probes.CopyFrom(uint32(keepalive["probes"]))
    if keepalive.get("time"):
        out.keepalive_time.CopyFrom(
            uint32(duration(keepalive["time"], "tcpKeepalive.time").seconds)
        )
    if keepalive.get("interval"):
        out.keepalive_interval.CopyFrom(
            uint32(duration(keepalive["interval"], "tcpKeepalive.interval").seconds)
        )
    return out


def apply_protocol(
    options: http_protocol_options_pb2.HttpProtocolOptions,
    protocol: str,
    policy: dict[str, Any],
    settings: MeshSettings,
    *,
    router: bool = False,
) -> bool:
    """Which HTTP version goes upstream. True when the cluster speaks HTTP/2 by declaration.

    Where nothing is declared a sidecar keeps what its application speaks; a router does not: its
    clients speak HTTP/2 whatever servers can.
    Source: Istio, setUpstreamProtocol and shouldH2Upgrade; `useClientProtocol` before any upgrade,
    as the DestinationRule reference says.
    """
    http = (policy.get("connectionPool") or {}).get("http") or {}
    wish = http.get("h2UpgradePolicy")
    upgrade = wish == "UPGRADE" and (is_http(protocol) or protocol == "")
    upgrade |= settings.h2_upgrade and wish != "DO_NOT_UPGRADE" and is_http(protocol)
    h2_options = _http2(http)
    kept = protocol == "" and not router and not upgrade
    if http.get("useClientProtocol") or kept:
        chosen = options.use_downstream_protocol_config
        chosen.http_protocol_options.SetInParent()
        chosen.http2_protocol_options.CopyFrom(h2_options)
        return False
    if protocol in HTTP2 or upgrade:
        options.explicit_http_config.http2_protocol_options.CopyFrom(h2_options)
        return True
    options.explicit_http_config.http_protocol_options.SetInParent()
    return False


def _http2(http: dict[str, Any]) -> protocol_pb2.Http2ProtocolOptions:
    out = protocol_pb2.Http2ProtocolOptions()
    if http.get("maxConcurrentStreams"):
        out.max_concurrent_streams.CopyFrom(uint32(http["maxConcurrentStreams"]))
    alive = http.get("http2KeepAlive")
    if alive:
        out.connection_keepalive.CopyFrom(
            protocol_pb2.KeepaliveSettings(
                interval=duration(alive.get("interval", "0s")),
                timeout=duration(alive.get("timeout", "0s")),
            )
        )
    return out


def apply_options(
    cluster: cluster_pb2.Cluster, options: http_protocol_options_pb2.HttpProtocolOptions
) -> None:
    """Put the HTTP options on the cluster."""
    cluster.typed_extension_protocol_options[HTTP_OPTIONS].CopyFrom(any_of(options))


def apply_outlier_detection(cluster: cluster_pb2.Cluster, policy: dict[str, Any]) -> None:
    """Passive health checks. Success-rate ejection is off; the panic threshold is
    `minHealthPercent`, 0 by default.

    Source: Istio, applyOutlierDetection.
    """
    spec = policy.get("outlierDetection")
    if spec is None:
        return
    out = outlier_detection_pb2.OutlierDetection(enforcing_success_rate=uint32(0))
    path = "trafficPolicy.outlierDetection"
    if spec.get("consecutive5xxErrors") is not None:
        count = int(spec["consecutive5xxErrors"])
        out.consecutive_5xx.CopyFrom(uint32(count))
        out.enforcing_consecutive_5xx.CopyFrom(uint32(100 if count > 0 else 0))
    gateway = spec.get("consecutiveGatewayErrors")
    if gateway is None and spec.get("consecutiveErrors"):
        gateway = spec["consecutiveErrors"]
    if gateway is not None:
        out.consecutive_gateway_failure.CopyFrom(uint32(int(gateway)))
        out.enforcing_consecutive_gateway_failure.CopyFrom(uint32(100 if int(gateway) > 0 else 0))
    if spec.get("interval"):
        out.interval.CopyFrom(duration(spec["interval"], f"{path}.interval"))
    if spec.get("baseEjectionTime"):
        out.base_ejection_time.CopyFrom(
            duration(spec["baseEjectionTime"], f"{path}.baseEjectionTime")
        )
    if spec.get("maxEjectionPercent"):
        out.max_ejection_percent.CopyFrom(uint32(spec["maxEjectionPercent"]))
    else:
        # The default of a tenth means "one at least" to people, as it did to Envoy once: with
        # fewer than ten endpoints nothing would ever be ejected, and no locality failed over.
        out.always_eject_one_host.CopyFrom(boolean(True))
    if spec.get("splitExternalLocalOriginErrors"):
        out.split_external_local_origin_errors = True
        if spec.get("consecutiveLocalOriginFailures"):
            out.consecutive_local_origin_failure.CopyFrom(
                uint32(spec["consecutiveLocalOriginFailures"])
            )
            out.enforcing_consecutive_local_origin_failure.CopyFrom(uint32(100))
        out.enforcing_local_origin_success_rate.CopyFrom(uint32(0))
    cluster.outlier_detection.CopyFrom(out)
    cluster.common_lb_config.healthy_panic_threshold.CopyFrom(
        percent_pb2.Percent(value=float(spec.get("minHealthPercent") or 0))
    )


def apply_error_codes(
    options: http_protocol_options_pb2.HttpProtocolOptions, policy: dict[str, Any]
) -> None:
    """Which status codes count as errors, when not every 5xx does."""
    codes = (policy.get("outlierDetection") or {}).get("outlierDetectionHttpErrorCodes") or ()
    matchers = [_status_matcher(int(code)) for code in codes]
    if len(matchers) == 1:
        options.outlier_detection.error_matcher.CopyFrom(matchers[0])
    elif matchers:
        options.outlier_detection.error_matcher.or_match.rules.extend(matchers)


def _status_matcher(code: int) -> matcher_pb2.MatchPredicate:
    out = matcher_pb2.MatchPredicate()
    header = out.http_response_headers_match.headers.add(name=":status")
    header.string_match.exact = str(code)
    return out


def apply_locality(cluster: cluster_pb2.Cluster, ranking: Ranking | None) -> None:
    """Keep to the weights of localities where the policy names localities.

    Source: Istio, applyLocalityLoadBalancer: else LEAST_REQUEST would lose sight of the whole.
    """
    if ranking is not None and ranking.weighted:
        cluster.common_lb_config.locality_weighted_lb_config.SetInParent()


_BY_ZONES = frozenset(
    {
        cluster_pb2.Cluster.LEAST_REQUEST,
        cluster_pb2.Cluster.ROUND_ROBIN,
        cluster_pb2.Cluster.RANDOM,
    }
)
"""Load balancers of Envoy that heed zones."""
_WITH_LOCALITIES = frozenset({cluster_pb2.Cluster.EDS, cluster_pb2.Cluster.STRICT_DNS})


def apply_zones(
    cluster: cluster_pb2.Cluster, setting: Mapping[str, Any] | None, *, elsewhere: bool
) -> bool:
    """Prefer the zone of the proxy, as far as its endpoints have their share of all calls.

    Envoy does so wherever it knows the zones of its own kind and nothing says that it shall not.

    Args:
        setting: `zoneAwareLbSetting` in force; None: nothing is said.
        elsewhere: Other clusters of the proxy heed zones.
    Returns:
        False: it cannot, for the load balancer chooses in another way.
    Source: envoy.config.cluster.v3.Cluster.CommonLbConfig.ZoneAwareLbConfig; Istio,
    ZoneAwareLoadBalancerSetting reference.
    """
    common = cluster.common_lb_config
    if cluster.lb_policy not in _BY_ZONES or cluster.type not in _WITH_LOCALITIES:
        return not is_on(setting)
    if is_on(setting):
        zones = common.zone_aware_lb_config
        zones.SetInParent()
        least = (setting or {}).get("minClusterSize")
        if least is not None:
            zones.min_cluster_size.value = int(least)
    elif (setting is not None or elsewhere) and not common.HasField("locality_weighted_lb_config"):
        common.zone_aware_lb_config.routing_enabled.SetInParent()
    return True


def apply_load_balancer(
    cluster: cluster_pb2.Cluster, policy: dict[str, Any], protocol: str = ""
) -> None:
    """How one of the endpoints is chosen; LEAST_REQUEST by default, MAGLEV for Redis, whose keys
    must keep their server.

    Raises:
        NotCompiledError: An unknown policy, or one that is not compiled.
    """
    spec = policy.get("loadBalancer") or {}
    hashed = hash_policy_of(policy)
    if cluster.type == cluster_pb2.Cluster.ORIGINAL_DST:
        cluster.lb_policy = cluster_pb2.Cluster.CLUSTER_PROVIDED
        return
    if protocol == "REDIS" and hashed is None and not spec.get("simple"):
        cluster.lb_policy = cluster_pb2.Cluster.MAGLEV
        return
    if hashed is not None:
        _apply_hash(cluster, hashed)
        return
    simple = str(spec.get("simple") or "")
    if simple not in _SIMPLE:
        raise NotCompiledError("trafficPolicy.loadBalancer.simple", f"unknown policy {simple}")
    cluster.lb_policy = _SIMPLE[simple]
    if simple == "PASSTHROUGH":
        cluster.type = cluster_pb2.Cluster.ORIGINAL_DST
        cluster.ClearField("eds_cluster_config")
        cluster.ClearField("load_assignment")
        cluster.common_lb_config.ClearField("locality_weighted_lb_config")
        return
    warmup = spec.get("warmup") or (
        {"duration": spec["warmupDurationSecs"]} if spec.get("warmupDurationSecs") else None
    )
    if warmup:
        _apply_warmup(cluster, warmup)


def hashes_source(policy: dict[str, Any]) -> bool:
    """Connections of one address go to one endpoint."""
    return bool((hash_policy_of(policy) or {}).get("useSourceIp"))


def apply_proxy_protocol(cluster: cluster_pb2.Cluster, policy: dict[str, Any]) -> None:
    """Tell endpoints the address of the caller before anything else."""
    spec = policy.get("proxyProtocol")
    if spec is None:
        return
    version = str(spec.get("version") or "V1")
    matches = cluster.transport_socket_matches
    if cluster.HasField("transport_socket") or not matches:
        inner = cluster.transport_socket if cluster.HasField("transport_socket") else plaintext()
        cluster.transport_socket.CopyFrom(_announcing(inner, version))
    for match in matches:
        match.transport_socket.CopyFrom(_announcing(match.transport_socket, version))


def _announcing(inner: base_pb2.TransportSocket, version: str) -> base_pb2.TransportSocket:
    config = upstream_proxy_protocol_pb2.ProxyProtocolUpstreamTransport(transport_socket=inner)
    config.config.version = proxy_protocol_pb2.ProxyProtocolConfig.Version.Value(version)
    return base_pb2.TransportSocket(
        name="envoy.transport_sockets.upstream_proxy_protocol", typed_config=any_of(config)
    )


def _apply_hash(cluster: cluster_pb2.Cluster, hashed: dict[str, Any]) -> None:
    if "maglev" in hashed:
        cluster.lb_policy = cluster_pb2.Cluster.MAGLEV
        size = (hashed["maglev"] or {}).get("tableSize")
        if size:
            cluster.maglev_lb_config.table_size.value = int(size)
        return
    cluster.lb_policy = cluster_pb2.Cluster.RING_HASH
    ring = (hashed.get("ringHash") or {}).get("minimumRingSize") or hashed.get("minimumRingSize")
    cluster.ring_hash_lb_config.minimum_ring_size.value = int(ring or 1024)


def _apply_warmup(cluster: cluster_pb2.Cluster, warmup: dict[str, Any]) -> None:
    if cluster.lb_policy == cluster_pb2.Cluster.ROUND_ROBIN:
        slow = cluster.round_robin_lb_config.slow_start_config
    elif cluster.lb_policy == cluster_pb2.Cluster.LEAST_REQUEST:
        slow = cluster.least_request_lb_config.slow_start_config
    else:
        return
    slow.slow_start_window.CopyFrom(
        duration(warmup["duration"], "trafficPolicy.loadBalancer.warmup.duration")
    )
    if warmup.get("minimumPercent") is not None:
        slow.min_weight_percent.value = float(warmup["minimumPercent"])
    if warmup.get("aggression") is not None:
        slow.aggression.default_value = float(warmup["aggression"])
        slow.aggression.runtime_key = "meshbus.warmup.aggression"


def dns_refresh(cluster: cluster_pb2.Cluster, settings: MeshSettings) -> None:
    """Names are resolved every minute or as often as the mesh says, or as their records say."""
    cluster.dns_refresh_rate.CopyFrom(duration_of_nanos(settings.dns_refresh_ns or 60_000_000_000))
    cluster.respect_dns_ttl = True
