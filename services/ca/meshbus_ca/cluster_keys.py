"""Keys of a Kubernetes cluster: what its pod-bound ServiceAccount tokens are checked with.

Gateways check tokens by these keys alone, without asking the API server: workloads are let in while
it is away. A pod that is deleted takes its row along, and with it the right to a stream.

Source: https://kubernetes.io/docs/tasks/configure-pod-container/configure-service-account/
(service account issuer discovery).
"""

import json
import random
from collections.abc import Callable
from typing import Any

import msgspec

from meshbus.model.rows import TokenIssuer
from meshbus.runtime.clock import Clock
from meshbus.runtime.kubernetes import Kubernetes

REREAD_S = 60.0
_RETRY_S = 2.0
MAX_KEYS = 16
_KEPT = ("kty", "kid", "alg", "use", "n", "e", "crv", "x", "y")


class _Discovery(msgspec.Struct):
    issuer: str
    keys: str = msgspec.field(name="jwks_uri", default="")


class _Keys(msgspec.Struct):
    keys: list[dict[str, Any]]


def issuer_of_answers(discovery: bytes, keys: bytes) -> TokenIssuer:
    """The issuer that an API server's two documents describe.

    Raises:
        msgspec.MsgspecError: They are not what they should be.
        ValueError: There is no key.
    """
    issuer = msgspec.json.decode(discovery, type=_Discovery).issuer
    found = [
        {name: value for name, value in key.items() if name in _KEPT}
        for key in msgspec.json.decode(keys, type=_Keys).keys
        if key.get("kid")
    ][:MAX_KEYS]
    if not issuer or not found:
        raise ValueError("the API server names no issuer, or no key of it")
    found.sort(key=lambda key: str(key["kid"]))
    return TokenIssuer(issuer, json.dumps({"keys": found}, sort_keys=True))


class ClusterKeys:
    """Reads them now and then; what was read stays while the API server is away."""

    def __init__(self, kubernetes: Kubernetes, clock: Clock, log: Any) -> None:
        self._client = kubernetes.client
        self._clock = clock
        self._log = log
        self.issuers: tuple[TokenIssuer, ...] = ()
        """None before they were read: what others wrote stands."""

    async def run(self, changed: Callable[[], None]) -> None:
        """Until cancelled."""
        # Imported here: without Kubernetes nobody pays for its client.
        from meshbus.kube.client import KubeError

        while True:
            wait_s = REREAD_S
            try:
                issuer = issuer_of_answers(
                    await self._client.get("/.well-known/openid-configuration"),
                    await self._client.get("/openid/v1/jwks"),
                )
            except (KubeError, msgspec.MsgspecError, ValueError) as error:
                self._log.warning("keys of the cluster's tokens not read", error=str(error))
                wait_s = _RETRY_S
            else:
                if self.issuers != (issuer,):
                    self.issuers = (issuer,)
                    changed()
            await self._clock.sleep(wait_s * random.uniform(0.8, 1.2))  # noqa: S311
