"""Hosts of gateways: each compiled by itself, and a change to one costs one."""

from typing import Any

from envoy.config.route.v3 import route_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from meshes import CLUSTER, Rows, config, host, rows, service, sidecar

from meshbus.compile.engine import Engine
from meshbus.compile.proxy import ProxyKeys, Snapshot, compile_proxy
from meshbus.compile.resources import LDS, RDS
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject
from meshbus.model.world import Put, World, world_of

ROUTER = ProxyKeys("router", "gw-0", "default", (("istio", "ingress"),), "gw", ("10.0.0.100",))
HOSTS = 30


def site(number: int, timeout: str = "1s", **more: Any) -> Rows:
    target = {"destination": {"host": host("a")}}
    spec = {
        "hosts": [f"site-{number}.example.com"],
        "gateways": ["gw"],
        "http": [{"timeout": timeout, "route": [target]}],
    }
    return config("VirtualService", f"site-{number}", {**spec, **more})


def gateway(*servers: dict[str, Any], name: str = "gw") -> Rows:
    spec = {"selector": {"istio": "ingress"}, "servers": list(servers)}
    return config("Gateway", name, spec)


def plain(*hosts: str, port: int = 80, redirect: bool = False) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "port": {"number": port, "name": f"http-{port}", "protocol": "HTTP"},
        "hosts": list(hosts),
    }
    return {**spec, "tls": {"httpsRedirect": True}} if redirect else spec


BASE = rows(service("a", ("http", 80, "HTTP")), service("b", ("http", 80, "HTTP")))


def big() -> World:
    return world_of(rows(BASE, gateway(plain("*")), *(site(n) for n in range(HOSTS))))


def changed(engine: Engine, world: World, change: Rows, *gone: Key) -> tuple[Any, World]:
    before = engine.counters.copy()
    puts = [Put(k, world.sequence + 1, 0.0, row) for k, row in change.items()]
    puts += [Put(k, world.sequence + 1, 0.0, None) for k in gone]
    following, touched = world.apply(puts)
    engine.update(following, touched)
    engine.advance()
    return engine.counters.since(before), following


def table(snapshot: Snapshot, name: str = "http.80") -> dict[str, Any]:
    held = route_pb2.RouteConfiguration.FromString(snapshot.resources[RDS][name].body)
    return {h.name: h for h in held.virtual_hosts}


def test_a_changed_route_encodes_one_virtual_host_of_a_gateway():
    world = big()
    engine = Engine(world)
    first = engine.get(compile_proxy, ROUTER)
    assert len(table(first)) == HOSTS
    done, _ = changed(engine, world, site(7, "9s"))
    assert dict(done.encodes) == {"vhost": 1, "rds": 1}
    ran = done.recomputed
    assert (ran["gateway_host"], ran["service_routes"], ran["gateway_share"]) == (1, 1, 1)
    assert not ran["router_listeners"], "listeners do not depend on routes"
    assert not ran["visible_virtual_services"], "nor do lists of virtual services"
    now = engine.get(compile_proxy, ROUTER)
    assert now.resources[LDS] is first.resources[LDS]
    old, new = table(first), table(now)
    assert {name for name in old if old[name] != new[name]} == {"site-7.example.com:80"}
    assert new["site-7.example.com:80"].routes[0].route.timeout.seconds == 9


def test_a_host_that_comes_or_goes_is_the_only_one_compiled():
    world = big()
    engine = Engine(world)
    engine.get(compile_proxy, ROUTER)
    done, world = changed(engine, world, site(HOSTS))
    assert dict(done.encodes) == {"vhost": 1, "rds": 1}
    assert "site-30.example.com:80" in table(engine.get(compile_proxy, ROUTER))
    done, _ = changed(engine, world, {}, *site(HOSTS))
    assert dict(done.encodes) == {"rds": 1}
    assert len(table(engine.get(compile_proxy, ROUTER))) == HOSTS


def test_a_changed_virtual_service_of_sidecars_encodes_its_host_in_the_views_that_see_it():
    def routed(name: str, timeout: str) -> Rows:
        rule = {"timeout": timeout, "route": [{"destination": {"host": host(name)}}]}
        return config("VirtualService", name, {"hosts": [host(name)], "http": [rule]})

    names = [f"s{n}" for n in range(20)]
    narrow = config("Sidecar", "scope", {"egress": [{"hosts": ["./*"]}]}, namespace="shop")
    world = world_of(
        rows(
            *(service(n, ("http", 80, "HTTP")) for n in names),
            *(routed(n, "1s") for n in names),
            narrow,
        )
    )
    engine = Engine(world)
    near, far = sidecar("s0"), sidecar("x", namespace="shop")
    before = engine.get(compile_proxy, far)
    engine.get(compile_proxy, near)
    done, _ = changed(engine, world, routed("s3", "5s"))
    assert dict(done.encodes) == {"vhost": 1, "rds": 1}
    assert done.recomputed["virtual_service_tail"] == 1
    assert not done.recomputed["routed_hosts"]
    assert engine.get(compile_proxy, far).resources[RDS] is before.resources[RDS]


