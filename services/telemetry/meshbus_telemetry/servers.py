"""The gRPC services that proxies report to: access logs and spans."""

from collections.abc import AsyncIterator
from typing import Any, Protocol

import grpc
from envoy.service.accesslog.v3 import als_pb2, als_pb2_grpc

from meshbus.mixer.workloads import Peer
from meshbus.model.rows import Trust, WorkloadInstance
from meshbus.runtime.proxy_server import require_workload
from meshbus_telemetry.access import Access, access_of
from meshbus_telemetry.entries import (
    LOG_NAMES,
    Connection,
    Reporter,
    Request,
    connection_of,
    request_of,
)
from meshbus_telemetry.otlp import ExportResponse, resources_of
from meshbus_telemetry.parties import Directory, party_of_instance, service_name
from meshbus_telemetry.spans import name_service, nodes_of

MAX_SPANS = 10_000
"""Of one export."""


class Telemetry(Protocol):
    """What the servers need of the service."""

    @property
    def trust_domain(self) -> str: ...

    @property
    def trust(self) -> Trust | None: ...
    @property
    def directory(self) -> Directory: ...
    def instance(self, namespace: str, name: str) -> WorkloadInstance | None: ...
    def request(self, report: Request) -> None: ...
    def connection(self, report: Connection) -> None: ...
    def access(self, access: Access | None) -> None: ...
    def spans(self, request: Any) -> int: ...
    def left_out(self, why: str, count: int) -> None: ...


class AccessLogServer(als_pb2_grpc.AccessLogServiceServicer):  # type: ignore[misc]
    """Takes `StreamAccessLogs`."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    async def StreamAccessLogs(  # noqa: N802 - gRPC's name
        self, messages: AsyncIterator[Any], context: Any
    ) -> Any:
        """One stream of one proxy and one log. The first message says which."""
        telemetry = self._telemetry
        uri = await require_workload(context, telemetry.trust_domain, telemetry.trust)
        side = node_id = ""
        async for message in messages:
            if message.HasField("identifier"):
                side = LOG_NAMES.get(message.identifier.log_name, "")
                node_id = message.identifier.node.id
            entries = message.http_logs.log_entry or message.tcp_logs.log_entry
            if not side:
                telemetry.left_out("unknown log", len(entries))
                continue
            row = telemetry.instance(*instance_of(node_id))
            if row is not None:
                await _require_account(row, uri, context)
            directory = telemetry.directory
            party = (
                directory.peer(Peer(uri))
                if row is None
                else party_of_instance(row, directory.cluster, uri)
            )
            reporter = Reporter(side, party, row)
            for entry in message.http_logs.log_entry:
                telemetry.request(request_of(entry, reporter, directory))
                telemetry.access(access_of(entry, reporter, directory, http=True))
            for entry in message.tcp_logs.log_entry:
                report = connection_of(entry, reporter, directory)
                if report.settled:
                    telemetry.connection(report)
                if report.phase == "close":
                    telemetry.access(access_of(entry, reporter, directory, http=False))
        return als_pb2.StreamAccessLogsResponse()


async def _require_account(row: WorkloadInstance, uri: str, context: Any) -> None:
    """A proxy reports as itself, and as nobody else."""
    if Peer(uri).account != (row.namespace, row.service_account or "default"):
        await context.abort(
            grpc.StatusCode.PERMISSION_DENIED,
            f"{uri} is not the identity of {row.namespace}/{row.name}",
        )


def instance_of(node_id: str) -> tuple[str, str]:
    """(namespace, instance) of a node id, `sidecar~ADDRESS~INSTANCE.NAMESPACE~DOMAIN`."""
    parts = node_id.split("~")
    if len(parts) != 4:
        return "", ""
    name, _, namespace = parts[2].rpartition(".")
    return namespace, name


class TraceServer:
    """Takes OTLP `Export`."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    async def export(self, request: Any, context: Any) -> Any:
        """Spans of one proxy; its own id is in each, and names their service."""
        uri = await require_workload(context, self._telemetry.trust_domain, self._telemetry.trust)
        count = sum(len(spans) for _, spans in resources_of(request))
        if count > MAX_SPANS:
            self._telemetry.left_out("export too large", count)
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"more than {MAX_SPANS} spans in one export"
            )
        for node_id, resource in nodes_of(request):
            row = self._telemetry.instance(*instance_of(node_id))
            if row is not None:
                await _require_account(row, uri, context)
                name_service(resource, service_name(row))
        taken = self._telemetry.spans(request)
        if taken < count:
            self._telemetry.left_out("span without ids", count - taken)
        return ExportResponse()
