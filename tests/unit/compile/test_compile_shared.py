"""What proxies share: the same as if they shared nothing, and no more work than the change."""

from typing import Any

from envoy.config.core.v3 import health_check_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2
from envoy.config.route.v3 import route_pb2
from hypothesis import example, given, settings
from hypothesis import strategies as st
from meshes import Rows, config, endpoints, host, mesh_config, rows, service, sidecar

from meshbus.compile import reach, route_tables, scope
from meshbus.compile.endpoints import encode_endpoint, shard_endpoints
from meshbus.compile.engine import Engine
from meshbus.compile.proxy import Snapshot, compile_proxy, plan_proxy
from meshbus.compile.resources import CDS, EDS, LDS, RDS
from meshbus.model.rows import Endpoint
from meshbus.model.world import Put, World, world_of

NAMESPACES = ("default", "shop", "istio-system")
NAMES = ("a", "b")
PROXIES = tuple(sidecar("a", namespace=n) for n in NAMESPACES)


def subset_rule(name: str, namespace: str, about: str, exported: list[str] | None) -> Rows:
    spec: dict[str, Any] = {
        "host": about,
        "subsets": [{"name": "v1", "labels": {"version": "v1"}}],
        "trafficPolicy": {"loadBalancer": {"consistentHash": {"httpHeaderName": name}}},
    }
    if exported is not None:
        spec["exportTo"] = exported
    return config("DestinationRule", name, spec, namespace=namespace)


def route(
    name: str, namespace: str, about: str, exported: list[str] | None, caller: str | None
) -> Rows:
    rule: dict[str, Any] = {"route": [{"destination": {"host": host("a", "shop")}}]}
    if caller:
        rule["match"] = [{"sourceNamespace": caller}]
    spec: dict[str, Any] = {"hosts": [about], "http": [rule]}
    if exported is not None:
        spec["exportTo"] = exported
    return config("VirtualService", name, spec, namespace=namespace)


EXPORTS = st.sampled_from([None, None, ["*"], ["."], ["shop"], ["~"]])
HOSTS = st.sampled_from([host("a", "shop"), host("b", "default"), host("a"), "a.shop", "*.shop"])


def named(name: str, namespace: str, exported: list[str] | None = None, port: int = 80) -> Rows:
    ports = {"http": 8080}
    return service(
        name, ("http", port, "HTTP"), namespace=namespace, export_to=exported or []
    ) | endpoints(name, "10.0.0.1", namespace=namespace, ports=ports)


def outside(namespace: str, exported: list[str] | None) -> Rows:
    """A host that is also a short name of another service."""
    ports = ("http", 80, "HTTP")
    return service(
        "out",
        ports,
        namespace=namespace,
        host="a.shop",
        origin="external",
        export_to=exported or [],
    )


BASE = rows(*(named(name, namespace) for name in NAMES for namespace in NAMESPACES))
SERVICES = st.builds(
    named,
    st.sampled_from(NAMES),
    st.sampled_from(NAMESPACES),
    EXPORTS,
    st.sampled_from([80, 80, 9080]),
) | st.builds(outside, st.sampled_from(NAMESPACES), EXPORTS)
RULES = st.builds(subset_rule, st.sampled_from("pq"), st.sampled_from(NAMESPACES), HOSTS, EXPORTS)
ROUTES = st.builds(
    route,
    st.sampled_from("rs"),
    st.sampled_from(NAMESPACES),
    HOSTS,
    EXPORTS,
    st.sampled_from([None, None, "shop"]),
)
SIDECARS = st.builds(
    lambda namespace, hosts: config(
        "Sidecar", "scope", {"egress": [{"hosts": hosts}]}, namespace=namespace
    ),
    st.sampled_from(NAMESPACES),
    st.lists(st.sampled_from(["./*", "shop/*", "*/a.shop"]), min_size=1, max_size=2),
)
PARTS = st.lists(SERVICES | RULES | RULES | ROUTES | ROUTES | SIDECARS, min_size=1, max_size=5).map(
    lambda parts: [BASE, *parts]
)


def readable(snapshot: Snapshot) -> dict[str, Any]:
    """What a snapshot says: virtual hosts of a table in any order but the last."""
    out: dict[str, Any] = {
        t: {n: r.body for n, r in snapshot.resources[t].items()} for t in (CDS, EDS, LDS)
    }
    for name, resource in snapshot.resources[RDS].items():
        table = route_pb2.RouteConfiguration.FromString(resource.body)
        *hosts, last = (h.SerializeToString(deterministic=True) for h in table.virtual_hosts)
        out[name] = (sorted(hosts), last, resource.origins)
    out["findings"] = snapshot.findings
    return out


