"""The annotations of a pod that injection reads: what each does, and which values it takes.

Names and meanings are Istio's: https://istio.io/latest/docs/reference/config/annotations/. What
only Istio's per-pod agent could do is refused or warned of, never silently ignored.
"""

import ipaddress
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from meshbus.api.durations import nanoseconds
from meshbus.inject.errors import InjectionError

INJECT = "sidecar.istio.io/inject"
STATUS = "sidecar.istio.io/status"
PROXY_TYPE = "meshbus.io/proxy-type"
OVERRIDES = "proxy.istio.io/overrides"
PROXY_CONFIG = "proxy.istio.io/config"
TEMPLATES = "inject.istio.io/templates"
REVISION = "istio.io/rev"
MERGE_METRICS = "prometheus.istio.io/merge-metrics"
SCRAPE_TARGETS = "prometheus.istio.io/scrape-targets"
INTERCEPTION = "sidecar.istio.io/interceptionMode"
NATIVE = "sidecar.istio.io/nativeSidecar"
STATUS_PORT = "status.sidecar.istio.io/port"
REWRITE = "sidecar.istio.io/rewriteAppHTTPProbers"
PROXY_IMAGE = "sidecar.istio.io/proxyImage"
PROXY_IMAGE_TYPE = "sidecar.istio.io/proxyImageType"
LOG_LEVEL = "sidecar.istio.io/logLevel"
COMPONENT_LOG_LEVEL = "sidecar.istio.io/componentLogLevel"
AGENT_LOG_LEVEL = "sidecar.istio.io/agentLogLevel"
CPU, CPU_LIMIT = "sidecar.istio.io/proxyCPU", "sidecar.istio.io/proxyCPULimit"
MEMORY, MEMORY_LIMIT = "sidecar.istio.io/proxyMemory", "sidecar.istio.io/proxyMemoryLimit"
USER_VOLUME, USER_MOUNT = "sidecar.istio.io/userVolume", "sidecar.istio.io/userVolumeMount"
CAP_NET_BIND = "sidecar.istio.io/capNetBindService"
STATS_PREFIXES = "sidecar.istio.io/statsInclusionPrefixes"
STATS_SUFFIXES = "sidecar.istio.io/statsInclusionSuffixes"
STATS_REGEXPS = "sidecar.istio.io/statsInclusionRegexps"
STATS_BUCKETS = "sidecar.istio.io/statsHistogramBuckets"
EXTRA_TAGS = "sidecar.istio.io/extraStatTags"
STATS_FLUSH = "sidecar.istio.io/statsFlushInterval"
STATS_EVICTION = "sidecar.istio.io/statsEvictionInterval"
STATS_COMPRESSION = "sidecar.istio.io/statsCompression"
READY_DELAY = "readiness.status.sidecar.istio.io/initialDelaySeconds"
READY_PERIOD = "readiness.status.sidecar.istio.io/periodSeconds"
READY_FAILURES = "readiness.status.sidecar.istio.io/failureThreshold"
_TRAFFIC = "traffic.sidecar.istio.io/"
INCLUDE_RANGES, EXCLUDE_RANGES = (
    f"{_TRAFFIC}includeOutboundIPRanges",
    f"{_TRAFFIC}excludeOutboundIPRanges",
)
INCLUDE_IN, EXCLUDE_IN = f"{_TRAFFIC}includeInboundPorts", f"{_TRAFFIC}excludeInboundPorts"
INCLUDE_OUT, EXCLUDE_OUT = f"{_TRAFFIC}includeOutboundPorts", f"{_TRAFFIC}excludeOutboundPorts"
EXCLUDE_INTERFACES = f"{_TRAFFIC}excludeInterfaces"
KUBEVIRT = f"{_TRAFFIC}kubevirtInterfaces"
REROUTE = "istio.io/reroute-virtual-interfaces"
BEFORE_PROXY = "sidecar.istio.io/init-containers-before-proxy"
DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"
DEFAULT_LOGS_CONTAINER = "kubectl.kubernetes.io/default-logs-container"
NETWORKS = "k8s.v1.cni.cncf.io/networks"

