"""What Envoys ask for: the same routes as the whole table has, and clusters that can wait."""

from dataclasses import replace
from typing import Any

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from meshes import Rows, config, endpoints, host, mesh_config, router, rows, service, sidecar
from test_compile_shared import BASE, NAMESPACES, PARTS, ROUTES, RULES, SERVICES

from meshbus.compile.asked_clusters import names_in
from meshbus.compile.asked_hosts import Tables, asked_host, find_host, without_port
from meshbus.compile.engine import Engine
from meshbus.compile.on_demand import OnDemand, on_demand_of
from meshbus.compile.proxy import compile_proxy, plan_proxy
from meshbus.compile.proxy_keys import ProxyKeys
from meshbus.compile.render import render_snapshot
from meshbus.compile.resources import CDS, EDS, RDS, VHDS
from meshbus.model.world import Put, World, world_of

HOSTS = "proxyMetadata: {MESHBUS_VIRTUAL_HOSTS: on-demand}"
CLUSTERS = "proxyMetadata: {MESHBUS_CLUSTERS: on-demand}"


def asking(what: str, namespace: str = "default", **fields: Any) -> ProxyKeys:
    return replace(sidecar("a", namespace=namespace), proxy_config=what, may_ask=True, **fields)


def whole(engine: Engine, keys: ProxyKeys) -> dict[str, route_pb2.RouteConfiguration]:
    """The tables of the same proxy if it asks for nothing."""
    snapshot = engine.get(compile_proxy, replace(keys, may_ask=False))
    return {
        name: route_pb2.RouteConfiguration.FromString(r.body)
        for name, r in snapshot.resources[RDS].items()
    }


def answer(engine: Engine, tables: Tables, name: str) -> route_components_pb2.VirtualHost:
    resource = engine.get(asked_host, tables, name)
    assert resource is not None
    assert resource.name == name
    return route_components_pb2.VirtualHost.FromString(resource.body)


def same_answers(engine: Engine, keys: ProxyKeys) -> None:
    """Every authority that the whole table knows, and one that it does not, is answered alike."""
    tables = engine.get(plan_proxy, keys).tables
    assert tables is not None
    for name, table in whole(engine, keys).items():
        if table.name not in engine.get(compile_proxy, keys).resources[RDS]:
            continue
        mine = engine.get(compile_proxy, keys).resources[RDS][name]
        if not route_pb2.RouteConfiguration.FromString(mine.body).HasField("vhds"):
            continue
        for shown in table.virtual_hosts:
            for domain in shown.domains:
                called = domain.replace("*", "x.y", 1) if domain != "*" else "nobody.example.com"
                made = answer(engine, tables, f"{name}/{called}")
                if not domain.startswith("*") or domain == "*":
                    assert made.routes == shown.routes, (name, called)
                exact = called if name == "http_proxy" else without_port(called)
                assert list(made.domains) == [exact]


@settings(max_examples=60, deadline=None)
@given(PARTS)
def test_who_asks_is_answered_as_the_whole_table_says(parts: list[Rows]) -> None:
    engine = Engine(world_of(rows(*parts)))
    for namespace in NAMESPACES:
        same_answers(engine, asking(HOSTS, namespace))
        proxied = asking(HOSTS, namespace, capture="proxy", http_proxy_port=15080)
        same_answers(engine, proxied)


@settings(max_examples=40, deadline=None)
@given(PARTS, st.lists(st.tuples(SERVICES | RULES | ROUTES, st.booleans()), max_size=4))
def test_answers_follow_what_they_are_made_of(parts: list[Rows], steps: Any) -> None:
    world = world_of(rows(*parts))
    engine = Engine(world)
    keys = asking(HOSTS)
    names = [f"80/{n}" for n in ("a", "b.shop", host("a", "shop"), "nobody", "x.shop")]

    def answers(of: Engine) -> list[Any]:
        tables = of.get(plan_proxy, keys).tables
        assert tables is not None
        return [of.get(asked_host, tables, name) for name in names]

    answers(engine)
    for part, there in steps:
        sequence = world.sequence + 1
        puts = [Put(k, sequence, 0.0, row if there else None) for k, row in part.items()]
        world, touched = world.apply(puts)
        engine.update(world, touched)
        scratch = Engine(world_of({e.key: e.row for t in world.tables() for e in world.all(t)}))
        assert answers(engine) == answers(scratch)


