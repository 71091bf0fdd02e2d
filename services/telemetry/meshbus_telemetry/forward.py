"""Spans on to a collector: OTLP over gRPC or HTTP, or Zipkin.

One task sends one batch at a time. What cannot be sent waits in a bounded queue and is tried again
with backoff; what does not fit any more, and what the collector refuses, is counted and dropped.
"""

import asyncio
from collections import deque
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import grpc
import httpx
import msgspec

from meshbus.runtime.clock import Clock
from meshbus.runtime.settings import SettingsError
from meshbus_telemetry.otlp import EXPORT, ExportRequest
from meshbus_telemetry.spans import spans_of, zipkin_of

MAX_QUEUE_BYTES = 16 << 20
MAX_QUEUE_BATCHES = 2_000
FIRST_WAIT_S, LAST_WAIT_S = 0.2, 30.0
TIMEOUT_S = 10.0
_RETRY_HTTP = frozenset({408, 429, 500, 502, 503, 504})
_RETRY_GRPC = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
    }
)


class Unsent(Exception):
    """The collector did not take a batch; it may later."""


class Refused(Exception):
    """The collector will never take this batch."""


class Batch(NamedTuple):
    """One export as it came, encoded."""

    data: bytes
    spans: int


class Exporter(Protocol):
    """Sends batches to one collector."""

    async def send(self, batch: Batch) -> None:
        """Send one.

        Raises:
            Unsent, Refused
        """

    async def close(self) -> None:
        """Drop the connection."""


class OtlpGrpc:
    """OTLP over gRPC."""

    def __init__(self, target: str, *, secure: bool) -> None:
        options = [("grpc.max_send_message_length", -1)]
        if secure:
            credentials = grpc.ssl_channel_credentials()
            self._channel = grpc.aio.secure_channel(target, credentials, options)
        else:
            self._channel = grpc.aio.insecure_channel(target, options)
        self._export = self._channel.unary_unary(EXPORT)

    async def send(self, batch: Batch) -> None:
        """Send one batch."""
        try:
            await self._export(batch.data, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            kind = Unsent if error.code() in _RETRY_GRPC else Refused
            raise kind(f"{error.code().name}: {error.details()}") from error

    async def close(self) -> None:
        """Drop the connection."""
        await self._channel.close()


class OverHttp:
    """OTLP or Zipkin over HTTP."""

    def __init__(self, url: str, *, zipkin: bool) -> None:
        self._url = url
        self._zipkin = zipkin
        self._client = httpx.AsyncClient(timeout=TIMEOUT_S)

    async def send(self, batch: Batch) -> None:
        """Send one batch."""
        body, kind = batch.data, "application/x-protobuf"
        if self._zipkin:
            request = ExportRequest.FromString(batch.data)
            body = msgspec.json.encode([zipkin_of(span) for span in spans_of(request)])
            kind = "application/json"
        try:
            reply = await self._client.post(self._url, content=body, headers={"content-type": kind})
        except httpx.HTTPError as error:
            raise Unsent(str(error) or type(error).__name__) from error
        if reply.status_code in _RETRY_HTTP:
            raise Unsent(f"HTTP {reply.status_code}")
        if reply.status_code >= 300:
            raise Refused(f"HTTP {reply.status_code}: {reply.text[:200]}")

    async def close(self) -> None:
        """Drop the connections."""
        await self._client.aclose()


def exporter_of(otlp: str, zipkin: str) -> Exporter | None:
    """The exporter that the settings ask for; None if they ask for none. Call it with a loop.

    Args:
        otlp: `HOST:PORT`, `grpc://` or `grpcs://HOST:PORT`, or an http(s) URL.
        zipkin: An http(s) URL; without a path `/api/v2/spans` is meant.
    Raises:
        SettingsError: Neither form, or both are given.
    """
    if otlp and zipkin:
        raise SettingsError("MESHBUS_TELEMETRY_OTLP and MESHBUS_TELEMETRY_ZIPKIN: give one of them")
    if zipkin:
        return OverHttp(_url(zipkin, "/api/v2/spans", "MESHBUS_TELEMETRY_ZIPKIN"), zipkin=True)
    if not otlp:
        return None
    if otlp.startswith(("http://", "https://")):
        return OverHttp(_url(otlp, "/v1/traces", "MESHBUS_TELEMETRY_OTLP"), zipkin=False)
    scheme, mark, rest = otlp.partition("://")
    target = rest if mark else otlp
    host, _, port = target.rpartition(":")
    if (mark and scheme not in {"grpc", "grpcs"}) or not host or not port.isdigit():
        raise SettingsError(f"MESHBUS_TELEMETRY_OTLP: HOST:PORT or a URL is needed, not {otlp!r}")
    return OtlpGrpc(target, secure=scheme == "grpcs" and bool(mark))


def _url(text: str, path: str, setting: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise SettingsError(f"{setting}: an http or https URL is needed, not {text!r}")
    return text if parts.path.strip("/") else f"{parts.scheme}://{parts.netloc}{path}"


class Forwarder:
    """A bounded queue in front of an exporter."""

    def __init__(self, clock: Clock, log: Any) -> None:
        self._clock = clock
        self._log = log
        self._queue: deque[Batch] = deque()
        self._bytes = 0
        self._filled = asyncio.Event()
        self.sent = self.dropped = self.refused = 0
        """Spans."""

    @property
    def waiting(self) -> int:
        """Batches in the queue."""
        return len(self._queue)

    def offer(self, batch: Batch) -> None:
        """Queue a batch; the oldest ones make room for it."""
        self._queue.append(batch)
        self._bytes += len(batch.data)
        while self._bytes > MAX_QUEUE_BYTES or len(self._queue) > MAX_QUEUE_BATCHES:
            oldest = self._queue.popleft()
            self._bytes -= len(oldest.data)
            self.dropped += oldest.spans
        self._filled.set()

    async def run(self, exporter: Exporter) -> None:
        """Send until cancelled."""
        wait_s = FIRST_WAIT_S
        try:
            while True:
                await self._filled.wait()
                if not self._queue:
                    self._filled.clear()
                    continue
                batch = self._queue[0]
                try:
                    await exporter.send(batch)
                except Unsent as error:
                    self._log.warning("spans not forwarded yet", reason=str(error))
                    await self._clock.sleep(wait_s)
                    wait_s = min(wait_s * 2, LAST_WAIT_S)
                    continue
                except Refused as error:
                    self._log.error("spans refused", spans=batch.spans, reason=str(error))
                    self.refused += batch.spans
                else:
                    self.sent += batch.spans
                wait_s = FIRST_WAIT_S
                if self._queue and self._queue[0] is batch:
                    self._queue.popleft()
                    self._bytes -= len(batch.data)
        finally:
            await exporter.close()
