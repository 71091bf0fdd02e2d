"""`Few` is a set, in the order in which items came, whatever it is kept in."""

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from meshbus.compile.few import Few, each, settled, with_item, without


class Pair(NamedTuple):
    """An item that is a tuple."""

    left: int
    right: int


PAIRS = tuple(Pair(n, -n) for n in range(12))


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(PAIRS))), st.integers(1, 6))
def test_it_holds_what_a_set_in_order_would(steps: list[tuple[bool, Pair]], most: int) -> None:
    held: Few[Pair] = ()
    model: dict[Pair, None] = {}
    for add, pair in steps:
        if add:
            held = with_item(held, pair, most)
            model[pair] = None
        else:
            held = without(held, pair)
            model.pop(pair, None)
        assert list(each(held)) == list(model)
        assert bool(held) == bool(model)
        assert (pair in each(held)) == (pair in model)
    assert list(each(settled(held))) == list(model)


def test_one_item_is_kept_as_itself() -> None:
    assert with_item((), PAIRS[0]) is PAIRS[0]
    assert settled({PAIRS[0]: None}) is PAIRS[0]
    assert without((PAIRS[0], PAIRS[1]), PAIRS[1]) is PAIRS[0]
