"""Names that are not the mesh's: asked of other resolvers, and remembered for a while."""

import asyncio
import contextlib
import secrets
import struct
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from meshbus_discovery.dns_messages import (
    HEADER_BYTES,
    MAX_BYTES,
    NOERROR,
    NXDOMAIN,
    Malformed,
    Query,
    for_asker,
    is_answer,
    lifetime,
    question_to,
)

TIMEOUT_S = 2.0
CACHED = 4096
KEPT_S = 300
KEPT_NEGATIVE_S = 30
ASKED_AT_ONCE = 512
RESOLVER_FILE = Path("/etc/resolv.conf")
Address = tuple[str, int]


class Unanswered(Exception):
    """No resolver has answered."""


class _Kept(NamedTuple):
    until: float
    got: float
    message: bytes


def resolvers_of(text: str, own: Sequence[str]) -> list[Address]:
    """The name servers of a resolver file, without addresses of our own."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver" and words[1] not in own:
            found.append((words[1].partition("%")[0], 53))
    return found


class Upstream:
    """Other resolvers, asked in turn."""

    def __init__(self, servers: Sequence[Address], monotonic: Callable[[], float]) -> None:
        self._servers = list(servers)
        self._monotonic = monotonic
        self._cache: OrderedDict[tuple[object, ...], _Kept] = OrderedDict()
        self._asking: dict[tuple[object, ...], asyncio.Task[bytes]] = {}
        self.hits = 0
        self.asked = 0

    async def ask(self, query: Query, *, tcp: bool) -> bytes:
        """The answer to a query, for its asker.

        Raises:
            Unanswered: Nobody answers, or too much is being asked.
        """
        key = (query.question, query.checks, tcp)
        kept = self._cache.get(key)
        if kept is not None and self._monotonic() < kept.until:
            self._cache.move_to_end(key)
            self.hits += 1
            age = int(self._monotonic() - kept.got)
            return for_asker(query, _aged(query, kept.message, age))
        running = self._asking.get(key)
        if running is None:
            if len(self._asking) >= ASKED_AT_ONCE:
                raise Unanswered("too many questions at once")
            running = asyncio.create_task(self._ask_all(query, tcp=tcp))
            self._asking[key] = running
            running.add_done_callback(lambda task: self._asked(key, query, task))
        return for_asker(query, await asyncio.shield(running))

    def _asked(self, key: tuple[object, ...], query: Query, task: "asyncio.Task[bytes]") -> None:
        del self._asking[key]
        if task.cancelled() or task.exception() is not None:
            return
        message = task.result()
        with contextlib.suppress(Malformed):
            life = lifetime(query, message, most_s=KEPT_S, negative_s=KEPT_NEGATIVE_S)
            if life.seconds:
                now = self._monotonic()
                self._cache[key] = _Kept(now + life.seconds, now, message)
                while len(self._cache) > CACHED:
                    self._cache.popitem(last=False)

    async def _ask_all(self, query: Query, *, tcp: bool) -> bytes:
        """The first useful answer; of failures the last."""
        failure = b""
        for server in self._servers:
            self.asked += 1
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    message = await (_by_tcp if tcp else _by_udp)(server, query)
                if lifetime(query, message, most_s=0, negative_s=0).code in (NOERROR, NXDOMAIN):
                    return message
                failure = message
            except (TimeoutError, OSError, Malformed, asyncio.IncompleteReadError):
                continue
        if failure:
            return failure
        raise Unanswered("no resolver answers")

    async def close(self) -> None:
        """Give up what is being asked."""
        for task in list(self._asking.values()):
            task.cancel()


def _aged(query: Query, message: bytes, age_s: int) -> bytes:
    """The same with less time to live."""
    out = bytearray(message)
    place = HEADER_BYTES + len(query.wire)
    answers = struct.unpack_from("!H", message, 6)[0]
    for _ in range(answers):
        while out[place]:
            if out[place] >= 0xC0:
                place += 1
                break
            place += 1 + out[place]
        place += 1
        ttl, size = struct.unpack_from("!IH", out, place + 4)
        struct.pack_into("!I", out, place + 4, max(0, ttl - age_s))
        place += 10 + size
    return bytes(out)


class _Asker(asyncio.DatagramProtocol):
    """Waits for one answer on a socket of its own: id and port are both hard to guess."""

    def __init__(self, query: Query, number: int) -> None:
        self._query, self._number = query, number
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: object) -> None:
        if not self.answer.done() and is_answer(self._query, self._number, data):
            self.answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


async def _by_udp(server: Address, query: Query) -> bytes:
    number = secrets.randbelow(65536)
    loop = asyncio.get_running_loop()
    transport, asker = await loop.create_datagram_endpoint(
        lambda: _Asker(query, number), remote_addr=server
    )
    try:
        transport.sendto(question_to(query, number))
        return await asker.answer
    finally:
        transport.close()


async def _by_tcp(server: Address, query: Query) -> bytes:
    number = secrets.randbelow(65536)
    reader, writer = await asyncio.open_connection(*server, limit=MAX_BYTES + 2)
    try:
        message = question_to(query, number)
        writer.write(struct.pack("!H", len(message)) + message)
        await writer.drain()
        size = int.from_bytes(await reader.readexactly(2), "big")
        answer = await reader.readexactly(size)
    finally:
        writer.close()
    if not is_answer(query, number, answer):
        raise Malformed(2, "an answer to something else")
    return answer
