"""Whom a policy concerns: selectors, target references, labels, `exportTo`, gateway names.

Source: https://istio.io/latest/docs/reference/config/type/workload-selector/
"""

from collections.abc import Mapping, Sequence

from msgspec import UNSET, UnsetType

from meshbus.api.networking.workload import LabelSelector
from meshbus.api.selectors import PolicyTargetReference, WorkloadSelector
from meshbus.validate.malformed import independent
from meshbus.validate.names import (
    fqdn_problem,
    is_label,
    label_key_problem,
    label_value_problem,
)
from meshbus.validate.report import Findings

_TARGETS = (
    ("", "Service"),
    ("core", "Service"),
    ("networking.istio.io", "ServiceEntry"),
    ("gateway.networking.k8s.io", "Gateway"),
    ("gateway.networking.k8s.io", "GatewayClass"),
)


@independent
def check_labels(labels: Mapping[str, str], path: str, out: Findings) -> None:
    """Labels that a rule names."""
    for key, value in labels.items():
        if problem := label_key_problem(key) or label_value_problem(value):
            out.error(f"{path}[{key}]", problem)


@independent
def check_selector(selector: WorkloadSelector | UnsetType, path: str, out: Findings) -> None:
    """A selector of a policy."""
    if not isinstance(selector, UnsetType) and not selector.match_labels:
        out.warn(path, "workload selector specified without labels: it selects every workload")


@independent
def check_label_selector(selector: LabelSelector | UnsetType, path: str, out: Findings) -> None:
    """A selector of a Sidecar, ServiceEntry or EnvoyFilter."""
    if isinstance(selector, UnsetType):
        return
    for key, value in selector.labels.items():
        if not key:
            out.error(f"{path}.labels", "empty key is not supported in selector")
        if "*" in key or "*" in value:
            out.error(f"{path}.labels[{key}]", "wildcard is not supported in selector")
    if not selector.labels:
        out.warn(path, "workload selector specified without labels: it selects every workload")


@independent
def check_targets(
    selector: WorkloadSelector | UnsetType,
    target_ref: PolicyTargetReference | UnsetType,
    target_refs: Sequence[PolicyTargetReference] | UnsetType,
    out: Findings,
) -> None:
    """Whom a policy concerns, in all its ways."""
    if sum(way is not UNSET for way in (selector, target_ref, target_refs)) > 1:
        out.error("spec", "only one of targetRefs or selector can be set", "Conflict")
    check_selector(selector, "spec.selector", out)
    if not isinstance(target_ref, UnsetType):
        _check_target(target_ref, "spec.targetRef", out)
    for index, ref in enumerate(target_refs or ()):
        _check_target(ref, f"spec.targetRefs[{index}]", out)


@independent
def _check_target(ref: PolicyTargetReference, path: str, out: Findings) -> None:
    if ref.namespace:
        out.error(f"{path}.namespace", "cross namespace referencing is not currently supported")
    if (ref.group, ref.kind) not in _TARGETS:
        out.error(path, f"targetRef cannot be a {ref.kind} of {ref.group or 'core'!r}")


def check_export_to(
    export_to: Sequence[str],
    namespace: str,
    path: str,
    out: Findings,
    *,
    none_allowed: bool = False,
) -> set[str]:
    """`exportTo`; the namespaces it names, with `.` replaced."""
    seen: set[str] = set()
    for index, entry in enumerate(export_to):
        at = f"{path}[{index}]"
        own = namespace if entry == "." else entry
        if own in seen:
            out.error(at, f"duplicate entries in exportTo: {entry}", "Duplicate")
        elif own == "~" and not none_allowed:
            out.error(at, "exportTo ~ (none) is not allowed here")
        elif own not in ("*", "~") and not is_label(own):
            out.error(at, f"{entry!r} is not the name of a namespace, `.`, or `*`")
        else:
            seen.add(own)
    for alone in ("*", "~"):
        if alone in seen and len(export_to) > 1:
            out.error(path, f"cannot have both {alone} and other values in exportTo", "Conflict")
    return seen


@independent
def check_gateway_names(names: Sequence[str], path: str, out: Findings) -> None:
    """Names of Gateways, `NAMESPACE/NAME`."""
    for index, name in enumerate(names):
        at = f"{path}[{index}]"
        namespace, slash, short = name.partition("/")
        if not slash:
            if "." in name:
                parts = name.split(".")
                out.warn(at, f"using legacy gateway name {name!r}; prefer '{parts[1]}/{parts[0]}'")
            if problem := fqdn_problem(name):
                out.error(at, problem)
            continue
        if not is_label(namespace):
            out.error(at, f"{name!r}: {namespace!r} is not the name of a namespace")
        if not is_label(short):
            out.error(at, f"{name!r}: {short!r} is not the name of a gateway")
