"""Telemetry: whom it is for, who has two, and providers.

Source: Istio, analysis messages IST0002, IST0101, IST0157, IST0159, IST0160.
"""

from collections.abc import Iterator

from meshbus.analyze.messages import Message, about
from meshbus.analyze.objects import (
    TELEMETRY,
    Object,
    Objects,
    record,
    records,
    strings,
    text,
)
from meshbus.analyze.pod_selectors import by_namespace, names_of, selected_pods

_SELECTOR = "spec.selector.matchLabels"


def _all(objects: Objects) -> Iterator[Object]:
    return objects.of(TELEMETRY, "Telemetry")


def _selector(one: Object) -> dict[str, str]:
    return strings(record(one.spec.get("selector")).get("matchLabels"))


def selectors(objects: Objects) -> Iterator[Message]:
    """Each with a selector is of some pod, and no pod has two."""
    selected = selected_pods(objects, _all(objects), _selector, _SELECTOR)
    yield from selected.idle
    for pod, several in selected.by_pod:
        names = names_of(several)
        for one in several if len(several) > 1 else ():
            message = f"pod {pod.namespace}/{pod.name} has several Telemetries: {names}"
            yield about(one, "IST0159", message, _SELECTOR)


def without_selector(objects: Objects) -> Iterator[Message]:
    """No namespace has two without a selector."""
    chosen = ("selector", "targetRef", "targetRefs")
    free = (one for one in _all(objects) if not any(one.spec.get(field) for field in chosen))
    for namespace, several in by_namespace(free):
        names = names_of(several)
        for one in several if len(several) > 1 else ():
            message = f"several Telemetries of namespace {namespace} have no selector: {names}"
            yield about(one, "IST0160", message)


def providers(objects: Objects) -> Iterator[Message]:
    """Access logs go somewhere."""
    if record(objects.mesh.get("defaultProviders")).get("accessLogging"):
        return
    for one in _all(objects):
        for index, logging in enumerate(records(one.spec.get("accessLogging"))):
            if logging.get("disabled") is not True and not records(logging.get("providers")):
                message = "access logs without providers: the mesh has no default ones"
                yield about(one, "IST0157", message, f"spec.accessLogging[{index}]")


def lightstep(objects: Objects) -> Iterator[Message]:
    """Nothing is told to a provider that will go."""
    names = {
        text(provider.get("name"))
        for provider in records(objects.mesh.get("extensionProviders"))
        if "lightstep" in provider
    }
    for one in _all(objects):
        for index, tracing in enumerate(records(one.spec.get("tracing"))):
            for at, provider in enumerate(records(tracing.get("providers"))):
                if (name := text(provider.get("name"))) in names:
                    message = f"Lightstep (provider {name}) is deprecated: use OpenTelemetry"
                    path = f"spec.tracing[{index}].providers[{at}].name"
                    yield about(one, "IST0002", message, path)
