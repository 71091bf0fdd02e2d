"""What a signer elsewhere gives is believed as far as it can be checked."""

import time
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from meshbus_ca.authority import fingerprint
from meshbus_ca.external import Chain, Roots, SignerError, check_csr, checked
from meshbus_ca.issue import InvalidCsrError, Names, issue_leaf, make_intermediate, make_root

NOW = time.time()
WEB = "spiffe://cluster.local/ns/default/sa/web"
KEY = ec.generate_private_key(ec.SECP256R1())
ROOT, OTHER = (make_root("elsewhere", NOW) for _ in range(2))
MIDDLE = make_intermediate(ROOT, "elsewhere", NOW)


def leaf(signer: Any = MIDDLE, key: Any = KEY, **names: Any) -> x509.Certificate:
    granted = Names(**{"spiffe_id": WEB, **names})
    return issue_leaf(signer, key.public_key(), granted, 600, NOW)


def check(*certificates: x509.Certificate, roots: Any = (ROOT,), now: float = NOW) -> Any:
    found = [r.certificate for r in roots]
    return checked(Chain(certificates), KEY.public_key(), Names(WEB), found, now)


def test_a_chain_up_to_a_root_is_taken_without_the_root():
    own = leaf()
    made = check(own, MIDDLE.certificate, ROOT.certificate)
    assert made.chain_pem.count("BEGIN") == 2
    assert made.signer == fingerprint(MIDDLE.certificate)
    assert made.root == fingerprint(ROOT.certificate)
    straight = check(leaf(ROOT))
    assert straight.chain_pem.count("BEGIN") == 1
    assert straight.signer == straight.root == fingerprint(ROOT.certificate)
    # Whatever order, whatever else.
    noise = OTHER.certificate
    assert check(own, noise, ROOT.certificate, MIDDLE.certificate).chain_pem == made.chain_pem


@pytest.mark.parametrize(
    ("certificates", "message"),
    [
        ((), "0 certificates"),
        ((leaf(key=ec.generate_private_key(ec.SECP256R1())), MIDDLE.certificate), "another key"),
        ((leaf(spiffe_id=WEB + "-admin"), MIDDLE.certificate), "is not for"),
        ((leaf(dns_names=("bank.example",)), MIDDLE.certificate), "DNS names"),
        ((leaf(),), "no way"),
        ((leaf(OTHER),), "no way"),
        ((MIDDLE.certificate,), "another key"),
    ],
)
def test_what_was_not_asked_for_is_refused(certificates, message):
    with pytest.raises(SignerError, match=message):
        check(*certificates)


def test_certificates_of_another_time_are_refused():
    for now in (NOW - 3600, NOW + 3600):
        with pytest.raises(SignerError, match="not valid now"):
            check(leaf(), MIDDLE.certificate, now=now)


def csr(*names: str) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names:
        san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(n) for n in names])
        builder = builder.add_extension(san, critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def test_a_csr_for_a_signer_asks_for_the_proved_identity_alone():
    check_csr(csr(WEB), Names(WEB))
    for names in ((), (WEB + "x",), (WEB, WEB + "x")):
        with pytest.raises(InvalidCsrError):
            check_csr(csr(*names), Names(WEB))


def test_roots_in_a_file_follow_it_and_a_bad_one_changes_nothing(tmp_path):
    path = tmp_path / "roots.pem"
    roots = Roots(str(path))
    roots.look()
    assert roots.pem == ""
    assert "roots.pem" in roots.problem
    path.write_text(ROOT.pem)
    roots.look()
    assert (roots.pem, roots.problem) == (ROOT.pem, "")
    path.write_text("nonsense")
    roots.look()
    assert roots.pem == ROOT.pem
    assert roots.problem
    path.write_text(ROOT.pem + OTHER.pem)
    roots.look()
    assert roots.certificates == [ROOT.certificate, OTHER.certificate]


def test_roots_of_a_signer_of_kubernetes_are_those_that_the_mesh_config_says():
    roots = Roots("", "example.com/mesh")
    others = {"pem": OTHER.pem, "certSigners": ["example.com/other"]}
    roots.look({"caCertificates": [others, {"pem": OTHER.pem}]})
    assert roots.pem == ""
    assert "example.com/mesh in certSigners" in roots.problem
    own = {"pem": ROOT.pem, "certSigners": ["example.com/first", "example.com/mesh"]}
    roots.look({"caCertificates": [others, own]})
    assert (roots.certificates, roots.problem) == ([ROOT.certificate], "")
    roots.look({"caCertificates": [own | {"pem": "nonsense"}]})
    assert roots.certificates == [ROOT.certificate], "what was in force stays"
    assert roots.problem
    roots.look(None)
    assert roots.certificates == [ROOT.certificate]
