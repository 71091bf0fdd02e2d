"""`/v1/authz`: would a request be let in, by which rule of which object."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from meshbus.bus.interface import Bus
from meshbus.compile.authorization_questions import (
    MAX_OBJECTS,
    CheckRequest,
    answer_of,
    proposed,
)
from meshbus.compile.authorization_suggest import suggest
from meshbus.model.requests import OBSERVED, ObservedReply, ObservedRequest
from meshbus.model.world import World
from meshbus.runtime.calls import CallError, call
from meshbus.validate import validate_object
from meshbus_config.answers import read_document, respond
from meshbus_config.errors import ApiError, bad_request, too_large, too_many
from meshbus_config.events_feed import parse_since
from meshbus_config.mesh_api import as_api_error

T = TypeVar("T")
_ASK_S = 5.0
_AT_ONCE = 4
"""Questions that are answered at the same time: each may compile the policies of a workload."""


class AuthorizationApi:
    """Handlers of `/v1/authz/check` and `/v1/authz/suggest`."""

    def __init__(
        self, bus: Bus, world: Callable[[], World], cluster: str, now: Callable[[], float]
    ) -> None:
        self._bus = bus
        self._world = world
        self._cluster = cluster
        self._now = now
        self._asked = 0

    async def check(self, request: Request) -> Response:
        """`/v1/authz/check`: a `CheckRequest` in, what becomes of the request out."""
        document = await read_document(request)
        try:
            question = msgspec.convert(document, CheckRequest)
        except msgspec.ValidationError as error:
            raise bad_request(str(error)) from None
        if len(question.objects) > MAX_OBJECTS:
            raise too_large(f"at most {MAX_OBJECTS} objects can be proposed")
        return respond(request, await self._aside(self._answer, self._world(), question))

    async def suggest(self, request: Request) -> Response:
        """`/v1/authz/suggest?since=1h&namespace=`: policies that allow what was observed."""
        now = self._now()
        since = parse_since(request.query_params.get("since", "1h"), now)
        question = ObservedRequest(now - since, request.query_params.get("namespace", ""))
        try:
            reply = await call(self._bus, OBSERVED, question, ObservedReply, timeout=_ASK_S)
        except CallError as error:
            raise as_api_error(error) from error
        found = await self._aside(suggest, self._world(), self._cluster, reply.calls)
        return respond(
            request,
            {
                "policies": found.policies,
                "wouldDeny": found.would_deny,
                "leftOut": found.left_out,
                "calls": len(reply.calls),
                "overflowed": reply.overflowed,
            },
        )

    async def _aside(self, answer: Callable[..., T], *args: Any) -> T:
        """The answer, made in a thread, a few at a time."""
        if self._asked >= _AT_ONCE:
            raise too_many(f"{_AT_ONCE} questions are being answered already")
        self._asked += 1
        try:
            return await asyncio.to_thread(answer, *args)
        finally:
            self._asked -= 1

    def _answer(self, world: World, question: CheckRequest) -> dict[str, Any]:
        for index, document in enumerate(question.objects):
            for violation in validate_object(document).errors:
                raise bad_request(f"objects[{index}].{violation.path}: {violation.message}")
        proposal = proposed(world, self._cluster, question.objects)
        if proposal.refused:
            raise bad_request(proposal.refused[0])
        try:
            return answer_of(proposal.world, question)
        except ValueError as error:
            raise bad_request(str(error)) from None
        except LookupError as error:
            raise ApiError(404, "NotFound", str(error.args[0])) from None