def alone(world: World, proxy: Any) -> dict[str, Any]:
    """The snapshot of a proxy that shares nothing with other views."""
    patched = (
        (route_tables, "route_view", lambda reader, view: view),
        (route_tables, "common_viewer", lambda reader, viewer: viewer),
        (route_tables, "domains_are_distinct", lambda reader, view, port: False),
        (reach, "common_reach", lambda reader, owner, members: None),
    )
    kept = [(module, name, getattr(module, name)) for module, name, _ in patched]
    try:
        for module, name, fn in patched:
            setattr(module, name, fn)
        return readable(Engine(world).get(compile_proxy, proxy))
    finally:
        for module, name, fn in kept:
            setattr(module, name, fn)


@settings(max_examples=120, deadline=None)
@given(PARTS)
@example([BASE, route("r", "default", host("b", "default"), None, "shop")])
@example([BASE, subset_rule("p", "default", host("b", "default"), ["shop"])])
def test_sharing_does_not_show(parts):
    world = world_of(rows(*parts))
    engine = Engine(world)
    for proxy in PROXIES:
        assert readable(engine.get(compile_proxy, proxy)) == alone(world, proxy)


@settings(max_examples=80, deadline=None)
@given(PARTS, st.lists(st.tuples(SERVICES | RULES | ROUTES | SIDECARS, st.booleans()), max_size=5))
def test_step_by_step_gives_the_bytes_of_from_scratch(parts, steps):
    world = world_of(rows(*parts))
    engine = Engine(world)
    for part, there in [({}, True), *steps]:
        sequence = world.sequence + 1
        puts = [Put(k, sequence, 0.0, row if there else None) for k, row in part.items()]
        world, touched = world.apply(puts)
        engine.update(world, touched)
        scratch = Engine(world_of({e.key: e.row for t in world.tables() for e in world.all(t)}))
        for proxy in PROXIES:
            ours, theirs = (e.get(compile_proxy, proxy) for e in (engine, scratch))
            assert ours.resources == theirs.resources
            assert ours.findings == theirs.findings


def mesh(services: int = 6) -> World:
    """Some services in two namespaces, each with two endpoints; one with a route."""
    parts: list[Rows] = []
    for number in range(services):
        namespace = ("default", "shop")[number % 2]
        name = f"s{number}"
        parts.append(service(name, ("http", 80, "HTTP"), namespace=namespace))
        parts.append(endpoints(name, f"10.0.0.{number}", namespace=namespace, ports={"http": 8080}))
    parts.append(route("r", "shop", host("s1", "shop"), None, None))
    return world_of(rows(*parts))


def work(engine: Engine, world: World, change: Rows) -> Any:
    before = engine.counters.copy()
    puts = [Put(k, world.sequence + 1, 0.0, row) for k, row in change.items()]
    following, touched = world.apply(puts)
    engine.update(following, touched)
    engine.advance()
    return engine.counters.since(before)


def test_views_that_see_the_same_hold_the_same_layers():
    engine = Engine(mesh())
    one, other = (engine.get(compile_proxy, proxy) for proxy in PROXIES[:2])
    assert one.resources[EDS] is other.resources[EDS]
    assert one.resources[RDS]["80"] is not other.resources[RDS]["80"], "short names differ"


def test_an_endpoint_is_encoded_once_for_all():
    world = mesh()
    engine = Engine(world)
    for proxy in PROXIES:
        engine.get(compile_proxy, proxy)
    change = endpoints("s2", "10.0.0.2", "10.0.0.9", ports={"http": 8080})
    done = work(engine, world, change)
    assert dict(done.encodes) == {"eds": 1}
    assert done.recomputed["plan_proxy"] == 0
    assert done.recomputed["joined_assignments"] == 1


def test_a_route_is_made_once_for_all_others_and_once_for_its_own_namespace():
    world = mesh()
    engine = Engine(world)
    for proxy in PROXIES:
        engine.get(compile_proxy, proxy)
    change = config(
        "VirtualService",
        "r",
        {
            "hosts": [host("s1", "shop")],
            "http": [{"route": [{"destination": {"host": host("s3", "shop")}}]}],
        },
        namespace="shop",
    )
    done = work(engine, world, change)
    assert dict(done.encodes) == {"vhost": 2, "rds": len(PROXIES)}, "a table for each namespace"
    assert done.recomputed["host_chunk"] == 2
    assert done.recomputed["domains_are_distinct"] == 0
    assert done.recomputed["plan_proxy"] == 0


def test_what_is_written_again_costs_nothing():
    world = mesh()
    engine = Engine(world)
    for proxy in PROXIES:
        engine.get(compile_proxy, proxy)
    again = {e.key: e.row for e in world.all("reg.services")}
    assert not work(engine, world, again).recomputed


def test_scope_is_what_the_test_takes_it_for():
    assert scope.NOBODY == "", "no namespace has this name and no exportTo"


