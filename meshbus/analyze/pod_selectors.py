"""Which pods the objects of a kind select, and which pod has several of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from meshbus.analyze.messages import Message, not_found
from meshbus.analyze.objects import Object, Objects, Pod, selects, shown


class SelectedPods(msgspec.Struct, frozen=True):
    """What selects the pods."""

    by_pod: list[tuple[Pod, list[Object]]]
    """Every pod, with the objects of its namespace that select it."""
    idle: list[Message]
    """Of each object that selects no pod."""


def selected_pods(
    objects: Objects,
    those: Iterable[Object],
    selector_of: Callable[[Object], Mapping[str, str]],
    field: str,
) -> SelectedPods:
    """Find the pods of objects that have a selector; those without one select nothing here.

    Args:
        field: Path of the selector in an object.
    """
    by_pod: list[tuple[Pod, list[Object]]] = [(pod, []) for pod in objects.pods]
    idle = []
    for one in those:
        selector = selector_of(one)
        if not selector:
            continue
        found = False
        for pod, held in by_pod:
            if pod.namespace == one.namespace and selects(selector, pod.labels):
                held.append(one)
                found = True
        if not found:
            idle.append(not_found(one, "selector", shown(selector), field=field))
    return SelectedPods(by_pod, idle)


def names_of(several: Iterable[Object]) -> str:
    """Their names, in order."""
    return ", ".join(sorted(one.name for one in several))


def by_namespace(those: Iterable[Object]) -> Iterator[tuple[str, list[Object]]]:
    """The objects of each namespace."""
    held: dict[str, list[Object]] = {}
    for one in those:
        held.setdefault(one.namespace, []).append(one)
    yield from held.items()
