"""Tokens of workloads: of the mesh, of its cluster, and of nobody."""

import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from meshbus.model.rows import TokenIssuer, Trust
from meshbus.runtime.workload_tokens import TokenError, check_token

NOW = 1_900_000_000.0
OWN, CLUSTER = "https://ca.istio-system.svc.cluster.local", "https://kubernetes.default.svc"
JOIN, API = ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)


def jwks(key: Any, kid: str) -> str:
    kind = jwt.algorithms.RSAAlgorithm if key is API else jwt.algorithms.ECAlgorithm
    return json.dumps({"keys": [{**json.loads(kind.to_jwk(key.public_key())), "kid": kid}]})


TRUST = Trust(
    "cluster.local", "", jwks(JOIN, "join"), OWN, issuers=(TokenIssuer(CLUSTER, jwks(API, "api")),)
)


def token(key: Any = API, kid: str = "api", algorithm: str = "RS256", **more: Any) -> str:
    claims = {
        "iss": CLUSTER,
        "aud": ["istio-ca"],
        "iat": NOW,
        "exp": NOW + 600,
        "jti": "t1",
        "sub": "system:serviceaccount:shop:cart",
        "kubernetes.io": {
            "namespace": "shop",
            "pod": {"name": "cart-7f", "uid": "u"},
            "node": {"name": "n1"},
        },
        **more,
    }
    body = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(body, key, algorithm, headers={"kid": kid})


def test_a_token_of_the_cluster_says_whose_pod_it_is():
    found = check_token(token(), TRUST, NOW)
    assert found[:5] == ("shop", "cart", "cart-7f", "t1", NOW + 600)
    assert (found.uid, found.node, found.joins) == ("u", "n1", False)
    assert found.spiffe_id("td") == "spiffe://td/ns/shop/sa/cart"
    assert check_token(token(JOIN, "join", "ES256", iss=OWN), TRUST, NOW).joins
    assert check_token(token(jti=None), TRUST, NOW).token_id == ""


@pytest.mark.parametrize(
    "bad",
    [
        {"aud": ["vault"]},
        {"aud": None},
        {"exp": NOW - 31},
        {"exp": None},
        {"exp": "soon"},
        {"nbf": NOW + 60},
        {"iat": "x"},
        {"sub": "shop"},
        {"sub": "system:serviceaccount::cart"},
        {"kubernetes.io": {"namespace": "shop"}},
        {"kubernetes.io": {"pod": {"name": ""}}},
        {"kubernetes.io": {"pod": ["cart"]}},
        {"kid": "join"},
        {"kid": "other"},
        {"key": rsa.generate_private_key(65537, 2048)},
        {"key": "x" * 64, "algorithm": "HS256"},
        {"key": None, "algorithm": "none"},
        # A key is good for tokens of its own issuer alone.
        {"iss": OWN},
        {"iss": "https://elsewhere"},
        {"iss": None},
        {"key": JOIN, "kid": "join", "algorithm": "ES256"},
        # A join token without an id could be used for any number of keys.
        {"key": JOIN, "kid": "join", "algorithm": "ES256", "iss": OWN, "jti": None},
    ],
)
def test_tokens_that_do_not_hold(bad):
    made = token(**bad)
    with pytest.raises(TokenError) as refused:
        check_token(made, TRUST, NOW)
    assert made not in str(refused.value)
    assert not refused.value.unavailable


def test_without_keys_nothing_is_known():
    for trust in (None, Trust("cluster.local", "")):
        with pytest.raises(TokenError) as refused:
            check_token(token(), trust, NOW)
        assert refused.value.unavailable
