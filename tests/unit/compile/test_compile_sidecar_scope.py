"""Sidecar scope: what a proxy is sent under a Sidecar, what it reads, and who shares it."""

from typing import Any

import pytest
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from meshes import (
    Rendered,
    Rows,
    compiled,
    config,
    endpoints,
    host,
    mesh_config,
    rows,
    service,
    sidecar,
)

from meshbus.compile.engine import Counters, Engine, Reader
from meshbus.compile.proxy import Snapshot, compile_proxy
from meshbus.compile.resources import CDS, EDS, LDS, RDS
from meshbus.compile.scope import visible_service, visible_services
from meshbus.compile.sidecars import sidecar_of, viewer_of
from meshbus.compile.viewers import Viewer
from meshbus.model.keys import Key
from meshbus.model.world import Put, Query, world_of

PORT = ("http", 9080, "HTTP")


def web(name: str, namespace: str, address: str, *ports: tuple[str, int, str]) -> Rows:
    wanted = ports or (PORT,)
    return rows(
        service(name, *wanted, namespace=namespace, addresses=[address]),
        endpoints(name, f"1{address}", namespace=namespace, ports={n: p for n, p, _ in wanted}),
    )


MESH = rows(
    web("front", "shop", "0.0.1.1"),
    web("cart", "shop", "0.0.1.2"),
    web("pay", "bank", "0.0.2.1"),
    web("ledger", "bank", "0.0.2.2"),
    web("mail", "tools", "0.0.3.1"),
)


def egress(*hosts: str, namespace: str = "shop", name: str = "default", **spec: Any) -> Rows:
    listeners = [{"hosts": list(hosts)}] if hosts else []
    return config("Sidecar", name, {"egress": listeners, **spec}, namespace)


def front(**fields: Any) -> Any:
    return sidecar("front", "shop", **fields)


def hosts(snapshot: Snapshot) -> set[str]:
    """Hosts that a snapshot has outbound clusters for."""
    return {n.split("|")[3] for n in snapshot.resources[CDS] if n.startswith("outbound|")}


def routed(snapshot: Snapshot, table: str) -> bytes:
    return snapshot.resources[RDS][table].body


def test_without_a_sidecar_a_proxy_sees_everything() -> None:
    assert hosts(compiled(MESH, front())) == {
        host("front", "shop"),
        host("cart", "shop"),
        host("pay", "bank"),
        host("ledger", "bank"),
        host("mail", "tools"),
    }


def test_egress_hosts_say_what_a_proxy_sees() -> None:
    def seen(*wanted: str) -> set[str]:
        return {h.split(".")[0] for h in hosts(compiled(rows(MESH, egress(*wanted)), front()))}

    assert seen("./*") == {"front", "cart"}
    assert seen("./*", f"bank/{host('pay', 'bank')}") == {"front", "cart", "pay"}
    assert seen("*/*.bank.svc.cluster.local") == {"pay", "ledger"}
    assert seen("bank/*.bank.svc.cluster.local", "~/*") == {"pay", "ledger"}
    assert seen(f"*/{host('mail', 'tools')}") == {"mail"}
    assert seen("~/*") == set()
    assert seen("*/*") == {"front", "cart", "pay", "ledger", "mail"}
    assert seen(f"shop/{host('pay', 'bank')}") == set()


def test_routes_and_endpoints_follow_the_scope() -> None:
    snapshot = compiled(rows(MESH, egress("./*")), front())
    assert b"cart.shop" in routed(snapshot, "9080")
    assert b"pay.bank" not in routed(snapshot, "9080")
    assert {n.split("|")[3] for n in snapshot.resources[EDS]} == {
        host("front", "shop"),
        host("cart", "shop"),
    }


def test_export_to_still_counts() -> None:
    hidden = service("vault", PORT, namespace="bank", addresses=["0.0.2.9"], export_to=["."])
    scoped = rows(MESH, hidden, egress("bank/*"))
    assert host("vault", "bank") not in hosts(compiled(scoped, front()))
    own = rows(MESH, hidden, egress("./*", namespace="bank"))
    assert host("vault", "bank") in hosts(compiled(own, sidecar("pay", "bank")))


