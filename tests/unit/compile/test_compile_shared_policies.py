"""Filters that come by ECDS are shared by workloads that the same objects select."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from meshes import Rows, config, endpoints, rows, service, sidecar

from meshbus.compile import proxy as proxy_plans
from meshbus.compile.engine import Engine
from meshbus.compile.proxy import compile_proxy
from meshbus.compile.resources import ECDS
from meshbus.compile.targets import GATEWAY_NAME
from meshbus.model.world import Put, World, world_of

NAMESPACES = st.sampled_from(["default", "shop", "istio-system"])
LABELS = st.sampled_from(
    [{}, {"app": "a"}, {"version": "v1"}, {"app": "a", "version": "v2"}, {GATEWAY_NAME: "edge"}]
)
NAMES = st.sampled_from("pq")


def access(name: str, namespace: str, labels: dict[str, str], attached: bool) -> Rows:
    spec: dict[str, Any] = {"rules": [{"to": [{"operation": {"paths": [f"/{name}"]}}]}]}
    if attached:
        gateway = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge"}
        spec["targetRefs"] = [gateway]
    elif labels:
        spec["selector"] = {"matchLabels": labels}
    return config("AuthorizationPolicy", name, spec, namespace=namespace)


def tokens(name: str, namespace: str, labels: dict[str, str]) -> Rows:
    spec: dict[str, Any] = {"jwtRules": [{"issuer": name, "jwks": '{"keys": []}'}]}
    if labels:
        spec["selector"] = {"matchLabels": labels}
    return config("RequestAuthentication", name, spec, namespace=namespace)


def wasm(name: str, namespace: str, labels: dict[str, str]) -> Rows:
    spec: dict[str, Any] = {"url": f"file:///{name}.wasm"}
    if labels:
        spec["selector"] = {"matchLabels": labels}
    return config("WasmPlugin", name, spec, namespace=namespace)


def of_istio_1_4(mode: str, namespace: str) -> Rows:
    spec = {"targets": [{"name": "a"}], "origins": [{"jwt": {"issuer": "old", "jwks": "{}"}}]}
    return rows(
        config("ClusterRbacConfig", "default", {"mode": mode}, namespace=""),
        config("Policy", "old", spec, namespace=namespace),
    )


OBJECTS = st.lists(
    st.one_of(
        st.builds(access, NAMES, NAMESPACES, LABELS, st.booleans()),
        st.builds(tokens, NAMES, NAMESPACES, LABELS),
        st.builds(wasm, NAMES, NAMESPACES, LABELS),
        st.builds(of_istio_1_4, st.sampled_from(["ON", "OFF"]), st.sampled_from(["default"])),
    ),
    max_size=4,
)
WORKLOADS = [
    sidecar(f"{namespace}-{number}", namespace=namespace, labels=labels)
    for namespace in ("default", "shop")
    for number, labels in enumerate(
        ({}, {"app": "a"}, {"app": "a", "version": "v1"}, {"app": "b", GATEWAY_NAME: "edge"})
    )
]
BASE = rows(service("a", ("http", 80, "HTTP")), endpoints("a", "10.0.0.1", ports={"http": 8080}))


def filters(engine: Engine) -> list[dict[str, bytes]]:
    """The configuration of each workload's filters."""
    return [
        {name: r.body for name, r in engine.get(compile_proxy, proxy).resources[ECDS].items()}
        for proxy in WORKLOADS
    ]


def alone(world: World) -> list[dict[str, bytes]]:
    """The same where workloads share nothing."""
    kept = proxy_plans.labels_that_count
    try:
        proxy_plans.labels_that_count = lambda reader, namespace, labels: labels
        return filters(Engine(world))
    finally:
        proxy_plans.labels_that_count = kept


@settings(max_examples=60, deadline=None)
@given(OBJECTS, OBJECTS)
def test_sharing_does_not_show(first: list[Rows], then: list[Rows]) -> None:
    world = world_of(rows(BASE, *first))
    engine = Engine(world)
    assert filters(engine) == alone(world)
    for step, part in enumerate(then):
        world, touched = world.apply([Put(key, 1000 + step, 0.0, row) for key, row in part.items()])
        engine.update(world, touched)
        assert filters(engine) == alone(world)


def test_a_policy_for_all_runs_once_for_each_namespace() -> None:
    selective = access("p", "shop", {"app": "a"}, attached=False)
    engine = Engine(world_of(rows(BASE, selective)))
    filters(engine)
    before = engine.counters.copy()
    world, touched = engine.world.apply(
        [
            Put(key, 1000, 0.0, row)
            for key, row in access("q", "istio-system", {}, attached=False).items()
        ]
    )
    engine.update(world, touched)
    filters(engine)
    since = engine.counters.since(before)
    # Once for `default`; for those of `shop` that the selector picks and those that it does not.
    assert since.recomputed["workload_extensions"] == 3
    assert since.recomputed["plan_proxy"] == 0
