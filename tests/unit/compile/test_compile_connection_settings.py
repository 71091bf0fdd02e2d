"""`connectionSettings`: what listeners, connection managers and clusters of a proxy get of it."""

from typing import Any

import pytest
from meshes import Rendered, Rows, bookinfo, config, mesh_config, router, rows, sidecar

from meshbus.compile.connection_settings import (
    EDGE,
    NOTHING_SAID,
    ConnectionSettings,
    connection_settings_of,
)
from meshbus.compile.names import LISTENER_LIMITS
from meshbus.compile.request_paths import normalized

HCM = "envoy.filters.network.http_connection_manager"
UPSTREAM = "outbound|9080||ratings.default.svc.cluster.local"
WRITTEN = {
    "listenerPerConnectionBufferLimitBytes": 1000,
    "clusterPerConnectionBufferLimitBytes": 2000,
    "httpIdleTimeout": "1s",
    "httpMaxConnectionDuration": "2s",
    "httpDrainTimeout": "3s",
    "httpRequestTimeout": "4s",
    "httpRequestHeadersTimeout": "5s",
    "httpStreamIdleTimeout": "6s",
    "httpMaxStreamDuration": "7s",
    "httpMaxConcurrentStreams": 8,
    "http2InitialStreamWindowSize": 70000,
    "http2InitialConnectionWindowSize": 80000,
    "httpHeadersWithUnderscoresAction": "HEADERS_WITH_UNDERSCORES_DROP_HEADER",
    "httpMergeSlashes": True,
    "httpPathWithEscapedSlashesAction": "REJECT_REQUEST",
    "listenerConnectionLimit": 9,
}
MANAGER = {
    "commonHttpProtocolOptions": {
        "idleTimeout": "1s",
        "maxConnectionDuration": "2s",
        "maxStreamDuration": "7s",
        "headersWithUnderscoresAction": "DROP_HEADER",
    },
    "drainTimeout": "3s",
    "requestTimeout": "4s",
    "requestHeadersTimeout": "5s",
    "streamIdleTimeout": "6s",
    "http2ProtocolOptions": {
        "maxConcurrentStreams": 8,
        "initialStreamWindowSize": 70000,
        "initialConnectionWindowSize": 80000,
    },
    "mergeSlashes": True,
    "pathWithEscapedSlashesAction": "REJECT_REQUEST",
}
GATEWAY = config(
    "Gateway",
    "main",
    {
        "selector": {"istio": "ingressgateway"},
        "servers": [{"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}],
    },
)


def world(said: dict[str, Any] | None = None, **more: Any) -> Rows:
    settings = {} if said is None else {"defaultConfig": {"connectionSettings": said}}
    return rows(bookinfo(), GATEWAY, mesh_config(**settings, **more))


def managers(found: Rendered) -> list[dict[str, Any]]:
    made = [
        f["typedConfig"]
        for listener in found.listeners.values()
        for c in (*listener.get("filterChains", ()), listener.get("defaultFilterChain", {}))
        for f in c.get("filters", ())
        if f["name"] == HCM
    ]
    assert made
    return made


@pytest.mark.parametrize("make", [sidecar, router])
def test_what_is_written_holds_of_every_proxy(make: Any) -> None:
    found = Rendered(world(WRITTEN), make())
    for manager in managers(found):
        assert {name: manager[name] for name in MANAGER} == MANAGER
    assert {li["perConnectionBufferLimitBytes"] for li in found.listeners.values()} == {1000}
    kept = {
        name: cluster.get("perConnectionBufferLimitBytes")
        for name, cluster in found.clusters.items()
    }
    assert kept.pop("BlackHoleCluster") is None
    assert set(kept.values()) == {2000}
    if make is sidecar:
        assert {"inbound|9080||", "InboundPassthroughCluster", "PassthroughCluster"} <= kept.keys()


def test_where_nothing_is_said_nothing_is_changed() -> None:
    plain, empty = (Rendered(world(said), router()) for said in (None, {}))
    assert plain.listeners == empty.listeners
    assert plain.clusters == empty.clusters
    (manager,) = managers(plain)
    assert manager["streamIdleTimeout"] == "0s"
    assert manager.keys().isdisjoint(MANAGER.keys() - {"streamIdleTimeout"})
    assert plain.runtime == {}


def test_the_edge_is_for_gateways_alone() -> None:
    mesh = world({"profile": "EDGE", "httpMaxConcurrentStreams": 7})
    (manager,) = managers(Rendered(mesh, router()))
    assert manager["http2ProtocolOptions"] == {
        "maxConcurrentStreams": 7,
        "initialStreamWindowSize": 65536,
        "initialConnectionWindowSize": 1048576,
    }
    assert manager["commonHttpProtocolOptions"] == {
        "idleTimeout": "3600s",
        "headersWithUnderscoresAction": "REJECT_REQUEST",
    }
    assert (manager["requestTimeout"], manager["streamIdleTimeout"]) == ("300s", "300s")
    assert manager["requestHeadersTimeout"] == "60s"
    assert manager["pathWithEscapedSlashesAction"] == "UNESCAPE_AND_REDIRECT"
    for manager in managers(Rendered(mesh, sidecar())):
        assert manager["http2ProtocolOptions"] == {"maxConcurrentStreams": 7}
        assert "requestTimeout" not in manager


def test_those_of_a_proxy_stand_in_place_of_the_meshs() -> None:
    mesh = {"connectionSettings": {"profile": "EDGE", "httpIdleTimeout": "5s"}}
    own = "connectionSettings: {httpMaxConcurrentStreams: 3}"
    assert connection_settings_of(mesh, own, router=True) == ConnectionSettings(streams=3)
    snake = "connection_settings: {http2_initial_stream_window_size: 70000}"
    found = connection_settings_of(mesh, snake, router=True)
    assert found == ConnectionSettings(stream_window=70000)
    assert connection_settings_of(mesh, "concurrency: 2", router=True).idle_ns == 5 * 10**9
    assert connection_settings_of({}, "connectionSettings: {profile: EDGE}", router=True) == EDGE


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("httpMaxConcurrentStreams", 0),
        ("http2InitialStreamWindowSize", 100),
        ("listenerPerConnectionBufferLimitBytes", -1),
        ("httpMaxConnectionDuration", "0s"),
        ("httpIdleTimeout", "-1s"),
        ("httpIdleTimeout", "soon"),
        ("httpMergeSlashes", "maybe"),
        ("httpHeadersWithUnderscoresAction", "BURN"),
        ("httpPathWithEscapedSlashesAction", "PATH_WITH_ESCAPED_SLASHES_UNSPECIFIED"),
        ("listenerConnectionLimit", 2**31),
    ],
)
def test_what_envoy_would_refuse_says_nothing(field: str, value: object) -> None:
    said = {"connectionSettings": {field: value}}
    assert connection_settings_of(said, router=False) == NOTHING_SAID
    edge = {"connectionSettings": {"profile": "EDGE", field: value}}
    assert connection_settings_of(edge, router=True) == EDGE


