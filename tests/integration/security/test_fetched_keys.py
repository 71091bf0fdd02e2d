"""Keys that the mesh fetches: real HTTPS, a real Envoy, and an issuer that goes away."""

import asyncio
import contextlib
import datetime
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from gateway_mesh import CLUSTER, config
from meshbus_policy.service import PolicyService, PolicySettings
from test_security_envoys import Issuer

from meshbus.model.key_sources import key_set_key
from meshbus.model.rows import KeySet
from meshbus.runtime.process import make_context

pytestmark = [pytest.mark.real, pytest.mark.slow]


def self_signed(folder: Path) -> ssl.SSLContext:
    """A certificate for `localhost`, in `folder/server.pem`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "server.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "server.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    return context


class KeyServer:
    """Answers documents by path; 503 for others."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self.tls = tls
        self.documents: dict[str, str] = {}
        self.asked: list[str] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ")[1].decode()
            self.asked.append(path)
            body = self.documents.get(path)
            status = "200 OK" if body is not None else "503 Away"
            text = body or ""
            head_out = f"HTTP/1.1 {status}\r\ncontent-length: {len(text)}\r\nconnection: close"
            writer.write(f"{head_out}\r\n\r\n{text}".encode())
            await writer.drain()
        writer.close()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=self.tls)
        self.url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
        try:
            yield
        finally:
            server.close()


@contextlib.asynccontextmanager
async def policy_service(mesh: Any, roots: Path | None) -> AsyncIterator[Any]:
    settings = PolicySettings(
        listen="127.0.0.1:0",
        jwks_allow="127.0.0.0/8,::1/128",
        jwks_refresh_s=1.0,
        jwks_roots=str(roots) if roots else "",
    )
    context = make_context(PolicyService, settings, mesh.process, await mesh.bus_for("policy"))
    task = asyncio.create_task(PolicyService(context).run())
    try:
        yield context
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await context.bus.close()


def authentication(*rules: dict[str, Any]) -> Any:
    spec = {"jwtRules": list(rules)}
    return config("RequestAuthentication", "requestauthentications", "jwt", spec)


async def test_keys_are_fetched_renewed_and_kept(served, tmp_path):
    mesh, pair = served.mesh, served.pair
    server, issuer, successor = KeyServer(self_signed(tmp_path)), Issuer(), Issuer()

    def row(source: str) -> KeySet | None:
        return mesh.mirror.world.get(key_set_key(CLUSTER, source))

    async with server.running():
        source = f"{server.url}/keys"
        rule = {"issuer": "https://issuer.example", "jwksUri": source}
        async with policy_service(mesh, tmp_path / "server.pem"):
            await served.applied(authentication(rule))
            await mesh.until(lambda: row(source), "the attempt is recorded")
            assert "503" in row(source).error
            assert await pair.status() == 200, "a missing token passes all the same"
            assert await pair.status(**issuer.bearer()) == 401, "no keys: no token is good"

            server.documents["/keys"] = issuer.jwks

            async def good() -> bool:
                return await pair.status(**issuer.bearer()) == 200

            await mesh.until(good, "keys have come")
            assert row(source).error == ""

            # The issuer changes its keys.
            server.documents["/keys"] = successor.jwks

            async def changed() -> bool:
                return await pair.status(**successor.bearer()) == 200

            await mesh.until(changed, "the new keys are used")
            assert await pair.status(**issuer.bearer()) == 401

            # It goes away; what was good stays so.
            del server.documents["/keys"]
            await mesh.until(lambda: row(source).error, "the failure shows")
            assert row(source).failing_since >= row(source).fetched > 0
            assert await pair.status(**successor.bearer()) == 200

        # Also for who comes later, while nobody can fetch anything.
        kept = row(source)
        assert kept.jwks
        async with policy_service(mesh, None):
            await mesh.until(lambda: row(source) != kept, "somebody tries again")
            assert row(source).jwks == kept.jwks
            assert "certificate" in row(source).error.lower(), (
                "an unknown authority is not believed"
            )
            assert await pair.status(**successor.bearer()) == 200
            await served.applied(dict.fromkeys(authentication()))
            await mesh.until(lambda: row(source) is None, "nobody needs them any more")


async def test_openid_discovery(served, tmp_path):
    mesh, pair = served.mesh, served.pair
    server, issuer = KeyServer(self_signed(tmp_path)), Issuer()
    async with server.running(), policy_service(mesh, tmp_path / "server.pem"):
        server.documents["/.well-known/openid-configuration"] = json.dumps(
            {"issuer": server.url, "jwks_uri": f"{server.url}/jwks"}
        )
        server.documents["/jwks"] = issuer.jwks
        await served.applied(authentication({"issuer": server.url}))

        async def good() -> bool:
            return await pair.status(**issuer.bearer(iss=server.url)) == 200

        await mesh.until(good, "keys have come by way of the issuer")
        assert await pair.status(**issuer.bearer(iss="https://issuer.example")) == 401
