"""The ca on a real bus: who asks gets what it may have, and nothing else."""

import asyncio

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from meshbus_ca.service import CaService, CaSettings

from meshbus.bus.mirror import WorldMirror
from meshbus.model.keys import Key
from meshbus.model.requests import (
    JOIN_TOKEN,
    JoinTokenReply,
    JoinTokenRequest,
    SignReply,
    SignRequest,
    sign_subject,
)
from meshbus.runtime.calls import CallError, call
from meshbus.runtime.process import make_context
from meshbus.runtime.sealed import recipient
from meshbus.runtime.settings import ProcessSettings

pytestmark = pytest.mark.real


def sign_request(**fields) -> SignRequest:
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    pem = csr.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    fields = {
        "csr_pem": pem,
        "service": "xds-gateway",
        "spiffe_id": "spiffe://cluster.local/ns/default/sa/reviews",
        **fields,
    }
    return SignRequest(**fields)


async def test_ca_signs_and_publishes_what_to_check_with(bus_for, tmp_path):
    process = ProcessSettings(state=str(tmp_path), cluster="c")
    service = CaService(make_context(CaService, CaSettings(), process, await bus_for("ca")))
    running = asyncio.create_task(service.run())
    gateway, local = await bus_for("xds-gateway"), await bus_for("local")
    mirror = WorldMirror()
    follower = mirror.follow(gateway)
    following = asyncio.create_task(follower.run())
    try:
        reply = await until_answered(gateway, sign_request())
        chain = x509.load_pem_x509_certificates(reply.chain_pem.encode())
        root = x509.load_pem_x509_certificates(reply.roots_pem.encode())[0]
        chain[0].verify_directly_issued_by(chain[1])
        chain[1].verify_directly_issued_by(root)
        assert reply.not_after - reply.not_before <= 3600 + 60

        with pytest.raises(CallError) as refused:
            await call(
                gateway, sign_subject("xds-gateway"), sign_request(service="policy"), SignReply
            )
        assert refused.value.code == "forbidden"
        with pytest.raises(CallError) as invalid:
            await call(gateway, sign_subject("xds-gateway"), sign_request(csr_pem="x"), SignReply)
        assert invalid.value.code == "invalid"

        mine = recipient()
        question = JoinTokenRequest(
            "default", "reviews", "reviews-v1-0", "reviews-v1", mine.public_key
        )
        answer = await call(local, JOIN_TOKEN, question, JoinTokenReply)
        token = mine.open(answer.sealed).decode()
        await follower.wait_synced()
        trust = mirror.world.get(Key("c", "sec", "trust", "", "cluster.local"))
        keys = jwt.PyJWKSet.from_json(trust.token_jwks)
        claims = jwt.decode(
            token,
            keys[jwt.get_unverified_header(token)["kid"]].key,
            algorithms=["ES256"],
            audience="istio-ca",
            issuer=trust.issuer,
        )
        assert claims["sub"] == "system:serviceaccount:default:reviews"
        assert trust.roots_pem == reply.roots_pem
        assert "PRIVATE" not in trust.roots_pem + trust.token_jwks
    finally:
        for task in (running, following):
            task.cancel()
        await asyncio.gather(running, following, return_exceptions=True)


async def until_answered(bus, request) -> SignReply:
    """The ca answers `unavailable` until its root is published."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await call(bus, sign_subject("xds-gateway"), request, SignReply)
            except CallError as error:
                if error.code != "unavailable":
                    raise
                await asyncio.sleep(0.02)
