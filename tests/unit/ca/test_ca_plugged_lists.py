"""Revocation lists beside a plugged-in CA: what is taken from them, and what is refused."""

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from meshbus_ca.authority import fingerprint
from meshbus_ca.issue import Signer, make_intermediate, make_root
from meshbus_ca.plugged_lists import LISTS, ListsError, PluggedLists, lists_of
from meshbus_ca.revocation import are_covered, in_force, revocation_lists, signers_of

NOW = 1_800_000_000.0
DAY = 86_400.0
ROOT = make_root("cluster.local", NOW)
SIGNER = make_intermediate(ROOT, "cluster.local", NOW)
BEFORE = make_intermediate(ROOT, "cluster.local", NOW)
OWN = signers_of([SIGNER])
CAS = [SIGNER.certificate, ROOT.certificate]


def moment(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def crl(by: Signer, *serials: int, made: float = NOW, ends: float = NOW + 30 * DAY) -> bytes:
    """As an authority elsewhere writes it: without key identifier."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(by.certificate.subject)
        .last_update(moment(made))
        .next_update(moment(ends))
    )
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial)
        builder = builder.add_revoked_certificate(entry.revocation_date(moment(made)).build())
    return builder.sign(by.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def plugged(folder: Path, data: bytes) -> PluggedLists:
    (folder / LISTS).write_bytes(data)
    lists = PluggedLists(folder)
    lists.look(CAS, [SIGNER.certificate])
    return lists


def test_leaves_of_the_signer_are_taken_back_and_lists_above_are_handed_on(tmp_path: Path) -> None:
    gone = BEFORE.certificate.serial_number
    data = crl(SIGNER, 0xA1, 0xB2) + b"\n" + crl(ROOT, gone)
    lists = PluggedLists(tmp_path)
    (tmp_path / LISTS).write_bytes(data)
    assert lists.look(CAS, [SIGNER.certificate])
    assert not lists.look(CAS, [SIGNER.certificate]), "nothing new"
    assert {c.serial for c in lists.revoked(OWN)} == {"a1", "b2"}
    (above,) = lists.above(OWN, NOW)
    assert above[1] == ROOT.certificate
    assert lists.warnings(OWN, NOW) == []

    revoked, _ = in_force([], None, NOW, lists.revoked(OWN))
    assert {c.signer for c in revoked} == {fingerprint(SIGNER.certificate)}
    made = revocation_lists(revoked, OWN, {}, "", NOW, [above[0]])
    assert made.count("BEGIN X509 CRL") == 2, "one of the signer, one of the root"
    again = revocation_lists(revoked, OWN, {}, made, NOW + 60, [above[0]])
    assert again == made, "the same lists are not signed again"
    with pytest.raises(ListsError, match="no list in PEM"):
        lists_of(data + b"rest", CAS, [])


def test_every_ca_up_to_the_root_has_a_list_or_not() -> None:
    assert are_covered(CAS, CAS)
    assert not are_covered(CAS, [SIGNER.certificate])
    # A CA is its name and key: another certificate of it has the same lists.
    assert are_covered([ROOT.certificate], [make_root("x", NOW).certificate, ROOT.certificate])


def test_of_one_ca_the_newest_counts() -> None:
    old, new = crl(SIGNER, 1, made=NOW), crl(SIGNER, 1, 2, made=NOW + 5)
    for data in (old + new, new + old):
        ((found, _),) = lists_of(data, CAS, [])
        assert {entry.serial_number for entry in found} == {1, 2}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"nothing of the kind", "no list in PEM"),
        (b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", "cannot be read"),
        (crl(make_root("cluster.local", NOW), 1), "signed by none"),
        (crl(ROOT, SIGNER.certificate.serial_number), "plug in its successor first"),
        (b"x" * 300_000, "more than"),
    ],
)
def test_what_cannot_be_used_changes_nothing_and_is_said(
    tmp_path: Path, data: bytes, said: str
) -> None:
    lists = plugged(tmp_path, crl(SIGNER, 7))
    (tmp_path / LISTS).write_bytes(data)
    assert not lists.look(CAS, [SIGNER.certificate])
    assert said in lists.problem
    assert lists.warnings(OWN, NOW) == [lists.problem]
    assert [c.serial for c in lists.revoked(OWN)] == ["7"], "the ones before stay"
    (tmp_path / LISTS).unlink()
    assert lists.look(CAS, [SIGNER.certificate])
    assert lists.problem == ""
    assert not lists.revoked(OWN)


def test_a_list_that_ends_is_warned_of_and_not_handed_on_when_it_has(tmp_path: Path) -> None:
    lists = plugged(tmp_path, crl(ROOT, ends=NOW + 10 * DAY))
    assert lists.warnings(OWN, NOW) == []
    assert "ends in 5 days" in lists.warnings(OWN, NOW + 5 * DAY)[0]
    assert lists.above(OWN, NOW + 9 * DAY)
    assert not lists.above(OWN, NOW + 11 * DAY)
    assert "has ended" in lists.warnings(OWN, NOW + 11 * DAY)[0]


def test_another_signer_below_the_same_root_reads_the_same_file_again(tmp_path: Path) -> None:
    lists = plugged(tmp_path, crl(SIGNER, 7))
    (tmp_path / LISTS).write_bytes(crl(SIGNER, 7) + crl(BEFORE, 8))
    assert not lists.look(CAS, [SIGNER.certificate])
    assert "signed by none" in lists.problem
    assert lists.look([*CAS, BEFORE.certificate], [SIGNER.certificate])
    assert {c.serial for c in lists.revoked(signers_of([SIGNER, BEFORE]))} == {"7", "8"}
