"""Sticky sessions: labels of services, and an annotation of a DestinationRule."""

from typing import Any

import msgspec
import pytest
from meshes import Rendered, Rows, config, endpoints, host, router, rows, service, sidecar

from meshbus.api.sticky_session import STICKY_SESSION
from meshbus.validate import validate_object

FILTER = "envoy.filters.http.stateful_session"
COOKIE = {"istio.io/persistent-session": "session"}
HEADER = {"istio.io/persistent-session-header": "x-session"}


def web(labels: dict[str, str] | None = None, **fields: Any) -> Rows:
    return rows(
        service(
            "web", ("http", 80, "HTTP"), addresses=["10.96.0.1"], labels=labels or {}, **fields
        ),
        endpoints("web", "10.0.0.9", ports={"http": 80}),
    )


def rule(text: str) -> Rows:
    ((key, row),) = config("DestinationRule", "web", {"host": "web"}).items()
    return {key: msgspec.structs.replace(row, annotations={STICKY_SESSION: text})}


def session(found: Rendered, table: str = "80", domain: str = host("web")) -> dict[str, Any] | None:
    (route,) = found.virtual_host(table, domain)["routes"]
    said = route.get("typedPerFilterConfig", {}).get(FILTER)
    return None if said is None else dict(said["statefulSession"])


def filters(found: Rendered, listener: str) -> list[str]:
    chain = found.listeners[listener]["filterChains"][0]
    return [f["name"] for f in chain["filters"][0]["typedConfig"]["httpFilters"]]


@pytest.mark.parametrize(
    ("labels", "kind", "state"),
    [
        (COOKIE, "cookie", {"cookie": {"name": "session", "path": "/", "ttl": "0s"}}),
        (
            {"istio.io/persistent-session": "session:/a"},
            "cookie",
            {"cookie": {"name": "session", "path": "/a", "ttl": "0s"}},
        ),
        (HEADER, "header", {"name": "x-session"}),
        (COOKIE | HEADER, "cookie", {"cookie": {"name": "session", "path": "/", "ttl": "0s"}}),
    ],
)
def test_labels_of_a_service_ask_for_them(
    labels: dict[str, str], kind: str, state: dict[str, Any]
) -> None:
    found = Rendered(web(labels), sidecar("a"))
    said = session(found)
    assert said is not None
    assert said["sessionState"]["name"] == f"envoy.http.stateful_session.{kind}"
    config = {k: v for k, v in said["sessionState"]["typedConfig"].items() if k != "@type"}
    assert config == state
    assert filters(found, "0.0.0.0_80")[-2:] == [FILTER, "envoy.filters.http.router"]


def test_endpoints_that_drain_keep_their_sessions() -> None:
    cluster = Rendered(web(COOKIE), sidecar("a")).clusters[f"outbound|80||{host('web')}"]
    kept = cluster["commonLbConfig"]["overrideHostStatus"]["statuses"]
    assert "DRAINING" in kept
    assert "HEALTHY" in kept
    plain = Rendered(web(), sidecar("a")).clusters[f"outbound|80||{host('web')}"]
    assert "overrideHostStatus" not in plain.get("commonLbConfig", {})


def test_without_any_nothing_is_filtered() -> None:
    found = Rendered(web(), sidecar("a"))
    assert session(found) is None
    assert FILTER not in filters(found, "0.0.0.0_80")


def test_a_rule_goes_over_labels() -> None:
    text = '{"cookie": {"name": "own", "path": "/shop", "ttl": "1h"}, "strict": true}'
    said = session(Rendered(rows(web(HEADER), rule(text)), sidecar("a")))
    assert said is not None
    assert said["strict"] is True
    assert said["sessionState"]["typedConfig"]["cookie"] == {
        "name": "own",
        "path": "/shop",
        "ttl": "3600s",
    }


def test_a_rule_that_cannot_be_read_is_told_and_leaves_the_labels() -> None:
    found = Rendered(rows(web(HEADER), rule("nonsense")), sidecar("a"))
    assert session(found) is not None
    assert any(STICKY_SESSION in finding.path for finding in found.snapshot.findings)


def test_endpoints_that_nobody_knows_cannot_be_kept() -> None:
    found = Rendered(rows(web(headless=True), rule('{"header": "x"}')), sidecar("a"))
    assert any("not known beforehand" in finding.message for finding in found.snapshot.findings)


def test_each_destination_of_several_has_its_own_and_gateways_follow_too() -> None:
    mesh = rows(
        web(COOKIE),
        service("other", ("http", 80, "HTTP"), addresses=["10.96.0.2"]),
        config(
            "Gateway",
            "main",
            {
                "selector": {"istio": "ingressgateway"},
                "servers": [
                    {"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}
                ],
            },
        ),
        config(
            "VirtualService",
            "v",
            {
                "hosts": ["*"],
                "gateways": ["main"],
                "http": [
                    {
                        "route": [
                            {"destination": {"host": "web"}, "weight": 50},
                            {"destination": {"host": "other"}, "weight": 50},
                        ]
                    }
                ],
            },
        ),
    )
    found = Rendered(mesh, router(namespace="default"))
    (route,) = found.virtual_host("http.80", "*")["routes"]
    entries = route["route"]["weightedClusters"]["clusters"]
    kept = [FILTER in entry.get("typedPerFilterConfig", {}) for entry in entries]
    assert kept == [True, False]
    assert FILTER in filters(found, "0.0.0.0_80")


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ('{"cookie": {"name": "a"}}', True),
        ('{"header": "x-a", "strict": true}', True),
        ("{}", False),
        ('{"cookie": {"name": "a"}, "header": "x"}', False),
        ('{"cookie": {"name": ""}}', False),
        ('{"cookie": {"name": "a b"}}', False),
        ('{"cookie": {"name": "a", "path": "shop"}}', False),
        ('{"cookie": {"name": "a", "ttl": "long"}}', False),
        ('{"cookie": {"name": "a", "ttl": "-1s"}}', False),
        ('{"header": "x a"}', False),
        ('{"header": "x", "sticky": true}', False),
        ("[]", False),
    ],
)
def test_it_is_validated(text: str, right: bool) -> None:
    document = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": {"name": "web", "annotations": {STICKY_SESSION: text}},
        "spec": {"host": "web"},
    }
    assert validate_object(document).valid is right
