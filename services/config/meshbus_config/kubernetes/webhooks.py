"""Admission webhooks: HTTPS on a port of their own, with a certificate of the ca.

Handlers answer from memory alone: no call to the API server or the bus stands between a person and
the answer.
"""

import os
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from meshbus.runtime.identity import ServingIdentity

_MAX_BODY_BYTES = 8 * 1024 * 1024
_WARNINGS, _WARNING_CHARACTERS = 10, 240

log = structlog.get_logger("webhooks")


class Kind(msgspec.Struct):
    """`meta/v1 GroupVersionKind`."""

    group: str = ""
    version: str = ""
    kind: str = ""


class UserInfo(msgspec.Struct):
    """Who asks."""

    username: str = ""
    groups: list[str] = []


class AdmissionRequest(msgspec.Struct):
    """`admission/v1 AdmissionRequest`, as far as it is read."""

    uid: str
    operation: str = ""
    kind: Kind = msgspec.field(default_factory=Kind)
    namespace: str = ""
    name: str = ""
    subresource: str = msgspec.field(name="subResource", default="")
    user: UserInfo = msgspec.field(name="userInfo", default_factory=UserInfo)
    path: str = ""
    """At which the webhook was called; it may carry settings."""
    dry_run: bool | None = msgspec.field(name="dryRun", default=None)
    object: msgspec.Raw = msgspec.Raw(b"null")
    old_object: msgspec.Raw = msgspec.field(name="oldObject", default=msgspec.Raw(b"null"))

    def document(self) -> dict[str, Any]:
        """The object."""
        value = msgspec.json.decode(self.object)
        return value if isinstance(value, dict) else {}


class Answer(msgspec.Struct):
    """What a webhook says."""

    allowed: bool
    message: str = ""
    reason: str = ""
    code: int = 403
    causes: Sequence[Mapping[str, str]] = ()
    warnings: Sequence[str] = ()
    patch: bytes = b""
    """A JSON patch."""


Handler = Callable[[AdmissionRequest], Awaitable[Answer]]


class _Review(msgspec.Struct):
    request: AdmissionRequest


_reviews = msgspec.json.Decoder(_Review)


def response_of(uid: str, answer: Answer) -> dict[str, Any]:
    """An AdmissionReview with the answer."""
    response: dict[str, Any] = {"uid": uid, "allowed": answer.allowed}
    if not answer.allowed:
        status: dict[str, Any] = {
            "status": "Failure",
            "code": answer.code,
            "reason": answer.reason or "Forbidden",
            "message": answer.message,
        }
        if answer.causes:
            status["details"] = {"causes": [dict(cause) for cause in answer.causes]}
        response["status"] = status
    if answer.warnings:
        response["warnings"] = [text[:_WARNING_CHARACTERS] for text in answer.warnings[:_WARNINGS]]
    if answer.patch:
        response["patchType"] = "JSONPatch"
        response["patch"] = answer.patch
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}


def webhook_app(handlers: Mapping[str, Handler], metrics: CollectorRegistry) -> Starlette:
    """The application of the webhooks, by path."""
    answered = Counter(
        "meshbus_admissions_total",
        "Admissions by webhook and answer.",
        ["webhook", "answer"],
        registry=metrics,
    )
    seconds = Histogram(
        "meshbus_admission_seconds",
        "Time to the answer.",
        ["webhook"],
        registry=metrics,
        buckets=(0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.5),
    )

    def route(path: str, handler: Handler) -> Route:
        name = path.strip("/").split("/")[0]

        async def answer(request: Request) -> Response:
            body = await request.body()
            if len(body) > _MAX_BODY_BYTES:
                return Response("too large", 413)
            try:
                review = _reviews.decode(body)
            except msgspec.MsgspecError as error:
                answered.labels(name, "malformed").inc()
                return Response(f"not an AdmissionReview: {error}", 400)
            review.request.path = request.url.path
            with seconds.labels(name).time():
                said = await handler(review.request)
            answered.labels(name, "allowed" if said.allowed else "denied").inc()
            content = msgspec.json.encode(response_of(review.request.uid, said))
            return Response(content, media_type="application/json")

        return Route(path, answer, methods=["POST"])

    return Starlette(routes=[route(path, handler) for path, handler in handlers.items()])


def tls_of(identity: ServingIdentity) -> ssl.SSLContext:
    """A context that shows the identity's certificate, also after each renewal. Call after
    `ready`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2

    def load(key_pem: bytes, chain_pem: bytes) -> None:
        # OpenSSL loads from paths alone: an anonymous file, so that the key is on no disk.
        handle = os.memfd_create("webhook", os.MFD_CLOEXEC)
        try:
            os.write(handle, key_pem + chain_pem)
            context.load_cert_chain(f"/proc/self/fd/{handle}")
        finally:
            os.close(handle)

    load(*identity.key_and_chain_pem)
    identity.on_renewal(load)
    return context