def test_servers_of_one_table_share_a_host_by_the_rules_of_each():
    """The server that sends everything to https speaks for the hosts that it has routes for, and
    those that it names; a virtual service counts once for a gateway."""
    servers = (
        plain("default/*.example.com", redirect=True),
        plain("default/site-1.example.com"),
    )
    other = gateway(plain("other.example.org", redirect=True), name="late")
    world = world_of(rows(BASE, gateway(*servers), other, site(1), site(2)))
    hosts = table(Engine(world).get(compile_proxy, ROUTER))
    assert {n: (len(h.routes), h.require_tls) for n, h in hosts.items()} == {
        "*.example.com:80": (0, 2),
        "other.example.org:80": (0, 2),
        "site-1.example.com:80": (1, 2),
        "site-2.example.com:80": (1, 2),
    }


def test_a_host_without_routes_at_a_port_is_not_there():
    target = {"destination": {"host": host("a")}}
    elsewhere = site(1, http=[{"match": [{"port": 8080}], "route": [target]}])
    hosts = table(
        Engine(world_of(rows(BASE, gateway(plain("*")), elsewhere, site(2)))).get(
            compile_proxy, ROUTER
        )
    )
    assert set(hosts) == {"site-2.example.com:80"}


def ingress(name: str, spec: dict[str, Any]) -> Rows:
    row = ConfigObject(
        "networking.k8s.io/v1",
        "Ingress",
        "default",
        name,
        name,
        1,
        0.0,
        annotations={"kubernetes.io/ingress.class": "istio"},
        spec=spec,
    )
    return {Key(CLUSTER, "cfg", "ingresses", "default", name): row}


def test_at_a_host_of_its_own_an_ingress_keeps_its_routes_for_any_host():
    """`tls` makes a server for the host alone; requests that no path of the host is for go to the
    default backend there as they do everywhere."""

    def to(name: str) -> dict[str, Any]:
        return {"service": {"name": name, "port": {"number": 80}}}

    path = {"path": "/only", "pathType": "Prefix", "backend": to("a")}
    spec = {
        "tls": [{"hosts": ["one.example.com"], "secretName": "cert"}],
        "rules": [{"host": "one.example.com", "http": {"paths": [path]}}],
        "defaultBackend": to("b"),
    }
    world = world_of(rows(BASE, ingress("i", spec), config("Secret", "cert", {})))
    snapshot = Engine(world).get(compile_proxy, _ingress_router())
    (name,) = (name for name in snapshot.resources[RDS] if name.startswith("https."))
    (shown,) = table(snapshot, name).values()
    clusters = [route.route.cluster for route in shown.routes]
    assert clusters == [f"outbound|80||{host(target)}" for target in "ab"]
    everywhere = table(snapshot)
    assert {n: [r.route.cluster for r in h.routes] for n, h in everywhere.items()} == {
        "*:80": [f"outbound|80||{host('b')}"],
        "one.example.com:80": [f"outbound|80||{host('a')}"],
    }


def _ingress_router() -> ProxyKeys:
    return ProxyKeys("router", "i-0", "default", (("istio", "ingressgateway"),), "i", ("10.0.0.9",))


# --------------------------------------------------------------------------- any order of changes

NAMES = st.integers(0, 3)
SITES = st.builds(
    lambda n, timeout, gateways, hosts: site(n, timeout, gateways=gateways, hosts=hosts),
    NAMES,
    st.sampled_from(["1s", "2s"]),
    st.sampled_from([["gw"], ["gw", "late"], ["late"], ["mesh", "gw"], ["default/gw"]]),
    st.sampled_from([["site-1.example.com"], ["site-1.example.com", "*.example.com"], ["*"]]),
)
GATEWAYS = st.builds(
    lambda name, hosts, redirect: gateway(plain(*hosts, redirect=redirect), name=name),
    st.sampled_from(["gw", "late"]),
    st.sampled_from([["*"], ["*.example.com"], ["./site-1.example.com"], ["other/*"]]),
    st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(SITES | SITES | GATEWAYS, st.booleans()), min_size=1, max_size=8))
def test_a_gateway_that_followed_any_changes_is_like_one_that_starts(steps):
    world = world_of(BASE)
    engine = Engine(world)
    engine.get(compile_proxy, ROUTER)
    for part, there in steps:
        _, world = changed(engine, world, part if there else {}, *(() if there else part))
        scratch = Engine(world_of({e.key: e.row for t in world.tables() for e in world.all(t)}))
        ours, theirs = (e.get(compile_proxy, ROUTER) for e in (engine, scratch))
        assert ours.resources == theirs.resources
        assert ours.findings == theirs.findings
