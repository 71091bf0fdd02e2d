"""Reports to metrics, graph and traces; limits hold."""

import pytest
from envoy.data.accesslog.v3 import accesslog_pb2
from meshbus_telemetry.entries import (
    DESTINATION,
    FLAGS,
    SOURCE,
    Connection,
    Ends,
    Reporter,
    Request,
    connection_of,
    request_of,
)
from meshbus_telemetry.graph import MAX_WINDOW_S, ServiceGraph
from meshbus_telemetry.metrics import COMMON_LABELS, HTTP_LABELS, StandardMetrics
from meshbus_telemetry.parties import (
    NOBODY,
    NOWHERE,
    Directory,
    Party,
    Target,
    party_of_instance,
)
from meshbus_telemetry.servers import instance_of
from meshbus_telemetry.spans import Span, zipkin_of
from meshbus_telemetry.traces import MAX_SPANS_OF_A_TRACE, TraceRing

from meshbus.model.keys import Key
from meshbus.model.rows import Endpoint, EndpointShard, Service, ServicePort, WorkloadInstance
from meshbus.model.world import world_of

A = Party("a", "ns", "spiffe://t/ns/ns/sa/a", "a", "v1", "a", "v1", "c")
B = A._replace(workload="b", app="b", canonical_service="b")
TO_B = Target("b.ns.svc.cluster.local", "b", "ns")


def ends(reporter=SOURCE, security="unknown", source=A, flags="-"):
    return Ends(reporter, source, B, TO_B, security, flags)


def request(code=200, ms=10.0, **fields):
    return Request(ends(**fields), "http", code, "", ms, 100, 200)


def values(metrics, name):
    return {
        tuple(sample.labels.values()): sample.value
        for family in metrics.collect()
        for sample in family.samples
        if sample.name == name
    }


def test_all_labels_have_their_values():
    metrics = StandardMetrics(10)
    metrics.request(request())
    (labels,) = values(metrics, "istio_requests_total")
    found = dict(zip(HTTP_LABELS, labels, strict=True))
    assert found["source_workload"] == "a"
    assert found["destination_workload"] == "b"
    assert found["destination_service_name"] == "b"
    assert found["response_code"] == "200"
    assert found["request_protocol"] == "http"
    assert found["connection_security_policy"] == "unknown"
    assert len(COMMON_LABELS) == len(HTTP_LABELS) - 2


def test_the_series_over_the_limit_are_summed_in_one():
    metrics = StandardMetrics(2)
    for code in (200, 404, 500, 503):
        metrics.request(request(code))
    counts = values(metrics, "istio_requests_total")
    assert sum(counts.values()) == 4
    assert counts[("overflow",) * len(HTTP_LABELS)] == 2
    assert (metrics.series, metrics.overflowed) == (3, 2)


def test_histograms_are_cumulative():
    metrics = StandardMetrics(10)
    for ms in (0.4, 7, 7, 9999999):
        metrics.request(request(ms=ms))
    buckets = {
        sample.labels["le"]: sample.value
        for family in metrics.collect()
        for sample in family.samples
        if sample.name == "istio_request_duration_milliseconds_bucket"
    }
    assert (buckets["0.5"], buckets["5"], buckets["10"], buckets["+Inf"]) == (1, 1, 3, 4)


def test_bytes_of_a_connection_are_counted_once():
    metrics = StandardMetrics(10)

    def report(phase, received, sent):
        metrics.connection(Connection(ends(), "id", phase, received, sent, 5.0))

    report("open", 0, 0)
    report("continue", 100, 10)
    report("continue", 150, 30)
    report("close", 160, 40)
    metrics.connection(Connection(ends(), "", "close", 1, 1, 1.0))
    sums = {
        name: sum(values(metrics, f"istio_tcp_{name}_total").values())
        for name in ("connections_opened", "connections_closed", "received_bytes", "sent_bytes")
    }
    assert sums == {
        "connections_opened": 2,
        "connections_closed": 2,
        "received_bytes": 161,
        "sent_bytes": 41,
    }


def test_an_edge_counts_the_clients_reports_and_the_servers_security():
    graph = ServiceGraph(10)
    for ms in range(1, 101):
        graph.request(request(ms=ms), 1000)
    graph.request(request(code=503), 1000)
    for _ in range(50):
        graph.request(request(reporter=DESTINATION, security="mutual_tls"), 1000)
    found = graph.describe(1010, 60)
    (edge,) = found["edges"]
    assert (edge["source"], edge["destination"]) == ("ns/a", "ns/b")
    assert (edge["requests"], edge["errors"], edge["mtls"]) == (101, 1, True)
    assert edge["rate"] == pytest.approx(101 / 60, abs=0.001)
    assert 40 <= edge["p50"] <= 60
    assert 90 <= edge["p99"] <= 115
    assert {node["id"] for node in found["nodes"]} == {"ns/a", "ns/b"}


def test_plaintext_shows_and_old_edges_go():
    graph = ServiceGraph(1)
    graph.request(request(reporter=DESTINATION, security="none", source=NOBODY), 1000)
    assert graph.describe(1001)["edges"][0]["mtls"] is False
    assert graph.describe(1001)["edges"][0]["source"] == "unknown"
    graph.request(request(), 1001)
    assert graph.overflowed == 1
    assert graph.describe(1000 + 61)["edges"] == []
    graph.request(request(), 1001 + MAX_WINDOW_S + 10)
    assert len(graph) == 1


