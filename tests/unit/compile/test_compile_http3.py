"""HTTP/3 of gateways, where a Gateway asks for it."""

from typing import Any

import msgspec
import pytest
from meshes import Rendered, Rows, config, router, rows, service

from meshbus.validate import validate_object

ANNOTATION = "traffic.meshbus.io/http3"
FILES = {"serverCertificate": "/c/cert.pem", "privateKey": "/c/key.pem"}
UDP_443 = "udp_0.0.0.0_443"


def mesh(
    *front: tuple[str, int, str], asks: str = "true", tls: dict[str, Any] | None = None
) -> Rows:
    servers = [
        {
            "port": {"number": 443, "name": "https", "protocol": "HTTPS"},
            "hosts": ["a.example.com"],
            "tls": {"mode": "SIMPLE", **FILES, **(tls or {})},
        },
        {
            "port": {"number": 443, "name": "https-b", "protocol": "HTTPS"},
            "hosts": ["b.example.com"],
            "tls": {"mode": "SIMPLE", **FILES},
        },
        {"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]},
    ]
    spec = {"selector": {"istio": "ingressgateway"}, "servers": servers}
    ((key, row),) = config("Gateway", "main", spec, "istio-system").items()
    parts: list[Rows] = [{key: msgspec.structs.replace(row, annotations={ANNOTATION: asks})}]
    if front:
        selector = {"istio": "ingressgateway"}
        parts.append(service("edge", *front, namespace="istio-system", selector=selector))
    return rows(*parts)


def answers(found: Rendered, table: str) -> dict[str, str]:
    added = found.routes[table].get("responseHeadersToAdd", ())
    return {h["header"]["key"]: h["header"]["value"] for h in added}


def test_https_servers_speak_it_over_udp_and_say_so() -> None:
    found = Rendered(mesh(), router())
    listener = found.listeners[UDP_443]
    assert listener["address"]["socketAddress"]["protocol"] == "UDP"
    assert "quicOptions" in listener["udpListenerConfig"]
    assert "listenerFilters" not in listener
    names = [c["filterChainMatch"]["serverNames"] for c in listener["filterChains"]]
    assert names == [["a.example.com"], ["b.example.com"]]
    manager = listener["filterChains"][0]["filters"][0]["typedConfig"]
    assert manager["codecType"] == "HTTP3"
    assert manager["rds"]["routeConfigName"] == "https.443.https.main.istio-system"
    socket = listener["filterChains"][0]["transportSocket"]
    assert socket["name"] == "envoy.transport_sockets.quic"
    tls = socket["typedConfig"]["downstreamTlsContext"]["commonTlsContext"]
    assert tls["alpnProtocols"] == ["h3"]
    assert answers(found, "https.443.https.main.istio-system") == {"alt-svc": 'h3=":443"; ma=86400'}
    assert answers(found, "http.80") == {}
    assert "udp_0.0.0.0_80" not in found.listeners


@pytest.mark.parametrize("asks", ["false", ""])
def test_nobody_gets_it_unasked(asks: str) -> None:
    found = Rendered(mesh(asks=asks), router())
    assert [name for name in found.listeners if name.startswith("udp_")] == []
    assert answers(found, "https.443.https.main.istio-system") == {}


def test_the_service_in_front_says_the_port_behind_its_udp_port() -> None:
    found = Rendered(
        mesh(("https", 443, "HTTPS"), ("http3", 443, "UDP")), router(ports=(("http3", 8443, ""),))
    )
    assert "udp_0.0.0.0_8443" in found.listeners
    assert answers(found, "https.443.https.main.istio-system")["alt-svc"].startswith('h3=":443"')


def test_without_udp_in_front_it_is_not_offered_and_told() -> None:
    found = Rendered(mesh(("https", 443, "HTTPS")), router())
    assert [name for name in found.listeners if name.startswith("udp_")] == []
    assert any("for UDP" in finding.message for finding in found.snapshot.findings)


@pytest.mark.parametrize(
    ("tls", "path"),
    [
        ({"mode": "MUTUAL", "caCertificates": "/c/ca.pem"}, "tls.mode"),
        ({"maxProtocolVersion": "TLSV1_2"}, "tls.maxProtocolVersion"),
    ],
)
def test_what_it_cannot_do_stays_with_tcp_and_is_told(tls: dict[str, Any], path: str) -> None:
    found = Rendered(mesh(tls=tls), router())
    (chain,) = found.listeners[UDP_443]["filterChains"]
    assert chain["filterChainMatch"]["serverNames"] == ["b.example.com"]
    assert len(found.listeners["0.0.0.0_443"]["filterChains"]) == 2
    assert any(f.path == f"spec.servers[0].{path}" for f in found.snapshot.findings)
    assert answers(found, "https.443.https.main.istio-system") == {}


def test_each_address_has_a_listener() -> None:
    found = Rendered(mesh(), router(ips=("10.0.9.1", "fd00::9")))
    assert {"udp_0.0.0.0_443", "udp_::_443"} <= set(found.listeners)


@pytest.mark.parametrize(("asks", "right"), [("true", True), ("false", True), ("yes", False)])
def test_it_is_validated(asks: str, right: bool) -> None:
    document = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "a", "annotations": {ANNOTATION: asks}},
        "spec": {
            "servers": [
                {"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}
            ]
        },
    }
    assert validate_object(document).valid is right
