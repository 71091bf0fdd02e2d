"""Bytes on the wire, bookkeeping of changes, secrets."""

from typing import Any

import pytest
from envoy.config.core.v3 import base_pb2 as core_pb2
from envoy.extensions.transport_sockets.tls.v3 import (
    secret_pb2,
    tls_spiffe_validator_config_pb2,
)
from envoy.service.discovery.v3 import discovery_pb2
from meshbus_xds_gateway.content import Change
from meshbus_xds_gateway.convergence import MAX_CHANGES, Convergence
from meshbus_xds_gateway.secret_resources import (
    UnusableSecretError,
    credential_secret,
    trust_secret,
)
from meshbus_xds_gateway.session_state import ProtocolError, push_of
from meshbus_xds_gateway.verdicts import MAX_REFUSALS, Refusal, Verdicts
from meshbus_xds_gateway.wire import decode_delta, delta_response, sotw_response
from xds_client import res

from meshbus.compile.resources import CDS
from meshbus.model.rows import Trust


def test_joined_response_is_what_protobuf_reads():
    one, two = res(CDS, "one"), res(CDS, "two")
    push = push_of(CDS, (Change(CDS, (one, two), ("three",)),))
    data = delta_response(push)
    response = discovery_pb2.DeltaDiscoveryResponse.FromString(data)
    assert (response.type_url, response.nonce) == (CDS, push.nonce)
    assert [(r.name, r.version, r.resource.value) for r in response.resources] == [
        ("one", one.version, one.body),
        ("two", two.version, two.body),
    ]
    assert response.resources[0].resource.type_url == CDS
    assert list(response.removed_resources) == ["three"]
    whole = discovery_pb2.DiscoveryResponse.FromString(sotw_response(CDS, "v", "8", (one, two)))
    assert [r.value for r in whole.resources] == [one.body, two.body]
    assert (whole.type_url, whole.version_info, whole.nonce) == (CDS, "v", "8")


@pytest.mark.parametrize("data", [b"", b"\xff\xff\xff", b"\x08"])
def test_requests_that_are_none(data):
    with pytest.raises(ProtocolError):
        decode_delta(data)


def test_acknowledgements_of_one_response_are_decoded_once():
    def said(nonce: str, **fields: Any) -> bytes:
        request = discovery_pb2.DeltaDiscoveryRequest(type_url=CDS, response_nonce=nonce, **fields)
        return request.SerializeToString()

    first, again = decode_delta(said("1")), decode_delta(said("1"))
    assert again is first
    assert (first.type_url, first.response_nonce, first.error_detail) == (CDS, "1", None)
    assert decode_delta(said("2")).response_nonce == "2"
    node = core_pb2.Node(id="a")
    assert decode_delta(said("1", node=node)).node.id == "a"
    assert decode_delta(said("1")).node.id == ""
    nack = decode_delta(said("1", error_detail={"message": "why"}))
    assert nack.error_detail is not None
    assert nack.error_detail.message == "why"
    for number in range(1000):
        assert decode_delta(said(f"n{number}")).response_nonce == f"n{number}"


def test_latency_from_the_write_to_the_last_ack():
    changes = Convergence()
    changes.arrived(5, 100.0)
    changes.arrived(9, 101.0)
    assert changes.latency_s(5) is None
    assert [c.sequence for c in changes.settled(5, 100.5)] == [5]
    assert changes.latency_s(5) == pytest.approx(0.5)
    assert changes.latency_s(9) is None
    changes.settled(9, 103.0)
    assert changes.latency_s(7) == pytest.approx(2.0), "7 was part of the change that ended at 9"
    assert changes.latency_s(10) is None
    for sequence in range(10, 10 + MAX_CHANGES):
        changes.arrived(sequence, 0.0)
    assert changes.latency_s(5) is None, "forgotten, not guessed"


def test_refusals_are_bounded():
    refusals = Verdicts()
    for i in range(MAX_REFUSALS + 10):
        for proxy in ("p", "q"):
            refusals.refuse(Refusal(res(CDS, "a", str(i)), "no", proxy, 1, None))
    assert len(refusals.refusals()) == MAX_REFUSALS


def test_parts_of_a_secret():
    data = {"tls.crt": b"chain", "tls.key": b"key", "ca.crt": b"roots"}
    secret = secret_pb2.Secret.FromString(
        credential_secret("kubernetes://x", "certificate", data).body
    )
    assert secret.name == "kubernetes://x"
    assert secret.tls_certificate.private_key.inline_bytes == b"key"
    secret = secret_pb2.Secret.FromString(credential_secret("x-cacert", "ca", data).body)
    assert secret.validation_context.trusted_ca.inline_bytes == b"roots"
    with pytest.raises(UnusableSecretError, match="cert and key"):
        credential_secret("x", "certificate", {"tls.crt": b"chain"})
    for names in (("ca.crt", "ca.crl"), ("cacert", "crl")):
        parts = dict(zip(names, (b"roots", b"list"), strict=True))
        secret = secret_pb2.Secret.FromString(credential_secret("x", "ca", parts).body)
        assert secret.validation_context.crl.inline_bytes == b"list"
    stapled = {**data, "tls.ocsp-staple": b"answer"}
    secret = secret_pb2.Secret.FromString(credential_secret("x", "certificate", stapled).body)
    assert secret.tls_certificate.ocsp_staple.inline_bytes == b"answer"


def validator(secret: secret_pb2.Secret) -> dict[str, bytes]:
    """Roots by trust domain."""
    custom = secret.validation_context.custom_validator_config
    assert custom.name == "envoy.tls.cert_validator.spiffe"
    config = tls_spiffe_validator_config_pb2.SPIFFECertValidatorConfig()
    assert custom.typed_config.Unpack(config)
    return {d.name: d.trust_bundle.inline_bytes for d in config.trust_domains}


def test_each_trust_domain_vouches_for_itself():
    own = Trust("a", "A", crl_pem="list", crl_whole=True)
    alone = secret_pb2.Secret.FromString(trust_secret("ROOTCA", own).body).validation_context
    assert (alone.trusted_ca.inline_bytes, alone.crl.inline_bytes) == (b"A", b"list")
    assert alone.only_verify_leaf_cert_crl
    more = trust_secret("ROOTCA", own, [Trust("a", "+")], ["old"])
    context = secret_pb2.Secret.FromString(more.body).validation_context
    assert context.trusted_ca.inline_bytes == b"A+"
    others = [Trust("b", "B"), Trust("a", "+"), Trust("old", "O")]
    made = secret_pb2.Secret.FromString(trust_secret("ROOTCA", own, others, ["old", "ago"]).body)
    assert validator(made) == {"a": b"A+list", "ago": b"A+list", "b": b"B", "old": b"O"}
    # A list without those of all on the way would make Envoy refuse everybody.
    part = Trust("a", "A", crl_pem="list")
    made = secret_pb2.Secret.FromString(trust_secret("ROOTCA", part, [Trust("b", "B")]).body)
    assert validator(made)["a"] == b"A"