def mesh() -> World:
    tcp = service("db", ("tcp", 5432, "TCP"), addresses=["10.96.0.9"])
    return world_of(rows(BASE, tcp, endpoints("db", "10.0.0.7", ports={"tcp": 5432})))


def test_a_change_is_a_changed_answer_to_those_alone_who_asked():
    world = mesh()
    engine = Engine(world)
    keys = asking(HOSTS)
    before = engine.get(compile_proxy, keys)
    tables = engine.get(plan_proxy, keys).tables
    held = {n: engine.get(asked_host, tables, f"80/{n}") for n in ("a", "b")}
    counted = engine.counters.copy()
    rule = {"directResponse": {"status": 418}}
    change = config("VirtualService", "a", {"hosts": ["a"], "http": [rule]})
    following, touched = world.apply([Put(k, 2, 0.0, row) for k, row in change.items()])
    engine.update(following, touched)
    engine.advance()
    assert engine.counters.since(counted).encodes["rds"] == 0
    assert engine.counters.since(counted).encodes["vhds"] == 1
    assert engine.get(asked_host, tables, "80/b") is held["b"]
    assert engine.get(asked_host, tables, "80/a") is not held["a"]
    assert engine.get(compile_proxy, keys).resources[RDS] is before.resources[RDS]


def test_route_configurations_of_who_asks_are_empty_and_its_listeners_ask():
    engine = Engine(mesh())
    snapshot = engine.get(compile_proxy, asking(HOSTS))
    table = route_pb2.RouteConfiguration.FromString(snapshot.resources[RDS]["80"].body)
    assert not table.virtual_hosts
    assert table.vhds.config_source.HasField("ads")
    assert table.ignore_port_in_host_matching
    assert set(snapshot.resources[VHDS]) == {"80/~"}
    listener = render_snapshot(snapshot)["listeners"]
    (shared,) = (held for held in listener if held["name"] == "0.0.0.0_80")
    managers = [
        f["typedConfig"]
        for chain in shared["filterChains"]
        for f in chain["filters"]
        if "http_connection_manager" in f["name"]
    ]
    assert managers
    for manager in managers:
        assert manager["httpFilters"][0]["name"] == "envoy.filters.http.on_demand"


def test_an_authority_that_looks_like_a_pattern_is_answered_with_nothing_of_anybodys():
    engine = Engine(mesh())
    tables = engine.get(plan_proxy, asking(HOSTS)).tables
    seen = set()
    for called in ("*", "*.shop", "a*"):
        (domain,) = answer(engine, tables, f"80/{called}").domains
        assert domain.endswith(".invalid")
        seen.add(domain)
    assert len(seen) == 3
    assert engine.get(asked_host, tables, "no-table/a") is None


@pytest.mark.parametrize(
    ("authority", "name"),
    [
        ("a", "a"),
        ("a:80", "a"),
        ("a.b:x", "a.b:x"),
        ("[fd00::1]:80", "[fd00::1]"),
        ("[fd00::1]", "[fd00::1]"),
        ("fd00::1", "fd00::1"),
        (":80", ":80"),
    ],
)
def test_ports_of_authorities(authority: str, name: str) -> None:
    assert without_port(authority) == name


class Counting(dict[str, Any]):
    """Counts the characters of what is looked for."""

    looked_for = 0

    def get(self, key: str, default: Any = None) -> Any:
        self.looked_for += len(key)
        return super().get(key, default)


@pytest.mark.parametrize(
    ("authority", "domain"),
    [
        ("a" * 100_000, "*"),
        ("a" * 100_000 + ".example.com", "*.example.com"),
        (f"{'b' * 60}." * 1000 + "x.example.com", "*.x.example.com"),
        ("c" * 100_000, "c" * 100_000),
    ],
)
def test_an_authority_of_any_length_costs_little(authority: str, domain: str) -> None:
    made = {name: object() for name in ("*", "*.com", "*.example.com", "*.x.example.com", domain)}
    catalog = Counting(made)
    assert find_host([catalog], authority) is made[domain]
    assert catalog.looked_for < 2 * len(authority) + 100_000


