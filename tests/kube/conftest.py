"""One real API server for all tests of a session; each test has a namespace of its own."""

import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cluster import Cluster, Unavailable, running_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The API server of the session, with controllers."""
    try:
        with running_cluster() as running:
            yield running
    except Unavailable as error:
        pytest.skip(f"no Kubernetes API server: {error}")


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[Cluster]:
    """An API server of the module's own, to be stopped and started; without controllers."""
    try:
        with running_cluster(controllers=False) as running:
            yield running
    except Unavailable as error:
        pytest.skip(f"no Kubernetes API server: {error}")


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace for one test."""
    name = f"test-{uuid4().hex[:8]}"
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    cluster.delete({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
