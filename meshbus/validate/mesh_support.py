"""Which fields of MeshConfig are carried out, by whom, and which say nothing here.

A field that says nothing here is one that a mesh config of Istio often has, and whose loss changes
nothing that a person relies on: the agent of a sidecar that has none, a component that is gone. It
is warned of; what would be missed is refused.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from meshbus.api.mesh.mesh_config import MeshConfig
from meshbus.api.mesh.providers import ExtensionProvider
from meshbus.api.mesh.proxy_config import MeshProxyConfig, Tracing
from meshbus.api.yaml_text import NotReadableError, read_yaml

CARRIED_OUT = frozenset(
    {
        "rootNamespace",
        "trustDomain",
        "trustDomainAliases",
        "outboundTrafficPolicy",
        "inboundTrafficPolicy",
        "ingressClass",
        "ingressControllerMode",
        "ingressService",
        "ingressSelector",
        "enableAutoMtls",
        "connectTimeout",
        "enableTracing",
        "accessLogFile",
        "accessLogFormat",
        "accessLogEncoding",
        "disableEnvoyListenerLog",
        "dnsRefreshRate",
        "outboundClusterStatName",
        "inboundClusterStatName",
        "defaultHttpRetryPolicy",
        "defaultInboundHttpRetryPolicy",
        "defaultTrafficPolicy",
        "pathNormalization",
        "h2UpgradePolicy",
        "tcpKeepalive",
        "defaultServiceExportTo",
        "defaultVirtualServiceExportTo",
        "defaultDestinationRuleExportTo",
        "protocolDetectionTimeout",
        "proxyHttpPort",
        "serviceSettings",
        "proxyListenPort",
        "proxyInboundListenPort",
        "defaultConfig",
        "extensionProviders",
        "localityLbSetting",
        "zoneAwareLbSetting",
        "meshMTLS",
        "caCertificates",
        "tlsDefaults",
        "discoverySelectors",
        "serviceEntryVisibility",
        "defaultProviders",
        "enableEnvoyAccessLogService",
        "disablePolicyChecks",
        "enablePrometheusMerge",
    }
)
"""Fields of MeshConfig."""
PROXY_CARRIED_OUT = frozenset(
    {
        "connectionSettings",
        "gatewayTopology",
        "proxyHeaders",
        "tracing",
        "envoyAccessLogService",
        # Of these whoever starts a proxy makes its bootstrap and its container.
        "binaryPath",
        "caCertificatesPem",
        "concurrency",
        "customConfigFile",
        "drainDuration",
        "envoyMetricsService",
        "envoyMetricsServiceAddress",
        "extraStatTags",
        "fileFlushInterval",
        "fileFlushMinSizeKb",
        "holdApplicationUntilProxyStarts",
        "image",
        "interceptionMode",
        "proxyAdminPort",
        "proxyMetadata",
        "proxyStatsMatcher",
        "readinessProbe",
        "runtimeValues",
        "statsCompression",
        "statsEvictionInterval",
        "statsdUdpAddress",
        "statusPort",
        "terminationDrainDuration",
    }
)
"""Fields of its `defaultConfig`."""
_OLD = "is a setting of Istio 1.4, for what is not there any more"
_NO_AGENT = "is for an agent beside the proxy: sidecars here have none"
_AMBIENT = "is for meshes without sidecars"
_NO_TAGS = "names proxies in ways that are not used here: workloads are known by their identity"
SAYS_NOTHING = {
    "authPolicy": _OLD,
    "rdsRefreshDelay": _OLD,
    "mixerCheckServer": _OLD,
    "mixerReportServer": _OLD,
    "sidecarToTelemetrySessionAffinity": _OLD,
    "disableMixerHttpReports": _OLD,
    "enableClientSidePolicyCheck": _OLD,
    "reportBatchMaxEntries": _OLD,
    "reportBatchMaxTime": _OLD,
    "disableReportBatch": _OLD,
    "sdsUdsPath": _OLD,
    "sdsRefreshDelay": _OLD,
    "enableSdsTokenMount": _OLD,
    "sdsUseK8sSaJwt": _OLD,
    "thriftConfig": "is not carried out by Istio either, since 1.12",
    "verifyCertificateAtClient": "is not carried out by Istio either: certificates are verified",
    "configSources": "is where Istio reads configuration; here it comes through the API",
    "policyCheckFailOpen": "is said by extension providers; quotas are granted if nobody counts",
    "hbone": _AMBIENT,
    "hboneIdleTimeout": _AMBIENT,
    "serviceScopeConfigs": _AMBIENT,
}
"""Fields of MeshConfig, and why."""
PROXY_SAYS_NOTHING = {
    "availabilityZone": _OLD,
    "configPath": _NO_AGENT,
    "connectTimeout": _OLD,
    "controlPlaneAuthPolicy": "is settled: proxies and control plane know each other by mutual TLS",
    "discoveryAddress": "is known from where the sidecar was made",
    "discoveryRefreshDelay": _OLD,
    "meshId": _NO_TAGS,
    "parentShutdownDuration": _OLD,
    "sds": _OLD,
    "serviceCluster": _NO_TAGS,
    "statNameLength": "is not carried out by Istio either, since 1.10",
    "tracingServiceName": _NO_TAGS,
}
"""The same of `defaultConfig`."""
PROXY_MISSED = {
    "privateKeyProvider": "needs CryptoMB or QAT, which Envoy has in builds with contrib "
    "extensions alone: others refuse every certificate that names them",
    "proxyBootstrapTemplatePath": "is a template that an agent fills in, and sidecars here have "
    "none: use an EnvoyFilter for BOOTSTRAP, or customConfigFile",
    "zipkinAddress": "is the old name of tracing.zipkin, and spans go to the telemetry service: no "
    "Zipkin is sent any",
}
"""Fields of `defaultConfig` that would be missed, and why they are not carried out."""
OF_THE_MESH = {
    "caCertificatesPem": "every proxy trusts the same authorities, those of the mesh config",
    "tracing": "traces are sampled as the mesh config's defaultConfig.tracing says",
}
"""Fields that count in `defaultConfig` alone, and not for one proxy; why."""
_ON_A_MACHINE = frozenset(
    {
        "concurrency",
        "connectionSettings",
        "customConfigFile",
        "envoyMetricsService",
        "envoyMetricsServiceAddress",
        "extraStatTags",
        "fileFlushInterval",
        "fileFlushMinSizeKb",
        "gatewayTopology",
        "proxyHeaders",
        "proxyMetadata",
        "proxyStatsMatcher",
        "runtimeValues",
        "statsEvictionInterval",
        "statsdUdpAddress",
        "terminationDrainDuration",
    }
)
"""Fields that count for a Workload: it has neither an image nor a pod."""

OWN_PROXY_CONFIG = "proxy.istio.io/config"
"""The annotation with fields of ProxyConfig for one proxy."""
_MISSED = {
    "ca": "is a setting of the ca here: MESHBUS_CA_SIGNER names an authority elsewhere",
    "certificates": "is Istio 1.4's for its own webhooks: services here get theirs from the ca",
}
"""Fields that would be missed, and where it is said what they say."""
AUTHORITIES = frozenset({"envoyExtAuthzHttp", "envoyExtAuthzGrpc"})
"""Kinds of extension providers that decide."""
LOGGERS = frozenset({"envoyFileAccessLog", "envoyHttpAls", "envoyTcpAls", "envoyOtelAls"})
"""Those that take logs."""
_PROVIDERS = AUTHORITIES | LOGGERS | {"name", "prometheus"}
_USES: tuple[tuple[str, str, frozenset[str]], ...] = (
    ("accessLogging", "envoy", LOGGERS),
    ("metrics", "prometheus", frozenset({"prometheus"})),
    ("tracing", "", frozenset()),
)
"""What default providers are for, the one that is built in, and the kinds that can do it."""
_EMPTY: tuple[Any, ...] = (None, "", [], {}, False, 0)


def fields_not_carried_out() -> Iterator[tuple[str, str]]:
    """(path, reason) of each; an empty reason: nothing special."""
    for field in msgspec.structs.fields(MeshConfig):
        if field.encode_name not in CARRIED_OUT:
            name = field.encode_name
            yield f"spec.{name}", SAYS_NOTHING.get(name) or _MISSED.get(name, "")
    for field in msgspec.structs.fields(MeshProxyConfig):
        if field.encode_name not in PROXY_CARRIED_OUT:
            name = field.encode_name
            reason = PROXY_SAYS_NOTHING.get(name) or PROXY_MISSED.get(name, "")
            yield f"spec.defaultConfig.{field.encode_name}", reason
    for field in msgspec.structs.fields(Tracing):
        if field.encode_name != "sampling":
            yield f"spec.defaultConfig.tracing.{field.encode_name}", ""
    for field in msgspec.structs.fields(ExtensionProvider):
        if field.encode_name not in _PROVIDERS:
            yield f"spec.extensionProviders[].{field.encode_name}", ""
    yield "spec.defaultProviders.tracing", ""


def missed_fields(spec: Mapping[str, Any]) -> Iterator[str]:
    """Paths of what is set, not carried out, and would be missed."""
    known = {field.encode_name for field in msgspec.structs.fields(MeshConfig)}
    for name, value in spec.items():
        if name in known - CARRIED_OUT - SAYS_NOTHING.keys() and value not in _EMPTY:
            yield f"spec.{name}"
    proxy = spec.get("defaultConfig")
    if not isinstance(proxy, Mapping):
        return
    for name, value in proxy.items():
        at = f"spec.defaultConfig.{name}"
        if name == "tracing":
            others = set(value) - {"sampling"} if isinstance(value, Mapping) else set()
            yield from (f"{at}.{other}" for other in sorted(others))
        elif name not in PROXY_CARRIED_OUT | PROXY_SAYS_NOTHING.keys() and value not in _EMPTY:
            yield at


def why_missed(path: str) -> str:
    """What to do instead of a field of `missed_fields`; empty: nothing is known."""
    name = path.removeprefix("spec.")
    return _MISSED.get(name) or PROXY_MISSED.get(name.removeprefix("defaultConfig."), "")


def lost_providers(spec: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(path, reason) of extension providers, and of names of them, that nothing comes of."""
    declared: dict[str, frozenset[str]] = {}
    for index, provider in enumerate(_records(spec.get("extensionProviders"))):
        kinds = frozenset(provider) - {"name"}
        declared[str(provider.get("name"))] = kinds
        for kind in sorted(kinds - _PROVIDERS):
            yield f"spec.extensionProviders[{index}].{kind}", ""
    defaults = spec.get("defaultProviders")
    for use, built_in, able in _USES:
        names = defaults.get(use) if isinstance(defaults, Mapping) else None
        for index, name in enumerate(names if isinstance(names, list) else ()):
            if name != built_in and not able & declared.get(str(name), frozenset()):
                known = "" if name in declared else f"there is no extension provider {name}"
                yield f"spec.defaultProviders.{use}[{index}]", known


def _records(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def silent_fields(spec: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(path, reason) of what is set and says nothing here."""
    for name, reason in SAYS_NOTHING.items():
        if spec.get(name) not in _EMPTY:
            yield f"spec.{name}", reason
    proxy = spec.get("defaultConfig")
    if not isinstance(proxy, Mapping):
        return
    for name, reason in PROXY_SAYS_NOTHING.items():
        if proxy.get(name) not in _EMPTY:
            yield f"spec.defaultConfig.{name}", reason


def lost_on_a_machine(annotations: Mapping[str, Any]) -> Iterator[str]:
    """Fields of a valid annotation of a Workload that are carried out for pods alone."""
    text = annotations.get(OWN_PROXY_CONFIG)
    try:
        held = read_yaml(text) if isinstance(text, str) else None
    except NotReadableError:
        return
    for name in held if isinstance(held, dict) else ():
        if name not in _ON_A_MACHINE and name not in PROXY_SAYS_NOTHING:
            yield str(name)
