"""`/v1`: what a mesh can be asked beside its objects."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from meshbus.bus.interface import Bus
from meshbus.model.requests import (
    BUNDLE,
    CERTIFICATES,
    PROXIES,
    PROXY_CONFIG,
    REVOKE,
    ROTATION,
    BundleReply,
    BundleRequest,
    CertificatesReply,
    CertificatesRequest,
    ProxiesReply,
    ProxiesRequest,
    ProxyConfigReply,
    ProxyConfigRequest,
    ProxyInfo,
    RevokeReply,
    RevokeRequest,
    RotationReply,
    RotationRequest,
    replica_subject,
)
from meshbus.runtime.calls import CallError, call
from meshbus_config.answers import respond
from meshbus_config.errors import ApiError, bad_request, too_many, unavailable
from meshbus_config.events_feed import EventsFeed, parse_filter, parse_since, server_sent
from meshbus_config.receipts import MAX_WAIT_S, Receipts
from meshbus_config.status_board import StatusBoard
from meshbus_config.targets import flag, number

GRAPH = "x.telemetry.graph"
EGRESS = "x.telemetry.egress"
TRACES = "x.telemetry.traces"
CONFIG_TYPES = ("all", "clusters", "listeners", "routes", "endpoints", "secrets", "extensions")
MAX_READERS = 200
_ASK_S = 5.0
_CODES = {
    "invalid": (400, "BadRequest"),
    "forbidden": (403, "Forbidden"),
    "not-found": (404, "NotFound"),
    "unavailable": (503, "ServiceUnavailable"),
}


class _Revocation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    serial: str = ""
    identity: str = ""
    reason: str = ""
    force: bool = False


def as_api_error(error: CallError) -> ApiError:
    """A refusal of another service as ours."""
    code, reason = _CODES.get(error.code, (500, "InternalError"))
    return ApiError(code, reason, error.message)


class MeshApi:
    """Handlers of `/v1/proxies`, `/v1/changes`, `/v1/certificates`, `/v1/graph`,
    `/v1/traces`, `/v1/events`."""

    def __init__(
        self,
        bus: Bus,
        board: StatusBoard,
        receipts: Receipts,
        feed: EventsFeed,
        now: Callable[[], float],
    ) -> None:
        self._bus = bus
        self._board = board
        self._receipts = receipts
        self._feed = feed
        self._now = now
        self._readers = 0

    async def change(self, request: Request) -> Response:
        """`/v1/changes/{n}?wait=SECONDS`: how far a change has come."""
        text = request.path_params["change"]
        if not text.isdecimal() or len(text) > 18:
            raise bad_request(f"a change is a number, not {text!r}")
        wait_s = min(_seconds(request.query_params.get("wait", "0")), MAX_WAIT_S)
        receipt = await self._receipts.wait(int(text), wait_s)
        return respond(request, receipt.document())

    async def changes(self, request: Request) -> Response:
        """`/v1/changes`: the latest changes of this replica, newest first."""
        limit = number(request.query_params, "limit", 50)
        newest = list(self._receipts.recent)[::-1][:limit]
        return respond(request, {"changes": [record.document() for record in newest]})

    async def proxies(self, request: Request) -> Response:
        """`/v1/proxies?namespace=`: every connected proxy."""
        found = await self._proxies(ProxiesRequest(request.query_params.get("namespace", "")))
        found.sort(key=lambda proxy: proxy.id)
        return respond(request, {"proxies": found})

    async def _proxies(self, question: ProxiesRequest) -> list[ProxyInfo]:
        found: list[ProxyInfo] = []
        answered = False
        for pod in sorted(self._board.gateways):
            try:
                subject = replica_subject(PROXIES, pod)
                reply = await call(self._bus, subject, {}, ProxiesReply, timeout=_ASK_S)
                found += reply.proxies
                answered = True
            except CallError as error:
                if error.code != "unavailable":
                    raise as_api_error(error) from error
        if not answered:
            raise unavailable("no xds-gateway answers")
        return found

    async def proxy_config(self, request: Request) -> Response:
        """`/v1/proxies/{id}/config?type=`: what a proxy was sent, private keys left
        out: `{"listeners": [...], ...}` as proto JSON."""
        wanted = request.query_params.get("type", "all")
        if wanted not in CONFIG_TYPES:
            raise bad_request(f"type: one of {', '.join(CONFIG_TYPES)}, not {wanted!r}")
        proxy = request.path_params["proxy"]
        question = ProxyConfigRequest(proxy)
        refused: CallError | None = None
        for pod in sorted(self._board.gateways):
            try:
                subject = replica_subject(PROXY_CONFIG, pod)
                reply = await call(self._bus, subject, question, ProxyConfigReply, timeout=_ASK_S)
                return respond(request, _selected(reply.document, wanted))
            except CallError as error:
                if error.code not in ("unavailable", "not-found"):
                    raise as_api_error(error) from error
                if refused is None or error.code == "not-found":
                    refused = error
        if refused is None:
            raise unavailable("no xds-gateway is there")
        raise as_api_error(refused)

    async def certificates(self, request: Request) -> Response:
        """`/v1/certificates?identity=&at=&serial=&limit=`: what the ca has issued, newest first.
        Never a key."""
        query = request.query_params
        at = query.get("at", "")
        question = CertificatesRequest(
            identity=query.get("identity", ""),
            at=parse_since(at, self._now(), "at") if at else 0.0,
            serial=query.get("serial", "").lower(),
            limit=number(query, "limit", 100),
        )
        return await self._ca(request, CERTIFICATES, question, CertificatesReply)

    async def rotation(self, request: Request) -> Response:
        """`/v1/certificates/rotation`: how far the change of roots is; POST begins one."""
        question = RotationRequest(start=request.method == "POST")
        return await self._ca(request, ROTATION, question, RotationReply)

    async def bundle(self, request: Request) -> Response:
        """`/v1/certificates/bundle`: the roots of this mesh, as PEM and as a SPIFFE bundle, and how
        the bundles of other trust domains are."""
        return await self._ca(request, BUNDLE, BundleRequest(), BundleReply)

    async def revocations(self, request: Request) -> Response:
        """`/v1/certificates/revocations`: what is revoked. POST `{"serial"}` or `{"identity"}`
        (with `reason`, `force`) revokes, DELETE `?identity=` allows an identity again."""
        question = RevokeRequest(by=request.state.user.name)
        if request.method == "DELETE":
            identity = request.query_params.get("identity", "")
            if not identity:
                raise bad_request("identity: which one is allowed again?")
            question = msgspec.structs.replace(question, identity=identity, allow=True)
        elif request.method == "POST":
            try:
                body = msgspec.json.decode(await request.body(), type=_Revocation)
            except msgspec.MsgspecError as error:
                raise bad_request(str(error)) from error
            if bool(body.serial) == bool(body.identity):
                raise bad_request("one of serial and identity is needed")
            question = msgspec.structs.replace(
                question,
                serial=body.serial,
                identity=body.identity,
                reason=body.reason,
                force=body.force,
            )
        return await self._ca(request, REVOKE, question, RevokeReply)

    async def _ca(self, request: Request, subject: str, question: Any, reply: type) -> Response:
        try:
            return respond(request, await call(self._bus, subject, question, reply, timeout=_ASK_S))
        except CallError as error:
            raise as_api_error(error) from error

    async def graph(self, request: Request) -> Response:
        """`/v1/graph`: who calls whom, and how that goes."""
        return await self._telemetry(request, GRAPH)

    async def egress(self, request: Request) -> Response:
        """`/v1/egress?namespace=&way=`: who reaches what outside the mesh."""
        return await self._telemetry(request, EGRESS)

    async def traces(self, request: Request) -> Response:
        """`/v1/traces`: the latest traces."""
        return await self._telemetry(request, TRACES)

    async def _telemetry(self, request: Request, subject: str) -> Response:
        question = dict(request.query_params)
        try:
            return respond(
                request, await call(self._bus, subject, question, dict[str, Any], timeout=_ASK_S)
            )
        except CallError as error:
            raise as_api_error(error) from error

    async def events(self, request: Request) -> Response:
        """`/v1/events?filter=&since=&follow=`: events as they come."""
        if self._readers >= MAX_READERS:
            raise too_many(f"{MAX_READERS} readers follow events already")
        query = request.query_params
        wanted = parse_filter(query.get("filter", ""))
        since = parse_since(query["since"], self._now()) if query.get("since") else None
        last_id = request.headers.get("last-event-id", "")
        follow = "follow" not in query or flag(query, "follow")
        events = server_sent(
            self._feed, wanted, since, int(last_id) if last_id.isdecimal() else None, follow=follow
        )

        async def body() -> AsyncIterator[bytes]:
            self._readers += 1
            try:
                async for chunk in events:
                    yield chunk
            finally:
                self._readers -= 1

        return StreamingResponse(
            body(), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )


def _selected(document: dict[str, Any], wanted: str) -> dict[str, Any]:
    """The parts of a proxy's config that are wanted."""
    return document if wanted == "all" else {wanted: document.get(wanted, [])}


def _seconds(text: str) -> float:
    try:
        seconds = float(text.removesuffix("s"))
    except ValueError:
        raise bad_request(f"wait: seconds, not {text!r}") from None
    if not 0 <= seconds < float("inf"):
        raise bad_request("wait: at least 0 seconds")
    return seconds
