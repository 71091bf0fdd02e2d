"""The least version that all unsettled clients have, against asking each of them."""

from hypothesis import given
from hypothesis import strategies as st
from meshbus_xds_gateway.unsettled import Unsettled

STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "discard", "advance"]), st.integers(0, 5)), max_size=40
)


@given(STEPS)
def test_the_least_is_that_of_all(steps: list[tuple[str, int]]) -> None:
    unsettled: Unsettled[int] = Unsettled()
    has: dict[int, int] = {}
    sequence = 1
    for what, client in steps:
        sequence += 1
        if what == "add":
            # It had all of the version before; what came then it lacks.
            has.setdefault(client, sequence - 1)
            unsettled.add(client, sequence - 1)
        elif what == "discard":
            has.pop(client, None)
            unsettled.discard(client)
        elif client in has:
            has[client] += 1
        assert set(unsettled) == set(has)
        assert len(unsettled) == len(has)
        expected = min((*has.values(), sequence))
        assert unsettled.least(has.__getitem__, sequence) == expected


def test_only_those_are_asked_who_may_be_the_least() -> None:
    unsettled: Unsettled[int] = Unsettled()
    for client in range(1000):
        unsettled.add(client, 7)
    asked = []

    def converged(client: int) -> int:
        asked.append(client)
        return 7

    assert unsettled.least(converged, 8) == 7
    assert len(asked) == 1
