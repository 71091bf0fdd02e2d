"""Fields of MeshConfig, one by one: what each changes of what a sidecar gets."""

from typing import Any

import pytest
from meshes import (
    Rendered,
    Rows,
    config,
    control_plane,
    endpoints,
    host,
    mesh_config,
    rows,
    service,
    sidecar,
)

from meshbus.compile.offline import compile_documents
from meshbus.model.keys import Key
from meshbus.model.rows import Endpoint, EndpointShard, Namespace

WORLD = rows(
    service("a", ("http", 80, "HTTP"), ("any", 90, ""), addresses=["10.96.0.1"]),
    endpoints("a", "10.0.0.1", ports={"http": 80, "any": 90}, tls_mode="istio"),
    service("b", ("http", 80, "HTTP"), namespace="other", addresses=["10.96.0.2"]),
    endpoints("b", "10.0.0.2", namespace="other", ports={"http": 80}, tls_mode="istio"),
    control_plane(),
)
A, B = f"outbound|80||{host('a')}", f"outbound|80||{host('b', 'other')}"
OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def under(*more: Rows, of: str = "a", **spec: Any) -> Rendered:
    return Rendered(rows(WORLD, mesh_config(**spec), *more), sidecar(of))


def manager(found: Rendered, listener: str = "0.0.0.0_80") -> dict[str, Any]:
    item = found.listeners[listener]["filterChains"][0]["filters"][-1]
    config: dict[str, Any] = item["typedConfig"]
    return config


def options(found: Rendered, cluster: str = A) -> dict[str, Any]:
    held: dict[str, Any] = found.clusters[cluster].get("typedExtensionProtocolOptions", {})
    return dict(held.get(OPTIONS, {}))


def test_connections() -> None:
    found = under(connectTimeout="3s", tcpKeepalive={"probes": 4, "time": "9s"})
    assert found.clusters[A]["connectTimeout"] == "3s"
    keepalive = found.clusters[A]["upstreamConnectionOptions"]["tcpKeepalive"]
    assert (keepalive["keepaliveProbes"], keepalive["keepaliveTime"]) == (4, 9)


def test_a_silent_client_is_waited_for_as_long_as_the_mesh_says() -> None:
    assert under().listeners["0.0.0.0_80"]["listenerFiltersTimeout"] == "0s"
    found = under(protocolDetectionTimeout="2s")
    assert found.listeners["0.0.0.0_80"]["listenerFiltersTimeout"] == "2s"
    assert found.listeners["virtualInbound"]["listenerFiltersTimeout"] == "2s"


def test_tracing() -> None:
    assert manager(under(defaultConfig={"tracing": {"sampling": 12.5}}))["tracing"][
        "randomSampling"
    ] == {"value": 12.5}
    # As in Istio: what is more than everything is the default.
    for out_of_range in (120, -1):
        proxy = {"tracing": {"sampling": out_of_range}}
        assert manager(under(defaultConfig=proxy))["tracing"]["randomSampling"] == {"value": 1.0}
    assert "tracing" not in manager(under(enableTracing=False))


def test_mutual_tls_by_itself() -> None:
    assert "transportSocketMatches" in under().clusters[A]
    assert "transportSocketMatches" not in under(enableAutoMtls=False).clusters[A]


def test_http1_is_upgraded() -> None:
    assert "explicitHttpConfig" not in options(under()) or "http2ProtocolOptions" not in options(
        under()
    ).get("explicitHttpConfig", {})
    upgraded = options(under(h2UpgradePolicy="UPGRADE"))
    assert "http2ProtocolOptions" in upgraded["explicitHttpConfig"]


@pytest.mark.parametrize(
    ("normalization", "normalized", "merged", "unescaped"),
    [
        ("DEFAULT", True, False, False),
        ("NONE", False, False, False),
        ("BASE", True, False, False),
        ("MERGE_SLASHES", True, True, False),
        ("DECODE_AND_MERGE_SLASHES", True, True, True),
    ],
)
def test_paths(normalization: str, normalized: bool, merged: bool, unescaped: bool) -> None:
    found = manager(under(pathNormalization={"normalization": normalization}))
    assert found["normalizePath"] is normalized
    assert bool(found.get("mergeSlashes")) is merged
    assert (found.get("pathWithEscapedSlashesAction") == "UNESCAPE_AND_FORWARD") is unescaped


