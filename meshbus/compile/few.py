"""Collections of distinct items of which there are mostly one or two.

One item is kept as itself, a few in a tuple, more in a dict of None, in the order in which they
came: of a hundred thousand nodes most have read one or two things. A tuple of one takes 48 bytes,
an empty set 216; of two thousand a dict takes half of what a set does. Items are no tuples and no
dicts themselves (named tuples are others), and not None.
"""

from collections.abc import Collection
from typing import Any, TypeAlias, TypeVar, Union

T = TypeVar("T")

Few: TypeAlias = Union[T, tuple[T, ...], dict[T, None]]  # noqa: UP007 (of a TypeVar)
_MOST = 4


def each(held: Any) -> Collection[Any]:
    """The items of a `Few`, to go through or to look one up. (Which items, mypy does not find out
    when they are named tuples.)"""
    kind = type(held)
    if kind is tuple or kind is dict:
        found: Collection[Any] = held
        return found
    return (held,)


def with_item(held: Few[T], item: T, most: int = _MOST) -> Few[T]:
    """`held` and `item`, which may be in it. A dict is changed, not copied; more than `most` are
    one."""
    if held == ():
        return item
    if type(held) is dict:
        held[item] = None
        return held
    found = each(held)
    if item in found:
        return held
    return (*found, item) if len(found) < most else dict.fromkeys((*found, item))


def without(held: Few[T], item: T) -> Few[T]:
    """`held` without `item`, the object itself. A dict is changed, not copied."""
    if held is item:
        return ()
    if type(held) is dict:
        held.pop(item, None)
        return held
    return settled(tuple(i for i in each(held) if i is not item))


def settled(held: Few[T]) -> Few[T]:
    """What will be added to no more, however many: a fifth of a dict."""
    items = tuple(each(held))
    return items[0] if len(items) == 1 else items
