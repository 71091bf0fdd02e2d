"""CAs of one's own: what is taken, and what is said about what is not."""

import datetime
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from meshbus_ca.authority import PLUGGED
from meshbus_ca.issue import Names, issue_leaf
from meshbus_ca.plugged import PluggedError, check_plugged, read_plugged

NOW = 1_900_000_000.0
DAY = 86400
REVIEWS = "spiffe://cluster.local/ns/default/sa/reviews"


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def moment(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


class Made:
    """A certificate with its key."""

    def __init__(self, subject, above=None, *, key=None, ca=True, depth=None, ends=NOW + DAY):
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        signer = above or self
        self.name = name(subject)
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(signer.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(moment(NOW - DAY))
            .not_valid_after(moment(ends))
        )
        if ca is not None:
            constraints = x509.BasicConstraints(ca=ca, path_length=depth)
            builder = builder.add_extension(constraints, critical=True)
        self.certificate = builder.sign(signer.key, hashes.SHA256())

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self, secret=None) -> bytes:
        encryption = (
            serialization.BestAvailableEncryption(secret)
            if secret
            else serialization.NoEncryption()
        )
        form = serialization.PrivateFormat.PKCS8
        return self.key.private_bytes(serialization.Encoding.PEM, form, encryption)


def files(signer: Made, root: Made, *chain: Made) -> dict[str, bytes]:
    return {
        "ca-cert.pem": signer.pem,
        "ca-key.pem": signer.key_pem(),
        "root-cert.pem": root.pem,
        "cert-chain.pem": b"".join(c.pem for c in (signer, *chain)),
    }


def test_leaves_of_a_plugged_in_ca_verify_up_to_its_root_and_the_chain_has_no_root():
    root = Made("root")
    middle = Made("middle", root)
    signer = Made("signer", middle, depth=0)
    authority = check_plugged(files(signer, root, middle, root), NOW)
    assert authority.kind == PLUGGED
    assert authority.chain == (signer.certificate, middle.certificate)
    assert authority.roots == (root.certificate,)
    assert "PRIVATE" not in repr(authority)


def test_several_roots_are_a_change_in_progress_and_the_signers_own_comes_first():
    root, other = Made("root"), Made("other")
    signer = Made("signer", root)
    given = files(signer, root)
    given["root-cert.pem"] = other.pem + root.pem
    assert check_plugged(given, NOW).roots == (root.certificate, other.certificate)


def _changed(**changes):
    root = Made("root")
    signer = Made("signer", root)
    return files(signer, root) | {k.replace("_", "-") + ".pem": v for k, v in changes.items()}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda: _changed(ca_key=Made("x").key_pem()), "ca-key.pem is not the key"),
        (lambda: _changed(ca_key=Made("x").key_pem(b"secret")), "encrypted"),
        (lambda: _changed(ca_key=b"no key"), "ca-key.pem: no PEM private key"),
        (lambda: _changed(ca_cert=b"no certificate"), "ca-cert.pem: no PEM certificate"),
        (lambda: _changed(root_cert=Made("root").pem), "no way from ca-cert.pem"),
        (lambda: files(Made("s", r := Made("root"), ca=False), r), "CA:TRUE is missing"),
        (lambda: files(Made("s", r := Made("root"), ca=None), r), "CA:TRUE is missing"),
        (lambda: files(Made("s", r := Made("root"), ends=NOW - 1), r), "has expired"),
        (lambda: files(Made("s", r := Made("root", ends=NOW)), r), "root-cert.pem.*has expired"),
        (lambda: files(Made("s", r := Made("root", depth=0)), r), "allows 0"),
        (
            lambda: files(Made("s", m := Made("m", r := Made("root"), depth=0)), r, m),
            "allows 0",
        ),
        (
            lambda: files(
                Made("s", r := Made("root"), key=rsa.generate_private_key(65537, 1024)), r
            ),
            "1024 bits",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(given, said):
    with pytest.raises(PluggedError, match=said) as refused:
        check_plugged(given(), NOW)
    assert "BEGIN" not in str(refused.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PluggedError, match=r"ca-cert\.pem cannot be read: No such file"):
        read_plugged(tmp_path, NOW)


def _istios(folder, mark: str, root: str) -> dict[str, bytes]:
    given = {
        f"{part}.pem": (folder / "certs" / f"{part}{mark}.pem").read_bytes()
        for part in ("ca-cert", "ca-key", "cert-chain")
    }
    return given | {"root-cert.pem": (folder / "certs" / root).read_bytes()}


@pytest.mark.parametrize(
    ("mark", "root", "roots"),
    [
        ("", "root-cert.pem", 1),
        ("-alt", "root-cert-alt.pem", 1),
        ("-alt", "root-cert-combined.pem", 2),
    ],
)
def test_istios_own_material_signs(shared_data, mark, root, roots):
    """RSA, made for Istio's tests of `cacerts`."""
    now = time.time()
    authority = check_plugged(_istios(shared_data, mark, root), now)
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = issue_leaf(authority.signer, key.public_key(), Names(REVIEWS), 3600, now)
    leaf.verify_directly_issued_by(authority.chain[0])
    authority.chain[-1].verify_directly_issued_by(authority.root)
    assert len(authority.roots) == roots


def test_istios_second_alternative_has_the_key_of_another_certificate(shared_data):
    with pytest.raises(PluggedError, match="is not the key of"):
        check_plugged(_istios(shared_data, "-alt-2", "root-cert-combined-2.pem"), time.time())
