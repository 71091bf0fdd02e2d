"""Destination rules: which are followed, how several are merged, what their fields become."""

import json
from pathlib import Path
from typing import Any

import pytest
from meshes import Rendered, Rows, compiled, config, endpoints, host, mesh_config, rows, service
from meshes import sidecar as proxy

from meshbus.compile.engine import Engine, Reader
from meshbus.compile.resources import CDS, EDS
from meshbus.compile.rules_in_force import find_rules, selecting_rules
from meshbus.compile.traffic_policy import merged_rule
from meshbus.model.rows import Endpoint
from meshbus.model.world import world_of

PORTS = (("http", 80, "HTTP"), ("tcp", 5432, "TCP"))


def dr(name: str, of: str, namespace: str = "default", created: float = 0.0, **spec: Any) -> Rows:
    return config("DestinationRule", name, {"host": of, **spec}, namespace, created)


def subsets(*names: str) -> list[dict[str, Any]]:
    return [{"name": name, "labels": {"version": name}} for name in names]


def chosen(
    reader: Reader, viewer: str, owner: str, of: str, labels: tuple[tuple[str, str], ...]
) -> list[str] | None:
    """Names of the subsets of the rules that are followed; None: no rule is."""
    selected = selecting_rules(reader, viewer, labels)
    keys = find_rules(reader, viewer, owner, of, selected)
    return [s.name for s in reader.node(merged_rule, keys).subsets] if keys else None


def followed(mesh: Rows, viewer: str, owner: str, of: str, **labels: str) -> list[str] | None:
    pairs = tuple(sorted(labels.items()))
    return Engine(world_of(mesh)).get(chosen, viewer, owner, of, pairs)


EXPORTED = rows(
    dr("rule1", "httpbin.org", "test1", exportTo=[".", "ns1"], subsets=subsets("1", "2")),
    dr(
        "rule2", "httpbin.org", "test2",
        exportTo=["test2", "ns1", "test1", "newNS"], subsets=subsets("3", "4"),
    ),
    dr("rule3", "httpbin.org", "test3", exportTo=["test1", "*"], subsets=subsets("5", "6")),
    dr("rule4-local", "httpbin.org", "test4", exportTo=["test4"], subsets=subsets("15", "16")),
    dr("rule4", "httpbin.org", "istio-system", subsets=subsets("7", "8")),
    dr("rule1", "httpbin.org", "istio-system", exportTo=["."], subsets=subsets("9", "10")),
    dr("rule2", "*.org", "istio-system", exportTo=["."], subsets=subsets("11", "12")),
    dr("rule3", "*.app.org", "istio-system", exportTo=["."], subsets=subsets("13", "14")),
    dr("rule5", "api.test.com", "test5", exportTo=["istio-system"], subsets=subsets("5-0", "5-1")),
    dr("rule6", "api.test.com", "test6", exportTo=["istio-system"], subsets=subsets("6-0", "6-1")),
)  # fmt: skip


def test_export_decides_as_elsewhere(shared_data: Path) -> None:
    tables = json.loads((shared_data / "tables" / "scalars.json").read_text())
    table = tables["pilot/pkg/model/push_context_test.go::TestSetDestinationRuleWithExportTo"]
    for case in table:
        found = followed(EXPORTED, case["proxyNs"], case["serviceNs"], case["host"])
        wanted = [n.removeprefix("subset") for n in case["wantSubsets"] or ()] or None
        assert found == wanted, case


def test_subsets_add_up_and_the_oldest_policy_counts() -> None:
    old = {"connectionPool": {"tcp": {"maxConnections": 1}}}
    new = {"connectionPool": {"tcp": {"maxConnections": 2}}}
    mesh = rows(
        service("a", *PORTS),
        dr("z-first", "a", created=1, trafficPolicy=old, subsets=subsets("v1", "v2")),
        dr("a-second", "a", created=2, trafficPolicy=new, subsets=subsets("v2", "v3")),
    )
    found = Rendered(mesh, proxy("b"))
    cluster = found.clusters[f"outbound|80||{host('a')}"]
    assert cluster["circuitBreakers"]["thresholds"][0]["maxConnections"] == 1
    assert {n.split("|")[2] for n in found.clusters if n.startswith("outbound|80|")} == {
        "", "v1", "v2", "v3",
    }  # fmt: skip
    winner = "DestinationRule default/z-first of the same host gives"
    assert [(f.object.name, f.path, f.message) for f in found.snapshot.findings] == [
        ("a-second", "spec.subsets[0]", f"{winner} subset v2"),
        ("a-second", "spec.trafficPolicy", f"{winner} the trafficPolicy"),
    ]


