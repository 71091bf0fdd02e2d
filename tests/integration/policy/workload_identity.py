"""Certificates of workloads, for tests that call the control plane as a proxy would."""

from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from gateway_mesh import Mesh

from meshbus.model.requests import SignReply, SignRequest, sign_subject
from meshbus.runtime.calls import call


async def identity_of(mesh: Mesh, account: str) -> Any:
    """Channel credentials of a workload, signed as the gateway would have it."""
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request = SignRequest(
        csr_pem=csr.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode(),
        service="xds-gateway",
        spiffe_id=f"spiffe://cluster.local/ns/default/sa/{account}",
        subject=account,
    )
    subject = sign_subject("xds-gateway")
    reply = await call(mesh.buses["xds-gateway"], subject, request, SignReply)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return grpc.ssl_channel_credentials(reply.roots_pem.encode(), pem, reply.chain_pem.encode())
