"""Certificates: pure functions of a signer, a question and the time.

A CSR is used for its public key alone, and only after its signature has proved that who asks holds
the private key; names come from what the ca grants.

Source: https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md (one URI SAN; leaves:
CA:FALSE, digitalSignature; signing certificates: keyCertSign, cRLSign), RFC 5280.
"""

import datetime
import ipaddress
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

BACKDATE_S = 60
"""Certificates begin this much before now, for peers whose clock is behind; unless said otherwise.
"""
MAX_CSR_BYTES = 8192
MIN_RSA_BITS = 2048
MAX_RSA_BITS = 4096
ROOT_TTL_S = 10 * 365 * 86400
INTERMEDIATE_TTL_S = 365 * 86400
MIN_TTL_S = 60
MAX_COMMON_NAME = 64

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class InvalidCsrError(Exception):
    """The CSR cannot be used; the message says why."""


@dataclass(frozen=True)
class Signer:
    """A signing certificate with its key. The key is never shown."""

    certificate: x509.Certificate
    key: PrivateKey

    def __repr__(self) -> str:
        return f"<Signer {self.certificate.subject.rfc4514_string()}>"

    @property
    def pem(self) -> str:
        """The certificate."""
        return pem_of(self.certificate)

    @property
    def not_after(self) -> float:
        """When it ends, seconds since the epoch."""
        return self.certificate.not_valid_after_utc.timestamp()

    def half_spent(self, now: float) -> bool:
        """More than half of its life is over."""
        begin = self.certificate.not_valid_before_utc.timestamp()
        return now > (begin + self.not_after) / 2


@dataclass(frozen=True)
class Names:
    """What a leaf is granted."""

    spiffe_id: str
    dns_names: tuple[str, ...] = ()
    ip_addresses: tuple[str, ...] = ()
    common_name: str = ""


def pem_of(certificate: x509.Certificate) -> str:
    """PEM of a certificate."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def make_root(trust_domain: str, now: float) -> Signer:
    """A new self-signed root."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _signer_name("Meshbus root", trust_domain)
    certificate = _signing_certificate(name, name, key.public_key(), key, now, ROOT_TTL_S, None)
    return Signer(certificate, key)


def make_intermediate(root: Signer, trust_domain: str, now: float) -> Signer:
    """A new intermediate below a root: it signs leaves and no other ca."""
    key = ec.generate_private_key(ec.SECP256R1())
    ttl_s = min(INTERMEDIATE_TTL_S, root.not_after - now)
    certificate = _signing_certificate(
        _signer_name("Meshbus intermediate", trust_domain),
        root.certificate.subject,
        key.public_key(),
        root.key,
        now,
        ttl_s,
        0,
    )
    return Signer(certificate, key)


def cross_sign(old: Signer, new: Signer, now: float) -> x509.Certificate:
    """A new root as the old one vouches for it: with it in the chain, leaves of the new root hold
    also with those who know the old one alone. Source: RFC 4210 4.4 ("new with old")."""
    certificate = new.certificate
    return _signing_certificate(
        certificate.subject,
        old.certificate.subject,
        new.key.public_key(),
        old.key,
        now,
        min(old.not_after, new.not_after) - now,
        None,
    )


def public_key_of(csr_pem: str) -> PublicKey:
    """The key of a CSR.

    Raises:
        InvalidCsrError: Too large, no CSR, signed by another key, or a key that is too weak.
    """
    if len(csr_pem) > MAX_CSR_BYTES:
        raise InvalidCsrError(f"the CSR has more than {MAX_CSR_BYTES} bytes")
    try:
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        key = csr.public_key()
        proved = csr.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise InvalidCsrError(f"not a PEM certificate signing request: {error}") from error
    if not proved:
        raise InvalidCsrError("the CSR is not signed with its own key")
    if isinstance(key, ec.EllipticCurvePublicKey):
        if not isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
            raise InvalidCsrError(f"curve {key.curve.name}: P-256 or P-384 is needed")
        return key
    if isinstance(key, rsa.RSAPublicKey):
        if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            raise InvalidCsrError(
                f"RSA with {key.key_size} bits: {MIN_RSA_BITS} to {MAX_RSA_BITS} are needed"
            )
        return key
    raise InvalidCsrError(f"key of type {type(key).__name__}: EC or RSA is needed")


def dns_names_of(csr_pem: str) -> tuple[str, ...]:
    """DNS names that a CSR asks for, each once; nothing of a CSR that cannot be read."""
    try:
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        sans = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return ()
    return tuple(dict.fromkeys(sans.get_values_for_type(x509.DNSName)))


def issue_leaf(
    signer: Signer,
    key: PublicKey,
    names: Names,
    ttl_s: float,
    now: float,
    skew_s: float = BACKDATE_S,
) -> x509.Certificate:
    """A leaf for a key. It ends no later than its signer."""
    sans: list[x509.GeneralName] = [x509.UniformResourceIdentifier(names.spiffe_id)]
    sans += [x509.DNSName(name) for name in names.dns_names]
    sans += [x509.IPAddress(ipaddress.ip_address(a)) for a in names.ip_addresses]
    attributes = []
    if names.common_name:
        attributes.append(
            x509.NameAttribute(NameOID.COMMON_NAME, names.common_name[:MAX_COMMON_NAME])
        )
    end = min(now + ttl_s, signer.not_after)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name(attributes))
        .issuer_name(signer.certificate.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_time(now - skew_s))
        .not_valid_after(_time(end))
        # Without a subject the names are all there is: RFC 5280 4.2.1.6 wants them critical.
        .add_extension(x509.SubjectAlternativeName(sans), critical=not attributes)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            ),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(_authority_of(signer.certificate), critical=False)
        .sign(signer.key, hashes.SHA256())
    )


def _signing_certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: PublicKey,
    issuer_key: PrivateKey,
    now: float,
    ttl_s: float,
    path_length: int | None,
) -> x509.Certificate:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_time(now - BACKDATE_S))
        .not_valid_after(_time(now + ttl_s))
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(_authority_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


def _signer_name(role: str, trust_domain: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain[:MAX_COMMON_NAME]),
            x509.NameAttribute(NameOID.COMMON_NAME, role),
        ]
    )


def _authority_of(signer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """As the signer calls its key: a plugged-in one may have an identifier of its own making."""
    try:
        named = signer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        key = signer.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
        return _authority_key(key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(named.value)


def _authority_key(key: PublicKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=not signs,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)
