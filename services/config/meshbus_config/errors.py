"""What the API answers when it refuses: Kubernetes `Status` objects.

ApiError carries one; the application turns it into the response. Constructors below are the only
places that choose code and reason, as Kubernetes' API conventions pair them.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from meshbus.api.kinds import KindInfo


class Cause(NamedTuple):
    """One reason among several: `field` is a path in the document, `reason` a CamelCase code."""

    reason: str
    message: str
    field: str = ""


class ApiError(Exception):
    """A request that is refused."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        info: KindInfo | None = None,
        name: str = "",
        causes: Iterable[Cause] = (),
        retry_after_s: int = 0,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.info = info
        self.name = name
        self.causes = tuple(causes)
        self.retry_after_s = retry_after_s

    def document(self) -> dict[str, Any]:
        """The `Status` object."""
        details: dict[str, Any] = {}
        if self.name:
            details["name"] = self.name
        if self.info is not None:
            if self.info.group:
                details["group"] = self.info.group
            # Where an object breaks rules clients print the kind, else the resource.
            details["kind"] = self.info.kind if self.reason == "Invalid" else self.info.plural
        if self.causes:
            details["causes"] = [
                {"reason": c.reason, "message": c.message} | ({"field": c.field} if c.field else {})
                for c in self.causes
            ]
        if self.retry_after_s:
            details["retryAfterSeconds"] = self.retry_after_s
        status: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
        }
        if details:
            status["details"] = details
        status["code"] = self.code
        return status


def success(info: KindInfo, name: str, uid: str) -> dict[str, Any]:
    """The `Status` that answers a deletion that is done."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {"name": name, "group": info.group, "kind": info.plural, "uid": uid},
    }


def _qualified(info: KindInfo) -> str:
    return f"{info.plural}.{info.group}" if info.group else info.plural


def bad_request(
    message: str, info: KindInfo | None = None, name: str = "", causes: Sequence[Cause] = ()
) -> ApiError:
    """400: the request cannot be understood. `causes`: where in the object, for programs."""
    return ApiError(400, "BadRequest", message, info=info, name=name, causes=causes)


def unauthorized() -> ApiError:
    """401: no token, or not one of ours."""
    return ApiError(401, "Unauthorized", "Unauthorized")


def forbidden(info: KindInfo, name: str, message: str) -> ApiError:
    """403: refused whoever asks."""
    return ApiError(
        403,
        "Forbidden",
        f'{_qualified(info)} "{name}" is forbidden: {message}',
        info=info,
        name=name,
    )


def not_allowed(user: str, method: str, path: str) -> ApiError:
    """403: this user may not."""
    return ApiError(403, "Forbidden", f'User "{user}" cannot {method.lower()} path "{path[:200]}"')


def not_found(info: KindInfo, name: str) -> ApiError:
    """404: no such object."""
    return ApiError(404, "NotFound", f'{_qualified(info)} "{name}" not found', info=info, name=name)


def no_such_path() -> ApiError:
    """404: nothing is served at this path."""
    return ApiError(404, "NotFound", "the server could not find the requested resource")


def method_not_allowed(method: str) -> ApiError:
    """405: the path is served, this verb is not."""
    return ApiError(
        405, "MethodNotAllowed", f"the server does not allow {method} on the requested resource"
    )


def not_acceptable(accept: str) -> ApiError:
    """406: none of the media types asked for."""
    return ApiError(406, "NotAcceptable", f"none of the media types can be given: {accept}")


def already_exists(info: KindInfo, name: str) -> ApiError:
    """409: create of what is there."""
    return ApiError(
        409, "AlreadyExists", f'{_qualified(info)} "{name}" already exists', info=info, name=name
    )


def conflict(info: KindInfo, name: str, message: str) -> ApiError:
    """409: the object is not what the writer thought it was."""
    return ApiError(
        409,
        "Conflict",
        f'Operation cannot be fulfilled on {_qualified(info)} "{name}": {message}',
        info=info,
        name=name,
    )


def field_conflict(info: KindInfo, name: str, causes: Sequence[Cause]) -> ApiError:
    """409: server-side apply met fields that others manage."""
    count = len(causes)
    lines = "\n".join(f"- {cause.field} ({cause.message})" for cause in causes)
    return ApiError(
        409,
        "Conflict",
        f"Apply failed with {count} conflict{'s' if count > 1 else ''}: {lines}"
        if count == 1
        else f"Apply failed with {count} conflicts:\n{lines}",
        info=info,
        name=name,
        causes=causes,
    )


def gone(message: str) -> ApiError:
    """410: a resourceVersion or continue token older than what is remembered."""
    return ApiError(410, "Expired", message)


def too_large(message: str) -> ApiError:
    """413: more than is taken at once."""
    return ApiError(413, "RequestEntityTooLarge", message)


def unsupported_media_type(media_type: str, known: Sequence[str]) -> ApiError:
    """415: a body in a format that is not read here."""
    return ApiError(
        415,
        "UnsupportedMediaType",
        f"the body of the request was in an unknown format ({media_type or 'no content type'}) - "
        f"accepted media types include: {', '.join(known)}",
    )


def invalid(info: KindInfo, name: str, causes: Sequence[Cause]) -> ApiError:
    """422: the object breaks rules; every one of them is a cause."""
    kind = f"{info.kind}.{info.group}" if info.group else info.kind
    texts = [f"{c.field}: {c.message}" if c.field else c.message for c in causes]
    joined = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    return ApiError(
        422, "Invalid", f'{kind} "{name}" is invalid: {joined}', info=info, name=name, causes=causes
    )


def too_many(message: str, retry_after_s: int = 1) -> ApiError:
    """429: more at once than is served."""
    return ApiError(429, "TooManyRequests", message, retry_after_s=retry_after_s)


def unavailable(message: str, retry_after_s: int = 1) -> ApiError:
    """503: not now; clients that follow `Retry-After` try again."""
    return ApiError(503, "ServiceUnavailable", message, retry_after_s=retry_after_s)


def timed_out(message: str) -> ApiError:
    """504: no answer in time; whether it was done is not known."""
    return ApiError(504, "Timeout", message)
