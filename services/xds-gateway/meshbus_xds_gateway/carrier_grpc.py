"""The carrier that a plain installation has: grpc.aio without serializers, bytes in and out."""

import asyncio
import ssl
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from grpc import aio

from meshbus_xds_gateway.carrier import (
    LINGER_S,
    CarrierError,
    Certificate,
    Closed,
    Event,
    Handler,
    Limits,
    Opened,
    Signal,
    Status,
    Tls,
)

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_IDENTITY_ONLY = 1
"""Bit set of compression algorithms: a small compressed message may be a large one."""
_UNREQUESTED_S = 120


class _Stream:
    """One call, from the side of its handler."""

    __slots__ = ("blocked", "call", "end", "ended", "number", "queue", "reading", "writer")

    def __init__(self, number: int, call: Any) -> None:
        self.number = number
        self.call = call
        self.queue: deque[bytes] = deque()
        self.writer: asyncio.Task[None] | None = None
        self.blocked = False
        self.reading = asyncio.Event()
        self.reading.set()
        self.ended = asyncio.Event()
        self.end: tuple[Status, str] | None = None


class GrpcCarrier(grpc.GenericRpcHandler):  # type: ignore[misc]
    """One listener. Shared ticket keys are beyond what gRPC lets a server do. It cannot end one
    connection either, so that `leave` is nothing to it: each connection is told at a certain age
    not to be used again (GOAWAY), its streams go on, and the next one is on another."""

    name: ClassVar[str] = "grpc"

    def __init__(self) -> None:
        self._server: Any = None
        self._handler: Handler | None = None
        self._streams: dict[int, _Stream] = {}
        self._left = asyncio.Event()
        """Set whenever a stream is no more."""
        self._last = 0
        self._events: list[tuple[int, Event]] = []
        self._renewed: list[grpc.ServerCertificateConfiguration] = []
        self._client_roots: bytes | None = None

    async def start(self, listen: str, handler: Handler, tls: Tls | None, limits: Limits) -> int:
        """See `Carrier`."""
        self._handler = handler
        self._server = aio.server(
            handlers=[self], options=_options(limits), maximum_concurrent_rpcs=limits.max_streams
        )
        try:
            if tls is None:
                port = self._server.add_insecure_port(listen)
            else:
                self._client_roots = tls.client_roots_pem or None
                self.renew(tls.certificate)
                credentials = grpc.dynamic_ssl_server_credentials(
                    self._newer(), self._newer, require_client_authentication=tls.require_client
                )
                port = self._server.add_secure_port(listen, credentials)
        except RuntimeError as error:
            raise CarrierError(f"{listen}: {error}") from error
        await self._server.start()
        return int(port)

    def send(self, messages: Sequence[tuple[bytes, Sequence[int]]]) -> None:
        """See `Carrier`."""
        for data, streams in messages:
            for number in streams:
                stream = self._streams.get(number)
                if stream is None or stream.end is not None:
                    continue
                stream.queue.append(data)
                if stream.writer is None:
                    stream.writer = asyncio.create_task(self._write(stream))
                elif len(stream.queue) > 1 and not stream.blocked:
                    stream.blocked = True
                    self._tell(number, Signal.BLOCKED)

    def close(self, stream: int, status: Status, message: str = "", *, leave: bool = False) -> None:
        """See `Carrier`."""
        found = self._streams.get(stream)
        if found is not None and found.end is None:
            found.end = (status, message)
            found.ended.set()

    def pause(self, stream: int) -> None:
        """See `Carrier`."""
        if stream in self._streams:
            self._streams[stream].reading.clear()

    def resume(self, stream: int) -> None:
        """See `Carrier`."""
        if stream in self._streams:
            self._streams[stream].reading.set()

    def renew(self, certificate: Certificate) -> None:
        """See `Carrier`."""
        _check(certificate)
        configuration = grpc.ssl_server_certificate_configuration(
            [(certificate.key_pem, certificate.chain_pem)],
            root_certificates=self._client_roots,
        )
        self._renewed = [configuration]

    def rotate_tickets(self, keys: Sequence[bytes]) -> None:
        """Nothing: gRPC resumes no sessions."""

    def _newer(self) -> grpc.ServerCertificateConfiguration | None:
        """A configuration that gRPC has not been given. It asks at each handshake, on threads of
        its own, and frees what it is given: the same one again would end the process."""
        try:
            return self._renewed.pop()
        except IndexError:
            return None

    def counters(self) -> Mapping[str, int]:
        """See `Carrier`."""
        return {"streams": len(self._streams)}

    async def stop(self, grace_s: float) -> None:
        """See `Carrier`."""
        if self._server is not None:
            await self._server.stop(grace_s)
            for stream in self._streams.values():
                stream.ended.set()
            while self._streams:
                self._left.clear()
                await self._left.wait()
            self._hand_over()

    # ------------------------------------------------------------------ calls

    def service(self, handler_call_details: Any) -> Any:
        """How gRPC finds the handler of a method: here one for all."""
        path = handler_call_details.method

        async def serve(_: Any, call: Any) -> None:
            await self._serve(call, path)

        return grpc.stream_stream_rpc_method_handler(serve)

    async def _serve(self, call: Any, path: str) -> None:
        self._last += 1
        stream = self._streams[self._last] = _Stream(self._last, call)
        metadata = tuple(
            (str(name).lower(), value) for name, value in call.invocation_metadata() or ()
        )
        self._tell(
            stream.number, Opened(path, metadata, _peer(call.peer()), self._certificate_of(call))
        )
        reason = "the peer or the connection is gone"
        reader = asyncio.create_task(self._read(stream))
        try:
            await stream.ended.wait()
            if stream.end is not None:
                if stream.writer is not None:
                    await asyncio.wait([stream.writer], timeout=LINGER_S)
                reason = "ended here"
                status, message = stream.end
                if status:
                    await call.abort(_CODES[status], message)
        finally:
            # Nothing is awaited here: gRPC may cancel the handler once more.
            reader.cancel()
            if stream.writer is not None:
                stream.writer.cancel()
            del self._streams[stream.number]
            self._tell(stream.number, Closed(reason))
            self._left.set()

    def _certificate_of(self, call: Any) -> bytes | None:
        if self._client_roots is None:
            return None
        pem = call.auth_context().get("x509_pem_cert", ())
        return ssl.PEM_cert_to_DER_cert(pem[0].decode()) if pem else None

    async def _read(self, stream: _Stream) -> None:
        try:
            while (data := await stream.call.read()) is not aio.EOF:
                self._tell(stream.number, data)
                if not stream.reading.is_set():
                    await stream.reading.wait()
            self._tell(stream.number, Signal.HALF_CLOSED)
        except (aio.BaseError, aio.UsageError, asyncio.InvalidStateError):
            stream.ended.set()

    async def _write(self, stream: _Stream) -> None:
        try:
            while stream.queue:
                await stream.call.write(stream.queue[0])
                stream.queue.popleft()
        except (aio.BaseError, aio.UsageError, asyncio.InvalidStateError):
            stream.queue.clear()
            stream.ended.set()
        stream.writer = None
        if stream.blocked:
            stream.blocked = False
            self._tell(stream.number, Signal.WRITABLE)

    def _tell(self, stream: int, event: Event) -> None:
        if not self._events:
            asyncio.get_running_loop().call_soon(self._hand_over)
        self._events.append((stream, event))

    def _hand_over(self) -> None:
        events, self._events = self._events, []
        if events and self._handler is not None:
            self._handler(events)