_LONGEST_BYTES = 262144
_QUANTITY = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?")
_INTERFACE = re.compile(r"[A-Za-z0-9_.+-]{1,15}")
_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})
_LEVELS = frozenset(
    {"trace", "debug", "info", "warning", "warn", "error", "err", "critical", "off"}
)


def truth(value: str) -> bool | None:
    """A truth value as Go's strconv reads it; None if it is none."""
    return True if value in _TRUE else False if value in _FALSE else None


def ports(value: str) -> list[int]:
    """A comma-separated list of ports.

    Raises:
        ValueError: A part is not a port.
    """
    return [_port(part) for part in value.strip().split(",")] if value.strip() else []


def _port(text: str) -> int:
    text = text.strip()
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise ValueError(f"{text!r} is not a port")
    return int(text)


def _check_bool(value: str) -> None:
    if truth(value) is None:
        raise ValueError("must be true or false")


def _check_port(value: str) -> None:
    _port(value)


def _check_ports(value: str) -> None:
    ports(value)


def _check_port_list_or_star(value: str) -> None:
    if value != "*":
        ports(value)


def _ranges(value: str, name: str) -> None:
    for part in filter(None, value.split(",")):
        try:
            ipaddress.ip_network(part, strict=False)
        except ValueError as error:
            raise ValueError(f"{name}: {part!r} is not a CIDR") from error
        if "/" not in part:
            raise ValueError(f"{name}: {part!r} is not a CIDR")


def _check_ranges(value: str) -> None:
    _ranges(value, "excludeIPRanges")


def _check_ranges_or_star(value: str) -> None:
    if value != "*":
        _ranges(value, "includeIPRanges")


def _check_uint32(value: str) -> None:
    if not (value.isascii() and value.isdigit() and int(value) < 2**32):
        raise ValueError("must be a whole number from 0")


def _check_quantity(value: str) -> None:
    if not _QUANTITY.fullmatch(value):
        raise ValueError("is not a quantity (`100m`, `128Mi`)")


def _check_interception(value: str) -> None:
    if value not in ("REDIRECT", "TPROXY", "NONE"):
        raise ValueError("must be REDIRECT, TPROXY or NONE")


def _check_interfaces(value: str) -> None:
    for part in filter(None, value.split(",")):
        if not _INTERFACE.fullmatch(part.strip()):
            raise ValueError(f"{part!r} is not the name of an interface")


def _check_level(value: str) -> None:
    if value not in _LEVELS:
        raise ValueError(f"must be one of {', '.join(sorted(_LEVELS))}")


def _check_components(value: str) -> None:
    for part in filter(None, value.split(",")):
        name, colon, level = part.partition(":")
        if not name or not colon or level not in _LEVELS:
            raise ValueError(f"{part!r} is not COMPONENT:LEVEL")


def _check_agent_levels(value: str) -> None:
    if not re.fullmatch(r"[\w.-]+:[a-z]+(,[\w.-]+:[a-z]+)*", value):
        raise ValueError("must be SCOPE:LEVEL, with commas between")


def _check_json_map(value: str) -> None:
    try:
        held = json.loads(value)
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from error
    if not isinstance(held, dict) or not all(isinstance(item, dict) for item in held.values()):
        raise ValueError("must be a JSON object of objects by name")


def _check_length(value: str) -> None:
    if (nanoseconds(value) or 0) <= 0:
        raise ValueError("must be a duration, 30s")


def _check_buckets(value: str) -> None:
    try:
        msgspec.json.decode(value.encode(), type=dict[str, list[float]])
    except msgspec.DecodeError as error:
        raise ValueError(f"must be a JSON object of lists of numbers: {error}") from error


def _check_image(value: str) -> None:
    if not value or re.search(r"[\s\"'`\\]|[^\x21-\x7e]", value):
        raise ValueError("is not the name of an image")


def _check_targets(value: str) -> None:
    for part in value.split(","):
        port, _, path = part.strip().partition(":")
        _port(port)
        if path and not re.fullmatch(r"/[!-~]*", path):
            raise ValueError(f"{path!r} is not a path")


class Known(NamedTuple):
    """An annotation of a pod."""

    does: str
    """For the table in the documentation."""
    check: Callable[[str], None] | None = None
    without_effect: str = ""
    """Why it does nothing here; the person is warned."""
    refused: str = ""
    """Why a pod that has it is refused."""


