"""The certificate of the API: made by config itself, so that it serves before there is a ca.

Its own small root signs it; the root's key is dropped after that. Clients get the root in their
kubeconfig. Names that are missing, or an end that is near, make a new pair.
"""

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DEFAULT_NAMES = ("localhost", "127.0.0.1", "::1")
_VALID = datetime.timedelta(days=825)
_RENEW = datetime.timedelta(days=60)
_SKEW = datetime.timedelta(minutes=5)


class ServingFiles(NamedTuple):
    """Where the pair and its root are."""

    certificate: Path
    key: Path
    ca: Path


def ensure_certificate(state: Path, names: Sequence[str], now: float) -> ServingFiles:
    """The pair in `state`, made or made anew when it does not do.

    Args:
        names: DNS names and addresses it must be good for, besides `DEFAULT_NAMES`.
        now: Seconds since the epoch.
    """
    files = ServingFiles(state / "api-cert.pem", state / "api-key.pem", state / "api-ca.pem")
    wanted = list(dict.fromkeys([*DEFAULT_NAMES, *names]))
    moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
    if not _good(files, wanted, moment):
        _make(files, wanted, moment)
    return files


def _good(files: ServingFiles, names: Sequence[str], moment: datetime.datetime) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
        issued = x509.load_pem_x509_certificate(files.ca.read_bytes())
        certificate.verify_directly_issued_by(issued)
        held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        present = files.key.stat().st_mode & 0o077 == 0
    except (OSError, ValueError, TypeError, x509.ExtensionNotFound):
        return False
    except Exception:  # noqa: BLE001 - InvalidSignature and its like: anything wrong, a new pair
        return False
    known = set(map(_name, names))
    return present and known <= set(held) and certificate.not_valid_after_utc - moment > _RENEW


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _make(files: ServingFiles, names: Sequence[str], moment: datetime.datetime) -> None:
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root_name = _subject("meshbus API root")
    root = (
        _builder(root_name, root_name, root_key.public_key(), moment)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(root_key, hashes.SHA256())
    )
    leaf = (
        _builder(_subject("meshbus API"), root_name, key.public_key(), moment)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(list(map(_name, names))), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()),
            critical=False,
        )
        .sign(root_key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_file(files.key, private, 0o600)
    write_file(files.certificate, leaf.public_bytes(Encoding.PEM), 0o600)
    write_file(files.ca, root.public_bytes(Encoding.PEM), 0o644)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, moment: datetime.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - _SKEW)
        .not_valid_after(moment + _VALID)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def write_file(path: Path, content: bytes, mode: int) -> None:
    """Write a file whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
