"""Values of the chart that injection reads, named as Istio's charts name them.

The chart's own `values.yaml` holds the same defaults; a test compares them.
Source: https://artifacthub.io/packages/helm/istio-official/istiod (names and meanings).
"""

from collections.abc import Mapping
from typing import Any

from meshbus.inject.helm_set import merge_values

DEFAULT_VALUES: dict[str, Any] = {
    "revision": "",
    "meshConfig": {},
    "pilot": {"cni": {"enabled": False, "provider": "default"}, "env": {}},
    "global": {
        "hub": "meshbus",
        "tag": "",
        "istioNamespace": "istio-system",
        "imagePullPolicy": "",
        "imagePullSecrets": [],
        "logAsJson": False,
        "logging": {"level": "default:info"},
        "meshID": "",
        "network": "",
        "multiCluster": {"clusterName": ""},
        "mountMtlsCerts": False,
        "podDNSSearchNamespaces": [],
        "caAddress": "",
        "trustBundleName": "meshbus-ca-root-cert",
        "sds": {"token": {"aud": "istio-ca"}},
        "proxy": {
            "autoInject": "enabled",
            "image": "proxy",
            "clusterDomain": "cluster.local",
            "componentLogLevel": "misc:error",
            "logLevel": "warning",
            "privileged": False,
            "readinessInitialDelaySeconds": 0,
            "readinessPeriodSeconds": 15,
            "readinessFailureThreshold": 4,
            "startupProbe": {"enabled": True, "failureThreshold": 600},
            "statusPort": 15020,
            "includeIPRanges": "*",
            "excludeIPRanges": "",
            "includeInboundPorts": "*",
            "excludeInboundPorts": "",
            "includeOutboundPorts": "",
            "excludeOutboundPorts": "",
            "holdApplicationUntilProxyStarts": False,
            "lifecycle": {},
            "resources": {
                "requests": {"cpu": "100m", "memory": "128Mi"},
                "limits": {"cpu": "2000m", "memory": "1024Mi"},
            },
        },
        "proxy_init": {"image": "init", "forceApplyIptables": False},
    },
    "sidecarInjectorWebhook": {
        "neverInjectSelector": [],
        "alwaysInjectSelector": [],
        "injectedAnnotations": {},
        "enableNamespacesByDefault": False,
        "reinvocationPolicy": "Never",
        "rewriteAppHTTPProbe": True,
        "templates": {},
        "defaultTemplates": [],
        "templateAliases": {},
    },
}

ALIASES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("components", "cni"), ("pilot", "cni")),
    (("istio_cni",), ("pilot", "cni")),
    (("cni",), ("pilot", "cni")),
)
"""Where values of Istio's older charts and of its operator went."""


def chart_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values in force: what was given, over the defaults.

    Args:
        given: Values as people write them; those below `values` (Istio's operator) count too.
    """
    given = dict(given)
    nested = given.pop("values", None)
    if isinstance(nested, Mapping):
        given = _over(given, nested)
    for old, new in ALIASES:
        found = lookup(given, *old)
        if isinstance(found, Mapping):
            _remove(given, old)
            for part in reversed(new):
                found = {part: found}
            given = _over(given, found)
    return merge_values(DEFAULT_VALUES, given)


def _over(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Like `merge_values`, but null stays: it has yet to remove a default."""
    merged = dict(base)
    for key, value in over.items():
        held = merged.get(key)
        both = isinstance(held, Mapping) and isinstance(value, Mapping)
        merged[key] = _over(held, value) if both else value  # type: ignore[arg-type]
    return merged


def _remove(values: dict[str, Any], path: tuple[str, ...]) -> None:
    if len(path) == 1:
        values.pop(path[0], None)
        return
    held = values.get(path[0])
    if isinstance(held, Mapping):
        copy = dict(held)
        _remove(copy, path[1:])
        values[path[0]] = copy


def lookup(values: Any, *path: str) -> Any:
    """The value at a path; None where there is none."""
    for step in path:
        if not isinstance(values, Mapping):
            return None
        values = values.get(step)
    return values


def text(value: Any) -> str:
    """A value as a template writes it: truth values in lower case, whole numbers without a point,
    nothing for null."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
