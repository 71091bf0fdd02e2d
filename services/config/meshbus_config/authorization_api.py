"""`/v1/authz`: would a request be let in, by which rule of which object."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from meshbus.compile.authorization_questions import (
    MAX_OBJECTS,
    CheckRequest,
    answer_of,
    proposed,
)
from meshbus.model.world import World
from meshbus.validate import validate_object
from meshbus_config.answers import read_document, respond
from meshbus_config.errors import ApiError, bad_request, too_large, too_many

_AT_ONCE = 4
"""Questions that are answered at the same time: each may compile the policies of a workload."""


class AuthorizationApi:
    """Handlers of `/v1/authz/check`."""

    def __init__(self, world: Callable[[], World], cluster: str) -> None:
        self._world = world
        self._cluster = cluster
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
        if self._asked >= _AT_ONCE:
            raise too_many(f"{_AT_ONCE} questions are being answered already")
        self._asked += 1
        try:
            answer = await asyncio.to_thread(self._answer, self._world(), question)
        finally:
            self._asked -= 1
        return respond(request, answer)

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
