"""Patches that Envoys refuse: who is at fault, what is left out where, how the rest goes on."""

import asyncio
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from small_fleet import (
    ROOT,
    ModelEnvoy,
    Refuses,
    SmallGateway,
    envoy_filter,
    filter_key,
    service,
    small_gateway,
)

from meshbus.api.when_refused import HOLD, WHEN_REFUSED
from meshbus.compile.resources import CDS, LDS, RDS

SHORT = {LDS: "lds", CDS: "cds", RDS: "rds"}
A = "outbound|80||a.default.svc.cluster.local"
LISTENER = "0.0.0.0_80"


def refuses(*clashes: tuple[str, ...], of: str = "") -> Refuses:
    """An Envoy that refuses whatever has all marks of a clash (of one type)."""

    def refuse(type_url: str, name: str, marks: frozenset[str]) -> bool:
        return (not of or SHORT.get(type_url) == of) and any(marks >= set(c) for c in clashes)

    return refuse


def run(test: Callable[[], Any]) -> None:
    asyncio.run(test())


async def connected(
    gateway: SmallGateway, refuse: Refuses, workloads: dict[str, int]
) -> list[ModelEnvoy]:
    """So many proxies of each workload."""
    proxies = [ModelEnvoy(w, n, refuse) for w, count in workloads.items() for n in range(count)]
    for proxy in proxies:
        gateway.connect(proxy)
    await gateway.settle()
    return proxies


def listeners(proxy: ModelEnvoy) -> frozenset[str]:
    return proxy.marks()[LDS, LISTENER]


async def test_two_refuse_and_nobody_else_is_asked() -> None:
    async with small_gateway() as gateway:
        gateway.write(service("a"), envoy_filter("good", {"lds": "mark-good"}))
        proxies = await connected(gateway, refuses(("mark-bad",)), {"web": 6})
        gateway.write(envoy_filter("bad", {"lds": "mark-bad"}))
        await gateway.settle()
        assert gateway.left_out() == {"web": {"bad"}}
        assert sum(LISTENER in proxy.nacks for proxy in proxies) == 2
        assert {listeners(proxy) for proxy in proxies} == {frozenset({"mark-good"})}
        assert gateway.told
        assert {names for _, names in gateway.told} == {frozenset({"bad"})}
        gateway.write(envoy_filter("later", {"lds": "mark-later"}), service("b", 81))
        await gateway.settle()
        assert {listeners(proxy) for proxy in proxies} == {frozenset({"mark-good", "mark-later"})}
        assert sum(LISTENER in proxy.nacks for proxy in proxies) == 2, "it was not asked again"


async def test_while_it_is_looked_into_only_one_proxy_sees_what_is_tried() -> None:
    async with small_gateway() as gateway:
        gateway.write(service("a"))
        names = ["a", "b", "c", "d"]
        proxies = await connected(gateway, refuses(("mark-b",)), {"web": 5})
        gateway.write(*(envoy_filter(n, {"lds": f"mark-{n}"}) for n in names))
        await gateway.settle()
        assert gateway.left_out() == {"web": {"b"}}
        kept = frozenset({"mark-a", "mark-c", "mark-d"})
        assert {listeners(proxy) for proxy in proxies} == {kept}
        every = kept | {"mark-b"}
        tried = [
            proxy.name
            for proxy in proxies
            for name, marks in proxy.offered
            if name == LISTENER and marks not in (frozenset(), kept, every)
        ]
        assert tried
        assert len(set(tried)) == 1


async def test_one_proxy_that_refuses_everything_takes_nothing_from_the_others() -> None:
    async with small_gateway() as gateway:
        gateway.write(service("a"))
        good = await connected(gateway, refuses(), {"web": 3})
        broken = ModelEnvoy("web", 9, lambda type_url, name, marks: bool(marks))
        gateway.connect(broken)
        await gateway.settle()
        gateway.write(envoy_filter("fine", {"lds": "mark-fine"}))
        await gateway.settle()
        assert {listeners(proxy) for proxy in good} == {frozenset({"mark-fine"})}
        assert gateway.left_out() == {}


async def test_what_one_workload_refuses_others_keep() -> None:
    async with small_gateway() as gateway:
        own = envoy_filter("own", {"lds": "mark-own"}, ROOT, app="odd")
        gateway.write(service("a"), own)
        proxies = await connected(gateway, refuses(("mark-own", "mark-x")), {"fine": 2, "odd": 2})
        gateway.write(envoy_filter("x", {"lds": "mark-x", "rds": "mark-x"}, ROOT))
        await gateway.settle()
        assert gateway.left_out() == {"odd": {"x"}}
        assert {listeners(proxy) for proxy in proxies[:2]} == {frozenset({"mark-x"})}
        assert {listeners(proxy) for proxy in proxies[2:]} == {frozenset({"mark-own"})}


