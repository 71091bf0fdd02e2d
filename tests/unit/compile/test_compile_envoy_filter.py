"""EnvoyFilters: which proxies follow them, what each operation does, and that faults stay alone."""

import json
from typing import Any

import pytest
from meshes import (
    Rendered,
    Rows,
    compiled,
    config,
    endpoints,
    host,
    mesh_config,
    router,
    rows,
    service,
    sidecar,
)

from meshbus.api.envoy_types import type_of_url
from meshbus.compile import envoy_filter_1_4
from meshbus.compile.resources import CDS, ECDS, EDS

MESH = rows(
    service("a", ("http", 80, "HTTP"), ("tcp", 5432, "TCP"), addresses=["10.96.0.1"]),
    endpoints("a", "10.0.0.1", ports={"http": 80, "tcp": 5432}),
    service("b", ("http", 80, "HTTP"), addresses=["10.96.0.2"]),
    mesh_config(),
)
LUA = {
    "name": "lua",
    "typedConfig": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua",
        "defaultSourceCode": {"inlineString": "function envoy_on_request(handle) end"},
    },
}
HCM = "envoy.filters.network.http_connection_manager"
Changes = dict[str, Any]


def patch(
    apply_to: str, operation: str, value: Changes | None = None, **match: Any
) -> dict[str, Any]:
    out: dict[str, Any] = {"applyTo": apply_to, "patch": {"operation": operation}, "match": match}
    if value is not None:
        out["patch"]["value"] = value
    return out


def envoy_filter(
    *patches: Changes, name: str = "f", namespace: str = "default", **spec: Any
) -> Rows:
    return config("EnvoyFilter", name, {"configPatches": list(patches), **spec}, namespace)


def followed(*filters: Rows, **proxy: Any) -> Rendered:
    return Rendered(rows(MESH, *filters), sidecar("a", **proxy))


def http_filters(listener: Changes) -> list[str]:
    for chain in listener["filterChains"]:
        for item in chain["filters"]:
            if item["name"] == HCM:
                return [f["name"] for f in item["typedConfig"]["httpFilters"]]
    raise AssertionError("no connection manager")


def at(name: str, **inner: Any) -> Changes:
    chain = {"filter": {"name": HCM, "subFilter": {"name": name}}}
    return {"filterChain": chain, **inner}


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


# --------------------------------------------------------------------------- matches


def findings(found: Rendered) -> dict[str, str]:
    return {f.path: f.message for f in found.snapshot.findings}


def chain_names(listener: Changes, filter_name: str) -> list[str]:
    return [
        chain.get("name", "")
        for chain in listener["filterChains"]
        if any(item["name"] == filter_name for item in chain["filters"])
    ]


NETWORK = {
    "name": "mine",
    "typedConfig": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.connection_limit.v3."
        "ConnectionLimit",
        "statPrefix": "mine",
        "maxConnections": "9",
    },
}


@pytest.mark.parametrize(
    ("match", "ports"),
    [
        ({"portNumber": 8080}, {8080}),
        ({"filterChain": {"destinationPort": 8081}}, {8081}),
        ({"portNumber": 8080, "filterChain": {"destinationPort": 8081}}, set()),
        ({"portNumber": 15006}, {15006}),
        ({"portNumber": 8080, "filterChain": {"transportProtocol": "tls"}}, {8080}),
        ({"portNumber": 8080, "filterChain": {"transportProtocol": "raw_buffer"}}, {8080}),
        ({"portNumber": 8080, "filterChain": {"transportProtocol": "quic"}}, set()),
        ({"portNumber": 8080, "filterChain": {"applicationProtocols": "istio,istio-h2"}}, {8080}),
        ({"portNumber": 8080, "filterChain": {"applicationProtocols": "istio,no"}}, set()),
        ({"portNumber": 8080, "filterChain": {"sni": "no.such"}}, set()),
        ({"portNumber": 8080, "filterChain": {"name": "no-such"}}, set()),
    ],
)
def test_chains_of_captured_traffic_are_matched_one_by_one(match: Changes, ports: set[int]) -> None:
    world = rows(
        MESH,
        service("a", ("http", 80, "HTTP"), ("tcp", 5432, ""), addresses=["10.96.0.1"]),
        endpoints("a", "10.0.0.1", ports={"http": 8080, "tcp": 8081}),
    )
    change = patch(
        "NETWORK_FILTER", "INSERT_FIRST", NETWORK, context="SIDECAR_INBOUND", listener=match
    )
    found = Rendered(rows(world, envoy_filter(change)), sidecar("a"))
    hit = [
        chain
        for chain in found.listeners["virtualInbound"]["filterChains"]
        if chain["filters"][0]["name"] == "mine"
    ]
    assert {c["filterChainMatch"].get("destinationPort", 0) for c in hit} == ports
    assert bool(findings(found)) is not bool(ports)


