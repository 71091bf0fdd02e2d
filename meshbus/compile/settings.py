"""The mesh config as compile uses it: defaults filled in, names of Istio's MeshConfig."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from meshbus.compile.engine import Reader
from meshbus.compile.findings import NotCompiledError
from meshbus.compile.proxy_logs import NO_LOGS, ProxyLogs, proxy_logs
from meshbus.compile.tls_limits import NO_LIMITS, TlsLimits, limits_of
from meshbus.compile.values import nanos_of
from meshbus.compile.written import entries, fields, texts
from meshbus.model.world import Query

_OF_PROXIES = frozenset({"connectionSettings", "gatewayTopology", "proxyHeaders", "proxyMetadata"})
"""Fields of `defaultConfig` that decide what a proxy is sent."""


@dataclass(frozen=True, slots=True)
class MeshSettings:
    """Mesh-wide settings in force.

    Source: istio.mesh.v1alpha1 MeshConfig reference; defaults as there unless said otherwise.
    """

    root_namespace: str = "istio-system"
    trust_domain: str = "cluster.local"
    trust_domain_aliases: tuple[str, ...] = ()
    registry_only: bool = False
    dynamic_dns: bool = False
    """`outboundTrafficPolicy.mode` ALLOW_ANY_DYNAMIC_DNS: requests to unknown hosts go where their
    names lead."""
    dynamic_tls: dict[str, Any] | None = field(default=None)
    """`outboundTrafficPolicy.tls`: towards those."""
    discovery_selectors: tuple[Mapping[str, Any], ...] = ()
    """`discoverySelectors`; empty: every namespace is looked at."""
    entry_visibility: dict[str, Any] = field(default_factory=dict)
    """`serviceEntryVisibility`, if it applies to proxies (`applyToSidecars`)."""
    auto_mtls: bool = True
    connect_timeout_ns: int = 10_000_000_000
    tracing: bool = True
    sampling_percent: float = 1.0
    retry_policy: dict[str, Any] | None = field(default=None)
    inbound_retry_policy: dict[str, Any] | None = field(default=None)
    """`defaultInboundHttpRetryPolicy`, as written."""
    default_traffic: dict[str, Any] = field(default_factory=dict)
    """`defaultTrafficPolicy`: connectionPool and outlierDetection where no rule has them."""
    proxy_config: dict[str, Any] = field(default_factory=dict)
    """Fields of `defaultConfig`: see `proxy_headers.headers_of`, `on_demand.on_demand_of` and
    `connection_settings.connection_settings_of`."""
    logs: ProxyLogs = NO_LOGS
    """`accessLogFile`, `accessLogFormat`, `accessLogEncoding`, `disableEnvoyListenerLog`,
    `enableEnvoyAccessLogService`, `defaultProviders.accessLogging`."""
    log_service: dict[str, Any] = field(default_factory=dict)
    """`envoyAccessLogService` of `defaultConfig`."""
    policy_checks: bool = True
    """`disablePolicyChecks` is not set."""
    inbound_localhost: bool = False
    """`inboundTrafficPolicy: LOCALHOST`: applications listen on 127.0.0.1."""
    ingress_mode: str = "STRICT"
    """`ingressControllerMode`: OFF, STRICT (Ingress objects of our class), DEFAULT (also those of
    none)."""
    ingress_class: str = "istio"
    ingress_selector: str = "ingressgateway"
    """Label `istio` of the gateways for Ingress objects."""
    dns_refresh_ns: int = 0
    """`dnsRefreshRate`; 0: the default."""
    outbound_stat_name: str = ""
    """`outboundClusterStatName`."""
    inbound_stat_name: str = ""
    """`inboundClusterStatName`."""
    path_normalization: str = "BASE"
    h2_upgrade: bool = False
    tcp_keepalive: dict[str, Any] | None = field(default=None)
    service_export_to: tuple[str, ...] = ("*",)
    virtual_service_export_to: tuple[str, ...] = ("*",)
    destination_rule_export_to: tuple[str, ...] = ("*",)
    protocol_detection_timeout_ns: int = 0
    http_proxy_port: int = 0
    """`proxyHttpPort`: where sidecars are HTTP proxies; 0: nowhere."""
    cluster_local: tuple[tuple[str, bool], ...] = ()
    """`serviceSettings`: (host, whether calls to it stay in the cluster of the caller)."""
    outbound_port: int = 15001
    """`proxyListenPort`: where captured outbound traffic is taken in."""
    inbound_port: int = 15006
    """`proxyInboundListenPort`."""
    locality_lb: dict[str, Any] = field(default_factory=dict)
    """`localityLbSetting`: failover by region is on unless `enabled` is false."""
    zone_aware_lb: dict[str, Any] | None = field(default=None)
    """`zoneAwareLbSetting`, which is on unless `enabled` is false; None: it is not written."""
    mesh_tls: TlsLimits = NO_LIMITS
    """`meshMTLS`: servers of mutual TLS between proxies."""
    tls_defaults: TlsLimits = NO_LIMITS
    """`tlsDefaults`: all other TLS."""
    federated: tuple[str, ...] = ()
    """Trust domains of other meshes whose roots `caCertificates` gives."""

    @property
    def default_pool(self) -> dict[str, Any]:
        """The part of `default_traffic` that also holds towards applications."""
        pool = self.default_traffic.get("connectionPool")
        return {"connectionPool": pool} if pool else {}

    @property
    def accepted_trust_domains(self) -> tuple[str, ...]:
        """Trust domains whose workloads may call those of this mesh: its own, its aliases, and
        those that it has the roots of."""
        every = (self.trust_domain, *self.trust_domain_aliases, *self.federated)
        return tuple(dict.fromkeys(every))


def mesh(reader: Reader) -> MeshSettings:
    """Node: the mesh settings."""
    for entry in reader.entries(Query("mesh.config", "all", None)):
        return settings_of(entry.row.spec)
    return MeshSettings()


def settings_of(spec: dict[str, Any]) -> MeshSettings:
    """The settings of a MeshConfig in JSON form. A field that cannot be read keeps its default."""
    default = MeshSettings()
    proxy = _record(spec, "defaultConfig")
    outbound = _record(spec, "outboundTrafficPolicy")
    visibility = _record(spec, "serviceEntryVisibility")
    sampling = _record(proxy, "tracing").get("sampling", default.sampling_percent)
    return MeshSettings(
        root_namespace=str(spec.get("rootNamespace") or default.root_namespace),
        trust_domain=str(spec.get("trustDomain") or default.trust_domain),
        trust_domain_aliases=tuple(str(a) for a in spec.get("trustDomainAliases") or ()),
        registry_only=outbound.get("mode") == "REGISTRY_ONLY",
        dynamic_dns=outbound.get("mode") == "ALLOW_ANY_DYNAMIC_DNS",
        dynamic_tls=_written(outbound, "tls"),
        discovery_selectors=tuple(entries(spec.get("discoverySelectors"))),
        entry_visibility=visibility if visibility.get("applyToSidecars") is True else {},
        auto_mtls=bool(spec.get("enableAutoMtls", True)),
        connect_timeout_ns=_nanos(spec.get("connectTimeout"), default.connect_timeout_ns),
        tracing=bool(spec.get("enableTracing", True)),
        sampling_percent=_percent(sampling, default.sampling_percent),
        retry_policy=_record(spec, "defaultHttpRetryPolicy") or None,
        inbound_retry_policy=_written(spec, "defaultInboundHttpRetryPolicy"),
        default_traffic={
            name: value
            for name, value in _record(spec, "defaultTrafficPolicy").items()
            if name in ("connectionPool", "outlierDetection") and isinstance(value, dict)
        },
        proxy_config={k: v for k, v in proxy.items() if k in _OF_PROXIES},
        logs=proxy_logs(spec),
        log_service=_record(proxy, "envoyAccessLogService"),
        policy_checks=spec.get("disablePolicyChecks") is not True,
        inbound_localhost=_record(spec, "inboundTrafficPolicy").get("mode") == "LOCALHOST",
        ingress_mode=str(spec.get("ingressControllerMode") or "STRICT").replace(
            "UNSPECIFIED", "STRICT"
        ),
        ingress_class=str(spec.get("ingressClass") or "istio"),
        ingress_selector=str(spec.get("ingressSelector") or "ingressgateway"),
        dns_refresh_ns=_nanos(spec.get("dnsRefreshRate"), 0),
        outbound_stat_name=str(spec.get("outboundClusterStatName") or ""),
        inbound_stat_name=str(spec.get("inboundClusterStatName") or ""),
        path_normalization=str(
            _record(spec, "pathNormalization").get("normalization") or default.path_normalization
        ).replace("DEFAULT", "BASE"),
        h2_upgrade=spec.get("h2UpgradePolicy") == "UPGRADE",
        tcp_keepalive=_record(spec, "tcpKeepalive") or None,
        service_export_to=_names(spec, "defaultServiceExportTo"),
        virtual_service_export_to=_names(spec, "defaultVirtualServiceExportTo"),
        destination_rule_export_to=_names(spec, "defaultDestinationRuleExportTo"),
        protocol_detection_timeout_ns=_nanos(spec.get("protocolDetectionTimeout"), 0),
        http_proxy_port=_port(spec.get("proxyHttpPort")),
        cluster_local=tuple(
            (host.lower(), fields(setting.get("settings")).get("clusterLocal") is True)
            for setting in entries(spec.get("serviceSettings"))
            for host in texts(setting.get("hosts"))
        ),
        outbound_port=_port(spec.get("proxyListenPort")) or default.outbound_port,
        inbound_port=_port(spec.get("proxyInboundListenPort")) or default.inbound_port,
        locality_lb=_record(spec, "localityLbSetting"),
        zone_aware_lb=_written(spec, "zoneAwareLbSetting"),
        mesh_tls=limits_of(_record(spec, "meshMTLS")),
        tls_defaults=limits_of(_record(spec, "tlsDefaults")),
        federated=_federated(spec),
    )


def _federated(spec: dict[str, Any]) -> tuple[str, ...]:
    """Source: MeshConfig.caCertificates[].trustDomains."""
    entries = spec.get("caCertificates")
    named = [
        str(domain)
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, dict)
        for domain in entry.get("trustDomains") or ()
    ]
    return tuple(sorted(set(named)))


def _record(spec: dict[str, Any], name: str) -> dict[str, Any]:
    value = spec.get(name)
    return value if isinstance(value, dict) else {}


def _written(spec: dict[str, Any], name: str) -> dict[str, Any] | None:
    value = spec.get(name)
    return value if isinstance(value, dict) else None


def _names(spec: dict[str, Any], name: str) -> tuple[str, ...]:
    value = spec.get(name)
    return tuple(str(item) for item in value) if isinstance(value, list) and value else ("*",)


def _port(value: Any) -> int:
    return value if isinstance(value, int) and 0 < value < 65536 else 0


def _percent(value: Any, default: float) -> float:
    """Source: Istio, proxyConfigSamplingValue: what is more than everything is the default."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and 0 <= value <= 100 else default


def _nanos(value: Any, default: int) -> int:
    if not isinstance(value, str):
        return default
    try:
        return nanos_of(value)
    except NotCompiledError:
        return default