def test_workloads_that_are_alike_share_what_is_no_ones_own() -> None:
    both = {"a": {"app": "a", "version": "v1"}, "b": {"app": "a", "version": "v2"}}
    world = world_of(rows(named("a", "default"), named("b", "default")))
    engine = Engine(world)
    one, two, other = (
        engine.get(compile_proxy, sidecar(name, labels=labels))
        for name, labels in (*both.items(), ("b", {"app": "b"}))
    )
    for snapshot in (two, other):
        for name, listener in snapshot.resources[LDS].items():
            assert listener is one.resources[LDS][name]
    own = "inbound|8080||"
    assert two.resources[CDS][own] is one.resources[CDS][own]
    assert other.resources[CDS][own] is not one.resources[CDS][own]
    assert engine.counters.encodes["lds"] == len(one.resources[LDS])


def test_selected_workload_alone_has_its_own_listener() -> None:
    strict = config(
        "PeerAuthentication",
        "one",
        {"selector": {"matchLabels": {"version": "v2"}}, "mtls": {"mode": "STRICT"}},
    )
    engine = Engine(world_of(rows(named("a", "default"), strict)))
    one, two, three = (
        engine.get(compile_proxy, sidecar(f"a{v}", labels={"app": "a", "version": v}))
        for v in ("v1", "v2", "v3")
    )
    listener = "virtualInbound"
    assert three.resources[LDS][listener] is one.resources[LDS][listener]
    assert two.resources[LDS][listener] is not one.resources[LDS][listener]


def test_an_endpoint_that_stays_is_not_encoded_again():
    def shard(*addresses: str, **fields: Any) -> Rows:
        return endpoints("s2", *addresses, ports={"http": 8080}, namespace="shop", **fields)

    world = world_of(rows(service("s2", ("http", 80, "HTTP"), namespace="shop"), shard("a", "b")))
    engine = Engine(world)
    [key] = (e.key for e in world.all("reg.endpoints"))
    old = engine.get(shard_endpoints, key, "http")
    for change, kept in (
        (shard("b", "c"), {"b"}),
        (shard("c", "b", tls_mode="disabled"), set()),
        (config("PeerAuthentication", "p", {"mtls": {"mode": "DISABLE"}}, "shop"), {"b", "c"}),
        (shard("b", "c"), set()),
        (mesh_config(trustDomain="t"), {"b", "c"}),
    ):
        world, touched = world.apply(Put(k, world.sequence + 1, 0.0, r) for k, r in change.items())
        engine.update(world, touched)
        new = engine.get(shard_endpoints, key, "http")
        assert new == Engine(world).get(shard_endpoints, key, "http")
        before = {id(e.data) for e in old}
        assert {e.source.addresses[0] for e in new if id(e.data) in before} == kept
        old = new


@given(
    st.integers(0, 300),
    st.booleans(),
    st.booleans(),
    st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2", "2001:db8::1"]), min_size=1, unique=True),
)
def test_an_endpoint_is_written_as_protobuf_writes_it(weight, draining, mutual, addresses):
    endpoint = Endpoint(
        addresses, {"http": 1}, {"app": "a"}, workload="w", weight=weight, draining=draining
    )
    data = encode_endpoint(endpoint, 8080, mutual)
    message = endpoint_components_pb2.LocalityLbEndpoints.FromString(data)
    assert message.SerializeToString(deterministic=True) == data
    [only] = message.lb_endpoints
    assert only.load_balancing_weight.value == (weight or 1)
    assert (only.health_status == health_check_pb2.DRAINING) is draining
    assert ("envoy.transport_socket_match" in only.metadata.filter_metadata) is mutual
    assert [a.address.socket_address.address for a in only.endpoint.additional_addresses] == (
        addresses[1:]
    )


SPEC = config("QuotaSpec", "spec", {"rules": [{"quotas": [{"quota": "count", "charge": 1}]}]})


def test_versions_of_a_service_share_what_they_serve_until_quotas_may_tell_them_apart() -> None:
    versions = [
        sidecar("a", name=f"a-{version}-0", labels={"app": "a", "version": version})
        for version in ("v1", "v2")
    ]
    engine = Engine(world_of(rows(named("a", "default"), named("b", "default"))))
    first, second = (engine.get(plan_proxy, keys) for keys in versions)
    assert first is second
    world, touched = engine.world.apply([Put(k, 2, 0.0, row) for k, row in SPEC.items()])
    engine.update(world, touched)
    first, second = (engine.get(plan_proxy, keys) for keys in versions)
    assert first != second
    gone, touched = engine.world.apply([Put(k, 3, 0.0, None) for k in SPEC])
    engine.update(gone, touched)
    assert engine.get(plan_proxy, versions[0]) is engine.get(plan_proxy, versions[1])
