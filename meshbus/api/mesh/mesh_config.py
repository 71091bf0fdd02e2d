"""MeshConfig: settings of the whole mesh.

Source: https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/
"""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, field

from meshbus.api.mesh.providers import ExtensionProvider
from meshbus.api.mesh.proxy_config import MeshProxyConfig
from meshbus.api.networking.destination_rule import (
    ClientTLSSettings,
    LocalityLoadBalancerSetting,
    TcpKeepalive,
    TrafficPolicy,
    ZoneAwareLbSetting,
)
from meshbus.api.networking.virtual_service import HTTPRetry
from meshbus.api.shape import AnyDuration, Free, Int32, Maybe, Shape, UInt32


class MeshOutboundTrafficPolicy(Shape, frozen=True, kw_only=True):
    """What happens to traffic to unknown hosts."""

    mode: Annotated[
        Literal["REGISTRY_ONLY", "ALLOW_ANY", "ALLOW_ANY_DYNAMIC_DNS"],
        Meta(extra={"numbers": {0: "REGISTRY_ONLY", 1: "ALLOW_ANY", 3: "ALLOW_ANY_DYNAMIC_DNS"}}),
    ] = "REGISTRY_ONLY"
    """Refused, or passed on."""
    tls: Maybe[ClientTLSSettings] = UNSET
    """TLS towards hosts that are resolved as they are met."""


class MeshInboundTrafficPolicy(Shape, frozen=True, kw_only=True):
    """Where the application is reached."""

    mode: Literal["PASSTHROUGH", "LOCALHOST"] = "PASSTHROUGH"
    """At its address, or at localhost."""


