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

HOMES = {"ipv4": ("IPv4",), "ipv6": ("IPv6",), "both": ("IPv4", "IPv6")}
"""Families of a mesh. One of them runs at a time."""
CASES = {
    "ipv4": ("ipv4", 4),
    "ipv6": ("ipv6", 6),
    "both-by-ipv4": ("both", 4),
    "both-by-ipv6": ("both", 6),
}
"""A mesh, and the family that its clients call by."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of `task_mesh` runs in each mesh; one of `started_mesh` where there are both."""
    if "task_mesh" in metafunc.fixturenames:
        cases = CASES.items()
        metafunc.parametrize(
            ("started_mesh", "task_mesh"),
            [pytest.param(home, family, id=name) for name, (home, family) in cases],
            indirect=True,
            scope="session",
        )
    elif "started_mesh" in metafunc.fixturenames:
        metafunc.parametrize("started_mesh", ["both"], indirect=True, scope="session")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one mesh stand together: each is started once."""
    places = [i for i, item in enumerate(items) if _home(item)]
    ordered = sorted((items[i] for i in places), key=lambda item: list(HOMES).index(_home(item)))
    for place, item in zip(places, ordered, strict=True):
        items[place] = item


def _home(item: pytest.Item) -> str:
    found: str = getattr(item, "callspec", None) and item.callspec.params.get("started_mesh", "")  # type: ignore[attr-defined]
    return found or ""


@pytest.fixture(scope="session")
def started_mesh(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TaskMesh]:
    """The mesh: clients, versions of services, gateways, a server outside."""
    if os.geteuid() != 0 or shutil.which("iptables-restore") is None:
        pytest.skip("capture mode netns needs root and iptables")
    with TaskMesh(tmp_path_factory.mktemp("tasks"), HOMES[request.param]) as running:
        yield running


@pytest.fixture
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
