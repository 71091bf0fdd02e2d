"""One request over HTTP/3."""

import asyncio
from typing import NamedTuple

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, QuicEvent

SILENCE_S = 5.0
"""A gateway does not answer at all to names that it has no certificate for."""


class Http3Answer(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes


class _Client(QuicConnectionProtocol):
    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._http = H3Connection(self._quic)
        self._headers: dict[str, str] = {}
        self._body = b""
        self._answer: asyncio.Future[Http3Answer] | None = None
        """Of the request that was made; a connection that ends before one tells its maker."""

    async def get(self, host: str, path: str) -> Http3Answer:
        self._answer = asyncio.get_running_loop().create_future()
        stream = self._quic.get_next_available_stream_id()
        wanted = {":method": "GET", ":scheme": "https", ":authority": host, ":path": path}
        headers = [(name.encode(), value.encode()) for name, value in wanted.items()]
        self._http.send_headers(stream, headers, end_stream=True)
        self.transmit()
        return await self._answer

    def quic_event_received(self, event: QuicEvent) -> None:
        answer = self._answer
        if isinstance(event, ConnectionTerminated) and answer is not None and not answer.done():
            answer.set_exception(ConnectionError(event.reason_phrase))
        for found in self._http.handle_event(event):
            self._take(found)

    def _take(self, event: H3Event) -> None:
        if isinstance(event, HeadersReceived):
            self._headers.update((n.decode(), v.decode()) for n, v in event.headers)
        if isinstance(event, DataReceived):
            self._body += event.data
        ended = isinstance(event, HeadersReceived | DataReceived) and event.stream_ended
        if ended and self._answer is not None and not self._answer.done():
            status = int(self._headers[":status"])
            self._answer.set_result(Http3Answer(status, self._headers, self._body))


def http3_get(address: str, port: int, host: str, path: str, roots: str) -> Http3Answer:
    """GET of `https://HOST/PATH` at an address.

    Raises:
        ConnectionError: Nobody speaks HTTP/3 for that name there.
    """
    wanted = QuicConfiguration(
        is_client=True, alpn_protocols=H3_ALPN, server_name=host, idle_timeout=SILENCE_S
    )
    wanted.load_verify_locations(cafile=roots)

    async def ask() -> Http3Answer:
        async with connect(
            address, port, configuration=wanted, create_protocol=_Client
        ) as connection:
            assert isinstance(connection, _Client)
            return await connection.get(host, path)

    return asyncio.run(ask())
