"""Mesh DNS: UDP and TCP on the addresses that settings name.

Names of the mesh are answered from the model as it is now, everything else is asked of other
resolvers. Before the model has been read nothing is said of the mesh's names (SERVFAIL): an empty
answer would be remembered by who asks.
"""

import asyncio
import contextlib
import functools
import random
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import structlog
from prometheus_client import CollectorRegistry, Counter

from meshbus_discovery.dns_messages import (
    AAAA,
    CNAME,
    IN,
    NOERROR,
    NOTIMP,
    NXDOMAIN,
    SERVFAIL,
    A,
    Malformed,
    Query,
    Question,
    Record,
    address_records,
    addresses_of,
    answer,
    fitting,
    lifetime,
    name_bytes,
    parse_query,
    refusal,
)
from meshbus_discovery.dns_names import MAX_ALIASES, Answer, Caller, Names, caller_at, find
from meshbus_discovery.dns_upstream import Address, Unanswered, Upstream

TTL_S = 30
"""As Istio's: names of the mesh move seldom."""
TTL_MOVING_S = 5
"""Of names that stand for endpoints."""
IDLE_S = 10.0
CONNECTIONS = 256
QUERIES_AT_ONCE = 1024

log = structlog.get_logger("discovery")


class _Listen(NamedTuple):
    host: str
    port: int
    proxies: bool
    """Those who ask here reach no virtual address."""