def test_a_wildcard_service_is_not_imported_by_one_of_its_names() -> None:
    def external(name: str) -> Rows:
        return service(name, ("http", 80, "HTTP"), host=name, namespace="tools", origin="external")

    mesh = rows(external("en.wikipedia.org"), external("*.wikipedia.org"))
    one = compiled(rows(mesh, egress("*/en.wikipedia.org")), front())
    assert hosts(one) == {"en.wikipedia.org"}
    both = compiled(rows(mesh, egress("*/*.wikipedia.org")), front())
    assert hosts(both) == {"en.wikipedia.org", "*.wikipedia.org"}


def test_precedence_of_sidecars() -> None:
    mesh = rows(
        MESH,
        egress("tools/*", namespace="istio-system"),
        egress("bank/*", namespace="bank"),
        egress("./*"),
        egress(
            f"bank/{host('pay', 'bank')}",
            name="picky",
            workloadSelector={"labels": {"app": "cart"}},
        ),
    )
    assert {h.split(".")[0] for h in hosts(compiled(mesh, front()))} == {"front", "cart"}
    assert hosts(compiled(mesh, sidecar("cart", "shop"))) == {host("pay", "bank")}
    assert hosts(compiled(mesh, sidecar("mail", "tools"))) == {host("mail", "tools")}
    # `.` in the root namespace's Sidecar is the namespace of the workload.
    root = rows(MESH, egress("./*", namespace="istio-system"))
    assert hosts(compiled(root, sidecar("mail", "tools"))) == {host("mail", "tools")}


def test_a_port_of_egress_narrows_services_to_it() -> None:
    mesh = rows(
        web("api", "bank", "0.0.2.3", ("http", 80, "HTTP"), ("admin", 81, "HTTP")),
        web("mail", "tools", "0.0.3.1", ("http", 80, "HTTP"), ("smtp", 25, "TCP")),
        config(
            "Sidecar",
            "default",
            {
                "egress": [
                    {"port": {"number": 80, "protocol": "HTTP"}, "hosts": ["bank/*"]},
                    {"hosts": ["tools/*"]},
                ]
            },
            "shop",
        ),
    )
    names = {n for n in compiled(mesh, front()).resources[CDS] if n.startswith("outbound|")}
    assert names == {
        f"outbound|80||{host('api', 'bank')}",
        f"outbound|25||{host('mail', 'tools')}",
        f"outbound|80||{host('mail', 'tools')}",
    }
    # A route of the one listener may lead there; a request for it does not.
    table = RouteConfiguration.FromString(routed(compiled(mesh, front()), "80"))
    domains = {d for v in table.virtual_hosts for d in v.domains}
    assert host("api", "bank") in domains
    assert host("mail", "tools") not in domains


def test_destinations_of_an_imported_virtual_service_are_reached() -> None:
    route = config(
        "VirtualService",
        "cart",
        {
            "hosts": [host("cart", "shop")],
            "http": [
                {"route": [{"destination": {"host": "pay.bank.svc.cluster.local"}}]},
            ],
        },
        "shop",
    )
    snapshot = compiled(rows(MESH, route, egress("./*")), front())
    assert host("pay", "bank") in hosts(snapshot)
    assert f"outbound|9080||{host('pay', 'bank')}".encode() in routed(snapshot, "9080")
    table = RouteConfiguration.FromString(routed(snapshot, "9080"))
    assert host("pay", "bank") not in {d for v in table.virtual_hosts for d in v.domains}


def test_destinations_of_routes_for_other_namespaces_are_not_reached() -> None:
    def to(name: str, namespace: str) -> dict[str, Any]:
        return {"route": [{"destination": {"host": host(name, namespace)}}]}

    spec = {
        "hosts": [host("cart", "shop")],
        "http": [
            {"match": [{"sourceNamespace": "tools"}], **to("ledger", "bank")},
            {"match": [{"sourceNamespace": "shop"}], **to("pay", "bank")},
            to("cart", "shop"),
        ],
    }
    route = config("VirtualService", "cart", spec, "shop")
    seen = hosts(compiled(rows(MESH, route, egress("./*")), front()))
    assert host("pay", "bank") in seen
    assert host("ledger", "bank") not in seen


