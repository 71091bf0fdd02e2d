"""What real Envoys report: metrics with Istio's labels, the service graph, spans passed on."""

import asyncio
import contextlib

import grpc
import msgspec
import pytest
import pytest_asyncio
from envoy.service.accesslog.v3 import als_pb2, als_pb2_grpc
from gateway_mesh import (
    CLUSTER,
    LOOPBACK,
    Mesh,
    config,
    envoy_binary,
    mesh_on,
    service,
    workload,
)
from meshbus_telemetry.otlp import ExportResponse, resources_of, trace_handler
from meshbus_telemetry.service import TelemetryService, TelemetrySettings
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sidecar_pair import Pair, started
from workload_identity import identity_of

from meshbus.local.network import host_port
from meshbus.model.keys import Key
from meshbus.model.rows import MeshConfigRow, WorkloadPort
from meshbus.runtime.calls import CallError, call
from meshbus.runtime.process import make_context

pytestmark = pytest.mark.real
EVERY_TRACE = {
    Key(CLUSTER, "mesh", "config", "", "mesh"): MeshConfigRow(
        {"defaultConfig": {"tracing": {"sampling": 100}}}
    )
}


@pytest_asyncio.fixture
async def mesh(family, bus_for, tmp_path):
    envoy_binary()
    async with mesh_on(bus_for, tmp_path, Mesh, "telemetry") as running:
        await running.start()
        yield running


@contextlib.asynccontextmanager
async def telemetry_service(mesh: Mesh, **settings):
    context = make_context(
        TelemetryService,
        TelemetrySettings(listen=host_port(LOOPBACK.own, 0), **settings),
        mesh.process,
        mesh.buses["telemetry"],
    )
    task = asyncio.create_task(TelemetryService(context).run())
    try:
        await mesh.until(
            lambda: task.done() or not context.admin.reasons(), "the telemetry service is ready"
        )
        if task.done():
            await task
        yield context
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Observed(Pair):
    """A client and a server of a protocol; every trace is kept."""

    def __init__(self, protocol: str) -> None:
        super().__init__()
        self.protocol = protocol

    def rows(self):
        _, where, server, client = super().rows()
        serving = {
            key: msgspec.structs.replace(row, ports=[WorkloadPort("p", self.port, self.protocol)])
            for key, row in server.items()
        }
        of = service("server", self.port, self.protocol)
        return (of, where, serving, client, EVERY_TRACE)


@contextlib.asynccontextmanager
async def observed(mesh: Mesh, protocol: str = "HTTP"):
    pair = Observed(protocol)
    await mesh.start_gateway()
    await mesh.write(*pair.rows())
    async with started(mesh, pair):
        yield pair


