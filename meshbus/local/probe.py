"""Small HTTP questions to admin ports: of services over TCP, of Envoys over a socket file."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

MAX_ANSWER_BYTES = 1024 * 1024


async def ask_tcp(host: str, port: int, path: str, *, timeout_s: float = 2.0) -> tuple[int, str]:
    """(status, body) of GET; status 0 when nobody answers in time."""
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, port)
            return await _exchange(reader, writer, "GET", path)
    except (OSError, ValueError, TimeoutError):
        return 0, ""


async def ask_envoy(
    folder: Path, socket_name: str, path: str, *, method: str = "GET", timeout_s: float = 2.0
) -> tuple[int, str]:
    """(status, body) of an Envoy's admin socket in a folder; status 0 when nobody answers.

    The path of a socket is limited to 107 bytes, that of a home is not: the folder is opened and
    the socket named below its descriptor.
    """
    try:
        descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return 0, ""
    try:
        async with asyncio.timeout(timeout_s):
            path_below = f"/proc/self/fd/{descriptor}/{socket_name}"
            reader, writer = await asyncio.open_unix_connection(path_below)
            return await _exchange(reader, writer, method, path)
    except (OSError, ValueError, TimeoutError):
        return 0, ""
    finally:
        os.close(descriptor)


async def takes_connections(
    host: str,
    port: int,
    *,
    timeout_s: float = 1.0,
    make_socket: Callable[[int], socket.socket] = socket.socket,
) -> bool:
    """Somebody accepts TCP connections at an address. `make_socket` makes a socket of a family,
    and decides in which network."""
    try:
        with make_socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
            sock.setblocking(False)
            async with asyncio.timeout(timeout_s):
                await asyncio.get_running_loop().sock_connect(sock, (host, port))
    except (OSError, TimeoutError):
        return False
    return True


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, path: str
) -> tuple[int, str]:
    try:
        request = f"{method} {path} HTTP/1.1\r\nhost: meshbus\r\nconnection: close\r\n"
        writer.write(f"{request}content-length: 0\r\n\r\n".encode())
        await writer.drain()
        answer = await reader.read(MAX_ANSWER_BYTES)
        while not reader.at_eof() and len(answer) < MAX_ANSWER_BYTES:
            answer += await reader.read(MAX_ANSWER_BYTES)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1] if b" " in head else b"0"
    return int(status), body.decode(errors="replace")
