"""Who may use the API of the mesh on Kubernetes: TokenReview says who it is, SubjectAccessReview
whether they may. Paths of the API are `nonResourceURLs` to RBAC: `/v1/proxies`, verb `get`."""

from meshbus.kube.client import KubeError
from meshbus.kube.reviews import Access, Caller, Reviews
from meshbus_config.errors import ApiError
from meshbus_config.tokens import User


class ReviewedUsers:
    """Asks the API server."""

    def __init__(self, reviews: Reviews) -> None:
        self._reviews = reviews
        self._callers: dict[str, Caller] = {}

    async def user_of(self, authorization: str) -> User | None:
        """The user of an `Authorization` header; None: nobody the cluster knows.

        Raises:
            ApiError: 503, the API server could not be asked.
        """
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            return None
        try:
            caller = await self._reviews.caller(token.strip())
        except KubeError as error:
            raise ApiError(503, "ServiceUnavailable", f"TokenReview: {error}") from error
        if caller is None:
            return None
        return User(caller.username, caller.groups, caller)

    async def may(self, user: User, method: str, path: str) -> bool:
        """Whether a user may ask this.

        Raises:
            ApiError: 503, the API server could not be asked.
        """
        if not isinstance(user.caller, Caller):
            return False
        try:
            return await self._reviews.allowed(user.caller, Access(method.lower(), path=path))
        except KubeError as error:
            raise ApiError(503, "ServiceUnavailable", f"SubjectAccessReview: {error}") from error
