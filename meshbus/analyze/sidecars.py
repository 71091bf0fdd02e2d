"""Sidecars: whom they are for, and who has two.

Source: Istio, analysis messages IST0101, IST0110, IST0111, IST0167.
"""

from collections.abc import Iterator

from meshbus.analyze.messages import Message, about
from meshbus.analyze.objects import (
    NETWORKING,
    Object,
    Objects,
    record,
    strings,
)
from meshbus.analyze.pod_selectors import by_namespace, names_of, selected_pods

_SELECTOR = "spec.workloadSelector.labels"
_AMBIENT = ("ambient.istio.io/redirection", "enabled")
_MODE = ("istio.io/dataplane-mode", "ambient")


def _selector(one: Object) -> dict[str, str]:
    return strings(record(one.spec.get("workloadSelector")).get("labels"))


def selectors(objects: Objects) -> Iterator[Message]:
    """Each is of some pod, no pod has two, and no namespace has two without a selector."""
    sidecars = list(objects.of(NETWORKING, "Sidecar"))
    selected = selected_pods(objects, sidecars, _selector, _SELECTOR)
    yield from selected.idle
    told: set[str] = set()
    for pod, held in selected.by_pod:
        ambient = pod.annotations.get(_AMBIENT[0]) == _AMBIENT[1]
        for one in held:
            if ambient and one.full_name not in told:
                told.add(one.full_name)
                message = "has no effect: the pods that it selects have no sidecars (ambient mode)"
                yield about(one, "IST0167", message, _SELECTOR)
            elif not ambient and len(held) > 1:
                names = names_of(held)
                message = f"pod {pod.namespace}/{pod.name} has several Sidecars: {names}"
                yield about(one, "IST0110", message, _SELECTOR)
    for namespace, several in by_namespace(one for one in sidecars if not _selector(one)):
        for one in several:
            if _is_ambient(objects.namespace(namespace)):
                if one.full_name not in told:
                    message = "has no effect: the namespace has no sidecars (ambient mode)"
                    yield about(one, "IST0167", message)
            elif len(several) > 1:
                names = names_of(several)
                message = f"several Sidecars of namespace {namespace} have no selector: {names}"
                yield about(one, "IST0111", message)


def _is_ambient(namespace: Object | None) -> bool:
    if namespace is None:
        return False
    labels = namespace.labels
    injected = labels.get("istio-injection") == "enabled" or labels.get("istio.io/rev")
    return not injected and labels.get(_MODE[0]) == _MODE[1]
