"""Machines that use the API for themselves: who holds a join token may speak of its own entry.

Source: RFC 7519; the tokens are those of `meshbus_ca.tokens`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jwt

from meshbus.model.keys import Key
from meshbus.model.rows import Trust
from meshbus.model.world import World
from meshbus_config.app import Users
from meshbus_config.tokens import User

AUDIENCE = "istio-ca"
GROUP = "system:workloads"
_ALGORITHMS = ("ES256", "RS256", "EdDSA")
_MAX_TOKEN = 16384


class Machine(NamedTuple):
    """Whom a join token was given to."""

    namespace: str
    service_account: str
    instance: str
    group: str
    """WorkloadGroup that let it in; empty: none did, it is an instance of a supervisor."""


class MachineUsers:
    """The users of a file, and machines."""

    def __init__(
        self, others: Users, world: Callable[[], World], cluster: str, trust_domain: str, now: Any
    ) -> None:
        self._others = others
        self._world = world
        self._trust_key = Key(cluster, "sec", "trust", "", trust_domain)
        self._now = now

    async def user_of(self, authorization: str) -> User | None:
        """The user of an `Authorization` header; None: nobody."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() == "bearer" and token.strip().count(".") == 2:
            machine = self._machine(token.strip())
            if machine is not None:
                name = f"system:serviceaccount:{machine.namespace}:{machine.service_account}"
                return User(name, (GROUP,), machine)
        return await self._others.user_of(authorization)

    async def may(self, user: User, method: str, path: str) -> bool:
        """Whether a user may ask this: a machine, of its own entry alone."""
        if isinstance(user.caller, Machine):
            own = f"/v1/workloads/{user.caller.namespace}/{user.caller.instance}"
            return path in (own, f"{own}/token")
        return await self._others.may(user, method, path)

    def _machine(self, token: str) -> Machine | None:
        trust = self._world().get(self._trust_key)
        if not isinstance(trust, Trust) or len(token) > _MAX_TOKEN:
            return None
        try:
            found = trust.token_key(str(jwt.get_unverified_header(token).get("kid")))
            if found is None:
                return None
            issuer, key = found
            claims = jwt.decode(
                token,
                jwt.PyJWK(key).key,
                algorithms=_ALGORITHMS,
                audience=AUDIENCE,
                issuer=issuer,
                options={"require": ["exp", "sub"], "verify_exp": False, "verify_iat": False},
            )
            if float(claims["exp"]) < self._now():
                return None
            bound = claims["kubernetes.io"]
            return Machine(
                str(bound["namespace"]),
                str(bound["serviceaccount"]["name"]),
                str(bound["pod"]["name"]),
                str((bound.get("workloadgroup") or {}).get("name") or ""),
            )
        except (jwt.PyJWTError, KeyError, TypeError, ValueError, AttributeError):
            return None