def test_outbound_traffic_policy_of_the_sidecar_wins_over_the_mesh() -> None:
    def unknown(policy: dict[str, Any] | None, mode: str) -> bytes:
        spec = {} if policy is None else {"outboundTrafficPolicy": policy}
        mesh = rows(MESH, egress("./*", **spec), mesh_config(outboundTrafficPolicy={"mode": mode}))
        return routed(compiled(mesh, front()), "9080")

    assert b"block_all" in unknown({"mode": "REGISTRY_ONLY"}, "ALLOW_ANY")
    assert b"block_all" in unknown({}, "ALLOW_ANY")
    assert b"allow_any" in unknown({"mode": "ALLOW_ANY"}, "REGISTRY_ONLY")
    assert b"block_all" in unknown(None, "REGISTRY_ONLY")
    proxy = {"host": host("mail", "tools"), "port": {"number": 9080}}
    held = unknown({"mode": "ALLOW_ANY", "egressProxy": proxy}, "REGISTRY_ONLY")
    assert f"outbound|9080||{host('mail', 'tools')}".encode() in held


def step(engine: Engine, change: Rows, *proxies: Any) -> Counters:
    """What a change costs."""
    before = engine.counters.copy()
    world, touched = engine.world.apply(
        Put(key, engine.world.sequence + 1, 0.0, row) for key, row in change.items()
    )
    engine.update(world, touched)
    for proxy in proxies:
        engine.get(compile_proxy, proxy)
    return engine.counters.since(before)


def test_what_is_outside_the_scope_recomputes_nothing() -> None:
    mesh = rows(MESH, egress("./*", f"bank/{host('pay', 'bank')}"))
    engine = Engine(world_of(mesh))
    engine.get(compile_proxy, front())
    changes = [
        web("ledger", "bank", "0.0.2.7"),
        web("mail", "tools", "0.0.3.7"),
        web("extra", "bank", "0.0.2.8"),
    ]
    for change in changes:
        assert not step(engine, change, front()).recomputed
    inside = step(engine, web("pay", "bank", "0.0.2.9"), front())
    assert inside.encodes


def test_proxies_of_equal_scope_share_everything_outbound() -> None:
    mesh = rows(MESH, egress("./*"))
    engine = Engine(world_of(mesh))
    one = engine.get(compile_proxy, front())
    before = engine.counters.copy()
    other = engine.get(compile_proxy, sidecar("cart", "shop", name="cart-7", ips=("10.0.0.9",)))
    assert "service_clusters" not in engine.counters.since(before).recomputed
    assert one.resources[RDS]["9080"] is other.resources[RDS]["9080"]
    assert one.resources[LDS]["0.0.0.0_9080"].body == other.resources[LDS]["0.0.0.0_9080"].body


def test_a_sidecar_that_imports_everything_is_as_none() -> None:
    engine = Engine(world_of(rows(MESH, egress("*/*"))))
    viewer = engine.get(_viewer, "shop", (("app", "front"),))
    assert viewer == Viewer("shop")
    assert set(engine.get(visible_services, viewer)) == set(
        engine.get(visible_services, Viewer("tools"))
    )


def _viewer(reader: Any, namespace: str, labels: tuple[tuple[str, str], ...]) -> Viewer:
    return viewer_of(reader, sidecar_of(reader, namespace, labels), namespace)


def test_a_sidecar_removed_gives_everything_back() -> None:
    mesh = rows(MESH, egress("./*"))
    engine = Engine(world_of(mesh))
    assert len(hosts(engine.get(compile_proxy, front()))) == 2
    gone = Key("c", "cfg", "sidecars", "shop", "default")
    step(engine, {gone: None}, front())  # type: ignore[dict-item]
    assert len(hosts(engine.get(compile_proxy, front()))) == 5


# --------------------------------------------------------------------------- listeners


def shop(**spec: Any) -> Rendered:
    return Rendered(rows(MESH, config("Sidecar", "default", spec, "shop")), front())


