"""A client and a server on the small real mesh, and what tests ask of them."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
from gateway_mesh import Envoy, Mesh, application, endpoints, free_port, loopback, service, workload

from meshbus.local.network import host_port


def listener_stat(address: str, port: int) -> str:
    """What statistics of a listener begin with, as an Envoy shows them."""
    shown = host_port(address, port) if ":" in address else f"{address}_{port}"
    return f"listener.{shown.replace(':', '_')}"


class Pair:
    """A client and a server, each with its sidecar; one connection of the client stays open."""

    def __init__(self) -> None:
        self.client, self.server, self.app = loopback(), loopback(), loopback()
        self.proxy_port, self.port = free_port(self.client), free_port(self.server)
        self.connection = self.connect()

    def connect(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            proxy=f"http://{host_port(self.client, self.proxy_port)}",
            base_url=f"http://server:{self.port}",
            limits=httpx.Limits(max_connections=1),
            timeout=5,
        )

    def rows(self) -> tuple[Any, ...]:
        return (
            service("server", self.port),
            endpoints("server", {"server-0": self.server}, self.port),
            workload("server", self.server, app=self.app, port=self.port),
            workload("client", self.client, http_proxy=self.proxy_port),
        )

    async def get(self, path: str = "/", **headers: str) -> int:
        return (await self.connection.get(path, headers=headers)).status_code


class Served:
    """A pair whose requests are answered."""

    def __init__(self, mesh: Mesh, pair: Pair, server: Envoy, got: list[dict[str, str]]) -> None:
        self.mesh, self.pair, self.server, self.got = mesh, pair, server, got

    async def connections(self) -> int:
        """How many connections the server's Envoy has ever taken at its port."""
        where = listener_stat(self.pair.server, self.pair.port)
        return await self.server.stat(f"{where}.downstream_cx_total")

    async def applied(self, *parts: Any) -> None:
        reply = await self.mesh.converged(await self.mesh.write(*parts))
        assert not reply.rejected, reply.rejected


@contextlib.asynccontextmanager
async def serving(mesh: Mesh) -> AsyncIterator[Served]:
    """Both Envoys are up and a request has gone through them."""
    pair = Pair()
    await mesh.write(*pair.rows())
    async with (
        application(pair.app, pair.port, "hello") as got,
        mesh.envoy("server", pair.server) as server,
        mesh.envoy("client", pair.client) as client,
    ):
        await mesh.until(server.ready, "the server's Envoy is ready")
        await mesh.until(client.ready, "the client's Envoy is ready")

        async def answered() -> bool:
            return await pair.get() == 200

        await mesh.until(answered, "a request is answered")
        yield Served(mesh, pair, server, got)
        await pair.connection.aclose()
