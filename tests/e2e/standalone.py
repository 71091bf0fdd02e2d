"""A real mesh in a folder of the test: started and ended by the command, as a user would."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from meshbus.local.api import MeshApi
from meshbus.local.end import end_mesh
from meshbus.local.home import Home
from meshbus.local.processes import Records, marked_processes, runs, start_ticks
from meshbus.local.status import SupervisorStatus, read_status

GATEWAY = "istio-system/istio-ingressgateway:8080"


def meshbus(*arguments: str, timeout_s: float = 120) -> "subprocess.CompletedProcess[str]":
    """Run the command."""
    return subprocess.run(
        [sys.executable, "-m", "meshbus.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env=os.environ,
    )


@contextmanager
def mesh(folder: Path, *arguments: str) -> Iterator[Home]:
    """A mesh that runs in a folder, with Bookinfo; ended whatever happens."""
    from meshbus.local.demo import sample_path

    home = Home(folder / "h")
    try:
        result = meshbus("up", "--home", str(home.path), "-d", "-f", str(sample_path()), *arguments)
        assert result.returncode == 0, result.stderr
        yield home
    finally:
        end_mesh(home)


def status_of(home: Home) -> SupervisorStatus:
    """What the supervisor shows now."""
    status = read_status(home)
    assert status is not None
    return status


def gateway_port(home: Home) -> int:
    """Where the ingress gateway is on localhost."""
    return status_of(home).forwards[GATEWAY]


def pid_of(home: Home, name: str) -> int:
    """Pid of a process of a home; 0 when it does not run."""
    record = Records(home.records).get(name)
    return record.pid if record is not None and runs(record) else 0


def until(holds: Callable[[], object], what: str, timeout_s: float = 30) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.02)


def all_ready(home: Home) -> bool:
    """The control plane and every instance are ready."""
    status = read_status(home)
    return (
        status is not None
        and start_ticks(status.pid) is not None
        and status.control_plane_ready
        and status.synced
        and all(instance.ready for instance in status.instances.values())
    )


def remaining(home: Home) -> list[int]:
    """Live processes that carry the mark of a home."""
    state = home.state()
    assert state is not None
    return [pid for pid in marked_processes(state.id) if start_ticks(pid) is not None]


def rows(home: Home) -> dict[str, str]:
    """Spec of every VirtualService, DestinationRule, Service and Workload by name."""
    found = {}
    with MeshApi(home) as api:
        for path in (
            "/apis/networking.istio.io/v1/virtualservices",
            "/apis/networking.istio.io/v1/destinationrules",
            "/api/v1/services",
            "/apis/standalone.meshbus.io/v1alpha1/workloads",
        ):
            for item in api.get(path)["items"]:
                name = item["metadata"]["namespace"] + "/" + item["metadata"]["name"]
                found[f"{path} {name}"] = repr(item.get("spec"))
    return found
