"""Security objects of every kind, coming and going: what follows is what a fresh start gives."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from meshes import CLUSTER, Rows, config, mesh_config, rows, service, sidecar

from meshbus.compile.engine import Engine
from meshbus.compile.legacy_authentication import any_policy
from meshbus.compile.proxy import compile_proxy
from meshbus.compile.resources import ECDS, LDS
from meshbus.model.key_sources import key_set_key
from meshbus.model.keys import Key
from meshbus.model.rows import KeySet
from meshbus.model.world import Put, world_of

SOURCE = "https://issuer.example/keys"
JWKS = '{"keys":[{"kty":"EC","crv":"P-256","x":"eA","y":"eQ"}]}'
OTHER = JWKS.replace("eA", "eB")
LABELS = {"selector": {"matchLabels": {"app": "cart"}}}
GET = {"to": [{"operation": {"methods": ["GET"]}}]}
PORT = {"to": [{"operation": {"ports": ["80"]}}]}
JWT = {"issuer": "https://issuer.example", "jwksUri": SOURCE}
MTLS = {"peers": [{"mtls": {}}]}


def objects(kind: str, name: str, *specs: dict[str, Any], namespace: str = "default") -> list[Rows]:
    return [config(kind, name, spec, namespace) for spec in specs]


def keys(*sets: KeySet) -> list[Rows]:
    return [{key_set_key(CLUSTER, SOURCE): row} for row in sets]


CANDIDATES: list[list[Rows]] = [
    objects(
        "AuthorizationPolicy",
        "a",
        {"rules": [GET]},
        {"rules": [PORT], **LABELS},
        {"action": "DENY", "rules": [GET, PORT]},
        {"action": "CUSTOM", "provider": {"name": "opa"}, "rules": [GET]},
    ),
    objects("AuthorizationPolicy", "b", {"action": "AUDIT", "rules": [{}]}, {}),
    objects(
        "AuthorizationPolicy", "c", {"action": "DENY", "rules": [GET]}, namespace="istio-system"
    ),
    objects("RequestAuthentication", "a", {"jwtRules": [JWT]}, {"jwtRules": [JWT, JWT], **LABELS}),
    objects("PeerAuthentication", "a", {"mtls": {"mode": "STRICT"}}, {"mtls": {"mode": "DISABLE"}}),
    objects("Policy", "default", MTLS, {"origins": [{"jwt": JWT}]}, {}),
    objects("Policy", "cart", {"targets": [{"name": "cart", "ports": [{"number": 80}]}], **MTLS}),
    objects("MeshPolicy", "default", MTLS, namespace=""),
    objects("ServiceRole", "r", {"rules": [{"services": ["*"]}]}, {"rules": [{"services": ["x"]}]}),
    objects(
        "ServiceRoleBinding",
        "r",
        {"subjects": [{"user": "*"}], "roleRef": {"kind": "ServiceRole", "name": "r"}},
        {"subjects": [{"user": "a"}], "mode": "PERMISSIVE", "actions": [{"services": ["*"]}]},
    ),
    objects(
        "ClusterRbacConfig",
        "default",
        {"mode": "ON"},
        {"mode": "ON_WITH_EXCLUSION", "exclusion": {"namespaces": ["default"]}},
        namespace="",
    ),
    keys(
        KeySet(SOURCE, JWKS, 1.0),
        KeySet(SOURCE, JWKS, 2.0),
        KeySet(SOURCE, OTHER, 3.0, "away", 4.0),
        KeySet(SOURCE, "", 0.0, "away", 1.0),
    ),
    [
        mesh_config(trustDomainAliases=["old"]),
        mesh_config(
            extensionProviders=[
                {"name": "opa", "envoyExtAuthzGrpc": {"service": "opa.default", "port": 9000}}
            ]
        ),
    ],
    [service("cart", ("http", 80, "HTTP")), service("cart", ("http", 80, "HTTP"), ("t", 9, "TCP"))],
]
BASE = rows(service("web", ("http", 80, "HTTP")))
PROXIES = (sidecar("cart"), sidecar("web"))
STEPS = st.lists(
    st.integers(0, len(CANDIDATES) - 1).flatmap(
        lambda which: st.tuples(st.just(which), st.integers(-1, len(CANDIDATES[which]) - 1))
    ),
    min_size=1,
    max_size=12,
)


def bodies(engine: Engine) -> list[Any]:
    out = []
    for proxy in PROXIES:
        snapshot = engine.get(compile_proxy, proxy)
        out.append(
            (
                {n: r.body for t in (ECDS, LDS) for n, r in snapshot.resources[t].items()},
                snapshot.findings,
            )
        )
    return out


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_incremental_is_from_scratch(steps: list[tuple[int, int]]) -> None:
    engine = Engine(world_of(BASE))
    held: dict[Key, Any] = dict(BASE)
    bodies(engine)
    for number, (which, variant) in enumerate(steps):
        chosen = CANDIDATES[which][variant]
        change = dict.fromkeys(chosen) if variant < 0 else chosen
        for key, row in change.items():
            if row is None:
                held.pop(key, None)
            else:
                held[key] = row
        world, touched = engine.world.apply(
            Put(key, number + 2, 0.0, row) for key, row in change.items()
        )
        engine.update(world, touched)
        assert bodies(engine) == bodies(Engine(world_of(held)))


def test_keys_that_are_fetched_again_and_are_the_same_change_nothing() -> None:
    engine = Engine(
        world_of(
            rows(
                BASE,
                config("RequestAuthentication", "a", {"jwtRules": [JWT]}),
                {key_set_key(CLUSTER, SOURCE): KeySet(SOURCE, JWKS, 1.0)},
            )
        )
    )
    bodies(engine)
    before = engine.counters.copy()
    again = {key_set_key(CLUSTER, SOURCE): KeySet(SOURCE, JWKS, 2.0)}
    world, touched = engine.world.apply(Put(k, 2, 0.0, row) for k, row in again.items())
    engine.update(world, touched)
    bodies(engine)
    done = engine.counters.since(before)
    assert done.recomputed == {"fetched_keys": 1}
    assert not done.encodes


def test_a_mesh_without_policies_of_istio_1_4_does_not_look_at_services_for_them() -> None:
    engine = Engine(world_of(BASE))
    bodies(engine)
    assert not engine.counters.recomputed["selecting_services"]
    assert not any_policy(_Reader(engine), "default")


class _Reader:
    def __init__(self, engine: Engine) -> None:
        self.node = engine.get
