"""Join tokens: what a workload instance proves itself with to the gateway.

Shaped like a pod-bound Kubernetes service account token, so that the gateway reads both alike.

Source: RFC 7519 (JWT), RFC 7638 (key id), Kubernetes `TokenRequest` claims.
"""

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from meshbus.model.requests import JoinTokenRequest
from meshbus.runtime.workload_tokens import AUDIENCE
from meshbus_ca.grants import ACCOUNT, NAMESPACE

MIN_TTL_S = 60
MAX_TTL_S = 86400


class InvalidTokenRequestError(Exception):
    """The request names something that cannot be."""


@dataclass(frozen=True)
class TokenKey:
    """The key that signs tokens. Never shown."""

    key: ec.EllipticCurvePrivateKey

    def __repr__(self) -> str:
        return f"<TokenKey {self.key_id}>"

    @property
    def jwk(self) -> dict[str, str]:
        """Its public half, RFC 7517."""
        numbers = self.key.public_key().public_numbers()
        point = {"crv": "P-256", "kty": "EC", "x": _number(numbers.x), "y": _number(numbers.y)}
        return {**point, "alg": "ES256", "use": "sig", "kid": _thumbprint(point)}

    @property
    def key_id(self) -> str:
        """The thumbprint of the public key."""
        return self.jwk["kid"]


def issuer_of(trust_domain: str, root_namespace: str) -> str:
    """`iss` of the tokens of a trust domain."""
    return f"https://ca.{root_namespace}.svc.{trust_domain}"


def join_token(
    request: JoinTokenRequest, *, key: TokenKey, issuer: str, token_id: str, now: float
) -> tuple[str, float]:
    """(JWT, when it expires) for one workload instance.

    Raises:
        InvalidTokenRequestError: A name is malformed.
    """
    checks = (
        ("namespace", request.namespace, NAMESPACE),
        ("service_account", request.service_account, ACCOUNT),
        ("instance", request.instance, ACCOUNT),
        ("group", request.group or request.instance, ACCOUNT),
    )
    for field, value, pattern in checks:
        if not pattern.match(value):
            raise InvalidTokenRequestError(f"{field}: {value!r} is not a Kubernetes name")
    expires = int(now + min(max(request.ttl_s, MIN_TTL_S), MAX_TTL_S))
    group = {"workloadgroup": {"name": request.group}} if request.group else {}
    claims: dict[str, Any] = {
        "iss": issuer,
        "aud": [AUDIENCE],
        "iat": int(now),
        "exp": expires,
        "jti": token_id,
        "sub": f"system:serviceaccount:{request.namespace}:{request.service_account}",
        "kubernetes.io": {
            "namespace": request.namespace,
            "serviceaccount": {"name": request.service_account},
            "pod": {"name": request.instance},
            **group,
        },
    }
    return jwt.encode(claims, key.key, "ES256", headers={"kid": key.key_id}), float(expires)


def _number(value: int) -> str:
    return base64.urlsafe_b64encode(value.to_bytes(32, "big")).rstrip(b"=").decode()


def _thumbprint(point: dict[str, str]) -> str:
    canonical = json.dumps(point, sort_keys=True, separators=(",", ":")).encode()
    digest = hashlib.sha256(canonical).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
