"""Policies of Istio 1.4: who follows them, and what they come to."""

from typing import Any

import pytest
from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
from envoy.extensions.filters.http.jwt_authn.v3 import config_pb2 as jwt_pb2

from meshbus.compile.authorization_check import Answer, Question, check
from meshbus.compile.engine import Engine
from meshbus.compile.legacy_authentication import combinations_of, needs
from meshbus.compile.offline import find_instance, world_of_documents
from meshbus.compile.peer_authentication import modes as modes_of
from meshbus.compile.proxy import compile_proxy
from meshbus.compile.rbac_decision import header_matches
from meshbus.compile.resources import ECDS
from meshbus.model.world import World
from meshbus.validate import validate_object

KEYS = '{"keys":[{"kty":"oct","k":"AAAA"}]}'
GROUPS = {
    "Policy": "authentication.istio.io/v1alpha1",
    "MeshPolicy": "authentication.istio.io/v1alpha1",
    "PeerAuthentication": "security.istio.io/v1",
    "AuthorizationPolicy": "security.istio.io/v1",
    "RequestAuthentication": "security.istio.io/v1",
}


def written(kind: str, name: str, spec: dict[str, Any], namespace: str = "shop") -> dict[str, Any]:
    document = {
        "apiVersion": GROUPS.get(kind, "rbac.istio.io/v1alpha1"),
        "kind": kind,
        "metadata": {"name": name},
        "spec": spec,
    }
    if kind not in ("MeshPolicy", "ClusterRbacConfig"):
        document["metadata"]["namespace"] = namespace
    report = validate_object(document)
    assert report.valid, report.errors
    return document


def mesh(*documents: dict[str, Any]) -> World:
    workload = {
        "apiVersion": "standalone.meshbus.io/v1alpha1",
        "kind": "Workload",
        "metadata": {
            "name": "cart",
            "namespace": "shop",
            "labels": {"app": "cart", "version": "v1"},
        },
        "spec": {
            "address": "127.0.0.9",
            "ports": [
                {"name": "http", "port": 8080},
                {"name": "tcp", "port": 9000, "protocol": "TCP"},
            ],
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "cart", "namespace": "shop"},
        "spec": {
            "selector": {"app": "cart"},
            "ports": [
                {"name": "http", "port": 80, "targetPort": 8080},
                {"name": "tcp", "port": 9000, "targetPort": 9000},
            ],
        },
    }
    return world_of_documents([workload, service, *documents])


def ask(*documents: dict[str, Any], **question: Any) -> Answer:
    world = mesh(*documents)
    question = {"caller": ("shop", "web"), **question}
    return check(Engine(world), find_instance(world, "shop/cart"), Question(**question))


def passes(*documents: dict[str, Any], **question: Any) -> bool:
    return ask(*documents, **question).outcome == "allowed"


STRICT_PEER = {"peers": [{"mtls": {}}]}


# --------------------------------------------------------------------------- roles

ON = written("ClusterRbacConfig", "default", {"mode": "ON"})
VIEWER = written(
    "ServiceRole",
    "viewer",
    {
        "rules": [
            {"services": ["cart.shop.svc.cluster.local"], "methods": ["GET"], "paths": ["/v*"]}
        ]
    },
)


def bind(*subjects: dict[str, Any], **fields: Any) -> dict[str, Any]:
    spec = {"subjects": list(subjects), "roleRef": {"kind": "ServiceRole", "name": "viewer"}}
    return written("ServiceRoleBinding", "viewers", {**spec, **fields})


WEB = {"user": "cluster.local/ns/shop/sa/web"}


def test_a_role_and_its_binding_let_somebody_in() -> None:
    config = (ON, VIEWER, bind(WEB))
    assert passes(*config, path="/v1")
    assert not passes(*config, path="/v1", method="POST")
    assert not passes(*config, path="/other")
    assert not passes(*config, path="/v1", caller=("shop", "db"))
    assert not passes(ON, path="/v1")
    assert not passes(ON, VIEWER, path="/v1")
    assert not passes(ON, bind(WEB), path="/v1"), "a role that is not there grants nothing"
    answer = ask(*config, path="/v1")
    assert answer.rule is not None
    assert (answer.rule.kind, answer.rule.policy) == ("ServiceRole", "viewer")


def test_tcp_needs_rules_without_http() -> None:
    assert not passes(ON, VIEWER, bind(WEB), port=9000)
    role = written("ServiceRole", "viewer", {"rules": [{"services": ["*"], "ports": [9000]}]})
    assert passes(ON, role, bind(WEB), port=9000)
    assert not passes(ON, role, bind({"user": "other"}), port=9000)


