"""EnvoyFilters: which proxies follow them, what each operation does, and that faults stay alone."""

import json
from typing import Any

import pytest
from envoy_filters import (
    HCM,
    LUA,
    MESH,
    Changes,
    at,
    envoy_filter,
    findings,
    followed,
    http_filters,
    patch,
)
from meshes import (
    Rendered,
    Rows,
    compiled,
    config,
    host,
    router,
    rows,
    sidecar,
)

from meshbus.api.envoy_types import type_of_url
from meshbus.compile import envoy_filter_1_4
from meshbus.compile.resources import CDS, EDS


@pytest.mark.parametrize(
    ("operation", "match", "place"),
    [
        ("INSERT_FIRST", {}, 0),
        ("INSERT_BEFORE", at("envoy.filters.http.router"), -2),
        ("INSERT_BEFORE", at("envoy.router"), -2),
        ("INSERT_AFTER", at("envoy.filters.http.fault"), 1),
        ("ADD", {}, -2),
    ],
)
def test_http_filters_are_inserted_where_the_patch_says(
    operation: str, match: Changes, place: int
) -> None:
    change = patch("HTTP_FILTER", operation, LUA, context="SIDECAR_OUTBOUND", listener=match)
    found = followed(envoy_filter(change))
    assert http_filters(found.listeners["0.0.0.0_80"])[place] == "lua"
    assert "lua" not in http_filters(found.listeners["virtualInbound"])
    assert found.snapshot.findings == ()


def test_http_filters_are_removed_merged_and_replaced() -> None:
    cors = at("envoy.filters.http.cors")
    gone = followed(envoy_filter(patch("HTTP_FILTER", "REMOVE", listener=cors)))
    assert "envoy.filters.http.cors" not in http_filters(gone.listeners["0.0.0.0_80"])
    other = followed(envoy_filter(patch("HTTP_FILTER", "REPLACE", LUA, listener=cors)))
    names = http_filters(other.listeners["0.0.0.0_80"])
    assert "lua" in names
    assert "envoy.filters.http.cors" not in names


def test_a_merge_goes_into_typed_configs() -> None:
    manager = {
        "typedConfig": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network."
            "http_connection_manager.v3.HttpConnectionManager",
            "serverName": "mine",
            "commonHttpProtocolOptions": {"idleTimeout": "30s"},
        }
    }
    of = {"filterChain": {"filter": {"name": HCM}}}
    change = patch("NETWORK_FILTER", "MERGE", manager, context="SIDECAR_OUTBOUND", listener=of)
    (item,) = followed(envoy_filter(change)).listeners["0.0.0.0_80"]["filterChains"][0]["filters"]
    assert item["typedConfig"]["serverName"] == "mine"
    assert item["typedConfig"]["rds"]["routeConfigName"] == "80"
    assert item["typedConfig"]["commonHttpProtocolOptions"] == {"idleTimeout": "30s"}


def test_clusters_are_merged_removed_and_added() -> None:
    wait = patch("CLUSTER", "MERGE", {"connectTimeout": "7s"}, cluster={"service": host("a")})
    gone = patch("CLUSTER", "REMOVE", cluster={"service": host("b"), "portNumber": 80})
    extra = patch("CLUSTER", "ADD", {"name": "extra", "type": "STATIC", "connectTimeout": "1s"})
    found = followed(envoy_filter(wait, gone, extra))
    assert found.clusters[f"outbound|80||{host('a')}"]["connectTimeout"] == "7s"
    assert f"outbound|80||{host('b')}" not in found.clusters
    assert found.clusters["extra"]["connectTimeout"] == "1s"


def test_durations_are_read_as_go_writes_them() -> None:
    hcm = {
        "@type": f"type.googleapis.com/envoy.extensions.filters.network.{HCM.split('.')[-1]}.v3."
        "HttpConnectionManager",
        "request_timeout": "1m30s",
    }
    found = followed(
        envoy_filter(
            patch("CLUSTER", "MERGE", {"dnsRefreshRate": "500ms", "connect_timeout": "0.25s"}),
            patch("NETWORK_FILTER", "MERGE", {"name": HCM, "typedConfig": hcm},
                  listener={"filterChain": {"filter": {"name": HCM}}}),
        )
    )  # fmt: skip
    cluster = found.clusters[f"outbound|80||{host('b')}"]
    assert (cluster["dnsRefreshRate"], cluster["connectTimeout"]) == ("0.500s", "0.250s")
    assert '"requestTimeout": "90s"' in json.dumps(list(found.listeners.values()))


