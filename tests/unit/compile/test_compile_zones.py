"""Zone-aware load balancing: what Envoy is told of zones, and who is told of its own kind."""

from typing import Any

from meshes import (
    Rendered,
    Rows,
    config,
    endpoints,
    host,
    mesh_config,
    rows,
    service,
    sidecar,
)

HERE = "eu/a"
ON = {"enabled": True}
FAR = ("eu/b", "us/a", "ap/a")


def spread(name: str, first: int) -> Rows:
    places = enumerate((HERE, *FAR), first)
    return rows(
        service(name, ("http", 80, "HTTP")),
        *(
            endpoints(name, f"10.0.{n}.1", ports={"http": 80}, locality=place, shard=str(n))
            for n, place in places
        ),
    )


CALLED = rows(spread("a", 10), spread("z", 20))
CALLERS = rows(
    service("c", ("http", 80, "HTTP")),
    endpoints("c", "10.0.0.1", "10.0.0.2", ports={"http": 80}, locality=HERE, shard="1"),
    endpoints("c", "10.0.0.3", ports={"http": 80}, locality="eu/b", shard="2"),
    endpoints("c", "10.0.0.4", ports={"http": 80}, locality="us/a", shard="3"),
    endpoints("c", "10.0.0.5", ports={"http": 80}, locality=HERE, shard="4", ready=False),
)


def rule(setting: dict[str, Any] | None, name: str = "a", **policy: Any) -> Rows:
    said = {} if setting is None else {"zoneAwareLbSetting": setting}
    balancer = {**said, **policy.pop("loadBalancer", {})}
    spec = {"host": name, "trafficPolicy": {"loadBalancer": balancer, **policy}}
    return config("DestinationRule", name, spec)


def seen(*mesh: Rows, said: dict[str, str] | None = None, **fields: Any) -> Rendered:
    metadata = {"ENABLE_SELF_DISCOVERY": "true", "NODE_LOCALITY": HERE} if said is None else said
    fields = {"locality": HERE, "labels": {"app": "c"}, "name": "c-0", **fields}
    return Rendered(
        rows(CALLED, CALLERS, *mesh), sidecar("c", metadata=tuple(metadata.items()), **fields)
    )


def balanced(found: Rendered, name: str = "a") -> dict[str, Any]:
    return dict(found.clusters[f"outbound|80||{host(name)}"].get("commonLbConfig") or {})


def places(found: Rendered, cluster: str) -> list[tuple[str, int, int]]:
    groups = found.endpoints[cluster].get("endpoints", [])
    return [
        (
            "/".join(g["locality"].values()),
            g.get("priority", 0),
            len(g["lbEndpoints"]),
        )
        for g in groups
    ]


A = f"outbound|80||{host('a')}"
OFF = {"zoneAwareLbConfig": {"routingEnabled": {}}}


def test_envoy_chooses_among_the_zones_of_the_region() -> None:
    found = seen(rule({**ON, "minClusterSize": 2}))
    assert balanced(found) == {"zoneAwareLbConfig": {"minClusterSize": "2"}}
    assert places(found, A) == [
        ("eu/a", 0, 1), ("eu/b", 0, 1), ("ap/a", 1, 1), ("us/a", 1, 1),
    ]  # fmt: skip
    assert balanced(seen(rule({}))) == {"zoneAwareLbConfig": {}}, "what is written is on"


def test_failover_orders_the_other_regions_and_labels_come_first() -> None:
    failover = {**ON, "failover": [{"from": "eu", "to": "us"}]}
    assert [p[:2] for p in places(seen(rule(failover)), A)] == [
        ("eu/a", 0), ("eu/b", 0), ("us/a", 1), ("ap/a", 2),
    ]  # fmt: skip
    named = {**ON, "failoverPriority": ["topology.istio.io/cluster=other", "app=a"]}
    ranked = places(seen(rule(named)), A)
    assert [p[:2] for p in ranked][:2] == [("eu/a", 0), ("eu/b", 0)]


def test_the_zones_of_the_own_kind_are_those_of_ready_instances_in_the_region() -> None:
    found = seen(rule(ON))
    assert places(found, "local_cluster") == [("eu/a", 0, 2), ("eu/b", 0, 1)]


def test_others_than_those_of_the_rule_do_not_heed_zones() -> None:
    assert balanced(seen(rule(ON)), "z") == OFF
    weighted = seen(rule(ON), rule(None, "z", loadBalancer={"localityLbSetting": {
        "distribute": [{"from": "*", "to": {"eu/*": 100}}]}}))  # fmt: skip
    assert balanced(weighted, "z") == {"localityWeightedLbConfig": {}}


