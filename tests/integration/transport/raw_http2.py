"""HTTP/2 frames by hand, for peers that behave as no library lets them. Source: RFC 9113."""

import asyncio
import contextlib
import struct

from carrier_recorder import PATIENCE_S

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    0,
    1,
    3,
    4,
    6,
    7,
    8,
    9,
)
END_STREAM, ACK, END_HEADERS = 1, 1, 4
INITIAL_WINDOW_SIZE = 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def literal(name: str, value: str) -> bytes:
    """A header that goes to no table. Lengths below 127."""
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def request_headers(path: str = "/any.Service/Method", *more: tuple[str, str]) -> bytes:
    pairs = [
        (":path", path),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *more,
    ]
    return b"\x83\x86" + b"".join(literal(*pair) for pair in pairs)


def message(data: bytes) -> bytes:
    return b"\0" + len(data).to_bytes(4) + data


def setting(identifier: int, value: int) -> bytes:
    return struct.pack("!HI", identifier, value)


class Peer:
    """One connection. It answers nothing by itself unless `polite`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.frames: list[tuple[int, int, int, bytes]] = []
        self.closed = False

    @classmethod
    async def connect(cls, port: int, *settings: tuple[int, int]) -> "Peer":
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        peer = cls(reader, writer)
        body = b"".join(setting(*pair) for pair in settings)
        await peer.send(PREFACE + frame(SETTINGS, 0, 0, body))
        return peer

    async def send(self, data: bytes) -> bool:
        """False: the other side has closed."""
        try:
            self.writer.write(data)
            async with asyncio.timeout(PATIENCE_S):
                await self.writer.drain()
        except ConnectionError:
            return False
        return not self.writer.is_closing()

    async def open(self, stream: int = 1, *more: tuple[str, str]) -> None:
        await self.send(frame(HEADERS, END_HEADERS, stream, request_headers("/a.B/C", *more)))

    async def next(self) -> tuple[int, int, int, bytes] | None:
        """A frame; None: the connection is closed."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                head = await self.reader.readexactly(9)
                payload = await self.reader.readexactly(int.from_bytes(head[:3]))
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed = True
            return None
        found = (head[3], head[4], int.from_bytes(head[5:9]), payload)
        self.frames.append(found)
        return found

    async def until(self, kind: int) -> tuple[int, int, int, bytes] | None:
        """The next frame of a kind; None: closed before it came."""
        while (found := await self.next()) is not None:
            if found[0] == kind and not (kind == SETTINGS and found[1] & ACK):
                return found
        return None

    async def goaway_code(self) -> int | None:
        """The error of the last GOAWAY before the connection is closed; None: closed without."""
        code = None
        while (found := await self.next()) is not None:
            if found[0] == GOAWAY:
                code = int.from_bytes(found[3][4:8])
        return code

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()
