"""`envoy.service.ratelimit.v3.RateLimitService`: quotas.

The protocol has no id of a request, and a client may write any `x-request-id`, so nothing is
deduplicated: a request that Envoy asks about twice counts twice.
"""

import time
from typing import Any, Protocol

import grpc
from envoy.service.ratelimit.v3 import rls_pb2, rls_pb2_grpc

from meshbus.mixer.program import Bag
from meshbus.mixer.quota import ChargeError, charges_of
from meshbus.mixer.windows import Cells
from meshbus.model.rows import Trust
from meshbus.model.world import World
from meshbus.runtime.proxy_server import require_workload
from meshbus_policy.descriptors import question_of
from meshbus_policy.rules import Rules

MAX_DESCRIPTORS = 64
MAX_ENTRIES = 512
_OK = rls_pb2.RateLimitResponse.OK
_OVER = rls_pb2.RateLimitResponse.OVER_LIMIT


class Policy(Protocol):
    """What the servers need of the service."""

    @property
    def trust_domain(self) -> str: ...

    @property
    def trust(self) -> Trust | None: ...
    @property
    def world(self) -> World: ...
    @property
    def rules(self) -> Rules: ...
    def now_ns(self) -> int: ...
    def tick_ns(self) -> int: ...
    def answered(self, kind: str, answer: str, began: float) -> None: ...
    def debug(self, message: str, **fields: Any) -> None: ...


class RateLimitServer(rls_pb2_grpc.RateLimitServiceServicer):  # type: ignore[misc]
    """Answers `ShouldRateLimit`."""

    def __init__(self, policy: Policy, capacity: int) -> None:
        self._policy = policy
        self.cells = Cells(capacity)
        """What has been taken."""

    async def ShouldRateLimit(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        """One answer for each descriptor; over the limit if one of them is."""
        began = time.perf_counter()
        await require_workload(context, self._policy.trust_domain, self._policy.trust)
        descriptors = request.descriptors
        if len(descriptors) > MAX_DESCRIPTORS or any(
            len(d.entries) > MAX_ENTRIES for d in descriptors
        ):
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"more than {MAX_DESCRIPTORS} descriptors or {MAX_ENTRIES} entries",
            )
        refused = [self._refusal(descriptor) for descriptor in descriptors]
        over = [reason for reason in refused if reason]
        self._policy.answered("quota", "over_limit" if over else "ok", began)
        response = rls_pb2.RateLimitResponse(
            overall_code=_OVER if over else _OK,
            statuses=[
                rls_pb2.RateLimitResponse.DescriptorStatus(code=_OVER if reason else _OK)
                for reason in refused
            ],
        )
        if over:
            response.raw_body = f"RESOURCE_EXHAUSTED:{over[0]}".encode()
        return response

    def _refusal(self, descriptor: Any) -> str:
        """Why a descriptor is over its limit; empty if it is not."""
        policy = self._policy
        entries = [(entry.key, entry.value) for entry in descriptor.entries]
        question = question_of(entries, policy.world, policy.now_ns())
        if question is None:
            policy.debug("descriptor without a QuotaSpec", entries=len(entries))
            return ""
        bag = Bag(question.attributes)
        try:
            charges = charges_of(policy.rules.quotas, question.spec, question.namespace, bag)
        except ChargeError as error:
            policy.debug("cannot be counted", spec=question.spec, reason=str(error))
            return f"Quota cannot be counted: {error}"
        exhausted = self.cells.take(charges, policy.tick_ns())
        return "" if exhausted is None else f"Quota is exhausted for: {exhausted.quota}"