def test_a_rule_for_some_workloads_stands_apart() -> None:
    mesh = rows(
        dr("all", "x.com", created=1, subsets=subsets("all")),
        dr(
            "some",
            "x.com",
            created=2,
            subsets=subsets("some"),
            workloadSelector={"matchLabels": {"app": "b"}},
        ),
        dr("later", "x.com", created=3, subsets=subsets("later")),
    )
    assert followed(mesh, "default", "default", "x.com", app="a") == ["all", "later"]
    assert followed(mesh, "default", "default", "x.com", app="b") == ["some", "later"]
    assert followed(mesh, "other", "default", "x.com", app="b") == ["all", "later"]


# --------------------------------------------------------------------------- fields


def cluster_of(policy: dict[str, Any], port: int = 80, **fields: Any) -> dict[str, Any]:
    mesh = rows(
        service("a", *PORTS, addresses=["10.96.0.1"], **fields), dr("a", "a", trafficPolicy=policy)
    )
    return dict(Rendered(mesh, proxy("b")).clusters[f"outbound|{port}||{host('a')}"])


def test_retry_budget_takes_the_place_of_the_number_of_retries() -> None:
    budget = {"retryBudget": {"percent": 25, "minRetryConcurrency": 5}}
    threshold = cluster_of(budget)["circuitBreakers"]["thresholds"][0]
    assert threshold["retryBudget"] == {"budgetPercent": {"value": 25.0}, "minRetryConcurrency": 5}
    assert "maxRetries" not in threshold


def test_a_retry_budget_may_count_the_requests_of_a_time() -> None:
    budget = {"retryBudget": {"percent": 25, "budgetInterval": "10s"}}
    threshold = cluster_of(budget)["circuitBreakers"]["thresholds"][0]
    assert threshold["retryBudget"]["budgetInterval"] == "10s"


@pytest.mark.parametrize("tls", [{}, {"tls": {"mode": "SIMPLE"}}])
def test_proxy_protocol_wraps_every_transport(tls: dict[str, Any]) -> None:
    cluster = cluster_of({"proxyProtocol": {"version": "V2"}, **tls})
    sockets = [m["transportSocket"] for m in cluster.get("transportSocketMatches", ())]
    sockets += [cluster["transportSocket"]] if "transportSocket" in cluster else []
    assert sockets
    for socket in sockets:
        assert socket["name"] == "envoy.transport_sockets.upstream_proxy_protocol"
        assert socket["typedConfig"]["config"]["version"] == "V2"


def test_session_affinity_of_a_service_hashes_the_caller() -> None:
    mesh = rows(service("a", *PORTS, addresses=["10.96.0.1"], session_affinity=True))
    found = Rendered(mesh, proxy("b"))
    assert found.clusters[f"outbound|80||{host('a')}"]["lbPolicy"] == "MAGLEV"
    (route,) = found.virtual_host("80", host("a"))["routes"]
    assert route["route"]["hashPolicy"] == [{"connectionProperties": {"sourceIp": True}}]
    tcp = found.listeners["10.96.0.1_5432"]["defaultFilterChain"]["filters"][0]["typedConfig"]
    assert tcp["hashPolicy"] == [{"sourceIp": {}}]


def test_a_tunnel_opens_http_towards_the_destination() -> None:
    tunnel = {"protocol": "POST", "targetHost": "far.example.com", "targetPort": 443}
    mesh = rows(
        service("a", *PORTS, addresses=["10.96.0.1"]),
        dr("a", "a", trafficPolicy={"tunnel": tunnel}),
    )
    listener = Rendered(mesh, proxy("b")).listeners["10.96.0.1_5432"]
    tcp = listener["defaultFilterChain"]["filters"][0]["typedConfig"]
    assert tcp["tunnelingConfig"] == {"hostname": "far.example.com:443", "usePost": True}


def test_error_codes_say_what_counts_as_an_error() -> None:
    codes = {"outlierDetectionHttpErrorCodes": [503, 429], "consecutive5xxErrors": 3}
    options = cluster_of({"outlierDetection": codes})["typedExtensionProtocolOptions"]
    (held,) = options.values()
    rules = held["outlierDetection"]["errorMatcher"]["orMatch"]["rules"]
    first, second = (r["httpResponseHeadersMatch"]["headers"][0] for r in rules)
    assert first["stringMatch"] == {"exact": "503"}
    assert second["stringMatch"] == {"exact": "429"}


# --------------------------------------------------------------------------- locality

HERE = "west/a/1"


def spread(**fields: Any) -> Rows:
    port = {"http": 80, "tcp": 5432}
    places = (HERE, "west/a/2", "west/b/1", "east/a/1", "south/a/1")
    return rows(
        service("a", *PORTS, **fields),
        *(
            endpoints("a", f"10.0.{n}.1", ports=port, locality=p, shard=str(n))
            for n, p in enumerate(places)
        ),
    )


def ranks(mesh: Rows, locality: str = HERE) -> dict[str, int]:
    found = Rendered(mesh, proxy("b", locality=locality)).endpoints[f"outbound|80||{host('a')}"]
    return {
        "/".join(g["locality"].values()): g.get("priority", 0)
        for g in found["endpoints"]
    }  # fmt: skip


