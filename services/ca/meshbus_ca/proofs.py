"""Proofs: the ca checks itself that a workload asks, so that no gateway can mint what is not
connected to it. Pure.

Source: RFC 7519 (JWT), RFC 8725 (its current practice).
"""

from typing import NamedTuple

import jwt

from meshbus.model.rows import Trust
from meshbus_ca.tokens import AUDIENCE

MAX_TOKEN_BYTES = 8192
LEEWAY_S = 30
_ALGORITHMS = ("ES256", "RS256")
_PREFIX = ("system", "serviceaccount")


class ProofError(Exception):
    """It proves nothing; the message holds no part of it."""


class Proof(NamedTuple):
    """Whom a token was given to."""

    namespace: str
    service_account: str
    instance: str
    token_id: str
    """`jti`: what the ledger names it by."""

    def spiffe_id(self, trust_domain: str) -> str:
        """The identity that it proves."""
        return f"spiffe://{trust_domain}/ns/{self.namespace}/sa/{self.service_account}"


def check_token(token: str, trust: Trust, now: float) -> Proof:
    """Whom a join token was given to.

    Raises:
        ProofError: Not of this mesh, not for it, expired, or not yet valid.
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise ProofError(f"a token of more than {MAX_TOKEN_BYTES} bytes")
    try:
        key_id = jwt.get_unverified_header(token).get("kid")
        found = trust.token_key(str(key_id)) if key_id else None
        if found is None:
            raise ProofError("the token is signed with a key that is not of this mesh")
        issuer, key = found
        claims = jwt.decode(
            token,
            jwt.PyJWK(key).key,
            algorithms=_ALGORITHMS,
            audience=AUDIENCE,
            issuer=issuer,
            # The clock is the caller's: `exp` and `nbf` are looked at below.
            options={
                "require": ["exp", "iat", "sub", "aud", "iss", "jti"],
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
            },
        )
    except (jwt.PyJWTError, ValueError, KeyError, TypeError) as error:
        raise ProofError(f"the token does not hold: {type(error).__name__}") from error
    return _proof(claims, now)


def _proof(claims: dict[str, object], now: float) -> Proof:
    expires, begins = claims.get("exp"), claims.get("nbf", claims.get("iat"))
    if not isinstance(expires, int | float) or now > expires + LEEWAY_S:
        raise ProofError("the token has expired")
    if not isinstance(begins, int | float) or now < begins - LEEWAY_S:
        raise ProofError("the token is not valid yet")
    parts = str(claims.get("sub", "")).split(":")
    bound = claims.get("kubernetes.io")
    pod = bound.get("pod") if isinstance(bound, dict) else None
    instance = pod.get("name") if isinstance(pod, dict) else None
    if len(parts) != 4 or tuple(parts[:2]) != _PREFIX or not isinstance(instance, str):
        raise ProofError("the token is not one of a workload instance")
    return Proof(parts[2], parts[3], instance, str(claims["jti"]))
