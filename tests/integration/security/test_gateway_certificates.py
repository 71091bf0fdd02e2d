"""Certificates of gateways on a real Envoy: several for a host, clients that show one and those
that do not, revocation, rotation; and TLS that a gateway begins itself."""

import asyncio
import base64
import contextlib
import json
import ssl
from typing import Any

import msgspec
import pytest
from certificates import Authority, Pair
from gateway_mesh import CLUSTER, config, free_port, loopback, workload

from meshbus.model.keys import Key
from meshbus.model.requests import CREDENTIAL, CredentialReply, CredentialRequest
from meshbus.model.rows import ConfigObject, Endpoint, Service, ServicePort
from meshbus.runtime.calls import CallError, answer
from meshbus.runtime.sealed import seal

pytestmark = [pytest.mark.real, pytest.mark.slow]


class Secrets:
    """Contents of Secrets, and their rows."""

    def __init__(self, mesh: Any) -> None:
        self._mesh = mesh
        self._data: dict[str, dict[str, bytes]] = {}
        self._generation = 0

    async def serve(self) -> None:
        await answer(self._mesh.buses["config"], CREDENTIAL, CredentialRequest, self._answer)

    async def _answer(self, request: CredentialRequest) -> CredentialReply:
        if request.name not in self._data:
            raise CallError("not-found", request.name)
        data = {n: base64.b64encode(d).decode() for n, d in self._data[request.name].items()}
        return CredentialReply(seal(request.public_key, json.dumps(data).encode()))

    def row(self, name: str, **data: bytes) -> dict[Key, Any]:
        """`tls_crt` stands for `tls.crt`."""
        self._data[name] = {field.replace("_", "."): content for field, content in data.items()}
        self._generation += 1
        row = ConfigObject("v1", "Secret", "default", name, name, self._generation, 0.0)
        return {Key(CLUSTER, "cfg", "secrets", "default", name): row}


def pair_of(pair: Pair) -> dict[str, bytes]:
    return {"tls_crt": pair.certificate, "tls_key": pair.key}


def gateway(*servers: dict[str, Any]) -> Any:
    return config(
        "Gateway", "gateways", "edge", {"selector": {"app": "edge"}, "servers": list(servers)}
    )


def server(port: int, host: str, **tls: Any) -> dict[str, Any]:
    name = host.partition(".")[0]
    return {
        "port": {"number": port, "name": name, "protocol": "HTTPS"},
        "hosts": [host],
        "tls": tls,
    }


ROUTE = config(
    "VirtualService",
    "virtualservices",
    "all",
    {
        "hosts": ["*"],
        "gateways": ["edge"],
        "http": [{"directResponse": {"status": 200, "body": {"string": "hello"}}}],
    },
)


def edge(address: str) -> Any:
    rows = workload("edge", address)
    ((key, row),) = rows.items()
    return {key: msgspec.structs.replace(row, gateway=True)}


class Answer:
    """What became of a request over TLS."""

    def __init__(self, status: int, serial: int) -> None:
        self.status, self.serial = status, serial


async def ask(
    address: str,
    port: int,
    name: str,
    root: bytes,
    *,
    client: tuple[str, str] | None = None,
    ciphers: str = "",
) -> Answer | None:
    """None: the handshake (or the answer, where TLS 1.3 refuses after it) failed."""
    context = ssl.create_default_context(cadata=root.decode())
    if client:
        context.load_cert_chain(*client)
    if ciphers:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(ciphers)
    try:
        reader, writer = await asyncio.open_connection(
            address, port, ssl=context, server_hostname=name
        )
    except (ssl.SSLError, ConnectionError):
        return None
    shown = writer.get_extra_info("ssl_object").getpeercert()
    writer.write(f"GET / HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n".encode())
    try:
        status = (await reader.readline()).split()
    except (ssl.SSLError, ConnectionError):
        return None
    finally:
        writer.close()
    return Answer(int(status[1]), int(shown["serialNumber"], 16)) if status else None


