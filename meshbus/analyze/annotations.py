"""Annotations of Istio: whether they are known, and in their places.

Source: https://istio.io/latest/docs/reference/config/annotations/; Istio, analysis messages
IST0107, IST0108, IST0125, IST0135.
"""

import ipaddress
from collections.abc import Callable, Iterator

from meshbus.analyze.messages import Message, about
from meshbus.analyze.objects import Objects

_ANY, _POD = ("Any",), ("Pod",)
_SIDECAR = (
    "agentLogLevel bootstrapOverride componentLogLevel extraStatTags inject interceptionMode "
    "logLevel nativeSidecar proxyCPU proxyCPULimit proxyImage proxyImageType proxyMemory "
    "proxyMemoryLimit rewriteAppHTTPProbers statsCompression statsEvictionInterval "
    "statsHistogramBuckets status userVolume userVolumeMount enableCoreDump "
    "controlPlaneAuthPolicy discoveryAddress statsInclusionPrefixes statsInclusionRegexps "
    "statsInclusionSuffixes"
)
_TRAFFIC = (
    "includeOutboundIPRanges excludeOutboundIPRanges includeInboundPorts excludeInboundPorts "
    "includeOutboundPorts excludeOutboundPorts excludeInterfaces kubevirtInterfaces"
)
_READINESS = "applicationPorts failureThreshold initialDelaySeconds periodSeconds"
_PLACES: dict[str, tuple[str, ...]] = {
    **{f"sidecar.istio.io/{name}": _POD for name in _SIDECAR.split()},
    **{f"traffic.sidecar.istio.io/{name}": _POD for name in _TRAFFIC.split()},
    **{f"readiness.status.sidecar.istio.io/{name}": _POD for name in _READINESS.split()},
    "status.sidecar.istio.io/port": _POD,
    "inject.istio.io/templates": _POD,
    "proxy.istio.io/config": _POD,
    "proxy.istio.io/overrides": _POD,
    "prometheus.istio.io/merge-metrics": _POD,
    "istio.io/reroute-virtual-interfaces": _POD,
    "istio.io/rev": _POD,
    "ambient.istio.io/bypass-inbound-capture": _POD,
    "ambient.istio.io/dns-capture": _POD,
    "ambient.istio.io/redirection": _POD,
    "alpha.istio.io/identity": _POD,
    "alpha.istio.io/canonical-serviceaccounts": ("Service",),
    "alpha.istio.io/kubernetes-serviceaccounts": ("Service",),
    "networking.istio.io/exportTo": ("Service",),
    "networking.istio.io/traffic-distribution": ("Service", "ServiceEntry", "Namespace"),
    "networking.istio.io/address-type": ("Gateway",),
    "networking.istio.io/service-type": ("Gateway",),
    "traffic.istio.io/nodeSelector": ("Service",),
    "gateway.istio.io/controller-version": ("Gateway",),
    "gateway.istio.io/name-override": ("Gateway",),
    "gateway.istio.io/service-account": ("Gateway",),
    "gateway.istio.io/tls-cipher-suites": ("Gateway",),
    "istio.io/autoRegistrationGroup": ("WorkloadEntry",),
    "istio.io/connectedAt": ("WorkloadEntry",),
    "istio.io/disconnectedAt": ("WorkloadEntry",),
    "istio.io/workloadController": ("WorkloadEntry",),
    "istio.io/dry-run": ("AuthorizationPolicy",),
    "istio.io/for-service-account": ("Secret",),
    "kubernetes.io/ingress.class": ("Ingress",),
    "topology.istio.io/controlPlaneClusters": ("Namespace",),
    "galley.istio.io/analyze-suppress": _ANY,
    "install.operator.istio.io/chart-owner": _ANY,
    "install.operator.istio.io/owner-generation": _ANY,
    "install.operator.istio.io/version": _ANY,
}
_INJECT = "sidecar.istio.io/inject"
_DEPRECATED = frozenset(
    {
        _INJECT,
        "alpha.istio.io/canonical-serviceaccounts",
        "alpha.istio.io/identity",
        "alpha.istio.io/kubernetes-serviceaccounts",
        "sidecar.istio.io/controlPlaneAuthPolicy",
        "sidecar.istio.io/discoveryAddress",
        "sidecar.istio.io/enableCoreDump",
        "sidecar.istio.io/statsInclusionPrefixes",
        "sidecar.istio.io/statsInclusionRegexps",
        "sidecar.istio.io/statsInclusionSuffixes",
        "traffic.sidecar.istio.io/kubevirtInterfaces",
    }
)
_BOOLEANS = frozenset(
    {"1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False"}
)


