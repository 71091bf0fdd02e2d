"""Virtual services: delegates, several for one host, claims, what callers are."""

from typing import Any

import pytest
from meshes import Rendered, Rows, config, endpoints, host, router, rows, service, sidecar

from meshbus.compile.engine import Engine
from meshbus.compile.offline import compile_documents
from meshbus.compile.proxy import compile_proxy
from meshbus.compile.route_match import claim_of
from meshbus.model.keys import Key
from meshbus.model.world import Put, world_of

PORT = ("http", 80, "HTTP")
MESH = rows(
    *(service(name, PORT, addresses=[f"10.96.0.{n}"]) for n, name in enumerate("abc", 1)),
    *(endpoints(name, f"10.0.0.{n}", ports={"http": 80}) for n, name in enumerate("abc", 1)),
)
GATEWAY = config(
    "Gateway",
    "edge",
    {
        "selector": {"istio": "ingressgateway"},
        "servers": [
            {"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*.example.com"]}
        ],
    },
)


def rule(to: str, *matches: dict[str, Any], **fields: Any) -> dict[str, Any]:
    out: dict[str, Any] = {"route": [{"destination": {"host": to}}], **fields}
    return {**out, "match": list(matches)} if matches else out


def routes(name: str, *rules: dict[str, Any], created: float = 0.0, **spec: Any) -> Rows:
    return config("VirtualService", name, {"http": list(rules), **spec}, created=created)


def followed(rendered: Rendered, table: str, domain: str) -> list[tuple[str, str]]:
    """(path, cluster's host) of the routes of a virtual host."""
    out = []
    for route in rendered.virtual_host(table, domain)["routes"]:
        match = route["match"]
        path = match.get("prefix") or match.get("path") or "regex"
        out.append((path, route["route"]["cluster"].split("|")[3].split(".")[0]))
    return out


def test_a_delegate_goes_on_within_the_match_of_its_root() -> None:
    mesh = rows(
        MESH,
        routes("root", {"match": [{"uri": {"prefix": "/b"}}], "delegate": {"name": "inner"}},
               rule("a"), hosts=["a"]),
        routes("inner", rule("b", {"uri": {"exact": "/b/exact"}}), rule("c")),
    )  # fmt: skip
    found = Rendered(mesh, sidecar("a"))
    assert followed(found, "80", host("a")) == [("/b/exact", "b"), ("/b", "c"), ("/", "a")]


def test_what_a_root_answers_is_answered_for_its_delegate() -> None:
    mesh = rows(
        MESH,
        routes("root", {"directResponse": {"status": 503}, "delegate": {"name": "inner"}},
               hosts=["a"]),
        routes("inner", rule("b", {"uri": {"exact": "/own"}}) | {"directResponse": {"status": 418}},
               rule("c")),
    )  # fmt: skip
    (held,) = [
        h
        for h in Rendered(mesh, sidecar("a")).routes["80"]["virtualHosts"]
        if h["name"] == host("a") + ":80"
    ]
    assert [r["directResponse"]["status"] for r in held["routes"]] == [418, 503]


def test_a_change_of_a_delegate_changes_the_routes_of_its_root() -> None:
    mesh = rows(
        MESH,
        routes("root", {"delegate": {"name": "inner"}}, hosts=["a"]),
        routes("inner", rule("b")),
    )
    world = world_of(mesh)
    engine = Engine(world)
    before = engine.get(compile_proxy, sidecar("a"))
    after = routes("inner", rule("c"))
    (key,) = after
    world, touched = world.apply([Put(key, 9, 0.0, after[key])])
    engine.update(world, touched)
    type_url = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
    held = engine.get(compile_proxy, sidecar("a")).resources[type_url]["80"]
    assert held.version != before.resources[type_url]["80"].version
    assert key in held.origins


def test_several_for_one_host_are_joined_and_the_loser_is_named() -> None:
    pair = [
        routes("old", rule("b", {"uri": {"prefix": "/one"}}), rule("a"), hosts=["a"], created=1),
        routes("new", rule("c", {"uri": {"prefix": "/one"}}),
               rule("c", {"uri": {"prefix": "/two"}}), rule("c"), hosts=["a"], created=2),
    ]  # fmt: skip
    for order in (pair, pair[::-1]):
        found = Rendered(rows(MESH, *order), sidecar("a"))
        assert followed(found, "80", host("a")) == [("/one", "b"), ("/two", "c"), ("/", "a")]
        losses = [(f.object.name, f.path, f.message) for f in found.snapshot.findings]
        message = "VirtualService default/old of the same host is for these requests"
        assert losses == [
            ("new", "spec.http[0].match[0]", message),
            ("new", "spec.http[2]", message),
        ]


def test_gateways_join_by_the_same_rule() -> None:
    bound = {"hosts": ["w.example.com"], "gateways": ["edge"]}
    mesh = rows(
        MESH,
        GATEWAY,
        routes("old", rule("a"), created=1, **bound),
        routes("new", rule("c", {"uri": {"prefix": "/two"}}), rule("c"), created=2, **bound),
    )
    found = Rendered(mesh, router(namespace="default"))
    assert followed(found, "http.80", "w.example.com") == [("/two", "c"), ("/", "a")]
    assert [f.object.name for f in found.snapshot.findings] == ["new"]