async def test_certificates_of_a_gateway(mesh, tmp_path):
    secrets, ca, clients = Secrets(mesh), Authority("web"), Authority("clients")
    await secrets.serve()
    address = loopback()
    port = free_port(address)
    rsa, ec = ca.issue("two.example", rsa_key=True), ca.issue("two.example")
    one, good, bad = ca.issue("one.example"), clients.issue("good"), clients.issue("bad")
    stranger = Authority("clients").issue("stranger")
    files = {
        name: pair.files(tmp_path, name)
        for name, pair in (("good", good), ("bad", bad), ("stranger", stranger))
    }
    revoked = clients.revoke(bad.serial)
    await mesh.write(
        edge(address),
        ROUTE,
        secrets.row("rsa", **pair_of(rsa)),
        secrets.row("ec", **pair_of(ec)),
        secrets.row("one", **pair_of(one), ca_crt=clients.root),
        secrets.row("maybe", cert=one.certificate, key=one.key),
        secrets.row("maybe-cacert", cacert=clients.root, crl=revoked),
        gateway(
            server(port, "two.example", mode="SIMPLE", credentialNames=["rsa", "ec"]),
            server(port, "one.example", mode="MUTUAL", credentialName="one"),
            server(port, "maybe.example", mode="OPTIONAL_MUTUAL", credentialName="maybe"),
        ),
    )

    async def seen(name: str, **options: Any) -> Answer | None:
        return await ask(address, port, name, ca.root, **options)

    async with mesh.envoy("edge", address, kind="router") as envoy:
        await mesh.until(envoy.ready, "the gateway's Envoy is ready")
        answered = await mesh.until(lambda: seen("two.example"), "a request is answered")
        assert answered.status == 200
        # Each client is shown the certificate whose key it can check.
        by_rsa = await seen("two.example", ciphers="ECDHE-RSA-AES128-GCM-SHA256")
        by_ec = await seen("two.example", ciphers="ECDHE-ECDSA-AES128-GCM-SHA256")
        assert by_rsa
        assert by_ec
        assert (by_rsa.serial, by_ec.serial) == (rsa.serial, ec.serial)

        assert (await seen("one.example", client=files["good"])) is not None
        assert (await seen("one.example")) is None
        assert (await seen("one.example", client=files["stranger"])) is None
        assert (await seen("one.example", client=files["bad"])) is not None, "not revoked yet"
        assert await seen("maybe.example") is None, "its certificate is for one.example alone"

        listener = await envoy.stat("listener_manager.listener_create_success")
        modified = await envoy.stat("listener_manager.listener_modified")
        renewed = ca.issue("maybe.example")
        await mesh.write(
            secrets.row("maybe", cert=renewed.certificate, key=renewed.key),
            secrets.row("one", **pair_of(one), ca_crt=clients.root, ca_crl=revoked),
        )

        async def takes_the_new_one() -> bool:
            found = await seen("maybe.example")
            return found is not None and found.serial == renewed.serial

        async def refuses_the_revoked() -> bool:
            return await seen("one.example", client=files["bad"]) is None

        await mesh.until(takes_the_new_one, "the next certificate is shown")
        await mesh.until(refuses_the_revoked, "a revoked client is refused")
        assert await seen("one.example", client=files["good"])
        assert await seen("maybe.example", client=files["good"])
        assert await seen("maybe.example", client=files["bad"]) is None, "optional, not arbitrary"
        assert await seen("maybe.example", client=files["stranger"]) is None
        assert await envoy.stat("listener_manager.listener_create_success") == listener
        assert await envoy.stat("listener_manager.listener_modified") == modified


async def test_a_gateway_begins_mutual_tls_with_a_secret(mesh, tmp_path):
    secrets, ca, clients = Secrets(mesh), Authority("bank"), Authority("clients")
    await secrets.serve()
    address, outside = loopback(), loopback()
    port, bank_port = free_port(address), free_port(outside)
    cert, key = ca.issue("bank.example").files(tmp_path, "bank")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=clients.root.decode())
    context.load_cert_chain(cert, key)
    context.verify_mode = ssl.CERT_REQUIRED
    shown: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("ssl_object").getpeercert()
        shown.append(int(peer["serialNumber"], 16))
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    bank = Service(
        host="bank.example",
        namespace="default",
        name="bank",
        origin="serviceentry",
        ports=[ServicePort("http", 80, "HTTP")],
        external=True,
        resolution="DNS",
        dns_endpoints=[Endpoint(addresses=[outside], ports={"http": bank_port})],
    )
    rule = {
        "host": "bank.example",
        "trafficPolicy": {
            "tls": {
                "mode": "MUTUAL",
                "credentialName": "client",
                "sni": "bank.example",
                "subjectAltNames": ["bank.example"],
            }
        },
    }
    route = {
        "hosts": ["*"],
        "gateways": ["edge"],
        "http": [{"route": [{"destination": {"host": "bank.example"}}]}],
    }
    plain = {"port": {"number": port, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}
    await mesh.write(
        edge(address),
        {Key(CLUSTER, "reg", "services", "default", "bank.example"): bank},
        config("DestinationRule", "destinationrules", "bank", rule),
        config("VirtualService", "virtualservices", "bank", route),
        gateway(plain),
    )

    async def status() -> int:
        reader, writer = await asyncio.open_connection(address, port)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        line = (await reader.readline()).split()
        writer.close()
        return int(line[1]) if line else 0

    listening = await asyncio.start_server(serve, outside, bank_port, ssl=context)
    async with listening, mesh.envoy("edge", address, kind="router") as envoy:
        # Without the Secret the rest works, and this fails.
        await mesh.until(envoy.ready, "the gateway's Envoy is ready")

        async def fails() -> bool:
            return await status() == 503

        await mesh.until(fails, "without its certificate it cannot call")
        one = clients.issue("one")
        await mesh.write(secrets.row("client", **pair_of(one), ca_crt=ca.root))

        async def answered() -> bool:
            return await status() == 200

        await mesh.until(answered, "the bank answers")
        assert shown[-1] == one.serial
        two = clients.issue("two")
        await mesh.write(secrets.row("client", **pair_of(two), ca_crt=ca.root))

        async def shows_the_new_one() -> bool:
            return await status() == 200 and shown[-1] == two.serial

        await mesh.until(shows_the_new_one, "the next certificate is shown")
        # A bank that others have signed is none.
        await mesh.write(secrets.row("client", **pair_of(two), ca_crt=Authority("bank").root))
        await mesh.until(fails, "its certificate is checked")
