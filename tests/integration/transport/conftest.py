"""Carriers to test, and what they are tested with: certificates, raw HTTP/2, real clients."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

sys.path.insert(0, str(Path(__file__).parent))

from carrier_recorder import Recorder
from meshbus_xds_gateway.carrier_choice import make_carrier, native_is_installed
from transport_certificates import Authority

CARRIERS = [
    "grpc",
    pytest.param(
        "native",
        marks=pytest.mark.skipif(
            not native_is_installed(), reason="meshbus_native is not installed (make native)"
        ),
    ),
]


@pytest.fixture(params=CARRIERS)
def transport(request: pytest.FixtureRequest) -> str:
    """Each carrier by the name that the setting has for it."""
    return str(request.param)


@pytest_asyncio.fixture
async def recorder(transport: str) -> AsyncIterator[Recorder]:
    """A carrier that has not started yet, and what it tells."""
    recorder = Recorder(make_carrier(transport))
    yield recorder
    await recorder.stop()


@pytest.fixture(scope="session")
def authority() -> Authority:
    """Who signs the certificates of a test."""
    return Authority()
