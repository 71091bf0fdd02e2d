"""Objects as HTTP answers: in the version, form and media type that the client accepts."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from meshbus_config.api_discovery import list_document
from meshbus_config.documents import Document, Space, Stored, api_version_of, render
from meshbus_config.errors import ApiError, too_large
from meshbus_config.negotiation import JSON, MAX_BODY_BYTES, Form, choose_form, decode, encode
from meshbus_config.tables import partial, table
from meshbus_config.targets import Target, flag

_LARGE_BODY = 64 * 1024
_WARNINGS = 20
_WARNING_CHARACTERS = 500
CHANGE_HEADER = "Meshbus-Change"
"""Id of the change that a write made, or of an object that is read the last one: without its
status, unlike `resourceVersion`. What `/v1/changes/<id>` is asked with."""


def respond(
    request: Request,
    document: Any,
    status: int = 200,
    *,
    form: Form | None = None,
    warnings: Sequence[str] = (),
    change: int = 0,
) -> Response:
    """A document in the media type of the request."""
    chosen = form or choose_form(request.headers.get("accept", ""), kinds=())
    pretty = "pretty" in request.query_params and flag(request.query_params, "pretty")
    response = Response(
        encode(document, chosen.media_type, pretty=pretty), status, media_type=chosen.media_type
    )
    if change:
        response.headers[CHANGE_HEADER] = str(change)
    for text in warnings[:_WARNINGS]:
        response.headers.append("Warning", f'299 - "{_header_text(text)}"')
    return response


def refuse(error: ApiError) -> Response:
    """The `Status` of a refusal."""
    headers = {}
    if error.retry_after_s:
        headers["Retry-After"] = str(error.retry_after_s)
    if error.code == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(encode(error.document()), error.code, headers, JSON)


def _header_text(text: str) -> str:
    plain = "".join(c if 32 <= ord(c) < 127 else "?" for c in text[:_WARNING_CHARACTERS])
    return plain.replace("\\", "\\\\").replace('"', '\\"')


async def read_body(request: Request) -> bytes:
    """The body, at most 10 MB of it.

    Raises:
        ApiError: 413.
    """
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > MAX_BODY_BYTES:
        raise too_large(f"the body is larger than {MAX_BODY_BYTES} bytes")
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise too_large(f"the body is larger than {MAX_BODY_BYTES} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def media_type_of(request: Request) -> str:
    """The media type of the body, without parameters."""
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


async def read_document(request: Request) -> Any:
    """The body as a value, JSON or YAML.

    Raises:
        ApiError: 400, 413, 415.
    """
    return await decode_body(await read_body(request), media_type_of(request))


async def decode_body(body: bytes, media_type: str) -> Any:
    """`decode`, a large body in a thread: megabytes take seconds, and the lease must be renewed.

    Raises:
        ApiError: As `decode`.
    """
    if len(body) < _LARGE_BODY:
        return decode(body, media_type)
    return await asyncio.to_thread(decode, body, media_type)


class Presenter:
    """Writes objects of one request: its kind, version, and form."""

    def __init__(self, request: Request, target: Target, now: Callable[[], float]) -> None:
        self.form = choose_form(request.headers.get("accept", ""))
        self._request = request
        self._target = target
        self._now = now
        self._include = request.query_params.get("includeObject", "Metadata")
        self._events = 0

    def document(self, stored: Stored, space: Space, version: int | None = None) -> Document:
        """An object as a plain document; `version` in place of its own resourceVersion."""
        target = self._target
        document = render(target.info, stored, space.box, target.version)
        if version is not None:
            document["metadata"]["resourceVersion"] = str(version)
        return document

    def one(self, document: Document) -> Document:
        """A single object."""
        metadata = {"resourceVersion": document["metadata"].get("resourceVersion", "")}
        if self.form.kind == "Table":
            return self._table([document], metadata)
        if self.form.kind:
            return partial(document, self.form.version)
        return document

    def many(self, documents: list[Document], metadata: dict[str, Any]) -> Document:
        """A list."""
        if self.form.kind == "Table":
            return self._table(documents, metadata)
        if self.form.kind:
            return {
                "kind": "PartialObjectMetadataList",
                "apiVersion": f"meta.k8s.io/{self.form.version}",
                "metadata": metadata,
                "items": [partial(document, self.form.version) for document in documents],
            }
        return list_document(self._target.info, self._target.version, documents, metadata)

    def event(self, document: Document) -> Document:
        """The object of a watch event."""
        if document.get("kind") == "Status":
            return document
        self._events += 1
        if self.form.kind == "Table":
            metadata = {"resourceVersion": document["metadata"]["resourceVersion"]}
            return self._table([document], metadata, definitions=self._events == 1)
        return partial(document, self.form.version) if self.form.kind else document

    def bookmark(self, version: int) -> Document:
        """An object with nothing but a version."""
        info = self._target.info
        return {
            "kind": info.kind,
            "apiVersion": api_version_of(info, self._target.version),
            "metadata": {"resourceVersion": str(version), "creationTimestamp": None},
        }

    def _table(
        self, documents: list[Document], metadata: dict[str, Any], *, definitions: bool = True
    ) -> Document:
        return table(
            self._target.info,
            documents,
            metadata,
            self._now(),
            include=self._include,
            version=self.form.version,
            definitions=definitions,
        )

    def respond(
        self,
        document: Document,
        status: int = 200,
        *,
        warnings: Sequence[str] = (),
        change: int = 0,
    ) -> Response:
        """The answer."""
        return respond(
            self._request, document, status, form=self.form, warnings=warnings, change=change
        )