def samples(context, name):
    text = generate_latest(context.metrics).decode()
    return [
        (sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    ]


def total(context, name, **labels):
    return sum(value for found, value in samples(context, name) if labels.items() <= found.items())


async def test_requests_become_metrics_and_a_graph(mesh):
    async with telemetry_service(mesh) as context, observed(mesh) as pair:

        async def answered() -> bool:
            return (await pair.get()).status_code == 200

        await mesh.until(answered, "a request is answered")
        for _ in range(4):
            assert (await pair.get("/x")).status_code == 200

        def seen(reporter):
            return total(context, "istio_requests_total", reporter=reporter, response_code="200")

        await mesh.until(lambda: seen("source") >= 5 and seen("destination") >= 5, "both report")
        common = {
            "source_workload": "client",
            "source_workload_namespace": "default",
            "source_app": "client",
            "source_cluster": CLUSTER,
            "destination_cluster": CLUSTER,
            "source_canonical_service": "client",
            "source_principal": "spiffe://cluster.local/ns/default/sa/client",
            "destination_workload": "server",
            "destination_workload_namespace": "default",
            "destination_app": "server",
            "destination_service": "server.default.svc.cluster.local",
            "destination_service_name": "server",
            "destination_service_namespace": "default",
            "request_protocol": "http",
            "response_code": "200",
            "response_flags": "-",
        }
        inbound = {
            **common,
            "reporter": "destination",
            "destination_principal": "spiffe://cluster.local/ns/default/sa/server",
            "connection_security_policy": "mutual_tls",
        }
        outbound = {**common, "reporter": "source", "connection_security_policy": "unknown"}
        for labels in (inbound, outbound):
            assert total(context, "istio_requests_total", **labels) >= 5
            name = "istio_request_duration_milliseconds"
            assert total(context, f"{name}_count", **labels) >= 5
            assert total(context, f"{name}_bucket", **labels, le="3600000") >= 5
            assert total(context, f"{name}_sum", **labels) > 0
            assert total(context, "istio_response_bytes_sum", **labels) > 0
            assert total(context, "istio_request_bytes_count", **labels) >= 5

        graph = await call(mesh.buses["config"], "x.telemetry.graph", {}, dict)
        edge = next(e for e in graph["edges"] if e["source"] == "default/client")
        assert edge["destination"] == "default/server"
        assert edge["service"] == "server.default.svc.cluster.local"
        assert edge["mtls"] is True
        assert edge["requests"] >= 5
        assert 0 < edge["p50"] <= edge["p99"]
        assert {node["id"] for node in graph["nodes"]} >= {"default/client", "default/server"}
        with pytest.raises(CallError, match="window"):
            await call(mesh.buses["config"], "x.telemetry.graph", {"window": "long"}, dict)


async def test_errors_are_told_apart(mesh):
    fault = {
        "hosts": ["server"],
        "http": [
            {
                "match": [{"uri": {"prefix": "/broken"}}],
                "fault": {"abort": {"httpStatus": 503, "percentage": {"value": 100}}},
                "route": [{"destination": {"host": "server"}}],
            },
            {"route": [{"destination": {"host": "server"}}]},
        ],
    }
    async with telemetry_service(mesh) as context, observed(mesh) as pair:
        await mesh.write(config("VirtualService", "virtualservices", "server", fault))

        async def broken() -> bool:
            return (await pair.get("/broken")).status_code == 503

        await mesh.until(broken, "the fault is there")
        labels = {"reporter": "source", "response_code": "503", "response_flags": "FI"}
        await mesh.until(
            lambda: total(context, "istio_requests_total", **labels) > 0, "the fault is counted"
        )
        graph = await call(mesh.buses["config"], "x.telemetry.graph", {"window": "60"}, dict)
        assert sum(edge["errors"] for edge in graph["edges"]) > 0


async def test_connections_become_metrics(mesh):
    async with telemetry_service(mesh) as context, observed(mesh, "TCP") as pair:

        async def answered() -> bool:
            # The HTTP proxy routes by host; the server's side handles the connection as TCP.
            return (await pair.get()).status_code == 200

        await mesh.until(answered, "a request is answered")
        labels = {
            "reporter": "destination",
            "destination_workload": "server",
            "source_workload": "client",
            "request_protocol": "tcp",
            "connection_security_policy": "mutual_tls",
        }
        opened = "istio_tcp_connections_opened_total"
        # The opening may come before the handshake is over; the next report comes after 10 s.
        await mesh.until(
            lambda: total(context, opened, **labels) >= 1, "a connection is counted", 30
        )
        assert total(context, opened, reporter="destination", source_workload="unknown") == 0


class Collector:
    """An OTLP receiver."""

    def __init__(self) -> None:
        self.spans = []

    async def export(self, request, context):
        for _, spans in resources_of(request):
            self.spans += spans
        return ExportResponse()


async def test_spans_are_kept_and_forwarded(mesh):
    collector = Collector()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((trace_handler(collector.export),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with (
            telemetry_service(mesh, otlp=f"127.0.0.1:{port}") as context,
            observed(mesh) as pair,
        ):
            trace = "4bf92f3577b34da6a3ce929d0e0e4736"
            parent = f"00-{trace}-00f067aa0ba902b7-01"

            async def answered() -> bool:
                return (await pair.get(traceparent=parent)).status_code == 200

            await mesh.until(answered, "a request is answered")

            def arrived():
                return len({s.span_id for s in collector.spans if s.trace_id.hex() == trace}) >= 2

            await mesh.until(arrived, "both sides' spans reach the collector")
            reply = await call(mesh.buses["config"], "x.telemetry.traces", {"id": trace}, dict)
            (found,) = reply["traces"]
            assert set(found["services"]) == {"client.default", "server.default"}
            assert found["spanCount"] >= 2
            assert total(context, "meshbus_telemetry_forwarded_spans_total", outcome="sent") >= 2
            limited = {"service": "server", "limit": "1"}
            reply = await call(mesh.buses["config"], "x.telemetry.traces", limited, dict)
            assert len(reply["traces"]) == 1
    finally:
        await server.stop(None)


async def test_only_workloads_of_the_mesh_may_report(mesh):
    async with telemetry_service(mesh) as context:
        key = Key(CLUSTER, "mesh", "addresses", "", "telemetry")
        address = await mesh.until(lambda: mesh.mirror.world.get(key), "its address is known")
        credentials = grpc.ssl_channel_credentials(mesh.trust.roots_pem.encode())
        options = [("grpc.ssl_target_name_override", "telemetry.istio-system.svc")]
        target = host_port(LOOPBACK.own, address.port)
        async with grpc.aio.secure_channel(target, credentials, options) as channel:
            stub = als_pb2_grpc.AccessLogServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.StreamAccessLogs(iter([als_pb2.StreamAccessLogsMessage()]), timeout=2)
        assert samples(context, "istio_requests_total") == []


async def test_a_workload_reports_only_as_itself(mesh):
    await mesh.write(workload("honest", "127.9.9.1"), workload("other", "127.9.9.2"))

    def said_by(name, code):
        message = als_pb2.StreamAccessLogsMessage()
        message.identifier.log_name = "meshbus_inbound"
        message.identifier.node.id = f"sidecar~127.9.9.1~{name}-0.default~default.svc"
        message.http_logs.log_entry.add().response.response_code.value = code
        return message

    async with telemetry_service(mesh) as context:
        key = Key(CLUSTER, "mesh", "addresses", "", "telemetry")
        address = await mesh.until(lambda: mesh.mirror.world.get(key), "its address is known")
        options = [("grpc.ssl_target_name_override", "telemetry.istio-system.svc")]
        credentials = await identity_of(mesh, "honest")
        target = host_port(LOOPBACK.own, address.port)
        async with grpc.aio.secure_channel(target, credentials, options) as channel:
            stub = als_pb2_grpc.AccessLogServiceStub(channel)
            await stub.StreamAccessLogs(iter([said_by("honest", 200)]), timeout=5)
            with pytest.raises(grpc.aio.AioRpcError, match="not the identity of default/other"):
                await stub.StreamAccessLogs(iter([said_by("other", 201)]), timeout=5)
        codes = {labels["response_code"] for labels, _ in samples(context, "istio_requests_total")}
        assert codes == {"200"}
