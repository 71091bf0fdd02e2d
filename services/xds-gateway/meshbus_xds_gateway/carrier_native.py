"""The native carrier: sockets, TLS, HTTP/2 and gRPC in Rust, on a thread of their own.

The extension `meshbus_native` (folder `native/`) is optional; import this module where it is
installed (`carrier_choice`).
"""

import asyncio
import contextlib
import ipaddress
import socket
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import ClassVar

import meshbus_native

from meshbus_xds_gateway.carrier import (
    CarrierError,
    Certificate,
    Closed,
    Handler,
    Limits,
    Opened,
    Signal,
    Status,
    Tls,
)

_WORDS = (Opened, Closed, Signal.HALF_CLOSED, Signal.BLOCKED, Signal.WRITABLE)
_SHARE_FROM = 4096
"""Messages of this size on are copied once though they are sent in several batches."""
_SHARED_BYTES = 16 << 20
_SHARED_S = 1.0
"""How long a copy is kept for batches that follow: those of a change or a crowd are close."""


class NativeCarrier:
    """One listener."""

    name: ClassVar[str] = "native"

    def __init__(self) -> None:
        self._listener: meshbus_native.Listener | None = None
        self._handler: Handler | None = None
        self._shared: OrderedDict[int, tuple[bytes, meshbus_native.Buffer]] = OrderedDict()
        self._shared_bytes = 0
        self._emptied: asyncio.Event | None = None

    async def start(self, listen: str, handler: Handler, tls: Tls | None, limits: Limits) -> int:
        """See `Carrier`."""
        loop = asyncio.get_running_loop()
        address = await _resolve(listen)
        given = None
        if tls is not None:
            given = (
                tls.certificate.chain_pem,
                tls.certificate.key_pem,
                tls.client_roots_pem,
                tls.require_client,
                list(tls.ticket_keys),
            )
        try:
            listener = meshbus_native.Listener(
                address,
                _WORDS,
                given,
                reuse_port=limits.reuse_port,
                max_connections=limits.max_connections,
                max_streams=limits.max_streams,
                max_streams_per_connection=limits.max_streams_per_connection,
                max_message_bytes=limits.max_message_bytes,
                max_metadata_bytes=limits.max_metadata_bytes,
                keepalive_s=limits.keepalive_s,
                keepalive_timeout_s=limits.keepalive_timeout_s,
            )
        except (OSError, ValueError) as error:
            raise CarrierError(f"{listen}: {error}") from error
        self._listener, self._handler = listener, handler
        loop.add_reader(listener.fileno(), self._take)
        return int(listener.port)

    def _take(self) -> None:
        assert self._listener is not None
        assert self._handler is not None
        batch = self._listener.take()
        if batch:
            self._handler(batch)
        if self._emptied is not None and not self._listener.counters()["streams"]:
            self._emptied.set()

    def send(self, messages: Sequence[tuple[bytes, Sequence[int]]]) -> None:
        """See `Carrier`."""
        if self._listener is not None:
            self._listener.send([(self._buffer(data), streams) for data, streams in messages])

    def _buffer(self, data: bytes) -> meshbus_native.Buffer:
        if len(data) < _SHARE_FROM:
            return meshbus_native.Buffer(data)
        held = self._shared.get(id(data))
        if held is not None:
            self._shared.move_to_end(id(data))
            return held[1]
        buffer = meshbus_native.Buffer(data)
        # The bytes are kept with it: their id is theirs as long as they live.
        if not self._shared:
            asyncio.get_running_loop().call_later(_SHARED_S, self._forget)
        self._shared[id(data)] = (data, buffer)
        self._shared_bytes += len(data)
        while self._shared_bytes > _SHARED_BYTES:
            _, (old, _) = self._shared.popitem(last=False)
            self._shared_bytes -= len(old)
        return buffer

    def _forget(self) -> None:
        self._shared.clear()
        self._shared_bytes = 0

    def close(self, stream: int, status: Status, message: str = "", *, leave: bool = False) -> None:
        """See `Carrier`."""
        if self._listener is not None:
            self._listener.close(stream, status, message, leave)

    def pause(self, stream: int) -> None:
        """See `Carrier`."""
        if self._listener is not None:
            self._listener.pause(stream, True)

    def resume(self, stream: int) -> None:
        """See `Carrier`."""
        if self._listener is not None:
            self._listener.pause(stream, False)

    def renew(self, certificate: Certificate) -> None:
        """See `Carrier`."""
        if self._listener is None:
            return
        try:
            self._listener.renew(certificate.chain_pem, certificate.key_pem)
        except ValueError as error:
            raise CarrierError(f"the certificate cannot be used: {error}") from error

    def rotate_tickets(self, keys: Sequence[bytes]) -> None:
        """See `Carrier`."""
        if self._listener is None:
            return
        try:
            self._listener.rotate_tickets(list(keys))
        except ValueError as error:
            raise CarrierError(f"the ticket keys cannot be used: {error}") from error

    def counters(self) -> Mapping[str, int]:
        """See `Carrier`."""
        return {} if self._listener is None else self._listener.counters()

    async def stop(self, grace_s: float) -> None:
        """See `Carrier`."""
        listener = self._listener
        if listener is None:
            return
        listener.leave()
        self._emptied = asyncio.Event()
        self._take()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._emptied.wait()
        asyncio.get_running_loop().remove_reader(listener.fileno())
        await asyncio.to_thread(listener.stop)
        self._take()
        self._listener = None


async def _resolve(listen: str) -> str:
    """`ADDRESS:PORT` of `HOST:PORT`."""
    host, colon, port = listen.rpartition(":")
    host = host.strip("[]")
    if not colon or not port.isdigit() or not host:
        raise CarrierError(f"HOST:PORT is needed, not {listen!r}")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
        except OSError as error:
            raise CarrierError(f"{listen}: {error}") from error
        host = str(found[0][4][0])
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
