"""What the Envoy of a process reports, of the mesh config, ProxyConfig objects and its own."""

from typing import Any

from meshbus.api.mesh.proxy_config import MeshProxyConfig, RemoteService
from meshbus.api.networking.destination_rule import ClientTLSSettings
from meshbus.api.standalone import Workload
from meshbus.inject.reports import Reporter, reports_of
from meshbus.local import bootstrap
from meshbus.local.desired import InstanceSpec
from meshbus.local.proxy_start import ProxyStart, proxy_start

RELAY = "127.130.0.4"


def started(config: dict[str, Any], own: str = "") -> ProxyStart:
    spec = InstanceSpec("shop", "web-0", "web", {}, Workload(), own)
    return proxy_start(spec, {"defaultConfig": config}, [], "istio-system", RELAY)


def document(start: ProxyStart) -> dict[str, Any]:
    identity = bootstrap.ProxyIdentity("sidecar", "web-0", "shop", "web", "web", [RELAY], {}, "k")
    return bootstrap.envoy_bootstrap(identity, ("127.0.0.1", 15012), "gateway", "/f", start)


def test_the_annotation_counts_before_the_mesh() -> None:
    start = started({"statsdUdpAddress": "10.0.0.1:8125"}, "statsdUdpAddress: 10.0.0.2:8125")
    (sink,) = document(start)["stats_sinks"]
    where = sink["typed_config"]["address"]["socket_address"]
    assert where == {"address": "10.0.0.2", "port_value": 8125}


def test_datagrams_to_a_name_are_passed_on_by_an_address_of_its_own() -> None:
    made = document(started({"statsdUdpAddress": "statsd.example:8125"}))
    (listener,) = made["static_resources"]["listeners"]
    assert listener["address"]["socket_address"]["address"] == RELAY
    names = [cluster["name"] for cluster in made["static_resources"]["clusters"]]
    assert names == ["xds-gateway", "local_cluster", "statsd"]


def test_what_a_process_cannot_have_is_told() -> None:
    config = {
        "statsdUdpAddress": "$(HOST_IP):8125",
        "statsEvictionInterval": "7s",
        "envoyMetricsService": {
            "address": "metrics.example:15000",
            "tlsSettings": {"mode": "SIMPLE", "credentialName": "mine"},
        },
    }
    start = started(config)
    assert [problem.split(":")[0] for problem in start.reports.problems] == [
        "statsEvictionInterval",
        "statsdUdpAddress",
        "envoyMetricsService.tlsSettings.credentialName",
    ]
    assert "stats_sinks" not in document(start)


def test_short_names_are_those_of_the_mesh_where_its_certificates_are_used() -> None:
    def cluster(host: str) -> Any:
        tls = ClientTLSSettings(mode="ISTIO_MUTUAL")
        wish = RemoteService(address=f"{host}:15000", tls_settings=tls)
        found = reports_of({}, MeshProxyConfig(envoy_metrics_service=wish), Reporter("::1", "shop"))
        return found.listeners[0]["filter_chains"][0]["filters"][0]["typed_config"]["cluster"]

    full = "outbound|15000||metrics.shop.svc.cluster.local"
    assert {cluster(host) for host in ("metrics", "metrics.shop", "metrics.shop.svc")} == {full}
    assert cluster("metrics.shop.example.com") == "outbound|15000||metrics.shop.example.com"
