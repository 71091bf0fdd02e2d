"""A small threaded HTTP/1.1 server: routes in, one write per response out.

Address and port come from the environment: `MESHBUS_BIND_ADDRESS` (default 0.0.0.0) and `PORT`
(default 9080).
"""

import json
import os
import re
import signal
import socket
import socketserver
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

DEFAULT_PORT = 9080
MAX_BODY_BYTES = 64 * 1024


@dataclass(frozen=True)
class Request:
    """What a route is given. Header names are lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    arguments: tuple[str, ...]
    """Groups of the route's pattern."""


@dataclass(frozen=True)
class Response:
    """What a route answers."""

    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


Route = Callable[[Request], Response]
Routes = Sequence[tuple[str, str, Route]]
"""(method, pattern of the whole path, route); the first that matches answers."""


def json_response(value: Any, status: int = 200) -> Response:
    """A JSON document as the response."""
    return Response(status, "application/json", json.dumps(value).encode())


def html_response(text: str, status: int = 200) -> Response:
    """An HTML page as the response."""
    return Response(status, "text/html; charset=utf-8", text.encode())


def redirect(location: str, headers: Mapping[str, str]) -> Response:
    """302 to another path, with more headers (cookies)."""
    return Response(302, "text/plain", b"", {"location": location, **headers})


def answer(
    routes: Routes, method: str, target: str, headers: Mapping[str, str], body: bytes
) -> Response:
    """The response of the route that matches; 404 or 405 when none does."""
    url = urlsplit(target)
    known_path = False
    for route_method, pattern, route in routes:
        match = re.fullmatch(pattern, url.path)
        if match is None:
            continue
        known_path = True
        if route_method == method:
            return route(Request(method, url.path, url.query, headers, body, match.groups()))
    status = HTTPStatus.METHOD_NOT_ALLOWED if known_path else HTTPStatus.NOT_FOUND
    return json_response({"error": f"{status.phrase}: {method} {url.path}"}, status)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    routes: Routes = ()

    def _respond(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        if length > MAX_BODY_BYTES:
            self.close_connection = True
            response = json_response({"error": "request body too large"}, 413)
        else:
            headers = {name.lower(): value for name, value in self.headers.items()}
            response = answer(
                self.routes, self.command, self.path, headers, self.rfile.read(length)
            )
        self.send_response(response.status)
        self.send_header("content-type", response.content_type)
        self.send_header("content-length", str(len(response.body)))
        for name, value in response.headers.items():
            self.send_header(name, value)
        # Headers and body leave in one segment: two small writes wait for a delayed ACK.
        self._headers_buffer.append(b"\r\n" + response.body)  # type: ignore[attr-defined]
        self.flush_headers()

    do_GET = do_POST = do_PUT = do_DELETE = _respond  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Access logs are the mesh's."""


class _Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # Not HTTPServer's: it asks DNS for the machine's name, which may take long to fail.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]


def listen(routes: Routes, address: str, port: int) -> ThreadingHTTPServer:
    """A server bound to an address, not yet serving."""
    server = type("Server", (_Server,), {"address_family": _family(address)})
    handler = type("Handler", (_Handler,), {"routes": routes})
    bound: ThreadingHTTPServer = server((address, port), handler)
    return bound


def serve(name: str, routes: Routes) -> None:
    """Serve until SIGTERM or SIGINT. `name` is what the log calls the service."""
    address = os.environ.get("MESHBUS_BIND_ADDRESS", "0.0.0.0")  # noqa: S104 - a sample, as in a pod
    port = int(os.environ.get("PORT", DEFAULT_PORT))
    server = listen(routes, address, port)
    print(f"{name} {service_version()} listens on {address} port {port}", flush=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        # shutdown() waits for serve_forever, which runs in this very thread.
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever()
    server.server_close()


def service_version() -> str:
    """`SERVICE_VERSION`, default v1."""
    return os.environ.get("SERVICE_VERSION", "v1")


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