async def test_it_is_left_out_of_what_it_spoils_alone() -> None:
    async with small_gateway() as gateway:
        gateway.write(service("a"))
        bad = f"cds/{A}"
        proxies = await connected(gateway, refuses(("mark-t", "mark-u"), of="cds"), {"web": 2})
        gateway.write(envoy_filter("u", {bad: "mark-u"}))
        gateway.write(envoy_filter("t", {"cds": "mark-t", "lds": "mark-t"}))
        await gateway.settle()
        assert gateway.left_out() == {"web": {"t"}}
        for proxy in proxies:
            marks = proxy.marks()
            assert marks[CDS, A] == {"mark-u"}
            assert marks[CDS, "PassthroughCluster"] == {"mark-t"}
            assert listeners(proxy) == {"mark-t"}
        gateway.write({filter_key("u"): None})
        await gateway.settle()
        assert gateway.left_out() == {}, "who it did not go with has gone"
        assert {proxy.marks()[CDS, A] for proxy in proxies} == {frozenset({"mark-t"})}


async def test_without_its_cluster_it_is_not_there_at_all() -> None:
    async with small_gateway() as gateway:
        gateway.write(service("a"))
        proxies = await connected(gateway, refuses(("mark-x",), of="cds"), {"web": 2})
        marks = {f"cds/{A}": "mark-x", "lds": "mark-x", "rds": "mark-x"}
        gateway.write(envoy_filter("x", marks))
        await gateway.settle()
        assert {m for proxy in proxies for m in proxy.marks().values()} == {frozenset()}
        fresh = await connected(gateway, refuses(("mark-x",), of="cds"), {"web": 3})
        assert {m for proxy in fresh for m in proxy.marks().values()} == {frozenset()}
        gateway.write(envoy_filter("x", {"lds": "mark-x"}, generation=2))
        await gateway.settle()
        assert {listeners(proxy) for proxy in (*proxies, *fresh)} == {frozenset({"mark-x"})}


async def test_what_is_refused_without_any_patch_stays_at_its_last_good_content() -> None:
    async with small_gateway() as gateway:
        gateway.write(service("a"), envoy_filter("p", {"lds": "mark-p"}))
        proxies = await connected(
            gateway, lambda type_url, name, marks: name == "0.0.0.0_81", {"web": 2}
        )
        gateway.write(service("b", 81), envoy_filter("q", {"lds": "mark-q"}))
        await gateway.settle()
        assert gateway.left_out() == {}
        assert {listeners(proxy) for proxy in proxies} == {frozenset({"mark-p", "mark-q"})}
        assert not any((LDS, "0.0.0.0_81") in proxy.marks() for proxy in proxies)
        assert ("0.0.0.0_81", frozenset({"p", "q"})) in gateway.told


async def test_nothing_is_sent_without_a_patch_that_is_to_hold() -> None:
    hold = {WHEN_REFUSED: HOLD}
    async with small_gateway() as gateway:
        gateway.write(service("a"), envoy_filter("guard", {"lds": "mark-g"}, annotations=hold))
        proxies = await connected(gateway, refuses(("mark-bad",)), {"web": 3})
        guard = envoy_filter("guard", {"lds": "mark-bad"}, generation=2, annotations=hold)
        gateway.write(guard, envoy_filter("other", {"lds": "mark-o"}))
        await gateway.settle()
        assert gateway.left_out() == {}
        assert {listeners(proxy) for proxy in proxies} == {frozenset({"mark-g"})}
        # Once it may be left out it is, without another change of what it says.
        gateway.write(envoy_filter("guard", {"lds": "mark-bad"}, generation=2))
        await gateway.settle()
        assert gateway.left_out() == {"web": {"guard"}}
        assert {listeners(proxy) for proxy in proxies} == {frozenset({"mark-o"})}
        # And held again, what is there already is kept.
        gateway.write(guard)
        await gateway.settle()
        assert gateway.left_out() == {}
        gateway.write(envoy_filter("guard", {"lds": "mark-g"}, generation=3, annotations=hold))
        await gateway.settle()
        assert {listeners(proxy) for proxy in proxies} == {frozenset({"mark-g", "mark-o"})}


