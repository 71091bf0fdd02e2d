"""AuthorizationPolicy: against filters that a peer builds of the same policies, and its own rules:
who follows what, what fails safe, what is shared."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.http.ext_authz.v3 import ext_authz_pb2 as http_ask_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac_pb2
from envoy.extensions.filters.network.ext_authz.v3 import ext_authz_pb2 as network_ask_pb2
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network_rbac_pb2
from google.protobuf import json_format
from meshes import CLUSTER, Rows, compiled, config, mesh_config, rows, service, sidecar

from meshbus.compile.authorization_rules import migrated
from meshbus.compile.engine import Counters, Engine
from meshbus.compile.offline import object_of_document
from meshbus.compile.proxy import ProxyKeys, Snapshot, compile_proxy
from meshbus.compile.resources import ECDS, LDS
from meshbus.model.keys import Key
from meshbus.model.world import Put, world_of

DATA = Path(os.environ.get("MESHBUS_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))
_CASES = DATA / "authorization" / "cases.jsonl"
CASES = (
    [json.loads(line) for line in _CASES.read_text().splitlines() if line]
    if _CASES.is_file()
    else []
)
TYPES = {
    t.DESCRIPTOR.full_name: t
    for t in (
        http_rbac_pb2.RBAC,
        network_rbac_pb2.RBAC,
        http_ask_pb2.ExtAuthz,
        network_ask_pb2.ExtAuthz,
    )
}


def policy(name: str, spec: dict[str, Any], namespace: str = "foo", **annotations: str) -> Rows:
    return of_document(
        {
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": {"name": name, "namespace": namespace, "annotations": annotations},
            "spec": spec,
        }
    )


def of_document(document: dict[str, Any]) -> Rows:
    row = object_of_document(document)
    return {Key(CLUSTER, "cfg", "authorizationpolicies", row.namespace, row.name): row}


def httpbin(**fields: Any) -> ProxyKeys:
    return sidecar("httpbin", "foo", **fields)


def extension(snapshot: Snapshot, name: str) -> Any:
    """The configuration of one filter."""
    made = TypedExtensionConfig.FromString(snapshot.resources[ECDS][name].body)
    message = TYPES[made.typed_config.TypeName()]()
    assert made.typed_config.Unpack(message)
    return message


def rules(snapshot: Snapshot, action: str, where: str = "http") -> set[str]:
    """Names of the rules in force of one action."""
    return set(extension(snapshot, f"envoy.filters.{where}.rbac.{action}").rules.policies)


# --------------------------------------------------------------------------- a peer's filters


def wanted(case: dict[str, Any]) -> dict[str, Any]:
    """The peer's filters by the slot that they would stand in here."""
    found: dict[str, Any] = {}
    for entry in case["want"]:
        config = dict(entry["typedConfig"])
        message = TYPES[config.pop("@type").rpartition("/")[2]]()
        json_format.ParseDict(config, message)
        name = entry["name"]
        if name.endswith(".rbac"):
            action = message.rules.action or message.shadow_rules.action
            if message.shadow_rules_stat_prefix == "istio_ext_authz_":
                name += ".custom"
            else:
                name += (".allow", ".deny", ".audit")[action]
            held = found.get(name)
            if held is not None:  # several filters that deny are one here
                for rule, content in held.rules.policies.items():
                    message.rules.policies[rule].CopyFrom(content)
        found[name] = message
    return found


