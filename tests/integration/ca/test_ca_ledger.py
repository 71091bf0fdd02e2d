"""Proofs, the ledger and IstioCertificateService of a real ca on a real bus."""

import asyncio
import contextlib
import json
import time

import grpc
import jwt
import msgspec
import pytest
import pytest_asyncio
from ca_mesh import CaMesh, plug
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from gateway_mesh import CLUSTER, mesh_on, workload
from meshbus_ca.certificate_messages import (
    METHOD,
    METHOD_SERVICE,
    CertificateRequest,
    CertificateResponse,
)
from meshbus_ca.certificate_service import BURST
from meshbus_ca.issue import INTERMEDIATE_TTL_S, make_intermediate, make_root

from meshbus.bus.interface import CERTS, EVENTS, BusError
from meshbus.model.requests import SignReply, SignRequest, sign_subject
from meshbus.runtime.calls import CallError, call
from meshbus.runtime.sealed import seal

pytestmark = pytest.mark.real
REVIEWS = "spiffe://cluster.local/ns/default/sa/reviews"
RATINGS = "spiffe://cluster.local/ns/default/sa/ratings"


@pytest_asyncio.fixture
async def mesh(bus_for, tmp_path):
    async with mesh_on(bus_for, tmp_path, CaMesh) as running:
        running.ca_settings = {
            "require_proof": True,
            "csr_listen": "127.0.0.1:0",
            "csr_mutual_listen": "127.0.0.1:0",
            "dns_names": "{account}.{namespace}.svc, {account}.{namespace}.svc.cluster.local",
            "clock_skew_s": 300,
        }
        await running.start()
        yield running


def key_and_csr(name: str = "", *dns: str) -> tuple[bytes, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if name:
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(name)]
        san = x509.SubjectAlternativeName([*names, *(x509.DNSName(n) for n in dns)])
        builder = builder.add_extension(san, critical=False)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    csr = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    return pem, csr.decode()


async def sign(mesh: CaMesh, identity: str, token: str) -> SignReply:
    proof = seal(mesh.trust.proof_key, token.encode()) if token else ""
    request = SignRequest(key_and_csr()[1], "xds-gateway", identity, proof=proof, pod="gw-0")
    return await call(
        mesh.buses["xds-gateway"], sign_subject("xds-gateway"), request, SignReply, timeout=5
    )


async def refusal(mesh: CaMesh, identity: str, token: str) -> CallError:
    with pytest.raises(CallError) as refused:
        await sign(mesh, identity, token)
    assert token not in refused.value.message or not token
    return refused.value


async def test_a_gateway_cannot_mint_what_is_not_connected_to_it(mesh):
    token = await mesh.token("reviews")
    await sign(mesh, REVIEWS, token)
    assert "no token" in (await refusal(mesh, REVIEWS, "")).message
    assert "another identity" in (await refusal(mesh, RATINGS, token)).message
    head, body, signature = token.split(".")
    forged = f"{head}.{body}.{signature[:-8]}AAAAAAAA"
    assert "does not hold" in (await refusal(mesh, REVIEWS, forged)).message
    assert (await refusal(mesh, REVIEWS, "x")).code == "forbidden"


async def test_every_certificate_is_in_the_ledger_and_nobody_can_take_it_out(mesh):
    await sign(mesh, REVIEWS, await mesh.token("reviews"))
    reply = await sign(mesh, RATINGS, await mesh.token("ratings"))
    leaf = x509.load_pem_x509_certificate(reply.chain_pem.encode())

    found = await mesh.certificates(identity=RATINGS)
    (record,) = found.certificates
    assert found.complete
    assert record.serial == f"{leaf.serial_number:x}"
    assert record.proof.startswith("token ")
    assert record.proof.endswith(" of ratings-0")
    assert (record.asker, record.pod) == ("xds-gateway", "gw-0")
    assert record.not_after == reply.not_after
    everything = await mesh.certificates()
    assert {r.identity for r in everything.certificates} >= {REVIEWS, RATINGS}
    assert everything.certificates[0].issued >= everything.certificates[-1].issued
    assert (await mesh.certificates(serial=record.serial)).certificates == [record]
    assert not (await mesh.certificates(identity=RATINGS, at=time.time() + 90_000)).certificates
    assert (await mesh.certificates(identity=RATINGS, at=time.time())).certificates == [record]

    stranger, name = mesh.buses["xds-gateway"], record.serial
    with pytest.raises(BusError):
        await stranger.publish(CERTS, f"certs.c.1.x.{name}", b"{}")


class Told:
    """Events of a kind and verb."""

    def __init__(self) -> None:
        self.data: list[dict] = []

    def begin(self) -> None: ...
    def end(self, sequence: int) -> None: ...

    def apply(self, messages) -> None:
        self.data += [json.loads(message.data)["data"] for message in messages]


