"""HTTP servers of a service: Starlette apps on uvicorn, on a socket that is bound beforehand."""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp


class AddressInUseError(Exception):
    """A port that somebody else listens on; the message says what to do."""


def split_address(address: str) -> tuple[str, int]:
    """(host, port) of `HOST:PORT` or `[IPV6]:PORT`.

    Raises:
        ValueError: Not an address.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"not an address HOST:PORT: {address!r}")
    return host.strip("[]"), int(port)


def bind(address: str, setting: str = "") -> socket.socket:
    """A listening TCP socket; port 0 lets the system choose.

    Raises:
        AddressInUseError: Names the address and the setting.
        ValueError: Not an address.
    """
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only where the protocol is named; without it answers wait 40 ms for
    # the client's delayed ACK.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(1024)
    except OSError as error:
        sock.close()
        where = f" (setting {setting})" if setting else ""
        raise AddressInUseError(
            f"cannot listen on {address}{where}: {error.strerror}; "
            "choose another port there, or 0 for any free one"
        ) from error
    sock.setblocking(False)
    return sock


def bound_address(sock: socket.socket) -> str:
    """`HOST:PORT` of a bound socket."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """An address that only this machine reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the process, not to one of its servers."""
        yield


async def serve_http(
    app: ASGIApp,
    sock: socket.socket,
    *,
    cert: Path | None = None,
    key: Path | None = None,
    tls: ssl.SSLContext | None = None,
    stop_s: float = 2.0,
) -> None:
    """Serve until cancelled; open requests get `stop_s` seconds to end.

    Args:
        tls: Instead of `cert` and `key`: its certificate may change while it is served.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        ssl_certfile=cert,
        ssl_keyfile=key,
        timeout_graceful_shutdown=max(1, round(stop_s)),
        timeout_keep_alive=75,
        h11_max_incomplete_event_size=64 * 1024,
        limit_concurrency=2000,
    )
    if tls is not None:
        config.load()
        config.ssl = tls
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError, TimeoutError):
            async with asyncio.timeout(stop_s + 1):
                await task
        raise