def test_routes_and_virtual_hosts() -> None:
    vhost = {"vhost": {"name": f"{host('a')}:80"}}
    tag = {"responseHeadersToAdd": [{"header": {"key": "x-patched", "value": "1"}}]}
    slow = {"route": {"timeout": "9s"}}
    named = {"vhost": {"name": f"{host('a')}:80", "route": {"name": "default", "action": "ROUTE"}}}
    found = followed(
        envoy_filter(
            patch("VIRTUAL_HOST", "MERGE", tag, routeConfiguration=vhost),
            patch("HTTP_ROUTE", "MERGE", slow, routeConfiguration=named),
            patch(
                "ROUTE_CONFIGURATION", "MERGE", {"mostSpecificHeaderMutationsWins": True},
                context="SIDECAR_OUTBOUND", routeConfiguration={"name": "80"},
            ),
        )
    )  # fmt: skip
    held = found.virtual_host("80", host("a"))
    assert held["responseHeadersToAdd"][0]["header"]["key"] == "x-patched"
    assert held["routes"][0]["route"]["timeout"] == "9s"
    assert found.routes["80"]["mostSpecificHeaderMutationsWins"] is True
    assert "responseHeadersToAdd" not in found.virtual_host("80", host("b"))
    assert found.snapshot.findings == ()