def test_a_port_of_captured_traffic_is_no_listener() -> None:
    value = {"perConnectionBufferLimitBytes": 99}
    of_port = patch(
        "LISTENER", "MERGE", value, context="SIDECAR_INBOUND", listener={"portNumber": 8080}
    )
    found = followed(envoy_filter(of_port))
    assert found.listeners["virtualInbound"].get("perConnectionBufferLimitBytes") != 99
    own = patch(
        "LISTENER", "MERGE", value, context="SIDECAR_INBOUND", listener={"portNumber": 15006}
    )
    found = followed(envoy_filter(own))
    assert found.listeners["virtualInbound"]["perConnectionBufferLimitBytes"] == 99


@pytest.mark.parametrize("operation", ["REMOVE", "REPLACE"])
@pytest.mark.parametrize(("apply_to", "value"), [("HTTP_FILTER", LUA), ("NETWORK_FILTER", NETWORK)])
def test_filters_are_removed_by_name_alone(operation: str, apply_to: str, value: Changes) -> None:
    plain = followed()
    change = patch(apply_to, operation, value if operation == "REPLACE" else None)
    found = followed(envoy_filter(change))
    assert found.listeners == plain.listeners
    assert "needs the name" in findings(found)["spec.configPatches[0].match"]


@pytest.mark.parametrize(
    ("operation", "sub_filter", "names"),
    [
        ("INSERT_AFTER", None, ["lua", "envoy.filters.http.router"]),
        ("INSERT_BEFORE", None, ["lua", "envoy.filters.http.fault"]),
        ("INSERT_BEFORE", "no.such", None),
        ("INSERT_AFTER", "no.such", None),
        ("INSERT_AFTER", "envoy.filters.http.cors", ["envoy.filters.http.cors", "lua"]),
    ],
)
def test_an_insertion_needs_its_neighbour(
    operation: str, sub_filter: str | None, names: list[str] | None
) -> None:
    of: Changes = {"filterChain": {"filter": {"name": HCM}}}
    if sub_filter:
        of["filterChain"]["filter"]["subFilter"] = {"name": sub_filter}
    change = patch("HTTP_FILTER", operation, LUA, context="SIDECAR_OUTBOUND", listener=of)
    found = followed(envoy_filter(change))
    held = http_filters(found.listeners["0.0.0.0_80"])
    if names is None:
        assert "lua" not in held
        assert findings(found) == {"spec.configPatches[0].match": "matches nothing of this proxy"}
    else:
        assert " ".join(names) in " ".join(held)


