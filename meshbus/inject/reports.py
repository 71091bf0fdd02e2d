"""What an Envoy reports to others, as ProxyConfig and annotations say it: pieces of its bootstrap,
and of its command line.

Where a receiver is given by what Envoy cannot use in a bootstrap (a name for statsd's datagrams,
certificates of the mesh, which come when it has started), it reports to itself, and a listener of
its own passes that on.

Source: Istio, pkg/bootstrap/config.go and tools/packaging/common/envoy_bootstrap.json.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from msgspec import UNSET, UnsetType, to_builtins

from meshbus.api.addresses import is_ip
from meshbus.api.durations import MILLISECOND_NS, SECOND_NS, nanoseconds
from meshbus.api.mesh.proxy_config import MeshProxyConfig, RemoteService
from meshbus.api.networking.destination_rule import ClientTLSSettings, TcpKeepalive
from meshbus.inject import annotations as a
from meshbus.inject.ads import TYPE
from meshbus.inject.stats import stats_config
from meshbus.validate.mesh_config import REPORTS_NS, eviction_problem

METRICS_SERVICE = "envoy_metrics_service"
STATSD = "statsd"
STATSD_PORT, METRICS_PORT = 15025, 15026
"""Where an Envoy takes its own reports, to pass them on."""
HOST_IP = "$(HOST_IP)"
"""In an address: the node of the pod."""
_FILE_FLUSH_NS = SECOND_NS
_KUBERNETES_LABELS = 2
"""A name with so many labels or fewer is one of Kubernetes, not of DNS."""


class Reporter(NamedTuple):
    """The proxy that reports."""

    relay: str = "127.0.0.1"
    """An address of its own, that no other proxy listens at."""
    namespace: str = "default"
    domain: str = "cluster.local"
    in_pod: bool = True
    """The kubelet puts the node's address for `$(HOST_IP)`."""


class Reports(NamedTuple):
    """Pieces of a bootstrap."""

    fields: Mapping[str, Any] = {}
    """Of the document."""
    clusters: tuple[dict[str, Any], ...] = ()
    listeners: tuple[dict[str, Any], ...] = ()
    problems: tuple[str, ...] = ()
    """`FIELD: why it has no effect`, for the author."""

    def into(self, document: dict[str, Any]) -> dict[str, Any]:
        """The bootstrap with them."""
        static = document["static_resources"]
        out = {**document, **self.fields}
        pieces = {"clusters": self.clusters, "listeners": self.listeners}
        more = {name: [*static.get(name, ()), *held] for name, held in pieces.items() if held}
        return {**out, "static_resources": {**static, **more}}


NO_REPORTS = Reports()
"""Nothing but what is asked for at Envoy itself."""


def reports_of(notes: Mapping[str, str], proxy: MeshProxyConfig, reporter: Reporter) -> Reports:
    """What a proxy reports.

    Args:
        notes: Annotations of its pod.
        proxy: Its ProxyConfig; valid.
    """
    config = stats_config(notes, proxy)
    parts = [Reports({"stats_config": config} if config else {}), _times(notes, proxy)]
    if proxy.statsd_udp_address:
        parts.append(_statsd(proxy.statsd_udp_address, reporter))
    service = proxy.envoy_metrics_service
    if isinstance(service, UnsetType) or not service.address:
        service = RemoteService(address=proxy.envoy_metrics_service_address)
    if service.address:
        parts.append(_metrics_service(service, reporter))
    sinks = [sink for part in parts for sink in part.fields.get("stats_sinks", ())]
    fields: dict[str, Any] = {k: v for part in parts for k, v in part.fields.items()}
    if sinks:
        fields["stats_sinks"] = sinks
    return Reports(
        fields,
        tuple(c for part in parts for c in part.clusters),
        tuple(one for part in parts for one in part.listeners),
        tuple(problem for part in parts for problem in part.problems),
    )


