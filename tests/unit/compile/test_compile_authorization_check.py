"""`authz check`: who may do what, by which rule; that it equals Envoy is an integration test."""

import dataclasses
from typing import Any

import pytest

from meshbus.compile.authorization_check import Answer, Question, check
from meshbus.compile.authorization_questions import CheckRequest, answer_of, proposed
from meshbus.compile.engine import Engine
from meshbus.compile.offline import CLUSTER, find_instance, world_of_documents
from meshbus.compile.request_paths import normalized, rules_of

WORKLOAD = {
    "apiVersion": "standalone.meshbus.io/v1alpha1",
    "kind": "Workload",
    "metadata": {"name": "server", "namespace": "default", "labels": {"app": "server"}},
    "spec": {
        "address": "127.0.0.9",
        "ports": [
            {"name": "http", "port": 80},
            {"name": "tcp-raw", "port": 90, "protocol": "TCP"},
        ],
    },
}
CLIENT = ("default", "client")


def policy(name: str, spec: dict[str, Any], kind: str = "AuthorizationPolicy") -> dict[str, Any]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    }


def asked(*documents: dict[str, Any], **question: Any) -> Answer:
    world = world_of_documents([WORKLOAD, *documents])
    target = find_instance(world, "default/server")
    return check(Engine(world), target, Question(**{"caller": CLIENT, **question}))


def test_what_decided_is_named() -> None:
    deny = policy(
        "no", {"action": "DENY", "rules": [{}, {"to": [{"operation": {"ports": ["1"]}}]}]}
    )
    answer = asked(deny)
    assert (answer.outcome, answer.status) == ("denied", 403)
    assert answer.rule is not None
    assert (answer.rule.namespace, answer.rule.policy, answer.rule.rule) == ("default", "no", 0)
    assert asked().outcome == "allowed"
    assert asked().rule is None


def test_plain_text_is_nobody() -> None:
    anybody = policy("a", {"rules": [{"from": [{"source": {"principals": ["*"]}}]}]})
    assert asked(anybody).outcome == "allowed"
    assert asked(anybody, caller=None).outcome == "denied"
    strict = policy("default", {"mtls": {"mode": "STRICT"}}, "PeerAuthentication")
    assert "STRICT" in asked(strict, caller=None).because
    assert asked(strict).outcome == "allowed"
    off = policy("default", {"mtls": {"mode": "DISABLE"}}, "PeerAuthentication")
    assert asked(anybody, off).outcome == "denied", "without mutual TLS nobody is known"


@pytest.mark.parametrize(("source", "called"), [("10.9.9.9", "10.0.0.9"), ("fd00::1", "fd00::9")])
def test_a_workload_is_called_by_the_family_of_its_caller(source: str, called: str) -> None:
    when = {"when": [{"key": "destination.ip", "values": [called]}]}
    world = world_of_documents([WORKLOAD, policy("d", {"action": "DENY", "rules": [when]})])
    found = find_instance(world, "default/server")
    target = dataclasses.replace(found, ips=("10.0.0.9", "fd00::9"))
    answer = check(Engine(world), target, Question(caller=CLIENT, source_ip=source))
    assert answer.outcome == "denied"