KNOWN: dict[str, Known] = {
    INJECT: Known("`true` or `false`: whether the pod gets a sidecar. The label counts first."),
    TEMPLATES: Known(
        "Templates, with commas between: `sidecar`, `gateway`, `grpc-simple`, `grpc-agent`, "
        "or names of `sidecarInjectorWebhook.templates`."
    ),
    PROXY_CONFIG: Known("Fields of ProxyConfig (YAML) for this pod, over those of the mesh."),
    OVERRIDES: Known("Written by injection: containers of the pod that were merged with its own."),
    STATUS: Known("Written by injection: what was added, so that it can be done again."),
    REVISION: Known("Written by injection: the revision that did it."),
    PROXY_TYPE: Known("Written by injection: `router` for a gateway."),
    NATIVE: Known(
        "`true`: the sidecar is an init container that keeps running (Kubernetes 1.29+); "
        "`false`: a container beside the application.",
        _check_bool,
    ),
    INTERCEPTION: Known(
        "`REDIRECT`; `TPROXY`: the application sees the address of its client; `NONE`: nothing is "
        "captured.",
        _check_interception,
    ),
    PROXY_IMAGE: Known("Image of the sidecar and of the init container.", _check_image),
    PROXY_IMAGE_TYPE: Known("Suffix of the image's tag: `debug`, `distroless`, `default`."),
    LOG_LEVEL: Known("Log level of Envoy.", _check_level),
    COMPONENT_LOG_LEVEL: Known(
        "Log levels of parts of Envoy: `rbac:debug,jwt:trace`.", _check_components
    ),
    AGENT_LOG_LEVEL: Known("Log level of the init container.", _check_agent_levels),
    CPU: Known("CPU request of the sidecar.", _check_quantity),
    CPU_LIMIT: Known("CPU limit of the sidecar.", _check_quantity),
    MEMORY: Known("Memory request of the sidecar.", _check_quantity),
    MEMORY_LIMIT: Known("Memory limit of the sidecar.", _check_quantity),
    REWRITE: Known(
        "`false`: probes go to the application itself, which must then accept plain text.",
        _check_bool,
    ),
    STATUS_PORT: Known("Port of rewritten probes; 0: no probes of the sidecar.", _check_port),
    READY_DELAY: Known("Of the sidecar's readiness probe.", _check_uint32),
    READY_PERIOD: Known("Of the sidecar's readiness probe.", _check_uint32),
    READY_FAILURES: Known("Of the sidecar's readiness probe.", _check_uint32),
    INCLUDE_RANGES: Known("CIDRs that are captured, or `*`.", _check_ranges_or_star),
    EXCLUDE_RANGES: Known("CIDRs that are not captured.", _check_ranges),
    INCLUDE_IN: Known("Inbound ports that are captured, or `*`.", _check_port_list_or_star),
    EXCLUDE_IN: Known("Inbound ports that are not captured.", _check_ports),
    INCLUDE_OUT: Known(
        "Outbound ports that are captured whatever the address.", _check_port_list_or_star
    ),
    EXCLUDE_OUT: Known("Outbound ports that are not captured.", _check_ports),
    EXCLUDE_INTERFACES: Known("Interfaces that are not captured.", _check_interfaces),
    KUBEVIRT: Known(
        "Interfaces of virtual machines whose traffic counts as outbound.", _check_interfaces
    ),
    REROUTE: Known("The newer name of the one above; counts first.", _check_interfaces),
    MERGE_METRICS: Known(
        "`false`: the pod's own `prometheus.io` annotations stay, and the sidecar does not add "
        "the application's metrics to its own.",
        _check_bool,
    ),
    SCRAPE_TARGETS: Known(
        "Further metrics of the application that are added: `PORT:PATH`, with commas between.",
        _check_targets,
    ),
    USER_VOLUME: Known("JSON: volumes by name, added to the pod.", _check_json_map),
    USER_MOUNT: Known("JSON: mounts of the sidecar by volume.", _check_json_map),
    CAP_NET_BIND: Known("`true`: Envoy may bind ports below 1024.", _check_bool),
    STATS_PREFIXES: Known("Statistics of Envoy that are kept besides the default ones."),
    STATS_SUFFIXES: Known("The same, by suffix."),
    STATS_REGEXPS: Known("The same, by regular expression."),
    STATS_BUCKETS: Known("JSON: buckets of histograms by prefix.", _check_buckets),
    BEFORE_PROXY: Known("Init containers that run before a native sidecar."),
    "sidecar.istio.io/bootstrapOverride": Known(
        "A bootstrap of one's own.",
        refused="Envoy starts from the mesh's bootstrap; change it with proxy.istio.io/config, "
        "EnvoyFilter, or an `istio-proxy` container with `args` of its own",
    ),
    EXTRA_TAGS: Known("Further tags of statistics, with commas between."),
    STATS_FLUSH: Known("Time between two reports of statistics.", _check_length),
    STATS_EVICTION: Known(
        "Time after which unused statistics go: a multiple of that between reports.", _check_length
    ),
    "sidecar.istio.io/enableCoreDump": Known(
        "Core dumps.",
        without_effect="the core pattern belongs to the node",
    ),
    "sidecar.istio.io/controlPlaneAuthPolicy": Known(
        "Istio 1.4.", without_effect="the control plane is always authenticated"
    ),
    "sidecar.istio.io/discoveryAddress": Known(
        "Istio 1.4.", without_effect="use discoveryAddress of proxy.istio.io/config"
    ),
    STATS_COMPRESSION: Known(
        "Compression of metrics, of Istio before 1.26.",
        without_effect="use statsCompression of proxy.istio.io/config",
    ),
    "readiness.status.sidecar.istio.io/applicationPorts": Known(
        "Istio 1.4.", without_effect="readiness does not look at the application's ports"
    ),
    "istio.io/dataplane-mode": Known("Ambient mesh.", without_effect="pods have sidecars here"),
}
"""Every annotation of Istio's sidecars by name."""


