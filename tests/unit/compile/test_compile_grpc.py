"""Resources of applications that speak xDS through gRPC."""

from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from meshes import Rows, compiled, config, endpoints, host, rows, service, sidecar

from meshbus.compile.resources import CDS, EDS, LDS, RDS

CLIENT = sidecar("client", metadata=(("GENERATOR", "grpc"),))
PORTS = {"grpc": 8080}
BASE = rows(
    service("echo", ("grpc", 7070, "GRPC"), addresses=["10.96.0.1"]),
    endpoints("echo", "10.0.0.1", "10.0.0.2", ports=PORTS),
)
NAME = f"{host('echo')}:7070"
CLUSTER = f"outbound|7070||{host('echo')}"


def cluster(mesh: Rows, name: str = CLUSTER) -> cluster_pb2.Cluster | None:
    found = compiled(mesh, CLIENT).resources[CDS].get(name)
    return None if found is None else cluster_pb2.Cluster.FromString(found.body)


def routes(mesh: Rows) -> Any:
    body = compiled(mesh, CLIENT).resources[RDS][NAME].body
    (shown,) = route_pb2.RouteConfiguration.FromString(body).virtual_hosts
    return shown.routes


def routed(*rules: dict[str, Any]) -> Rows:
    return config("VirtualService", "echo", {"hosts": ["echo"], "http": list(rules)})


TO = {"route": [{"destination": {"host": "echo"}}]}


def test_every_name_of_a_service_is_a_listener_that_asks_for_one_table():
    listeners = compiled(BASE, CLIENT).resources[LDS]
    names = ("echo", "echo.default", "echo.default.svc", host("echo"), f"{host('echo')}.")
    assert set(listeners) == {f"{name}:7070" for name in names}
    for resource in listeners.values():
        listener = listener_pb2.Listener.FromString(resource.body)
        assert listener.name == resource.name
        manager = hcm_pb2.HttpConnectionManager.FromString(listener.api_listener.api_listener.value)
        assert manager.rds.route_config_name == NAME
        assert manager.http_filters[-1].name == "envoy.filters.http.router"


def test_clusters_have_what_grpc_knows_and_no_more():
    rule = {
        "host": "echo",
        "trafficPolicy": {
            "connectionPool": {"http": {"http2MaxRequests": 7}},
            "outlierDetection": {"consecutive5xxErrors": 3},
            "loadBalancer": {"consistentHash": {"httpHeaderName": "who"}},
        },
        "subsets": [{"name": "v1", "labels": {"version": "v1"}}],
    }
    mesh = rows(BASE, config("DestinationRule", "echo", rule))
    made = cluster(mesh)
    assert made is not None
    assert made.eds_cluster_config.service_name == CLUSTER
    assert made.lb_policy == cluster_pb2.Cluster.RING_HASH
    assert made.circuit_breakers.thresholds[0].max_requests.value == 7
    assert made.HasField("outlier_detection")
    known = {"name", "type", "connect_timeout", "eds_cluster_config", "lb_policy"}
    known |= {"ring_hash_lb_config", "circuit_breakers", "outlier_detection"}
    assert {f.name for f, _ in made.ListFields()} <= known
    assert cluster(mesh, f"outbound|7070|v1|{host('echo')}") is not None


def test_nobody_is_called_in_plaintext_who_is_to_be_called_by_tls():
    rule = {"host": "echo", "trafficPolicy": {"tls": {"mode": "ISTIO_MUTUAL"}}}
    mesh = rows(BASE, config("DestinationRule", "echo", rule))
    assert cluster(mesh) is None
    (finding,) = compiled(mesh, CLIENT).findings
    assert (finding.object.name, finding.path) == ("echo", "spec.trafficPolicy.tls")


def test_endpoints_have_localities_with_weights_and_priorities_without_gaps():
    body = compiled(BASE, CLIENT).resources[EDS][CLUSTER].body
    made = endpoint_pb2.ClusterLoadAssignment.FromString(body)
    (group,) = made.endpoints
    assert group.HasField("locality")
    assert group.load_balancing_weight.value == 2
    assert group.priority == 0
    addresses = [e.endpoint.address.socket_address.address for e in group.lb_endpoints]
    assert addresses == ["10.0.0.1", "10.0.0.2"]


def test_routes_are_those_of_sidecars_as_far_as_grpc_has_them():
    fault = {"abort": {"grpcStatus": "ABORTED", "percentage": {"value": 50}}}
    mesh = rows(
        BASE,
        routed(
            {"match": [{"uri": {"prefix": "/a"}}], "redirect": {"uri": "/b"}},
            {
                **TO,
                "timeout": "2s",
                "retries": {"attempts": 3, "retryOn": "unavailable"},
                "corsPolicy": {"allowOrigins": [{"exact": "x"}]},
                "fault": fault,
                "mirror": {"host": "echo"},
            },
        ),
    )
    elsewhere, here = routes(mesh)
    assert elsewhere.WhichOneof("action") == "non_forwarding_action"
    assert here.route.cluster == CLUSTER
    assert here.route.max_stream_duration.max_stream_duration.seconds == 2
    assert here.route.retry_policy.num_retries.value == 3
    assert list(here.typed_per_filter_config) == ["envoy.filters.http.fault"]
    assert not here.route.request_mirror_policies


def test_a_proxy_of_the_same_place_is_sent_what_envoys_are_sent():
    assert "virtualOutbound" in compiled(BASE, sidecar("client")).resources[LDS]