def _number(value: str) -> str:
    return "" if value.isascii() and value.isdigit() and int(value) < 1 << 32 else "not a number"


def _ports(value: str) -> str:
    for part in value.split(",") if value else ():
        port = part.strip()
        if not (port.isascii() and port.isdigit() and int(port) <= 65535):
            return f"{port!r} is not a port"
    return ""


def _ports_or_all(value: str) -> str:
    return "" if value == "*" else _ports(value)


def _ranges(value: str) -> str:
    for part in value.split(",") if value else ():
        try:
            if "/" not in part:
                raise ValueError(part)
            ipaddress.ip_network(part.strip(), strict=False)
        except ValueError:
            return f"{part!r} is not a CIDR block"
    return ""


def _ranges_or_all(value: str) -> str:
    return "" if value == "*" else _ranges(value)


def _mode(value: str) -> str:
    return "" if value in ("REDIRECT", "TPROXY", "NONE") else "must be REDIRECT, TPROXY or NONE"


def _boolean(value: str) -> str:
    return "" if value in _BOOLEANS else "must be true or false"


_VALUES: dict[str, Callable[[str], str]] = {
    "sidecar.istio.io/interceptionMode": _mode,
    "status.sidecar.istio.io/port": _ports,
    "readiness.status.sidecar.istio.io/initialDelaySeconds": _number,
    "readiness.status.sidecar.istio.io/periodSeconds": _number,
    "readiness.status.sidecar.istio.io/failureThreshold": _number,
    "traffic.sidecar.istio.io/includeOutboundIPRanges": _ranges_or_all,
    "traffic.sidecar.istio.io/excludeOutboundIPRanges": _ranges,
    "traffic.sidecar.istio.io/includeInboundPorts": _ports_or_all,
    "traffic.sidecar.istio.io/excludeInboundPorts": _ports,
    "traffic.sidecar.istio.io/excludeOutboundPorts": _ports,
    "prometheus.istio.io/merge-metrics": _boolean,
}


def places(objects: Objects) -> Iterator[Message]:
    """Annotations are known, on kinds that they are for, and of values that they take."""
    found = [*objects.of("", "Namespace", "Service", "Pod"), *objects.of("apps", "Deployment")]
    for one in found:
        for name, value in one.annotations.items():
            if name != "kubernetes.io/ingress.class" and not _is_ours(name):
                continue
            path = f"metadata.annotations[{name}]"
            kinds = _PLACES.get(name)
            if kinds is None:
                yield about(one, "IST0108", f"annotation {name} is not known", path)
                continue
            if name in _DEPRECATED and not (name == _INJECT and _INJECT in one.labels):
                instead = ": use the label of the same name" if name == _INJECT else ""
                yield about(one, "IST0135", f"annotation {name} is deprecated{instead}", path)
            if kinds != _ANY and one.kind not in kinds:
                message = f"annotation {name} has an effect on {', '.join(kinds)} only"
                yield about(one, "IST0107", message, path)
            elif kinds != _ANY and name in _VALUES and (problem := _VALUES[name](value)):
                yield about(one, "IST0125", f"annotation {name}: {problem}", path)


def _is_ours(name: str) -> bool:
    return name.partition("/")[0].endswith("istio.io")
