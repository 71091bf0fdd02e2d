"""What clusters, routes and connections of a proxy say, field by field, where Istio's users rely on
it: versions of HTTP, timeouts, limits at either end, names of statistics."""

from typing import Any

import pytest
import yaml

from meshbus.compile.offline import compile_documents

SIDECAR = {"type": "sidecar", "namespace": "default", "labels": {"app": "web"}, "ips": ["10.1.1.1"]}
ROUTER = {"type": "router", "namespace": "istio-system", "labels": {"istio": "ingressgateway"}}
SERVICES = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  clusterIP: 10.0.0.1
  selector: {app: web}
  ports:
  - {name: http, port: 80}
  - {name: any, port: 81}
  - {name: tcp, port: 82}
  - {name: grpc, port: 83}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: default}
spec: {clusterIP: 10.0.0.2, ports: [{name: tcp, port: 82}]}
"""
WEB = "web.default.svc.cluster.local"


def rule(policy: str, host: str = "web") -> str:
    return (
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n"
        f"metadata: {{name: {host}, namespace: default}}\n"
        f"spec: {{host: {host}, trafficPolicy: {policy}}}\n"
    )


def virtual(spec: str) -> str:
    return (
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\n"
        f"metadata: {{name: v, namespace: default}}\nspec: {spec}\n"
    )


class Made:
    """Resources of one proxy by name."""

    def __init__(self, text: str, proxy: dict[str, Any], mesh: dict[str, Any] | None) -> None:
        made = compile_documents(list(yaml.safe_load_all(text)), proxy=proxy, mesh_config=mesh)
        self.document = made.document

    def cluster(self, name: str) -> dict[str, Any]:
        return next(c for c in self.document["clusters"] if c["name"] == name)

    def options(self, name: str) -> dict[str, Any]:
        held = self.cluster(name).get("typedExtensionProtocolOptions", {})
        return held.get("envoy.extensions.upstreams.http.v3.HttpProtocolOptions", {})

    def routes(self, table: str, host: str) -> list[dict[str, Any]]:
        found = next(r for r in self.document["routes"] if r["name"] == table)
        return next(h for h in found["virtualHosts"] if h["name"] == host)["routes"]

    def domains(self, table: str) -> dict[str, set[str]]:
        found = next(r for r in self.document["routes"] if r["name"] == table)
        return {h["name"]: set(h["domains"]) for h in found["virtualHosts"]}

    def listener(self, name: str) -> dict[str, Any]:
        return next(x for x in self.document["listeners"] if x["name"] == name)

    def tcp(self, listener: str) -> dict[str, Any]:
        """The TCP proxy of what takes the rest."""
        found = self.listener(listener)
        chain = found.get("defaultFilterChain") or found["filterChains"][-1]
        return chain["filters"][-1]["typedConfig"]


def made(text: str = "", proxy: Any = None, mesh: dict[str, Any] | None = None) -> Made:
    return Made(SERVICES + text, proxy or SIDECAR, mesh)


# --------------------------------------------------------------------------- HTTP versions

KEPT, HTTP1, HTTP2 = "kept", "http1", "http2"


def version(result: Made, port: int) -> str:
    options = result.options(f"outbound|{port}||{WEB}")
    if "useDownstreamProtocolConfig" in options:
        return KEPT
    return HTTP2 if "http2ProtocolOptions" in options.get("explicitHttpConfig", {}) else HTTP1


@pytest.mark.parametrize(
    ("proxy", "policy", "mesh", "expected"),
    [
        (SIDECAR, "", None, {80: HTTP1, 81: KEPT, 83: HTTP2}),
        (ROUTER, "", None, {80: HTTP1, 81: HTTP1, 83: HTTP2}),
        (SIDECAR, "UPGRADE", None, {80: HTTP2, 81: HTTP2, 83: HTTP2}),
        (ROUTER, "UPGRADE", None, {80: HTTP2, 81: HTTP2, 83: HTTP2}),
        (SIDECAR, "", "UPGRADE", {80: HTTP2, 81: KEPT, 83: HTTP2}),
        (SIDECAR, "DO_NOT_UPGRADE", "UPGRADE", {80: HTTP1, 81: KEPT, 83: HTTP2}),
        (ROUTER, "", "UPGRADE", {80: HTTP2, 81: HTTP1, 83: HTTP2}),
    ],
)
def test_version_of_http(
    proxy: dict[str, Any], policy: str, mesh: str | None, expected: dict[int, str]
) -> None:
    text = rule(f"{{connectionPool: {{http: {{h2UpgradePolicy: {policy}}}}}}}") if policy else ""
    result = made(text, proxy, {"h2UpgradePolicy": mesh} if mesh else None)
    assert {port: version(result, port) for port in expected} == expected


@pytest.mark.parametrize("proxy", [SIDECAR, ROUTER])
def test_what_the_client_speaks_is_kept_where_it_is_wished(proxy: dict[str, Any]) -> None:
    result = made(
        rule("{connectionPool: {http: {useClientProtocol: true}}}"),
        proxy,
        {"h2UpgradePolicy": "UPGRADE"},
    )
    assert {version(result, port) for port in (80, 81, 83)} == {KEPT}


@pytest.mark.parametrize(("port", "expected"), [(80, []), (81, []), (83, ["h2"])])
def test_offers_of_tls_that_begins_here(port: int, expected: list[str]) -> None:
    """What is not fixed is offered by Envoy as the request is sent: an offer of both would let a
    server choose HTTP/2 for what goes out as HTTP/1.1."""
    result = made(rule("{tls: {mode: SIMPLE}}"))
    socket = result.cluster(f"outbound|{port}||{WEB}")["transportSocket"]["typedConfig"]
    assert socket["commonTlsContext"].get("alpnProtocols", []) == expected


# --------------------------------------------------------------------------- timeouts


@pytest.mark.parametrize(
    ("timeout", "expected"), [("", "0s"), (", timeout: 0s", "0s"), (", timeout: 10s", "10s")]
)
def test_a_deadline_of_a_grpc_call_holds_up_to_the_timeout(timeout: str, expected: str) -> None:
    spec = f"{{hosts: [web], http: [{{route: [{{destination: {{host: web}}}}]{timeout}}}]}}"
    action = made(virtual(spec)).routes("80", f"{WEB}:80")[0]["route"]
    assert (action["timeout"], action["maxGrpcTimeout"]) == (expected, expected)


def test_a_deadline_of_a_grpc_call_holds_without_virtual_service() -> None:
    result = made()
    for host in (f"{WEB}:80", "allow_any"):
        action = result.routes("80", host)[0]["route"]
        assert (action["timeout"], action["maxGrpcTimeout"]) == ("0s", "0s")


def test_idle_and_oldest_connections() -> None:
    pool = "{connectionPool: {tcp: {idleTimeout: 30s, maxConnectionDuration: 1h}}}"
    result = made(rule(pool) + rule(pool, "db"))
    tcp = result.tcp("10.0.0.1_82")
    assert (tcp["idleTimeout"], tcp["maxDownstreamConnectionDuration"]) == ("30s", "3600s")
    common = result.options(f"outbound|80||{WEB}")["commonHttpProtocolOptions"]
    assert (common["idleTimeout"], common["maxConnectionDuration"]) == ("30s", "3600s")


def test_idle_connections_are_kept_where_that_is_said() -> None:
    pool = "{connectionPool: {tcp: {idleTimeout: 0s}}}"
    assert made(rule(pool)).tcp("10.0.0.1_82")["idleTimeout"] == "0s"
    assert "idleTimeout" not in made().tcp("10.0.0.1_82")


def test_the_time_of_http_comes_before_that_of_tcp() -> None:
    pool = "{connectionPool: {tcp: {idleTimeout: 30s}, http: {idleTimeout: 5s}}}"
    common = made(rule(pool)).options(f"outbound|80||{WEB}")["commonHttpProtocolOptions"]
    assert common["idleTimeout"] == "5s"


# --------------------------------------------------------------------------- limits


def limits(cluster: dict[str, Any]) -> dict[str, Any]:
    return cluster["circuitBreakers"]["thresholds"][0]


def test_limits_hold_at_the_server_too() -> None:
    result = made(
        rule(
            "{connectionPool: {tcp: {maxConnections: 7}}, portLevelSettings: "
            "[{port: {number: 83}, connectionPool: {tcp: {maxConnections: 9}}}]}"
        )
    )
    assert limits(result.cluster(f"outbound|80||{WEB}"))["maxConnections"] == 7
    assert limits(result.cluster("inbound|80||"))["maxConnections"] == 7
    assert limits(result.cluster("inbound|83||"))["maxConnections"] == 9


def test_a_sidecar_says_the_limits_of_its_server() -> None:
    text = (
        "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\n"
        "metadata: {name: default, namespace: default}\n"
        "spec: {inboundConnectionPool: {tcp: {maxConnections: 3}}}\n"
    )
    result = made(rule("{connectionPool: {tcp: {maxConnections: 7}}}") + text)
    assert limits(result.cluster("inbound|80||"))["maxConnections"] == 3


# --------------------------------------------------------------------------- names


def test_connections_are_counted_by_cluster_or_by_who_divides_them() -> None:
    assert made().tcp("10.0.0.1_82")["statPrefix"] == f"outbound|82||{WEB}"
    one = "{hosts: [web], tcp: [{route: [{destination: {host: db}}]}]}"
    db = "outbound|82||db.default.svc.cluster.local"
    assert made(virtual(one)).tcp("10.0.0.1_82")["statPrefix"] == db
    two = (
        "{hosts: [web], tcp: [{route: [{destination: {host: db}, weight: 20},"
        " {destination: {host: web}, weight: 80}]}]}"
    )
    assert made(virtual(two)).tcp("10.0.0.1_82")["statPrefix"] == "v.default"


def test_domains_of_a_port_are_names_without_it() -> None:
    near = {WEB, f"{WEB}.", "web", "web.default", "web.default.svc", "10.0.0.1"}
    assert made().domains("80") == {f"{WEB}:80": near, "allow_any": {"*"}}
    far = made(proxy={**SIDECAR, "namespace": "other"}).domains("80")
    assert far[f"{WEB}:80"] == near - {"web"}


# --------------------------------------------------------------------------- where connections go


def test_the_port_behind_a_service_that_is_not_resolved() -> None:
    text = (
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\n"
        "metadata: {name: e, namespace: default}\n"
        "spec: {hosts: [e.example.org], resolution: NONE, ports: "
        "[{number: 8000, targetPort: 9000, name: http, protocol: HTTP}]}\n"
    )
    cluster = made(text).cluster("outbound|8000||e.example.org")
    assert cluster["type"] == "ORIGINAL_DST"
    assert cluster["originalDstLbConfig"] == {"upstreamPortOverride": 9000}


def test_how_long_a_protocol_is_looked_for() -> None:
    for mesh, wait in ((None, "0s"), ({"protocolDetectionTimeout": "5s"}, "5s")):
        result = made(mesh=mesh)
        for name in ("0.0.0.0_80", "virtualInbound"):
            listener = result.listener(name)
            assert listener["listenerFiltersTimeout"] == wait
            assert listener["continueOnListenerFiltersTimeout"] is True


def test_an_application_that_pauses_keeps_its_connections() -> None:
    assert made().cluster("inbound|80||")["cleanupInterval"] == "31536000s"
    assert "cleanupInterval" not in made().cluster("InboundPassthroughCluster")
    local = made(mesh={"inboundTrafficPolicy": {"mode": "LOCALHOST"}})
    assert "cleanupInterval" not in local.cluster("inbound|80||")


def test_names_of_applications_in_statistics() -> None:
    pattern = "%SERVICE%_%SERVICE_PORT%_%SERVICE_PORT_NAME%_%TARGET_PORT%"
    result = made(mesh={"inboundClusterStatName": pattern})
    assert result.cluster("inbound|82||")["altStatName"] == "web.default_82_tcp_82;"
    chains = result.listener("virtualInbound")["filterChains"]
    counted = {
        chain["filters"][-1]["typedConfig"]["statPrefix"]
        for chain in chains
        if chain["filterChainMatch"].get("destinationPort") == 82
    }
    assert counted == {"web.default_82_tcp_82"}
    assert "altStatName" not in made().cluster("inbound|82||")


def test_connections_are_counted_as_their_cluster_is() -> None:
    mesh = {"outboundClusterStatName": "%SERVICE%_%SERVICE_PORT%_%SUBSET_NAME%"}
    result = made(mesh=mesh)
    assert result.cluster(f"outbound|82||{WEB}")["altStatName"] == "web.default_82_;"
    assert result.tcp("10.0.0.1_82")["statPrefix"] == "web.default_82_"
    subset = (
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n"
        "metadata: {name: web, namespace: default}\n"
        "spec: {host: web, subsets: [{name: v1, labels: {version: v1}}]}\n"
    )
    one = "{hosts: [web], tcp: [{route: [{destination: {host: web, subset: v1}}]}]}"
    split = made(subset + virtual(one), mesh=mesh)
    assert split.tcp("10.0.0.1_82")["statPrefix"] == "web.default_82_v1"
