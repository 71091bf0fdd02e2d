"""EnvoyFilters: what of the generated resources a patch is for, and where its content goes."""

from typing import Any

import pytest
from envoy_filters import (
    HCM,
    LUA,
    MESH,
    NETWORK,
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
    config,
    endpoints,
    host,
    mesh_config,
    router,
    rows,
    service,
    sidecar,
)

from meshbus.compile.resources import ECDS


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
