"""Fetch a small document from a URL that a user wrote: only from where that is allowed.

Whoever may write a RequestAuthentication may name any URL. So a connection goes to an address that
was looked at, not to a name that may mean something else a moment later; what this machine and its
link alone can reach is not reached for others; and there are limits of size, time and redirects.
"""

import asyncio
import socket
import ssl
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urljoin

import httpcore

MAX_BYTES = 256 * 1024
MAX_REDIRECTS = 3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
Networks = Sequence[IPv4Network | IPv6Network]


class FetchError(Exception):
    """There is no document; the message says why, without what was in the answer."""


def networks(text: str) -> Networks:
    """Networks of a setting, separated by commas.

    Raises:
        ValueError: One is none.
    """
    return [ip_network(part.strip()) for part in text.split(",") if part.strip()]


def forbidden(address: str, allowed: Networks) -> bool:
    """Whether nobody but this machine or its link should be reached there."""
    one = ip_address(address)
    one = getattr(one, "ipv4_mapped", None) or one
    if any(one.version == network.version and one in network for network in allowed):
        return False
    return one.is_loopback or one.is_link_local or one.is_unspecified or one.is_multicast


class Reply(NamedTuple):
    """What a server answered, redirects followed."""

    status: int
    headers: Mapping[bytes, bytes]
    """By name in lower case."""
    body: bytes

    def header(self, name: str) -> str:
        """One header; empty if there is none."""
        return self.headers.get(name.encode(), b"").decode("latin-1")


class _Guarded(httpcore.AsyncNetworkBackend):
    """Connects to addresses that may be reached."""

    def __init__(self, allowed: Networks, setting: str) -> None:
        self._inner = httpcore.AnyIOBackend()
        self._allowed = allowed
        self._setting = setting

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                found = await asyncio.get_running_loop().getaddrinfo(
                    host, port, type=socket.SOCK_STREAM
                )
        except OSError as error:
            raise FetchError(f"{host} has no address: {error.strerror or error}") from error
        addresses = list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))
        reachable = [a for a in addresses if not forbidden(a.partition("%")[0], self._allowed)]
        if not reachable:
            raise FetchError(
                f"{host} is at {', '.join(addresses)}: loopback and link-local addresses are not "
                f"asked unless the setting `{self._setting}` of policy names them"
            )
        failure: Exception | None = None
        for address in reachable:
            try:
                return await self._inner.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        assert failure is not None
        raise failure

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise FetchError("a Unix socket is not asked")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Fetcher:
    """GET over HTTPS with the system's roots, and more of one's own."""

    def __init__(
        self, allowed: Networks, roots: Path | None = None, setting: str = "jwks_allow"
    ) -> None:
        """
        Args:
            allowed: Networks that may be asked although they are loopback or link-local.
            roots: PEM file of further authorities.
            setting: The one that says what is allowed, for messages.
        Raises:
            OSError, ssl.SSLError: The file cannot be used.
        """
        self._backend = _Guarded(allowed, setting)
        self._tls = ssl.create_default_context()
        if roots is not None:
            self._tls.load_verify_locations(cafile=str(roots))

    async def get(self, url: str, timeout_s: float) -> bytes:
        """The document.

        Raises:
            FetchError: There is none.
        """
        reply = await self.ask(url, timeout_s)
        if reply.status != 200:
            raise FetchError(f"{_shown(url)} answered {reply.status}")
        return reply.body

    async def ask(
        self,
        url: str,
        timeout_s: float,
        *,
        headers: Sequence[tuple[str, str]] = (("accept", "application/json"),),
        max_bytes: int = MAX_BYTES,
    ) -> Reply:
        """What a server answers, also when that is no document. Credentials are sent to the origin
        of the URL alone.

        Raises:
            FetchError: There is no answer, or it is too long.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self._follow(url, timeout_s, headers, max_bytes)
        except TimeoutError:
            raise FetchError(f"no answer within {timeout_s:g} s") from None
        except ssl.SSLError as error:
            raise FetchError(f"TLS: {error.reason or error}") from error
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            raise FetchError(str(error) or type(error).__name__) from error
        except (httpcore.UnsupportedProtocol, UnicodeError, ValueError) as error:
            raise FetchError(f"not a URL that can be asked: {error}") from error

    async def _follow(
        self, url: str, timeout_s: float, headers: Sequence[tuple[str, str]], max_bytes: int
    ) -> Reply:
        origin = _origin(url)
        pool = httpcore.AsyncConnectionPool(
            ssl_context=self._tls, network_backend=self._backend, max_connections=2
        )
        async with pool:
            for _ in range(MAX_REDIRECTS + 1):
                sent = [
                    (name, value)
                    for name, value in headers
                    if name != "authorization" or _origin(url) == origin
                ]
                reply = await self._ask(pool, url, timeout_s, sent, max_bytes)
                if reply.status not in _REDIRECTS:
                    return reply
                url = _redirected(url, reply.header("location"))
        raise FetchError(f"more than {MAX_REDIRECTS} redirects")

    async def _ask(
        self,
        pool: httpcore.AsyncConnectionPool,
        url: str,
        timeout_s: float,
        more: Sequence[tuple[str, str]],
        max_bytes: int,
    ) -> Reply:
        limits = dict.fromkeys(("connect", "read", "write", "pool"), timeout_s)
        headers = [
            ("host", _host(url)),
            *more,
            ("accept-encoding", "identity"),
            ("user-agent", "meshbus"),
        ]
        body = bytearray()
        async with pool.stream("GET", url, headers=headers, extensions={"timeout": limits}) as got:
            async for part in got.aiter_stream():
                body += part
                if len(body) > max_bytes:
                    raise FetchError(f"{_shown(url)} answers with more than {max_bytes} bytes")
            named = {name.lower(): value for name, value in got.headers}
            return Reply(got.status, named, bytes(body))


def _host(url: str) -> str:
    parsed = httpcore.URL(url)
    host = parsed.host.decode()
    host = f"[{host}]" if ":" in host else host
    return host if parsed.port is None else f"{host}:{parsed.port}"


def _origin(url: str) -> tuple[str, str]:
    return url.partition("://")[0], _host(url)


def _shown(url: str) -> str:
    return url.partition("?")[0]


def _redirected(url: str, location: str) -> str:
    target = urljoin(url, location)
    if not location or not target.startswith(("https://", "http://")):
        raise FetchError("a redirect to nowhere")
    if url.startswith("https://") and not target.startswith("https://"):
        raise FetchError("a redirect from HTTPS to plain text is not followed")
    return target
