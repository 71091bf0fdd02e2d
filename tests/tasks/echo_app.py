"""An application that says what it got: `echo_app.py KIND:PORT...`, KIND of http, https, tcp, grpc.

HTTP answers a JSON document of the request. Paths ask for more: `/delay/SECONDS`, `/status/CODE`,
`/flaky/CODE/TIMES` (the first TIMES requests of an `x-id` get CODE), `/count` (requests with this
`x-id` so far). A WebSocket is echoed. TCP echoes each line behind the version.
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import socket
import ssl
import sys
from collections import Counter

VERSION = os.environ.get("VERSION", "")
INSTANCE = os.environ.get("POD_NAME", "")
seen: Counter[str] = Counter()
flaky: Counter[str] = Counter()


async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One HTTP/1.1 connection."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, path, _ = head[0].split(" ", 2)
            pairs = [line.partition(": ")[::2] for line in head[1:] if line]
            headers = {name.lower(): value for name, value in pairs}
            if headers.get("upgrade", "").lower() == "websocket":
                await websocket(headers, reader, writer)
                break
            body = await read_body(headers, reader)
            status, document = await answer(method, path, headers, body)
            document["names"] = [name for name, _ in pairs]
            empty = method == "HEAD" or status == 204
            payload = b"" if empty else json.dumps(document).encode()
            lines = [
                f"HTTP/1.1 {status} X",
                "content-type: application/json",
                f"x-version: {VERSION}",
            ]
            if status != 204:
                lines.append(f"content-length: {len(payload)}")
            writer.write("\r\n".join([*lines, "", ""]).encode() + payload)
            await writer.drain()
    writer.close()


async def read_body(headers: dict[str, str], reader: asyncio.StreamReader) -> bytes:
    """The body of a request."""
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(int(headers.get("content-length") or 0))
    body = b""
    while True:
        size = int((await reader.readuntil(b"\r\n")).strip(), 16)
        body += (await reader.readexactly(size + 2))[:-2]
        if not size:
            return body


async def answer(
    method: str, path: str, headers: dict[str, str], body: bytes
) -> tuple[int, dict[str, object]]:
    """Status and document."""
    words = path.partition("?")[0].strip("/").split("/")
    identity = headers.get("x-id", "")
    status = 200
    if words[0] == "count":
        return 200, {"count": seen[identity]}
    seen[identity] += 1
    if words[0] == "delay":
        await asyncio.sleep(float(words[1]))
    elif words[0] == "status":
        status = int(words[1])
    elif words[0] == "flaky":
        flaky[identity] += 1
        if flaky[identity] <= int(words[2]):
            status = int(words[1])
    return status, {
        "version": VERSION,
        "instance": INSTANCE,
        "method": method,
        "path": path,
        "headers": headers,
        "body": body.decode(errors="replace"),
    }


async def websocket(
    headers: dict[str, str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """RFC 6455, short unfragmented text frames."""
    guid = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    digest = hashlib.sha1((headers["sec-websocket-key"] + guid).encode()).digest()
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "upgrade: websocket",
        "connection: Upgrade",
        f"sec-websocket-accept: {base64.b64encode(digest).decode()}",
    ]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    while True:
        first, second = await reader.readexactly(2)
        mask = await reader.readexactly(4)
        data = await reader.readexactly(second & 0x7F)
        text = bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))
        if first & 0x0F == 8:
            break
        reply = f"{VERSION} ".encode() + text
        writer.write(bytes([0x81, len(reply)]) + reply)
        await writer.drain()


async def tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Lines back, behind the version."""
    with contextlib.suppress(ConnectionError):
        while line := await reader.readline():
            writer.write(f"{VERSION} ".encode() + line)
            await writer.drain()
    writer.close()


async def grpc(port: int) -> None:
    """`/echo.Echo/Say` answers with the version."""
    import grpc as library
    from grpc import aio

    async def say(request: bytes, context: "aio.ServicerContext[bytes, bytes]") -> bytes:
        if request == b"fail":
            await context.abort(library.StatusCode.UNAVAILABLE, "as asked")
        return f"{VERSION} ".encode() + request

    handler = library.method_handlers_generic_handler(
        "echo.Echo", {"Say": library.unary_unary_rpc_method_handler(say)}
    )
    server = aio.server()
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"[::]:{port}")
    await server.start()
    await server.wait_for_termination()


def listening(port: int) -> socket.socket:
    """Both families where there are both."""
    bind = os.environ.get("MESHBUS_BIND_ADDRESS", "::")
    if ":" not in bind:
        return socket.create_server((bind, port), backlog=512)
    return socket.create_server(
        (bind, port), family=socket.AF_INET6, backlog=512, dualstack_ipv6=bind == "::"
    )


async def main() -> None:
    """Everything that was asked for, until the end."""
    jobs = []
    for argument in sys.argv[1:]:
        kind, _, number = argument.partition(":")
        port = int(number)
        if kind == "grpc":
            jobs.append(grpc(port))
            continue
        context = None
        if kind == "https":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(os.environ["CERT"], os.environ["KEY"])
            if os.environ.get("CLIENT_CA"):
                context.load_verify_locations(os.environ["CLIENT_CA"])
                context.verify_mode = ssl.CERT_REQUIRED
        handler = tcp if kind == "tcp" else http
        server = await asyncio.start_server(handler, sock=listening(port), ssl=context)
        jobs.append(server.serve_forever())
    if not jobs:
        await asyncio.Event().wait()
    await asyncio.gather(*jobs)


asyncio.run(main())
