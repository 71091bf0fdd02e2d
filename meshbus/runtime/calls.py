"""Questions between services: JSON over request/reply, errors as errors.

Every reply is `{"ok": ...}` or `{"error": {"code", "message"}}`.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import structlog

from meshbus.bus.interface import Bus, BusError, NoResponders
from meshbus.model.requests import RequestError

Q = TypeVar("Q")
R = TypeVar("R")

log = structlog.get_logger("calls")


class CallError(Exception):
    """A question that was refused, or that nobody answered.

    `code`: `invalid`, `forbidden`, `not-found`, `unavailable` (try again), `internal`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class _Reply(msgspec.Struct, omit_defaults=True):
    ok: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: RequestError | None = None


async def call(
    bus: Bus, subject: str, request: Any, reply_type: type[R], *, timeout: float = 2.0
) -> R:
    """Ask, and wait for the answer.

    Raises:
        CallError: The answer is an error, cannot be read, or did not come (`unavailable`).
    """
    try:
        data = await bus.request(subject, msgspec.json.encode(request), timeout=timeout)
    except NoResponders:
        raise CallError("unavailable", f"nobody answers {subject}") from None
    except BusError as error:
        raise CallError("unavailable", str(error)) from error
    try:
        reply = msgspec.json.decode(data, type=_Reply)
        if reply.error is not None:
            raise CallError(reply.error.code, reply.error.message)
        if isinstance(reply.ok, msgspec.UnsetType):
            raise CallError("internal", f"{subject}: neither an answer nor an error")
        return msgspec.json.decode(reply.ok, type=reply_type)
    except msgspec.MsgspecError as error:
        raise CallError("internal", f"{subject}: the answer cannot be read: {error}") from error


async def answer(
    bus: Bus,
    subject: str,
    request_type: type[Q],
    handler: Callable[[Q], Awaitable[Any]],
    *,
    queue: str = "",
) -> None:
    """Serve a subject. What the handler raises as `CallError` goes to who asked; anything else is
    logged and answered as `internal`."""

    async def handle(data: bytes) -> bytes:
        try:
            request = msgspec.json.decode(data, type=request_type)
        except msgspec.MsgspecError as error:
            return _refusal("invalid", f"the question cannot be read: {error}")
        try:
            return msgspec.json.encode({"ok": await handler(request)})
        except CallError as error:
            return _refusal(error.code, error.message)
        except Exception as error:
            log.exception("a question failed", subject=subject)
            return _refusal("internal", f"{type(error).__name__}: see the log of the service")

    await bus.serve(subject, handle, queue=queue)


def _refusal(code: str, message: str) -> bytes:
    return msgspec.json.encode({"error": RequestError(code, message)})
