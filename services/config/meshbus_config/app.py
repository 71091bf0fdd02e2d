"""The application: routes, authentication, errors. Every path needs a token."""

import time
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any, Protocol

import msgspec
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from meshbus.schema import openapi_of
from meshbus_config import api_discovery, api_documents
from meshbus_config.access_reviews import AccessReviews
from meshbus_config.announcements import Announcer
from meshbus_config.answers import refuse, respond
from meshbus_config.authorization_api import AuthorizationApi
from meshbus_config.bulk import Bulk
from meshbus_config.errors import (
    ApiError,
    method_not_allowed,
    no_such_path,
    not_acceptable,
    not_allowed,
    unauthorized,
)
from meshbus_config.mesh_api import MeshApi
from meshbus_config.negotiation import choose_form
from meshbus_config.resources import Resources
from meshbus_config.secret_box import SecretKeyError
from meshbus_config.tokens import TokenFileError, User

Handler = Callable[[Request], Awaitable[Response]]
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
_DISCOVERY_GROUP = "apidiscovery.k8s.io"
_DISCOVERY_KINDS = ("APIGroupDiscoveryList",)

log = structlog.get_logger("api")


class Metrics:
    """What the API counts."""

    def __init__(self, registry: CollectorRegistry, resources: Resources) -> None:
        self.requests = Counter(
            "meshbus_api_requests_total",
            "Requests by method and status code.",
            ["method", "code"],
            registry=registry,
        )
        self.seconds = Histogram(
            "meshbus_api_request_duration_seconds",
            "Time to the first byte of the answer.",
            ["method"],
            registry=registry,
        )
        Gauge("meshbus_api_watches", "Open watches.", registry=registry).set_function(
            lambda: float(resources.watches)
        )


class Machines(Protocol):
    """Handlers of `/v1/workloads`."""

    async def join(self, request: Request) -> Response:
        """A token for a machine."""

    async def renew(self, request: Request) -> Response:
        """A fresh token for it."""

    async def entry(self, request: Request) -> Response:
        """What it says of itself."""


class Users(Protocol):
    """Who may use the API."""

    async def user_of(self, authorization: str) -> User | None:
        """The user of an `Authorization` header; None: nobody. Raises ApiError when that cannot be
        known now."""

    async def may(self, user: User, method: str, path: str) -> bool:
        """Whether a user may ask this. Raises ApiError when that cannot be known now."""


class Authentication:
    """ASGI middleware: nothing is answered but to a user who may ask it."""

    def __init__(self, app: ASGIApp, users: Users) -> None:
        self._app = app
        self._users = users

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        header = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
        try:
            user = await self._users.user_of(header)
            if user is None:
                await refuse(unauthorized())(scope, receive, send)
                return
            if not await self._users.may(user, scope["method"], scope["path"]):
                await refuse(not_allowed(user.name, scope["method"], scope["path"]))(
                    scope, receive, send
                )
                return
        except TokenFileError as error:
            log.error("nobody can be authenticated", error=str(error))
            await refuse(unauthorized())(scope, receive, send)
            return
        except ApiError as error:
            await refuse(error)(scope, receive, send)
            return
        scope.setdefault("state", {})["user"] = user
        await self._app(scope, receive, send)


def make_app(
    *,
    users: Users,
    resources: Resources,
    bulk: Bulk,
    mesh: MeshApi,
    authorization: AuthorizationApi,
    announcer: Announcer,
    metrics: Metrics,
    version: str,
    address: Callable[[], str],
    objects: bool = True,
    machines: Machines | None = None,
) -> ASGIApp:
    """The application of the API.

    Args:
        address: `HOST:PORT` that clients reach it at.
        machines: Where machines join; None: not here.
        objects: Serve `/api` and `/apis`; False where an API server of Kubernetes has them.
    """
    pages = _Pages(version, address)
    reviews = AccessReviews()

    def guarded(handler: Handler) -> Handler:
        async def answer(request: Request) -> Response:
            started = time.monotonic()
            response = await _guard(handler, request, announcer)
            metrics.requests.labels(request.method, str(response.status_code)).inc()
            metrics.seconds.labels(request.method).observe(time.monotonic() - started)
            return response

        return answer

    def get(path: str, handler: Handler) -> Route:
        return Route(path, guarded(_only("GET", handler)), methods=METHODS)

    def post(path: str, handler: Handler) -> Route:
        return Route(path, guarded(_only("POST", handler)), methods=METHODS)

    async def unknown(_: Request) -> Response:
        raise no_such_path()

    routes = [
        get("/version", pages.version),
        get("/openapi/v2", pages.openapi_v2),
        get("/openapi/v3", pages.openapi_index),
        get("/openapi/v3/{path:path}", pages.openapi),
        get("/openapi.json", pages.openapi_all),
        get("/asyncapi.json", pages.asyncapi),
        get("/v1/changes", mesh.changes),
        get("/v1/changes/{change}", mesh.change),
        get("/v1/proxies", mesh.proxies),
        get("/v1/proxies/{proxy}/config", mesh.proxy_config),
        get("/v1/certificates", mesh.certificates),
        Route("/v1/certificates/rotation", guarded(mesh.rotation), methods=["GET", "POST"]),
        get("/v1/certificates/bundle", mesh.bundle),
        Route(
            "/v1/certificates/revocations",
            guarded(mesh.revocations),
            methods=["GET", "POST", "DELETE"],
        ),
        post("/v1/authz/check", authorization.check),
        get("/v1/authz/suggest", authorization.suggest),
        get("/v1/graph", mesh.graph),
        get("/v1/egress", mesh.egress),
        get("/v1/traces", mesh.traces),
        get("/v1/events", mesh.events),
    ]
    of_objects = [
        get("/api", pages.core),
        get("/apis", pages.groups),
        post("/v1/apply", bulk.apply),
        post("/v1/delete", bulk.delete),
        *(post(path, handler) for path, handler in reviews.paths().items()),
        get("/api/{version}", pages.resource_list),
        get("/apis/{group}", pages.group),
        get("/apis/{group}/{version}", pages.resource_list),
        Route("/api/{version}/{rest:path}", guarded(resources.handle), methods=METHODS),
        Route("/apis/{group}/{version}/{rest:path}", guarded(resources.handle), methods=METHODS),
    ]
    routes += of_objects if objects else []
    if machines is not None:
        entry = "/v1/workloads/{namespace}/{name}"
        routes += [
            post(f"{entry}/join", machines.join),
            post(f"{entry}/token", machines.renew),
            Route(entry, guarded(machines.entry), methods=["PUT", "DELETE"]),
        ]
    routes.append(Route("/{path:path}", guarded(unknown), methods=METHODS))
    return Authentication(Starlette(routes=routes), users)