@pytest.mark.parametrize(
    ("filter_class", "after", "before"),
    [
        ("AUTHN", "envoy.filters.http.jwt_authn", "envoy.filters.http.rbac.audit"),
        ("AUTHZ", "envoy.filters.http.rbac.allow", "envoy.filters.http.router"),
        ("STATS", "envoy.filters.http.rbac.allow", "envoy.filters.http.router"),
    ],
)
def test_an_added_filter_stands_with_its_class(filter_class: str, after: str, before: str) -> None:
    tokens = config(
        "RequestAuthentication",
        "jwt",
        {"jwtRules": [{"issuer": "me", "jwks": '{"keys": []}'}]},
    )
    change = patch("HTTP_FILTER", "ADD", LUA, context="SIDECAR_INBOUND")
    change["patch"]["filterClass"] = filter_class
    held = http_filters(followed(tokens, envoy_filter(change)).listeners["virtualInbound"])
    assert held.index(after) < held.index("lua") < held.index(before)


def test_a_merge_meets_what_later_patches_insert() -> None:
    value = {
        "typedConfig": {
            "@type": LUA["typedConfig"]["@type"],
            "sourceCodes": {"b": {"inlineString": "--"}},
        }
    }
    merge = patch("HTTP_FILTER", "MERGE", value, context="SIDECAR_OUTBOUND", listener=at("lua"))
    insert = patch("HTTP_FILTER", "INSERT_FIRST", LUA, context="SIDECAR_OUTBOUND")
    found = followed(envoy_filter(merge, insert))
    manager = found.listeners["0.0.0.0_80"]["filterChains"][0]["filters"][-1]["typedConfig"]
    assert manager["httpFilters"][0]["typedConfig"]["sourceCodes"] == {"b": {"inlineString": "--"}}
    assert findings(found) == {}


UDPA = "type.googleapis.com/udpa.type.v1.TypedStruct"
XDS = "type.googleapis.com/xds.type.v3.TypedStruct"


@pytest.mark.parametrize("wrapped", [UDPA, XDS])
def test_a_merge_reads_a_typed_struct_as_what_it_holds(wrapped: str) -> None:
    kind = LUA["typedConfig"]["@type"]
    inside = {"source_codes": {"b": {"inline_string": "--"}}}
    value = {"typed_config": {"@type": wrapped, "type_url": kind, "value": inside}}
    merge = patch("HTTP_FILTER", "MERGE", value, context="SIDECAR_OUTBOUND", listener=at("lua"))
    insert = patch("HTTP_FILTER", "INSERT_FIRST", LUA, context="SIDECAR_OUTBOUND")
    found = followed(envoy_filter(insert, merge))
    manager = found.listeners["0.0.0.0_80"]["filterChains"][0]["filters"][-1]["typedConfig"]
    held = manager["httpFilters"][0]["typedConfig"]
    assert held["@type"] == kind
    assert held["sourceCodes"] == {"b": {"inlineString": "--"}}
    assert "defaultSourceCode" in held, "it was there before"


def test_a_typed_struct_is_added_as_it_is() -> None:
    value = {
        "name": "mine",
        "typed_config": {"@type": UDPA, "type_url": "a/b.C", "value": {"x": 1}},
    }
    found = followed(
        envoy_filter(patch("HTTP_FILTER", "INSERT_FIRST", value, context="SIDECAR_OUTBOUND"))
    )
    manager = found.listeners["0.0.0.0_80"]["filterChains"][0]["filters"][-1]["typedConfig"]
    assert manager["httpFilters"][0]["typedConfig"]["typeUrl"] == "a/b.C"


