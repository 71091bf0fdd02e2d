"""Tests here run on the small mesh of the gateway's tests."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "gateway"))
sys.path.insert(0, str(Path(__file__).parent.parent / "policy"))

from gateway_mesh import LOOPBACK


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> Iterator[int]:
    """The family of all addresses."""
    with LOOPBACK.of(request.param) as number:
        yield number
