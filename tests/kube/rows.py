"""Rows of a mesh, to wait on."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from nats_process import NatsServer, connections

from meshbus.bus.mirror import WorldMirror
from meshbus.model.keys import Key
from meshbus.model.rows import EndpointShard, Service, WorkloadInstance
from meshbus.model.world import World

C = "Kubernetes"


class Rows:
    """The rows of the mesh, to wait on."""

    def __init__(self, mirror: WorldMirror) -> None:
        self.mirror = mirror
        self.changed = asyncio.Event()
        mirror.subscribe(self._note)

    def _note(self, world: World, touched: object) -> None:
        self.changed.set()

    async def until(self, condition: Callable[[], Any], limit_s: float = 60) -> None:
        async with asyncio.timeout(limit_s):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    def service(self, namespace: str, name: str) -> Service | None:
        host = f"{name}.{namespace}.svc.cluster.local"
        row: Service | None = self.mirror.world.get(Key(C, "reg", "services", namespace, host))
        return row

    def endpoints(self, namespace: str, name: str) -> list[Any]:
        host = f"{name}.{namespace}.svc.cluster.local"
        found = []
        for entry in self.mirror.world.all("reg.endpoints"):
            shard: EndpointShard = entry.row
            if (shard.namespace, shard.host) == (namespace, host):
                found += shard.endpoints
        return found

    def endpoints_of_shard(self, namespace: str, name: str, shard: str) -> list[Any]:
        host = f"{name}.{namespace}.svc.cluster.local"
        row = self.mirror.world.get(Key(C, "reg", "endpoints", namespace, host, shard))
        return row.endpoints if isinstance(row, EndpointShard) else []

    def workload(self, namespace: str, name: str) -> WorkloadInstance | None:
        row: WorkloadInstance | None = self.mirror.world.get(
            Key(C, "reg", "workloads", namespace, name)
        )
        return row


@asynccontextmanager
async def rows_of(nats: NatsServer) -> AsyncIterator[Rows]:
    async with connections(nats) as connect:
        bus = await connect("local")
        mirror = WorldMirror()
        rows = Rows(mirror)
        follower = mirror.follow(bus)
        task = asyncio.create_task(follower.run())
        await follower.wait_synced()
        yield rows
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def call(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    return await asyncio.to_thread(function, *arguments, **named)