async def test_a_new_revision_with_the_same_content_is_left_out_without_being_asked_about() -> None:
    async with small_gateway() as gateway:
        gateway.write(service("a"))
        proxies = await connected(gateway, refuses(("mark-bad",)), {"web": 4})
        gateway.write(envoy_filter("bad", {"lds": "mark-bad"}))
        await gateway.settle()
        for number, proxy in list(gateway.proxies.items()):
            if proxy.nacks:
                gateway.disconnect(number)
                proxies.remove(proxy)
        gateway.write(envoy_filter("bad", {"lds": "mark-bad"}, generation=2))
        await gateway.settle()
        assert gateway.left_out() == {"web": {"bad"}}
        assert not any(proxy.nacks for proxy in proxies)
        gateway.write(envoy_filter("good", {"lds": "mark-good"}))
        await gateway.settle()
        assert {listeners(proxy) for proxy in proxies} == {frozenset({"mark-good"})}


async def test_who_is_asked_and_goes_away_is_not_waited_for() -> None:
    async with small_gateway() as gateway:
        gateway.write(service("a"))
        names = ["a", "b", "c", "d"]
        proxies = await connected(gateway, refuses(("mark-b",)), {"web": 4})
        whole = {f"mark-{n}" for n in names}

        def stop(proxy: ModelEnvoy) -> Refuses:
            """It falls silent when it is asked about less than everything."""

            def said(type_url: str, name: str, marks: frozenset[str]) -> bool:
                proxy.silent = proxy.silent or (bool(marks) and marks < whole and "mark-b" in marks)
                return "mark-b" in marks

            return said

        for proxy in proxies:
            proxy.refuses = stop(proxy)
        gateway.write(*(envoy_filter(n, {"lds": f"mark-{n}"}) for n in names))
        await gateway.settle()
        silent = [n for n, p in gateway.proxies.items() if p.silent]
        assert len(silent) == 1
        for proxy in proxies:
            proxy.refuses = refuses(("mark-b",))
        gone = gateway.proxies[silent[0]]
        gateway.disconnect(silent[0])
        proxies.remove(gone)
        await gateway.settle()
        assert gateway.left_out() == {"web": {"b"}}
        assert {listeners(proxy) for proxy in proxies} == {
            frozenset({"mark-a", "mark-c", "mark-d"})
        }


# --------------------------------------------------------------------------- many workloads


async def left_out_everywhere(workloads: int, most_open: int) -> int:
    """A patch that everybody refuses, of contents that are each workload's own. Gives how often it
    was asked what is left out at a place."""
    names = [f"w{number}" for number in range(workloads)]
    async with small_gateway() as gateway:
        gateway.fleet.quarantines.most_open = most_open
        own = [envoy_filter(f"o{n}", {"lds": f"mark-o{n}"}, ROOT, app=n) for n in names]
        gateway.write(service("a"), *own)
        await connected(gateway, refuses(("mark-bad",)), dict.fromkeys(names, 2))
        recomputed = gateway.fleet._classes.engine.counters.recomputed
        before = recomputed["left_out"]
        gateway.write(envoy_filter("bad", {"lds": "mark-bad"}, ROOT))
        async with asyncio.timeout(30):
            while gateway.left_out() != {name: {"bad"} for name in names}:
                await gateway.settle()
        # Other changes go on everywhere.
        gateway.write(envoy_filter("good", {"lds": "mark-good"}, ROOT))
        await gateway.settle()
        for proxy in gateway.proxies.values():
            assert {"mark-good", f"mark-o{proxy.workload}"} <= listeners(proxy)
            assert "mark-bad" not in listeners(proxy)
        return int(recomputed["left_out"] - before)


async def test_what_is_found_out_at_one_workload_costs_no_other() -> None:
    few, many = [await left_out_everywhere(count, 100) for count in (8, 32)]
    assert many <= 4.5 * few


async def test_what_there_is_no_room_for_is_looked_into_later() -> None:
    await left_out_everywhere(12, 3)


# --------------------------------------------------------------------------- any history

NAMES = ("a", "b", "c", "d")
TYPES = ("lds", "cds", "rds")
marked = st.sampled_from([f"mark-{name}-{kind}" for name in NAMES for kind in TYPES])
steps = st.lists(
    st.tuples(
        st.sampled_from(("write", "write", "write", "delete", "service", "leave", "join")),
        st.integers(0, 3),
        st.sets(st.sampled_from(TYPES), min_size=1),
    ),
    min_size=1,
    max_size=8,
)


