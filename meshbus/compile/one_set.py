"""Equal sets as one object: thousands of resources come from the same few rows, and a frozenset
takes 216 bytes whatever is in it."""

import weakref
from collections.abc import Iterable
from typing import Any, TypeVar

T = TypeVar("T")

_sets: "weakref.WeakKeyDictionary[frozenset[Any], weakref.ref[frozenset[Any]]]" = (
    weakref.WeakKeyDictionary()
)


def one_set(items: Iterable[T]) -> frozenset[T]:
    """The one set of these items, for as long as somebody has it."""
    made = items if type(items) is frozenset else frozenset(items)
    reference = _sets.get(made)
    found = reference() if reference is not None else None
    if found is None:
        _sets[made] = weakref.ref(made)
        return made
    return found
