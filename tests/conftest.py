"""Fixtures that all tests share: real parts on ports that the system picks."""

import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

from nats_process import BusFor, NatsServer, connections, nats_binary

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A running nats-server with the users of a mesh."""
    if nats_binary() is None:
        pytest.skip("nats-server is not installed (extra `standalone`)")
    server = NatsServer(tmp_path / "nats")
    server.start()
    yield server
    server.kill()


@pytest_asyncio.fixture
async def bus_for(nats_server: NatsServer) -> AsyncIterator[BusFor]:
    """Connections by identity; the streams are there."""
    async with connections(nats_server) as connect:
        yield connect


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Inputs and verdicts of other projects: `MESHBUS_SHARED_DATA`, or beside the repository."""
    named = os.environ.get("MESHBUS_SHARED_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no shared data: set MESHBUS_SHARED_DATA to its folder")
    return folder
