"""Signers elsewhere: the leaves of workloads are signed by an authority that somebody else runs.

The mesh's own authority goes on signing for the control plane. What comes back is believed only as
far as it can be checked: the key and the one name that were asked for, no authority, a way up to
the roots that were given.
"""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from meshbus_ca.authority import fingerprint
from meshbus_ca.bundles import BundleError, joined, read_roots
from meshbus_ca.issue import InvalidCsrError, Names, PublicKey, pem_of

MAX_CHAIN = 8
MAX_ROOTS_BYTES = 256 * 1024


class SignerError(Exception):
    """Nothing usable came; the message says what. It may be tried again."""


class Chain(NamedTuple):
    """What a signer gave."""

    certificates: tuple[x509.Certificate, ...]
    """The leaf, and those above it."""


class LeafSigner(Protocol):
    """One kind of authority elsewhere."""

    async def sign(self, csr_pem: str, names: Names, ttl_s: float) -> Chain:
        """A certificate for a CSR.

        Raises:
            SignerError: It did not come.
        """


class Signed(NamedTuple):
    """A chain that was checked."""

    leaf: x509.Certificate
    chain_pem: str
    """The leaf, and those above it but the root."""
    signer: str
    """SHA-256 of the certificate above the leaf, hex."""
    root: str
    """SHA-256 of the root, hex."""


class Roots:
    """Roots of a signer elsewhere: in a file that may be replaced, or in the mesh config."""

    def __init__(self, file: str, signer: str = "") -> None:
        """`signer`: a signer of Kubernetes whose roots the mesh config has where there is no
        file."""
        self._file = Path(file) if file else None
        self._signer = signer
        self._mark: tuple[int, int] = (0, 0)
        self.pem = ""
        self.problem = ""

    def look(self, mesh: Mapping[str, Any] | None = None) -> None:
        """Read them again if they are others. What cannot be read leaves what was in force.

        Args:
            mesh: Fields of MeshConfig, of which `caCertificates` with `certSigners` count.
        """
        if self._file is None:
            self._look_in(mesh or {})
            return
        try:
            stat = self._file.stat()
            mark = (stat.st_mtime_ns, stat.st_size)
            if mark == self._mark:
                return
            if stat.st_size > MAX_ROOTS_BYTES:
                raise BundleError(f"more than {MAX_ROOTS_BYTES} bytes")
            self.pem = read_roots(self._file.read_text())
            self._mark, self.problem = mark, ""
        except (OSError, UnicodeDecodeError, BundleError) as error:
            self.problem = f"{self._file}: {error}"

    def _look_in(self, mesh: Mapping[str, Any]) -> None:
        """Source: Istio, KubernetesRA.SetCACertificatesFromMeshConfig."""
        entries = mesh.get("caCertificates")
        given = [
            str(entry.get("pem") or "")
            for entry in (entries if isinstance(entries, list) else ())
            if isinstance(entry, dict) and self._signer in (entry.get("certSigners") or ())
        ]
        if not any(given):
            self.problem = (
                f"MESHBUS_CA_SIGNER_ROOTS is not set, and no entry of caCertificates of the mesh "
                f"config names {self._signer} in certSigners"
            )
            return
        try:
            self.pem, self.problem = read_roots("\n".join(given)), ""
        except BundleError as error:
            self.problem = f"caCertificates of {self._signer}: {error}"

    @property
    def certificates(self) -> list[x509.Certificate]:
        """Each of them."""
        return x509.load_pem_x509_certificates(self.pem.encode()) if self.pem else []


def check_csr(csr_pem: str, names: Names) -> None:
    """Signers that take the names from the CSR: it must ask for the identity and for nothing else.

    Raises:
        InvalidCsrError: It asks for another name, or for none.
    """
    csr = x509.load_pem_x509_csr(csr_pem.encode())
    try:
        sans = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError) as error:
        raise InvalidCsrError("the signer needs a CSR with the SPIFFE id in it") from error
    if [*sans] != [x509.UniformResourceIdentifier(names.spiffe_id)]:
        raise InvalidCsrError(f"the CSR must ask for {names.spiffe_id} alone")


def checked(
    chain: Chain, key: PublicKey, names: Names, roots: Sequence[x509.Certificate], now: float
) -> Signed:
    """What a signer gave, if it is what was asked for.

    Raises:
        SignerError: It is not.
    """
    if not chain.certificates or len(chain.certificates) > MAX_CHAIN:
        raise SignerError(f"{len(chain.certificates)} certificates came")
    leaf = chain.certificates[0]
    moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
    if _public(leaf.public_key()) != _public(key):
        raise SignerError("the certificate is for another key")
    if not leaf.not_valid_before_utc <= moment < leaf.not_valid_after_utc:
        raise SignerError("the certificate is not valid now")
    try:
        sans = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        constraints = leaf.extensions.get_extension_for_class(x509.BasicConstraints).value
        is_authority = constraints.ca
    except x509.ExtensionNotFound as error:
        if error.oid != x509.BasicConstraints.oid:
            raise SignerError("the certificate has no name") from error
        is_authority = False
    except ValueError as error:
        raise SignerError("the certificate cannot be read") from error
    if is_authority:
        raise SignerError("the certificate may sign others")
    if sans.get_values_for_type(x509.UniformResourceIdentifier) != [names.spiffe_id]:
        raise SignerError(f"the certificate is not for {names.spiffe_id}")
    allowed = set(names.dns_names)
    if not set(sans.get_values_for_type(x509.DNSName)) <= allowed:
        raise SignerError("the certificate has DNS names that were not asked for")
    path, root = _path(leaf, chain.certificates[1:], roots)
    above = path[1] if len(path) > 1 else root
    return Signed(leaf, joined(pem_of(one) for one in path), fingerprint(above), fingerprint(root))


def _path(
    leaf: x509.Certificate,
    above: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
) -> tuple[list[x509.Certificate], x509.Certificate]:
    """(from the leaf up to below the root, the root)."""
    path = [leaf]
    while len(path) <= MAX_CHAIN:
        current = path[-1]
        for root in roots:
            if current == root or _signed_by(current, root):
                return [one for one in path if one != root], root
        parent = next((c for c in above if c not in path and _signed_by(current, c)), None)
        if parent is None:
            break
        path.append(parent)
    raise SignerError("there is no way from the certificate to a root of the signer")


def _signed_by(certificate: x509.Certificate, parent: x509.Certificate) -> bool:
    if certificate.issuer != parent.subject:
        return False
    try:
        certificate.verify_directly_issued_by(parent)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _public(key: object) -> bytes:
    der: bytes = key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return der


def certificates_of(*pems: str) -> tuple[x509.Certificate, ...]:
    """Certificates of PEM, in order, each once.

    Raises:
        SignerError: One is none.
    """
    found: dict[x509.Certificate, None] = {}
    for pem in pems:
        if pem.strip():
            try:
                found.update(dict.fromkeys(x509.load_pem_x509_certificates(pem.encode())))
            except ValueError as error:
                raise SignerError("what came is no certificate") from error
    return tuple(found)