def check_annotations(annotations: Mapping[str, Any]) -> Iterator[str]:
    """Warnings for those without effect.

    Raises:
        InjectionError: A value that its annotation does not take.
    """
    for name, value in annotations.items():
        known = KNOWN.get(name)
        if known is None:
            continue
        place = f"metadata.annotations[{name}]"
        if not isinstance(value, str):
            raise InjectionError(place, f"invalid value {value!r}: must be a string")
        if len(value) > _LONGEST_BYTES:
            raise InjectionError(place, "is too long")
        if known.refused:
            raise InjectionError(place, f"is not supported: {known.refused}")
        if known.without_effect:
            yield f"{place}: has no effect: {known.without_effect}"
        if known.check is not None:
            try:
                known.check(value)
            except ValueError as error:
                raise InjectionError(place, f"invalid value {value!r}: {error}") from error


_VALUE_CHECKS: tuple[tuple[tuple[str, ...], Callable[[str], None]], ...] = (
    (("global", "proxy", "includeIPRanges"), _check_ranges_or_star),
    (("global", "proxy", "excludeIPRanges"), _check_ranges),
    (("global", "proxy", "includeInboundPorts"), _check_port_list_or_star),
    (("global", "proxy", "excludeInboundPorts"), _check_ports),
    (("global", "proxy", "includeOutboundPorts"), _check_port_list_or_star),
    (("global", "proxy", "excludeOutboundPorts"), _check_ports),
    (("global", "proxy", "statusPort"), _check_port),
    (("global", "proxy", "readinessInitialDelaySeconds"), _check_uint32),
    (("global", "proxy", "readinessPeriodSeconds"), _check_uint32),
    (("global", "proxy", "readinessFailureThreshold"), _check_uint32),
    (("global", "proxy", "logLevel"), _check_level),
    (("global", "proxy", "componentLogLevel"), _check_components),
    (("global", "logging", "level"), _check_agent_levels),
)


def check_values(values: Mapping[str, Any]) -> None:
    """Raises:
    InjectionError: A value of the chart is not what it should be.
    """
    from meshbus.inject.values import lookup, text

    for path, check in _VALUE_CHECKS:
        value = text(lookup(values, *path))
        try:
            if value:
                check(value)
        except ValueError as error:
            raise InjectionError(".".join(path), f"invalid value {value!r}: {error}") from error
