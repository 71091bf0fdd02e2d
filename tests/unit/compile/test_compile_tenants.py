"""What tenants cost each other: nothing, as long as they do not see each other's services. Counted,
not timed."""

from typing import Any

import pytest
from meshes import Rows, config, endpoints, host, mesh_config, rows, service, sidecar
from test_compile_shared import work

from meshbus.compile.engine import Engine
from meshbus.compile.proxy import compile_proxy
from meshbus.model.world import World, world_of

PRIVATE = {
    f"default{kind}ExportTo": ["."] for kind in ("Service", "VirtualService", "DestinationRule")
}
OURS = sidecar("s0", namespace="ours")


def app(namespace: str, number: int, address: str, protocol: str = "HTTP") -> Rows:
    name = f"s{number}"
    return rows(
        service(name, ("http", 80, protocol), namespace=namespace),
        endpoints(name, address, namespace=namespace, ports={"http": 8080}),
    )


def route(namespace: str, number: int, timeout: str) -> Rows:
    at = host(f"s{number}", namespace)
    spec = {"hosts": [at], "http": [{"timeout": timeout, "route": [{"destination": {"host": at}}]}]}
    return config("VirtualService", f"r{number}", spec, namespace=namespace)


def rule(namespace: str, number: int, connections: int) -> Rows:
    pool = {"tcp": {"maxConnections": connections}}
    spec = {"host": host(f"s{number}", namespace), "trafficPolicy": {"connectionPool": pool}}
    return config("DestinationRule", f"d{number}", spec, namespace=namespace)


def mesh(theirs: int) -> World:
    parts = [mesh_config(**PRIVATE)]
    for namespace, count in (("ours", 3), ("theirs", theirs)):
        for number in range(count):
            parts.append(app(namespace, number, f"10.0.{number // 200}.{number % 200}"))
            parts.append(route(namespace, number, "1s"))
            parts.append(rule(namespace, number, 5))
    return world_of(rows(*parts))


@pytest.mark.parametrize(
    "change",
    [
        app("theirs", 1, "10.9.9.9"),
        app("theirs", 1, "10.0.0.1", "HTTP2"),
        app("theirs", 99, "10.9.9.9"),
        route("theirs", 1, "9s"),
        rule("theirs", 1, 99),
    ],
    ids=["endpoint", "protocol", "service", "route", "rule"],
)
def test_what_one_changes_pushes_nothing_to_another(change: Rows) -> None:
    world = mesh(theirs=10)
    engine = Engine(world)
    before = engine.get(compile_proxy, OURS)
    engine.take_changed()
    done = work(engine, world, change)
    assert not done.encodes
    assert engine.take_changed() == []
    assert engine.get(compile_proxy, OURS) is before


@pytest.mark.parametrize(
    "change",
    [app("ours", 1, "10.9.9.9"), route("ours", 1, "9s"), rule("ours", 1, 99)],
    ids=["endpoint", "route", "rule"],
)
def test_a_push_costs_the_same_however_much_another_has(change: Rows) -> None:
    costs: list[Any] = []
    for theirs in (3, 300):
        world = mesh(theirs)
        engine = Engine(world)
        engine.get(compile_proxy, OURS)
        done = work(engine, world, change)
        assert engine.take_changed()
        costs.append((dict(done.recomputed), dict(done.encodes)))
    assert costs[0] == costs[1]
