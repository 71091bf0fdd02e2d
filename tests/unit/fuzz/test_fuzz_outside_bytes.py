"""Every parser of bytes from outside, under bytes that nobody meant: it gives its own refusal and
never another exception. `MESHBUS_FUZZ_EXAMPLES` says how many each gets (150)."""

import json
import os
import time
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from meshbus_ca.authority import fingerprint
from meshbus_ca.bundles import BundleError, bundle_document, read_bundle, read_roots
from meshbus_ca.issue import InvalidCsrError, make_intermediate, make_root, pem_of, public_key_of
from meshbus_ca.plugged import PluggedError, check_plugged
from meshbus_ca.plugged_lists import ListsError, lists_of
from meshbus_ca.revocation import revocation_lists, signers_of
from meshbus_config.errors import ApiError
from meshbus_config.negotiation import decode
from meshbus_xds_gateway.node import RefusedError, keys_of_node, node_of
from meshbus_xds_gateway.session_state import ProtocolError
from meshbus_xds_gateway.wire import decode_delta, decode_sotw

from meshbus.api.yaml_text import NotReadableError, read_yaml
from meshbus.model.rows import RevokedCertificate, Trust
from meshbus.runtime.workload_tokens import TokenError, WorkloadToken, check_token
from meshbus.validate.document import validate_object

NOW = time.time()
fuzz = settings(
    max_examples=int(os.environ.get("MESHBUS_FUZZ_EXAMPLES", "150")),
    deadline=2000,
    suppress_health_check=[HealthCheck.too_slow],
)


def spoiled(*samples: bytes) -> st.SearchStrategy[bytes]:
    """Good bytes with parts cut out, put in, doubled or changed; and bytes of no kind."""
    position, piece = st.integers(0, 4096), st.binary(max_size=40)

    def spoil(sample: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
        out = sample
        for begin, length, new in changes:
            begin %= len(out) + 1
            out = out[:begin] + new + out[begin + length % 64 :]
        return out

    changes = st.lists(st.tuples(position, st.integers(0, 64), piece), max_size=6)
    return st.one_of(st.builds(spoil, st.sampled_from(samples), changes), st.binary(max_size=300))


KEY = ec.generate_private_key(ec.SECP256R1())
ROOT = make_root("cluster.local", NOW)
SIGNER = make_intermediate(ROOT, "cluster.local", NOW)
CSR = (
    x509.CertificateSigningRequestBuilder()
    .subject_name(x509.Name([]))
    .sign(KEY, hashes.SHA256())
    .public_bytes(serialization.Encoding.PEM)
)
FILES = {
    "ca-cert.pem": SIGNER.pem.encode(),
    "ca-key.pem": SIGNER.key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ),
    "root-cert.pem": ROOT.pem.encode(),
    "cert-chain.pem": (SIGNER.pem + pem_of(ROOT.certificate)).encode(),
}
LISTS = revocation_lists(
    [RevokedCertificate("a1", "", fingerprint(SIGNER.certificate), NOW, NOW + 60)],
    signers_of([SIGNER]),
    signers_of([ROOT]),
    "",
    NOW,
).encode()
JWK = {**json.loads(jwt.algorithms.ECAlgorithm.to_jwk(KEY.public_key())), "kid": "k"}
JWKS = json.dumps({"keys": [JWK]})
TRUST = Trust("cluster.local", "", JWKS, "issuer")
CLAIMS = {
    "jti": "1",
    "iss": "issuer",
    "aud": ["istio-ca"],
    "exp": int(NOW) + 600,
    "sub": "system:serviceaccount:default:web",
    "kubernetes.io": {"namespace": "default", "pod": {"name": "web-0"}},
}
TOKEN = jwt.encode(CLAIMS, KEY, "ES256", headers={"kid": "k"})
BUNDLE = bundle_document(ROOT.pem, 3, 300)
NODE = ParseDict(
    {
        "id": "sidecar~10.0.0.1~web-0.default~default.svc.cluster.local",
        "cluster": "web",
        "metadata": {"NAMESPACE": "default", "LABELS": {"app": "web"}, "INSTANCE_IPS": "10.0.0.1"},
    },
    base_pb2.Node(),
)
DELTA = discovery_pb2.DeltaDiscoveryRequest(
    node=NODE, type_url="t", resource_names_subscribe=["a"], initial_resource_versions={"a": "1"}
)
SOTW = discovery_pb2.DiscoveryRequest(node=NODE, type_url="t", resource_names=["a"])
YAML = b"""apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: default, labels: {a: &x b, c: *x}}
spec:
  hosts: [web]
  http: [{match: [{uri: {prefix: /a}}], route: [{destination: {host: web}, weight: 100}]}]
"""


