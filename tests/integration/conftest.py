"""Tests here that send traffic do so by each family of addresses."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "gateway"))

from gateway_mesh import LOOPBACK


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> Iterator[int]:
    """The family of all addresses. `gateway_mesh.by` names those that one test is about."""
    with LOOPBACK.of(request.param) as number:
        yield number
