"""Policies of security: whom they are for, and what they name.

Source: Istio, analysis messages IST0101, IST0127, IST0166.
"""

from collections.abc import Iterator

from meshbus.analyze.messages import Message, about, not_found
from meshbus.analyze.objects import (
    EXTENSIONS,
    SECURITY,
    TELEMETRY,
    Object,
    Objects,
    record,
    records,
    selects,
    shown,
    strings,
    texts,
)

_SELECTOR = "spec.selector.matchLabels"
_GATEWAY_NAME = "gateway.networking.k8s.io/gateway-name"
_KINDS = (
    (SECURITY, "AuthorizationPolicy"),
    (SECURITY, "RequestAuthentication"),
    (TELEMETRY, "Telemetry"),
    (EXTENSIONS, "WasmPlugin"),
)


def _targets(one: Object) -> bool:
    return bool(one.spec.get("targetRef") or one.spec.get("targetRefs"))


def workloads(objects: Objects) -> Iterator[Message]:
    """Each AuthorizationPolicy is of some pod of the mesh."""
    inside = [pod for pod in objects.pods if pod.in_mesh]
    for one in objects.of(SECURITY, "AuthorizationPolicy"):
        if _targets(one):
            continue
        chosen = one.spec.get("selector")
        selector = strings(record(chosen).get("matchLabels"))
        everywhere = one.namespace == objects.root_namespace
        if everywhere and not isinstance(chosen, dict):
            continue
        near = [pod for pod in inside if everywhere or pod.namespace == one.namespace]
        if not any(selects(selector, pod.labels) for pod in near):
            what = f"with labels {shown(selector)}" if selector else "in the namespace"
            yield about(one, "IST0127", f"there is no workload of the mesh {what}", _SELECTOR)


def namespaces(objects: Objects) -> Iterator[Message]:
    """Namespaces that callers come from are there."""
    known = [one.name for one in objects.of("", "Namespace")]
    for one in objects.of(SECURITY, "AuthorizationPolicy"):
        for path, name in _named(one):
            if not any(_fits(name, namespace) for namespace in known):
                yield not_found(one, "namespace", name, path)


def _named(one: Object) -> Iterator[tuple[str, str]]:
    for index, rule in enumerate(records(one.spec.get("rules"))):
        for at, origin in enumerate(records(rule.get("from"))):
            source = record(origin.get("source"))
            for field in ("namespaces", "notNamespaces"):
                for place, name in enumerate(texts(source.get(field))):
                    yield f"spec.rules[{index}].from[{at}].source.{field}[{place}]", name


def _fits(pattern: str, name: str) -> bool:
    if pattern.startswith("*"):
        return name.endswith(pattern[1:])
    if pattern.endswith("*"):
        return name.startswith(pattern[:-1])
    return name.lower() == pattern.lower()


def gateway_selectors(objects: Objects) -> Iterator[Message]:
    """Policies reach gateways of the Gateway API by reference, not by labels of their pods."""
    pods = [pod for pod in objects.pods if _GATEWAY_NAME in pod.labels]
    for group, kind in _KINDS:
        for one in objects.of(group, kind):
            selector = one.spec.get("selector")
            if _targets(one) or not isinstance(selector, dict):
                continue
            labels = strings(selector.get("matchLabels"))
            for pod in pods:
                if pod.namespace == one.namespace and selects(labels, pod.labels):
                    name = pod.labels[_GATEWAY_NAME]
                    message = f"has no effect on Gateway {name}: name it in targetRefs"
                    yield about(one, "IST0166", message, _SELECTOR)