@pytest.mark.skipif(not CASES, reason="no shared data: set MESHBUS_SHARED_DATA to its folder")
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["id"]))
def test_filters_are_those_of_a_peer(case: dict[str, Any]) -> None:
    mesh = mesh_config(
        trustDomain=case["trustDomain"],
        trustDomainAliases=case["trustDomainAliases"],
        **(case["meshConfig"] or {}),
    )
    policies = rows(*(of_document(p) for p in case["policies"] if p is not None))
    workload = case["workload"]
    keys = ProxyKeys(
        "sidecar",
        "httpbin-0",
        workload["namespace"],
        tuple(sorted(workload["labels"].items())),
    )
    snapshot = compiled(rows(mesh, policies), keys)
    where = "network" if case["id"].startswith("tcp/") else "http"
    expected = wanted(case)
    for name in snapshot.resources[ECDS]:
        if not name.startswith(f"envoy.filters.{where}.") or name.endswith("jwt_authn"):
            continue
        made = extension(snapshot, name)
        want = expected.pop(name, None)
        if want is None:
            assert not made.HasField("rules"), name
            assert not made.HasField("shadow_rules"), name
            continue
        for message in (made, want):
            # A name of statistics that nothing is counted under.
            if hasattr(message, "shadow_rules") and not message.HasField("shadow_rules"):
                message.shadow_rules_stat_prefix = ""
            if hasattr(message, "stat_prefix"):
                message.stat_prefix = ""
        assert made == want, name
    assert not expected


def test_principals_of_every_trust_domain_of_the_mesh() -> None:
    domains = ("td2", "foo-td1", "cluster.local")
    assert migrated(["*-td1/ns/foo/sa/bar"], domains) == [
        "td2/ns/foo/sa/bar",
        "*-td1/ns/foo/sa/bar",
        "cluster.local/ns/foo/sa/bar",
    ]
    assert migrated(["other/ns/foo/sa/bar", "*", "*/ns/a/sa/b"], domains) == [
        "other/ns/foo/sa/bar",
        "*",
        "*/ns/a/sa/b",
    ]
    # Envoy cannot be asked for a beginning there: the mesh's own names stand for it.
    assert migrated(["foo-*/ns/a/sa/b"], domains) == [f"{domain}/ns/a/sa/b" for domain in domains]
    assert migrated(["bar-*/ns/a/sa/b"], domains) == ["bar-*/ns/a/sa/b"]
    assert migrated(["td9/ns/a/sa/b"], ("td2", "td*")) == ["td2/ns/a/sa/b", "td*/ns/a/sa/b"]
    assert migrated(["td9/ns/a/sa/b"], ("td2", "*")) == ["td2/ns/a/sa/b", "*/ns/a/sa/b"]


# --------------------------------------------------------------------------- who follows what


def test_policies_of_the_root_namespace_the_namespace_and_the_workload() -> None:
    mesh = rows(
        policy("mesh", {"rules": [{}]}, "istio-system"),
        policy("space", {"rules": [{}]}),
        policy("app", {"rules": [{}], "selector": {"matchLabels": {"app": "httpbin"}}}),
        policy("other", {"rules": [{}], "selector": {"matchLabels": {"app": "sleep"}}}),
        policy("elsewhere", {"rules": [{}]}, "bar"),
    )
    assert rules(compiled(mesh, httpbin()), "allow") == {
        "ns[istio-system]-policy[mesh]-rule[0]",
        "ns[foo]-policy[space]-rule[0]",
        "ns[foo]-policy[app]-rule[0]",
    }
    assert rules(compiled(mesh, sidecar("x", "bar")), "allow") == {
        "ns[istio-system]-policy[mesh]-rule[0]",
        "ns[bar]-policy[elsewhere]-rule[0]",
    }


def test_a_policy_attached_to_a_gateway_concerns_that_gateway_alone() -> None:
    reference = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge"}
    mesh = policy("edge", {"rules": [{}], "targetRefs": [reference]})
    labels = {"gateway.networking.k8s.io/gateway-name": "edge"}
    assert rules(compiled(mesh, httpbin(labels=labels)), "allow")
    assert not rules(compiled(mesh, httpbin()), "allow")
    assert not rules(compiled(mesh, sidecar("x", "bar", labels=labels)), "allow")


