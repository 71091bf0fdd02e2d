"""A revoked certificate is refused by real Envoys, and nobody else is."""

import asyncio
import contextlib
import datetime
import ssl
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from ca_mesh import CaMesh, made, plug
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from gateway_mesh import CLUSTER, by, config, envoy_binary, host, mesh_on
from meshbus_ca.issue import Signer, make_intermediate, make_root
from security_mesh import listener_stat
from sidecar_pair import Pair, serving

from meshbus.bus.interface import CERTS, BusError
from meshbus.model.keys import Key
from meshbus.model.requests import (
    REVOKE,
    RevokeReply,
    RevokeRequest,
    SignReply,
    SignRequest,
    sign_subject,
)
from meshbus.model.rows import MeshConfigRow
from meshbus.runtime.calls import CallError, call
from meshbus.runtime.sealed import seal

pytestmark = pytest.mark.real
THIEF = "spiffe://cluster.local/ns/default/sa/thief"
CLIENT = "spiffe://cluster.local/ns/default/sa/client"
SERVER = "spiffe://cluster.local/ns/default/sa/server"
by_family_and_federation = pytest.mark.parametrize(
    ("family", "federated"),
    [(4, False), (6, True)],
    ids=["ipv4", "ipv6-federated"],
    indirect=["family"],
)


@pytest_asyncio.fixture
async def mesh(family, bus_for, tmp_path):
    envoy_binary()
    async with mesh_on(bus_for, tmp_path, CaMesh) as running:
        running.ca_settings = {"leaf_ttl_s": 3600, "require_proof": True}
        await running.start()
        yield running


async def revoke(mesh: CaMesh, **question: Any) -> RevokeReply:
    request = RevokeRequest(by="ann", **question)
    return await call(mesh.buses["config"], REVOKE, request, RevokeReply, timeout=6)


class Stolen:
    """A certificate of a workload in somebody's hands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())

    async def get(self, mesh: CaMesh, name: str) -> None:
        csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        signed = csr.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        token = await mesh.token(name)
        request = SignRequest(
            signed.decode(),
            "xds-gateway",
            f"spiffe://cluster.local/ns/default/sa/{name}",
            proof=seal(mesh.trust.proof_key, token.encode()),
            pod="stolen",
        )
        reply = await call(
            mesh.buses["xds-gateway"], sign_subject("xds-gateway"), request, SignReply, timeout=5
        )
        key = self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        (self.folder / "stolen.pem").write_bytes(key + reply.chain_pem.encode())
        (self.folder / "root.pem").write_text(reply.roots_pem)
        self.serial = f"{x509.load_pem_x509_certificate(reply.chain_pem.encode()).serial_number:x}"

    async def enters(self, address: str, port: int) -> bool:
        """An Envoy of the mesh takes a new connection with it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.load_cert_chain(self.folder / "stolen.pem")
        context.set_alpn_protocols(["istio-http/1.1"])
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            reader, writer = await asyncio.open_connection(address, port, ssl=context)
            try:
                writer.write(b"GET / HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n")
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
        return False


@pytest.mark.slow
@by_family_and_federation
async def test_a_revoked_certificate_is_refused_on_new_connections(mesh, tmp_path, federated):
    if federated:
        other = {"pem": make_root("b.example", time.time()).pem, "trustDomains": ["b.example"]}
        await mesh.write(
            {Key(CLUSTER, "mesh", "config", "", "mesh"): MeshConfigRow({"caCertificates": [other]})}
        )
    await mesh.start_gateway()
    pair = Pair()
    # Each request on a connection of its own: those that are open stay so.
    once = {"connectionPool": {"http": {"maxRequestsPerConnection": 1}}}
    rule = {"host": host("server"), "trafficPolicy": once}
    await mesh.write(*pair.rows(), config("DestinationRule", "destinationrules", "once", rule))
    stolen = Stolen(tmp_path)
    async with serving(mesh, pair) as (server, client, _):
        await stolen.get(mesh, "thief")
        assert await stolen.enters(pair.server, pair.port)

        reply = await revoke(mesh, serial=stolen.serial.upper(), reason="lost")
        assert (reply.added, reply.blocked) == (1, [])

        async def refused() -> bool:
            return not await stolen.enters(pair.server, pair.port)

        await mesh.until(refused, "the certificate is refused")
        listener = listener_stat(pair.server, pair.port)
        assert await server.stat(f"{listener}.ssl.fail_verify_error"), "because of what it shows"
        assert (await pair.get()).status_code == 200
        assert (await pair.get()).status_code == 200, "others get in, on new connections too"
        (record,) = (await mesh.certificates(serial=stolen.serial)).certificates
        assert record.revoked > 0

        # The same again for what a proxy of the mesh has: it gets another at once.
        before = await client.admin("/certs")
        mine = (await mesh.certificates(identity=CLIENT)).certificates[0]
        await revoke(mesh, serial=mine.serial)

        async def another() -> bool:
            now = await client.admin("/certs")
            return mine.serial not in now and now != before

        await mesh.until(another, "the client has another certificate")
        assert (await pair.get()).status_code == 200

        # Nobody may know what the mesh has forgotten after a restart of the ca.
        await mesh.stop("ca")
        mesh.start_ca()
        assert not await stolen.enters(pair.server, pair.port)
        listed = await mesh.until(lambda: revoke(mesh), "the ca answers")
        assert {c["serial"] for c in listed.certificates} == {stolen.serial, mine.serial}

        # A whole identity.
        blocked = await revoke(mesh, identity=CLIENT, reason="taken over")
        assert blocked.added == 1
        assert blocked.blocked == [CLIENT]

        async def shut_out() -> bool:
            return (await pair.get()).status_code == 503

        await mesh.until(shut_out, "its certificates are refused")
        assert (await revoke(mesh, identity=CLIENT, allow=True)).blocked == []

        async def back() -> bool:
            return (await pair.get()).status_code == 200

        await mesh.until(back, "it has a certificate again", timeout_s=30)