@contextlib.asynccontextmanager
async def told(mesh, kind: str, verb: str):
    events = Told()
    bus = mesh.buses["config"]
    follower = bus.follower(EVENTS, [f"events.v1.{CLUSTER}.{kind}.*.*.{verb}"], events, name="t")
    task = asyncio.create_task(follower.run())
    try:
        yield events
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def short_windows(monkeypatch):
    monkeypatch.setattr("meshbus_ca.issued_events.WINDOW_S", 0.2)


async def test_what_is_issued_is_an_event_for_each_window(short_windows, mesh):
    async with told(mesh, "certificate", "issued") as events:
        token = await mesh.token("reviews")
        for _ in range(30):
            await sign(mesh, REVIEWS, token)

        def count() -> int:
            return sum(
                sum(c["identity"] == REVIEWS for c in data["certificates"]) for data in events.data
            )

        await mesh.until(lambda: sum(d["count"] for d in events.data) >= 30, "all are told of")
        assert len(events.data) < 30, "never one for each certificate"
        assert all(len(data["certificates"]) <= 20 for data in events.data)
        serials = {r.serial for r in (await mesh.certificates(identity=REVIEWS)).certificates}
        shown = [c for d in events.data for c in d["certificates"] if c["identity"] == REVIEWS]
        assert count() == len(shown) > 0
        assert {c["serial"] for c in shown} <= serials
        assert shown[0]["proof"].endswith(" of reviews-0")


async def test_a_ca_that_ends_soon_is_an_event(bus_for, tmp_path):
    now = time.time()
    root = make_root("cluster.local", now)
    soon = make_intermediate(root, "cluster.local", now - INTERMEDIATE_TTL_S + 30 * 86_400)
    plug(tmp_path / "cacerts", root, soon)
    async with mesh_on(bus_for, tmp_path, CaMesh) as mesh:
        mesh.ca_settings = {"plugged": str(tmp_path / "cacerts")}
        await mesh.start()
        async with told(mesh, "trust", "expiring") as events:
            await mesh.until(lambda: events.data, "it is told")
        (warning,) = events.data[0]["warnings"]
        assert "plugged-in CA certificate ends in 30 days" in warning
        assert (await mesh.rotation()).warnings == [warning]


async def test_ca_signs_on_without_the_bus_and_the_records_come_later(mesh, nats_server):
    token = await mesh.token("reviews")
    before = len((await mesh.certificates()).certificates)
    await mesh.until(lambda: mesh.ca.csr_port is not None, "it listens")
    channel = secure_channel(mesh)
    nats_server.kill()
    try:
        await mesh.until(lambda: not mesh.buses["ca"].connected, "the bus is away")
        await create(channel, token)
        assert not mesh.buses["ca"].connected, "it has not waited for the bus"
    finally:
        nats_server.start()

    async def recorded() -> bool:
        return len((await mesh.certificates()).certificates) > before

    await mesh.until(recorded, "the record is in the ledger")
    await channel.close()


def secure_channel(mesh: CaMesh, pair: tuple[bytes, bytes] | None = None) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(mesh.trust.roots_pem.encode(), *(pair or ()))
    port = mesh.ca.csr_mutual_port if pair else mesh.ca.csr_port
    return grpc.aio.secure_channel(f"localhost:{port}", credentials)


async def create(channel, token: str = "", csr: str = "", **fields) -> list[str]:
    method = channel.unary_unary(
        f"/{METHOD_SERVICE}/{METHOD}",
        request_serializer=CertificateRequest.SerializeToString,
        response_deserializer=CertificateResponse.FromString,
    )
    request = CertificateRequest(csr=csr or key_and_csr()[1], **fields)
    metadata = [("authorization", f"Bearer {token}")] if token else []
    return list((await method(request, metadata=metadata, timeout=5)).cert_chain)


def uri_of(certificate_pem: str) -> list[str]:
    leaf = x509.load_pem_x509_certificate(certificate_pem.encode())
    sans = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return sans.get_values_for_type(x509.UniformResourceIdentifier)