@pytest.mark.parametrize(
    ("apply_to", "side", "match", "message"),
    [
        (
            "HTTP_FILTER",
            "SIDECAR_OUTBOUND",
            at("envoy.filters.http.router"),
            ".router.v3.Router, not by envoy.extensions.filters.http.lua.v3.Lua: REPLACE it",
        ),
        (
            "NETWORK_FILTER",
            "SIDECAR_OUTBOUND",
            {"filterChain": {"filter": {"name": HCM}}},
            "REPLACE it",
        ),
        (
            "LISTENER_FILTER",
            "SIDECAR_INBOUND",
            {"listenerFilter": "envoy.filters.listener.tls_inspector"},
            "REPLACE it",
        ),
        (
            "HTTP_FILTER",
            "SIDECAR_INBOUND",
            at("envoy.filters.http.jwt_authn"),
            "what configures envoy.filters.http.jwt_authn comes by ECDS: nothing merges into it",
        ),
    ],
)
def test_a_filter_stays_of_its_type(apply_to: str, side: str, match: Changes, message: str) -> None:
    """Merged into another type, Envoy would take it for what it is not."""
    plain = followed()
    value = {"typedConfig": LUA["typedConfig"]}
    change = patch(apply_to, "MERGE", value, context=side, listener=match)
    found = followed(envoy_filter(change))
    assert found.listeners == plain.listeners
    told = findings(found)["spec.configPatches[0].patch.value.typedConfig"]
    assert told.endswith(message)


def test_a_filter_that_is_merged_may_get_another_name() -> None:
    """So that something else may stand where it was found."""
    of = at("envoy.filters.http.cors")
    change = patch(
        "HTTP_FILTER", "MERGE", {"name": "mine"}, context="SIDECAR_OUTBOUND", listener=of
    )
    held = http_filters(followed(envoy_filter(change)).listeners["0.0.0.0_80"])
    assert "mine" in held
    assert "envoy.filters.http.cors" not in held


def test_removed_and_added_again_a_filter_is_there_once() -> None:
    """Of two patches with the same match the priority says which comes first."""
    of = at("envoy.filters.http.cors")
    gone = patch("HTTP_FILTER", "REMOVE", context="SIDECAR_OUTBOUND", listener=of)
    again = {**LUA, "name": "envoy.filters.http.cors"}
    first = patch("HTTP_FILTER", "INSERT_FIRST", again, context="SIDECAR_OUTBOUND", listener=of)
    found = followed(
        envoy_filter(first, name="adds", priority=2), envoy_filter(gone, name="removes", priority=1)
    )
    assert http_filters(found.listeners["0.0.0.0_80"]).count("envoy.filters.http.cors") == 1
    found = followed(
        envoy_filter(first, name="adds", priority=1), envoy_filter(gone, name="removes", priority=2)
    )
    assert "envoy.filters.http.cors" not in http_filters(found.listeners["0.0.0.0_80"])


def test_a_merge_adds_to_lists_and_a_replacing_one_takes_their_place() -> None:
    value = {"listenerFilters": [{"name": "mine"}]}
    of = {"portNumber": 15006}

    def names(operation: str) -> list[str]:
        change = patch("LISTENER", operation, value, context="SIDECAR_INBOUND", listener=of)
        listener = followed(envoy_filter(change)).listeners["virtualInbound"]
        return [item["name"] for item in listener["listenerFilters"]]

    plain = [i["name"] for i in followed().listeners["virtualInbound"]["listenerFilters"]]
    assert names("MERGE") == [*plain, "mine"]
    assert names("MERGE_AND_REPLACE_LIST") == ["mine"]


def test_chains_are_removed_by_what_they_match() -> None:
    """Also the one that takes all that no other does."""
    of = {"portNumber": 8080, "filterChain": {"transportProtocol": "tls"}}
    world = rows(
        service("a", ("http", 80, "HTTP"), addresses=["10.96.0.1"]),
        endpoints("a", "10.0.0.1", ports={"http": 8080}),
        mesh_config(),
    )

    def chains(*changes: Changes) -> list[tuple[int, str]]:
        found = Rendered(rows(world, envoy_filter(*changes)), sidecar("a"))
        matches = [c["filterChainMatch"] for c in found.listeners["virtualInbound"]["filterChains"]]
        return [(m.get("destinationPort", 0), m.get("transportProtocol", "")) for m in matches]

    assert (8080, "tls") in chains()
    gone = patch("FILTER_CHAIN", "REMOVE", context="SIDECAR_INBOUND", listener=of)
    assert (8080, "tls") not in chains(gone)
    assert (8080, "raw_buffer") in chains(gone)
    rest = patch(
        "FILTER_CHAIN",
        "REMOVE",
        context="SIDECAR_OUTBOUND",
        listener={
            "name": "virtualOutbound",
            "filterChain": {"name": "virtualOutbound-catchall-tcp"},
        },
    )
    found = followed(envoy_filter(rest))
    assert "defaultFilterChain" in followed().listeners["virtualOutbound"]
    assert "defaultFilterChain" not in found.listeners["virtualOutbound"]


