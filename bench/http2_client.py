"""One gRPC stream on one HTTP/2 connection, as cheap as Python can: for thousands in a process.

Only what a gRPC server of ours needs: no HPACK decoding (what headers say does not matter here),
frames by hand, flow control in both directions.
"""

import asyncio
import struct
from collections import deque
from collections.abc import Callable
from typing import cast

_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK = 1, 1
_WINDOW_BYTES = 64 << 20
_FRAME = 16_384
_LENGTH = struct.Struct(">I")


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return (
        len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload
    )


def _literal(name: bytes, value: str) -> bytes:
    data = value.encode()
    assert len(data) < 127
    return name + bytes((len(data),)) + data


def _preface(path: str) -> bytes:
    block = b"".join(
        (
            b"\x83\x86",
            _literal(b"\x04", path),
            _literal(b"\x01", "bench"),
            _literal(b"\x0f\x10", "application/grpc"),
            _literal(b"\x00\x02te", "trailers"),
        )
    )
    return b"".join(
        (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            _frame(_SETTINGS, 0, 0, b"\x00\x04" + _LENGTH.pack(_WINDOW_BYTES)),
            _frame(_WINDOW, 0, 0, _LENGTH.pack(_WINDOW_BYTES - 65_535)),
            _frame(_HEADERS, 4, 1, block),
        )
    )


class GrpcStream(asyncio.Protocol):
    """A call that stays open. `message` is told each message, `ended` once why it is over."""

    __slots__ = (
        "_buffer",
        "_eaten",
        "_message",
        "_outgoing",
        "_path",
        "_window",
        "ended",
        "is_open",
        "message",
        "received",
        "stream_window",
        "transport",
    )

    def __init__(
        self, path: str, message: Callable[[bytes], None], ended: Callable[[str], None]
    ) -> None:
        self._path = path
        self.message = message
        self.ended = ended
        self.transport: asyncio.Transport | None = None
        self._buffer = b""
        self._message = bytearray()
        self._outgoing: deque[bytes] = deque()
        self._window = 65_535
        self.stream_window = 65_535
        self._eaten = 0
        self.received = 0
        """Bytes of the connection, frames and all."""
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        # uvloop's are no asyncio.Transport.
        self.transport = cast(asyncio.Transport, transport)
        self.is_open = True
        self.transport.write(_preface(self._path))

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._end(f"connection lost: {exc}")

    def _end(self, why: str) -> None:
        if self.is_open:
            self.is_open = False
            if self.transport is not None:
                self.transport.close()
            self.ended(why)

    # ------------------------------------------------------------------ what goes

    def send(self, message: bytes) -> None:
        """One message, as soon as the peer has room for it."""
        data = b"\0" + _LENGTH.pack(len(message)) + message
        if not self._outgoing and len(data) <= min(_FRAME, self._window, self.stream_window):
            self._write(data)
            return
        self._outgoing.append(data)
        self._pump()

    def _write(self, data: bytes) -> None:
        assert self.transport is not None
        self._window -= len(data)
        self.stream_window -= len(data)
        self.transport.write(_frame(_DATA, 0, 1, data))

    def _pump(self) -> None:
        while self._outgoing:
            room = min(_FRAME, self._window, self.stream_window)
            if room <= 0:
                return
            data = self._outgoing.popleft()
            if len(data) > room:
                self._outgoing.appendleft(data[room:])
                data = data[:room]
            self._write(data)

    # ------------------------------------------------------------------ what comes

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self.received += len(data)
        buffer = self._buffer + data if self._buffer else data
        at, size = 0, len(buffer)
        messages: list[bytes] = []
        while size - at >= 9:
            length = buffer[at] << 16 | buffer[at + 1] << 8 | buffer[at + 2]
            if size - at < 9 + length:
                break
            kind, flags = buffer[at + 3], buffer[at + 4]
            body = at + 9
            at = body + length
            if kind == _DATA:
                self._message += buffer[body:at]
                self._eaten += length
                if flags & _END_STREAM:
                    self._end("ended by the server")
            else:
                self._control(kind, flags, buffer[body - 1] != 0, buffer[body:at])
        self._buffer = buffer[at:]
        if self._eaten > _WINDOW_BYTES // 4 and self.transport is not None:
            more = _LENGTH.pack(self._eaten)
            self.transport.write(_frame(_WINDOW, 0, 0, more) + _frame(_WINDOW, 0, 1, more))
            self._eaten = 0
        whole = self._message
        start = 0
        while len(whole) - start >= 5:
            length = int.from_bytes(whole[start + 1 : start + 5], "big")
            if len(whole) - start < 5 + length:
                break
            messages.append(bytes(whole[start + 5 : start + 5 + length]))
            start += 5 + length
        if start:
            del whole[:start]
        for message in messages:
            self.message(message)

    def _control(self, kind: int, flags: int, of_stream: bool, payload: bytes) -> None:
        transport = self.transport
        assert transport is not None
        if kind == _SETTINGS and not flags & _ACK:
            for at in range(0, len(payload), 6):
                if payload[at : at + 2] == b"\x00\x04":
                    self.stream_window += int.from_bytes(payload[at + 2 : at + 6], "big") - 65_535
            transport.write(_frame(_SETTINGS, _ACK, 0, b""))
            self._pump()
        elif kind == _PING and not flags & _ACK:
            transport.write(_frame(_PING, _ACK, 0, payload))
        elif kind == _WINDOW:
            room = int.from_bytes(payload, "big")
            if of_stream:
                self.stream_window += room
            else:
                self._window += room
            self._pump()
        elif kind == _HEADERS and flags & _END_STREAM:
            self._end("ended by the server")
        elif kind == _RESET:
            self._end(f"reset: {int.from_bytes(payload, 'big')}")
