"""Sidecars: whom they are for, and who has two.

Source: Istio, analysis messages IST0101, IST0110, IST0111, IST0167.
"""

from collections.abc import Iterator

from meshbus.analyze.messages import Message, about, not_found
from meshbus.analyze.objects import (
    NETWORKING,
    Object,
    Objects,
    Pod,
    record,
    selects,
    shown,
    strings,
)

_SELECTOR = "spec.workloadSelector.labels"
_AMBIENT = ("ambient.istio.io/redirection", "enabled")
_MODE = ("istio.io/dataplane-mode", "ambient")


def selectors(objects: Objects) -> Iterator[Message]:
    """Each is of some pod, no pod has two, and no namespace has two without a selector."""
    of_pods: list[tuple[Pod, list[Object]]] = [(pod, []) for pod in objects.pods]
    of_namespaces: dict[str, list[Object]] = {}
    for one in objects.of(NETWORKING, "Sidecar"):
        selector = strings(record(one.spec.get("workloadSelector")).get("labels"))
        if not selector:
            of_namespaces.setdefault(one.namespace, []).append(one)
            continue
        found = False
        for pod, held in of_pods:
            if pod.namespace == one.namespace and selects(selector, pod.labels):
                held.append(one)
                found = True
        if not found:
            yield not_found(one, "selector", shown(selector), field=_SELECTOR)
    told: set[str] = set()
    for pod, held in of_pods:
        ambient = pod.annotations.get(_AMBIENT[0]) == _AMBIENT[1]
        for one in held:
            if ambient and one.full_name not in told:
                told.add(one.full_name)
                message = "has no effect: the pods that it selects have no sidecars (ambient mode)"
                yield about(one, "IST0167", message, _SELECTOR)
            elif not ambient and len(held) > 1:
                names = ", ".join(sorted(other.name for other in held))
                message = f"pod {pod.namespace}/{pod.name} has several Sidecars: {names}"
                yield about(one, "IST0110", message, _SELECTOR)
    for namespace, several in of_namespaces.items():
        for one in several:
            if _is_ambient(objects.namespace(namespace)):
                if one.full_name not in told:
                    message = "has no effect: the namespace has no sidecars (ambient mode)"
                    yield about(one, "IST0167", message)
            elif len(several) > 1:
                names = ", ".join(sorted(other.name for other in several))
                message = f"several Sidecars of namespace {namespace} have no selector: {names}"
                yield about(one, "IST0111", message)


def _is_ambient(namespace: Object | None) -> bool:
    if namespace is None:
        return False
    labels = namespace.labels
    injected = labels.get("istio-injection") == "enabled" or labels.get("istio.io/rev")
    return not injected and labels.get(_MODE[0]) == _MODE[1]