def test_tcp_fails_safe() -> None:
    get = {"rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]}
    assert asked(policy("a", get)).outcome == "allowed"
    answer = asked(policy("a", get), port=90)
    assert (answer.outcome, answer.status) == ("denied", 0)
    assert asked(policy("d", {**get, "action": "DENY"}), port=90).outcome == "denied"


def test_dry_run_audit_and_provider_are_told() -> None:
    dry = policy("dry", {"action": "DENY", "rules": [{}]})
    dry["metadata"]["annotations"] = {"istio.io/dry-run": "true"}
    answer = asked(dry, policy("log", {"action": "AUDIT", "rules": [{}]}))
    assert answer.outcome == "allowed"
    assert answer.audited is not None
    assert answer.audited.policy == "log"
    ((action, outcome, rule),) = answer.dry_run
    assert (action, outcome) == ("DENY", "denied")
    assert rule is not None
    assert rule.policy == "dry"
    ask = policy("ask", {"action": "CUSTOM", "provider": {"name": "opa"}, "rules": [{}]})
    refused = asked(ask)
    assert refused.outcome == "denied"
    assert refused.rule is not None
    assert refused.rule.action == "CUSTOM"
    provider = {"name": "opa", "envoyExtAuthzHttp": {"service": "opa.default", "port": 9000}}
    mesh = {
        "apiVersion": "mesh.istio.io/v1alpha1",
        "kind": "MeshConfig",
        "metadata": {"name": "mesh"},
        "spec": {"extensionProviders": [provider]},
    }
    assert (asked(ask, mesh).outcome, asked(ask, mesh).provider) == ("asked", "opa")


def test_tokens() -> None:
    rule = {"issuer": "me", "audiences": ["books"], "jwks": '{"keys":[{"kty":"oct","k":"AAAA"}]}'}
    authn = policy("jwt", {"jwtRules": [rule]}, "RequestAuthentication")
    source = {"requestPrincipals": ["me/ann"]}
    people = policy("people", {"rules": [{"from": [{"source": source}]}]})
    good = {"iss": "me", "sub": "ann", "aud": ["books", "films"]}
    assert asked(authn, people, claims=good).outcome == "allowed"
    assert asked(authn, people).status == 403
    assert asked(authn, people, claims={**good, "aud": "films"}).status == 403
    assert asked(authn, people, claims={**good, "iss": "you"}).status == 401
    assert asked(people, claims=good).status == 403, "no RequestAuthentication: tokens are not read"


def test_a_token_of_any_issuer_is_taken_where_the_keys_are_known() -> None:
    authn = policy("jwt", {"jwtRules": [{"jwksUri": "https://a.example"}]}, "RequestAuthentication")
    source = {"requestPrincipals": ["*/ann"]}
    people = policy("people", {"rules": [{"from": [{"source": source}]}]})
    assert asked(authn, people, claims={"iss": "me", "sub": "ann"}).outcome == "allowed"
    assert asked(authn, people, claims={"iss": "you", "sub": "ann"}).outcome == "allowed"
    assert asked(authn, people, claims={"iss": "me", "sub": "bob"}).status == 403


@pytest.mark.parametrize(
    ("value", "header", "outcome"),
    [
        ("red", "red", "allowed"),
        ("red", "blue,red", "allowed"),
        ("red", "red,blue", "allowed"),
        ("red", "blue,red,green", "allowed"),
        ("red", "redder", "denied"),
        ("red", "blue, red", "denied"),
        ("r*", "blue,redder,green", "allowed"),
        ("*er", "blue,redder,green", "allowed"),
        ("a.c", "abc", "denied"),
        ("*", "anything", "allowed"),
    ],
)
def test_a_header_with_a_list(value: str, header: str, outcome: str) -> None:
    condition = {"key": "request.experimental.inline.headers[x-team]", "values": [value]}
    team = policy("team", {"rules": [{"when": [condition]}]})
    assert asked(team, headers={"x-team": header}).outcome == outcome
    assert asked(team).outcome == "denied"


def test_a_workload_that_only_a_template_describes() -> None:
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "shop-v1", "namespace": "default"},
        "spec": {"template": {"metadata": {"labels": {"app": "shop"}}, "spec": {}}},
    }
    there = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "shop", "namespace": "default"},
        "spec": {"selector": {"app": "shop"}, "ports": [{"name": "http", "port": 80}]},
    }
    deny = policy(
        "no", {"action": "DENY", "rules": [{}], "selector": {"matchLabels": {"app": "shop"}}}
    )
    world = world_of_documents([WORKLOAD, deployment, there, deny])
    for name, outcome in (("shop-v1", "denied"), ("shop", "denied"), ("server", "allowed")):
        request = CheckRequest(to=f"default/{name}", from_="default/client")
        assert answer_of(world, request)["outcome"] == outcome, name


def test_proposed_objects_hold_and_others_are_refused() -> None:
    world = world_of_documents([WORKLOAD])
    deny = policy("no", {"action": "DENY", "rules": [{}]})
    request = CheckRequest(to="default/server", from_="default/client")
    assert answer_of(world, request)["outcome"] == "allowed"
    proposal = proposed(world, CLUSTER, [deny, WORKLOAD])
    assert answer_of(proposal.world, request)["rule"]["name"] == "no"
    assert "Workload" in proposal.refused[0]
    with pytest.raises(LookupError):
        answer_of(world, CheckRequest(to="default/nobody"))
    for field, value in (("from_", "client"), ("port", 70000), ("path", "x"), ("source_ip", "x")):
        with pytest.raises(ValueError, match=field.rstrip("_").partition("_")[0]):
            answer_of(world, CheckRequest(to="default/server", **{field: value}))


@pytest.mark.parametrize(
    ("path", "how", "wanted"),
    [
        ("/a/../b", "NONE", "/a/../b"),
        ("/a/../b?x=/../y", "BASE", "/b?x=/../y"),
        ("/a//b", "BASE", "/a//b"),
        ("/a//b", "MERGE_SLASHES", "/a/b"),
        ("/a%2Fb", "MERGE_SLASHES", "/a%2Fb"),
        ("/a%2f%5Cb", "DECODE_AND_MERGE_SLASHES", "/a/b"),
        ("/%61%2e", "BASE", "/a."),
    ],
)
def test_paths_are_seen_as_envoy_sees_them(path: str, how: str, wanted: str) -> None:
    assert normalized(path, rules_of(how)) == wanted
