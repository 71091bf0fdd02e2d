"""Tests here use the small mesh of the gateway's tests."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio
from nats_process import NatsServer, connections

for folder in ("security", "gateway", "ca"):
    sys.path.insert(0, str(Path(__file__).parent.parent / folder))


@pytest_asyncio.fixture
async def second_bus_for(tmp_path: Path) -> AsyncIterator[Any]:
    """Connections by identity to the bus of another mesh."""
    server = NatsServer(tmp_path / "second-nats")
    server.start()
    try:
        async with connections(server) as connect:
            yield connect
    finally:
        server.kill()