def test_gateways_have_a_context_of_their_own() -> None:
    gateway = config(
        "Gateway",
        "edge",
        {
            "selector": {"istio": "ingressgateway"},
            "servers": [
                {"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}
            ],
        },
    )
    change = envoy_filter(patch("HTTP_FILTER", "INSERT_FIRST", LUA, context="GATEWAY"))
    found = Rendered(rows(MESH, gateway, change), router(namespace="default"))
    assert http_filters(found.listeners["0.0.0.0_80"])[0] == "lua"
    assert "lua" not in http_filters(followed(change).listeners["0.0.0.0_80"])


# --------------------------------------------------------------------------- who follows


def test_whom_it_concerns() -> None:
    wait = patch("CLUSTER", "MERGE", {"connectTimeout": "7s"}, cluster={"service": host("b")})

    def touched(*filters: Rows, **proxy: Any) -> bool:
        cluster = followed(*filters, **proxy).clusters[f"outbound|80||{host('b')}"]
        return bool(cluster["connectTimeout"] == "7s")

    assert touched(envoy_filter(wait))
    assert touched(envoy_filter(wait, namespace="istio-system"))
    assert not touched(envoy_filter(wait, namespace="other"))
    assert touched(envoy_filter(wait, workloadSelector={"labels": {"app": "a"}}))
    assert not touched(envoy_filter(wait, workloadSelector={"labels": {"app": "x"}}))
    canary = {**wait, "match": {**wait["match"], "proxy": {"metadata": {"CANARY": "1"}}}}
    assert not touched(envoy_filter(canary))
    assert touched(envoy_filter(canary), metadata=(("CANARY", "1"),))
    old = {**wait, "match": {**wait["match"], "proxy": {"proxyVersion": r"^1\.4.*"}}}
    assert not touched(envoy_filter(old))


def test_order_is_priority_then_root_then_age() -> None:
    def wait(seconds: int) -> Changes:
        value = {"connectTimeout": f"{seconds}s"}
        return patch("CLUSTER", "MERGE", value, cluster={"service": host("b")})

    found = followed(
        envoy_filter(wait(1), name="late", priority=5),
        envoy_filter(wait(2), name="first", priority=-1),
        envoy_filter(wait(3), name="root", namespace="istio-system"),
        envoy_filter(wait(4), name="own"),
    )
    assert found.clusters[f"outbound|80||{host('b')}"]["connectTimeout"] == "1s"


# --------------------------------------------------------------------------- faults


def test_a_patch_that_matches_nothing_or_is_bad_is_told_and_harms_no_other() -> None:
    found = followed(
        envoy_filter(
            patch("CLUSTER", "MERGE", {"connectTimeout": "7s"}, cluster={"service": "no.such"}),
            patch("CLUSTER", "MERGE", {"connectTimeout": "soon"}, cluster={"service": host("b")}),
            patch("CLUSTER", "MERGE", {"noSuch": 1}, cluster={"service": host("b")}),
            patch("HTTP_FILTER", "INSERT_FIRST", {"typedConfig": {"@type": "x/envoy.no.Such"}}),
            patch("CLUSTER", "MERGE", {"connectTimeout": "8s"}, cluster={"service": host("b")}),
        )
    )
    assert found.clusters[f"outbound|80||{host('b')}"]["connectTimeout"] == "8s"
    told = {f.path: f.message for f in found.snapshot.findings}
    assert set(told) == {
        "spec.configPatches[0].match",
        "spec.configPatches[1].patch.value",
        "spec.configPatches[2].patch.value",
        "spec.configPatches[3].patch.value",
    }
    assert told["spec.configPatches[0].match"] == "matches nothing of this proxy"


def test_proxies_that_follow_none_share_everything() -> None:
    wait = patch("CLUSTER", "MERGE", {"connectTimeout": "7s"}, cluster={"service": host("b")})
    chosen = envoy_filter(wait, workloadSelector={"labels": {"app": "x"}})
    plain, other = compiled(MESH, sidecar("a")), compiled(rows(MESH, chosen), sidecar("a"))
    assert plain.resources[CDS] == other.resources[CDS]
    patched = compiled(rows(MESH, envoy_filter(wait)), sidecar("a"))
    assert patched.resources[EDS] == plain.resources[EDS]


def test_the_form_of_1_4_inserts_filters() -> None:
    old = {
        "listenerMatch": {"listenerType": "SIDECAR_OUTBOUND", "portNumber": 80},
        "insertPosition": {"index": "BEFORE", "relativeTo": "envoy.router"},
        "filterType": "HTTP",
        "filterName": "lua",
        "filterConfig": LUA["typedConfig"],
    }
    found = followed(envoy_filter(filters=[old], workloadLabels={"app": "a"}))
    assert http_filters(found.listeners["0.0.0.0_80"])[-2] == "lua"


def test_a_filter_of_1_4_says_its_type_by_its_name() -> None:
    """The example of Istio 1.4's own reference page."""
    old = {
        "listenerMatch": {"listenerType": "SIDECAR_OUTBOUND", "listenerProtocol": "HTTP"},
        "filterType": "HTTP",
        "filterName": "envoy.lua",
        "filterConfig": {"inlineCode": "function envoy_on_request(handle) end"},
    }
    found = followed(envoy_filter(filters=[old], workloadLabels={"app": "a"}))
    assert not found.snapshot.findings
    assert http_filters(found.listeners["0.0.0.0_80"])[0] == "envoy.filters.http.lua"


@pytest.mark.parametrize("layer", ["http", "network"])
def test_types_of_old_filters_are_there(layer: str) -> None:
    for short in {"http": envoy_filter_1_4._HTTP, "network": envoy_filter_1_4._NETWORK}[layer]:
        made = envoy_filter_1_4.filter_of(f"envoy.{short}", {}, http=layer == "http")
        assert made["name"] == f"envoy.filters.{layer}.{short}"
        assert type_of_url(made["typedConfig"]["@type"]) is not None, short


def test_old_filters_that_say_their_type_or_are_not_known_stay_as_they_are() -> None:
    typed = {"@type": "type.googleapis.com/google.protobuf.Struct"}
    for name, said in (("envoy.lua", typed), ("envoy.squash", {"cluster": "x"})):
        made = envoy_filter_1_4.filter_of(name, said, http=True)
        assert made == {"name": name, "typedConfig": said}
    assert envoy_filter_1_4.name_of_today("envoy.lua") == "envoy.filters.http.lua"
    assert envoy_filter_1_4.name_of_today("envoy.ext_authz") == "envoy.ext_authz", "which of two?"
    assert envoy_filter_1_4.name_of_today("envoy.filters.http.lua") == "envoy.filters.http.lua"
    limit = envoy_filter_1_4.filter_of("envoy.rate_limit", {}, http=True)
    assert limit["name"] == "envoy.filters.http.ratelimit"


@pytest.mark.parametrize(
    ("listener", "inserted"),
    [
        ({"listenerType": "SIDECAR_OUTBOUND", "listenerProtocol": "HTTP"}, True),
        ({"listenerType": "SIDECAR_OUTBOUND", "listenerProtocol": "TCP"}, False),
        ({"listenerType": "SIDECAR_OUTBOUND", "address": ["0.0.0.0/0"]}, True),
        ({"listenerType": "SIDECAR_OUTBOUND", "address": ["10.0.0.0/8"]}, False),
        ({"listenerType": "GATEWAY"}, False),
        ({"listenerType": "SIDECAR_OUTBOUND", "portNumber": 81}, False),
    ],
)
def test_listeners_of_the_form_of_1_4(listener: Changes, inserted: bool) -> None:
    old = {
        "listenerMatch": listener,
        "insertPosition": {"index": "FIRST"},
        "filterType": "HTTP",
        "filterName": "lua",
        "filterConfig": LUA["typedConfig"],
    }
    found = followed(envoy_filter(filters=[old]))
    assert ("lua" in http_filters(found.listeners["0.0.0.0_80"])) is inserted
    assert bool(findings(found)) is not inserted


@pytest.mark.parametrize(
    "match",
    [
        {"context": "GATEWAY"},
        {"proxy": {"proxyVersion": r"^1\.4.*"}},
        {"proxy": {"metadata": {"CANARY": "1"}}},
    ],
)
def test_a_patch_for_other_proxies_is_told_and_costs_no_sharing(match: Changes) -> None:
    wait = patch("CLUSTER", "MERGE", {"connectTimeout": "7s"}, **match)
    plain, other = followed(), followed(envoy_filter(wait))
    assert findings(other) == {"spec.configPatches[0].match": "matches nothing of this proxy"}
    for type_url, held in plain.snapshot.resources.items():
        assert other.snapshot.resources[type_url] == held
