"""Which certificates are revoked, and the lists that say so: pure.

The record is what people have said, in order; the trust row is what follows from it now. A list
(CRL) ends with its signer: it reaches proxies by itself when it changes, and one that has ended
while the ca is away would make them refuse everybody.

Source: RFC 5280 5 (CRLs).
"""

import datetime
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from meshbus.model.rows import RevokedCertificate, Trust
from meshbus_ca.authority import fingerprint
from meshbus_ca.issue import BACKDATE_S, Signer

MAX_REVOKED = 2000
"""More do not fit into a row: change the root instead."""
REVOKE, BLOCK, ALLOW = "revoke", "block", "allow"


class Said(msgspec.Struct, frozen=True):
    """Somebody has revoked, or allowed again: one record."""

    action: str
    at: float
    identity: str = ""
    """For `block` and `allow`."""
    certificates: tuple[RevokedCertificate, ...] = ()
    reason: str = ""
    by: str = ""


def in_force(
    said: Sequence[Said],
    held: Trust | None,
    now: float,
    plugged: Sequence[RevokedCertificate] = (),
) -> tuple[tuple[RevokedCertificate, ...], tuple[str, ...]]:
    """(revoked certificates that have not ended, blocked identities).

    Args:
        said: Records, oldest first; those that are no longer kept are in `held`.
        plugged: What lists say that are plugged in.
    """
    revoked = {c.serial: c for c in (held.revoked if held else ())}
    blocked = dict.fromkeys(held.blocked if held else ())
    for one in said:
        revoked.update((c.serial, c) for c in one.certificates if c.serial not in revoked)
        if one.action == BLOCK:
            blocked[one.identity] = None
        elif one.action == ALLOW:
            blocked.pop(one.identity, None)
    room = MAX_REVOKED - len(revoked)
    revoked.update([(c.serial, c) for c in plugged if c.serial not in revoked][: max(room, 0)])
    alive = (c for c in revoked.values() if c.ends > now)
    return tuple(sorted(alive, key=lambda c: (c.at, c.serial))), tuple(sorted(blocked))


def revocation_lists(
    revoked: Iterable[RevokedCertificate],
    signers: Mapping[str, Signer],
    roots: Mapping[str, Signer],
    held_pem: str,
    now: float,
    others: Sequence[x509.CertificateRevocationList] = (),
) -> str:
    """PEM of a list for each signer, those of roots behind them, and those of `others` that were
    plugged in; empty when there are none of those and nothing is revoked.

    A list of `held_pem` that says the same is kept: signatures are never equal twice.
    """
    by_signer: dict[str, list[RevokedCertificate]] = {}
    for certificate in revoked:
        by_signer.setdefault(certificate.signer, []).append(certificate)
    if not by_signer and not others:
        return ""
    held = {_what(crl): crl for crl in _lists(held_pem)}
    out = []
    for signer_id, signer in (*sorted(signers.items()), *sorted(roots.items())):
        own = by_signer.get(signer_id, [])
        wanted = (_key_of(signer.certificate), frozenset(int(c.serial, 16) for c in own))
        crl = held.get(wanted)
        if crl is None:
            crl = _signed(signer, own, now)
        out.append(crl.public_bytes(serialization.Encoding.PEM).decode())
    out += [crl.public_bytes(serialization.Encoding.PEM).decode() for crl in others]
    return "".join(dict.fromkeys(out))


def are_covered(
    certificates: Iterable[x509.Certificate], listed: Iterable[x509.Certificate]
) -> bool:
    """Each of these CAs has a list, where those of `listed` have one. A CA is its name and key,
    whoever has signed its certificate."""

    def who(certificate: x509.Certificate) -> tuple[bytes, bytes]:
        return certificate.subject.public_bytes(), _key_of(certificate)

    return {who(c) for c in certificates} <= {who(c) for c in listed}


def signers_of(signers: Iterable[Signer]) -> dict[str, Signer]:
    """By fingerprint; those that may sign lists."""
    return {fingerprint(s.certificate): s for s in signers if _may_revoke(s.certificate)}


def _may_revoke(certificate: x509.Certificate) -> bool:
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    except x509.ExtensionNotFound:
        return True
    return usage.value.crl_sign


def _lists(pem: str) -> list[x509.CertificateRevocationList]:
    end = "-----END X509 CRL-----\n"
    return [
        x509.load_pem_x509_crl((part + end).encode()) for part in pem.split(end) if part.strip()
    ]


def _what(crl: x509.CertificateRevocationList) -> tuple[bytes, frozenset[int]]:
    try:
        named = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    except x509.ExtensionNotFound:
        return b"", frozenset()  # of somebody else
    return named.value.key_identifier or b"", frozenset(entry.serial_number for entry in crl)


def _key_of(certificate: x509.Certificate) -> bytes:
    return _authority(certificate).key_identifier or b""


def _authority(certificate: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """As leaves name their signer: a list is found by it."""
    try:
        named = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        key = certificate.public_key()
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)  # type: ignore[arg-type]
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(named.value)


def _signed(
    signer: Signer, revoked: Iterable[RevokedCertificate], now: float
) -> x509.CertificateRevocationList:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(signer.certificate.subject)
        .last_update(_time(now - BACKDATE_S))
        .next_update(signer.certificate.not_valid_after_utc)
        .add_extension(x509.CRLNumber(int(now * 1000)), critical=False)
        .add_extension(_authority(signer.certificate), critical=False)
    )
    for certificate in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(int(certificate.serial, 16))
            .revocation_date(_time(certificate.at))
            .build()
        )
    return builder.sign(signer.key, hashes.SHA256())


def _time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)
