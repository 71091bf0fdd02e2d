"""Tests here run on the small real mesh of the gateway's tests."""

import sys
from pathlib import Path

import pytest_asyncio

sys.path[:0] = [str(Path(__file__).parents[1] / name) for name in ("security", "gateway", "ca")]

from gateway_mesh import envoy_binary, mesh_on  # noqa: E402 - only now on the path
from security_mesh import serving  # noqa: E402


@pytest_asyncio.fixture
async def mesh(family, bus_for, tmp_path):
    envoy_binary()
    async with mesh_on(bus_for, tmp_path) as running:
        await running.start()
        await running.start_gateway()
        yield running


@pytest_asyncio.fixture
async def served(mesh):
    """A client and a server whose requests are answered."""
    async with serving(mesh) as pair:
        yield pair
