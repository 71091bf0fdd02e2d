"""The admin port of a process: /livez /readyz /metrics, and /debug for who is on the machine (or
comes by `kubectl port-forward`)."""

import inspect
import ipaddress
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

ReadyCheck = Callable[[], str | None]
"""None when ready, else the reason why not."""
DebugHandler = Callable[[], Any | Awaitable[Any]]
"""A JSON value, for people who look into a running service. Never holds keys or tokens."""


class Admin:
    """What one service shows of itself."""

    def __init__(self) -> None:
        self.ready: dict[str, ReadyCheck] = {}
        self.debug: dict[str, DebugHandler] = {}

    def add_ready(self, name: str, check: ReadyCheck) -> None:
        """Readiness waits for this."""
        self.ready[name] = check

    def add_debug(self, path: str, handler: DebugHandler) -> None:
        """Show under `/debug/<service>/<path>`."""
        self.debug[path.strip("/")] = handler

    def reasons(self) -> dict[str, str]:
        """Why it is not ready, by check; empty when it is."""
        out = {}
        for name, check in self.ready.items():
            reason = check()
            if reason is not None:
                out[name] = reason
        return out


def _is_local(request: Request) -> bool:
    """Who asks is on this machine; workloads elsewhere learn nothing of the mesh here."""
    if request.client is None:
        return True  # a Unix socket
    try:
        address = ipaddress.ip_address(request.client.host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def admin_app(
    services: dict[str, Admin],
    registries: dict[str, CollectorRegistry],
    *,
    version: str,
    more_metrics: Callable[[], Awaitable[bytes]] | None = None,
) -> Starlette:
    """The application of the admin port.

    Args:
        services: By service name.
        registries: Metrics by service name; `process` holds those of the process.
        more_metrics: Prometheus text of other processes.
    """

    async def livez(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        lines, ready = [], True
        for name, admin in services.items():
            reasons = admin.reasons()
            ready = ready and not reasons
            lines += [f"[-] {name}/{check}: {reason}" for check, reason in reasons.items()]
            lines += [f"[+] {name}/{check}" for check in admin.ready if check not in reasons]
        lines.append("ready" if ready else "not ready")
        return PlainTextResponse("\n".join(lines) + "\n", 200 if ready else 503)

    async def metrics(_: Request) -> Response:
        body = b"".join(generate_latest(registry) for registry in registries.values())
        if more_metrics is not None:
            body += await more_metrics()
        return Response(body, media_type=CONTENT_TYPE_LATEST)

    async def debug_index(request: Request) -> Response:
        if not _is_local(request):
            return PlainTextResponse("only from this machine\n", 403)
        pages = [
            f"/debug/{name}/{path}" for name, admin in services.items() for path in admin.debug
        ]
        return _json({"version": version, "pages": pages})

    async def debug_page(request: Request) -> Response:
        if not _is_local(request):
            return PlainTextResponse("only from this machine\n", 403)
        admin = services.get(request.path_params["service"])
        handler = admin.debug.get(request.path_params["page"]) if admin else None
        if handler is None:
            return PlainTextResponse("no such page; see /debug\n", 404)
        value = handler()
        if inspect.isawaitable(value):
            value = await value
        return _json(value)

    return Starlette(
        routes=[
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
            Route("/debug", debug_index),
            Route("/debug/{service}/{page:path}", debug_page),
        ]
    )


def _json(value: Any) -> Response:
    body = msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2)
    return Response(body + b"\n", media_type="application/json")