class LabelSelectorRequirement(Shape, frozen=True, kw_only=True):
    """One requirement on labels."""

    key: str = ""
    """Name of the label."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """What its value must be."""
    values: list[str] = []
    """Values of In and NotIn."""


class NamespaceSelector(Shape, frozen=True, kw_only=True):
    """Namespaces by their labels; all requirements must be met, an empty selector is all."""

    match_labels: dict[str, str] = {}
    """Labels that must have these values."""
    match_expressions: list[LabelSelectorRequirement] = []
    """Further requirements."""


Visibility = Literal["VISIBILITY_UNSPECIFIED", "NONE", "NAMESPACE", "PUBLIC"]


class VisibilityRule(Shape, frozen=True, kw_only=True):
    """What a ServiceEntry must be like."""

    namespace_selector: Maybe[NamespaceSelector] = UNSET
    """Where it is."""


class VisibilityPolicy(Shape, frozen=True, kw_only=True):
    """Who sees the ServiceEntries that match all of its rules."""

    visibility: Visibility = "VISIBILITY_UNSPECIFIED"
    """Nobody, their namespace, or whom they are exported to."""
    matching_rules: list[VisibilityRule] = []
    """Its rules."""


class ServiceEntryVisibility(Shape, frozen=True, kw_only=True):
    """Who sees ServiceEntries: as the first policy says that matches."""

    default_visibility: Visibility = "VISIBILITY_UNSPECIFIED"
    """Where no policy matches; PUBLIC if unspecified."""
    apply_to_sidecars: bool = False
    """Whether sidecars and gateways follow it."""
    policies: list[VisibilityPolicy] = []
    """In order."""


class ServiceSettingsFields(Shape, frozen=True, kw_only=True):
    """Settings of services."""

    cluster_local: bool = False
    """Whether calls stay in their cluster."""


class ServiceSettings(Shape, frozen=True, kw_only=True):
    """Settings of services by host."""

    settings: Maybe[ServiceSettingsFields] = UNSET
    """The settings."""
    hosts: list[str] = []
    """Hosts; `*` may stand first."""


class DefaultProviders(Shape, frozen=True, kw_only=True):
    """Providers that are used unless a Telemetry says otherwise."""

    tracing: list[str] = []
    """Of spans."""
    metrics: list[str] = []
    """Of metrics."""
    access_logging: list[str] = []
    """Of logs."""


class PathNormalization(Shape, frozen=True, kw_only=True):
    """How paths are normalised."""

    normalization: Literal[
        "DEFAULT", "NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"
    ] = "DEFAULT"
    """How far."""


class TLSConfig(Shape, frozen=True, kw_only=True):
    """TLS of the mesh."""

    min_protocol_version: Literal["TLS_AUTO", "TLSV1_2", "TLSV1_3"] = "TLS_AUTO"
    """Lowest version."""
    ecdh_curves: list[str] = []
    """Curves."""
    cipher_suites: list[str] = []
    """Cipher suites."""


class Certificate(Shape, frozen=True, kw_only=True):
    """Istio 1.4: a certificate for a DNS name."""

    secret_name: str = ""
    """Secret it is kept in."""
    dns_names: list[str] = []
    """Names."""


class CertificateData(Shape, frozen=True, kw_only=True):
    """Authorities that vouch for identities."""

    pem: str = ""
    """Their certificates."""
    spiffe_bundle_url: str = ""
    """A SPIFFE bundle endpoint that gives them: `https://HOST/PATH`."""
    cert_signers: list[str] = []
    """Signers of Kubernetes that they belong to."""
    trust_domains: list[str] = []
    """Trust domains that they vouch for; that of the mesh if empty."""


class MeshConfig(Shape, frozen=True, kw_only=True):
    """Settings of the whole mesh."""

    proxy_listen_port: Int32 = 15001
    """Port of captured outbound traffic."""
    proxy_inbound_listen_port: Int32 = 15006
    """Port of captured inbound traffic."""
    proxy_http_port: Int32 = 0
    """Port of an HTTP proxy in each sidecar; 0 for none."""
    connect_timeout: AnyDuration = "10s"
    """Time to connect."""
    protocol_detection_timeout: AnyDuration = "0s"
    """Time to detect a protocol; 0s for no limit."""
    tcp_keepalive: Maybe[TcpKeepalive] = UNSET
    """Keepalive of connections."""
    ingress_class: str = ""
    """Class of Ingress objects."""
    ingress_service: str = ""
    """Service of the ingress gateway."""
    ingress_controller_mode: Literal["UNSPECIFIED", "OFF", "DEFAULT", "STRICT"] = "UNSPECIFIED"
    """Which Ingress objects are read."""
    ingress_selector: str = ""
    """Label `istio` of the ingress gateway."""
    auth_policy: Literal["NONE", "MUTUAL_TLS"] = "NONE"
    """Istio 1.4."""
    rds_refresh_delay: Maybe[AnyDuration] = UNSET
    """Istio 1.4."""
    enable_tracing: bool = True
    """Whether requests are traced."""
    access_log_file: str = ""
    """File of access logs; none if empty."""
    access_log_format: str = ""
    """Their format."""
    access_log_encoding: Literal["TEXT", "JSON"] = "TEXT"
    """Their encoding."""
    enable_envoy_access_log_service: bool = False
    """Whether logs go over gRPC."""
    disable_envoy_listener_log: bool = False
    """Whether listeners do not log."""
    default_config: Maybe[MeshProxyConfig] = UNSET
    """How proxies start."""
    outbound_traffic_policy: Maybe[MeshOutboundTrafficPolicy] = UNSET
    """What happens to traffic to unknown hosts."""
    inbound_traffic_policy: Maybe[MeshInboundTrafficPolicy] = UNSET
    """Where the application is reached."""
    config_sources: list[Free] = []
    """Where configuration comes from."""
    enable_auto_mtls: bool | None = None
    """Whether mutual TLS is used wherever both sides can; true if unset."""
    trust_domain: str = "cluster.local"
    """Trust domain of identities."""
    trust_domain_aliases: list[str] = []
    """Trust domains that count as the same."""
    ca_certificates: list[CertificateData] = []
    """Further authorities."""
    default_service_export_to: list[str] = []
    """Namespaces that see services."""
    default_virtual_service_export_to: list[str] = []
    """Namespaces that see VirtualServices."""
    default_destination_rule_export_to: list[str] = []
    """Namespaces that see DestinationRules."""
    root_namespace: str = "istio-system"
    """Namespace whose policies concern the whole mesh."""
    locality_lb_setting: Maybe[LocalityLoadBalancerSetting] = UNSET
    """Load balancing by locality."""
    zone_aware_lb_setting: Maybe[ZoneAwareLbSetting] = UNSET
    """Load balancing by zone; before `localityLbSetting` where it is on."""
    dns_refresh_rate: Maybe[AnyDuration] = UNSET
    """Time between DNS lookups."""
    h2_upgrade_policy: Literal["DO_NOT_UPGRADE", "UPGRADE"] = "DO_NOT_UPGRADE"
    """Whether HTTP/1.1 is upgraded to HTTP/2."""
    inbound_cluster_stat_name: str = ""
    """Names of statistics."""
    outbound_cluster_stat_name: str = ""
    """Names of statistics."""
    certificates: list[Certificate] = []
    """Istio 1.4: certificates for DNS names."""
    thrift_config: Maybe[Free] = UNSET
    """Thrift."""
    service_settings: list[ServiceSettings] = []
    """Settings of services."""
    enable_prometheus_merge: bool | None = None
    """Whether metrics of application and proxy are merged."""
    verify_certificate_at_client: bool | None = None
    """Without effect."""
    ca: Maybe[Free] = UNSET
    """An authority elsewhere."""
    extension_providers: list[ExtensionProvider] = []
    """Who decides, and who is told."""
    default_providers: Maybe[DefaultProviders] = UNSET
    """Providers that are used by default."""
    discovery_selectors: list[NamespaceSelector] = []
    """Namespaces that are looked at."""
    path_normalization: Maybe[PathNormalization] = UNSET
    """How paths are normalised."""
    default_http_retry_policy: Maybe[HTTPRetry] = UNSET
    """Retries unless a route says otherwise."""
    default_inbound_http_retry_policy: Maybe[HTTPRetry] = UNSET
    """Retries towards the application."""
    default_traffic_policy: Maybe[TrafficPolicy] = UNSET
    """Limits unless a DestinationRule says otherwise."""
    mesh_mtls: Maybe[TLSConfig] = field(name="meshMTLS", default=UNSET)
    """TLS between workloads."""
    tls_defaults: Maybe[TLSConfig] = UNSET
    """TLS everywhere else."""
    service_scope_configs: list[Free] = []
    """Scope of services."""
    service_entry_visibility: Maybe[ServiceEntryVisibility] = UNSET
    """Who sees ServiceEntries."""
    hbone_idle_timeout: Maybe[AnyDuration] = UNSET
    """Idle time of tunnels."""
    hbone: Maybe[Free] = UNSET
    """Tunnels."""
    mixer_check_server: str = ""
    """Istio 1.4."""
    mixer_report_server: str = ""
    """Istio 1.4."""
    disable_policy_checks: bool = False
    """Istio 1.4: whether policies are not asked."""
    policy_check_fail_open: bool = False
    """Istio 1.4: whether requests pass if policies cannot be asked."""
    sidecar_to_telemetry_session_affinity: bool = False
    """Istio 1.4."""
    disable_mixer_http_reports: bool = False
    """Istio 1.4."""
    enable_client_side_policy_check: bool = False
    """Istio 1.4."""
    report_batch_max_entries: UInt32 = 0
    """Istio 1.4."""
    report_batch_max_time: Maybe[AnyDuration] = UNSET
    """Istio 1.4."""
    disable_report_batch: bool = False
    """Istio 1.4."""
    sds_uds_path: str = ""
    """Istio 1.4."""
    sds_refresh_delay: Maybe[AnyDuration] = UNSET
    """Istio 1.4."""
    enable_sds_token_mount: bool = False
    """Istio 1.4."""
    sds_use_k8s_sa_jwt: bool = field(name="sdsUseK8sSaJwt", default=False)
    """Istio 1.4."""