def test_what_is_added_whole_is_left_as_it_is_written() -> None:
    extra = {"name": "extra", "domains": ["extra.example"], "routes": [{"name": "r", "match": {"prefix": "/"}, "directResponse": {"status": 200}}]}  # fmt: skip  # noqa: E501
    tag = {"responseHeadersToAdd": [{"header": {"key": "x-patched", "value": "1"}}]}
    table = {"name": "80"}
    found = followed(
        envoy_filter(
            patch("VIRTUAL_HOST", "ADD", extra, routeConfiguration=table),
            patch("VIRTUAL_HOST", "MERGE", tag, routeConfiguration=table),
            patch("HTTP_ROUTE", "MERGE", tag, routeConfiguration=table),
        )
    )
    hosts = {h["name"]: h for h in found.routes["80"]["virtualHosts"]}
    assert "responseHeadersToAdd" in hosts[f"{host('a')}:80"]
    assert "responseHeadersToAdd" in hosts[f"{host('a')}:80"]["routes"][0]
    assert "responseHeadersToAdd" not in hosts["extra"]
    assert "responseHeadersToAdd" not in hosts["extra"]["routes"][0]


def test_chains_and_hosts_have_no_neighbours() -> None:
    extra = {"name": "extra", "domains": ["extra.example"]}
    of = {"name": "80", "vhost": {"name": "no.such"}}
    found = followed(
        envoy_filter(patch("VIRTUAL_HOST", "INSERT_BEFORE", extra, routeConfiguration=of))
    )
    assert "extra" in {h["name"] for h in found.routes["80"]["virtualHosts"]}


@pytest.mark.parametrize(
    ("operation", "route", "place"),
    [
        ("ADD", None, -1),
        ("INSERT_FIRST", None, 0),
        ("INSERT_BEFORE", None, 0),
        ("INSERT_AFTER", None, -1),
        ("INSERT_FIRST", {"name": "second"}, 0),
        ("INSERT_BEFORE", {"name": "second"}, 1),
        ("INSERT_AFTER", {"name": "first"}, 1),
        ("INSERT_AFTER", {"action": "REDIRECT"}, 2),
        ("INSERT_FIRST", {"name": "no.such"}, None),
        ("INSERT_BEFORE", {"name": "no.such"}, None),
        ("INSERT_AFTER", {"action": "DIRECT_RESPONSE"}, None),
    ],
)
def test_routes_are_inserted_where_the_patch_says(
    operation: str, route: Changes | None, place: int | None
) -> None:
    virtual_service = config(
        "VirtualService",
        "vs",
        {
            "hosts": [host("a")],
            "http": [
                {
                    "name": "first",
                    "match": [{"uri": {"prefix": "/1"}}],
                    "route": [{"destination": {"host": host("a")}}],
                },
                {
                    "name": "second",
                    "match": [{"uri": {"prefix": "/2"}}],
                    "redirect": {"uri": "/3"},
                },
                {"name": "third", "route": [{"destination": {"host": host("a")}}]},
            ],
        },
    )
    value = {"name": "mine", "match": {"prefix": "/mine"}, "directResponse": {"status": 204}}
    vhost: Changes = {"name": f"{host('a')}:80"}
    if route is not None:
        vhost["route"] = route
    change = patch("HTTP_ROUTE", operation, value, routeConfiguration={"vhost": vhost})
    found = followed(virtual_service, envoy_filter(change))
    names = [r.get("name") for r in found.virtual_host("80", host("a"))["routes"]]
    if place is None:
        assert "mine" not in names
        assert findings(found) == {"spec.configPatches[0].match": "matches nothing of this proxy"}
    else:
        assert names[place] == "mine"


