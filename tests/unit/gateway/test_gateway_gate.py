"""Who is let in when many come at once."""

from hypothesis import given
from hypothesis import strategies as st
from meshbus_xds_gateway.gate import Gate, GateLimits

KB = 1024


def test_all_are_let_in_at_once_while_there_is_room() -> None:
    gate: Gate[str] = Gate()
    for name in "abc":
        assert gate.offer(name, 100)
    assert [gate.take(0.0) for _ in range(4)] == ["a", "b", "c", None]
    assert gate.opening == 3
    assert gate.room_at() is None, "nobody waits"


def test_how_many_may_open_follows_from_what_they_are_given() -> None:
    gate: Gate[int] = Gate(GateLimits(opening_bytes=1000 * KB, opening_least=2, opening_most=50))
    for stream in range(500):
        gate.offer(stream, 10)
    limits = []
    for size in (200 * KB, 10 * KB):
        for _ in range(150):
            stream = gate.take(0.0)
            assert stream is not None
            gate.sent(stream, size)
            assert gate.settled(stream)
        limits.append(gate.may_open)
    assert limits[0] in (4, 5), "1,000 kB in parts of 200"
    assert limits[1] == 50, "small ones: the most that may be opening"


def test_the_rest_wait_in_order_until_one_has_settled_or_hangs() -> None:
    gate: Gate[int] = Gate(GateLimits(opening_least=2, opening_most=2, opening_s=5.0))
    for stream in range(5):
        gate.offer(stream, 10)
    assert [gate.take(1.0), gate.take(2.0), gate.take(2.0)] == [0, 1, None]
    assert gate.room_at() == 6.0
    gate.settled(1)
    assert gate.take(2.0) == 2
    assert gate.take(5.9) is None
    assert gate.take(6.0) == 3, "0 said nothing for 5 s: it stands in nobody's way"
    gate.drop(4)
    assert gate.take(100.0) is None
    assert gate.waiting == 0


def test_what_waits_is_bounded_in_number_and_bytes() -> None:
    gate: Gate[int] = Gate(GateLimits(waiting=3, waiting_bytes=250))
    assert all(gate.offer(stream, 100) for stream in range(3))
    assert not gate.offer(3, 100), "no place"
    assert not gate.reads, "more than 250 bytes wait: the next ones are not read yet"
    gate.drop(0)
    assert gate.reads
    assert not gate.offer(3, 900), "four times as much is too much for what was read all the same"
    assert gate.offer(3, 800)
    gate = Gate(GateLimits(waiting_bytes=1000))
    assert gate.offer(1, 5000), "one alone may be larger than that"


def test_how_long_one_would_wait_is_known() -> None:
    gate: Gate[int] = Gate(GateLimits(opening_least=1, opening_most=1))
    for stream in range(1000):
        gate.offer(stream, 1)
    now = 0.0
    while gate.waiting > 500:
        stream = gate.take(now)
        assert stream is not None
        now += 0.1
        gate.settled(stream)
    assert 45 < gate.wait_s < 51


@given(st.lists(st.tuples(st.sampled_from(["offer", "take", "settle", "drop"]), st.integers(0, 9))))
def test_bytes_and_places_are_given_back(steps: list[tuple[str, int]]) -> None:
    gate: Gate[int] = Gate(
        GateLimits(waiting=4, waiting_bytes=100, opening_least=2, opening_most=2)
    )
    known: set[int] = set()
    order: list[int] = []
    for now, (step, stream) in enumerate(steps):
        if step == "offer" and stream not in known and gate.offer(stream, 20):
            known.add(stream)
            order.append(stream)
        elif step == "take":
            taken = gate.take(float(now))
            if taken is not None:
                assert taken == order.pop(0), "in order"
        elif step == "settle":
            gate.settled(stream)
            known.discard(stream) if stream not in order else None
        elif step == "drop":
            gate.drop(stream)
            known.discard(stream)
            if stream in order:
                order.remove(stream)
        assert gate.waiting == len(order) <= 4
        assert gate.opening <= 2
    for stream in range(10):
        gate.drop(stream)
    assert all(gate.offer(stream, 25) for stream in range(4)), "nothing is kept of those who left"
