"""Tests here share modules of this folder."""

import sys
from pathlib import Path

import pytest
from meshbus_xds_gateway.carrier_choice import native_is_installed

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(params=["grpc", "native"])
def carrier(request: pytest.FixtureRequest) -> str:
    """What moves the bytes of streams: each of the two."""
    if request.param == "native" and not native_is_installed():
        pytest.skip("meshbus_native is not installed (make native)")
    return str(request.param)