OUTLIERS: dict[str, Any] = {"outlierDetection": {"consecutive5xxErrors": 1}}
NEAREST = {HERE: 0, "west/a/2": 1, "west/b/1": 2, "east/a/1": 3, "south/a/1": 3}


def policy(setting: dict[str, Any] | None, **fields: Any) -> Rows:
    balancer = {} if setting is None else {"loadBalancer": {"localityLbSetting": setting}}
    return dr("a", "a", trafficPolicy={**balancer, **fields})


def test_without_outlier_detection_locality_is_of_no_matter() -> None:
    assert set(ranks(spread()).values()) == {0}
    assert set(ranks(rows(spread(), policy({"enabled": True}))).values()) == {0}


def test_failover_goes_to_the_nearest() -> None:
    mesh = rows(spread(), policy(None, **OUTLIERS))
    assert ranks(mesh) == NEAREST
    assert ranks(mesh, "south/a/1")["south/a/1"] == 0
    assert set(ranks(rows(spread(), policy({"enabled": False}, **OUTLIERS))).values()) == {0}
    off = mesh_config(localityLbSetting={"enabled": False})
    assert set(ranks(rows(mesh, off)).values()) == {0}


def test_failover_names_the_region_that_takes_over() -> None:
    setting = {"failover": [{"from": "west", "to": "south"}]}
    mesh = rows(spread(), policy(setting, **OUTLIERS))
    assert ranks(mesh) == {**NEAREST, "south/a/1": 3, "east/a/1": 4}
    cluster = Rendered(mesh, proxy("b", locality=HERE)).clusters[f"outbound|80||{host('a')}"]
    assert "localityWeightedLbConfig" in cluster["commonLbConfig"]


def test_failover_priority_compares_labels_in_order() -> None:
    setting = {"failoverPriority": ["topology.kubernetes.io/region", "topology.kubernetes.io/zone"]}
    assert ranks(rows(spread(), policy(setting, **OUTLIERS))) == {
        HERE: 0, "west/a/2": 0, "west/b/1": 1, "east/a/1": 2, "south/a/1": 2,
    }  # fmt: skip
    fixed = {"failoverPriority": ["topology.kubernetes.io/region=south"]}
    assert ranks(rows(spread(), policy(fixed, **OUTLIERS)))["south/a/1"] == 0


def test_distribute_shares_by_locality_and_leaves_out_the_rest() -> None:
    setting = {
        "distribute": [
            {"from": "west/a/*", "to": {"west/a/*": 80, "east": 20}},
            {"from": "south/*", "to": {"south/*": 100}},
        ]
    }
    mesh = rows(spread(), policy(setting))
    found = Rendered(mesh, proxy("b", locality=HERE)).endpoints[f"outbound|80||{host('a')}"]
    weights = {
        "/".join(g["locality"].values()): g["loadBalancingWeight"] for g in found["endpoints"]
    }
    assert weights == {HERE: 40, "west/a/2": 40, "east/a/1": 20}
    assert set(ranks(mesh, "north/a/1")) == set(NEAREST)


def test_traffic_distribution_of_a_service_needs_no_outlier_detection() -> None:
    annotations = {"networking.istio.io/traffic-distribution": "PreferClose"}
    assert ranks(spread(annotations=annotations)) == {
        HERE: 0, "west/a/2": 1, "west/b/1": 2, "east/a/1": 3, "south/a/1": 3,
    }  # fmt: skip


def test_proxies_elsewhere_share_what_is_not_ranked() -> None:
    mesh = rows(
        spread(),
        service("plain", *PORTS),
        endpoints("plain", "10.9.0.1", ports={"http": 80}),
        policy(None, **OUTLIERS),
    )
    world = world_of(mesh)
    one = compiled(world, proxy("b", locality=HERE))
    other = compiled(world, proxy("b", name="b-1", locality="east/a/1"))
    name = f"outbound|80||{host('plain')}"
    assert one.resources[EDS][name] is other.resources[EDS][name]
    assert one.resources[CDS][name] is other.resources[CDS][name]
    ranked = f"outbound|80||{host('a')}"
    assert one.resources[EDS][ranked] is not other.resources[EDS][ranked]


def test_names_that_a_proxy_resolves_are_ranked_too() -> None:
    members = [
        Endpoint(addresses=[name], ports={"http": 80}, locality=where)
        for name, where in (("far.example.com", "east/a/1"), ("near.example.com", HERE))
    ]
    mesh = rows(
        service("a", *PORTS, resolution="DNS", dns_endpoints=members), policy(None, **OUTLIERS)
    )
    cluster = Rendered(mesh, proxy("b", locality=HERE)).clusters[f"outbound|80||{host('a')}"]
    first, second = cluster["loadAssignment"]["endpoints"]
    assert first["locality"]["region"] == "west"
    assert second["priority"] == 1