def file_flush_args(proxy: MeshProxyConfig) -> list[str]:
    """When lines of log files are written: after a second, or what ProxyConfig says, and after so
    many kilobytes. Envoy alone would wait ten seconds, as it does where no time is asked for."""
    wish = proxy.file_flush_interval
    length = (nanoseconds(wish) or 0) if isinstance(wish, str) else _FILE_FLUSH_NS
    args = []
    if length >= MILLISECOND_NS:
        args = ["--file-flush-interval-msec", str(length // MILLISECOND_NS)]
    if proxy.file_flush_min_size_kb:
        args += ["--file-flush-min-size-kb", str(proxy.file_flush_min_size_kb)]
    return args


def _times(notes: Mapping[str, str], proxy: MeshProxyConfig) -> Reports:
    fields: dict[str, Any] = {}
    flush_ns = REPORTS_NS
    if a.STATS_FLUSH in notes:
        flush_ns = nanoseconds(notes[a.STATS_FLUSH]) or REPORTS_NS
        fields["stats_flush_interval"] = _duration(flush_ns)
    said = proxy.stats_eviction_interval
    wish = notes.get(a.STATS_EVICTION) or (said if isinstance(said, str) else "")
    if wish and (problem := eviction_problem(wish, flush_ns)):
        return Reports(fields, problems=(f"statsEvictionInterval: {wish} {problem}",))
    if wish:
        fields["stats_eviction_interval"] = _duration(nanoseconds(wish) or 0)
    return Reports(fields)


def _statsd(target: str, reporter: Reporter) -> Reports:
    host, port = _split(target)
    if host == HOST_IP and not reporter.in_pod:
        return Reports(problems=(f"statsdUdpAddress: {HOST_IP} is known in pods alone",))
    named = host != HOST_IP and not is_ip(host)
    sink: dict[str, Any] = {
        "name": "envoy.stat_sinks.statsd",
        "typed_config": {
            "@type": f"{TYPE}envoy.config.metrics.v3.StatsdSink",
            "address": _address(reporter.relay, STATSD_PORT) if named else _address(host, port),
        },
    }
    fields = {"stats_sinks": [sink]}
    if not named:
        return Reports(fields)
    filters = f"{TYPE}envoy.extensions.filters.udp.udp_proxy.v3"
    route = {"@type": f"{filters}.Route", "cluster": STATSD}
    relay = {
        "name": STATSD,
        "address": _address(reporter.relay, STATSD_PORT, "UDP"),
        "listener_filters": [
            {
                "name": "envoy.filters.udp_listener.udp_proxy",
                "typed_config": {
                    "@type": f"{filters}.UdpProxyConfig",
                    "stat_prefix": STATSD,
                    "matcher": {
                        "on_no_match": {"action": {"name": "route", "typed_config": route}}
                    },
                },
            }
        ],
    }
    return Reports(fields, (_cluster(STATSD, host, port),), (relay,))


def _metrics_service(service: RemoteService, reporter: Reporter) -> Reports:
    host, port = _split(service.address)
    if host == HOST_IP and not reporter.in_pod:
        return Reports(problems=(f"envoyMetricsService.address: {HOST_IP} is known in pods alone",))
    tls = service.tls_settings
    tls = ClientTLSSettings() if isinstance(tls, UnsetType) else tls
    listeners: tuple[dict[str, Any], ...] = ()
    if tls.mode == "ISTIO_MUTUAL":
        # Certificates of the mesh come by a stream that is opened when the clusters of the
        # bootstrap are ready: one that waited for them would wait for itself.
        name = f"outbound|{port}||{_mesh_host(host, reporter)}"
        listeners = (_relay(METRICS_SERVICE, reporter.relay, METRICS_PORT, name),)
        cluster = _cluster(METRICS_SERVICE, reporter.relay, METRICS_PORT)
    else:
        cluster = _cluster(METRICS_SERVICE, host, port)
        if tls.mode in ("SIMPLE", "MUTUAL"):
            if tls.credential_name:
                problem = "a bootstrap can name files alone, not a Secret"
                place = "envoyMetricsService.tlsSettings.credentialName"
                return Reports(problems=(f"{place}: {problem}",))
            cluster["transport_socket"] = _tls_socket(tls)
        if not isinstance(service.tcp_keepalive, UnsetType):
            cluster["upstream_connection_options"] = {
                "tcp_keepalive": _keepalive(service.tcp_keepalive)
            }
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    cluster["typed_extension_protocol_options"] = {
        options: {"@type": TYPE + options, "explicit_http_config": {"http2_protocol_options": {}}}
    }
    sink = {
        "name": "envoy.stat_sinks.metrics_service",
        "typed_config": {
            "@type": f"{TYPE}envoy.config.metrics.v3.MetricsServiceConfig",
            "transport_api_version": "V3",
            "grpc_service": {"envoy_grpc": {"cluster_name": METRICS_SERVICE}},
        },
    }
    return Reports({"stats_sinks": [sink]}, (cluster,), listeners)


def _mesh_host(host: str, reporter: Reporter) -> str:
    """The full name of a service of the mesh."""
    labels = host.rstrip(".").split(".")
    if len(labels) == 1:
        labels.append(reporter.namespace)
    if len(labels) <= _KUBERNETES_LABELS:
        labels.append("svc")
    if labels[-1] == "svc":
        labels.append(reporter.domain)
    return ".".join(labels)


def _relay(name: str, host: str, port: int, cluster: str) -> dict[str, Any]:
    proxy = {
        "@type": f"{TYPE}envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": name,
        "cluster": cluster,
    }
    return {
        "name": name,
        "address": _address(host, port),
        "ignore_global_conn_limit": True,
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]}
        ],
    }


def _cluster(name: str, host: str, port: int) -> dict[str, Any]:
    endpoint = {"address": _address(host, port)}
    return {
        "name": name,
        "type": "STRICT_DNS",
        "dns_lookup_family": "V4_PREFERRED",
        "respect_dns_ttl": True,
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}],
        },
    }


def _tls_socket(tls: ClientTLSSettings) -> dict[str, Any]:
    # Envoy's messages are many and slow to load: only those who need them pay for them.
    from google.protobuf import json_format

    from meshbus.compile.tls_contexts import originated, socket

    message = socket(originated(to_builtins(tls), True))
    found: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return found


def _keepalive(wish: TcpKeepalive) -> dict[str, int]:
    """Whole seconds, as Envoy has them."""
    said = {"keepalive_probes": wish.probes}
    for name, length in (("keepalive_time", wish.time), ("keepalive_interval", wish.interval)):
        if length is not UNSET and isinstance(length, str):
            said[name] = (nanoseconds(length) or 0) // SECOND_NS
    return {name: number for name, number in said.items() if number}


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _address(host: str, port: int, protocol: str = "") -> dict[str, Any]:
    where: dict[str, Any] = {"address": host, "port_value": port}
    return {"socket_address": {"protocol": protocol, **where} if protocol else where}


def _duration(length_ns: int) -> str:
    """A duration as Envoy's JSON has it."""
    whole, rest = divmod(length_ns, SECOND_NS)
    return f"{whole}.{rest:09d}".rstrip("0").rstrip(".") + "s"