async def _guard(handler: Handler, request: Request, announcer: Announcer) -> Response:
    """The answer of a handler, its errors as Status."""
    try:
        return await handler(request)
    except ApiError as error:
        if error.code == 422 and error.info is not None:
            parts = request.url.path.split("/namespaces/", 1)
            namespace = parts[1].split("/")[0] if len(parts) > 1 else ""
            announcer.rejected(error, request.state.user.name, namespace)
        return refuse(error)
    except SecretKeyError as error:
        return refuse(ApiError(500, "InternalError", str(error)))
    except msgspec.ValidationError as error:
        return refuse(ApiError(400, "BadRequest", str(error)))
    except Exception:
        log.exception("a request failed", method=request.method, path=request.url.path)
        return refuse(
            ApiError(500, "InternalError", "an error of ours: see the log of the config service")
        )


def _only(method: str, handler: Handler) -> Handler:
    async def checked(request: Request) -> Response:
        if request.method != method and not (method == "GET" and request.method == "HEAD"):
            raise method_not_allowed(request.method)
        return await handler(request)

    return checked


@cache
def _openapi(group: str, version: str) -> dict[str, Any]:
    return openapi_of(group, version)


class _Pages:
    """What does not depend on the objects of the mesh."""

    def __init__(self, version: str, address: Callable[[], str]) -> None:
        self._version = version
        self._address = address

    async def version(self, request: Request) -> Response:
        return respond(request, api_discovery.version_document(self._version))

    async def core(self, request: Request) -> Response:
        return self._discovery(
            request, core=True, plain=api_discovery.core_versions(self._address())
        )

    async def groups(self, request: Request) -> Response:
        return self._discovery(request, core=False, plain=api_discovery.group_list())

    def _discovery(self, request: Request, *, core: bool, plain: dict[str, Any]) -> Response:
        form = choose_form(
            request.headers.get("accept", ""), kinds=_DISCOVERY_KINDS, group=_DISCOVERY_GROUP
        )
        if not form.kind:
            return respond(request, plain, form=form)
        response = respond(
            request, api_discovery.aggregated(core=core, version=form.version), form=form
        )
        # Clients tell the two forms apart by the content type.
        response.headers["content-type"] = (
            f"application/json;g={_DISCOVERY_GROUP};v={form.version};as={form.kind}"
        )
        return response

    async def group(self, request: Request) -> Response:
        document = api_discovery.group_document(request.path_params["group"])
        if document is None:
            raise no_such_path()
        return respond(request, document)

    async def resource_list(self, request: Request) -> Response:
        path = request.path_params
        document = api_discovery.resource_list(path.get("group", ""), path["version"])
        if document is None:
            raise no_such_path()
        return respond(request, document)

    async def openapi_index(self, request: Request) -> Response:
        paths = {
            path: {"serverRelativeURL": f"/openapi/v3/{path}?hash={self._version}"}
            for path in api_discovery.openapi_paths()
        }
        return respond(request, {"paths": paths})

    async def openapi(self, request: Request) -> Response:
        api_version = api_discovery.openapi_paths().get(request.path_params["path"])
        if api_version is None:
            raise no_such_path()
        group, _, version = api_version.rpartition("/")
        return respond(request, _openapi(group, version))

    async def openapi_v2(self, request: Request) -> Response:
        if "protobuf" not in request.headers.get("accept", ""):
            raise not_acceptable("only in protobuf; /openapi/v3 is whole")
        return Response(api_documents.openapi_v2(), media_type=api_documents.OPENAPI_V2)

    async def openapi_all(self, request: Request) -> Response:
        return respond(request, api_documents.openapi_document(self._version))

    async def asyncapi(self, request: Request) -> Response:
        return respond(request, api_documents.asyncapi_document(self._version))
