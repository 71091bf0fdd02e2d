"""Certificates, grants, tokens, trust and the keystore: no network."""

import base64
import json
import stat

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.x509.verification import PolicyBuilder, Store
from meshbus_ca.grants import ForbiddenError, granted_names
from meshbus_ca.issue import (
    BACKDATE_S,
    InvalidCsrError,
    Names,
    issue_leaf,
    make_intermediate,
    make_root,
    pem_of,
    public_key_of,
)
from meshbus_ca.keystore import Keystore, KeystoreError
from meshbus_ca.tokens import AUDIENCE, InvalidTokenRequestError, issuer_of, join_token
from meshbus_ca.trust import trust_row

from meshbus.model.requests import JoinTokenRequest, SignRequest

NOW = 1_900_000_000.0
TD = "cluster.local"
REVIEWS = f"spiffe://{TD}/ns/default/sa/reviews"


def csr(key=None, names=()) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names:
        sans = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(n) for n in names])
        builder = builder.add_extension(sans, critical=False)
    signed = builder.sign(key or ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode()


def ask(**fields) -> SignRequest:
    fields = {"csr_pem": "", "service": "xds-gateway", "spiffe_id": REVIEWS, **fields}
    return SignRequest(**fields)


def grant(**fields) -> Names:
    return granted_names(ask(**fields), trust_domain=TD, root_namespace="istio-system")


def test_leaf_is_what_was_granted_and_verifies_up_to_the_root():
    root = make_root(TD, NOW)
    intermediate = make_intermediate(root, TD, NOW)
    request = csr(names=["spiffe://evil/ns/x/sa/y"])
    leaf = issue_leaf(intermediate, public_key_of(request), Names(REVIEWS), 3600, NOW)
    sans = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert [name.value for name in sans.value] == [REVIEWS], "names of the CSR do not count"
    assert sans.critical
    assert leaf.not_valid_before_utc.timestamp() == NOW - BACKDATE_S
    assert leaf.not_valid_after_utc.timestamp() == NOW + 3600
    verifier = (
        PolicyBuilder()
        .store(Store([root.certificate]))
        .time(leaf.not_valid_before_utc)
        .build_client_verifier()
    )
    assert verifier.verify(leaf, [intermediate.certificate]).chain[0] == leaf


def test_leaf_does_not_outlive_its_signer():
    root = make_root(TD, NOW)
    intermediate = make_intermediate(root, TD, NOW)
    late = intermediate.not_after - 100
    leaf = issue_leaf(intermediate, public_key_of(csr()), Names(REVIEWS), 3600, late)
    assert leaf.not_valid_after_utc.timestamp() == intermediate.not_after


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not a PEM"),
        ("x" * 9000, "bytes"),
        (csr(ec.generate_private_key(ec.SECP521R1())), "curve"),
        (csr(rsa.generate_private_key(65537, 1024)), "1024 bits"),
        (csr(dsa.generate_private_key(2048)), "EC or RSA"),
    ],
    ids=["empty", "large", "curve", "short", "dsa"],
)
def test_keys_that_are_not_signed(text, why):
    with pytest.raises(InvalidCsrError, match=why):
        public_key_of(text)


def test_csr_signed_by_another_key_is_refused():
    good = x509.load_pem_x509_csr(csr().encode()).public_bytes(serialization.Encoding.DER)
    broken = bytearray(good)
    broken[-3] ^= 1
    body = base64.encodebytes(bytes(broken)).decode()
    pem = f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n"
    with pytest.raises(InvalidCsrError):
        public_key_of(pem)


def test_gateway_may_ask_for_any_workload_and_services_for_themselves():
    assert grant().spiffe_id == REVIEWS
    own = f"spiffe://{TD}/ns/istio-system/sa/meshbus-policy"
    names = grant(
        service="policy",
        spiffe_id=own,
        dns_names=["policy.istio-system.svc", "localhost"],
        ip_addresses=["127.0.0.1"],
    )
    assert names.dns_names == ("policy.istio-system.svc", "localhost")


@pytest.mark.parametrize(
    "fields",
    [
        {"service": "policy"},
        {"service": "local"},
        {"spiffe_id": "spiffe://other.domain/ns/default/sa/reviews"},
        {"spiffe_id": f"spiffe://{TD}/ns/default"},
        {"spiffe_id": f"spiffe://{TD}/ns/default/sa/a/b"},
        {"spiffe_id": f"spiffe://{TD}/ns/De fault/sa/a"},
        {"spiffe_id": f"spiffe://{TD}/ns/default/sa/reviews\n"},
        {"spiffe_id": f"spiffe://{TD}/ns/istio-system/sa/meshbus-ca"},
        {"dns_names": ["xds-gateway.istio-system.svc"]},
        {
            "service": "policy",
            "spiffe_id": f"spiffe://{TD}/ns/istio-system/sa/meshbus-policy",
            "dns_names": ["xds-gateway.istio-system.svc"],
        },
        {
            "service": "policy",
            "spiffe_id": f"spiffe://{TD}/ns/istio-system/sa/meshbus-policy",
            "ip_addresses": ["not-an-address"],
        },
    ],
)
def test_names_that_are_not_granted(fields):
    with pytest.raises(ForbiddenError):
        grant(**fields)