def test_ingress_says_the_ports_of_a_workload_and_where_it_listens() -> None:
    made = shop(
        ingress=[
            {"port": {"number": 80, "protocol": "HTTP"}, "defaultEndpoint": "127.0.0.1:8000"},
            {"port": {"number": 81, "protocol": "TCP"}, "defaultEndpoint": "unix:///run/app"},
            {"port": {"number": 82, "protocol": "TCP"}, "defaultEndpoint": "0.0.0.0:8002"},
            {"port": {"number": 83, "protocol": "TCP"}},
        ]
    )
    ports = {
        c["filterChainMatch"].get("destinationPort")
        for c in made.listeners["virtualInbound"]["filterChains"]
    }
    assert ports - {None, 15001, 15006} == {80, 81, 82, 83}
    assert "inbound|9080||" not in made.clusters

    def address(port: int) -> Any:
        group = made.clusters[f"inbound|{port}||"]["loadAssignment"]["endpoints"][0]
        return group["lbEndpoints"][0]["endpoint"]["address"]

    assert address(80) == {"socketAddress": {"address": "127.0.0.1", "portValue": 8000}}
    assert address(81) == {"pipe": {"path": "/run/app"}}
    assert address(82) == {"socketAddress": {"address": "10.0.0.1", "portValue": 8002}}
    assert made.clusters["inbound|83||"]["type"] == "ORIGINAL_DST"
    assert "inbound|80||" in made.routes


def test_an_ingress_listener_that_is_not_redirected_to_binds_its_port() -> None:
    port = {"number": 6060, "protocol": "HTTP"}
    made = shop(ingress=[{"port": port, "bind": "10.0.0.1", "captureMode": "NONE"}])
    own = made.listeners["10.0.0.1_6060"]
    assert own["trafficDirection"] == "INBOUND"
    assert own.get("bindToPort", True)


def test_limits_towards_the_application() -> None:
    limits = {"tcp": {"maxConnections": 9}}

    def most(made: Rendered, port: int) -> int:
        thresholds = made.clusters[f"inbound|{port}||"]["circuitBreakers"]["thresholds"]
        return int(thresholds[0]["maxConnections"])

    assert most(shop(inboundConnectionPool=limits), 9080) == 9
    fewer = {"tcp": {"maxConnections": 3}}
    own = {"port": {"number": 80, "protocol": "HTTP"}, "connectionPool": fewer}
    other = {"port": {"number": 81, "protocol": "HTTP"}}
    both = shop(inboundConnectionPool=limits, ingress=[own, other])
    assert (most(both, 80), most(both, 81)) == (3, 9)


def test_an_egress_port_may_have_an_address_of_its_own() -> None:
    pay = f"bank/{host('pay', 'bank')}"
    made = shop(
        egress=[
            {
                "port": {"number": 9080, "protocol": "HTTP"},
                "bind": "127.0.0.9",
                "captureMode": "NONE",
                "hosts": [pay],
            }
        ]
    )
    assert made.listeners["127.0.0.9_9080"].get("bindToPort", True)
    assert "0.0.0.0_9080" not in made.listeners
    assert made.virtual_host("9080", host("pay", "bank"))
    # What comes to it for nobody has no other destination than itself.
    assert made.virtual_host("9080", "*")["name"] == "block_all"


def test_an_http_proxy_port_reaches_its_hosts_at_every_port() -> None:
    made = shop(
        egress=[
            {"port": {"number": 3128, "protocol": "HTTP_PROXY"}, "hosts": ["bank/*"]},
            {"hosts": ["./*"]},
        ]
    )
    assert "127.0.0.1_3128" in made.listeners
    assert made.virtual_host("3128", f"{host('pay', 'bank')}:9080")
    assert made.virtual_host("9080", host("cart", "shop"))
    assert f"outbound|9080||{host('ledger', 'bank')}" in made.clusters
    domains = {d for v in made.routes["9080"]["virtualHosts"] for d in v["domains"]}
    assert host("pay", "bank") not in domains


