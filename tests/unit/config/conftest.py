"""A config service in this process: real HTTPS, the bus in memory."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from config_harness import Api, client_of, make_context, running

from meshbus.bus.memory import MemoryBus, MemoryServer


@pytest_asyncio.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    server = MemoryServer()
    context = make_context(MemoryBus(server, "config"), tmp_path)
    async with running(context) as task, client_of(context) as client:
        yield Api(client, context, server, task)
