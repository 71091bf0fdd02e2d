"""A config service in this process: real HTTPS, the bus in memory."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
import structlog
from meshbus_config.service import ConfigService, ConfigSettings
from prometheus_client import CollectorRegistry

from meshbus.bus.interface import Bus
from meshbus.bus.memory import MemoryBus, MemoryServer
from meshbus.runtime.admin import Admin
from meshbus.runtime.clock import SystemClock
from meshbus.runtime.service import Context

TOKEN = "0123456789abcdef0123"
CLUSTER = "Kubernetes"


@dataclass
class Api:
    """A running service and a client that may use it."""

    client: httpx.AsyncClient
    context: Context[ConfigSettings]
    server: MemoryServer
    task: "asyncio.Task[None]"
    extra: dict[str, Any] = field(default_factory=dict)

    async def apply(self, *documents: dict[str, Any], **query: str) -> httpx.Response:
        return await self.client.post("/v1/apply", json=list(documents), params=query)

    def bus(self, identity: str) -> MemoryBus:
        return MemoryBus(self.server, identity)


def make_context(bus: Bus, folder: Path, pod: str = "config-0") -> Context[ConfigSettings]:
    state = folder / pod
    state.mkdir(mode=0o700, exist_ok=True)
    tokens = folder / "tokens"
    if not tokens.exists():
        tokens.write_text(f"{TOKEN},ann,admins\n")
        tokens.chmod(0o600)
    return Context(
        name="config",
        pod=pod,
        cluster=CLUSTER,
        root_namespace="istio-system",
        trust_domain="cluster.local",
        state=state,
        settings=ConfigSettings(api="127.0.0.1:0", tokens=str(tokens)),
        bus=bus,
        clock=SystemClock(),
        log=structlog.get_logger("config"),
        metrics=CollectorRegistry(),
        admin=Admin(),
    )


async def until_ready(context: Context[ConfigSettings], task: "asyncio.Task[None]") -> None:
    async with asyncio.timeout(20):
        while context.admin.reasons() or "api" not in context.admin.ready:
            if task.done():
                task.result()
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running(context: Context[ConfigSettings]) -> AsyncIterator["asyncio.Task[None]"]:
    """The service of a context, until ready and no longer than the block."""
    task = asyncio.create_task(ConfigService(context).run())
    try:
        await until_ready(context, task)
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def client_of(context: Context[ConfigSettings], token: str = TOKEN) -> httpx.AsyncClient:
    where = msgspec.json.decode((context.state / "api.json").read_bytes())
    return httpx.AsyncClient(
        base_url=where["url"],
        verify=ssl.create_default_context(cafile=where["ca"]),
        headers={"Authorization": f"Bearer {token}"},
        timeout=20,
    )
