"""Headers that proxies write: of the mesh, and of one proxy's annotation."""

from typing import Any

import pytest
import yaml
from meshes import Rendered, Rows, bookinfo, config, mesh_config, router, rows, sidecar

from meshbus.compile.proxy import ProxyKeys
from meshbus.compile.proxy_headers import headers_of

TABLE = "9080"
HCM = "envoy.filters.network.http_connection_manager"
OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
UPSTREAM = "outbound|9080||ratings.default.svc.cluster.local"


def managers(found: Rendered, listener: str) -> list[dict[str, Any]]:
    chains = found.listeners[listener]["filterChains"]
    configs = [f["typedConfig"] for c in chains for f in c["filters"] if f["name"] == HCM]
    assert configs, listener
    return configs


def gateway() -> Rows:
    return rows(
        bookinfo(),
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
                        "rewrite": {"authority": "other"},
                        "route": [{"destination": {"host": "ratings"}}],
                    }
                ],
            },
        ),
    )


@pytest.mark.parametrize(
    ("mesh", "own", "counted"),
    [
        ("", "", True),
        ("{attemptCount: {disabled: true}}", "", False),
        ("", "{proxyHeaders: {attemptCount: {disabled: true}}}", False),
        (
            "{attemptCount: {disabled: true}}",
            "{proxyHeaders: {attemptCount: {disabled: false}}}",
            True,
        ),
        ("{attemptCount: {disabled: true}}", "{proxyHeaders: {server: {value: me}}}", False),
    ],
)
def test_requests_are_counted_unless_it_is_disabled(mesh: str, own: str, counted: bool) -> None:
    settings = {"proxyHeaders": yaml.safe_load(mesh or "{}")}
    mesh_rows = rows(gateway(), mesh_config(defaultConfig=settings))
    for proxy, table in ((sidecar(proxy_config=own), TABLE), (router(proxy_config=own), "http.80")):
        hosts = Rendered(mesh_rows, proxy).routes[table]["virtualHosts"]
        assert {h.get("includeRequestAttemptCount", False) for h in hosts} == {counted}


def test_each_side_of_a_sidecar_follows_its_own_annotation() -> None:
    own = """
proxyHeaders:
  server: {value: mine}
  requestId: {disabled: true}
  envoyDebugHeaders: {disabled: true}
  forwardedClientCert: FORWARD_ONLY
  xForwardedPort: {enabled: true}
"""
    found = Rendered(bookinfo(), sidecar(proxy_config=own))
    outside = managers(found, "0.0.0.0_9080")
    inside = managers(found, "virtualInbound")
    for manager in (*outside, *inside):
        assert manager["serverName"] == "mine"
        assert manager["generateRequestId"] is False
        assert manager["appendXForwardedPort"] is True
        assert manager["httpFilters"][-1]["typedConfig"]["suppressEnvoyHeaders"] is True
    assert {m["forwardClientCertDetails"] for m in inside} == {"FORWARD_ONLY"}
    other = Rendered(bookinfo(), sidecar("details", ips=("10.0.0.2",)))
    assert {m["serverName"] for m in managers(other, "virtualInbound")} == {"istio-envoy"}


def test_fields_of_an_annotation_go_over_those_of_the_mesh_one_by_one() -> None:
    found = headers_of(
        {"proxyHeaders": {"server": {"value": "mesh"}, "requestId": {"disabled": True}}},
        "proxyHeaders: {server: {value: own}}",
    )
    assert (found.server, found.request_id) == ("own", False)


def test_a_gateway_says_what_a_rewrite_changed_where_it_is_wished() -> None:
    own = "proxyHeaders: {xForwardedHost: {enabled: true}}"
    for proxy, appended in ((router(proxy_config=own), True), (router(), False)):
        (route,) = Rendered(gateway(), proxy).virtual_host("http.80", "*")["routes"]
        assert route["route"].get("appendXForwardedHost", False) is appended


@pytest.mark.parametrize("make", [sidecar, router])
def test_the_case_of_names_is_kept_on_both_sides(make: Any) -> None:
    proxy: ProxyKeys = make(proxy_config="proxyHeaders: {preserveHttp1HeaderCase: true}")
    found = Rendered(gateway(), proxy)
    listeners = ["0.0.0.0_80"] if proxy.type == "router" else ["0.0.0.0_9080", "virtualInbound"]
    for name in listeners:
        for manager in managers(found, name):
            key = manager["httpProtocolOptions"]["headerKeyFormat"]["statefulFormatter"]
            assert key["name"] == "preserve_case"
    clusters = [UPSTREAM] if proxy.type == "router" else [UPSTREAM, "inbound|9080||"]
    for name in clusters:
        options = found.clusters[name]["typedExtensionProtocolOptions"][OPTIONS]
        http = options["explicitHttpConfig"]["httpProtocolOptions"]
        assert http["headerKeyFormat"]["statefulFormatter"]["name"] == "preserve_case"
    plain = Rendered(gateway(), make())
    assert "headerKeyFormat" not in str(plain.clusters[UPSTREAM])
