"""`kubectl auth whoami` and `kubectl auth can-i`: who has a token may do everything."""

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from meshbus_config.answers import media_type_of, read_document, respond
from meshbus_config.errors import bad_request
from meshbus_config.protobuf_bodies import PROTOBUF

_AUTHENTICATION = "/apis/authentication.k8s.io/v1"
_AUTHORIZATION = "/apis/authorization.k8s.io/v1"


class AccessReviews:
    """Handlers of the reviews."""

    def paths(self) -> dict[str, Callable[[Request], Awaitable[Response]]]:
        """Handlers by path."""
        return {
            f"{_AUTHENTICATION}/selfsubjectreviews": self.who_am_i,
            f"{_AUTHORIZATION}/selfsubjectaccessreviews": self.can_i,
        }

    async def who_am_i(self, request: Request) -> Response:
        """A SelfSubjectReview."""
        review = await _review(request, _AUTHENTICATION, "SelfSubjectReview")
        user = request.state.user
        review["status"] = {"userInfo": {"username": user.name, "groups": list(user.groups)}}
        return respond(request, review, 201)

    async def can_i(self, request: Request) -> Response:
        """A SelfSubjectAccessReview."""
        review = await _review(request, _AUTHORIZATION, "SelfSubjectAccessReview")
        review["status"] = {"allowed": True, "reason": "every user of the API may do everything"}
        return respond(request, review, 201)


async def _review(request: Request, path: str, kind: str) -> dict[str, Any]:
    """The review asked for. What it asks does not matter to the answer, so that one in protobuf
    need not be read."""
    review: Any = {}
    if media_type_of(request) != PROTOBUF:
        review = await read_document(request)
    if not isinstance(review, dict):
        raise bad_request(f"expected a {kind}")
    return {**review, "apiVersion": path.removeprefix("/apis/"), "kind": kind}
