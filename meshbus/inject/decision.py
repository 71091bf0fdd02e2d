"""Whether a pod gets a sidecar.

Source: https://istio.io/latest/docs/setup/additional-setup/sidecar-injection/ and Istio's order of
rules: host network, system namespaces, label, annotation, never, always, policy.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from meshbus.inject.annotations import INJECT
from meshbus.inject.errors import InjectionError
from meshbus.inject.selectors import check_selectors, is_empty, selects
from meshbus.inject.values import lookup

IGNORED_NAMESPACES = frozenset(
    {"kube-system", "kube-public", "kube-node-lease", "local-path-storage"}
)
_YES = frozenset({"y", "yes", "true", "on"})


class Decision(NamedTuple):
    """Whether, and why not."""

    inject: bool
    reason: str = ""


class Policy(NamedTuple):
    """Who gets a sidecar, of the chart's values."""

    enabled: bool
    never: list[Mapping[str, Any]]
    always: list[Mapping[str, Any]]


def policy_of(values: Mapping[str, Any]) -> Policy:
    """Raises:
    InjectionError: A value is not what it should be.
    """
    word = lookup(values, "global", "proxy", "autoInject")
    if word not in ("enabled", "disabled"):
        path = "global.proxy.autoInject"
        raise InjectionError(path, f"must be enabled or disabled, is {word!r}")
    webhook = "sidecarInjectorWebhook"
    never, always = (
        check_selectors(lookup(values, webhook, name), f"{webhook}.{name}")
        for name in ("neverInjectSelector", "alwaysInjectSelector")
    )
    return Policy(word == "enabled", never, always)


def decide(policy: Policy, pod: Mapping[str, Any], namespace: str) -> Decision:
    """Whether a pod (metadata and spec) of a namespace gets a sidecar."""
    metadata = pod.get("metadata") or {}
    if (pod.get("spec") or {}).get("hostNetwork"):
        return Decision(False, "has host networking enabled")
    if namespace in IGNORED_NAMESPACES:
        return Decision(False, f"is in the system namespace {namespace}")
    labels = metadata.get("labels") or {}
    wish = labels[INJECT] if INJECT in labels else (metadata.get("annotations") or {}).get(INJECT)
    if wish is not None and str(wish) != "":
        if str(wish).lower() in _YES:
            return Decision(True)
        return Decision(False, "has sidecar injection disabled")
    if any(not is_empty(s) and selects(s, labels) for s in policy.never):
        return Decision(False, "is chosen by neverInjectSelector")
    if any(not is_empty(s) and selects(s, labels) for s in policy.always):
        return Decision(True)
    if policy.enabled:
        return Decision(True)
    return Decision(False, "asks for no sidecar, and autoInject is disabled")
