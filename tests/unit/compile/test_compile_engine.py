"""The incremental engine: same values as from scratch, and no work that is not needed."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshbus.compile.engine import CycleError, Engine, Reader
from meshbus.model.keys import Key
from meshbus.model.rows import Namespace
from meshbus.model.world import Put, Query, World

TABLE = "reg.namespaces"


def key(name: str) -> Key:
    return Key("c", "reg", "namespaces", "", name)


def put(world: World, **rows: str | None) -> tuple[World, Any]:
    """Rows by name; the text goes to label `v`, None deletes."""
    return world.apply(
        Put(key(n), world.sequence + 1, 0.0, None if v is None else Namespace(n, {"v": v}))
        for n, v in rows.items()
    )


def text(reader: Reader, name: str) -> str:
    row = reader.get(key(name))
    return "" if row is None else str(row.labels["v"])


def names(reader: Reader) -> tuple[str, ...]:
    return tuple(e.row.name for e in reader.entries(Query(TABLE, "all", None)))


def length(reader: Reader, name: str) -> int:
    return len(reader.node(text, name))


def total(reader: Reader) -> int:
    return sum(reader.node(length, n) for n in reader.node(names))


def follow(reader: Reader, name: str, depth: int) -> str:
    """Follows names: what it reads depends on what it has read."""
    value = reader.node(text, name)
    return value if depth == 0 else value + "/" + reader.node(follow, value, depth - 1)


def strict(reader: Reader, name: str) -> str:
    row = reader.get(key(name))
    if row is None:
        raise LookupError(name)
    return str(row.labels["v"])


def tolerant(reader: Reader, name: str) -> str:
    try:
        return reader.node(strict, name)
    except LookupError:
        return "absent"


def test_only_what_read_the_changed_row_runs_again() -> None:
    world, _ = put(World(), a="1", b="22", c="333")
    engine = Engine(world)
    assert engine.get(total) == 6
    before = engine.counters.copy()
    world, touched = put(world, b="4444")
    engine.update(world, touched)
    assert engine.get(total) == 8
    done = engine.counters.since(before)
    assert done.recomputed == {"text": 1, "length": 1, "names": 1, "total": 1}
    assert done.cutoffs == {"names": 1}


def test_an_equal_result_stops_the_work() -> None:
    world, _ = put(World(), a="1", b="22")
    engine = Engine(world)
    engine.get(total)
    before = engine.counters.copy()
    world, touched = put(world, b="xx")
    engine.update(world, touched)
    assert engine.get(total) == 3
    assert engine.counters.since(before).recomputed == {"text": 1, "length": 1, "names": 1}


def test_an_unread_row_costs_nothing() -> None:
    world, _ = put(World(), a="1", b="22")
    engine = Engine(world)
    engine.get(length, "a")
    before = engine.counters.copy()
    world, touched = put(world, b="xx")
    engine.update(world, touched)
    engine.get(length, "a")
    assert not engine.counters.since(before).recomputed


def test_an_error_is_the_value_until_what_it_read_changes() -> None:
    engine = Engine(World())
    with pytest.raises(LookupError):
        engine.get(strict, "a")
    assert engine.get(tolerant, "a") == "absent"
    world, touched = put(World(), a="here")
    engine.update(world, touched)
    assert engine.get(strict, "a") == "here"
    assert engine.get(tolerant, "a") == "here"


def test_a_cycle_is_an_error() -> None:
    engine = Engine(World())

    with pytest.raises(CycleError):
        engine.get(_ouroboros)


def _ouroboros(reader: Reader) -> int:
    return 1 + reader.node(_tail)


def _tail(reader: Reader) -> int:
    return reader.node(_ouroboros)


def test_what_nobody_needs_is_dropped() -> None:
    world, _ = put(World(), a="1", b="22")
    engine = Engine(world)
    engine.get(total)
    engine.get(length, "a")
    world, touched = put(world, b=None)
    engine.update(world, touched)
    engine.get(total)
    assert engine.size() == 4  # total, names, length(a), text(a)
    engine.release(total)
    assert engine.size() == 2
    engine.release(length, "a")
    assert engine.size() == 0
    world, touched = put(world, a="5")
    engine.update(world, touched)
    assert engine.get(length, "a") == 1


def test_a_changed_path_drops_the_old_one() -> None:
    world, _ = put(World(), a="b", b="c", c="d", d="a", x="y", y="z")
    engine = Engine(world)
    assert engine.get(follow, "a", 3) == "b/c/d/a"
    world, touched = put(world, a="x")
    engine.update(world, touched)
    assert engine.get(follow, "a", 3) == "x/y/z/"


NAMES = st.sampled_from(["a", "b", "c", "d", "e"])
DELTAS = st.lists(
    st.dictionaries(NAMES, st.one_of(st.none(), NAMES, st.just("ab")), min_size=1, max_size=3),
    max_size=8,
)


@given(DELTAS, st.lists(st.booleans(), min_size=8, max_size=8))
@settings(max_examples=200, deadline=None)
def test_incremental_equals_from_scratch(
    deltas: list[dict[str, str | None]], asked: list[bool]
) -> None:
    world = World()
    engine = Engine(world)
    questions: list[tuple[Any, ...]] = [
        (total,),
        *((follow, n, 4) for n in "abc"),
        *((tolerant, n) for n in "abcde"),
    ]
    for delta, ask in zip(deltas, asked, strict=False):
        world, touched = put(world, **delta)
        engine.update(world, touched)
        if ask:
            scratch = Engine(world)
            for fn, *args in questions:
                assert engine.get(fn, *args) == scratch.get(fn, *args)
    scratch = Engine(world)
    for fn, *args in questions:
        assert engine.get(fn, *args) == scratch.get(fn, *args)
    assert engine.size() == scratch.size()


def seen(reader: Reader) -> tuple[Key, ...]:
    return reader.keys(Query(TABLE, "all", None))


def test_who_asks_for_keys_runs_when_rows_come_and_go() -> None:
    world, _ = put(World(), a="1", b="2")
    engine = Engine(world)
    assert engine.get(seen) == (key("a"), key("b"))
    for change, expected, runs in (
        ({"a": "9"}, (key("a"), key("b")), 0),
        ({"b": None}, (key("a"),), 1),
        ({"c": "1"}, (key("a"), key("c")), 1),
    ):
        before = engine.counters.copy()
        world, touched = put(world, **change)
        engine.update(world, touched)
        assert engine.get(seen) == expected
        assert engine.counters.since(before).recomputed["seen"] == runs


def letters(reader: Reader, name: str) -> tuple[list[str], ...]:
    """A list for each letter of a text, taken over where the letter is the one before."""
    word = reader.node(strict, name)
    old = {part[0]: part for part in reader.before() or ()}
    return tuple(old.get(letter) or [letter] for letter in word)


def test_a_node_may_take_over_parts_of_what_it_was() -> None:
    world, _ = put(World(), a="xy")
    engine = Engine(world)
    x, _ = engine.get(letters, "a")
    for text, kept in (("zx", True), (None, False), ("x", False)):
        world, touched = put(world, a=text)
        engine.update(world, touched)
        if text is None:
            with pytest.raises(LookupError):
                engine.get(letters, "a")
            continue
        parts = engine.get(letters, "a")
        assert parts == tuple([letter] for letter in text)
        assert any(part is x for part in parts) is kept, "nothing is left of an error"