def test_ports_of_a_sidecar_where_traffic_is_not_captured() -> None:
    spec = {
        "egress": [
            {"port": {"number": 9080, "protocol": "HTTP"}, "captureMode": "NONE", "hosts": ["./*"]},
            {"port": {"number": 81, "protocol": "HTTP"}, "hosts": ["./*"]},
            {"hosts": ["bank/*"]},
        ]
    }
    own = {"capture": "proxy", "http_proxy_address": "127.0.7.1", "http_proxy_port": 3000}
    mesh = rows(MESH, config("Sidecar", "default", spec, "shop"))
    made = Rendered(mesh, front(**own))
    outbound = {n for n, made in made.listeners.items() if made["trafficDirection"] == "OUTBOUND"}
    assert outbound == {"127.0.7.1_9080", "127.0.7.1_3000"}
    assert set(made.routes) - {"inbound|9080||"} == {"9080", "http_proxy"}
    assert made.virtual_host("9080", host("cart", "shop"))


def test_an_http_proxy_of_a_mesh_that_speaks_no_http() -> None:
    """What CONNECT leads to is there though no port has a route of HTTP."""
    own = {"capture": "proxy", "http_proxy_address": "127.0.7.1", "http_proxy_port": 3000}
    made = Rendered(rows(service("db", ("tcp", 5432, "TCP"), namespace="shop")), front(**own))
    (found,) = [h for h in made.routes["http_proxy"]["virtualHosts"] if h["name"] != "allow_any"]
    assert f"{host('db', 'shop')}:5432" in found["domains"]
    assert "connectMatcher" in found["routes"][0]["match"]


def entry(name: str, *ports: tuple[str, int, str], **fields: Any) -> Rows:
    return service(name, *ports, host=name, origin="external", **fields)


CLAIMS = rows(
    service("front", PORT, namespace="shop", addresses=["0.0.1.1"]),
    service("mail", PORT, namespace="tools", addresses=["0.0.3.1"], export_to=["."]),
    *(
        entry("two.example.com", PORT, *more, namespace=namespace, created=age, **fields)
        for namespace, age, more, fields in (
            ("tools", 1.0, (), {}),
            ("shop", 3.0, (("tcp", 5432, "TCP"),), {"export_to": ["."]}),
            ("bank", 2.0, (("tcp", 5432, "TCP"),), {"export_to": ["shop", "bank"]}),
        )
    ),
    entry("*.wild.example.com", PORT, namespace="bank"),
)
SEVERAL = [
    (),
    (("*/*",),),
    (("./*",),),
    (("bank/*", "tools/two.example.com"),),
    (("*/*.example.com",),),
    (("bank/*.wild.example.com", "*/two.example.com"),),
    (("~/*",),),
]


@pytest.mark.parametrize("wanted", SEVERAL)
@pytest.mark.parametrize("port", [None, 5432, 9080])
@pytest.mark.parametrize("namespace", ["shop", "bank", "tools", "elsewhere", ""])
def test_one_host_means_what_all_together_say(
    namespace: str, port: int | None, wanted: tuple[tuple[str, ...], ...]
) -> None:
    listeners: list[dict[str, Any]] = [{"hosts": list(hosts)} for hosts in wanted]
    if port and listeners:
        own = {"number": port, "protocol": "TCP" if port == 5432 else "HTTP", "name": "own"}
        listeners.insert(0, {"hosts": ["bank/*"], "port": own})
    objects = config("Sidecar", "default", {"egress": listeners}, namespace) if listeners else {}
    engine = Engine(world_of(rows(CLAIMS, objects)))

    def compared(reader: Reader) -> tuple[dict[str, Any], dict[str, Any]]:
        held = sidecar_of(reader, namespace, ())
        viewer = viewer_of(reader, held, namespace)
        every = dict(reader.node(visible_services, viewer))
        hosts = {entry.row.host for entry in reader.entries(Query("reg.services", "all", None))}
        alone = {h: ref for h in hosts if (ref := reader.node(visible_service, viewer, h))}
        return every, alone

    every, alone = engine.get(compared)
    assert alone == every


def test_one_host_is_found_without_a_look_at_others() -> None:
    engine = Engine(world_of(CLAIMS))
    viewer = Viewer("shop")
    engine.get(visible_service, viewer, "two.example.com")
    before = engine.counters.copy()
    key, row = next(iter(service("mail", PORT, namespace="tools").items()))
    engine.update(*engine.world.apply([Put(key, 2, 0.0, row)]))
    engine.get(visible_service, viewer, "two.example.com")
    assert not engine.counters.since(before).recomputed
