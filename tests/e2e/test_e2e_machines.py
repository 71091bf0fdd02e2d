"""Machines that join by a WorkloadGroup: registered, called, withdrawn when unhealthy, gone."""

import asyncio
import json
import ssl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from machine_process import (
    APP,
    MachineProcess,
    called_by,
    condition,
    kill_all,
    running_application,
)
from standalone import meshbus, status_of, until

from meshbus.local.api import MeshApi
from meshbus.local.end import end_mesh
from meshbus.local.home import Home, HomeError
from meshbus.local.probe import ask_envoy
from meshbus.local.processes import LOG_LIMIT_BYTES, LOGS_S
from meshbus.runtime.sealed import recipient

pytestmark = [pytest.mark.real, pytest.mark.slow]

ENTRIES = "/apis/networking.istio.io/v1/namespaces/default/workloadentries"
ENVOY_ADDRESS, APP_ADDRESS = "127.201.7.1", "127.201.7.2"


def workload(name: str, command: list[str], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "standalone.meshbus.io/v1alpha1",
        "kind": "Workload",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"serviceAccount": name, "command": command, **spec},
    }


def group(probe: dict[str, Any] | None) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "metadata": {"labels": {"app": "vm", "version": "v7"}},
        "template": {"serviceAccount": "vm", "ports": {"http": 8080}, "weight": 3},
    }
    if probe is not None:
        spec["probe"] = probe
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadGroup",
        "metadata": {"name": "vm"},
        "spec": spec,
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    folder = tmp_path_factory.mktemp("machines")
    made = Home(folder / "h")
    made.create()
    made.settings_file.write_text("services: {processes: one}")
    service = {"selector": {"app": "vm"}, "ports": [{"name": "http", "port": 8080}]}
    documents = [
        workload("client", [sys.executable, str(APP)]),
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "vm"}, "spec": service},
    ]
    (folder / "mesh.yaml").write_text(yaml.safe_dump_all(documents))
    try:
        result = meshbus("up", "--home", str(made.path), "-d", "-f", str(folder / "mesh.yaml"))
        assert result.returncode == 0, result.stderr
        yield made
    finally:
        end_mesh(made)


@pytest.fixture(scope="module")
def application() -> Iterator[None]:
    with running_application(APP_ADDRESS):
        yield


def call(home: Home, path: str = "/") -> tuple[int, dict[str, str]]:
    """What the client of the mesh gets from the machine: status, headers that it saw."""
    address = status_of(home).instances["default/client-0"].addresses[0]
    return called_by(address, f"http://vm:8080{path}")


def entries(home: Home) -> list[dict[str, Any]]:
    with MeshApi(home) as api:
        found: list[dict[str, Any]] = api.get(ENTRIES)["items"]
    return found


def healthy(home: Home) -> str:
    (entry,) = entries(home) or [{}]
    return condition(entry, "Healthy")