@given(
    st.lists(st.sets(marked, min_size=1, max_size=2), max_size=3),
    st.lists(st.sets(marked, min_size=1, max_size=2), max_size=2),
    steps,
)
@example(
    [],
    [{"mark-a-cds"}, {"mark-a-rds", "mark-d-rds"}],
    [("write", 0, {"cds", "rds", "lds"}), ("write", 3, {"cds", "rds", "lds"})],
)
@example(
    [{"mark-a-lds"}],
    [],
    [("write", 0, {"lds"}), ("leave", 0, {"lds"}), ("leave", 1, {"lds"}), ("write", 0, {"lds"})],
)
@example(
    [{"mark-a-lds"}, {"mark-d-cds"}],
    [],
    [
        ("write", 0, {"lds"}),
        ("write", 0, {"lds", "cds"}),
        ("write", 3, {"lds", "cds"}),
        ("leave", 1, {"lds"}),
        ("leave", 0, {"lds"}),
        ("write", 0, {"lds", "cds"}),
    ],
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_history_ends_well_and_a_restart_changes_nothing(clashes, odd, history) -> None:
    run(lambda: _any_history(clashes, odd, history))


async def _any_history(clashes, odd, history) -> None:
    """Two workloads, one of which refuses more; then the gateway is another one."""

    def rule(workload: str) -> Refuses:
        which = [*clashes, *(odd if workload == "odd" else ())]
        return refuses(*(tuple(sorted(c)) for c in which))

    proxies = {
        (workload, n): ModelEnvoy(workload, n, rule(workload))
        for workload in ("odd", "web")
        for n in range(2)
    }
    generations = dict.fromkeys(NAMES, 0)
    present: dict[str, set[str]] = {}
    services = 0
    # What the workloads are sent is not the same: else what one refuses is refused for all.
    own = [
        envoy_filter(f"o{w}", {kind: f"mark-o{w}-{kind}" for kind in TYPES}, ROOT, app=w)
        for w in ("odd", "web")
    ]
    async with small_gateway() as gateway:
        gateway.write(service("a"), *own)
        numbers = {place: gateway.connect(proxy) for place, proxy in proxies.items()}
        await gateway.settle()
        for what, which, kinds in history:
            name = NAMES[which]
            if what == "write":
                generations[name] += 1
                present[name] = kinds
                marks = {kind: f"mark-{name}-{kind}" for kind in kinds}
                namespace = ROOT if name == "a" else "default"
                gateway.write(envoy_filter(name, marks, namespace, generations[name]))
            elif what == "delete":
                present.pop(name, None)
                gateway.write({filter_key(name, ROOT if name == "a" else "default"): None})
            elif what == "service":
                services += 1
                gateway.write(service(f"s{services}", 100 + services))
            else:
                place = ("odd" if which % 2 else "web", which // 2)
                if what == "leave" and place in numbers:
                    gateway.disconnect(numbers.pop(place))
                elif what == "join" and place not in numbers:
                    numbers[place] = gateway.connect(proxies[place])
            if which % 2:
                await gateway.settle()
        for place in proxies:
            if place not in numbers:
                numbers[place] = gateway.connect(proxies[place])
        await gateway.settle()
        _check(gateway, proxies, present, clashes, odd, services)
        world = gateway.world
        left = gateway.left_out()
    before = {place: proxy.bodies() for place, proxy in proxies.items()}
    async with small_gateway(world) as gateway:
        for proxy in proxies.values():
            gateway.connect(proxy)
        await gateway.settle()
        assert {place: proxy.bodies() for place, proxy in proxies.items()} == before
        assert gateway.left_out() == left


def _check(gateway, proxies, present, clashes, odd, services) -> None:
    for (workload, _), proxy in proxies.items():
        rules = [set(c) for c in (*clashes, *(odd if workload == "odd" else ()))]
        suspicious = {mark.split("-")[1] for clash in rules for mark in clash}
        left = gateway.left_out().get(workload, set())
        assert left <= suspicious & set(present), "somebody is left out for nothing"
        for (type_url, resource), marks in proxy.marks().items():
            assert not any(marks >= clash for clash in rules)
            if not resource.lower().startswith(("inbound", "virtualinbound")):
                due = {f"mark-{n}-{SHORT[type_url]}" for n in present if n not in left}
                kept = {mark for mark in due if mark.split("-")[2] in present[mark.split("-")[1]]}
                assert kept <= marks, "who is not at fault is there"
        hosts = {name for _, name in proxy.marks()}
        for number in range(1, services + 1):
            assert f"outbound|{100 + number}||s{number}.default.svc.cluster.local" in hosts