@by(4)
async def test_who_is_blocked_gets_no_certificate(mesh):
    stolen = Stolen(mesh.folder)
    await stolen.get(mesh, "thief")
    await revoke(mesh, identity=THIEF)
    await mesh.until(lambda: THIEF in mesh.trust.blocked, "the row says so")
    with pytest.raises(CallError, match="blocked"):
        await stolen.get(mesh, "thief")
    assert mesh.trust.crl_pem.count("BEGIN X509 CRL") == 2, "of the signer and of the root"


@by(4)
async def test_what_cannot_be_revoked_is_said(mesh):
    for question, message in (
        ({"serial": "ffff"}, "no certificate ffff"),
        ({"serial": "ffff", "identity": THIEF}, "a serial or an identity"),
        ({"identity": "spiffe://other/ns/a/sa/b"}, "no identity of cluster.local"),
        (
            {"identity": "spiffe://cluster.local/ns/istio-system/sa/meshbus-config"},
            "a service of the control plane",
        ),
    ):
        with pytest.raises(CallError, match=message):
            await revoke(mesh, **question)
    stolen = Stolen(mesh.folder)
    await stolen.get(mesh, "thief")
    await revoke(mesh, serial=stolen.serial)
    await mesh.until(lambda: mesh.trust.revoked, "the row says so")
    with pytest.raises(CallError, match="revoked already"):
        await revoke(mesh, serial=stolen.serial)
    # Nobody but the ca can say so.
    forged = msgspec.json.encode({"action": "block", "at": 1.0, "identity": CLIENT})
    for name in ("xds-gateway", "config", "discovery"):
        with pytest.raises(BusError):
            await mesh.buses[name].publish(CERTS, "certs.c.revocations.x", forged)


def crl(by: Signer, serials: Iterable[int] = ()) -> str:
    """A list as an authority elsewhere makes it."""
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(by.certificate.subject)
        .last_update(now - datetime.timedelta(minutes=1))
        .next_update(now + datetime.timedelta(days=30))
    )
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
        builder = builder.add_revoked_certificate(entry.build())
    signed = builder.sign(by.key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.slow
@by_family_and_federation
async def test_lists_of_a_plugged_in_ca_reach_every_proxy(family, bus_for, tmp_path, federated):
    """`ca-crl.pem`: of leaves, and of a signing certificate; also where other trust domains are
    trusted, which takes a list of every CA up to the root."""
    envoy_binary()
    async with mesh_on(bus_for, tmp_path, CaMesh) as mesh:
        folder = tmp_path / "cacerts"
        root, first = made(time.time())
        plug(folder, root, first)
        mesh.ca_settings = {"leaf_ttl_s": 3600, "require_proof": True, "plugged": str(folder)}
        await mesh.start()
        if federated:
            other = {"pem": make_root("b.example", time.time()).pem, "trustDomains": ["b.example"]}
            row = MeshConfigRow({"caCertificates": [other]})
            await mesh.write({Key(CLUSTER, "mesh", "config", "", "mesh"): row})
        await mesh.start_gateway()
        pair = Pair()
        once = {"connectionPool": {"http": {"maxRequestsPerConnection": 1}}}
        rule = {"host": host("server"), "trafficPolicy": once}
        await mesh.write(*pair.rows(), config("DestinationRule", "destinationrules", "once", rule))
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        leaf, below = Stolen(tmp_path / "a"), Stolen(tmp_path / "b")
        async with serving(mesh, pair):
            await leaf.get(mesh, "thief")
            await below.get(mesh, "thief")
            assert await leaf.enters(pair.server, pair.port)
            if federated:
                with pytest.raises(CallError, match=r"ca-crl\.pem"):
                    await revoke(mesh, serial=leaf.serial)

            async def refused(who: Stolen) -> bool:
                return not await who.enters(pair.server, pair.port)

            # A leaf, by the list of the CA that has signed it.
            lists = crl(first, [int(leaf.serial, 16)]) + crl(root)
            (folder / "ca-crl.pem").write_text(lists)
            await mesh.until(lambda: refused(leaf), "the leaf is refused")
            assert await below.enters(pair.server, pair.port)
            assert (await pair.get()).status_code == 200
            assert leaf.serial in {c["serial"] for c in (await revoke(mesh)).certificates}
            assert not (await mesh.rotation()).warnings

            # The CA itself cannot be revoked while it signs.
            (folder / "ca-crl.pem").write_text(crl(root, [first.certificate.serial_number]))

            async def said() -> bool:
                return any("successor first" in w for w in (await mesh.rotation()).warnings)

            await mesh.until(said, "the ca says what is to be done first")
            assert await below.enters(pair.server, pair.port)

            # Once another one signs, every leaf below the first is refused.
            second = make_intermediate(root, "cluster.local", time.time())
            plug(folder, root, second)
            await mesh.until(lambda: refused(below), "leaves below the revoked CA are refused")
            await revoke(mesh, identity=CLIENT)
            await revoke(mesh, identity=CLIENT, allow=True)
            await revoke(mesh, identity=SERVER)
            await revoke(mesh, identity=SERVER, allow=True)

            async def back() -> bool:
                return (await pair.get()).status_code == 200

            await mesh.until(back, "those with certificates of the second go on", timeout_s=30)