def test_no_route_lets_streams_last_longer() -> None:
    def lasts(said: dict[str, Any] | None) -> Any:
        (host,) = Rendered(world(said), sidecar()).routes["inbound|9080||"]["virtualHosts"]
        return host["routes"][0]["route"]["maxStreamDuration"].get("maxStreamDuration")

    assert lasts(None) == "0s"
    assert lasts({"httpMaxStreamDuration": "7s"}) is None


@pytest.mark.parametrize(
    ("said", "merged", "action"),
    [
        ({}, True, "UNESCAPE_AND_FORWARD"),
        ({"httpMergeSlashes": False}, False, "UNESCAPE_AND_FORWARD"),
        ({"httpPathWithEscapedSlashesAction": "KEEP_UNCHANGED"}, True, "KEEP_UNCHANGED"),
        ({"profile": "EDGE"}, True, "UNESCAPE_AND_REDIRECT"),
    ],
)
def test_paths_go_over_those_of_the_mesh(said: dict[str, Any], merged: bool, action: str) -> None:
    normalization = {"normalization": "DECODE_AND_MERGE_SLASHES"}
    (manager,) = managers(Rendered(world(said, pathNormalization=normalization), router()))
    assert manager.get("mergeSlashes", False) is merged
    assert manager["pathWithEscapedSlashesAction"] == action
    assert manager["normalizePath"] is True


def test_a_path_as_filters_see_it() -> None:
    def seen(action: str) -> str | None:
        own = ConnectionSettings(escaped_slashes=action, merge_slashes=True)
        return normalized("/a%2f/b", own.paths("BASE"))

    assert seen("KEEP_UNCHANGED") == "/a%2f/b"
    assert seen("UNESCAPE_AND_REDIRECT") == seen("UNESCAPE_AND_FORWARD") == "/a/b"
    assert seen("REJECT_REQUEST") is None


def test_listeners_have_limits_by_their_names() -> None:
    mesh = world({"listenerConnectionLimit": 9})
    for proxy in (router(), sidecar()):
        found = Rendered(mesh, proxy)
        limits = {
            f"envoy.resource_limits.listener.{name}.connection_limit": 9 for name in found.listeners
        }
        assert found.runtime == {LISTENER_LIMITS: limits}