def test_retries_unless_a_route_says_otherwise() -> None:
    policy = {"attempts": 7, "retryOn": "reset", "perTryTimeout": "4s"}
    found = under(defaultHttpRetryPolicy=policy)
    (route,) = found.virtual_host("80", host("a"))["routes"]
    held = route["route"]["retryPolicy"]
    assert (held["numRetries"], held["retryOn"]) == (7, "reset")


def test_what_is_exported_by_default() -> None:
    assert B in under().clusters
    assert B not in under(defaultServiceExportTo=["."]).clusters
    assert B in under(defaultServiceExportTo=["default"]).clusters
    routes = config(
        "VirtualService",
        "b",
        {"hosts": [host("b", "other")], "http": [{"redirect": {"uri": "/moved"}}]},
        "other",
    )

    def moved(**spec: Any) -> bool:
        (route,) = under(routes, **spec).virtual_host("80", host("b", "other"))["routes"]
        return "redirect" in route

    assert moved()
    assert not moved(defaultVirtualServiceExportTo=["."])
    rule = config(
        "DestinationRule",
        "b",
        {
            "host": host("b", "other"),
            "trafficPolicy": {"connectionPool": {"tcp": {"connectTimeout": "9s"}}},
        },
        "other",
    )
    assert under(rule).clusters[B]["connectTimeout"] == "9s"
    private = under(rule, defaultDestinationRuleExportTo=["."])
    assert private.clusters[B]["connectTimeout"] == "10s"


def test_the_root_namespace() -> None:
    rule = config(
        "DestinationRule",
        "all",
        {"host": "*.local", "trafficPolicy": {"connectionPool": {"tcp": {"connectTimeout": "9s"}}}},
        "roots",
    )
    assert under(rule).clusters[A]["connectTimeout"] == "10s"
    assert under(rule, rootNamespace="roots").clusters[A]["connectTimeout"] == "9s"


def test_trust_domains() -> None:
    def names(**spec: Any) -> set[str]:
        match = under(**spec).clusters[A]["transportSocketMatches"][0]
        context = match["transportSocket"]["typedConfig"]["commonTlsContext"]
        found = context["combinedValidationContext"]["defaultValidationContext"]
        return {m["matcher"]["exact"] for m in found.get("matchTypedSubjectAltNames", [])}

    account = "/ns/default/sa/a"
    assert names() == {f"spiffe://cluster.local{account}"}
    assert names(trustDomain="td", trustDomainAliases=["old"]) == {
        f"spiffe://td{account}",
        f"spiffe://old{account}",
    }


# --------------------------------------------------------------------------- whom is looked at


def namespace(name: str, **labels: str) -> Rows:
    return {Key("c1", "reg", "namespaces", "", name): Namespace(name, labels, {})}


def documents(*more: dict[str, Any]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "in", "labels": {"m": "1"}}},
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "out"}},
    ]
    for place in ("in", "out"):
        out.append(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": "a", "namespace": place},
                "spec": {"ports": [{"name": "http", "port": 80}], "selector": {"app": "a"}},
            }
        )
        out.append(
            {
                "apiVersion": "networking.istio.io/v1",
                "kind": "VirtualService",
                "metadata": {"name": "of", "namespace": place},
                "spec": {
                    "hosts": [f"a.{'in' if place == 'out' else 'out'}.svc.cluster.local"],
                    "http": [{"directResponse": {"status": 418}}],
                },
            }
        )
    return [*out, *more]


@pytest.mark.parametrize(
    ("selectors", "seen"),
    [
        ([], {"in", "out"}),
        ([{"matchLabels": {"m": "1"}}], {"in"}),
        ([{"matchLabels": {"m": "2"}}], set()),
        ([{"matchLabels": {"m": "2"}}, {"matchLabels": {"m": "1"}}], {"in"}),
        ([{"matchLabels": {"kubernetes.io/metadata.name": "out"}}], {"out"}),
        ([{"matchExpressions": [{"key": "m", "operator": "DoesNotExist"}]}], {"out"}),
        ([{}], {"in", "out"}),
    ],
)
def test_namespaces_that_are_looked_at(selectors: list[dict[str, Any]], seen: set[str]) -> None:
    proxy = {"type": "sidecar", "name": "x", "namespace": "in", "ips": ["10.0.0.9"]}
    held = compile_documents(
        documents(), proxy=proxy, mesh_config={"discoverySelectors": selectors}
    ).document
    clusters = {c["name"] for c in held["clusters"] if c["name"].startswith("outbound|")}
    assert clusters == {f"outbound|80||a.{place}.svc.cluster.local" for place in seen}
    routed = {
        vhost["name"]
        for table in held["routes"]
        for vhost in table["virtualHosts"]
        for route in vhost["routes"]
        if route.get("directResponse", {}).get("status") == 418
    }
    # Each VirtualService is about the service of the other namespace.
    others = {"in": "out", "out": "in"}
    assert routed == {f"a.{others[place]}.svc.cluster.local:80" for place in seen}