@pytest.mark.parametrize(
    ("mode", "listed", "needed"),
    [
        ("OFF", None, False),
        ("ON", None, True),
        ("ON_WITH_INCLUSION", {"namespaces": ["shop"]}, True),
        ("ON_WITH_INCLUSION", {"services": ["cart.shop.svc.cluster.local"]}, True),
        ("ON_WITH_INCLUSION", {"services": ["other.shop.svc.cluster.local"]}, False),
        ("ON_WITH_INCLUSION", {}, False),
        ("ON_WITH_EXCLUSION", {"namespaces": ["shop"]}, False),
        ("ON_WITH_EXCLUSION", {"services": ["cart.shop.svc.cluster.local"]}, False),
        ("ON_WITH_EXCLUSION", {"namespaces": ["bank"]}, True),
        ("ON_WITH_EXCLUSION", {}, True),
    ],
)
def test_modes(mode: str, listed: dict[str, Any] | None, needed: bool) -> None:
    field = "inclusion" if mode.endswith("INCLUSION") else "exclusion"
    spec = {"mode": mode} if listed is None else {"mode": mode, field: listed}
    assert passes(written("ClusterRbacConfig", "default", spec)) is not needed
    assert passes(written("RbacConfig", "default", spec, "istio-system")) is not needed


def test_the_cluster_config_counts_first_and_policies_before_both() -> None:
    off = written("RbacConfig", "default", {"mode": "OFF"}, "istio-system")
    assert not passes(ON, off)
    deny = written("AuthorizationPolicy", "a", {"action": "DENY", "rules": [{"to": [POST]}]})
    assert passes(ON, deny), "a workload that a policy is about follows policies alone"
    assert not passes(ON, deny, method="POST")


POST = {"operation": {"methods": ["POST"]}}


def test_what_is_permissive_is_seen_and_not_felt() -> None:
    config = written(
        "ClusterRbacConfig", "default", {"mode": "ON", "enforcementMode": "PERMISSIVE"}
    )
    answer = ask(config, VIEWER, bind(WEB), path="/other")
    assert answer.outcome == "allowed"
    assert [d[:2] for d in answer.dry_run] == [("ALLOW", "denied")]
    answer = ask(ON, VIEWER, bind(WEB, mode="PERMISSIVE"), path="/v1")
    assert answer.outcome == "denied"
    assert [d[:2] for d in answer.dry_run] == [("ALLOW", "allowed")]


@pytest.mark.parametrize(
    ("subject", "caller", "claims", "allowed"),
    [
        ({"user": "*"}, None, None, True),
        ({"user": "*", "namespaces": ["shop"]}, None, None, False),
        ({"names": ["cluster.local/ns/shop/sa/*"]}, ("shop", "web"), None, True),
        ({"notNames": ["cluster.local/ns/shop/sa/web"]}, ("shop", "web"), None, False),
        ({"namespaces": ["shop"], "notNames": ["*/sa/db"]}, ("shop", "web"), None, True),
        ({"notNamespaces": ["shop"]}, ("shop", "web"), None, False),
        ({"ips": ["127.0.0.0/8"]}, None, None, True),
        ({"notIps": ["127.0.0.0/8"]}, None, None, False),
        ({"groups": ["admins"]}, None, {"groups": ["users", "admins"]}, True),
        ({"group": "admins"}, None, {"groups": ["users"]}, False),
        ({"properties": {"source.namespace": "shop"}}, ("shop", "web"), None, True),
        ({"properties": {"request.auth.claims[team]": "red"}}, None, {"team": "red"}, True),
        ({"properties": {"request.auth.claims[team]": "red"}}, None, {"team": "blue"}, False),
    ],
)
def test_subjects(subject: dict[str, Any], caller: Any, claims: Any, allowed: bool) -> None:
    rule = {"issuer": "me", "jwks": KEYS}
    jwt = written("RequestAuthentication", "jwt", {"jwtRules": [rule]})
    given = None if claims is None else {"iss": "me", "sub": "ann", **claims}
    made = passes(ON, VIEWER, bind(subject), jwt, path="/v1", caller=caller, claims=given)
    assert made is allowed


@pytest.mark.parametrize(
    ("constraint", "allowed"),
    [
        ({"key": "destination.labels[version]", "values": ["v1", "v2"]}, True),
        ({"key": "destination.labels[version]", "values": ["v2"]}, False),
        ({"key": "destination.labels[no]", "values": ["*"]}, False),
        ({"key": "destination.name", "values": ["ca*"]}, True),
        ({"key": "destination.namespace", "values": ["bank"]}, False),
        ({"key": "destination.user", "values": ["*"]}, False),
        ({"key": "destination.port", "values": ["8080"]}, True),
        ({"key": "request.headers[x-team]", "values": ["red"]}, True),
        ({"key": "request.headers[x-team]", "values": ["blue"]}, False),
        ({"key": "nonsense", "values": ["x"]}, False),
    ],
)
def test_constraints(constraint: dict[str, Any], allowed: bool) -> None:
    role = written(
        "ServiceRole", "viewer", {"rules": [{"services": ["*"], "constraints": [constraint]}]}
    )
    assert passes(ON, role, bind(WEB), headers={"X-Team": "red"}) is allowed


