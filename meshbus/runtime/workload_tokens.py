"""Tokens with which workloads prove who they are: join tokens of the mesh, and tokens of pods that
a Kubernetes cluster has given out. Pure.

Source: RFC 7519 (JWT), RFC 8725 (its current practice); claims of bound service account tokens
(https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jwt
import msgspec

from meshbus.model.rows import Trust

AUDIENCE = "istio-ca"
MAX_TOKEN_BYTES = 8192
LEEWAY_S = 30
JOIN_ALGORITHMS = ("ES256",)
"""Of the tokens of this mesh."""
CLUSTER_ALGORITHMS = ("RS256", "ES256", "ES384")
"""Of those of an API server. Never one with a shared key."""
_PREFIX = ("system", "serviceaccount")


class TokenError(Exception):
    """It proves nothing; the message holds no part of it. `unavailable`: it cannot be checked
    now."""

    def __init__(self, message: str, *, unavailable: bool = False) -> None:
        super().__init__(message)
        self.unavailable = unavailable


class WorkloadToken(NamedTuple):
    """Whom a token was given to."""

    namespace: str
    service_account: str
    instance: str
    """Pod, or instance of a standalone mesh."""
    token_id: str
    """`jti`; empty where an issuer gives none."""
    expires: float
    """Seconds since the epoch."""
    joins: bool = False
    """It is a join token of this mesh."""
    uid: str = ""
    """Of the pod, where the token says so."""
    node: str = ""
    """Where the pod runs, where the token says so."""

    def spiffe_id(self, trust_domain: str) -> str:
        """The identity that it proves."""
        return f"spiffe://{trust_domain}/ns/{self.namespace}/sa/{self.service_account}"


def check_token(token: str, trust: Trust | None, now: float) -> WorkloadToken:
    """Whom a token was given to. A key is good for tokens of its own issuer alone.

    Raises:
        TokenError: It is of nobody whom the mesh trusts, not for it, expired, not valid yet, or not
            one of a workload.
    """
    if trust is None or not trust.token_jwks:
        raise TokenError("no keys to check tokens with yet: try again", unavailable=True)
    if len(token) > MAX_TOKEN_BYTES:
        raise TokenError("the token is too long")
    try:
        key_id = jwt.get_unverified_header(token).get("kid")
        found = trust.token_key(str(key_id)) if key_id else None
        if found is None:
            raise TokenError("the token is signed with an unknown key")
        issuer, key = found
        joins = issuer == trust.issuer
        claims = jwt.decode(
            token,
            jwt.PyJWK(key).key,
            algorithms=list(JOIN_ALGORITHMS if joins else CLUSTER_ALGORITHMS),
            audience=AUDIENCE,
            issuer=issuer,
            # The clock is the caller's: times are looked at below.
            options={
                "require": ["exp", "sub", "aud", "iss", *(["jti"] if joins else [])],
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
            },
        )
    except (
        jwt.PyJWTError,
        msgspec.MsgspecError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise TokenError(f"the token does not hold: {type(error).__name__}") from error
    return _workload_of(claims, now)._replace(joins=joins)


def _workload_of(claims: Mapping[str, Any], now: float) -> WorkloadToken:
    expires = _number(claims.get("exp"), float("-inf"))
    if now > expires + LEEWAY_S:
        raise TokenError("the token has expired")
    if now < _number(claims.get("nbf", claims.get("iat", 0)), float("inf")) - LEEWAY_S:
        raise TokenError("the token is not valid yet")
    parts = str(claims.get("sub", "")).split(":")
    bound = _record(claims.get("kubernetes.io"))
    pod = _record(bound.get("pod"))
    instance = pod.get("name")
    if len(parts) != 4 or tuple(parts[:2]) != _PREFIX or not (parts[2] and parts[3]):
        raise TokenError("the token's subject is no service account")
    if not isinstance(instance, str) or not instance:
        raise TokenError("the token is not bound to an instance (pod)")
    return WorkloadToken(
        parts[2],
        parts[3],
        instance,
        str(claims.get("jti") or ""),
        expires,
        uid=str(pod.get("uid") or ""),
        node=str(_record(bound.get("node")).get("name") or ""),
    )


def _number(value: Any, otherwise: float) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else otherwise


def _record(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
