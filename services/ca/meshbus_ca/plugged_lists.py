"""Revocation lists that are plugged in with a CA: `ca-crl.pem`, beside the four files.

A list of a CA that signs here says which leaves are revoked: they are taken back as if by
`meshbus certs revoke`. A list of a CA above says which signing certificates are; it is handed on as
it is. A file that cannot be used changes nothing: the lists before stay.

Source: https://istio.io/latest/docs/tasks/security/cert-management/plugin-ca-cert/, RFC 5280 5.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from meshbus.model.rows import RevokedCertificate
from meshbus_ca.authority import fingerprint
from meshbus_ca.issue import Signer

LISTS = "ca-crl.pem"
MAX_FILE_BYTES = 256 * 1024
WARN_S = 7 * 86_400
_END = b"-----END X509 CRL-----"

log = structlog.get_logger("ca")

Listed = tuple[x509.CertificateRevocationList, x509.Certificate]
"""A list, and the CA that has signed it."""


class ListsError(Exception):
    """The file cannot be used; the message says why."""


class PluggedLists:
    """What the file of a directory says. `look` first."""

    def __init__(self, folder: Path | None) -> None:
        self._path = folder / LISTS if folder is not None else None
        self._data = b""
        self._known: frozenset[str] = frozenset()
        self._lists: tuple[Listed, ...] = ()
        self.problem = ""
        """What is wrong with the file; empty: nothing."""

    def look(
        self, authorities: Iterable[x509.Certificate], signing: Sequence[x509.Certificate]
    ) -> bool:
        """Read the file again.

        Args:
            authorities: Certificates of CAs that may have lists.
            signing: Those of them that leaves are signed below now.
        Returns:
            The lists are others than before.
        """
        known = {fingerprint(c): c for c in authorities}
        try:
            data = self._read()
            if data == self._data and known.keys() == self._known and not self.problem:
                return False
            lists = lists_of(data, list(known.values()), signing)
        except ListsError as error:
            if str(error) != self.problem:
                log.error("revocation lists cannot be used; those before stay", error=str(error))
            self.problem = str(error)
            return False
        self.problem, before = "", self._lists
        self._data, self._known, self._lists = data, frozenset(known), lists
        return lists != before

    def _read(self) -> bytes:
        if self._path is None or not self._path.exists():
            return b""
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise ListsError(f"{self._path} cannot be read: {error.strerror}") from error
        if len(data) > MAX_FILE_BYTES:
            raise ListsError(f"{self._path} has more than {MAX_FILE_BYTES} bytes")
        return data

    def revoked(self, signers: Mapping[str, Signer]) -> tuple[RevokedCertificate, ...]:
        """Leaves that lists of these signers (by fingerprint) name."""
        return tuple(
            RevokedCertificate(
                f"{entry.serial_number:x}",
                "",
                name,
                entry.revocation_date_utc.timestamp(),
                issuer.not_valid_after_utc.timestamp(),
            )
            for crl, issuer in self._lists
            if (name := fingerprint(issuer)) in signers
            for entry in crl
        )

    def above(self, signers: Mapping[str, Signer], now: float) -> tuple[Listed, ...]:
        """Lists of other CAs that have not ended: a proxy refuses everybody for one that has."""
        return tuple(
            (crl, issuer)
            for crl, issuer in self._lists
            if fingerprint(issuer) not in signers and _ends(crl) > now
        )

    def warnings(self, signers: Mapping[str, Signer], now: float) -> list[str]:
        """What is to be done about the file."""
        said = [self.problem] if self.problem else []
        for crl, issuer in self._lists:
            if fingerprint(issuer) not in signers:
                name = issuer.subject.rfc4514_string() or fingerprint(issuer)[:12]
                left_s = _ends(crl) - now
                if left_s <= 0:
                    said.append(f"{LISTS}: the list of {name!r} has ended: it is not handed on")
                elif left_s <= WARN_S:
                    said.append(f"{LISTS}: the list of {name!r} ends in {left_s / 86400:.0f} days")
        return said


def lists_of(
    data: bytes, authorities: Sequence[x509.Certificate], signing: Sequence[x509.Certificate]
) -> tuple[Listed, ...]:
    """The lists of a file, each with its CA; of one CA the newest.

    Raises:
        ListsError: One cannot be read, is of none of the CAs, or revokes one that leaves are signed
            below now.
    """
    newest: dict[str, Listed] = {}
    for number, part in enumerate(data.split(_END)[:-1], 1):
        try:
            crl = x509.load_pem_x509_crl(part.lstrip() + _END + b"\n")
            revoked = {entry.serial_number for entry in crl}
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ListsError(f"{LISTS}: list {number} cannot be read: {error}") from error
        issuer = next((c for c in authorities if _has_signed(c, crl)), None)
        if issuer is None:
            raise ListsError(
                f"{LISTS}: list {number}, of {crl.issuer.rfc4514_string()!r}, is signed by none of "
                "the certificates that are plugged in"
            )
        for certificate in signing:
            below = certificate.issuer == issuer.subject and certificate != issuer
            if below and certificate.serial_number in revoked:
                raise ListsError(
                    f"{LISTS}: list {number} revokes {certificate.subject.rfc4514_string()!r}, "
                    "which leaves are signed below: plug in its successor first"
                )
        held = newest.get(fingerprint(issuer))
        if held is None or crl.last_update_utc >= held[0].last_update_utc:
            newest[fingerprint(issuer)] = (crl, issuer)
    rest = data.rpartition(_END)[2] if newest else data
    if rest.strip():
        raise ListsError(f"{LISTS}: there is something that is no list in PEM")
    return tuple(newest[name] for name in sorted(newest))


def pem_of_list(crl: x509.CertificateRevocationList) -> str:
    """PEM of a list."""
    return crl.public_bytes(serialization.Encoding.PEM).decode()


def _has_signed(certificate: x509.Certificate, crl: x509.CertificateRevocationList) -> bool:
    key = certificate.public_key()
    if certificate.subject != crl.issuer:
        return False
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        return False
    try:
        return crl.is_signature_valid(key)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False


def _ends(crl: x509.CertificateRevocationList) -> float:
    ends = crl.next_update_utc
    return ends.timestamp() if ends is not None else float("inf")
