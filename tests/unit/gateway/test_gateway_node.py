"""Identity of a stream: from the token alone, and the node must agree."""

import json

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from envoy.config.core.v3 import base_pb2
from google.protobuf.json_format import ParseDict
from meshbus_xds_gateway.node import (
    RefusedError,
    check_node,
    identity_of_token,
    keys_of_node,
    node_of,
)

from meshbus.model.rows import Trust

NOW = 1_900_000_000.0
KEY, STRANGER = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
ISSUER = "https://ca.istio-system.svc.cluster.local"


def trust() -> Trust:
    jwk = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(KEY.public_key()))
    keys = json.dumps({"keys": [{**jwk, "kid": "k1", "alg": "ES256", "use": "sig"}]})
    return Trust("cluster.local", "", keys, ISSUER)


def token(key=KEY, kid="k1", algorithm="ES256", **claims) -> str:
    body = {
        "iss": ISSUER,
        "aud": ["istio-ca"],
        "exp": NOW + 3600,
        "jti": "t",
        "sub": "system:serviceaccount:default:reviews",
        "kubernetes.io": {"namespace": "default", "pod": {"name": "reviews-v1-0"}},
        **claims,
    }
    body = {name: value for name, value in body.items() if value is not None}
    return jwt.encode(body, key, algorithm, headers={"kid": kid})


def node(identifier="sidecar~10.0.0.1~reviews-v1-0.default~default.svc.cluster.local", **metadata):
    document = {"id": identifier, "metadata": metadata}
    return node_of(ParseDict(document, base_pb2.Node()))


def test_token_says_who_it_is():
    identity = identity_of_token(f"Bearer {token()}\n", trust(), NOW)
    assert identity[:4] == ("default", "reviews", "reviews-v1-0", NOW + 3600)
    assert "ey" not in repr(identity), "a log shows no token"
    check_node(node(NAMESPACE="default", SERVICE_ACCOUNT="reviews"), identity)


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Basic abc",
        "Bearer ",
        "Bearer nonsense",
        "Bearer " + "x" * 9000,
        "Bearer " + token(key=STRANGER),
        "Bearer " + token(kid="k2"),
        "Bearer " + token(aud=["kubernetes"]),
        "Bearer " + token(iss="https://elsewhere"),
        "Bearer " + token(exp=NOW - 60),
        "Bearer " + token(exp=None),
        "Bearer " + token(sub="reviews"),
        "Bearer " + token(**{"kubernetes.io": {"namespace": "default"}}),
        "Bearer " + jwt.encode({"sub": "x", "exp": NOW}, None, "none", headers={"kid": "k1"}),
        "Bearer " + token(key="s" * 32, algorithm="HS256"),
    ],
)
def test_tokens_that_do_not_hold(authorization):
    with pytest.raises(RefusedError) as refused:
        identity_of_token(authorization, trust(), NOW)
    assert refused.value.code == "UNAUTHENTICATED"
    assert len(str(refused.value)) < 300, "no token in the message"


def test_without_keys_the_proxy_is_to_come_back():
    with pytest.raises(RefusedError) as refused:
        identity_of_token(f"Bearer {token()}", None, NOW)
    assert refused.value.code == "UNAVAILABLE"


@pytest.mark.parametrize(
    "said",
    [
        node("sidecar~10.0.0.1~ratings-0.default~default.svc.cluster.local"),
        node("sidecar~10.0.0.1~reviews-v1-0.other~other.svc.cluster.local"),
        node(NAMESPACE="other"),
        node(SERVICE_ACCOUNT="ratings"),
    ],
)
def test_node_that_says_something_else(said):
    identity = identity_of_token(f"Bearer {token()}", trust(), NOW)
    with pytest.raises(RefusedError) as refused:
        check_node(said, identity)
    assert refused.value.code == "PERMISSION_DENIED"


@pytest.mark.parametrize("identifier", ["", "x", "sidecar~a~b~c", "ztunnel~1~a.b~c", "~~~"])
def test_node_ids_that_are_none(identifier):
    with pytest.raises(RefusedError):
        node(identifier)


def test_plaintext_proxy_is_what_its_node_says():
    keys = keys_of_node(
        node(
            NAMESPACE="shop",
            SERVICE_ACCOUNT="reviews",
            LABELS={"app": "reviews"},
            INSTANCE_IPS="10.0.0.1,fd00::1",
            CLUSTER_ID="c1",
        )
    )
    assert (keys.type, keys.name, keys.namespace) == ("sidecar", "reviews-v1-0", "shop")
    assert keys.label_map == {"app": "reviews"}
    assert keys.ips == ("10.0.0.1", "fd00::1")
    assert keys.families == (True, True)
    # What EnvoyFilters match by: texts.
    assert dict(keys.metadata)["CLUSTER_ID"] == "c1"
    assert "LABELS" not in dict(keys.metadata)
    with pytest.raises(RefusedError):
        keys_of_node(node(LABELS="app=reviews"))
