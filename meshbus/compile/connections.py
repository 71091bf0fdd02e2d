"""What handles a connection: HTTP connection managers, TCP proxies and their filters.

`HTTP_FILTERS` is the one table of HTTP filters and their order.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from envoy.config.listener.v3 import listener_components_pb2 as lc_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.http.cors.v3 import cors_pb2
from envoy.extensions.filters.http.dynamic_forward_proxy.v3 import dynamic_forward_proxy_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.listener.http_inspector.v3 import http_inspector_pb2
from envoy.extensions.filters.listener.original_dst.v3 import original_dst_pb2
from envoy.extensions.filters.listener.original_src.v3 import original_src_pb2
from envoy.extensions.filters.listener.proxy_protocol.v3 import proxy_protocol_pb2
from envoy.extensions.filters.listener.tls_inspector.v3 import tls_inspector_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2
from google.protobuf import duration_pb2

from meshbus.compile.connection_settings import (
    NOTHING_SAID,
    ConnectionSettings,
    apply_to_manager,
)
from meshbus.compile.engine import Reader
from meshbus.compile.proxy_headers import NO_WISHES, ProxyHeaders, apply_headers
from meshbus.compile.proxy_logs import NO_LOGS, ProxyLogs
from meshbus.compile.resources import LDS, Resource, encode
from meshbus.compile.settings import MeshSettings
from meshbus.compile.telemetry import TCP_REPORT_S, http_access_log, tcp_access_log, tracing
from meshbus.compile.values import ads, any_of, boolean, duration_of_nanos, seconds, uint32
from meshbus.model.keys import Key

HTTP_FILTERS = (
    "envoy.filters.http.rbac.custom",
    "envoy.filters.http.ext_authz",
    "extensions AUTHN",
    "envoy.filters.http.jwt_authn",
    "extensions AUTHZ",
    "envoy.filters.http.rbac.audit",
    "envoy.filters.http.rbac.deny",
    "envoy.filters.http.rbac.allow",
    "extensions STATS, others",
    "envoy.filters.http.fault",
    "envoy.filters.http.cors",
    "envoy.filters.http.stateful_session",
    "quota",
    "envoy.filters.http.dynamic_forward_proxy",
    "envoy.filters.http.router",
)
"""HTTP filters in the order in which requests meet them.

