"""What leaves are signed with and checked with: a signing certificate, its way up, its roots."""

from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from meshbus_ca.issue import Signer, pem_of

SELF_SIGNED, PLUGGED = "self-signed", "plugged"


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate, hex."""
    return certificate.fingerprint(hashes.SHA256()).hex()


@dataclass(frozen=True)
class Authority:
    """One way to sign. Never shown with its key."""

    kind: str
    """`self-signed` or `plugged`."""
    signer: Signer
    """Signs leaves."""
    chain: tuple[x509.Certificate, ...]
    """What follows a leaf: the signer, those above it, no root that checks itself."""
    roots: tuple[x509.Certificate, ...]
    """What its leaves are checked with; the signer's own first."""

    @property
    def chain_pem(self) -> str:
        """What follows a leaf."""
        return "".join(pem_of(certificate) for certificate in self.chain)

    @property
    def roots_pem(self) -> tuple[str, ...]:
        """Each root."""
        return tuple(pem_of(certificate) for certificate in self.roots)

    @property
    def root(self) -> x509.Certificate:
        """The root that the signer leads up to."""
        return self.roots[0]

    @property
    def id(self) -> str:
        """Fingerprint of the signer."""
        return fingerprint(self.signer.certificate)

    @property
    def root_id(self) -> str:
        """Fingerprint of the root."""
        return fingerprint(self.root)

    @property
    def ends(self) -> float:
        """When the first of signer, chain and root ends, seconds since the epoch."""
        every = (*self.chain, self.root, self.signer.certificate)
        return min(certificate.not_valid_after_utc.timestamp() for certificate in every)