@pytest.mark.parametrize(
    "reference",
    [
        {"kind": "Service", "name": "httpbin"},
        {"group": "networking.istio.io", "kind": "ServiceEntry", "name": "httpbin"},
        {"group": "networking.istio.io", "kind": "Gateway", "name": "edge"},
        {"group": "gateway.networking.k8s.io", "kind": "GatewayClass", "name": "istio-waypoint"},
    ],
)
def test_what_is_attached_to_waypoints_concerns_no_sidecar(reference: dict[str, str]) -> None:
    """Source: Istio, ShouldAttachPolicy."""
    gateway = {"gateway.networking.k8s.io/gateway-name": "edge"}
    for namespace in ("foo", "istio-system"):
        mesh = policy("edge", {"rules": [{}], "targetRefs": [reference]}, namespace=namespace)
        assert not rules(compiled(mesh, httpbin()), "allow")
        assert not rules(compiled(mesh, httpbin(labels=gateway)), "allow")


def test_without_policies_every_filter_is_there_and_does_nothing() -> None:
    snapshot = compiled(service("httpbin", ("http", 80, "HTTP"), namespace="foo"), httpbin())
    for where in ("http", "network"):
        for name in ("rbac.custom", "ext_authz", "rbac.audit", "rbac.deny", "rbac.allow"):
            made = extension(snapshot, f"envoy.filters.{where}.{name}")
            assert made.DESCRIPTOR.name == "RBAC"
            assert not made.HasField("rules")
            assert not made.HasField("shadow_rules")


def test_a_rule_that_is_not_understood_fails_safe() -> None:
    broken = {"from": [{"source": {"ipBlocks": ["no address"]}}]}
    mesh = rows(
        policy("a", {"rules": [broken]}), policy("d", {"action": "DENY", "rules": [broken]})
    )
    snapshot = compiled(mesh, httpbin())
    allow = extension(snapshot, "envoy.filters.http.rbac.allow")
    assert allow.HasField("rules")
    assert not allow.rules.policies
    denied = extension(snapshot, "envoy.filters.http.rbac.deny").rules.policies
    assert denied["ns[foo]-policy[d]-rule[0]"].permissions[0].and_rules.rules[0].any
    assert {f.path for f in snapshot.findings} == {"spec.rules[0]"}


def test_custom_without_its_provider_is_refused_and_said() -> None:
    spec = {"action": "CUSTOM", "provider": {"name": "opa"}, "rules": [{}]}
    snapshot = compiled(policy("ask", spec), httpbin())
    (name,) = rules(snapshot, "deny")
    assert name.endswith("-deny-due-to-bad-CUSTOM-action")
    assert "opa" in snapshot.findings[0].message


@pytest.mark.parametrize("action", ["CUSTOM", "AUDIT"])
def test_what_cannot_be_run_dry_has_no_effect(action: str) -> None:
    spec = {"action": action, "rules": [{}]}
    if action == "CUSTOM":
        spec["provider"] = {"name": "opa"}
    snapshot = compiled(policy("ask", spec, **{"istio.io/dry-run": "true"}), httpbin())
    for slot in ("deny", "audit", "custom"):
        made = extension(snapshot, f"envoy.filters.http.rbac.{slot}")
        assert not made.rules.policies
        assert not made.shadow_rules.policies
    (finding,) = snapshot.findings
    assert finding.path == "metadata.annotations[istio.io/dry-run]"


# --------------------------------------------------------------------------- what a change costs


def step(engine: Engine, change: Rows, *proxies: ProxyKeys) -> Counters:
    before = engine.counters.copy()
    world, touched = engine.world.apply(
        Put(key, engine.world.sequence + 1, 0.0, row) for key, row in change.items()
    )
    engine.update(world, touched)
    for proxy in proxies:
        engine.get(compile_proxy, proxy)
    return engine.counters.since(before)


def test_listeners_do_not_change_when_policies_come_and_go() -> None:
    mesh = service("httpbin", ("http", 80, "HTTP"), ("grpc", 90, "GRPC"), namespace="foo")
    engine = Engine(world_of(mesh))
    proxy = httpbin()
    before = engine.get(compile_proxy, proxy).resources[LDS]
    done = step(engine, policy("deny", {"action": "DENY", "rules": [{}]}), proxy)
    after = engine.get(compile_proxy, proxy)
    assert {n: id(r) for n, r in after.resources[LDS].items()} == {
        n: id(r) for n, r in before.items()
    }
    assert set(done.encodes) == {"ecds"}
    assert rules(after, "deny") == {"ns[foo]-policy[deny]-rule[0]"}