def test_services_of_clusters_and_instances():
    service = Service(
        "b.ns.svc.cluster.local", "ns", "b", "kubernetes", [ServicePort("http", 80, "HTTP", 9080)],
        selector={"app": "b"},
    )  # fmt: skip
    other = Service(
        "c.ns.svc.cluster.local", "ns", "c", "kubernetes", [ServicePort("http", 81, "HTTP", 9081)],
        selector={"app": "b"},
    )  # fmt: skip
    row = WorkloadInstance("b-0", "ns", "b", "b", labels={"app": "b"}, addresses=["10.0.0.2"])
    outside = Endpoint(["192.0.2.1"], {}, labels={"app": "ext"}, workload="ext", namespace="x")
    shard = EndpointShard(service.host, "ns", "1", [outside])
    directory = Directory("c")
    world = world_of(
        {
            Key("c", "reg", "services", "ns", service.host): service,
            Key("c", "reg", "services", "ns", other.host): other,
            Key("c", "reg", "workloads", "ns", "b-0"): row,
            Key("c", "reg", "endpoints", "ns", service.host, "1"): shard,
        }
    )
    directory.moved(world, frozenset())
    assert directory.called(f"outbound|80|v1|{service.host}", "b") == TO_B
    assert directory.called("PassthroughCluster", "e.com").host == "e.com"
    assert directory.called("outbound|80||gone.example", "").host == "gone.example"
    assert directory.serving(row, "inbound|9080||", "x") == TO_B
    assert directory.serving(row, "inbound|9081||", "x").name == "c"
    assert directory.serving(row, "inbound|9081||", "b:80").name == "b"
    assert directory.endpoint(service.host, "10.0.0.2").workload == "b"
    assert directory.endpoint(service.host, "192.0.2.1").workload == "ext"
    assert directory.endpoint(service.host, "192.0.2.9") == NOBODY


def test_entries_of_envoy():
    row = WorkloadInstance("b-0", "ns", "b", "b", labels={"app": "b"}, addresses=["10.0.0.2"])
    reporter = Reporter(DESTINATION, party_of_instance(row, "c"), row)
    entry = accesslog_pb2.HTTPAccessLogEntry()
    entry.request.request_headers["content-type"] = "application/grpc"
    entry.response.response_code.value = 200
    entry.response.response_trailers["grpc-status"] = "14"
    entry.common_properties.duration.FromMilliseconds(7)
    entry.common_properties.response_flags.upstream_request_timeout = True
    entry.common_properties.response_flags.fault_injected = True
    entry.common_properties.downstream_direct_remote_address.socket_address.address = "192.0.2.7"
    report = request_of(entry, reporter, Directory("c"))
    assert (report.protocol, report.grpc_status, report.failed) == ("grpc", "14", True)
    assert (report.duration_ms, report.ends.flags) == (7.0, "UT,FI")
    assert (report.ends.security, report.ends.source) == ("none", NOBODY)
    tcp = accesslog_pb2.TCPAccessLogEntry()
    tcp.common_properties.access_log_type = accesslog_pb2.TcpPeriodic
    assert connection_of(tcp, reporter, Directory("c")).phase == "continue"
    assert (
        request_of(entry, Reporter(SOURCE, NOBODY, None), Directory("c")).ends.target
        == NOWHERE._replace()
    )


def test_every_flag_of_envoy_has_a_code():
    fields = {f.name for f in accesslog_pb2.ResponseFlags.DESCRIPTOR.fields}
    assert fields == set(FLAGS)


def test_node_ids():
    assert instance_of("sidecar~10.0.0.1~a-0.ns~ns.svc.cluster.local") == ("ns", "a-0")
    assert instance_of("nonsense") == ("", "")


def span(trace="t", number=0, parent="", service="a.ns", start=0, **fields):
    kind = fields.pop("kind", "SERVER")
    return Span(trace, f"s{number}", parent, f"op{number}", kind, service, start, start + 5_000_000,
                fields.pop("error", False), {"k": "v"})  # fmt: skip


def test_the_oldest_trace_goes_first():
    ring = TraceRing(max_spans=3)
    for trace in ("t1", "t2"):
        ring.add(span(trace, 0))
        ring.add(span(trace, 1, "s0", "b.ns", start=1_000_000))
    found = ring.describe()["traces"]
    assert [trace["id"] for trace in found] == ["t2"]
    assert ring.spans == 2
    assert found[0]["services"] == ["a.ns", "b.ns"]
    assert (found[0]["root"], found[0]["durationMs"]) == ("op0", 6.0)
    assert ring.describe(service="b")["traces"]
    assert ring.describe(service="nobody")["traces"] == []
    assert ring.describe(trace_id="t1")["traces"] == []


def test_a_trace_that_never_ends_is_cut():
    ring = TraceRing(max_spans=10**6)
    for number in range(MAX_SPANS_OF_A_TRACE + 5):
        ring.add(span("t", number))
    assert (ring.spans, ring.dropped) == (MAX_SPANS_OF_A_TRACE, 5)


def test_zipkin_form():
    made = zipkin_of(span(number=1, parent="s0", start=2_000_000_000, error=True))
    assert made == {
        "traceId": "t", "id": "s1", "parentId": "s0", "name": "op1", "kind": "SERVER",
        "timestamp": 2_000_000, "duration": 5_000, "localEndpoint": {"serviceName": "a.ns"},
        "tags": {"k": "v", "error": "true"},
    }  # fmt: skip