def test_whose_principal_a_request_has() -> None:
    """USE_PEER: the caller's; USE_ORIGIN: that of its token."""
    role = written("ServiceRole", "viewer", {"rules": [{"services": ["*"]}]})
    origins = [{"jwt": {"issuer": "me", "jwks": KEYS}}]
    token = {"iss": "me", "sub": "ann"}
    of_token = bind({"properties": {"request.auth.principal": "me/ann"}})
    of_peer = bind({"properties": {"request.auth.principal": "cluster.local/ns/shop/sa/web"}})
    for binding, by_token in (("USE_ORIGIN", True), ("USE_PEER", False)):
        spec = {"origins": origins, "principalBinding": binding, **STRICT_PEER}
        policy = written("Policy", "default", spec)
        assert passes(ON, role, of_token, policy, claims=token) is by_token
        assert passes(ON, role, of_peer, policy, claims=token) is not by_token


def test_actions_and_roles_of_the_root_namespace() -> None:
    inline = written(
        "ServiceRoleBinding",
        "b",
        {"subjects": [WEB], "actions": [{"services": ["*"], "methods": ["GET"]}]},
    )
    assert passes(ON, inline)
    assert not passes(ON, inline, method="POST")
    role = written("ServiceRole", "all", {"rules": [{"services": ["*"]}]}, "istio-system")
    shared = written("ServiceRoleBinding", "b", {"subjects": [WEB], "role": "/all"})
    assert passes(ON, role, shared)


# --------------------------------------------------------------------------- mutual TLS


def modes(*documents: dict[str, Any]) -> tuple[str, str]:
    """Of the HTTP and the TCP port."""
    world = mesh(*documents)
    proxy = find_instance(world, "shop/cart")
    found = Engine(world).get(modes_of, proxy.namespace, proxy.labels)
    return found.at(8080), found.at(9000)


@pytest.mark.parametrize(
    ("spec", "mode"),
    [
        (STRICT_PEER, "STRICT"),
        ({"peers": [{"mtls": {"mode": "PERMISSIVE"}}]}, "PERMISSIVE"),
        ({"peers": [{"mtls": {"allowTls": True}}]}, "PERMISSIVE"),
        ({"peers": [{"mtls": {}}], "peerIsOptional": True}, "PERMISSIVE"),
        ({}, "DISABLE"),
        ({"peers": []}, "DISABLE"),
    ],
)
def test_peers(spec: dict[str, Any], mode: str) -> None:
    assert modes(written("Policy", "default", spec)) == (mode, mode)
    assert modes(written("MeshPolicy", "default", spec)) == (mode, mode)


def test_the_nearest_policy_counts_whole() -> None:
    everywhere = written("MeshPolicy", "default", STRICT_PEER)
    off = written("Policy", "default", {})
    service = written("Policy", "cart", {"targets": [{"name": "cart"}], **STRICT_PEER})
    port = written(
        "Policy", "port", {"targets": [{"name": "cart", "ports": [{"number": 9000}]}], "peers": []}
    )
    named = written(
        "Policy", "named", {"targets": [{"name": "cart", "ports": [{"name": "http"}]}], "peers": []}
    )
    other = written("Policy", "other", {"targets": [{"name": "db"}], "peers": []})
    assert modes() == ("PERMISSIVE", "PERMISSIVE")
    assert modes(everywhere, other) == ("STRICT", "STRICT")
    assert modes(everywhere, off) == ("DISABLE", "DISABLE")
    assert modes(everywhere, off, service) == ("STRICT", "STRICT")
    assert modes(everywhere, off, service, port) == ("STRICT", "DISABLE")
    assert modes(service, named) == ("DISABLE", "STRICT"), "port 80 of the service is 8080 here"
    today = written("PeerAuthentication", "default", {"mtls": {"mode": "PERMISSIVE"}})
    assert modes(everywhere, service, today) == ("PERMISSIVE", "PERMISSIVE")


# --------------------------------------------------------------------------- tokens


def asked_for(origins: list[dict[str, Any]], path: str) -> tuple[int, ...]:
    """Origins of which one must be good, as Envoy chooses the rule."""
    for need in needs(origins):
        headers = {":path": path}
        if all(header_matches(h, headers) for h in need.match.headers):
            return need.origins
    return ()