def configure(home: Home, folder: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    arguments = ("workload", "configure", "vm", "--home", str(home.path), "-o", str(folder))
    return meshbus(*arguments, *more)


class Machine(MachineProcess):
    """At the addresses of these tests."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, ENVOY_ADDRESS, APP_ADDRESS)


@pytest.fixture
def machine(home: Home, application: None, tmp_path: Path) -> Iterator[list[Machine]]:
    running: list[Machine] = []
    yield running
    kill_all(running)


def apply(home: Home, *documents: dict[str, Any]) -> None:
    with MeshApi(home) as api:
        api.apply(list(documents))


def test_a_machine_joins_serves_and_leaves(
    home: Home, machine: list[Machine], tmp_path: Path
) -> None:
    apply(home, group(None))
    folder = tmp_path / "m"
    result = configure(home, folder)
    assert result.returncode == 0, result.stderr
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in ("token", "machine.json", "roots.pem"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    assert call(home)[0] == 503, "nobody is there yet"
    machine.append(Machine(folder))
    until(lambda: call(home)[0] == 200, "the machine answers")
    seen = call(home)[1]
    assert "sa/client" in seen["x-forwarded-client-cert"], "mutual TLS, both ways"
    assert "sa/vm" in seen["x-forwarded-client-cert"]
    (entry,) = entries(home)
    assert entry["metadata"]["name"].startswith("vm-")
    assert entry["metadata"]["annotations"]["istio.io/autoRegistrationGroup"] == "vm"
    assert entry["metadata"]["labels"]["version"] == "v7"
    assert (entry["spec"]["address"], entry["spec"]["weight"]) == (ENVOY_ADDRESS, 3)
    assert machine[0].end() == 0
    until(lambda: entries(home) == [], "it has said goodbye")
    until(lambda: call(home)[0] == 503, "nobody is called")


def test_unhealthy_is_withdrawn_and_comes_back(
    home: Home, machine: list[Machine], tmp_path: Path
) -> None:
    flag = tmp_path / "healthy"
    probe = {
        "exec": {"command": ["test", "-e", str(flag)]},
        "periodSeconds": 1,
        "failureThreshold": 1,
    }
    apply(home, group(probe))
    folder = tmp_path / "m"
    assert configure(home, folder, "--name", "vm-named").returncode == 0
    machine.append(Machine(folder))
    until(lambda: healthy(home) == "False", "it is registered, and unhealthy")
    assert call(home)[0] == 503
    flag.touch()
    until(lambda: call(home)[0] == 200, "healthy: it is called")
    assert healthy(home) == "True"
    flag.unlink()
    until(lambda: call(home)[0] == 503, "unhealthy: it is not called")
    assert [e["metadata"]["name"] for e in entries(home)] == ["vm-named"]


def test_a_machine_that_dies_is_forgotten(
    home: Home, machine: list[Machine], tmp_path: Path
) -> None:
    probe = {"httpGet": {"path": "/status/200", "port": 8080}, "periodSeconds": 1}
    apply(home, group(probe))
    folder = tmp_path / "m"
    assert configure(home, folder).returncode == 0
    machine.append(Machine(folder))
    until(lambda: call(home)[0] == 200, "the machine answers")
    machine[0].kill()
    until(lambda: entries(home) == [], "its entry goes", 40)
    machine.append(Machine(folder))
    until(lambda: call(home)[0] == 200, "it comes back with what it has")
    with MeshApi(home) as api:
        api.delete([group(probe)])
    until(lambda: call(home)[0] == 503, "its group is gone")
    said = folder / "run.log"
    until(lambda: "the WorkloadGroup is gone" in said.read_text(), "the machine says so")
    assert 'workloadgroups.networking.istio.io "vm" is forbidden: it is gone' in renewed(folder)
    apply(home, group(probe))
    until(lambda: call(home)[0] == 200, "with its group it is back")
    assert "the mesh takes this machine again" in said.read_text()
    assert said.read_text().count("the WorkloadGroup is gone") == 1
    assert renewed(folder) == "a fresh token"
    document = group(probe)
    document["spec"]["template"]["serviceAccount"] = "other"
    apply(home, document)
    until(lambda: "for another service account" in said.read_text(), "it is refused")
    assert "for another service account" in renewed(folder)
    assert machine[1].end() == 0


def renewed(folder: Path) -> str:
    """What a machine is told that asks for a fresh token."""
    about = json.loads((folder / "machine.json").read_text())
    answer = httpx.post(
        f"{about['api']['url']}/v1/workloads/default/{about['name']}/token",
        json={"publicKey": recipient().public_key},
        headers={"authorization": f"Bearer {(folder / 'token').read_text()}"},
        verify=ssl.create_default_context(cadata=about["api"]["ca"]),
    )
    return "a fresh token" if answer.status_code == 200 else str(answer.json()["message"])


def test_the_token_of_a_workload_makes_no_machine_of_it(home: Home, tmp_path: Path) -> None:
    apply(home, group(None))
    assert configure(home, tmp_path / "m").returncode == 0
    about = json.loads((tmp_path / "m" / "machine.json").read_text())
    token = home.instances / "default.client-0" / "proxy" / "token"
    answer = httpx.put(
        f"{about['api']['url']}/v1/workloads/default/client-0",
        json={"group": "vm", "address": ENVOY_ADDRESS},
        headers={"authorization": f"Bearer {token.read_text()}"},
        verify=ssl.create_default_context(cadata=about["api"]["ca"]),
    )
    assert answer.status_code == 403
    assert "of no WorkloadGroup" in answer.json()["message"]


def test_the_log_of_a_machines_envoy_is_limited(
    home: Home, machine: list[Machine], tmp_path: Path
) -> None:
    apply(home, group(None))
    folder = tmp_path / "m"
    assert configure(home, folder).returncode == 0
    machine.append(Machine(folder))
    until(lambda: call(home)[0] == 200, "the machine answers")
    log, aside = folder / "logs" / "envoy.log", folder / "logs" / "envoy.log.1"
    with log.open("ab") as file:
        file.write(b"x" * (LOG_LIMIT_BYTES + 1))
    until(aside.exists, "it is moved aside", LOGS_S + 30)
    until(lambda: log.stat().st_size < 4096, "it begins anew")
    asyncio.run(ask_envoy(folder, "admin.sock", "/logging?level=debug", method="POST"))
    until(lambda: 0 < log.stat().st_size < LOG_LIMIT_BYTES, "Envoy goes on in it")
    assert machine[0].end() == 0


def test_a_machine_starts_and_ends_as_its_proxy_config_says(
    home: Home, machine: list[Machine], tmp_path: Path
) -> None:
    wish = {
        "readinessProbe": {"httpGet": {"path": "/status/200", "port": 8080}, "periodSeconds": 1},
        "terminationDrainDuration": "6s",
        "extraStatTags": ["color"],
        "statsdUdpAddress": "127.0.0.1:8125",
    }
    document = group(None)
    document["metadata"]["annotations"] = {"proxy.istio.io/config": json.dumps(wish)}
    apply(home, document)
    folder = tmp_path / "m"
    assert configure(home, folder).returncode == 0
    machine.append(Machine(folder))
    until(lambda: healthy(home) == "True", "it is probed as ProxyConfig says")
    until(lambda: call(home)[0] == 200, "the machine answers")
    held = json.loads((folder / "bootstrap.json").read_text())
    assert [tag["tag_name"] for tag in held["stats_config"]["stats_tags"]] == ["color"]
    assert [sink["name"] for sink in held["stats_sinks"]] == ["envoy.stat_sinks.statsd"]
    with ThreadPoolExecutor() as pool:
        long = pool.submit(call, home, "/delay/3")
        until(lambda: active(folder) == 1, "the request is under way")
        assert machine[0].end() == 0
        assert long.result()[0] == 200, "it may end"
    assert entries(home) == []


def active(folder: Path) -> int:
    """Requests that the machine's Envoy is handing to its application."""
    name = "cluster.inbound|8080||.upstream_rq_active"
    _, text = asyncio.run(
        ask_envoy(folder, "admin.sock", "/stats?filter=inbound.*upstream_rq_active")
    )
    counts = [line.rpartition(": ") for line in text.splitlines()]
    return sum(int(number) for found, _, number in counts if found == name)


def test_who_may_say_what(home: Home, machine: list[Machine], tmp_path: Path) -> None:
    apply(home, group(None))
    result = configure(home, tmp_path / "x", "--name", "Bad Name")
    assert result.returncode == 1
    assert "not a Kubernetes name" in result.stderr
    result = meshbus(
        *("workload", "configure", "nobody", "--home", str(home.path), "-o", str(tmp_path / "x"))
    )
    assert result.returncode == 1
    assert "not found" in result.stderr
    folder = tmp_path / "m"
    assert configure(home, folder, "--name", "vm-one").returncode == 0
    stolen = Home(home.path)
    access = json.loads(home.api_file.read_text())
    stolen.api_file = tmp_path / "stolen.json"
    stolen.api_file.write_text(json.dumps({**access, "token": (folder / "token").read_text()}))
    with MeshApi(stolen) as api:
        for path in ("/api/v1/secrets", "/v1/proxies", "/v1/workloads/default/vm-two"):
            with pytest.raises(HomeError, match=r"403|not allowed|forbidden|cannot"):
                api.get(path)
    with MeshApi(home) as api, pytest.raises(HomeError, match="only the machine itself"):
        api._ask("PUT", "/v1/workloads/default/vm-one", {"group": "vm", "address": "127.0.0.9"})