def test_tables_of_sidecars_have_no_gateway_and_no_port_name() -> None:
    of = {"portNumber": 80, "portName": "http", "gateway": "default/edge"}
    value = {"mostSpecificHeaderMutationsWins": True}
    found = followed(
        envoy_filter(patch("ROUTE_CONFIGURATION", "MERGE", value, routeConfiguration=of))
    )
    assert found.routes["80"]["mostSpecificHeaderMutationsWins"] is True


@pytest.mark.parametrize(
    ("match", "tables"),
    [
        ({"portNumber": 80}, {"http.8080"}),
        ({"portNumber": 8080}, set()),
        ({"portNumber": 443}, {"https.443.web.edge.default"}),
        ({"portNumber": 443, "portName": "web"}, {"https.443.web.edge.default"}),
        ({"portNumber": 443, "portName": "http"}, set()),
        ({"gateway": "default/edge"}, {"https.443.web.edge.default"}),
        ({"gateway": "default/other"}, set()),
        ({"portNumber": 80, "gateway": "default/edge"}, set()),
        ({"name": "http.8080"}, {"http.8080"}),
    ],
)
def test_tables_of_gateways_are_matched_by_port_name_and_gateway(
    match: Changes, tables: set[str]
) -> None:
    tls = {"mode": "SIMPLE", "serverCertificate": "/c", "privateKey": "/k"}
    gateway = config(
        "Gateway",
        "edge",
        {
            "selector": {"istio": "ingressgateway"},
            "servers": [
                {"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]},
                {
                    "port": {"number": 443, "name": "web", "protocol": "HTTPS"},
                    "hosts": ["*"],
                    "tls": tls,
                },
            ],
        },
    )
    bound = config(
        "VirtualService",
        "vs",
        {
            "hosts": ["a.example"],
            "gateways": ["edge"],
            "http": [{"route": [{"destination": {"host": host("a")}}]}],
        },
    )
    front = service(
        "front", ("http", 80, "HTTP"), ("web", 443, "HTTPS"), namespace="default",
        selector={"istio": "ingressgateway"},
    )  # fmt: skip
    behind = endpoints(
        "front", "10.0.9.1", ports={"http": 8080, "web": 8443}, labels={"istio": "ingressgateway"}
    )
    value = {"mostSpecificHeaderMutationsWins": True}
    change = patch(
        "ROUTE_CONFIGURATION", "MERGE", value, context="GATEWAY", routeConfiguration=match
    )
    proxy = router(namespace="default")
    found = Rendered(rows(MESH, front, behind, gateway, bound, envoy_filter(change)), proxy)
    assert set(found.routes) == {"http.8080", "https.443.web.edge.default"}
    hit = {n for n, t in found.routes.items() if t.get("mostSpecificHeaderMutationsWins")}
    assert hit == tables
    assert bool(findings(found)) is not bool(tables)


@pytest.mark.parametrize(
    ("match", "names"),
    [
        ({"service": host("a")}, {"outbound|80||A", "outbound|5432||A", "outbound|80|v1|A", "outbound|5432|v1|A", "inbound|80||", "inbound|5432||"}),  # noqa: E501
        ({"service": host("a"), "portNumber": 80}, {"outbound|80||A", "outbound|80|v1|A", "inbound|80||"}),  # noqa: E501
        ({"service": host("a"), "subset": "v1", "portNumber": 80}, {"outbound|80|v1|A"}),
        ({"subset": "v1"}, {"outbound|80|v1|A", "outbound|5432|v1|A"}),
        ({"name": "outbound|80||A", "portNumber": 1, "service": "other"}, {"outbound|80||A"}),
        ({"service": "other"}, set()),
        ({"name": "outbound|1||A"}, set()),
    ],
)  # fmt: skip
def test_clusters_are_matched_by_service_subset_port_or_name(
    match: Changes, names: set[str]
) -> None:
    subsets = config(
        "DestinationRule",
        "dr",
        {"host": host("a"), "subsets": [{"name": "v1", "labels": {"version": "v1"}}]},
    )
    held = dict(match)
    if "name" in held:
        held["name"] = held["name"].replace("A", host("a"))
    change = patch("CLUSTER", "MERGE", {"connectTimeout": "7s"}, cluster=held)
    found = followed(subsets, envoy_filter(change))
    hit = {n for n, c in found.clusters.items() if c.get("connectTimeout") == "7s"}
    assert hit == {name.replace("A", host("a")) for name in names}


def test_tls_of_a_patch_goes_into_the_tls_that_is_there() -> None:
    context = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
    value = {
        "connectTimeout": "7s",
        "transportSocket": {
            "name": "envoy.transport_sockets.tls",
            "typedConfig": {
                "@type": context,
                "commonTlsContext": {"tlsParams": {"tlsMinimumProtocolVersion": "TLSv1_3"}},
            },
        },
    }
    of = {"service": host("b")}
    held = followed(envoy_filter(patch("CLUSTER", "MERGE", value, cluster=of))).clusters
    cluster = held[f"outbound|80||{host('b')}"]
    assert "transportSocket" not in cluster
    mutual = cluster["transportSocketMatches"][0]["transportSocket"]["typedConfig"]
    assert mutual["commonTlsContext"]["tlsParams"]["tlsMinimumProtocolVersion"] == "TLSv1_3"
    assert mutual["sni"].startswith("outbound_")
    assert cluster["connectTimeout"] == "7s"
    raw = {"transportSocket": {"name": "envoy.transport_sockets.starttls"}}
    found = followed(envoy_filter(patch("CLUSTER", "MERGE", raw, cluster=of)))
    assert (
        "none of the transport sockets"
        in findings(found)["spec.configPatches[0].patch.value.transportSocket"]
    )


def test_listener_filters_are_matched_by_name() -> None:
    inspector = "envoy.filters.listener.tls_inspector"

    def names(operation: str, value: Changes | None, **match: Any) -> list[str]:
        change = patch(
            "LISTENER_FILTER", operation, value, context="SIDECAR_INBOUND",
            listener={"portNumber": 8080, **match},
        )  # fmt: skip
        found = followed(envoy_filter(change)).listeners["virtualInbound"]
        return [f["name"] for f in found["listenerFilters"]]

    mine = {"name": "mine"}
    plain = names("REMOVE", None)
    assert inspector in plain
    assert names("INSERT_FIRST", mine) == ["mine", *plain]
    assert names("ADD", mine) == [*plain, "mine"]
    place = plain.index(inspector)
    before = names("INSERT_BEFORE", mine, listenerFilter=inspector)
    assert before == [*plain[:place], "mine", *plain[place:]]
    after = names("INSERT_AFTER", mine, listenerFilter=inspector)
    assert after == [*plain[: place + 1], "mine", *plain[place + 1 :]]
    assert inspector not in names("REMOVE", None, listenerFilter=inspector)
    assert "mine" in names("REPLACE", mine, listenerFilter=inspector)


def test_extensions_are_added_and_nothing_else() -> None:
    value = {"name": "mine", "typedConfig": LUA["typedConfig"]}
    found = followed(envoy_filter(patch("EXTENSION_CONFIG", "ADD", value)))
    assert "mine" in found.snapshot.resources[ECDS]
    found = followed(envoy_filter(patch("EXTENSION_CONFIG", "MERGE", value)))
    assert findings(found) == {
        "spec.configPatches[0].patch.operation": "MERGE is not for an EXTENSION_CONFIG"
    }


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