async def test_create_certificate_gives_the_callers_name_whatever_the_csr_says(mesh):
    await mesh.until(lambda: mesh.ca.csr_mutual_port is not None, "it listens")
    token = await mesh.token("reviews")
    async with secure_channel(mesh) as channel:
        key, csr = key_and_csr(RATINGS)
        chain = await create(channel, token, csr, validity_duration=600)
        assert uri_of(chain[0]) == [REVIEWS]
        assert chain[-1] == mesh.trust.roots_pem
        for bad, code in (
            ({}, "UNAUTHENTICATED"),
            ({"token": token[:-6] + "AAAAAA"}, "UNAUTHENTICATED"),
            ({"token": token, "csr": "nonsense"}, "INVALID_ARGUMENT"),
            ({"token": token, "csr": csr, "validity_duration": -1}, "INVALID_ARGUMENT"),
            ({"token": token}, "UNAUTHENTICATED"),  # it has brought in another key
            ({"token": token, "csr": "x" * 100_000}, "RESOURCE_EXHAUSTED"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await create(channel, **bad)
            assert refused.value.code().name == code
        method = {"ImpersonatedIdentity": RATINGS}
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await create(channel, token, csr, metadata=method)
        assert refused.value.code().name == "PERMISSION_DENIED"
    # Renewal with the certificate that it has.
    async with secure_channel(mesh, (key, "".join(chain[:-1]).encode())) as channel:
        assert uri_of((await create(channel))[0]) == [REVIEWS]
    records = (await mesh.certificates(identity=REVIEWS)).certificates
    assert records[0].proof.startswith("certificate ")
    assert records[0].asker == "csr"


async def test_dns_names_are_given_where_asked_and_allowed(mesh):
    await mesh.until(lambda: mesh.ca.csr_port is not None, "it listens")
    wanted = ("reviews.default.svc", "bank.example", "ratings.default.svc")
    _, csr = key_and_csr(REVIEWS, *wanted)
    async with secure_channel(mesh) as channel:
        chain = await create(channel, await mesh.token("reviews"), csr)
    leaf = x509.load_pem_x509_certificate(chain[0].encode())
    sans = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert sans.get_values_for_type(x509.DNSName) == ["reviews.default.svc"]
    assert uri_of(chain[0]) == [REVIEWS]
    (record,) = (await mesh.certificates(identity=REVIEWS)).certificates
    assert record.names == ["reviews.default.svc"]
    # For peers whose clock is behind.
    assert 299 <= record.issued - record.not_before <= 301


async def test_a_node_agent_asks_for_the_workloads_of_its_own_node(bus_for, tmp_path):
    async with mesh_on(bus_for, tmp_path, CaMesh) as mesh:
        mesh.ca_settings = {"csr_listen": "127.0.0.1:0", "impersonators": "default/ztunnel"}
        await mesh.start()
        await mesh.until(lambda: mesh.ca.csr_port is not None, "it listens")
        for name, node in (("reviews", "n1"), ("ratings", "n2")):
            ((key, row),) = workload(name, "127.0.0.7").items()
            await mesh.write({key: msgspec.structs.replace(row, node=node)})

        def token(account: str, node: str) -> str:
            own, now = mesh.ca._token_key, int(time.time())
            bound = {"pod": {"name": f"{account}-0"}, **({"node": {"name": node}} if node else {})}
            claims = {
                "iss": mesh.trust.issuer,
                "aud": ["istio-ca"],
                "iat": now,
                "exp": now + 600,
                "jti": f"{time.monotonic_ns()}",
                "sub": f"system:serviceaccount:default:{account}",
                "kubernetes.io": bound,
            }
            return jwt.encode(claims, own.key, "ES256", headers={"kid": own.key_id})

        async with secure_channel(mesh) as channel:

            async def ask(account: str, node: str, identity: str) -> list[str]:
                metadata = {"ImpersonatedIdentity": identity}
                return await create(channel, token(account, node), metadata=metadata)

            async def given() -> bool:
                try:
                    return uri_of((await ask("ztunnel", "n1", REVIEWS))[0]) == [REVIEWS]
                except grpc.aio.AioRpcError:
                    return False

            await mesh.until(given, "the agent has a certificate for its workload")
            (record, *_) = (await mesh.certificates(identity=REVIEWS)).certificates
            assert record.proof.endswith(" of ztunnel-0 on n1 for reviews-0")
            for account, node, identity, message in (
                ("ztunnel", "n1", RATINGS, "no workload"),
                ("ztunnel", "", REVIEWS, "on which node"),
                ("reviews", "n1", REVIEWS, "may not ask for others"),
                ("ztunnel", "n1", "spiffe://other/ns/default/sa/reviews", "is no workload of"),
                ("ztunnel", "n1", "reviews", "is no workload of"),
            ):
                with pytest.raises(grpc.aio.AioRpcError, match=message) as refused:
                    await ask(account, node, identity)
                assert refused.value.code().name == "PERMISSION_DENIED"


async def test_one_identity_cannot_ask_without_end(mesh):
    await mesh.until(lambda: mesh.ca.csr_port is not None, "it listens")
    reviews, ratings = await mesh.token("reviews"), await mesh.token("ratings")
    _, csr = key_and_csr()
    async with secure_channel(mesh) as channel:
        for _ in range(BURST):
            await create(channel, reviews, csr)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await create(channel, reviews, csr)
        assert refused.value.code().name == "RESOURCE_EXHAUSTED"
        await create(channel, ratings, csr)
