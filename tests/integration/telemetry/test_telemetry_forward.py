"""Spans on to collectors over real HTTP: order, retries, refusals, the bound of the queue."""

import asyncio
import contextlib
import json

import pytest
import structlog
from meshbus_telemetry.forward import (
    MAX_QUEUE_BATCHES,
    Batch,
    Forwarder,
    OtlpGrpc,
    OverHttp,
    exporter_of,
)
from meshbus_telemetry.otlp import ExportRequest
from opentelemetry.proto.trace.v1 import trace_pb2

from meshbus.runtime.settings import SettingsError


class QuickClock:
    """Time in which waiting takes none."""

    def __init__(self) -> None:
        self.waits = []

    def now(self):
        return 0.0

    def monotonic(self):
        return 0.0

    async def sleep(self, seconds):
        self.waits.append(seconds)
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def receiver(codes):
    """An HTTP server that answers with these codes in turn, then 202."""
    got = []

    async def serve(reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                size = next(
                    int(line.split(":")[1])
                    for line in head.splitlines()
                    if line.lower().startswith("content-length")
                )
                body = await reader.readexactly(size)
                code = codes.pop(0) if codes else 202
                got.append((head.split()[1], code, body))
                writer.write(b"HTTP/1.1 %d x\r\ncontent-length: 0\r\n\r\n" % code)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], got
    finally:
        server.close()


def batch(name):
    span = trace_pb2.Span(trace_id=b"t" * 16, span_id=b"s" * 8, name=name)
    request = ExportRequest()
    resource = request.resource_spans.add()
    scopes = trace_pb2.ResourceSpans.DESCRIPTOR.fields_by_number[2].name
    getattr(resource, scopes).add().spans.append(span)
    return Batch(request.SerializeToString(), 1)


@contextlib.asynccontextmanager
async def forwarding(exporter):
    forwarder = Forwarder(QuickClock(), structlog.get_logger())
    task = asyncio.create_task(forwarder.run(exporter))
    try:
        yield forwarder
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def drained(forwarder):
    async with asyncio.timeout(5):
        while forwarder.waiting:
            await asyncio.sleep(0.005)


async def test_what_cannot_be_sent_is_tried_again_in_order():
    async with receiver([503, 429, 400]) as (port, got):
        exporter = exporter_of(f"http://127.0.0.1:{port}", "")
        async with forwarding(exporter) as forwarder:
            for name in ("a", "b", "c"):
                forwarder.offer(batch(name))
            await drained(forwarder)
    assert [code for _, code, _ in got] == [503, 429, 400, 202, 202]
    assert got[0][0] == "/v1/traces"
    assert got[0][2] == got[2][2] != got[3][2]
    assert (forwarder.sent, forwarder.refused) == (2, 1)


async def test_zipkin_gets_its_json():
    async with (
        receiver([]) as (port, got),
        forwarding(exporter_of("", f"http://127.0.0.1:{port}/")) as forwarder,
    ):
        forwarder.offer(batch("op"))
        await drained(forwarder)
    path, _, body = got[0]
    assert path == "/api/v2/spans"
    (span,) = json.loads(body)
    assert (span["name"], span["traceId"]) == ("op", (b"t" * 16).hex())


async def test_nobody_there_waits_longer_each_time():
    clock = QuickClock()
    forwarder = Forwarder(clock, structlog.get_logger())
    forwarder.offer(batch("a"))
    task = asyncio.create_task(forwarder.run(OverHttp("http://127.0.0.1:1/", zipkin=False)))
    async with asyncio.timeout(5):
        while len(clock.waits) < 9:
            await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert clock.waits[:3] == [0.2, 0.4, 0.8]
    assert max(clock.waits) == 30.0
    assert forwarder.waiting == 1


async def test_the_queue_is_bounded():
    forwarder = Forwarder(QuickClock(), structlog.get_logger())
    for _ in range(MAX_QUEUE_BATCHES + 3):
        forwarder.offer(Batch(b"x", 2))
    assert (forwarder.waiting, forwarder.dropped) == (MAX_QUEUE_BATCHES, 6)


async def test_forms_of_targets():
    assert exporter_of("", "") is None
    for text in ("collector:4317", "grpc://collector:4317", "grpcs://collector:4317"):
        exporter = exporter_of(text, "")
        assert isinstance(exporter, OtlpGrpc)
        await exporter.close()
    for otlp, zipkin in (
        ("collector", ""),
        ("ftp://x:1", ""),
        ("", "collector:9411"),
        ("a:1", "b"),
    ):
        with pytest.raises(SettingsError, match="MESHBUS_TELEMETRY_"):
            exporter_of(otlp, zipkin)
