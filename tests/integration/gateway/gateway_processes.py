"""Gateways as processes of their own, and simple sidecars that are connected to them."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import httpx
from envoy.service.discovery.v3 import discovery_pb2
from gateway_mesh import CLUSTER, Mesh
from grpc import aio

from meshbus.compile.resources import CDS, EDS, LDS
from meshbus.local.processes import start_ticks

METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"


class GatewayProcess:
    """`meshbus serve xds-gateway`, with several workers or one."""

    def __init__(self, folder: Path, process: Any) -> None:
        self.folder = folder
        self.process = process

    @property
    def admin(self) -> str:
        about = json.loads((self.folder / "admin-xds-gateway.json").read_text())
        return str(about["address"]) if about["pid"] == self.process.pid else ""

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    async def get(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient() as client:
            return await client.get(f"http://{self.admin}{path}", timeout=5)

    async def ready(self) -> bool:
        """False until it is; raises when it has ended."""
        assert self.process.returncode is None, self.log
        with contextlib.suppress(OSError, ValueError, httpx.HTTPError):
            return (await self.get("/readyz")).status_code == 200
        return False

    async def workers(self) -> list[dict[str, Any]]:
        reply = await self.get("/debug/xds-gateway/workers")
        return list(reply.json()["workers"])

    async def all_ready(self) -> bool:
        if not await self.ready():
            return False
        return all(worker["ready"] for worker in await self.workers())

    def end(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)


@contextlib.asynccontextmanager
async def gateway_process(
    mesh: Mesh, folder: Path, url: str, seeds: Path, *arguments: str, pod: str = "", **settings: Any
) -> AsyncIterator[GatewayProcess]:
    """A gateway with these settings (`MESHBUS_XDS_GATEWAY_...`)."""
    folder.mkdir()
    env = {
        **os.environ,
        "MESHBUS_BUS_URL": url,
        "MESHBUS_BUS_SEEDS": str(seeds),
        "MESHBUS_CLUSTER": CLUSTER,
        "MESHBUS_STATE": str(folder),
        "MESHBUS_ADMIN": "127.0.0.1:0",
        "MESHBUS_POD": pod,
        "MESHBUS_XDS_GATEWAY_LISTEN": "127.0.0.1:0",
        "MESHBUS_XDS_GATEWAY_TRANSPORT": mesh.transport,
        **{f"MESHBUS_XDS_GATEWAY_{name.upper()}": str(value) for name, value in settings.items()},
    }
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "meshbus.cli.main", "serve", "xds-gateway", *arguments),
            env=env,
            stdout=log,
            stderr=log,
        )
    gateway = GatewayProcess(folder, process)
    try:
        yield gateway
    finally:
        if process.returncode is None:
            gateway.end()
            try:
                async with asyncio.timeout(15):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
                raise AssertionError("the gateway did not stop: " + gateway.log) from None


def runs(pid: int) -> bool:
    return start_ticks(pid) is not None


class Sidecar:
    """One proxy over plaintext: takes what comes, accepts it, comes back when its stream ends."""

    def __init__(self, ports: Iterable[int], name: str, metadata: dict[str, Any]) -> None:
        self.ports = list(ports)
        self.name = name
        self.metadata = metadata
        self.held: dict[str, dict[str, str]] = {CDS: {}, EDS: {}, LDS: {}}
        self.received = Counter[str]()
        self.streams = 0
        self.ends: list[str] = []
        self.task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            port = self.ports[self.streams % len(self.ports)]
            options = [("grpc.use_local_subchannel_pool", 1)]
            async with aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
                call = channel.stream_stream(METHOD)()
                self.streams += 1
                try:
                    await self._talk(call)
                    self.ends.append("OK")
                except aio.AioRpcError as error:
                    self.ends.append(f"{error.code().name}: {error.details()}")
                except asyncio.InvalidStateError:
                    self.ends.append("ended while it wrote")
            await asyncio.sleep(0.05)

    async def _talk(self, call: Any) -> None:
        for type_url in (CDS, LDS):
            request = discovery_pb2.DeltaDiscoveryRequest(
                type_url=type_url, initial_resource_versions=self.held[type_url]
            )
            request.node.id = f"sidecar~10.0.0.1~{self.name}.default~default.svc.cluster.local"
            request.node.metadata.update(self.metadata)
            await call.write(request.SerializeToString())
        while (data := await call.read()) is not aio.EOF:
            response = discovery_pb2.DeltaDiscoveryResponse.FromString(data)
            held = self.held[response.type_url]
            for resource in response.resources:
                held[resource.name] = resource.version
                self.received[response.type_url] += 1
            for name in response.removed_resources:
                held.pop(name, None)
            ack = discovery_pb2.DeltaDiscoveryRequest(
                type_url=response.type_url, response_nonce=response.nonce
            )
            await call.write(ack.SerializeToString())


@contextlib.asynccontextmanager
async def sidecars(count: int, *ports: int) -> AsyncIterator[list[Sidecar]]:
    """So many, connected to the ports in turn."""
    made = [Sidecar(ports, f"p{i}", {"NAMESPACE": "default"}) for i in range(count)]
    for sidecar in made:
        sidecar.start()
    try:
        yield made
    finally:
        await asyncio.gather(*(sidecar.stop() for sidecar in made))