def _options(limits: Limits) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", limits.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", limits.max_metadata_bytes),
        # Of calls that Python has not taken yet gRPC refuses at random from a thousand on: when a
        # fleet connects at once, some proxies would be turned away without a word in any log.
        ("grpc.server.max_pending_requests", max(limits.max_streams, 1000)),
        ("grpc.server.max_pending_requests_hard_limit", max(limits.max_streams, 1000)),
        ("grpc.max_concurrent_streams", limits.max_streams_per_connection),
        ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ONLY),
        ("grpc.keepalive_time_ms", int(limits.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(limits.keepalive_timeout_s * 1000)),
        # Its own default, a minute, would be what counts.
        ("grpc.http2.ping_timeout_ms", int(limits.keepalive_timeout_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        # Envoys ping each 30 s; a little sooner is no flood.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        # Seconds that a call may wait for Python: half a minute is too little for a whole fleet.
        ("grpc.server_max_unrequested_time_in_server", _UNREQUESTED_S),
        ("grpc.max_connection_age_ms", int(limits.connection_age_s * 1000)),
        ("grpc.so_reuseport", int(limits.reuse_port)),
    ]


def _peer(peer: str) -> str:
    """`ADDRESS:PORT` of `ipv4:ADDRESS:PORT`."""
    return peer.partition(":")[2].replace("%5B", "[").replace("%5D", "]")


def _check(certificate: Certificate) -> None:
    """gRPC itself would say nothing and fail every handshake."""
    try:
        chain = x509.load_pem_x509_certificates(certificate.chain_pem)
        key = load_pem_private_key(certificate.key_pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CarrierError(f"the certificate cannot be used: {error}") from error
    if key.public_key() != chain[0].public_key():
        raise CarrierError("the certificate cannot be used: it is of another key")
