"""Rules of MeshConfig.

Source: https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/
"""

from msgspec import UNSET, UnsetType

from meshbus.api.addresses import is_ip
from meshbus.api.durations import MILLISECOND_NS, SECOND_NS, nanoseconds
from meshbus.api.mesh.mesh_config import MeshConfig
from meshbus.api.mesh.providers import ExtensionProvider
from meshbus.api.mesh.proxy_config import MeshProxyConfig, PrivateKeyProvider, Tracing
from meshbus.api.networking.destination_rule import TrafficPolicy
from meshbus.api.tls import CURVES
from meshbus.validate.client_tls import check_client_tls
from meshbus.validate.connection_settings import check_connection_settings
from meshbus.validate.durations import duration_problem
from meshbus.validate.http_route import check_retry
from meshbus.validate.locality import check_locality, check_zones
from meshbus.validate.malformed import independent
from meshbus.validate.metadata import ObjectName
from meshbus.validate.names import fqdn_problem, is_label, wildcard_domain_problem
from meshbus.validate.report import Findings
from meshbus.validate.traffic_policy import check_connection_pool, check_outliers

REPORTS_NS = 5 * SECOND_NS
"""Envoy's own time between two reports of its statistics."""
_HOUR_NS = 3600 * SECOND_NS
_AUTO_ALLOCATE = "ISTIO_META_DNS_AUTO_ALLOCATE"


@independent
def check(spec: MeshConfig, name: ObjectName, out: Findings) -> None:
    """Everything but its shape."""
    _check_port(spec.proxy_listen_port, "spec.proxyListenPort", out)
    connect = nanoseconds(spec.connect_timeout) or 0
    if problem := duration_problem(spec.connect_timeout):
        out.error("spec.connectTimeout", problem)
    elif connect > _HOUR_NS:
        out.error("spec.connectTimeout", "must be at most 1h")
    if (nanoseconds(spec.protocol_detection_timeout) or 0) % MILLISECOND_NS:
        out.error("spec.protocolDetectionTimeout", "only whole milliseconds are supported")
    if not isinstance(spec.default_config, UnsetType):
        check_proxy(spec.default_config, "spec.defaultConfig", out)
    check_locality(spec.locality_lb_setting, "spec.localityLbSetting", out, outliers=True)
    check_zones(spec.zone_aware_lb_setting, "spec.zoneAwareLbSetting", out, outliers=True)
    for index, setting in enumerate(spec.service_settings):
        for number, host in enumerate(setting.hosts):
            if problem := wildcard_domain_problem(host):
                out.error(f"spec.serviceSettings[{index}].hosts[{number}]", problem)
    _check_trust(spec, out)
    _check_providers(spec.extension_providers, out)
    check_retry(spec.default_http_retry_policy, "spec.defaultHttpRetryPolicy", out)
    check_retry(spec.default_inbound_http_retry_policy, "spec.defaultInboundHttpRetryPolicy", out)
    _check_traffic(spec.default_traffic_policy, "spec.defaultTrafficPolicy", out)
    if not isinstance(spec.mesh_mtls, UnsetType) and spec.mesh_mtls.ecdh_curves:
        out.error("spec.meshMTLS.ecdhCurves", "mesh TLS does not support ECDH curves configuration")
    if not isinstance(spec.tls_defaults, UnsetType):
        seen: set[str] = set()
        for curve in spec.tls_defaults.ecdh_curves:
            if curve not in CURVES:
                out.warn("spec.tlsDefaults.ecdhCurves", f"detected unrecognized ECDH curve {curve}")
            elif curve in seen:
                out.warn("spec.tlsDefaults.ecdhCurves", f"detected duplicate ECDH curve {curve}")
            seen.add(curve)


@independent
def _check_port(port: int, path: str, out: Findings) -> None:
    if not 1 <= port <= 65535:
        out.error(path, f"{port}: port must be between 1-65535")


def _address_problem(address: str) -> str | None:
    host, colon, port = address.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        return f"{address!r} must be HOST:PORT"
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        return None if is_ip(host[1:-1]) else f"{address!r}: {host!r} is not an IP address"
    if fqdn_problem(host) and not (is_ip(host) and ":" not in host):
        return f"{address!r}: {host!r} is neither a name nor an IP address"
    return None


