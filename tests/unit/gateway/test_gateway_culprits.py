"""The search for who spoils a content."""

from math import log2

from hypothesis import given
from hypothesis import strategies as st
from meshbus_xds_gateway.culprits import Culprits


def searched(suspects, refuses, presumed=frozenset()):
    """The search at its end, and what was asked."""
    search, asked = Culprits(suspects, presumed), []
    while not search.done:
        asked.append(search.left_out)
        search.answer(not refuses(frozenset(suspects) - search.left_out))
    return search, asked


def test_one_suspect_is_asked_about_once():
    search, asked = searched(["a"], lambda kept: "a" in kept)
    assert asked == [{"a"}]
    assert search.blamed == ("a",)
    assert search.left_out == {"a"}


def test_the_last_is_blamed_first_and_nothing_else_is_ever_left_out():
    search, asked = searched(list("abcd"), lambda kept: "d" in kept)
    assert asked == [{"d"}]
    assert search.blamed == ("d",)


def test_two_that_do_not_go_together_cost_the_less_trusted_one():
    search, _ = searched(list("abcd"), lambda kept: {"a", "c"} <= kept)
    assert search.blamed == ("c",)


def test_who_was_at_fault_elsewhere_is_left_out_first():
    search, asked = searched(list("abcdefgh"), lambda kept: "b" in kept, frozenset("b"))
    assert asked == [{"b"}]
    assert search.left_out == {"b"}


def test_what_is_refused_without_any_is_nobodys_fault():
    search, _ = searched(list("abc"), lambda kept: True)
    assert search.innocent
    assert search.blamed == ()
    assert search.left_out == frozenset()
    assert Culprits([]).done


@given(
    st.integers(1, 24),
    st.lists(st.frozensets(st.integers(0, 23), min_size=1, max_size=3), min_size=1, max_size=4),
    st.frozensets(st.integers(0, 23)),
)
def test_it_ends_with_what_envoy_takes_and_blames_no_more_than_it_must(size, clashes, presumed):
    """Envoy refuses whatever holds all objects of some clash."""
    clashes = [clash for clash in clashes if max(clash) < size] or [frozenset({0})]
    suspects = list(range(size))

    def refuses(kept):
        return any(clash <= kept for clash in clashes)

    search, asked = searched(suspects, refuses, presumed)
    kept = frozenset(suspects) - search.left_out
    assert not search.innocent
    assert search.left_out == frozenset(search.blamed)
    assert not refuses(kept)
    assert search.left_out in asked, "Envoy was asked about exactly that"
    for blamed in search.blamed:
        assert refuses(kept | {blamed}), "it was left out for nothing"
    bound = len(search.blamed) * (2 + 2 * log2(size)) + 1 if size > 1 else 1
    assert len(asked) <= bound


@given(st.data(), st.integers(1, 9))
def test_it_ends_whatever_envoy_says(data, size):
    search = Culprits(list(range(size)))
    for _ in range(4 * size * size + 4):
        if search.done:
            break
        search.answer(data.draw(st.booleans()))
    assert search.done
