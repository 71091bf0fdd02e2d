"""A stand-in for Vault's PKI engine: its `sign` endpoint as the API documentation has it (roles'
checks of names, ttl, errors, wrong tokens), signing with a CA of its own. It is not Vault."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from meshbus_ca.issue import Names, Signer, issue_leaf, pem_of, public_key_of

TOKEN = "s.1234"


class Vault:
    """What it was asked, and how it answers."""

    def __init__(self, root: Signer, middle: Signer, now: float) -> None:
        self.root, self.middle, self._now = root, middle, now
        self.asked: list[dict[str, Any]] = []
        self.port = 0
        self.wrong = ""
        """A name that it puts in place of what it is asked for."""

    def answer(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("x-vault-token") != TOKEN:
            return 403, {"errors": ["permission denied"]}
        if path != "/v1/pki_mesh/sign/workloads":
            return 404, {"errors": []}
        question = json.loads(body)
        self.asked.append(question)
        if not question["uri_sans"].startswith("spiffe://cluster.local/"):
            return 400, {"errors": ["URI Subject Alternative Name not allowed by this role"]}
        names = Names(self.wrong or question["uri_sans"])
        ttl_s = int(question["ttl"].removesuffix("s"))
        leaf = issue_leaf(self.middle, public_key_of(question["csr"]), names, ttl_s, self._now)
        chain = [self.middle.pem, pem_of(self.root.certificate)]
        data = {
            "certificate": pem_of(leaf),
            "issuing_ca": self.middle.pem,
            "ca_chain": chain,
            "serial_number": f"{leaf.serial_number:x}",
            "expiration": int(leaf.not_valid_after_utc.timestamp()),
        }
        return 200, {"request_id": "x", "lease_duration": 0, "data": data, "warnings": None}


@contextlib.asynccontextmanager
async def vault(root: Signer, middle: Signer, now: float) -> AsyncIterator[Vault]:
    running = Vault(root, middle, now)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                headers["x-vault-token"] = next(
                    (h.split(": ", 1)[1] for h in head if h.lower().startswith("x-vault-token")), ""
                )
                status, document = running.answer(head[0].split(" ")[1], headers, body)
                data = json.dumps(document).encode()
                writer.write(
                    b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%s" % (status, len(data), data)
                )
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    running.port = server.sockets[0].getsockname()[1]
    try:
        yield running
    finally:
        server.close()