@independent
def _check_address(address: str, path: str, out: Findings) -> None:
    if problem := _address_problem(address.replace("$(HOST_IP)", "127.0.0.1", 1)):
        out.error(path, problem)


@independent
def check_proxy(proxy: MeshProxyConfig, path: str, out: Findings) -> None:
    """Rules of ProxyConfig, as `defaultConfig` and as an annotation."""
    for field, text in (
        ("configPath", proxy.config_path),
        ("binaryPath", proxy.binary_path),
        ("discoveryAddress", proxy.discovery_address),
        ("serviceCluster", proxy.service_cluster),
    ):
        if text == "":
            out.required(f"{path}.{field}", "must not be empty")
    if _AUTO_ALLOCATE in proxy.proxy_metadata:
        message = "is deprecated by Istio; here names without address always have one"
        out.warn(f"{path}.proxyMetadata.{_AUTO_ALLOCATE}", message, "Deprecated")
    drain = nanoseconds(proxy.drain_duration) or 0
    if problem := duration_problem(proxy.drain_duration):
        out.error(f"{path}.drainDuration", problem)
    elif drain % SECOND_NS:
        out.error(f"{path}.drainDuration", "only whole seconds are supported")
    addresses = {
        "discoveryAddress": proxy.discovery_address,
        "statsdUdpAddress": proxy.statsd_udp_address,
        "envoyMetricsServiceAddress": proxy.envoy_metrics_service_address,
        "zipkinAddress": proxy.zipkin_address,
    }
    for field, service in (
        ("envoyMetricsService", proxy.envoy_metrics_service),
        ("envoyAccessLogService", proxy.envoy_access_log_service),
    ):
        if not isinstance(service, UnsetType):
            addresses[f"{field}.address"] = service.address
            check_client_tls(service.tls_settings, f"{path}.{field}.tlsSettings", out)
    for field, address in addresses.items():
        if address:
            _check_address(address, f"{path}.{field}", out)
    _check_port(proxy.proxy_admin_port, f"{path}.proxyAdminPort", out)
    _check_port(proxy.status_port, f"{path}.statusPort", out)
    if proxy.control_plane_auth_policy == "INHERIT":
        out.error(f"{path}.controlPlaneAuthPolicy", "must be NONE or MUTUAL_TLS")
    for index, pem in enumerate(proxy.ca_certificates_pem):
        if "-----BEGIN CERTIFICATE-----" not in pem:
            at = f"{path}.caCertificatesPem[{index}]"
            out.warn(at, "no PEM certificate is in there: nothing will be trusted")
    if isinstance(proxy.stats_eviction_interval, str):
        problem = eviction_problem(proxy.stats_eviction_interval)
        if problem:
            out.warn(f"{path}.statsEvictionInterval", f"has no effect: {problem}")
    if not isinstance(proxy.connection_settings, UnsetType):
        check_connection_settings(proxy.connection_settings, f"{path}.connectionSettings", out)
    if not isinstance(proxy.tracing, UnsetType):
        _check_tracing(proxy.tracing, f"{path}.tracing", out)
    if not isinstance(proxy.private_key_provider, UnsetType):
        _check_keys(proxy.private_key_provider, f"{path}.privateKeyProvider", out)


def eviction_problem(interval: str, reports_ns: int = REPORTS_NS) -> str:
    """Why Envoy cannot forget unused statistics so often; empty: it can.

    Args:
        reports_ns: Time between two reports.
    Source: Bootstrap.stats_eviction_interval of Envoy.
    """
    length = nanoseconds(interval) or 0
    if length <= 0 or length % reports_ns:
        return f"must be a multiple of the time between reports, {reports_ns / SECOND_NS:g}s"
    return ""


@independent
def _check_tracing(tracing: Tracing, path: str, out: Findings) -> None:
    collectors = {
        "zipkin": tracing.zipkin,
        "lightstep": tracing.lightstep,
        "datadog": tracing.datadog,
        "openCensusAgent": tracing.open_census_agent,
    }
    for field, collector in collectors.items():
        if not isinstance(collector, UnsetType) and field != "openCensusAgent":
            _check_address(collector.address, f"{path}.{field}.address", out)
    if not isinstance(tracing.lightstep, UnsetType) and not tracing.lightstep.access_token:
        out.required(f"{path}.lightstep.accessToken", "access token is required")
    check_client_tls(tracing.tls_settings, f"{path}.tlsSettings", out)
    if not 0 <= tracing.sampling <= 100:
        message = f"{tracing.sampling} is not between 0 and 100: 1 % of requests are traced"
        out.warn(f"{path}.sampling", message)