class MeshDns:
    """The servers. `run` until cancelled."""

    def __init__(
        self,
        listen: Sequence[Address],
        proxies: Sequence[Address],
        upstream: Upstream,
        names: Callable[[], Names | None],
        metrics: CollectorRegistry,
    ) -> None:
        """
        Args:
            listen: For applications.
            proxies: For Envoys.
            names: Of the model; None before it has been read.
        """
        self._listen = [_Listen(*address, False) for address in listen]
        self._listen += [_Listen(*address, True) for address in proxies]
        self._upstream = upstream
        self._names = names
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections = 0
        self._queries = Counter(
            "meshbus_discovery_dns_queries",
            "Questions to mesh DNS, by who had the answer.",
            ["source", "code"],
            registry=metrics,
        )
        self.bound: list[Address] = []
        """Where it listens, once it does."""

    async def run(self) -> None:
        """Until cancelled.

        Raises:
            OSError: An address cannot be listened on.
        """
        loop = asyncio.get_running_loop()
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._upstream.close)
            for place in self._listen:
                server = await asyncio.start_server(
                    functools.partial(self._serve, place.proxies), place.host, place.port
                )
                stack.callback(server.close)
                port = server.sockets[0].getsockname()[1]
                transport, _ = await loop.create_datagram_endpoint(
                    functools.partial(_Datagrams, self, place.proxies),
                    local_addr=(place.host, port),
                )
                stack.callback(transport.close)
                self.bound.append((place.host, port))
                log.info("listening", what="dns", address=f"{place.host}:{port}")
            await asyncio.Event().wait()

    # ------------------------------------------------------------------ transports

    def take(
        self, data: bytes, peer: Address, proxies: bool, send: Callable[[bytes], None]
    ) -> None:
        """A datagram."""
        if len(self._tasks) >= QUERIES_AT_ONCE:
            return  # who asks will ask again
        task = asyncio.create_task(self._answer_datagram(data, peer[0], proxies, send))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer_datagram(
        self, data: bytes, peer: str, proxies: bool, send: Callable[[bytes], None]
    ) -> None:
        reply = await self.reply(data, peer, proxies, tcp=False)
        if reply:
            send(reply)

    async def _serve(
        self, proxies: bool, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if self._connections >= CONNECTIONS:
            writer.close()
            return
        self._connections += 1
        peer = str(writer.get_extra_info("peername")[0])
        try:
            while True:
                async with asyncio.timeout(IDLE_S):
                    size = int.from_bytes(await reader.readexactly(2), "big")
                    data = await reader.readexactly(size)
                reply = await self.reply(data, peer, proxies, tcp=True)
                if not reply:
                    break
                writer.write(struct.pack("!H", len(reply)) + reply)
                async with asyncio.timeout(IDLE_S):
                    await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self._connections -= 1
            writer.close()

    # ------------------------------------------------------------------ answers

    async def reply(self, data: bytes, peer: str, proxies: bool, *, tcp: bool) -> bytes:
        """The answer to a message; empty: it deserves none."""
        try:
            query = parse_query(data)
        except Malformed as error:
            if error.code < 0:
                return b""
            self._queries.labels("none", str(error.code)).inc()
            return refusal(data, error.code)
        try:
            message, source = await self._answer(query, peer, proxies, tcp=tcp)
        except (Unanswered, Malformed, ValueError):
            message, source = answer(query, code=SERVFAIL, authoritative=False), "upstream"
        self._queries.labels(source, str(message[3] & 0xF)).inc()
        return message if tcp else fitting(query, message)

    async def _answer(
        self, query: Query, peer: str, proxies: bool, *, tcp: bool
    ) -> tuple[bytes, str]:
        names = self._names()
        name, kind, klass = query.question
        if klass != IN:
            return answer(query, code=NOTIMP, authoritative=False), "none"
        if not name:
            return await self._upstream.ask(query, tcp=tcp), "upstream"
        if names is None:
            return answer(query, code=SERVFAIL, authoritative=False), "mesh"
        caller = caller_at(names.world, peer)
        if proxies:
            caller = caller._replace(virtual=False)
        found = find(names, name, caller)
        if found is None or (kind not in (A, AAAA) and not _is_ours_alone(name)):
            return await self._upstream.ask(query, tcp=tcp), "upstream"
        if not found.exists:
            return answer(query, code=NXDOMAIN), "mesh"
        records, code, authoritative = await self._follow(query, found, caller, names)
        ttl = TTL_S if found.addresses and caller.virtual else TTL_MOVING_S
        message = answer(query, records, code=code, ttl_s=ttl, authoritative=authoritative)
        return message, "mesh"

    async def _follow(
        self, query: Query, found: Answer, caller: Caller, names: Names
    ) -> tuple[list[Record], int, bool]:
        """Records of an answer, behind the aliases that lead to it."""
        kind = query.question.type
        records: list[Record] = []
        for _ in range(MAX_ALIASES):
            if not found.alias:
                own = address_records(found.addresses, kind) if kind in (A, AAAA) else []
                random.shuffle(own)
                return records + own, NOERROR, True
            records.append(Record(CNAME, name_bytes(found.alias)))
            if kind not in (A, AAAA):
                return records, NOERROR, True
            following = find(names, found.alias, caller)
            if following is None:
                return await self._outside(query, found.alias, records)
            if not following.exists:
                return records, NXDOMAIN, True
            found = following
        return [], SERVFAIL, False

    async def _outside(
        self, query: Query, name: str, records: list[Record]
    ) -> tuple[list[Record], int, bool]:
        """Addresses of an alias that others know."""
        kind = query.question.type
        wire = name_bytes(name) + struct.pack("!HH", kind, IN)
        asked = query._replace(question=Question(name, kind, IN), wire=wire)
        message = await self._upstream.ask(asked, tcp=False)
        life = lifetime(asked, message, most_s=0, negative_s=0)
        if life.truncated:
            message = await self._upstream.ask(asked, tcp=True)
        found = [Record(kind, data) for data in addresses_of(asked, message, kind)]
        return records + found, life.code, False


class _Datagrams(asyncio.DatagramProtocol):
    """One UDP socket."""

    def __init__(self, dns: MeshDns, proxies: bool) -> None:
        self._dns, self._proxies = dns, proxies
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        def send(reply: bytes) -> None:
            if self._transport is not None and not self._transport.is_closing():
                self._transport.sendto(reply, addr)

        self._dns.take(data, addr, self._proxies, send)


def _is_ours_alone(name: str) -> bool:
    """Nobody else may be asked about it."""
    return name.endswith((".svc", ".svc.cluster.local", ".cluster.local")) or "." not in name


def addresses(text: str, what: str) -> list[Address]:
    """`HOST:PORT, ...` of a setting; `[::1]:53` for IPv6.

    Raises:
        ValueError: It says something else.
    """
    found = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        host, colon, port = part.rpartition(":")
        if not colon or not port.isdigit() or int(port) > 65535:
            raise ValueError(f"{what}: {part!r}: HOST:PORT is needed")
        found.append((host.strip("[]"), int(port)))
    return found