def test_clusters_that_nothing_but_routes_names_are_asked_for():
    engine = Engine(mesh())
    plan = engine.get(plan_proxy, asking(CLUSTERS))
    snapshot = engine.get(compile_proxy, asking(CLUSTERS))
    early = {n for n in snapshot.resources[CDS] if n.startswith("outbound|")}
    assert early == {f"outbound|5432||{host('db')}"}, "a TCP connection does not wait"
    assert {"PassthroughCluster", "BlackHoleCluster"} <= set(snapshot.resources[CDS])
    assert set(snapshot.resources[EDS]) == early
    late = {t: engine.get(ask.node, *ask.args).resources for t, ask in plan.late}
    everything = engine.get(compile_proxy, sidecar("a")).resources
    for type_url in (CDS, EDS):
        both = {**snapshot.resources[type_url], **late[type_url]}
        assert both == everything[type_url]
        assert late[type_url]
    table = route_pb2.RouteConfiguration.FromString(snapshot.resources[RDS]["80"].body)
    assert len(table.virtual_hosts) > 1, "virtual hosts come before they are asked for"


def test_a_mirrored_cluster_is_not_asked_for():
    rule = {"route": [{"destination": {"host": "a"}}], "mirror": {"host": "b"}}
    shadow = config("VirtualService", "a", {"hosts": ["a"], "http": [rule]})
    engine = Engine(world_of(rows(BASE, shadow)))
    clusters = engine.get(compile_proxy, asking(CLUSTERS)).resources[CDS]
    assert {f"outbound|80||{host(n)}" for n in "ab"} <= set(clusters)


@pytest.mark.parametrize("length", [20, 126, 127, 128, 129, 200, 300])
def test_cluster_names_are_found_in_bytes(length: int) -> None:
    name = "outbound|80||".ljust(length, "x")
    cluster = cluster_pb2.Cluster(name=name, alt_stat_name="zzz")
    assert names_in(cluster.SerializeToString()) == {name}


def test_who_follows_patches_of_routes_is_sent_them_whole():
    patch = {
        "applyTo": "VIRTUAL_HOST",
        "match": {"context": "SIDECAR_OUTBOUND"},
        "patch": {"operation": "MERGE", "value": {"include_request_attempt_count": False}},
    }
    filters = config("EnvoyFilter", "f", {"configPatches": [patch]})
    engine = Engine(world_of(rows(BASE, filters)))
    plan = engine.get(plan_proxy, asking(HOSTS))
    assert plan.tables is None
    snapshot = engine.get(compile_proxy, asking(HOSTS))
    table = route_pb2.RouteConfiguration.FromString(snapshot.resources[RDS]["80"].body)
    assert not table.HasField("vhds")
    assert table.virtual_hosts


def test_whose_stream_cannot_ask_is_sent_everything():
    engine = Engine(mesh())
    cannot = replace(asking(HOSTS), may_ask=False)
    assert engine.get(plan_proxy, cannot).tables is None
    assert (
        engine.get(compile_proxy, cannot).resources
        == engine.get(compile_proxy, sidecar("a")).resources
    )


def test_settings_of_the_mesh_and_of_a_proxy():
    default = {"proxyMetadata": {"MESHBUS_VIRTUAL_HOSTS": "on-demand"}}
    assert on_demand_of(default) == OnDemand(hosts=True)
    assert on_demand_of(default, CLUSTERS) == OnDemand(True, True)
    own = 'proxyMetadata: {MESHBUS_VIRTUAL_HOSTS: "all"}'
    assert on_demand_of(default, own) == OnDemand()
    assert on_demand_of({}, "{") == OnDemand()


def test_the_mesh_says_it_for_all_and_a_proxy_for_itself():
    default = {"proxyMetadata": {"MESHBUS_VIRTUAL_HOSTS": "on-demand"}}
    engine = Engine(world_of(rows(BASE, mesh_config(defaultConfig=default))))
    own = 'proxyMetadata: {MESHBUS_VIRTUAL_HOSTS: "all"}'
    assert engine.get(plan_proxy, asking("")).tables is not None
    assert engine.get(plan_proxy, asking(own)).tables is None
    gateway = replace(router(), may_ask=True)
    assert engine.get(plan_proxy, gateway).tables is None, "anybody could make a gateway ask"
