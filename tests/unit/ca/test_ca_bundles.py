"""Bundles of trust domains: as SPIFFE writes them, and what a mesh config asks for."""

import json
import time
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from meshbus_ca.bundles import BundleError, bundle_document, read_bundle, read_roots
from meshbus_ca.federation import EXTRA, Anchor, Federation, anchors_of
from meshbus_ca.issue import make_root
from prometheus_client import CollectorRegistry

from meshbus.model.rows import MeshConfigRow, Trust

ROOT, OTHER = (make_root("b.example", time.time()).pem for _ in range(2))


def test_a_bundle_is_read_as_it_was_written():
    document = bundle_document(ROOT + OTHER, 7, 300)
    read = read_bundle(document)
    assert read.roots_pem == ROOT + OTHER
    assert (read.sequence, read.refresh_hint_s) == (7, 300)
    key = json.loads(document)["keys"][0]
    assert {"use", "kty", "crv", "x", "y", "x5c"} == key.keys()
    assert "d" not in key


def test_keys_for_other_uses_are_passed_over():
    document = json.loads(bundle_document(ROOT, 1, 0))
    document["keys"].append({"use": "jwt-svid", "kty": "EC", "kid": "x"})
    assert read_bundle(json.dumps(document).encode()).roots_pem == ROOT


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"keys": []}',
        b'{"keys": [{"use": "x509-svid"}]}',
        b'{"keys": [{"use": "x509-svid", "x5c": ["!"]}]}',
        b'{"keys": [{"use": "x509-svid", "x5c": ["QUJD"]}]}',
        b'{"keys": [{"use": "x509-svid", "x5c": ["QUJD", "QUJD"]}]}',
        b"[" * 100_000,
        b" " * (1024 * 1024 + 1),
    ],
)
def test_what_is_no_bundle_is_refused(data):
    with pytest.raises(BundleError):
        read_bundle(data)


def test_rsa_roots():
    from meshbus_ca import issue

    key = rsa.generate_private_key(65537, 2048)
    name = issue._signer_name("root", "b")
    made = issue._signing_certificate(name, name, key.public_key(), key, time.time(), 60, None)
    pem = issue.pem_of(made)
    assert read_bundle(bundle_document(pem, 1, 1)).roots_pem == pem
    assert read_roots(pem + pem) == pem


def federation(**entries) -> Federation:
    made = Federation(
        SimpleNamespace(now=time.time),
        "a.example",
        CollectorRegistry(),
        lambda: None,
        refresh_s=60,
        web_roots="",
    )
    made.follow(MeshConfigRow({"caCertificates": entries.pop("given", [])}), entries)
    return made


def test_given_roots_are_rows_by_trust_domain():
    given = [
        {"pem": ROOT, "trustDomains": ["b.example", "c.example"]},
        {"pem": OTHER, "trustDomains": ["b.example"]},
        {"pem": OTHER},
    ]
    rows = federation(given=given).rows()
    assert rows["b.example"].roots_pem == ROOT + OTHER
    assert rows["c.example"].roots_pem == ROOT
    assert (rows[EXTRA].trust_domain, rows[EXTRA].roots_pem) == ("a.example", OTHER)
    assert set(rows) == {"b.example", "c.example", EXTRA}
    assert federation(given=[]).rows() == {}


def test_bad_roots_are_told_and_the_others_stand():
    given = [{"pem": "x", "trustDomains": ["b.example"]}, {"pem": ROOT, "trustDomains": ["c"]}]
    made = federation(given=given)
    assert set(made.rows()) == {"c"}
    (b, c) = sorted(made.status(), key=lambda one: one["trustDomain"])
    assert b["problem"] == "no PEM certificate"
    assert (c["roots"], c["problem"]) == (1, "")


async def test_what_was_got_last_stays_while_an_endpoint_is_away():
    held = Trust("b.example", ROOT, sequence=9, fetched=5.0)
    entry = {"spiffeBundleUrl": "https://127.0.0.1:1/", "trustDomains": ["b.example"]}
    made = federation(given=[entry], **{"b.example": held})
    assert made.rows() == {"b.example": held}
    made.follow(MeshConfigRow({}), {"b.example": held})
    assert made.rows() == {}


def test_entries_that_say_nothing_are_passed_over():
    assert anchors_of({"caCertificates": [{}, {"trustDomains": ["x"]}, "y"]}) == ()
    assert anchors_of({"caCertificates": "y"}) == ()


def test_authorities_of_all_proxies_are_of_the_own_trust_domain():
    spec = {"defaultConfig": {"caCertificatesPem": ["A", ""]}, "caCertificates": [{"pem": "B"}]}
    assert anchors_of(spec) == (Anchor("B", "", ""), Anchor("A", "", ""))