@independent
def _check_keys(provider: PrivateKeyProvider, path: str, out: Findings) -> None:
    backends = {"cryptomb": provider.cryptomb, "qat": provider.qat}
    set_ = {f: b for f, b in backends.items() if not isinstance(b, UnsetType)}
    if not set_:
        out.required(path, "cryptomb or qat must be set")
    for field, backend in set_.items():
        delay = backend.poll_delay
        at = f"{path}.{field}.pollDelay"
        if isinstance(delay, UnsetType):
            out.required(at)
        elif nanoseconds(delay) == 0:
            out.error(at, "must be non zero")


@independent
def _check_trust(spec: MeshConfig, out: Findings) -> None:
    domains = {"spec.trustDomain": spec.trust_domain}
    for index, alias in enumerate(spec.trust_domain_aliases):
        domains[f"spec.trustDomainAliases[{index}]"] = alias
    for path, domain in domains.items():
        labels = domain.removesuffix(".").split(".")
        if not all(is_label(label) for label in labels):
            out.error(path, f"trust domain name {domain!r} invalid")
    for index, entry in enumerate(spec.ca_certificates):
        path = f"spec.caCertificates[{index}]"
        if entry.pem and entry.spiffe_bundle_url:
            out.error(path, "only one of pem and spiffeBundleUrl can be set", "Conflict")
        elif entry.pem and "-----BEGIN CERTIFICATE-----" not in entry.pem:
            out.warn(f"{path}.pem", "no PEM certificate is in there: nothing will be trusted")
        elif entry.spiffe_bundle_url and not entry.spiffe_bundle_url.startswith("https://"):
            out.warn(f"{path}.spiffeBundleUrl", "only https:// is fetched")


@independent
def _check_providers(providers: list[ExtensionProvider], out: Findings) -> None:
    seen: set[str] = set()
    for index, provider in enumerate(providers):
        path = f"spec.extensionProviders[{index}]"
        if not provider.name:
            out.warn(f"{path}.name", "empty extension provider name: nothing can use it")
        elif provider.name in seen:
            out.warn(
                f"{path}.name", f"duplicate extension provider name {provider.name}", "Duplicate"
            )
        seen.add(provider.name)
        remotes = {
            "envoyExtAuthzHttp": provider.envoy_ext_authz_http,
            "envoyExtAuthzGrpc": provider.envoy_ext_authz_grpc,
            "zipkin": provider.zipkin,
            "lightstep": provider.lightstep,
            "datadog": provider.datadog,
            "opencensus": provider.opencensus,
            "skywalking": provider.skywalking,
            "opentelemetry": provider.opentelemetry,
            "envoyHttpAls": provider.envoy_http_als,
            "envoyTcpAls": provider.envoy_tcp_als,
            "envoyOtelAls": provider.envoy_otel_als,
        }
        for field, remote in remotes.items():
            if isinstance(remote, UnsetType):
                continue
            if not 1 <= remote.port <= 65535:
                out.warn(f"{path}.{field}.port", f"{remote.port}: port must be between 1-65535")
            if problem := _service_problem(remote.service):
                out.warn(f"{path}.{field}.service", problem)


def _service_problem(service: str) -> str | None:
    namespace, slash, host = service.rpartition("/")
    if slash and not is_label(namespace):
        return f"{service!r} must be of the form [NAMESPACE/]HOST"
    return None if is_ip(host) else fqdn_problem(host)


@independent
def _check_traffic(policy: TrafficPolicy | UnsetType, path: str, out: Findings) -> None:
    if isinstance(policy, UnsetType):
        return
    check_connection_pool(policy.connection_pool, f"{path}.connectionPool", out)
    check_outliers(policy.outlier_detection, f"{path}.outlierDetection", out)
    others = {
        "loadBalancer": policy.load_balancer,
        "tls": policy.tls,
        "tunnel": policy.tunnel,
        "proxyProtocol": policy.proxy_protocol,
        "portLevelSettings": policy.port_level_settings or UNSET,
        "retryBudget": policy.retry_budget,
    }
    for field, value in others.items():
        if not isinstance(value, UnsetType):
            message = "only connectionPool and outlierDetection can be set for the mesh"
            out.error(f"{path}.{field}", message)
