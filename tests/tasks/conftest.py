"""One mesh for all tests of this folder: real Envoys, captured traffic, started by the command."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from task_mesh import Config, TaskMesh


@pytest.fixture(scope="session")
def started_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TaskMesh]:
    """The mesh: clients, versions of services, gateways, a server outside."""
    if os.geteuid() != 0 or shutil.which("iptables-restore") is None:
        pytest.skip("capture mode netns needs root and iptables")
    with TaskMesh(tmp_path_factory.mktemp("tasks")) as running:
        yield running


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def task_mesh(request: pytest.FixtureRequest, started_mesh: TaskMesh) -> TaskMesh:
    """The mesh, called by one family of addresses."""
    started_mesh.family = request.param
    return started_mesh


@pytest.fixture
def config(started_mesh: TaskMesh) -> Iterator[Config]:
    """Objects of one test; gone when it ends."""
    held = Config(started_mesh)
    try:
        yield held
    finally:
        held.clear()
