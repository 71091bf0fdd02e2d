"""A key that never leaves this machine, with a certificate of the mesh: for workloads that keep
their own keys."""

import os
import tempfile
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from meshbus_ca.certificate_messages import (
    METHOD,
    METHOD_SERVICE,
    CertificateRequest,
    CertificateResponse,
)

CHAIN_FILE, KEY_FILE, ROOTS_FILE = "cert-chain.pem", "key.pem", "root-cert.pem"
TIMEOUT_S = 10.0


class OwnKeyError(Exception):
    """There is no certificate; the message says why."""


def request_certificate(ca: str, roots: Path, out: Path, token: Path | None, ttl_s: int) -> float:
    """Make a key, have it signed, and put both into a directory; gives when the certificate ends.

    Without a token the caller proves itself with the certificate that is there. The chain is moved
    into place last: who watches the directory finds the key that belongs to it.

    Raises:
        OwnKeyError: A file cannot be used, or the ca refused.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    key_pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr_pem = csr.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    try:
        root_pem = roots.read_bytes()
        if token is not None:
            metadata = [("authorization", f"Bearer {token.read_text().strip()}")]
            credentials = grpc.ssl_channel_credentials(root_pem)
        else:
            metadata = []
            held = (out / KEY_FILE).read_bytes(), (out / CHAIN_FILE).read_bytes()
            credentials = grpc.ssl_channel_credentials(root_pem, *held)
        with grpc.secure_channel(ca, credentials) as channel:
            create = channel.unary_unary(
                f"/{METHOD_SERVICE}/{METHOD}",
                request_serializer=CertificateRequest.SerializeToString,
                response_deserializer=CertificateResponse.FromString,
            )
            question = CertificateRequest(csr=csr_pem, validity_duration=ttl_s)
            chain = list(create(question, metadata=metadata, timeout=TIMEOUT_S).cert_chain)
        leaf = x509.load_pem_x509_certificate(chain[0].encode())
        out.mkdir(parents=True, exist_ok=True, mode=0o700)
        _put(out / ROOTS_FILE, chain[-1].encode(), 0o644)
        _put(out / KEY_FILE, key_pem, 0o600)
        _put(out / CHAIN_FILE, "".join(chain[:-1]).encode(), 0o644)
    except grpc.RpcError as error:
        raise OwnKeyError(f"{ca}: {error.code().name}: {error.details()}") from error
    except (OSError, ValueError, IndexError) as error:
        raise OwnKeyError(str(error)) from error
    return leaf.not_valid_after_utc.timestamp()


def _put(path: Path, data: bytes, mode: int) -> None:
    """A file appears whole."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
    Path(name).replace(path)
