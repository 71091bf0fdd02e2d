"""TLS of gateways: certificates from files, revocation, connections passed on by name."""

from typing import Any

from meshes import Rendered, Rows, config, endpoints, host, router, rows, service

MESH = rows(
    service("web", ("http", 80, "HTTP"), addresses=["10.96.0.1"]),
    endpoints("web", "10.0.0.1", ports={"http": 80}),
)
FILES = [
    {"serverCertificate": f"/certs/{name}.pem", "privateKey": f"/certs/{name}-key.pem"}
    for name in ("rsa", "ec")
]


def gateway(protocol: str, tls: dict[str, Any], *hosts: str) -> Rows:
    port = {"number": 15443, "name": "tls", "protocol": protocol}
    server = {"port": port, "hosts": list(hosts), "tls": tls}
    return config("Gateway", "edge", {"selector": {"istio": "ingressgateway"}, "servers": [server]})


def common_of(tls: dict[str, Any]) -> dict[str, Any]:
    found = Rendered(rows(MESH, gateway("HTTPS", tls, "*")), router(namespace="default"))
    (listener,) = found.listeners.values()
    (chain,) = listener["filterChains"]
    held: dict[str, Any] = chain["transportSocket"]["typedConfig"]["commonTlsContext"]
    return held


def test_several_certificates_and_a_revocation_list() -> None:
    tls = {
        "mode": "MUTUAL",
        "tlsCertificates": FILES,
        "caCertificates": "/certs/ca.pem",
        "caCrl": "/certs/crl.pem",
    }
    common = common_of(tls)
    names = [c["certificateChain"]["filename"] for c in common["tlsCertificates"]]
    assert names == ["/certs/rsa.pem", "/certs/ec.pem"]
    assert common["validationContext"]["crl"] == {"filename": "/certs/crl.pem"}


def test_clients_may_be_let_in_without_a_certificate_that_is_trusted() -> None:
    tls = {"mode": "MUTUAL", "tlsCertificates": FILES, "caCertificates": "/certs/ca.pem"}
    strict = common_of(tls)["validationContext"]
    lenient = common_of(tls | {"insecureSkipVerify": True})["validationContext"]
    assert lenient == strict | {"trustChainVerification": "ACCEPT_UNTRUSTED"}


def test_connections_are_passed_on_to_the_cluster_that_their_sni_names() -> None:
    subsets = [{"name": "v1", "labels": {"version": "v1"}}]
    mesh = rows(
        MESH,
        gateway("TLS", {"mode": "AUTO_PASSTHROUGH"}, "*.local"),
        config("DestinationRule", "web", {"host": "web", "subsets": subsets}),
    )
    found = Rendered(mesh, router(namespace="default"))
    (listener,) = found.listeners.values()
    by_name = {c["filterChainMatch"]["serverNames"][0]: c for c in listener["filterChains"]}
    for subset in ("", "v1"):
        chain = by_name[f"outbound_.80_.{subset}_.{host('web')}"]
        assert "istio" in chain["filterChainMatch"]["applicationProtocols"]
        assert chain["filters"][-1]["typedConfig"]["cluster"] in found.clusters
        cluster = found.clusters[f"outbound_.80_.{subset}_.{host('web')}"]
        assert cluster["edsClusterConfig"]["serviceName"] == cluster["name"]
        assert cluster["name"] in found.endpoints
        assert "transportSocketMatches" not in cluster


def test_passed_on_connections_follow_destination_rules() -> None:
    policy = {
        "tls": {"mode": "ISTIO_MUTUAL"},
        "connectionPool": {"tcp": {"maxConnections": 7, "connectTimeout": "3s"}},
        "outlierDetection": {"consecutive5xxErrors": 4},
    }
    subsets = [
        {"name": "v1", "trafficPolicy": {"loadBalancer": {"simple": "PASSTHROUGH"}}},
        {"name": "v2", "trafficPolicy": {"loadBalancer": {"simple": "RANDOM"}}},
    ]
    mesh = rows(
        MESH,
        gateway("TLS", {"mode": "AUTO_PASSTHROUGH"}, "*.local"),
        config(
            "DestinationRule", "web", {"host": "web", "trafficPolicy": policy, "subsets": subsets}
        ),
    )
    found = Rendered(mesh, router(namespace="default"))
    for subset, balancer in (("", "LEAST_REQUEST"), ("v1", "LEAST_REQUEST"), ("v2", "RANDOM")):
        cluster = found.clusters[f"outbound_.80_.{subset}_.{host('web')}"]
        assert cluster["type"] == "EDS"
        assert cluster["lbPolicy"] == balancer
        assert cluster["circuitBreakers"]["thresholds"][0]["maxConnections"] == 7
        assert cluster["connectTimeout"] == "3s"
        assert cluster["outlierDetection"]["consecutive5xx"] == 4
        assert "transportSocket" not in cluster


def test_passed_on_connections_have_no_limit_of_their_own() -> None:
    mesh = rows(MESH, gateway("TLS", {"mode": "AUTO_PASSTHROUGH"}, "*.local"))
    found = Rendered(mesh, router(namespace="default"))
    cluster = found.clusters[f"outbound_.80_._.{host('web')}"]
    assert cluster["circuitBreakers"]["thresholds"][0]["maxConnections"] == 2**32 - 1


def test_other_routers_have_no_clusters_by_name() -> None:
    mesh = rows(MESH, gateway("TLS", {"mode": "PASSTHROUGH"}, "*.local"))
    found = Rendered(mesh, router(namespace="default"))
    assert not [name for name in found.clusters if name.startswith("outbound_.")]