def token_request(**fields) -> JoinTokenRequest:
    fields = {
        "namespace": "default",
        "service_account": "reviews",
        "instance": "reviews-v1-0",
        "workload": "reviews-v1",
        "public_key": "",
        **fields,
    }
    return JoinTokenRequest(**fields)


def test_join_token_verifies_with_the_published_keys(tmp_path):
    key = Keystore(tmp_path, TD).token_key()
    issuer = issuer_of(TD, "istio-system")
    token, expires = join_token(token_request(), key=key, issuer=issuer, token_id="1", now=NOW)
    published = jwt.PyJWKSet.from_dict({"keys": [key.jwk]})
    kid = jwt.get_unverified_header(token)["kid"]
    claims = jwt.decode(
        token,
        published[kid].key,
        algorithms=["ES256"],
        audience=AUDIENCE,
        issuer=issuer,
        options={"verify_iat": False, "verify_exp": False},
    )
    assert claims["sub"] == "system:serviceaccount:default:reviews"
    assert claims["kubernetes.io"]["pod"] == {"name": "reviews-v1-0"}
    assert claims["exp"] == expires == NOW + 3600


@pytest.mark.parametrize("field", ["namespace", "service_account", "instance"])
def test_join_token_names_are_checked(tmp_path, field):
    key = Keystore(tmp_path, TD).token_key()
    with pytest.raises(InvalidTokenRequestError, match=field):
        join_token(token_request(**{field: "a:b"}), key=key, issuer="i", token_id="1", now=NOW)


def test_keystore_keeps_its_keys_private_and_across_restarts(tmp_path):
    first = Keystore(tmp_path / "ca", TD)
    root = first.root(NOW)
    intermediate = first.intermediate(root, NOW)
    key = first.token_key()
    for path in (tmp_path / "ca").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    again = Keystore(tmp_path / "ca", TD)
    assert again.root(NOW).pem == root.pem
    assert again.intermediate(root, NOW).pem == intermediate.pem
    assert again.token_key().key_id == key.key_id
    assert "PRIVATE" not in repr((root, intermediate, key))


def test_intermediate_is_renewed_at_half_of_its_life(tmp_path):
    store = Keystore(tmp_path, TD)
    root = store.root(NOW)
    before = store.intermediate(root, NOW)
    later = NOW + 200 * 86400
    after = store.intermediate(root, later)
    assert after.pem != before.pem
    assert store.intermediate(root, later).pem == after.pem


def test_keystore_that_others_can_read_is_refused(tmp_path):
    store = Keystore(tmp_path, TD)
    store.root(NOW)
    (tmp_path / "root.pem").chmod(0o644)
    with pytest.raises(KeystoreError, match="chmod 600"):
        store.root(NOW)


def test_broken_root_is_never_replaced(tmp_path):
    (tmp_path / "root.pem").write_text("nonsense")
    (tmp_path / "root.pem").chmod(0o600)
    with pytest.raises(KeystoreError):
        Keystore(tmp_path, TD).root(NOW)
    assert (tmp_path / "root.pem").read_text() == "nonsense"


def test_trust_row_keeps_the_roots_of_a_ca_that_lost_its_state(tmp_path):
    old, new = Keystore(tmp_path / "old", TD), Keystore(tmp_path / "new", TD)
    row = trust_row(TD, "i", [old.root(NOW).pem], old.token_key(), None, NOW)
    assert trust_row(TD, "i", [old.root(NOW).pem], old.token_key(), row, NOW) == row
    both = trust_row(TD, "i", [new.root(NOW).pem], new.token_key(), row, NOW)
    assert both.roots_pem == new.root(NOW).pem + old.root(NOW).pem
    assert len(json.loads(both.token_jwks)["keys"]) == 2
    after = trust_row(TD, "i", [new.root(NOW).pem], new.token_key(), both, NOW + 11 * 365 * 86400)
    assert after.roots_pem == new.root(NOW).pem
    assert pem_of(new.root(NOW).certificate) == after.roots_pem


def test_a_join_token_says_which_group_let_its_machine_in(tmp_path):
    key = Keystore(tmp_path, TD).token_key()

    def bound(**fields):
        request = token_request(**fields)
        token, _ = join_token(request, key=key, issuer="i", token_id="1", now=NOW)
        return jwt.decode(token, options={"verify_signature": False})["kubernetes.io"]

    assert bound(group="vm")["workloadgroup"] == {"name": "vm"}
    assert "workloadgroup" not in bound()
    with pytest.raises(InvalidTokenRequestError, match="group"):
        bound(group="a:b")
