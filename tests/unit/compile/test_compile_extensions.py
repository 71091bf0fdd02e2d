"""WasmPlugin and TrafficExtension: whom they concern, where they stand, what fills them."""

from typing import Any

import pytest

from meshbus.compile.engine import Engine
from meshbus.compile.extensions import extension_resource, extensions_of
from meshbus.compile.offline import compile_documents, world_of_documents
from meshbus.model.keys import Key
from meshbus.model.module_sources import asks_again, needed_modules, source_of
from meshbus.model.rows import ConfigObject, WasmChunk, WasmModule
from meshbus.model.world import Put

PREFIX = "extensions.istio.io/trafficextension/"


def document(kind: str, name: str, namespace: str = "default", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "extensions.istio.io/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def lua(name: str, namespace: str = "default", **spec: Any) -> dict[str, Any]:
    code = {"inlineCode": "function envoy_on_request(h) end"}
    return document("TrafficExtension", name, namespace, lua=code, **spec)


def wasm(name: str, **spec: Any) -> dict[str, Any]:
    return document("WasmPlugin", name, **{"url": "https://a.example.com/a.wasm", **spec})


SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "a"},
    "spec": {
        "selector": {"app": "a"},
        "ports": [{"name": "http", "port": 80, "targetPort": 8080}, {"name": "tcp", "port": 90}],
    },
}
PROXY = {"type": "sidecar", "name": "a-0", "namespace": "default", "labels": {"app": "a"}}
PROXY["ips"] = ["10.0.0.1"]  # type: ignore[assignment]


def chains(*documents: dict[str, Any], proxy: dict[str, Any] = PROXY) -> dict[str, list[str]]:
    """Names of our filters by (side:port) of HTTP and TCP chains."""
    made = compile_documents([SERVICE, *documents], proxy=proxy).document
    out: dict[str, list[str]] = {}
    for listener in made["listeners"]:
        every = [*listener.get("filterChains", []), listener.get("defaultFilterChain", {})]
        for chain in every:
            port = chain.get("filterChainMatch", {}).get("destinationPort", "")
            for one in chain.get("filters", []):
                config = one.get("typedConfig", {})
                names = [f["name"] for f in config.get("httpFilters", [])]
                kind = "http" if names else "tcp"
                names = names or [f["name"] for f in chain["filters"]]
                where = f"{listener['name']} {kind} {port}".strip()
                out[where] = [n.removeprefix(PREFIX) for n in names]
    return out


def ours(names: list[str]) -> list[str]:
    return [n for n in names if n.startswith(("default.", "istio-system."))]


def test_order_of_phases_and_priorities() -> None:
    found = chains(
        lua("z", phase="STATS"),
        lua("b", phase="AUTHN"),
        lua("a", phase="AUTHN"),
        lua("first", phase="AUTHN", priority=5),
        lua("negative", phase="AUTHN", priority=-5),
        wasm("w", phase="AUTHZ"),
        lua("last", "istio-system"),
    )
    names = found["virtualInbound http 8080"]
    assert ours(names) == [
        "default.first",
        "default.negative",
        "default.a",
        "default.b",
        "default.w~istio-translated-wasmplugin",
        "default.z",
        "istio-system.last",
    ]
    order = [
        names.index(n)
        for n in (
            "default.b",
            "envoy.filters.http.jwt_authn",
            "default.w~istio-translated-wasmplugin",
            "envoy.filters.http.rbac.audit",
            "default.z",
            "envoy.filters.http.router",
        )
    ]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("match", "inbound", "outbound"),
    [
        ([], True, True),
        ([{"mode": "SERVER"}], True, False),
        ([{"mode": "CLIENT"}], False, True),
        ([{"mode": "CLIENT_AND_SERVER"}], True, True),
        ([{"ports": [{"number": 8080}]}], True, False),
        ([{"ports": [{"number": 80}]}], False, True),
        ([{"mode": "SERVER", "ports": [{"number": 80}]}], False, False),
        ([{"mode": "SERVER", "ports": [{"number": 1}]}, {"mode": "CLIENT"}], False, True),
    ],
)
def test_what_it_sees(match: list[Any], inbound: bool, outbound: bool) -> None:
    found = chains(lua("x", match=match))
    assert bool(ours(found["virtualInbound http 8080"])) == inbound
    assert bool(ours(found["0.0.0.0_80 http"])) == outbound


def test_network_modules_are_in_tcp_chains_alone() -> None:
    found = chains(wasm("n", type="NETWORK"))
    assert ours(found["virtualInbound http 8080"]) == []
    assert len(ours(found["virtualInbound tcp 90"])) == 1


@pytest.mark.parametrize(
    ("spec", "namespace", "concerned"),
    [
        ({"selector": {"matchLabels": {"app": "a"}}}, "default", True),
        ({"selector": {"matchLabels": {"app": "b"}}}, "default", False),
        ({"selector": {"matchLabels": {"app": "a"}}}, "istio-system", True),
        ({}, "other", False),
        ({"targetRefs": [{"kind": "Gateway", "name": "g"}]}, "default", False),
    ],
)
def test_whom_it_concerns(spec: dict[str, Any], namespace: str, concerned: bool) -> None:
    made = lua("x", namespace, **spec)
    assert bool(ours(chains(made)["virtualInbound http 8080"])) == concerned
    resources = compile_documents([SERVICE, made], proxy=PROXY).document["extensions"]
    assert any(r["name"].startswith(PREFIX) for r in resources) == concerned