def trigger(*rules: dict[str, Any]) -> dict[str, Any]:
    return {"issuer": "me", "triggerRules": list(rules)}


@pytest.mark.parametrize(
    ("rules", "asked", "free"),
    [
        ([], ["/", "/x?y"], []),
        ([{"includedPaths": [{"exact": "/a"}]}], ["/a", "/a?x=1", "/a#b"], ["/a/", "/b?/a"]),
        ([{"includedPaths": [{"prefix": "/a"}]}], ["/a", "/abc?d"], ["/b", "/?/a"]),
        ([{"includedPaths": [{"suffix": ".html"}]}], ["/x.html", "/x.html?q"], ["/x?y.html"]),
        ([{"includedPaths": [{"regex": "/a.c"}]}], ["/abc", "/abc?x"], ["/abcd"]),
        ([{"excludedPaths": [{"exact": "/health"}]}], ["/", "/health/"], ["/health", "/health?x"]),
        (
            [{"excludedPaths": [{"suffix": ".css"}, {"prefix": "/open"}]}],
            ["/a", "/secret?x=.css", "/secret?/open"],
            ["/a.css", "/openly"],
        ),
        ([{"excludedPaths": [{"regex": ".*[.]css"}]}], ["/a", "/secret?x=.css"], ["/a.css"]),
        (
            [{"includedPaths": [{"prefix": "/a"}], "excludedPaths": [{"exact": "/a/free"}]}],
            ["/a", "/a/b"],
            ["/a/free", "/b"],
        ),
        (
            [{"includedPaths": [{"prefix": "/a"}]}, {"includedPaths": [{"prefix": "/b"}]}],
            ["/a", "/b"],
            ["/c"],
        ),
    ],
)
def test_trigger_rules(rules: list[dict[str, Any]], asked: list[str], free: list[str]) -> None:
    origins = [trigger(*rules)]
    assert [p for p in asked if asked_for(origins, p) != (0,)] == []
    assert [p for p in free if asked_for(origins, p) != ()] == []


def test_several_origins_are_asked_for_where_they_are_triggered() -> None:
    origins = [
        trigger({"includedPaths": [{"prefix": "/a"}]}),
        trigger({"includedPaths": [{"prefix": "/ab"}]}),
        trigger(),
    ]
    assert asked_for(origins, "/x") == (2,)
    assert asked_for(origins, "/a") == (0, 2)
    assert asked_for(origins, "/abc") == (0, 1, 2)
    assert combinations_of(origins) == len(needs(origins))


def tokens(*documents: dict[str, Any]) -> jwt_pb2.JwtAuthentication:
    world = mesh(*documents)
    snapshot = Engine(world).get(compile_proxy, find_instance(world, "shop/cart"))
    body = snapshot.resources[ECDS]["envoy.filters.http.jwt_authn"].body
    made = jwt_pb2.JwtAuthentication()
    assert TypedExtensionConfig.FromString(body).typed_config.Unpack(made)
    return made


def test_a_hostile_policy_asks_for_tokens_everywhere() -> None:
    excluded = [{"regex": f"/{n}"} for n in range(60)]
    jwt = {"issuer": "me", "jwks": KEYS, "triggerRules": [{"excludedPaths": excluded}]}
    made = tokens(written("Policy", "default", {"origins": [{"jwt": jwt}]}))
    (rule,) = made.rules
    assert (rule.match.prefix, len(rule.match.headers)) == ("/", 0)
    assert rule.requires.provider_name


def test_origins_are_needed_unless_they_are_optional() -> None:
    origins = [
        {"jwt": {"issuer": "me", "jwks": KEYS, "jwtHeaders": ["x-token"], "jwtParams": ["t"]}},
        {"jwt": {"issuer": "you", "jwks": KEYS}},
    ]
    needed = tokens(written("Policy", "default", {"origins": origins}))
    (rule,) = needed.rules
    assert [r.provider_name for r in rule.requires.requires_any.requirements] == [
        "shop/default/0",
        "shop/default/1",
    ]
    provider = needed.providers["shop/default/0"]
    assert [h.name for h in provider.from_headers] == ["x-token"]
    assert list(provider.from_params) == ["t"]
    assert provider.forward
    (rule,) = tokens(
        written("Policy", "default", {"origins": origins, "originIsOptional": True})
    ).rules
    assert rule.requires.requires_any.requirements[-1].HasField("allow_missing_or_failed")
    today = written("RequestAuthentication", "a", {"jwtRules": [{"issuer": "a", "jwks": KEYS}]})
    assert list(tokens(written("Policy", "default", {"origins": origins}), today).providers) == [
        "shop/a/0"
    ]