def test_claims_are_matched_where_the_token_filter_leaves_them() -> None:
    assert claim_of("@request.auth.claims.a.b") == ["a", "b"]
    assert claim_of("@request.auth.claims[a.b][c]") == ["a.b", "c"]
    assert claim_of("x-a") == []
    match = {
        "headers": {"@request.auth.claims.group": {"exact": "dev"}},
        "withoutHeaders": {"@request.auth.claims.sub": {"prefix": "bot"}},
    }
    mesh = rows(
        MESH, GATEWAY, routes("v", rule("a", match), hosts=["w.example.com"], gateways=["edge"])
    )
    found = Rendered(mesh, router(namespace="default"))
    (route,) = found.virtual_host("http.80", "w.example.com")["routes"]
    group, sub = route["match"]["dynamicMetadata"]
    assert group["filter"] == "envoy.filters.http.jwt_authn"
    assert [p["key"] for p in group["path"]] == ["payload", "group"]
    assert "headers" not in route["match"]
    assert sub["invert"] is True


def test_tcp_is_told_apart_by_the_subnet_of_callers() -> None:
    tcp = [
        {"match": [{"sourceSubnet": "10.1.0.0/16"}], "route": [{"destination": {"host": "b"}}]},
        {"route": [{"destination": {"host": "db"}}]},
    ]
    mesh = rows(
        MESH,
        service("db", ("tcp", 5432, "TCP"), addresses=["10.96.1.1"]),
        config("VirtualService", "db", {"hosts": ["db"], "tcp": tcp}),
    )
    listener = Rendered(mesh, sidecar("a")).listeners["10.96.1.1_5432"]
    (chain,) = listener["filterChains"]
    assert chain["filterChainMatch"]["sourcePrefixRanges"][0]["addressPrefix"] == "10.1.0.0"
    assert "outbound|80||b." in chain["filters"][0]["typedConfig"]["cluster"]
    rest = listener["defaultFilterChain"]["filters"][0]["typedConfig"]["cluster"]
    assert rest == f"outbound|5432||{host('db')}"


@pytest.mark.parametrize("of_the_entry", [False, True])
def test_more_names_with_networks_than_an_envoy_can_keep_are_left_out(of_the_entry: bool) -> None:
    """Those of one match alone; what has many of one kind goes on."""

    def names(count: int) -> list[str]:
        return [f"{number}.far.example" for number in range(count)]

    networks = [f"10.{number}.0.0/16" for number in range(101)]
    tls = [
        {"match": [match], "route": [{"destination": {"host": "far.example"}}]}
        for match in (
            {"sniHosts": names(100)} | ({} if of_the_entry else {"destinationSubnets": networks}),
            {"sniHosts": ["one.far.example"]},
            {"sniHosts": names(3000), "destinationSubnets": ["172.16.0.0/12"]},
        )
    ]
    entry = {
        "hosts": ["*.far.example"],
        "addresses": networks if of_the_entry else ["10.0.0.0/8", "172.16.0.0/12"],
        "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}],
    }
    documents = [
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": kind,
            "metadata": {"name": "far", "namespace": "default"},
            "spec": spec,
        }
        for kind, spec in (
            ("ServiceEntry", entry),
            ("VirtualService", {"hosts": ["*.far.example"], "tls": tls}),
        )
    ]
    proxy = {"type": "sidecar", "name": "a", "namespace": "default", "ips": ["10.9.9.9"]}
    made = compile_documents(documents, proxy=proxy)
    assert [(f["path"], "10000" in f["message"]) for f in made.findings] == [
        ("spec.tls[0].match", True)
    ]
    (listener,) = [one for one in made.document["listeners"] if one["name"] == "0.0.0.0_443"]
    matched = [
        len(chain["filterChainMatch"]["serverNames"])
        for chain in listener["filterChains"]
        if "serverNames" in chain.get("filterChainMatch", {})
    ]
    assert sorted(matched) == [1, 3000]


def test_a_missing_delegate_leaves_the_other_rules_alone() -> None:
    mesh = rows(MESH, routes("root", {"delegate": {"name": "lost"}}, rule("b"), hosts=["a"]))
    found = Rendered(mesh, sidecar("a"))
    assert followed(found, "80", host("a")) == [("/", "b")]
    (finding,) = found.snapshot.findings
    assert finding.object == Key("c", "cfg", "virtualservices", "default", "root")
    assert finding.message == "VirtualService default/lost does not exist"


def test_a_full_name_may_end_with_a_dot() -> None:
    mesh = rows(
        MESH,
        routes("out", rule("b"), hosts=["shop.example.com", "*.wild.example"]),
        routes("dotted", rule("c"), hosts=["shop.example.com."]),
    )
    found = Rendered(mesh, sidecar("a"))
    assert found.virtual_host("80", f"{host('a')}.") == found.virtual_host("80", "a")
    assert followed(found, "80", "*.wild.example.") == [("/", "b")]
    taken = [d for v in found.routes["80"]["virtualHosts"] for d in v["domains"]]
    assert len(taken) == len(set(taken))
    assert "*." not in taken
