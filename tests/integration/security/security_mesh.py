"""A client and a server on the small real mesh, and what tests ask of them."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
from gateway_mesh import Envoy, Mesh
from sidecar_pair import Pair, started

from meshbus.local.network import host_port


def listener_stat(address: str, port: int) -> str:
    """What statistics of a listener begin with, as an Envoy shows them."""
    shown = host_port(address, port) if ":" in address else f"{address}_{port}"
    return f"listener.{shown.replace(':', '_')}"


class HeldPair(Pair):
    """One connection of the client stays open."""

    def __init__(self) -> None:
        super().__init__()
        self.connection = httpx.AsyncClient(
            proxy=self.proxy,
            base_url=f"http://server:{self.port}",
            limits=httpx.Limits(max_connections=1),
            timeout=5,
        )

    async def status(self, path: str = "/", **headers: str) -> int:
        """Of the answer to a request on that connection."""
        return (await self.connection.get(path, headers=headers)).status_code


class Served:
    """A pair whose requests are answered."""

    def __init__(
        self, mesh: Mesh, pair: HeldPair, server: Envoy, got: list[dict[str, str]]
    ) -> None:
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
    pair = HeldPair()
    await mesh.write(*pair.rows())
    async with pair.connection, started(mesh, pair) as (server, _, got):

        async def answered() -> bool:
            return await pair.status() == 200

        await mesh.until(answered, "a request is answered")
        yield Served(mesh, pair, server, got)