def test_offline_the_proxy_is_shown_where_its_module_is() -> None:
    plugin = wasm(
        "w",
        sha256="a" * 64,
        pluginName="root",
        pluginConfig={"b": 1, "a": [True]},
        failStrategy="FAIL_OPEN",
        vmConfig={"env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": "HOST"}]},
    )
    made = compile_documents([SERVICE, plugin], proxy=PROXY).document["extensions"]
    config = next(r for r in made if r["name"].startswith(PREFIX))["typedConfig"]["config"]
    assert config["rootId"] == "root"
    assert config["failurePolicy"] == "FAIL_OPEN"
    assert config["configuration"]["value"] == '{"a":[true],"b":1}'
    code = config["vmConfig"]["code"]["remote"]
    assert code["httpUri"]["uri"] == "https://a.example.com/a.wasm"
    assert code["sha256"] == "a" * 64
    environment = config["vmConfig"]["environmentVariables"]
    assert environment == {"hostEnvKeys": ["B"], "keyValues": {"A": "1"}}


def filled(plugin: dict[str, Any], *rows: tuple[Key, Any]) -> tuple[str, list[str]]:
    """Type of the filter of an object among rows of modules, and what is wrong with it."""
    world = world_of_documents([plugin])
    writes = [Put(e.key, 2, 0.0, None) for e in world.all("wasm.modules")]
    world, _ = world.apply(writes)
    world, _ = world.apply(Put(key, 3, 0.0, row) for key, row in rows)
    key = world.all("cfg.wasmplugins")[0].key
    part = Engine(world).get(extension_resource, key, "http")
    (resource,) = part.resources
    kind = "Wasm" if b"wasm.v3.Wasm" in resource.body else "RBAC"
    return kind, [finding.message for finding in part.findings]


def test_a_module_in_pieces_or_none() -> None:
    plugin = wasm("w")
    (key,) = needed_modules(world_of_documents([plugin]))
    pieces = [
        (Key("Kubernetes", "wasm", "chunks", "", "d" * 64, str(i)), WasmChunk(b"ab"))
        for i in range(2)
    ]
    good = (key, WasmModule("u", "d" * 64, 2))
    assert filled(plugin, good, *pieces) == ("Wasm", [])
    assert filled(plugin, good, pieces[0]) == ("RBAC", ["the module is not there as a whole"])
    assert filled(plugin) == ("RBAC", ["the module has not been fetched yet"])
    failed = (key, WasmModule("u", error="answered 404"))
    assert filled(plugin, failed) == ("RBAC", ["the module cannot be had: answered 404"])
    stale = (key, WasmModule("u", "d" * 64, 2, error="answered 404"))
    assert filled(plugin, stale, *pieces)[0] == "Wasm", "what was fetched before stands"
    assert filled(wasm("w", url="file:///etc/a.wasm")) == ("Wasm", [])


@pytest.mark.parametrize(
    ("spec", "url", "again"),
    [
        ({"url": "r.example.com/a:v1"}, "oci://r.example.com/a:v1", False),
        ({"url": "oci://r.example.com/a"}, "oci://r.example.com/a", True),
        ({"url": "oci://r.example.com:5000/a:latest"}, "oci://r.example.com:5000/a:latest", True),
        ({"url": "oci://r/a:latest", "imagePullPolicy": "IfNotPresent"}, "oci://r/a:latest", False),
        ({"url": "https://a/b", "imagePullPolicy": "Always"}, "https://a/b", True),
        ({"url": "oci://r/a@sha256:00"}, "oci://r/a@sha256:00", False),
    ],
)
def test_when_it_is_fetched_again(spec: dict[str, Any], url: str, again: bool) -> None:
    row = ConfigObject("x/v1", "WasmPlugin", "ns", "n", "uid", 3, 0.0, spec=spec)
    source = source_of(row)
    assert source is not None
    assert source.url == url
    assert bool(asks_again(row, source)) == again


@pytest.mark.parametrize("kind", ["WasmPlugin", "TrafficExtension"])
def test_whose_secret_the_registry_is_shown(kind: str) -> None:
    module = {"url": "oci://r.example.com/a:v1", "imagePullSecret": "login", "sha256": "0" * 64}
    spec: dict[str, Any] = module if kind == "WasmPlugin" else {"wasm": module}
    source = source_of(ConfigObject("x/v1", kind, "shop", "n", "uid", 3, 0.0, spec=spec))
    assert source is not None
    assert (source.secret, source.sha256) == ("shop/login", "0" * 64)


def test_until_its_first_module_is_there_it_is_in_no_chain() -> None:
    world = world_of_documents([SERVICE, wasm("w")])
    (key,) = needed_modules(world)

    def seen() -> int:
        labels = (("app", "a"),)
        return len(Engine(world).get(extensions_of, "default", labels))

    assert seen() == 1
    world, _ = world.apply([Put(key, 2, 0.0, None)])
    assert seen() == 0
    world, _ = world.apply([Put(key, 3, 0.0, WasmModule("u", error="404"))])
    assert seen() == 1
