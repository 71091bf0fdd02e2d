"""Layers: what proxies of a class share of one resource type.

The resources that a proxy gets of one type are a few layers with disjoint names: what its scope
sees, what its workload serves. Proxies hold the same layer objects, so that what follows from a
layer (a difference, the bytes of a response) is computed once for all of them.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from meshbus.compile.resources import Resource

T = TypeVar("T")


class Layer(dict[str, Resource]):
    """Resources by name. Never changed after it was made; equal layers made by `layer_of` are one
    object."""

    __slots__ = ("__weakref__", "derived")

    def __init__(
        self, resources: Mapping[str, Resource] | Iterable[tuple[str, Resource]] = ()
    ) -> None:
        super().__init__(resources)
        self.derived: dict[Any, Any] = {}
        """What was computed from this layer and others, for `remembered`."""


NO_RESOURCES = Layer()
_interned: "weakref.WeakValueDictionary[int, Layer]" = weakref.WeakValueDictionary()
_MAX_DERIVED = 64


def layer_of(resources: dict[str, Resource]) -> Layer:
    """The one layer of this content."""
    if not resources:
        return NO_RESOURCES
    # Resources are interned: equal layers, made in the same order, hold the same objects.
    digest = hash(tuple(resources.values()))
    found = _interned.get(digest)
    if found is not None and found == resources:
        return found
    layer = Layer(resources)
    if found is None:
        _interned[digest] = layer
    return layer


def remembered(
    derived: dict[Any, Any], tag: str, others: tuple[Any, ...], make: Callable[[], T]
) -> T:
    """What `make` gives for these objects, made once as long as all of them live.

    Others are held weakly: a layer that a slow proxy keeps must not keep all that came after it.
    """
    identity = (tag, *map(id, others))
    found = derived.get(identity)
    if found is not None:
        # Asked for each proxy of each push: a plain loop costs a third of a generator.
        for reference, other in zip(found[0], others, strict=True):
            if reference() is not other:
                break
        else:
            hit: T = found[1]
            return hit
    if len(derived) >= _MAX_DERIVED:
        derived.clear()
    value = make()
    derived[identity] = (tuple(weakref.ref(other) for other in others), value)
    return value
