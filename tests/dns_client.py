"""A DNS client and a small server of another zone, for tests: none of the code under test."""

import asyncio
import ipaddress
import socket
import struct
from typing import NamedTuple

A, CNAME, AAAA, TXT = 1, 5, 28, 16


class Reply(NamedTuple):
    """An answer, as a client sees it."""

    code: int
    truncated: bool
    authoritative: bool
    records: list[tuple[str, int, int, str]]
    """(owner, type, ttl, data): addresses and names as text, other data in hex."""

    @property
    def addresses(self) -> list[str]:
        """Sorted."""
        return sorted(data for _, kind, _, data in self.records if kind in (A, AAAA))


def question(name: str, kind: int = A, *, number: int = 7, payload: int = 0) -> bytes:
    """A query; `payload`: with EDNS."""
    wire = b"".join(bytes([len(p)]) + p.encode() for p in name.split(".") if p) + b"\0"
    head = struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 1 if payload else 0)
    edns = b"\0" + struct.pack("!HHIH", 41, payload, 0, 0) if payload else b""
    return head + wire + struct.pack("!HH", kind, 1) + edns


def read_name(message: bytes, place: int) -> tuple[str, int]:
    """A name, through pointers, and the place behind it."""
    labels, end = [], 0
    while message[place]:
        if message[place] >= 0xC0:
            end = end or place + 2
            place = struct.unpack_from("!H", message, place)[0] & 0x3FFF
            continue
        labels.append(message[place + 1 : place + 1 + message[place]].decode())
        place += 1 + message[place]
    return ".".join(labels), end or place + 1


def read(message: bytes) -> Reply:
    """What a message says."""
    _, flags, questions, answers, _, _ = struct.unpack_from("!HHHHHH", message)
    place = 12
    for _ in range(questions):
        place = read_name(message, place)[1] + 4
    records = []
    for _ in range(answers):
        owner, place = read_name(message, place)
        kind, _, ttl, size = struct.unpack_from("!HHIH", message, place)
        place += 10
        data = message[place : place + size]
        if kind in (A, AAAA):
            text = str(ipaddress.ip_address(data))
        elif kind == CNAME:
            text = read_name(message, place)[0]
        else:
            text = data.hex()
        records.append((owner, kind, ttl, text))
        place += size
    return Reply(flags & 15, bool(flags & 0x200), bool(flags & 0x400), records)


def ask(
    server: tuple[str, int],
    name: str,
    kind: int = A,
    *,
    tcp: bool = False,
    payload: int = 0,
    sock: socket.socket | None = None,
) -> Reply:
    """Ask a server. `sock`: one to ask on."""
    family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
    kind_of = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
    with sock or socket.socket(family, kind_of) as connection:
        connection.settimeout(10)
        connection.connect(server)
        message = question(name, kind, payload=payload)
        if not tcp:
            connection.send(message)
            return read(connection.recv(65535))
        connection.sendall(struct.pack("!H", len(message)) + message)
        stream = connection.makefile("rb")
        return read(stream.read(int.from_bytes(stream.read(2), "big")))


class Zone(asyncio.DatagramProtocol):
    """Answers A questions from a table, over UDP and TCP; everything else is NXDOMAIN."""

    def __init__(self, names: dict[str, list[str]]) -> None:
        self.names = names
        self.asked: list[tuple[str, int]] = []
        self.ttl = 60
        self.address = ("", 0)

    async def start(self, host: str = "127.0.0.1") -> None:
        """Listen on a port of the system's choice."""
        self._server = await asyncio.start_server(self._serve, host, 0)
        self.address = (host, self._server.sockets[0].getsockname()[1])
        loop = asyncio.get_running_loop()
        self._udp, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=self.address)

    def close(self) -> None:
        """Listen no more."""
        self._server.close()
        self._udp.close()

    def answer(self, message: bytes) -> bytes:
        """The answer to a query."""
        name, end = read_name(message, 12)
        kind = struct.unpack_from("!H", message, end)[0]
        self.asked.append((name, kind))
        found = self.names.get(name.lower())
        code = 0 if found is not None else 3
        packed = [ipaddress.ip_address(text).packed for text in found or []]
        datas = [data for data in packed if len(data) == {A: 4, AAAA: 16}.get(kind)]
        head = struct.pack("!HHHHHH", *struct.unpack_from("!H", message), 0x8180 | code,
                           1, len(datas), 0, 0)  # fmt: skip
        body = message[12 : end + 4]
        for data in datas:
            body += b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, self.ttl, len(data)) + data
        return head + body

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        reply = self.answer(data)
        if len(reply) > 1232:
            flags = struct.unpack_from("!H", reply, 2)[0] | 0x200
            end = read_name(data, 12)[1] + 4
            reply = reply[:2] + struct.pack("!HHHHH", flags, 1, 0, 0, 0) + data[12:end]
        self._udp.sendto(reply, addr)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int.from_bytes(await reader.readexactly(2), "big")
        reply = self.answer(await reader.readexactly(size))
        writer.write(struct.pack("!H", len(reply)) + reply)
        await writer.drain()
        writer.close()