| filter | where | why here |
|---|---|---|
| rbac.custom, ext_authz | server side, gateways | an own authority comes before all rules of ours |
| extensions | where their objects say | Istio's phases: before tokens, before rules, after both |
| jwt_authn | server side, gateways | before the rules that read what tokens say |
| rbac.audit, deny, allow | server side, gateways | before anything is done for the request |
| fault | client side | a delay or abort stands for the network and the server: before all else |
| cors | client side | preflights are answered without asking anybody |
| stateful_session | client side | chooses the endpoint: last, of requests that are really sent |
| quota | server side | asks the policy service; last before the call: only real calls count |
| dynamic_forward_proxy | HTTP proxy listener | resolves the host that nobody claims |
| router | everywhere | ends the chain |
"""

HCM = "envoy.filters.network.http_connection_manager"
TCP_PROXY = "envoy.filters.network.tcp_proxy"
HTTP_ALPN = ("http/1.1", "h2c")
"""What the HTTP inspector says of plaintext HTTP."""


class Tunnel(NamedTuple):
    """TCP inside an HTTP request to a proxy."""

    target: str
    """`HOST:PORT` that the tunnel leads to."""
    post: bool
    """By POST, else by CONNECT."""


@dataclass(frozen=True, slots=True)
class Reporting:
    """Whether and as which side connections are reported, and what else holds of all of them."""

    log_name: str
    enabled: bool
    """The telemetry service can be reached."""
    logs: ProxyLogs = NO_LOGS
    """Where the mesh config wants them."""
    headers: ProxyHeaders = NO_WISHES
    """What the proxy says of itself and callers, in headers."""
    treatment: ConnectionSettings = NOTHING_SAID
    """How it treats connections."""


def http_filter(name: str, config: Any) -> hcm_pb2.HttpFilter:
    """One HTTP filter."""
    return hcm_pb2.HttpFilter(name=name, typed_config=any_of(config))


def client_filters(
    dns_cache: Any = None,
    extensions: Iterable[hcm_pb2.HttpFilter] = (),
    sessions: Iterable[hcm_pb2.HttpFilter] = (),
) -> list[hcm_pb2.HttpFilter]:
    """Filters of outbound and gateway connection managers, without the router.

    Args:
        sessions: The filter of sticky sessions, where there are any.
        extensions: Filters of extensions of the client side, in their order.
    """
    out = [
        *extensions,
        http_filter("envoy.filters.http.fault", fault_pb2.HTTPFault()),
        http_filter("envoy.filters.http.cors", cors_pb2.Cors()),
        *sessions,
    ]
    if dns_cache is not None:
        out.append(
            http_filter(
                "envoy.filters.http.dynamic_forward_proxy",
                dynamic_forward_proxy_pb2.FilterConfig(dns_cache_config=dns_cache),
            )
        )
    return out


def connection_manager(
    *,
    stat_prefix: str,
    route_name: str,
    filters: Iterable[hcm_pb2.HttpFilter],
    settings: MeshSettings,
    reporting: Reporting,
) -> hcm_pb2.HttpConnectionManager:
    """An HTTP connection manager whose routes come by RDS."""
    paths = reporting.treatment.paths(settings.path_normalization)
    actions = hcm_pb2.HttpConnectionManager.PathWithEscapedSlashesAction
    router = router_pb2.Router(suppress_envoy_headers=not reporting.headers.debug_headers)
    manager = hcm_pb2.HttpConnectionManager(
        stat_prefix=stat_prefix,
        http_filters=[
            *filters,
            http_filter("envoy.filters.http.router", router),
        ],
        stream_idle_timeout=duration_pb2.Duration(),
        upgrade_configs=[hcm_pb2.HttpConnectionManager.UpgradeConfig(upgrade_type="websocket")],
        normalize_path=boolean(paths.normalize),
        merge_slashes=paths.merge_slashes,
        path_with_escaped_slashes_action=actions.Value(paths.escaped_slashes),
        use_remote_address=boolean(False),
    )
    apply_to_manager(manager, reporting.treatment)
    apply_headers(manager, reporting.headers)
    manager.rds.route_config_name = route_name
    manager.rds.config_source.CopyFrom(ads())
    manager.access_log.extend(reporting.logs.http())
    if reporting.enabled:
        manager.access_log.append(http_access_log(reporting.log_name))
        if settings.tracing:
            manager.tracing.CopyFrom(tracing(settings))
    return manager


def encode_listener(
    reader: Reader,
    listener: listener_pb2.Listener,
    reporting: Reporting,
    origins: Iterable[Key] = (),
) -> Resource:
    """The resource of a listener, with what holds of every one."""
    size = reporting.treatment.listener_buffer
    if size is not None:
        listener.per_connection_buffer_limit_bytes.CopyFrom(uint32(size))
    return encode(reader, LDS, listener.name, listener, origins)


def manager_filter(manager: hcm_pb2.HttpConnectionManager) -> lc_pb2.Filter:
    """The network filter of a connection manager."""
    return lc_pb2.Filter(name=HCM, typed_config=any_of(manager))


def tcp_proxy(
    stat_prefix: str,
    clusters: Iterable[tuple[str, int]],
    reporting: Reporting,
    *,
    hashed: bool = False,
    tunnel: Tunnel | None = None,
    idle_ns: int | None = None,
    lifetime_ns: int | None = None,
) -> lc_pb2.Filter:
    """The network filter that sends a connection to one of several clusters by weight. `hashed`:
    connections of one address go to one endpoint. `idle_ns`, `lifetime_ns`: after which a
    connection is closed, without traffic and in any case; None: as Envoy does."""
    proxy = tcp_proxy_pb2.TcpProxy(stat_prefix=stat_prefix)
    if idle_ns is not None:
        proxy.idle_timeout.CopyFrom(duration_of_nanos(idle_ns))
    if lifetime_ns:
        proxy.max_downstream_connection_duration.CopyFrom(duration_of_nanos(lifetime_ns))
    if hashed:
        proxy.hash_policy.add().source_ip.SetInParent()
    if tunnel is not None:
        proxy.tunneling_config.hostname = tunnel.target
        proxy.tunneling_config.use_post = tunnel.post
    targets = list(clusters)
    if len(targets) == 1:
        proxy.cluster = targets[0][0]
    else:
        for name, weight in targets:
            proxy.weighted_clusters.clusters.add(name=name, weight=weight)
    proxy.access_log.extend(reporting.logs.tcp())
    if reporting.enabled:
        proxy.access_log.append(tcp_access_log(reporting.log_name))
        proxy.access_log_options.flush_access_log_on_connected = True
        proxy.access_log_options.access_log_flush_interval.CopyFrom(seconds(TCP_REPORT_S))
    return lc_pb2.Filter(name=TCP_PROXY, typed_config=any_of(proxy))


def log_refused(listener: listener_pb2.Listener, reporting: Reporting) -> None:
    """Connections that no chain takes are logged by the listener itself."""
    for log in reporting.logs.listener():
        log.filter.response_flag_filter.flags.append("NR")
        listener.access_log.append(log)


def wait_for_first_bytes(listener: listener_pb2.Listener, settings: MeshSettings) -> None:
    """How long a client that is silent is waited for, before its protocol is taken for unknown:
    `protocolDetectionTimeout`, 0 for no limit."""
    wait = duration_pb2.Duration()
    wait.FromNanoseconds(settings.protocol_detection_timeout_ns)
    listener.listener_filters_timeout.CopyFrom(wait)
    listener.continue_on_listener_filters_timeout = True


def proxy_protocol_filter() -> lc_pb2.ListenerFilter:
    """Reads who is before a gateway from the PROXY protocol header of a connection."""
    return lc_pb2.ListenerFilter(
        name="envoy.filters.listener.proxy_protocol",
        typed_config=any_of(proxy_protocol_pb2.ProxyProtocol()),
    )


def original_destination_filter() -> lc_pb2.ListenerFilter:
    """Restores the address that captured traffic was going to."""
    return lc_pb2.ListenerFilter(
        name="envoy.filters.listener.original_dst",
        typed_config=any_of(original_dst_pb2.OriginalDst()),
    )


TPROXY_MARK = 1337
"""Of packets between a proxy and its application; the rules of capture know it."""


def original_source_filter() -> lc_pb2.ListenerFilter:
    """Connections to the application have the address of the client, and a mark by which the
    answers find their way back to the proxy."""
    return lc_pb2.ListenerFilter(
        name="envoy.filters.listener.original_src",
        typed_config=any_of(original_src_pb2.OriginalSrc(mark=TPROXY_MARK)),
    )


def tls_inspector_filter() -> lc_pb2.ListenerFilter:
    """Finds out whether a connection is TLS, its SNI and ALPN."""
    return lc_pb2.ListenerFilter(
        name="envoy.filters.listener.tls_inspector",
        typed_config=any_of(tls_inspector_pb2.TlsInspector()),
    )


def http_inspector_filter() -> lc_pb2.ListenerFilter:
    """Finds out whether a plaintext connection is HTTP."""
    return lc_pb2.ListenerFilter(
        name="envoy.filters.listener.http_inspector",
        typed_config=any_of(http_inspector_pb2.HttpInspector()),
    )
