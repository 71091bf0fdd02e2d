"""The bundle endpoint: this trust domain's roots, for other meshes.

Over TLS, with an identity of the ca (`https_spiffe`) or a certificate of the web (`https_web`).
Public material; anybody may ask.
"""

import asyncio
import contextlib
import os
import ssl
from collections.abc import Callable
from pathlib import Path

import structlog

from meshbus.runtime.proxy_server import host_and_port
from meshbus.runtime.settings import SettingsError

MAX_HEAD_BYTES = 8192
MAX_CONNECTIONS = 64
_READ_S = 5.0

log = structlog.get_logger("ca")


class BundleServer:
    """`start` it; `show` gives it what it proves itself with."""

    def __init__(self, document: Callable[[], bytes | None]) -> None:
        """`document`: the bundle now; None: there is none yet."""
        self._document = document
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._server: asyncio.Server | None = None
        self._open = 0

    def show(self, chain_pem: bytes, key_pem: bytes) -> None:
        """The certificate for connections from now on. The key goes through memory alone: OpenSSL
        reads files only.

        Raises:
            ssl.SSLError: They do not belong together.
        """
        handle = os.memfd_create("bundle-endpoint", os.MFD_CLOEXEC)
        try:
            os.write(handle, key_pem + b"\n" + chain_pem)
            self._context.load_cert_chain(f"/proc/self/fd/{handle}")
        finally:
            os.close(handle)

    def show_files(self, certificate: Path, key: Path) -> None:
        """The same, from files of a certificate of the web.

        Raises:
            SettingsError: They cannot be used.
        """
        try:
            self._context.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"MESHBUS_CA_BUNDLE_CERTIFICATE: {error}") from error

    async def start(self, listen: str) -> int:
        """Listen; gives the port.

        Raises:
            SettingsError: The address cannot be used.
        """
        host, port = host_and_port(listen, "MESHBUS_CA_BUNDLE_LISTEN")
        try:
            self._server = await asyncio.start_server(
                self._serve, host, port, ssl=self._context, limit=MAX_HEAD_BYTES
            )
        except OSError as error:
            raise SettingsError(f"MESHBUS_CA_BUNDLE_LISTEN: {listen}: {error}") from error
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Take no more questions."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= MAX_CONNECTIONS:
                async with asyncio.timeout(_READ_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._answer(head.split(b" ", 1)[0]))
                    await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            log.debug("a question for the bundle broke off")
        finally:
            self._open -= 1
            with contextlib.suppress(OSError):
                writer.close()

    def _answer(self, method: bytes) -> bytes:
        document = self._document()
        if method not in (b"GET", b"HEAD"):
            status, body = "405 Method Not Allowed", b""
        elif document is None:
            status, body = "503 Service Unavailable", b""
        else:
            status, body = "200 OK", document
        head = (
            f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        return head.encode() + (b"" if method == b"HEAD" else body)
