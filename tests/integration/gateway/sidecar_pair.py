"""A client and a server on the small real mesh, each with its sidecar."""

import contextlib
from collections.abc import AsyncIterator

import httpx
from gateway_mesh import (
    Envoy,
    Mesh,
    Rows,
    application,
    endpoints,
    free_port,
    loopback,
    service,
    workload,
)

from meshbus.local.network import host_port


class Pair:
    """Where they are, and what the client's application asks of the server's."""

    def __init__(self) -> None:
        self.client, self.server, self.app = loopback(), loopback(), loopback()
        self.proxy_port = free_port(self.client)
        self.port = free_port(self.server)

    @property
    def proxy(self) -> str:
        """Where the client's application reaches its sidecar."""
        return f"http://{host_port(self.client, self.proxy_port)}"

    def rows(self) -> tuple[Rows, ...]:
        """Of the service, its endpoint and both workloads."""
        return (
            service("server", self.port),
            endpoints("server", {"server-0": self.server}, self.port),
            workload("server", self.server, app=self.app, port=self.port),
            workload("client", self.client, http_proxy=self.proxy_port),
        )

    async def get(self, path: str = "/", host: str = "server", **headers: str) -> httpx.Response:
        """The answer to a request on a connection of its own."""
        async with httpx.AsyncClient(proxy=self.proxy, timeout=5) as client:
            return await client.get(f"http://{host}:{self.port}{path}", headers=headers)


@contextlib.asynccontextmanager
async def started(
    mesh: Mesh, pair: Pair, api: str = "DELTA_GRPC"
) -> AsyncIterator[tuple[Envoy, Envoy, list[dict[str, str]]]]:
    """Both Envoys are up: (server's, client's, headers of requests that the application got)."""
    async with (
        application(pair.app, pair.port, "hello") as got,
        mesh.envoy("server", pair.server, api) as server,
        mesh.envoy("client", pair.client, api) as client,
    ):
        await mesh.until(server.ready, "the server's Envoy is ready")
        await mesh.until(client.ready, "the client's Envoy is ready")
        yield server, client, got


@contextlib.asynccontextmanager
async def serving(
    mesh: Mesh, pair: Pair, api: str = "DELTA_GRPC"
) -> AsyncIterator[tuple[Envoy, Envoy, list[dict[str, str]]]]:
    """As `started`, and a request has gone through them."""
    async with started(mesh, pair, api) as running:

        async def answered() -> bool:
            return (await pair.get()).status_code == 200

        await mesh.until(answered, "a request is answered")
        yield running
