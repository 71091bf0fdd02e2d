"""`kubectl auth whoami` and `kubectl auth can-i`: who has a token may do everything."""

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from meshbus_config.answers import read_document, respond
from meshbus_config.errors import bad_request

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
        review = await _review(request)
        user = request.state.user
        review["status"] = {"userInfo": {"username": user.name, "groups": list(user.groups)}}
        return respond(request, review, 201)

    async def can_i(self, request: Request) -> Response:
        """A SelfSubjectAccessReview."""
        review = await _review(request)
        review["status"] = {"allowed": True, "reason": "every user of the API may do everything"}
        return respond(request, review, 201)


async def _review(request: Request) -> dict[str, Any]:
    review = await read_document(request)
    if not isinstance(review, dict):
        raise bad_request("expected a review")
    return review