@pytest.mark.parametrize(
    ("visibility", "exported", "seen"),
    [
        ({}, ["*"], {"default", "other"}),
        ({"defaultVisibility": "NAMESPACE"}, ["*"], {"default", "other"}),
        ({"defaultVisibility": "NAMESPACE", "applyToSidecars": True}, ["*"], {"other"}),
        ({"defaultVisibility": "NAMESPACE", "applyToSidecars": True}, ["."], {"other"}),
        ({"defaultVisibility": "NAMESPACE", "applyToSidecars": True}, ["default"], set()),
        ({"defaultVisibility": "NONE", "applyToSidecars": True}, ["*"], set()),
        ({"defaultVisibility": "PUBLIC", "applyToSidecars": True}, ["."], {"other"}),
        (
            {
                "applyToSidecars": True,
                "defaultVisibility": "NONE",
                "policies": [
                    {
                        "visibility": "PUBLIC",
                        "matchingRules": [
                            {"namespaceSelector": {"matchLabels": {"trusted": "no"}}}
                        ],
                    },
                    {
                        "visibility": "NAMESPACE",
                        "matchingRules": [
                            {"namespaceSelector": {"matchLabels": {"trusted": "yes"}}},
                            {
                                "namespaceSelector": {
                                    "matchLabels": {"kubernetes.io/metadata.name": "other"}
                                }
                            },
                        ],
                    },
                    {"visibility": "PUBLIC"},
                ],
            },
            ["*"],
            {"other"},
        ),
        (
            {"applyToSidecars": True, "policies": [{"visibility": "NONE", "matchingRules": [{}]}]},
            ["*"],
            {"default", "other"},
        ),
    ],
)
def test_who_sees_service_entries(
    visibility: dict[str, Any], exported: list[str], seen: set[str]
) -> None:
    outside = service(
        "x", ("http", 80, "HTTP"), namespace="other", host="x.example.com", origin="external",
        external=True, resolution="DNS", export_to=exported,
    )  # fmt: skip
    near = service("b", ("http", 80, "HTTP"), namespace="other", addresses=["10.96.0.2"])
    world = rows(
        near,
        outside,
        namespace("other", trusted="yes"),
        mesh_config(serviceEntryVisibility=visibility),
    )
    for viewer in ("default", "other"):
        found = Rendered(world, sidecar("a", namespace=viewer)).clusters
        assert ("outbound|80||x.example.com" in found) is (viewer in seen)
        assert B in found, "services of Kubernetes are no ServiceEntries"


# --------------------------------------------------------------------------- what is unknown


def test_requests_to_unknown_hosts_go_where_their_names_lead() -> None:
    found = under(outboundTrafficPolicy={"mode": "ALLOW_ANY_DYNAMIC_DNS"})
    (last,) = [h for h in found.routes["80"]["virtualHosts"] if h["name"] == "allow_any"]
    assert last["routes"][0]["route"]["cluster"] == "AllowAnyDynamicDNSCluster"
    cluster = found.clusters["AllowAnyDynamicDNSCluster"]
    assert cluster["clusterType"]["name"] == "envoy.clusters.dynamic_forward_proxy"
    assert "transportSocket" not in cluster
    names = [f["name"] for f in manager(found)["httpFilters"]]
    assert "envoy.filters.http.dynamic_forward_proxy" in names
    rest = found.listeners["virtualOutbound"]["defaultFilterChain"]["filters"][-1]
    assert rest["typedConfig"]["cluster"] == "PassthroughCluster"


def test_tls_towards_unknown_hosts_checks_their_names() -> None:
    policy = {"mode": "ALLOW_ANY_DYNAMIC_DNS", "tls": {"mode": "SIMPLE"}}
    cluster = under(outboundTrafficPolicy=policy).clusters["AllowAnyDynamicDNSCluster"]
    assert cluster["transportSocket"]["name"] == "envoy.transport_sockets.tls"
    upstream = cluster["typedExtensionProtocolOptions"][OPTIONS]["upstreamHttpProtocolOptions"]
    assert upstream == {"autoSni": True, "autoSanValidation": True}
    policy["tls"] = {"mode": "MUTUAL"}
    found = under(outboundTrafficPolicy=policy)
    assert "AllowAnyDynamicDNSCluster" not in found.clusters
    assert [f.path for f in found.snapshot.findings] == ["trafficPolicy.tls"]