def test_who_no_rule_concerns_is_sent_what_it_was_sent() -> None:
    before = seen().snapshot.resources
    elsewhere = config(
        "DestinationRule",
        "a",
        {"host": host("a"), "exportTo": ["."], "trafficPolicy": {
            "loadBalancer": {"zoneAwareLbSetting": ON}}},
        namespace="other",
    )  # fmt: skip
    after = seen(elsewhere).snapshot.resources
    assert {t: dict(r) for t, r in after.items()} == {t: dict(r) for t, r in before.items()}
    assert "local_cluster" not in seen(rule({"enabled": False})).endpoints


def test_the_mesh_config_is_for_all_that_say_nothing() -> None:
    mesh = mesh_config(zoneAwareLbSetting={**ON, "minClusterSize": 3})
    assert balanced(seen(mesh)) == {"zoneAwareLbConfig": {"minClusterSize": "3"}}
    assert balanced(seen(mesh, rule({"enabled": False}))) == OFF
    own = rule(None, loadBalancer={"localityLbSetting": {"enabled": True}})
    assert balanced(seen(mesh, own)) == OFF, "the rule ranks by locality"
    assert "local_cluster" not in seen(mesh_config(zoneAwareLbSetting={"enabled": False})).endpoints


def test_a_bootstrap_without_local_cluster_is_told_of_nobody() -> None:
    found = seen(rule(ON), said={"ENABLE_SELF_DISCOVERY": "false"})
    assert "local_cluster" not in found.endpoints
    assert balanced(found, "z") == {}


def test_who_has_no_service_has_no_kind() -> None:
    found = seen(rule(ON), labels={"app": "nobody"})
    assert "local_cluster" not in found.endpoints
    assert balanced(found, "z") == {}


def test_generations_of_a_workload_are_told_apart() -> None:
    old = {"app": "c", "pod-template-hash": "1"}
    more = endpoints("c", "10.0.0.9", ports={"http": 80}, locality=HERE, shard="9", labels=old)
    assert places(seen(rule(ON), more, labels=old), "local_cluster") == [("eu/a", 0, 1)]
    said = {
        "ENABLE_SELF_DISCOVERY": "true",
        "NODE_LOCALITY": HERE,
        "SELF_DISCOVERY_GROUPING_LABEL_NAMES": "app",
    }
    alike = seen(rule(ON), more, labels=old, said=said)
    assert places(alike, "local_cluster") == [("eu/a", 0, 3), ("eu/b", 0, 1)]


def test_what_is_near_has_the_name_that_the_proxy_gives_its_own_locality() -> None:
    said = {"ENABLE_SELF_DISCOVERY": "true", "NODE_LOCALITY": "/own"}
    found = seen(rule(ON), said=said)
    zones = {g["locality"].get("zone") for g in found.endpoints["local_cluster"]["endpoints"]}
    assert zones == {"own", "b"}
    assert found.endpoints[A]["endpoints"][0]["locality"] == {"zone": "own"}
    other = found.endpoints[f"outbound|80||{host('z')}"]["endpoints"]
    assert all(g["locality"]["region"] for g in other), "others keep theirs"


def test_beside_consistent_hashing_zones_have_no_say() -> None:
    hashed = rule(ON, loadBalancer={"consistentHash": {"useSourceIp": True}})
    found = seen(hashed)
    assert balanced(found) == {}
    (finding,) = found.snapshot.findings
    assert finding.path == "spec.trafficPolicy.loadBalancer.zoneAwareLbSetting"
    assert "consistentHash" in finding.message


def test_who_cannot_heed_zones_is_told_why() -> None:
    field = "spec.trafficPolicy.loadBalancer.zoneAwareLbSetting"
    blind = {
        "ENABLE_SELF_DISCOVERY": {"said": {"ENABLE_SELF_DISCOVERY": "false"}},
        "locality is not known": {"locality": ""},
        "no Service": {"labels": {"app": "nobody"}, "ips": ("10.9.9.9",)},
    }
    for reason, fields in blind.items():
        (finding,) = seen(rule(ON), **fields).snapshot.findings
        assert (finding.object.name, finding.path) == ("a", field)
        assert reason in finding.message
    assert not seen(rule(ON)).snapshot.findings
    assert not seen(rule({"enabled": False}), locality="").snapshot.findings
    (finding,) = seen(mesh_config(zoneAwareLbSetting=ON), locality="").snapshot.findings
    assert (finding.object.plane, finding.path) == ("mesh", "zoneAwareLbSetting")