@fuzz
@given(spoiled(CSR))
def test_csr(data: bytes) -> None:
    try:
        public_key_of(data.decode("utf-8", "replace"))
    except InvalidCsrError:
        return


@fuzz
@given(st.sampled_from(sorted(FILES)), st.data())
def test_pem_of_a_plugged_in_ca(name: str, data: Any) -> None:
    files = {**FILES, name: data.draw(spoiled(FILES[name]))}
    try:
        check_plugged(files, NOW)
    except PluggedError:
        return


@fuzz
@given(spoiled(LISTS))
def test_pem_of_revocation_lists(data: bytes) -> None:
    try:
        lists_of(data, [SIGNER.certificate, ROOT.certificate], [SIGNER.certificate])
    except ListsError:
        return


@fuzz
@given(spoiled(ROOT.pem.encode(), FILES["cert-chain.pem"]))
def test_pem_of_other_trust_domains(data: bytes) -> None:
    try:
        read_roots(data.decode("utf-8", "replace"))
    except BundleError:
        return


@fuzz
@given(spoiled(TOKEN.encode()))
def test_jwt(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    try:
        found = check_token(text, TRUST, NOW)
    except TokenError:
        return
    # Only what was signed holds.
    assert found[:3] == ("default", "web", "web-0")


@fuzz
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=8))
def test_claims_of_any_kind(value: Any) -> None:
    for name in ("exp", "nbf", "sub", "kubernetes.io", "aud", "jti"):
        body = {**CLAIMS, name: value}
        try:
            made = jwt.encode(body, KEY, "ES256", headers={"kid": "k"})
        except (TypeError, ValueError):
            continue
        try:
            found = check_token(made, TRUST, NOW)
        except TokenError:
            continue
        assert isinstance(found, WorkloadToken)


@fuzz
@given(spoiled(JWKS.encode(), b'{"keys": [{"kty": "RSA", "kid": "k", "n": "AQAB", "e": "AQAB"}]}'))
def test_jwks(data: bytes) -> None:
    try:
        check_token(TOKEN, Trust("td", "", data.decode("utf-8", "replace"), "issuer"), NOW)
    except TokenError:
        return


@fuzz
@given(spoiled(BUNDLE))
def test_spiffe_bundle(data: bytes) -> None:
    try:
        read_bundle(data)
    except BundleError:
        return


@fuzz
@given(spoiled(NODE.SerializeToString()))
def test_xds_node(data: bytes) -> None:
    node = base_pb2.Node()
    try:
        node.ParseFromString(data)
    except DecodeError:
        return
    try:
        said = node_of(node)
        keys_of_node(said)
    except RefusedError:
        return


@fuzz
@given(spoiled(DELTA.SerializeToString(), SOTW.SerializeToString()))
def test_xds_requests(data: bytes) -> None:
    for read in (decode_delta, decode_sotw):
        try:
            request = read(data)
            assert isinstance(request.node.id, str)
        except ProtocolError:
            continue


@fuzz
@given(spoiled(YAML, b"a: &a [*a]", b"&a {*a: 1}", b"[" * 200, b"!!python/object:os.x {}"))
def test_yaml(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    try:
        document = read_yaml(text)
    except NotReadableError:
        document = None
    if isinstance(document, dict):
        validate_object(document)
    for media_type in ("application/yaml", "application/json"):
        try:
            decode(data, media_type)
        except ApiError:
            continue


def test_yaml_that_grows_is_refused() -> None:
    """Aliases of aliases: few bytes that stand for a great many."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    bomb = "\n".join(lines)
    with pytest.raises(NotReadableError):
        read_yaml(bomb)
    with pytest.raises(ApiError):
        decode(bomb.encode(), "application/yaml")


def test_what_is_not_spoiled_is_taken() -> None:
    assert len(lists_of(LISTS, [SIGNER.certificate, ROOT.certificate], [])) == 2
    """The samples are good: else nothing behind the first check would be reached."""
    assert public_key_of(CSR.decode())
    assert check_plugged(FILES, NOW)
    assert check_token(TOKEN, TRUST, NOW)
    assert read_bundle(BUNDLE).sequence == 3
    assert keys_of_node(node_of(NODE)).name == "web-0"
    assert validate_object(read_yaml(YAML.decode())).valid