def test_a_sidecar_of_its_own_says_otherwise() -> None:
    own = config("Sidecar", "own", {"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}})
    found = under(own, outboundTrafficPolicy={"mode": "ALLOW_ANY_DYNAMIC_DNS"})
    assert "block_all" in {h["name"] for h in found.routes["80"]["virtualHosts"]}


def test_an_http_proxy_beside_captured_traffic() -> None:
    assert "127.0.0.1_15002" not in under().listeners
    found = under(proxyHttpPort=15002)
    listener = found.listeners["127.0.0.1_15002"]
    held = listener["filterChains"][0]["filters"][-1]["typedConfig"]
    assert held["rds"]["routeConfigName"] == "http_proxy"
    assert f"{host('a')}:80" in {h["name"] for h in found.routes["http_proxy"]["virtualHosts"]}


def test_ports_that_traffic_is_captured_at() -> None:
    found = under(proxyListenPort=16001, proxyInboundListenPort=16006)
    held = {n: found.listeners[n] for n in ("virtualOutbound", "virtualInbound")}
    ports = {n: one["address"]["socketAddress"]["portValue"] for n, one in held.items()}
    assert ports == {"virtualOutbound": 16001, "virtualInbound": 16006}
    for listener, loops in (("virtualOutbound", {16001}), ("virtualInbound", {16001, 16006})):
        blocked = {
            chain["filterChainMatch"]["destinationPort"]
            for chain in held[listener]["filterChains"]
            if chain["name"].endswith("blackhole")
        }
        assert blocked == loops


# --------------------------------------------------------------------------- clusters


def in_clusters(of_host: str, namespace: str = "default") -> Rows:
    """Endpoints of a service in two clusters."""
    members = [
        Endpoint([f"10.{n}.0.1"], {"http": 80}, cluster=cluster)
        for n, cluster in enumerate(("east", "west"), 1)
    ]
    shard = EndpointShard(of_host, namespace, "clusters", members)
    return {Key("c", "reg", "endpoints", namespace, of_host, "clusters"): shard}


def called(cluster: str, of_host: str, rules: Rows, **spec: Any) -> set[str]:
    """Addresses of a host at port 80 for a proxy in a cluster."""
    found = Rendered(rows(rules, mesh_config(**spec)), sidecar("x", cluster=cluster))
    groups = found.endpoints[f"outbound|80||{of_host}"].get("endpoints", ())
    return {
        member["endpoint"]["address"]["socketAddress"]["address"]
        for group in groups
        for member in group["lbEndpoints"]
    }


def test_calls_that_stay_in_their_cluster() -> None:
    def local(host: str, here: bool = True) -> dict[str, Any]:
        return {"settings": {"clusterLocal": here}, "hosts": [host]}

    web, dns = host("web"), host("dns", "kube-system")
    mesh = rows(
        service("web", ("http", 80, "HTTP"), addresses=["10.96.0.1"]),
        service("dns", ("http", 80, "HTTP"), namespace="kube-system", addresses=["10.96.0.2"]),
        in_clusters(web),
        in_clusters(dns, "kube-system"),
    )
    both = {"10.1.0.1", "10.2.0.1"}
    assert called("east", web, mesh) == both
    own = [local("*.default.svc.cluster.local")]
    assert called("east", web, mesh, serviceSettings=own) == {"10.1.0.1"}
    assert called("west", web, mesh, serviceSettings=own) == {"10.2.0.1"}
    assert called("north", web, mesh, serviceSettings=own) == set()
    # What belongs to a cluster stays there, unless it is said otherwise; the narrower host counts.
    assert called("east", dns, mesh, serviceSettings=own) == {"10.1.0.1"}
    shared = [*own, local(web, False), local(dns, False)]
    assert called("east", web, mesh, serviceSettings=shared) == both
    assert called("east", dns, mesh, serviceSettings=shared) == both


# --------------------------------------------------------------------------- logs


def logs(found: Rendered) -> list[str]:
    """Names of the logs of a request, but for those of the telemetry service."""
    return [
        one["name"].rpartition(".")[2]
        for one in manager(found)["accessLog"]
        if one["typedConfig"].get("commonConfig", {}).get("logName") != "meshbus_outbound"
    ]


def test_default_providers_of_logs_stand_in_place_of_the_file() -> None:
    file = {"accessLogFile": "/dev/stdout"}
    assert logs(under(**file)) == ["file"]
    found = under(defaultProviders={"accessLogging": ["envoy"]})
    assert logs(found) == ["file"]
    providers = [
        {"name": "h", "envoyHttpAls": {"service": host("a"), "port": 80}},
        {"name": "t", "envoyTcpAls": {"service": host("a"), "port": 80}},
        {"name": "f", "envoyFileAccessLog": {"path": "/tmp/x", "logFormat": {"text": "line"}}},
        {"name": "z", "zipkin": {"service": host("a"), "port": 80}},
    ]
    chosen = {"accessLogging": ["h", "t", "f", "z", "none"]}
    found = under(**file, extensionProviders=providers, defaultProviders=chosen)
    assert sorted(logs(found)) == ["file", "http_grpc"]
    own = next(o for o in manager(found)["accessLog"] if o["name"].endswith("file"))
    assert own["typedConfig"]["path"] == "/tmp/x"
    text = own["typedConfig"]["logFormat"]["textFormatSource"]["inlineString"]
    assert text == "line\n"
    proxy = found.listeners["virtualOutbound"]["defaultFilterChain"]["filters"][-1]["typedConfig"]
    kinds = {o["name"].rpartition(".")[2] for o in proxy["accessLog"]}
    assert kinds == {"file", "tcp_grpc"}


def test_the_log_service_of_envoy() -> None:
    where = {"envoyAccessLogService": {"address": "10.1.1.1:15000"}}
    assert "envoy_accesslog_service" not in under(defaultConfig=where).clusters
    found = under(enableEnvoyAccessLogService=True, defaultConfig=where)
    assert "http_grpc" in logs(found)
    cluster = found.clusters["envoy_accesslog_service"]
    assert cluster["type"] == "STATIC"
    assert "transportSocket" not in cluster
    nowhere = under(enableEnvoyAccessLogService=True)
    assert "http_grpc" not in logs(nowhere)
    bad = {"envoyAccessLogService": {"address": "no-port"}}
    found = under(enableEnvoyAccessLogService=True, defaultConfig=bad)
    assert A in found.clusters
    assert [f.path for f in found.snapshot.findings] == ["defaultConfig.envoyAccessLogService"]


def test_the_log_service_of_envoy_by_mutual_tls_of_the_mesh() -> None:
    tls = {"mode": "ISTIO_MUTUAL", "subjectAltNames": ["spiffe://cluster.local/ns/logs/sa/als"]}
    where = {"envoyAccessLogService": {"address": "als.logs:15000", "tlsSettings": tls}}
    found = under(enableEnvoyAccessLogService=True, defaultConfig=where)
    context = found.clusters["envoy_accesslog_service"]["transportSocket"]["typedConfig"]
    common = context["commonTlsContext"]
    assert context["sni"] == "als.logs"
    assert [s["name"] for s in common["tlsCertificateSdsSecretConfigs"]] == ["default"]
    peers = common["combinedValidationContext"]
    assert peers["validationContextSdsSecretConfig"]["name"] == "ROOTCA"
    (name,) = peers["defaultValidationContext"]["matchTypedSubjectAltNames"]
    assert name["matcher"] == {"exact": "spiffe://cluster.local/ns/logs/sa/als"}


# --------------------------------------------------------------------------- Mixer


def test_quotas_are_not_asked_about_where_policy_checks_are_off() -> None:
    objects = rows(
        config("memquota", "handler", {"quotas": [{"name": "count.quota.istio-system",
               "maxAmount": 5, "validDuration": "1s"}]}, "istio-system"),
        config("quota", "count", {"dimensions": {}}, "istio-system"),
        config("rule", "rule", {"actions": [{"handler": "handler.memquota",
               "instances": ["count.quota"]}]}, "istio-system"),
        config("QuotaSpec", "spec", {"rules": [{"quotas": [{"quota": "count", "charge": 1}]}]}),
        config("QuotaSpecBinding", "binding", {"quotaSpecs": [{"name": "spec"}],
               "services": [{"name": "a"}]}),
    )  # fmt: skip

    def asked(**spec: Any) -> bool:
        table = under(objects, **spec).routes["inbound|80||"]
        return any("rateLimits" in host for host in table["virtualHosts"])

    assert asked()
    assert not asked(disablePolicyChecks=True)
