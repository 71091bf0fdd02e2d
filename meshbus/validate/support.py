"""What this release does not carry out of what is valid.

Nothing that a person writes is parsed and then silently ignored: the config service refuses these
fields, and `meshbus validate` warns of them. A path is written like that of a field; `[]` stands
for every entry of a list or map. The tables shrink as releases grow.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from meshbus.api.kinds import KindInfo, kind_of
from meshbus.api.tls import FORGOTTEN_CURVES
from meshbus.validate.mesh_support import (
    OF_THE_MESH,
    OWN_PROXY_CONFIG,
    fields_not_carried_out,
    lost_on_a_machine,
    lost_providers,
    missed_fields,
    silent_fields,
    why_missed,
)
from meshbus.validate.report import Violation

CODE = "Unsupported"
SILENT = "NoEffect"
_NOT_YET = "is not carried out by this release"

_WHOLE = {
    ("telemetry.istio.io", "Telemetry"),
    ("config.istio.io", "adapter"),
    ("config.istio.io", "template"),
    ("config.istio.io", "HTTPAPISpec"),
    ("config.istio.io", "HTTPAPISpecBinding"),
    ("config.istio.io", "redisquota"),
}
_CARRIED_OUT_MIXER = frozenset(
    {
        "attributemanifest",
        "handler",
        "instance",
        "rule",
        "QuotaSpec",
        "QuotaSpecBinding",
        "memquota",
        "denier",
        "listchecker",
        "quota",
        "listentry",
        "checknothing",
    }
)
_ADAPTERS = frozenset({"memquota", "denier", "listchecker"})
_TEMPLATES = frozenset({"quota", "listentry", "checknothing"})

_NOT_FOR_ALL = (
    "loadBalancer",
    "portLevelSettings",
    "proxyProtocol",
    "retryBudget",
    "tls",
    "tunnel",
)
"""What MeshConfig.defaultTrafficPolicy must not have: validation refuses it."""
_NEITHER = "is not carried out by Istio 1.4 either"
_FIELDS: dict[str, tuple[str, ...]] = {
    "EnvoyFilter": (
        "spec.configPatches[].match.waypoint",
        "spec.filters[].listenerMatch.portNamePrefix",
    ),
    "Gateway": ("spec.servers[].defaultEndpoint",),
    "ProxyConfig": ("spec.image",),
    "VirtualService": (
        "spec.http[].fault.abort.http2Error",
        "spec.http[].fault.delay.exponentialDelay",
    ),
    "Sidecar": ("spec.outboundTrafficPolicy.tls",),
    "WasmPlugin": ("spec.verificationKey",),
    "TrafficExtension": ("spec.wasm.verificationKey",),
    "handler": ("spec.adapter", "spec.connection", "spec.params.providerUrl"),
    "instance": ("spec.template", "spec.attributeBindings"),
    "rule": (
        "spec.requestHeaderOperations",
        "spec.responseHeaderOperations",
        "spec.sampling",
    ),
    "listchecker": ("spec.providerUrl",),
    "MeshConfig": (
        *(f"spec.defaultTrafficPolicy.{name}" for name in _NOT_FOR_ALL),
        "spec.outboundTrafficPolicy.tls.credentialName",
    ),
    "Policy": ("spec.peers[].jwt", "spec.targets[].subset", "spec.credentialRules"),
    "MeshPolicy": ("spec.peers[].jwt", "spec.targets[].subset", "spec.credentialRules"),
    "RbacConfig": ("spec.inclusion.workloadSelectors", "spec.exclusion.workloadSelectors"),
    "ClusterRbacConfig": ("spec.inclusion.workloadSelectors", "spec.exclusion.workloadSelectors"),
}
_ATTACHED_ELSEWHERE = ("GatewayClass", "Service", "ServiceEntry")
_VALUES: dict[str, dict[str, tuple[str, ...]]] = {
    "Sidecar": {
        "spec.outboundTrafficPolicy.mode": ("ALLOW_ANY_DYNAMIC_DNS",),
    },
    "EnvoyFilter": {
        "spec.configPatches[].match.context": ("WAYPOINT",),
    },
    "AuthorizationPolicy": {
        "spec.targetRef.kind": _ATTACHED_ELSEWHERE,
        "spec.targetRefs[].kind": _ATTACHED_ELSEWHERE,
    },
    "RequestAuthentication": {
        "spec.targetRef.kind": _ATTACHED_ELSEWHERE,
        "spec.targetRefs[].kind": _ATTACHED_ELSEWHERE,
    },
    "WasmPlugin": {
        "spec.targetRef.kind": _ATTACHED_ELSEWHERE,
        "spec.targetRefs[].kind": _ATTACHED_ELSEWHERE,
    },
    "TrafficExtension": {"spec.targetRefs[].kind": _ATTACHED_ELSEWHERE},
}
_REASONS = {
    "spec.outboundTrafficPolicy.tls": "is for ALLOW_ANY_DYNAMIC_DNS, in the mesh config alone",
    "spec.image": "is for pods: a process of a machine has no image",
    "spec.verificationKey": "is not carried out by Istio either",
    "spec.wasm.verificationKey": "is not carried out by Istio either",
    "spec.configPatches[].match.waypoint": "is for meshes without sidecars",
    "spec.servers[].defaultEndpoint": "is not carried out by Istio either",
    "spec.peers[].jwt": _NEITHER,
    "spec.targets[].subset": _NEITHER,
    "spec.credentialRules": _NEITHER,
    "spec.inclusion.workloadSelectors": _NEITHER,
    "spec.exclusion.workloadSelectors": _NEITHER,
}
_AT_WAYPOINTS = "is a target at waypoints alone: meshes without sidecars have those"
_TARGET_PORT = "is not carried out by Istio either: the Service says where its port leads"
_SAYS_NOTHING: dict[str, dict[str, str]] = {
    "MeshNetworks": {
        "spec.networks[].gateways[].locality": "is not carried out by Istio either",
    },
    "EnvoyFilter": {
        "spec.configPatches[].match.listener.portName": "is not carried out by Istio either",
    },
    "Gateway": {
        "spec.servers[].port.targetPort": _TARGET_PORT,
    },
    "MeshConfig": {
        "spec.meshMTLS.ecdhCurves": "is not carried out by Istio either: workloads agree on curves",
    },
    "Sidecar": {
        "spec.ingress[].port.targetPort": _TARGET_PORT,
        "spec.egress[].port.targetPort": _TARGET_PORT,
    },
}
"""What changes nothing, here or there: to be warned of."""
_WHERE = {"spec.image": "outside Kubernetes", "spec.meshMTLS.ecdhCurves": "in meshMTLS"}
_FOR_GATEWAYS = "is for gateways and selected workloads: name files"


class Limit(NamedTuple):
    """A field that is not carried out, or not with every value."""

    pattern: str
    """Path of the field; `[]` stands for every entry."""
    reason: str
    values: tuple[str, ...] = ()
    """Those that are refused; empty: any."""
    where: str = ""
    """Where alone that is so; empty: everywhere."""


def limits_of(info: KindInfo) -> list[Limit] | None:
    """What of a kind is not carried out, in order of path; None: nothing of it is."""
    if _is_whole(info):
        return None
    out = [Limit(p, _reason(p), (), _WHERE.get(p, "")) for p in _FIELDS.get(info.kind, ())]
    out += [Limit(p, _value(p), values) for p, values in _VALUES.get(info.kind, {}).items()]
    says_nothing = _SAYS_NOTHING.get(info.kind, {}).items()
    out += [Limit(p, reason, (), _WHERE.get(p, "")) for p, reason in says_nothing]
    if info.kind == "MeshConfig":
        out += [Limit(path, reason or _NOT_YET) for path, reason in fields_not_carried_out()]
    return sorted(out)


def _reason(pattern: str) -> str:
    if pattern == "spec.outboundTrafficPolicy.tls.credentialName":
        return _FOR_GATEWAYS
    if pattern.startswith(("spec.defaultTrafficPolicy.", "spec.http[].fault.")):
        return "is refused, as by Istio"
    return _REASONS.get(pattern, _NOT_YET)


def _value(pattern: str) -> str:
    """Why a value of a field is not carried out."""
    if pattern == "spec.outboundTrafficPolicy.mode":
        return "is of the mesh config alone, as in Istio"
    return _AT_WAYPOINTS if pattern.endswith(("targetRef.kind", "targetRefs[].kind")) else _NOT_YET


def unsupported_fields(document: Mapping[str, Any], *, injects: bool = False) -> list[Violation]:
    """What of a valid document has no effect, in table order; empty for unknown kinds.

    Args:
        injects: Proxies are injected into pods, as on Kubernetes.
    """
    info = kind_of(str(document.get("apiVersion")), str(document.get("kind")))
    if info is None:
        return []
    if _is_whole(info):
        return [Violation("kind", CODE, f"{info.kind} {_NOT_YET}")]
    found = [
        Violation(path, CODE, _reason(pattern))
        for pattern in _FIELDS.get(info.kind, ())
        if not (injects and pattern in _WHERE)
        for path, value in _at(document, pattern)
        if value not in (None, "", [], {})
    ]
    for pattern, values in _VALUES.get(info.kind, {}).items():
        for path, value in _at(document, pattern):
            if isinstance(value, str) and value in values:
                found.append(Violation(path, CODE, f"{value} {_value(pattern)}"))
    found.extend(_special(info, document))
    return found


def _is_whole(info: KindInfo) -> bool:
    if info.group == "config.istio.io" and info.kind not in _CARRIED_OUT_MIXER:
        return True
    return (info.group, info.kind) in _WHOLE


def _special(info: KindInfo, document: Mapping[str, Any]) -> Iterator[Violation]:
    if info.kind == "Policy":
        if next(_at(document, "spec.origins[].jwt"), None) is not None:
            for path, _ in _at(document, "spec.targets[].ports[]"):
                message = "tokens are checked at all ports of a service: leave out the ports"
                yield Violation(path, CODE, message)
    elif info.kind in ("ServiceRole", "ServiceRoleBinding"):
        place = "spec.rules" if info.kind == "ServiceRole" else "spec.actions"
        for path, key in _at(document, f"{place}[].constraints[].key"):
            if key == "destination.user":
                yield Violation(path, CODE, f"destination.user {_NOT_YET}: use destination.labels")
    elif info.kind == "handler":
        yield from _named(document, "spec.compiledAdapter", _ADAPTERS)
    elif info.kind == "instance":
        yield from _named(document, "spec.compiledTemplate", _TEMPLATES)
    elif info.kind == "MeshConfig":
        yield from _mesh(document)
    elif info.kind == "Workload":
        metadata = document.get("metadata")
        notes = metadata.get("annotations") if isinstance(metadata, Mapping) else None
        for name in lost_on_a_machine(notes or {}):
            path = f"metadata.annotations[{OWN_PROXY_CONFIG}]"
            why = OF_THE_MESH.get(name, "it is for pods, and changes nothing for a process")
            yield Violation(path, CODE, f"{name} has no effect here: {why}")


def _named(document: Mapping[str, Any], pattern: str, known: frozenset[str]) -> Iterator[Violation]:
    for path, value in _at(document, pattern):
        if isinstance(value, str) and value and value not in known:
            yield Violation(path, CODE, f"{value} {_NOT_YET}")


def _mesh(document: Mapping[str, Any]) -> Iterator[Violation]:
    spec = document.get("spec")
    for path in missed_fields(spec) if isinstance(spec, Mapping) else ():
        yield Violation(path, CODE, why_missed(path) or _NOT_YET)
    for path, curve in _at(document, "spec.tlsDefaults.ecdhCurves[]"):
        if curve in FORGOTTEN_CURVES:
            yield Violation(path, CODE, f"proxies do not know the curve {curve} any more")
    for path, reason in lost_providers(spec) if isinstance(spec, Mapping) else ():
        yield Violation(path, CODE, reason or _NOT_YET)
    for path, mode in _at(document, "spec.outboundTrafficPolicy.tls.mode"):
        if mode == "ISTIO_MUTUAL":
            yield Violation(path, CODE, "hosts outside have no identity of the mesh")


def silent_fields_of(document: Mapping[str, Any]) -> list[Violation]:
    """What of a valid document says nothing here, and is not missed: to be warned of."""
    kind, spec = str(document.get("kind")), document.get("spec")
    found = [
        Violation(path, SILENT, reason)
        for pattern, reason in _SAYS_NOTHING.get(kind, {}).items()
        for path, value in _at(document, pattern)
        if value not in (None, "", 0, [])
    ]
    if kind == "MeshConfig" and isinstance(spec, Mapping):
        found += [Violation(path, SILENT, reason) for path, reason in silent_fields(spec)]
    return found


def _at(document: Any, pattern: str) -> Iterator[tuple[str, Any]]:
    """Every place of the document that the pattern stands for, and what is there."""
    places: list[tuple[str, Any]] = [("", document)]
    for part in pattern.split("."):
        name, every = part.removesuffix("[]"), part.endswith("[]")
        following: list[tuple[str, Any]] = []
        for path, value in places:
            if not isinstance(value, Mapping) or name not in value:
                continue
            at, item = f"{path}.{name}" if path else name, value[name]
            if not every:
                following.append((at, item))
            elif isinstance(item, list):
                following.extend((f"{at}[{index}]", entry) for index, entry in enumerate(item))
            elif isinstance(item, Mapping):
                following.extend((f"{at}.{key}", entry) for key, entry in item.items())
        places = following
    yield from places
