"""A mirror that is held makes one step of everything that came, and reads each row once."""

from hypothesis import given
from hypothesis import strategies as st

from meshbus.bus.interface import Message
from meshbus.bus.mirror import WorldMirror
from meshbus.model.envelope import seal
from meshbus.model.keys import Key, subject_of
from meshbus.model.rows import Namespace, encode_row
from meshbus.model.world import Query, World

NAMES = st.sampled_from("abc")
WRITES = st.lists(st.tuples(NAMES, st.none() | st.integers(0, 3)), max_size=8)


def key(name: str) -> Key:
    return Key("c", "reg", "namespaces", "", name)


def message(name: str, value: int | None, sequence: int) -> Message:
    row = None if value is None else Namespace(name, {"v": str(value)})
    data = b"" if row is None else seal(key(name), encode_row(row), ts=0.0, writer="w")
    return Message(subject_of(key(name)), data, sequence)


def mirrored() -> tuple[WorldMirror, list[tuple[int, frozenset[Query]]]]:
    mirror = WorldMirror()
    mirror.begin()
    mirror.end(0)
    steps: list[tuple[int, frozenset[Query]]] = []
    mirror.subscribe(lambda world, touched: steps.append((world.sequence, touched)))
    return mirror, steps


def rows(world: World) -> list[object]:
    return [entry.row for entry in world.all("reg.namespaces")]


@given(WRITES, WRITES, WRITES)
def test_what_comes_while_it_is_held_is_one_step(
    first: list[tuple[str, int | None]],
    held: list[tuple[str, int | None]],
    last: list[tuple[str, int | None]],
) -> None:
    mirror, steps = mirrored()
    plain, _ = mirrored()
    sequence = 0
    for part in (first, held, last):
        if part is held:
            mirror.hold()
        made = len(steps)
        for name, value in part:
            sequence += 1
            for one in (mirror, plain):
                one.apply([message(name, value, sequence)])
        if part is held:
            assert len(steps) == made
            mirror.release()
            assert len(steps) == made + bool(held)
        assert rows(mirror.world) == rows(plain.world)
        assert mirror.world.sequence == plain.world.sequence
    assert [at for at, _ in steps] == sorted({at for at, _ in steps}), "never back, never twice"


def test_a_row_that_changes_often_is_read_once() -> None:
    mirror, steps = mirrored()
    mirror.hold()
    unreadable = Message(subject_of(key("a")), b"\xc1", 1)
    mirror.apply([unreadable])
    mirror.apply([message("a", n, 2 + n) for n in range(5)])
    assert mirror.world.get(key("a")) is None
    mirror.release()
    assert not mirror.poisoned, "what was replaced was not looked at"
    assert mirror.world.get(key("a")) == Namespace("a", {"v": "4"})
    assert [at for at, _ in steps] == [6]


def test_a_snapshot_ends_the_hold() -> None:
    mirror, steps = mirrored()
    mirror.hold()
    mirror.apply([message("a", 1, 1), message("b", 1, 2)])
    mirror.begin()
    assert [at for at, _ in steps] == [2], "what was held is older than the snapshot"
    mirror.apply([message("b", 2, 3)])
    mirror.end(3)
    assert rows(mirror.world) == [Namespace("b", {"v": "2"})]
    mirror.release()
    mirror.apply([message("c", 1, 4)])
    assert [at for at, _ in steps] == [2, 3, 4]


def test_to_let_go_of_nothing_is_no_step() -> None:
    mirror, steps = mirrored()
    mirror.release()
    mirror.hold()
    mirror.release()
    assert steps == []
