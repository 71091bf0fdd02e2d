"""A CA of one's own: four files in a directory, as Istio's Secret `cacerts` has them.

`ca-cert.pem` signs leaves with `ca-key.pem`; `cert-chain.pem` is it and what stands above it;
`root-cert.pem` is what everyone checks with (several: a change of roots in progress).

Source: https://istio.io/latest/docs/tasks/security/cert-management/plugin-ca-cert/, RFC 5280 6.1.
"""

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from meshbus_ca.authority import PLUGGED, Authority, fingerprint
from meshbus_ca.issue import MIN_RSA_BITS, PrivateKey, Signer

CERTIFICATE, KEY = "ca-cert.pem", "ca-key.pem"
ROOT, CHAIN = "root-cert.pem", "cert-chain.pem"
MAX_FILE_BYTES = 256 * 1024
MAX_CHAIN = 8
_WEAK = frozenset({"md5", "sha1"})


class PluggedError(Exception):
    """The files cannot be used; the message says which, why and what to do."""


def read_plugged(folder: Path, now: float) -> Authority:
    """The authority that a directory holds.

    Raises:
        PluggedError: A file is missing, or they do not belong together, or one is not valid now.
    """
    return check_plugged(read_files(folder), now)


def read_files(folder: Path) -> dict[str, bytes]:
    """The four files by name, as they are.

    Raises:
        PluggedError: One is missing or too large.
    """
    return {name: _read(folder / name) for name in (CERTIFICATE, KEY, ROOT, CHAIN)}


def check_plugged(files: dict[str, bytes], now: float) -> Authority:
    """The authority of the four files by name.

    Raises:
        PluggedError: See `read_plugged`.
    """
    signers = _certificates(files, CERTIFICATE)
    signer, key = signers[0], _key(files)
    if signer.public_key() != key.public_key():
        raise PluggedError(f"{KEY} is not the key of {CERTIFICATE}: take both from one CA")
    roots = _certificates(files, ROOT)
    _check_signer(signer, CERTIFICATE, now)
    above = [*signers[1:], *_certificates(files, CHAIN)]
    chain, root = _path(signer, above, roots, now)
    others = tuple(r for r in dict.fromkeys(roots) if r != root)
    for other in others:
        _check_signer(other, ROOT, now)
    return Authority(PLUGGED, Signer(signer, key), chain, (root, *others))


def _path(
    signer: x509.Certificate,
    above: list[x509.Certificate],
    roots: list[x509.Certificate],
    now: float,
) -> tuple[tuple[x509.Certificate, ...], x509.Certificate]:
    """(what follows a leaf, the root): from the signer up to a root."""
    chain: list[x509.Certificate] = []
    current = signer
    while True:
        if current in roots:
            return (tuple(chain) or (signer,)), current
        chain.append(current)
        if len(chain) > MAX_CHAIN:
            raise PluggedError(f"{CHAIN}: more than {MAX_CHAIN} certificates up to the root")
        parent = _issuer_of(current, [*roots, *above])
        if parent is None or parent in chain:
            raise PluggedError(
                f"no way from {CERTIFICATE} to a certificate of {ROOT}: nothing in {CHAIN} or "
                f"{ROOT} has signed {_name(current)} (its issuer is "
                f"{current.issuer.rfc4514_string()!r})"
            )
        _check_signer(parent, ROOT if parent in roots else CHAIN, now)
        constraints = _constraints(parent)
        allowed = constraints.path_length if constraints else None
        if allowed is not None and allowed < len(chain):
            raise PluggedError(
                f"{_name(parent)} allows {allowed} signing certificates below it that sign others,"
                f" {len(chain)} are below it"
            )
        current = parent


def _issuer_of(
    certificate: x509.Certificate, candidates: list[x509.Certificate]
) -> x509.Certificate | None:
    for candidate in candidates:
        if candidate == certificate or candidate.subject != certificate.issuer:
            continue
        try:
            certificate.verify_directly_issued_by(candidate)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            continue
        return candidate
    return None


def _check_signer(certificate: x509.Certificate, file: str, now: float) -> None:
    """Raises: PluggedError: It may not sign, is weak, or not valid now."""
    what = f"{file}: {_name(certificate)}"
    try:
        constraints = _constraints(certificate)
        usage = _usage(certificate)
    except ValueError as error:
        raise PluggedError(f"{what} has an extension that cannot be read: {error}") from error
    if constraints is None or not constraints.ca:
        raise PluggedError(f"{what} is not a CA: basicConstraints CA:TRUE is missing")
    if usage is not None and not usage.key_cert_sign:
        raise PluggedError(f"{what} may not sign certificates: keyUsage lacks keyCertSign")
    moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
    if moment < certificate.not_valid_before_utc:
        raise PluggedError(f"{what} is not valid before {certificate.not_valid_before_utc}")
    if moment >= certificate.not_valid_after_utc:
        raise PluggedError(f"{what} has expired at {certificate.not_valid_after_utc}")
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < MIN_RSA_BITS:
        raise PluggedError(f"{what}: RSA with {key.key_size} bits, {MIN_RSA_BITS} are needed")
    algorithm = certificate.signature_hash_algorithm
    if (
        algorithm is not None
        and algorithm.name in _WEAK
        and (certificate.subject != certificate.issuer)
    ):
        raise PluggedError(f"{what} is signed with {algorithm.name}, which proxies refuse")


def _constraints(certificate: x509.Certificate) -> x509.BasicConstraints | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return None


def _usage(certificate: x509.Certificate) -> x509.KeyUsage | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return None


def _certificates(files: dict[str, bytes], name: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(files[name])
    except ValueError as error:
        raise PluggedError(f"{name}: no PEM certificate in it: {error}") from error


def _key(files: dict[str, bytes]) -> PrivateKey:
    try:
        key = serialization.load_pem_private_key(files[KEY], None)
    except TypeError as error:
        raise PluggedError(f"{KEY} is encrypted: a key without a passphrase is needed") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise PluggedError(f"{KEY}: no PEM private key in it") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise PluggedError(f"{KEY}: {type(key).__name__}: an EC or RSA key is needed")
    return key


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise PluggedError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise PluggedError(f"{path} has more than {MAX_FILE_BYTES} bytes")
    return data


def _name(certificate: x509.Certificate) -> str:
    subject = certificate.subject.rfc4514_string() or "without a subject"
    return f"{subject!r} ({fingerprint(certificate)[:12]})"