def chains_of(engine: Engine, proxy: ProxyKeys) -> dict[str, list[bytes]]:
    """Filter chains of the inbound listener by their name."""
    resource = engine.get(compile_proxy, proxy).resources[LDS]["virtualInbound"]
    out: dict[str, list[bytes]] = {}
    for chain in listener_pb2.Listener.FromString(resource.body).filter_chains:
        out.setdefault(chain.name, []).append(chain.SerializeToString(deterministic=True))
    return out


def test_chains_of_tcp_alone_change_with_the_rules_about_connections() -> None:
    """Envoy ends the connections of a chain that has changed, and no others."""
    ports = (("http", 80, "HTTP"), ("tcp", 9000, "TCP"))
    engine = Engine(world_of(service("httpbin", *ports, namespace="foo")))
    proxy = httpbin()

    def changed(change: Rows) -> set[str]:
        before = chains_of(engine, proxy)
        step(engine, change, proxy)
        after = chains_of(engine, proxy)
        return {name for name in before | after if before.get(name) != after.get(name)}

    def deny(**operation: list[str]) -> Rows:
        rule = {"to": [{"operation": operation}]}
        return policy("deny", {"action": "DENY", "rules": [rule]})

    assert changed(deny(ports=["9000"])) == {"0.0.0.0_9000"}
    assert changed(deny(ports=["9001"])) == {"0.0.0.0_9000"}
    # What only HTTP can decide is no other rule about connections.
    assert changed(deny(ports=["9001"], paths=["/a"])) == set()
    assert changed(deny(ports=["9001"], paths=["/b"])) == set()
    assert changed(dict.fromkeys(deny())) == {"0.0.0.0_9000"}


def test_a_router_ends_connections_of_tcp_with_the_rules_that_let_them_in() -> None:
    def server(number: int, protocol: str) -> dict[str, Any]:
        return {
            "port": {"number": number, "name": f"p-{number}", "protocol": protocol},
            "hosts": ["*"],
        }

    tcp = {"match": [{"port": 9000}], "route": [{"destination": {"host": "httpbin"}}]}
    mesh = rows(
        service("httpbin", ("tcp", 9000, "TCP"), namespace="foo"),
        config(
            "Gateway",
            "edge",
            {"selector": {"app": "edge"}, "servers": [server(80, "HTTP"), server(9000, "TCP")]},
            "foo",
        ),
        config("VirtualService", "v", {"hosts": ["*"], "gateways": ["edge"], "tcp": [tcp]}, "foo"),
    )
    engine = Engine(world_of(mesh))
    edge = ProxyKeys(type="router", name="edge-0", namespace="foo", labels=(("app", "edge"),))
    before = engine.get(compile_proxy, edge).resources[LDS]
    assert set(before) == {"0.0.0.0_80", "0.0.0.0_9000"}
    done = step(engine, policy("deny", {"action": "DENY", "rules": [{}]}), edge)
    after = engine.get(compile_proxy, edge).resources[LDS]
    assert after["0.0.0.0_80"] is before["0.0.0.0_80"]
    assert after["0.0.0.0_9000"] is not before["0.0.0.0_9000"]
    assert not done.recomputed["router_listeners"]


def test_a_policy_for_the_whole_mesh_is_compiled_once() -> None:
    proxies = [sidecar(f"app-{n}", f"ns-{n % 3}", name=f"app-{n}") for n in range(30)]
    engine = Engine(world_of(policy("own", {"rules": [{}]}, "ns-1")))
    for proxy in proxies:
        engine.get(compile_proxy, proxy)
    spec = {"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/x"]}}]}]}
    done = step(engine, policy("meshwide", spec, "istio-system"), *proxies)
    assert done.recomputed["compiled_policy"] == 1  # for HTTP and for TCP
    assert done.encodes == {"ecds": 2}  # those that deny
    snapshots = [engine.get(compile_proxy, p).resources[ECDS] for p in proxies]
    denying = {id(s["envoy.filters.http.rbac.deny"]) for s in snapshots}
    assert len(denying) == 1
