"""What is revoked, and the lists that proxies check with."""

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from meshbus_ca.authority import fingerprint
from meshbus_ca.issue import Names, Signer, issue_leaf, make_intermediate, make_root
from meshbus_ca.past_signers import PastSigners
from meshbus_ca.revocation import (
    ALLOW,
    BLOCK,
    REVOKE,
    Said,
    in_force,
    revocation_lists,
    signers_of,
)

from meshbus.model.rows import RevokedCertificate, Trust

NOW = 1_800_000_000.0
WEB = "spiffe://cluster.local/ns/default/sa/web"


def revoked(serial: str, signer: str = "s", at: float = NOW, ends: float = NOW + 60):
    return RevokedCertificate(serial, WEB, signer, at, ends)


def lists_of(pem: str) -> list[x509.CertificateRevocationList]:
    end = "-----END X509 CRL-----\n"
    return [x509.load_pem_x509_crl((p + end).encode()) for p in pem.split(end) if p.strip()]


def test_what_has_ended_needs_no_list_any_more():
    said = [Said(REVOKE, NOW, certificates=(revoked("a1"), revoked("b2", ends=NOW + 5)))]
    assert [c.serial for c in in_force(said, None, NOW)[0]] == ["a1", "b2"]
    assert [c.serial for c in in_force(said, None, NOW + 5)[0]] == ["a1"]
    assert in_force(said, None, NOW + 61) == ((), ())


def test_what_the_record_has_forgotten_stays_in_the_row():
    held = Trust("cluster.local", "", revoked=(revoked("a1"),), blocked=(WEB,))
    assert in_force([], held, NOW) == ((revoked("a1"),), (WEB,))


def test_the_last_word_on_an_identity_counts():
    block, allow = Said(BLOCK, NOW, WEB, (revoked("a1"),)), Said(ALLOW, NOW + 1, WEB)
    assert in_force([block, allow], None, NOW)[1] == ()
    assert in_force([block, allow, block], None, NOW)[1] == (WEB,)
    held = Trust("cluster.local", "", blocked=(WEB,))
    assert in_force([allow], held, NOW)[1] == ()
    # To let it in again does not bring back a key that others may have.
    assert [c.serial for c in in_force([block, allow], None, NOW)[0]] == ["a1"]


def chain() -> tuple[Signer, Signer]:
    root = make_root("cluster.local", NOW)
    return root, make_intermediate(root, "cluster.local", NOW)


def test_every_signer_has_a_list_that_names_its_own_and_holds_as_long_as_it():
    root, first = chain()
    second = make_intermediate(root, "cluster.local", NOW)
    signers, roots = signers_of([first, second]), signers_of([root])
    one = revoked("a1", fingerprint(first.certificate))
    pem = revocation_lists([one], signers, roots, "", NOW)
    found = lists_of(pem)
    assert len(found) == 3
    for signer in (first, second, root):
        own = [c for c in found if c.is_signature_valid(signer.certificate.public_key())]
        (crl,) = own
        assert crl.next_update_utc == signer.certificate.not_valid_after_utc
        assert [e.serial_number for e in crl] == ([0xA1] if signer is first else [])
        # Names of signers are equal: a list is found by the key.
        leaf = issue_leaf(
            signer, ec.generate_private_key(ec.SECP256R1()).public_key(), Names(WEB), 60, NOW
        )
        by = x509.AuthorityKeyIdentifier
        assert (
            crl.extensions.get_extension_for_class(by).value.key_identifier
            == leaf.extensions.get_extension_for_class(by).value.key_identifier
        )


def test_lists_are_made_once():
    root, signer = chain()
    signers, roots = signers_of([signer]), signers_of([root])
    own = fingerprint(signer.certificate)
    first = revocation_lists([revoked("a1", own)], signers, roots, "", NOW)
    assert revocation_lists([revoked("a1", own)], signers, roots, first, NOW + 9) == first
    more = revocation_lists([revoked("a1", own), revoked("b2", own)], signers, roots, first, NOW)
    assert more != first
    # That of the root says what it said.
    assert lists_of(more)[-1].public_bytes(serialization.Encoding.DER) == lists_of(first)[
        -1
    ].public_bytes(serialization.Encoding.DER)
    assert revocation_lists([], signers, roots, more, NOW) == ""


def test_a_signer_is_kept_until_its_last_certificate_has_ended(tmp_path):
    _, first = chain()
    _, second = chain()
    past = PastSigners(tmp_path, 3600)
    past.open()
    past.signs(first, NOW)
    past.signs(second, NOW + 100)
    again = PastSigners(tmp_path, 3600)
    again.open()
    assert signers_of(again.all).keys() == signers_of([first, second]).keys()
    for path in (tmp_path / "signers").iterdir():
        assert path.stat().st_mode & 0o077 == 0
    again.signs(second, NOW + 3000)
    assert len(again.all) == 2
    again.signs(second, NOW + 4300)
    assert signers_of(again.all).keys() == signers_of([second]).keys()
    assert len(list((tmp_path / "signers").iterdir())) == 1


def test_rows_of_before_can_be_read():
    old = msgspec.msgpack.encode(["cluster.local", "pem", "{}", "issuer", "key"])
    assert msgspec.msgpack.decode(old, type=Trust).revoked == ()
