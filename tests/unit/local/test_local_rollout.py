"""Instances of a workload are brought to what was asked for last, a step at a time."""

from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshbus.api.standalone import Strategy, Workload
from meshbus.local.desired import InstanceSpec
from meshbus.local.rollout import Running, Steps, next_steps, status_of


def asked(count: int, version: str, **spec: object) -> list[InstanceSpec]:
    workload = Workload(command=["run", version], replicas=count, **spec)  # type: ignore[arg-type]
    return [InstanceSpec("shop", f"web-{n}", "web", {}, workload) for n in range(count)]


class Machine:
    """Carries steps out; who is ready is decided by the test."""

    def __init__(self, *, broken: Iterable[str] = (), room: bool = True) -> None:
        self.running: dict[str, Running] = {}
        self.leaving: set[str] = set()
        self.broken = set(broken)
        """Versions that never get ready."""
        self.room = room

    def step(self, wanted: list[InstanceSpec]) -> Steps:
        steps = next_steps(wanted, self.running, self.leaving, room=self.room)
        for spec in steps.relabel:
            self.running[spec.id] = self.running[spec.id]._replace(spec=spec)
        for name in (*steps.replace, *steps.remove):
            del self.running[name]
            self.leaving.add(name)
        for spec in steps.start:
            assert spec.id not in self.running
            self.running[spec.id] = Running(spec, False)
        return steps

    def version(self, name: str) -> str:
        return self.running[name].spec.spec.command[1]

    def settle(self, name: str) -> None:
        """What was begun with this instance is over."""
        if name in self.leaving:
            self.leaving.discard(name)
        elif name in self.running and self.version(name) not in self.broken:
            self.running[name] = self.running[name]._replace(ready=True)

    @property
    def serving(self) -> int:
        return sum(bool(held.ready) for held in self.running.values())

    def all_settled(self) -> None:
        for name in (*self.leaving, *self.running):
            self.settle(name)

    def until_still(self, wanted: list[InstanceSpec]) -> int:
        """Until nothing moves any more; the fewest that served meanwhile."""
        least = self.serving
        for _ in range(100):
            before = dict(self.running), set(self.leaving)
            self.step(wanted)
            least = min(least, self.serving)
            self.all_settled()
            if (self.running, self.leaving) == before:
                return least
        raise AssertionError("it never ends")


def names_and_versions(machine: Machine) -> dict[str, str]:
    return {name: machine.version(name) for name in sorted(machine.running)}


@given(
    count=st.integers(1, 4),
    room=st.booleans(),
    changes=st.lists(st.sampled_from("abcd"), max_size=3),
    moves=st.lists(st.integers(0, 5), max_size=60),
)
def test_whatever_moves_first_nobody_is_missed(
    count: int, room: bool, changes: list[str], moves: list[int]
) -> None:
    machine = Machine(room=room)
    machine.until_still(asked(count, "0"))
    assert machine.serving == count
    wanted = asked(count, "0")
    for number, move in enumerate(moves):
        if changes and number % 5 == 0:
            wanted = asked(count, changes.pop())
        before = machine.serving
        machine.step(wanted)
        # One at a time is missing where there is no room for one more.
        assert machine.serving >= min(before, count - (0 if room else 1))
        machine.settle(f"shop/web-{move}")
    machine.until_still(wanted)
    version = wanted[0].spec.command[1]
    assert names_and_versions(machine) == {f"shop/web-{n}": version for n in range(count)}
    assert status_of(wanted, machine.running, machine.leaving).waits_for == ""


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("room", [True, False])
def test_a_version_that_never_gets_ready_takes_nobody_down(count: int, room: bool) -> None:
    machine = Machine(broken={"bad"}, room=room)
    machine.until_still(asked(count, "good"))
    wanted = asked(count, "bad")
    machine.until_still(wanted)
    assert machine.serving == (count if room else count - 1)
    status = status_of(wanted, machine.running, machine.leaving)
    assert status.updated < count or not room
    assert status.waits_for == f"shop/web-{count if room else 0}: starting"
    machine.until_still(asked(count, "good"))
    assert names_and_versions(machine) == {f"shop/web-{n}": "good" for n in range(count)}


def test_what_is_not_ready_is_replaced_at_once() -> None:
    machine = Machine(broken={"bad"})
    machine.until_still(asked(3, "bad"))
    steps = machine.step(asked(3, "good"))
    assert steps.replace == ["shop/web-0", "shop/web-1", "shop/web-2"]


def test_nothing_is_ended_before_somebody_has_looked() -> None:
    running = {spec.id: Running(spec, None) for spec in asked(2, "old")}
    steps = next_steps(asked(2, "new"), running, set(), room=True)
    assert (steps.replace, steps.remove) == ([], [])


def test_all_at_once_where_that_is_asked_for() -> None:
    machine = Machine()
    machine.until_still(asked(2, "old"))
    steps = machine.step(asked(2, "new", strategy=Strategy(type="Recreate")))
    assert (steps.replace, steps.start) == (["shop/web-0", "shop/web-1"], [])


def test_fewer_and_none_end_at_once_and_more_begin_at_once() -> None:
    machine = Machine()
    machine.until_still(asked(3, "v"))
    assert machine.step(asked(1, "v")).remove == ["shop/web-1", "shop/web-2"]
    machine.all_settled()
    assert [spec.name for spec in machine.step(asked(3, "v")).start] == ["web-1", "web-2"]
    machine.all_settled()
    assert machine.step([]).remove == ["shop/web-0", "shop/web-1", "shop/web-2"]


def test_one_more_that_is_asked_for_meanwhile_is_the_one_that_is_there() -> None:
    machine = Machine()
    machine.until_still(asked(1, "old"))
    machine.step(asked(1, "new"))
    machine.all_settled()
    assert machine.running["shop/web-1"].spec.surge
    machine.until_still(asked(2, "new"))
    assert names_and_versions(machine) == {"shop/web-0": "new", "shop/web-1": "new"}
    assert not machine.running["shop/web-1"].spec.surge


def test_a_process_of_somebody_else_has_no_second() -> None:
    old = [InstanceSpec("shop", "db-0", "db", {}, Workload(address="10.0.0.1"))]
    new = [msgspec.structs.replace(old[0], spec=Workload(address="10.0.0.2"))]
    running = {"shop/db-0": Running(old[0], True)}
    assert next_steps(new, running, set(), room=True) == Steps([], [], ["shop/db-0"], [])
