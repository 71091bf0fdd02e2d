"""Instances are replaced while they are called: nobody notices."""

import asyncio
import http.client
import itertools
import json
import os
import re
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from standalone import all_ready, meshbus, pid_of, status_of, until

from meshbus.local.api import MeshApi
from meshbus.local.bootstrap import ADMIN_SOCKET
from meshbus.local.end import end_mesh
from meshbus.local.home import Home
from meshbus.local.instance import last_report
from meshbus.local.probe import ask_envoy

pytestmark = [pytest.mark.real, pytest.mark.slow]

APP = Path(__file__).parents[1] / "tasks" / "echo_app.py"
PROXY_PORT = 15080
EDGES = ("default/edge:8080", "default/edge:8081")


def workload(name: str, replicas: int, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "standalone.meshbus.io/v1alpha1",
        "kind": "Workload",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "serviceAccount": name,
            "command": [sys.executable, str(APP), "http:8080"],
            "ports": [{"name": "http", "port": 8080}],
            "replicas": replicas,
            **spec,
        },
    }


def edge(note: str) -> dict[str, Any]:
    ports = [{"name": "http", "port": 8080}, {"name": "http-too", "port": 8081}]
    made = workload("edge", 1, gateway=True, env={"NOTE": note}, ports=ports)
    del made["spec"]["command"]
    return made


def network(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": spec,
    }


def manifests() -> list[dict[str, Any]]:
    services: list[dict[str, Any]] = [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 8080}]},
        }
        for name in ("web", "single")
    ]
    never_again = {"retries": {"attempts": 0}}  # what is lost is seen
    routes = [
        network(
            "VirtualService",
            name,
            {
                "hosts": hosts,
                "gateways": gateways,
                "http": [{"route": [{"destination": {"host": to}}], **never_again}],
            },
        )
        for name, hosts, gateways, to in (
            ("web", ["web"], ["mesh"], "web"),
            ("single", ["single"], ["mesh"], "single"),
            ("edge", ["*"], ["edge"], "web"),
        )
    ]
    servers = [
        {"port": {"number": number, "name": f"http-{number}", "protocol": "HTTP"}, "hosts": ["*"]}
        for number in (8080, 8081)
    ]
    gateway = network("Gateway", "edge", {"selector": {"app": "edge"}, "servers": servers})
    return [*services, *routes, gateway, workload("client", 1), edge("first")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    folder = tmp_path_factory.mktemp("rollouts")
    made = Home(folder / "h")
    made.create()
    made.settings_file.write_text("services: {processes: one}")
    (folder / "mesh.yaml").write_text(yaml.safe_dump_all(manifests()))
    try:
        result = meshbus("up", "--home", str(made.path), "-d", "-f", str(folder / "mesh.yaml"))
        assert result.returncode == 0, result.stderr
        yield made
    finally:
        end_mesh(made)


def apply(home: Home, *documents: dict[str, Any]) -> None:
    with MeshApi(home) as api:
        api.apply(list(documents))


def web(version: str, replicas: int = 2, name: str = "web", **spec: Any) -> dict[str, Any]:
    return workload(name, replicas, env={"VERSION": version}, **spec)


def instances(home: Home, name: str) -> list[str]:
    return [i for i in status_of(home).instances if i.startswith(f"default/{name}-")]


def is_done(home: Home, name: str, replicas: int) -> bool:
    """Everything that was asked for last is there, and nothing else."""
    with MeshApi(home) as api:
        newest = api.newest_workload()
    status = status_of(home)
    held = status.workloads.get(f"default/{name}")
    return (
        held is not None
        and status.sequence >= newest
        and (held.updated, held.ready, held.replicas) == (replicas,) * 3
        and not pid_of(home, f"app/default/{name}-{replicas}")
        and all_ready(home)
    )


def begun(home: Home, document: dict[str, Any]) -> None:
    """A workload is there, and called."""
    name = document["metadata"]["name"]
    apply(home, document)
    until(lambda: is_done(home, name, document["spec"]["replicas"]), f"{name} is ready")
    version = document["spec"]["env"]["VERSION"]
    until(lambda: ask(home, name) == (200, version), f"{name} is called")


def proxy_address(home: Home) -> str:
    return status_of(home).instances["default/client-0"].addresses[0]


def ask(home: Home, name: str, path: str = "/") -> tuple[int, str]:
    """Status and version that the client of the mesh gets."""
    return Caller(proxy_address(home), PROXY_PORT, f"http://{name}:8080")(path)


class Caller:
    """One connection after the other, each for as long as it may be used."""

    def __init__(self, host: str, port: int, url: str = "") -> None:
        self._connection = http.client.HTTPConnection(host, port, timeout=30)
        self._url = url

    def __call__(self, path: str) -> tuple[int, str]:
        try:
            self._connection.request("GET", f"{self._url}{path}")
            answer = self._connection.getresponse()
            body = answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            return 0, repr(error)
        if answer.status != 200:
            return answer.status, body
        return 200, answer.headers["x-version"]


class Load:
    """Requests on several connections at once, short and long ones."""

    def __init__(self, caller: Callable[[], Caller], paths: tuple[str, ...]) -> None:
        self._end = threading.Event()
        self.answers: Counter[tuple[int, str]] = Counter()
        self._threads = [
            threading.Thread(target=self._run, args=(caller(), path)) for path in paths
        ]

    def _run(self, call: Caller, path: str) -> None:
        while not self._end.is_set():
            self.answers[call(path)] += 1

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def of(self, version: str) -> int:
        return self.answers[200, version]

    @property
    def lost(self) -> dict[tuple[int, str], int]:
        return {answer: n for answer, n in self.answers.items() if answer[0] != 200}


PATHS = ("/delay/0.01", "/delay/0.02", "/delay/0.2", "/delay/0.5", "/delay/1")


def load(home: Home, name: str) -> Load:
    address = proxy_address(home)
    return Load(lambda: Caller(address, PROXY_PORT, f"http://{name}:8080"), PATHS)


def drains(home: Home, instance: str) -> bool:
    report = last_report(home.instances / instance.replace("/", "."))
    return report is not None and report.draining


@pytest.mark.parametrize("replicas", [1, 2])
def test_no_request_is_lost_while_all_instances_are_replaced(home: Home, replicas: int) -> None:
    begun(home, web("old", replicas))
    before = {name: pid_of(home, f"app/{name}") for name in instances(home, "web")}
    with load(home, "web") as calls:
        until(lambda: calls.of("old") > 20, "it is called")
        apply(home, web("new", replicas))
        until(lambda: is_done(home, "web", replicas), "all are replaced", 60)
        old, new = calls.of("old"), calls.of("new")
        until(lambda: calls.of("new") > new + 50, "the new ones are called")
        assert calls.of("old") == old, "nobody calls what is gone"
    assert calls.lost == {}
    assert sorted(before) == instances(home, "web")
    for name, pid in before.items():
        assert pid_of(home, f"app/{name}") not in (0, pid)


STAGES: dict[str, Callable[[Home], bool]] = {
    "one more is started": lambda home: pid_of(home, "app/default/web-2") != 0,
    "one drains": lambda home: drains(home, "default/web-0"),
    "one is replaced": lambda home: status_of(home).workloads["default/web"].updated == 1,
    "the last one drains": lambda home: drains(home, "default/web-1"),
    "the one more drains": lambda home: drains(home, "default/web-2"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_supervisor_that_is_killed_goes_on_where_it_was(home: Home, stage: str) -> None:
    begun(home, web("old"))
    before = {name: pid_of(home, f"app/{name}") for name in instances(home, "web")}
    client = pid_of(home, "envoy/default/client-0")
    with load(home, "web") as calls:
        until(lambda: calls.of("old") > 20, "it is called")
        apply(home, web("new"))
        until(lambda: STAGES[stage](home), stage, 60)
        pid = pid_of(home, "supervisor")
        os.kill(pid, signal.SIGKILL)
        until(lambda: pid_of(home, "supervisor") not in (0, pid), "the supervisor is back")
        until(lambda: is_done(home, "web", 2), "all are replaced", 60)
        new = calls.of("new")
        until(lambda: calls.of("new") > new + 50, "the new ones are called")
    assert calls.lost == {}
    for name, pid in before.items():
        assert pid_of(home, f"app/{name}") not in (0, pid)
    assert pid_of(home, "envoy/default/client-0") == client, "others go on"


def test_a_version_that_never_gets_ready_takes_nobody_down(home: Home) -> None:
    begun(home, web("old"))
    command = ("status", "--home", str(home.path))
    until(lambda: meshbus(*command).returncode == 0, "all is well")
    with load(home, "web") as calls:
        apply(home, web("bad", command=["sh", "-c", "exec sleep 1000"]))
        says = "web-2: the application does not listen on its ports yet"
        until(lambda: says in meshbus(*command).stdout, "it is said what is waited for")
        shown = meshbus(*command, "-o", "json")
        assert shown.returncode == 1
        of = json.loads(shown.stdout)["workloads"]["default/web"]
        assert (of["ready"], of["updated"], of["replicas"]) == (2, 0, 2)
        old = calls.of("old")
        until(lambda: calls.of("old") > old + 50, "the old ones are called")
        apply(home, web("new"))
        until(lambda: is_done(home, "web", 2), "the next version is there", 60)
    assert calls.lost == {}
    assert meshbus(*command).returncode == 0


def health_at_client(home: Home, address: str) -> str:
    """What the client's Envoy is told of an endpoint; empty: nothing."""
    folder = home.instances / "default.client-0" / "proxy"
    _, text = asyncio.run(ask_envoy(folder, ADMIN_SOCKET, "/clusters"))
    found = re.search(rf"^outbound.*::{address}:8080::health_flags::(.*)$", text, re.MULTILINE)
    return found[1] if found else ""


def test_a_request_that_is_under_way_may_end_and_nobody_new_comes(home: Home) -> None:
    begun(home, web("old", 1, name="single"))
    address = status_of(home).instances["default/single-0"].addresses[0]
    apply(home, web("old", 2, name="single"))
    until(lambda: is_done(home, "single", 2), "there are two")
    with ThreadPoolExecutor(2) as pool:
        # One of two goes to each instance.
        long = [pool.submit(ask, home, "single", "/delay/3") for _ in range(2)]
        until(lambda: requests_at(home, "single-1") == 1, "a request is under way")
        apply(home, web("old", 1, name="single"))
        other = status_of(home).instances["default/single-1"].addresses[0]
        until(lambda: health_at_client(home, other) == "/eds_status_draining", "callers are told")
        assert health_at_client(home, address) == "healthy"
        assert pid_of(home, "app/default/single-1")
        assert [future.result() for future in long] == [(200, "old")] * 2
    until(lambda: not pid_of(home, "envoy/default/single-1"), "it is gone")
    until(lambda: health_at_client(home, other) == "", "its endpoint too")
    delete(home, web("old", 1, name="single"))


def delete(home: Home, document: dict[str, Any]) -> None:
    with MeshApi(home) as api:
        api.delete([document])
    name = document["metadata"]["name"]
    until(lambda: not instances(home, name), "it is ended")


def requests_at(home: Home, instance: str) -> int:
    folder = home.instances / f"default.{instance}" / "proxy"
    path = "/stats?filter=inbound.*upstream_rq_active"
    _, text = asyncio.run(ask_envoy(folder, ADMIN_SOCKET, path))
    return sum(int(line.rpartition(": ")[2]) for line in text.splitlines() if ": " in line)


def test_waiting_until_nobody_is_connected_has_an_end(home: Home) -> None:
    document = web("old", 1, name="single")
    document["metadata"]["annotations"] = {
        "proxy.istio.io/config": json.dumps(
            {
                "terminationDrainDuration": "3s",
                "proxyMetadata": {
                    "EXIT_ON_ZERO_ACTIVE_CONNECTIONS": "true",
                    "MINIMUM_DRAIN_DURATION": "1s",
                },
            }
        )
    }
    begun(home, document)
    address = status_of(home).instances["default/single-0"].addresses[0]
    with socket.create_connection((address, 8080)) as held:
        delete(home, document)
        assert pid_of(home, "envoy/default/single-0"), "somebody is connected"
        held.settimeout(30)
        assert held.recv(1) == b"", "not for ever"
    until(lambda: not pid_of(home, "envoy/default/single-0"), "it is gone")


def test_all_at_once_where_that_is_asked_for(home: Home) -> None:
    strategy = {"strategy": {"type": "Recreate"}}
    begun(home, web("old", 2, name="single", **strategy))
    before = {name: pid_of(home, f"app/{name}") for name in instances(home, "single")}
    apply(home, web("new", 2, name="single", **strategy))
    until(lambda: not any(pid_of(home, f"app/{name}") == before[name] for name in before), "gone")
    assert not pid_of(home, "app/default/single-2")
    until(lambda: is_done(home, "single", 2), "all are replaced")
    delete(home, web("new", 2, name="single"))


def test_a_gateway_is_replaced_behind_its_port_on_localhost(home: Home) -> None:
    begun(home, web("only"))
    ports = itertools.cycle(status_of(home).forwards[edge] for edge in EDGES)
    forwards = pid_of(home, "forwards")
    before = pid_of(home, "envoy/default/edge-0")
    with Load(lambda: Caller("127.0.0.1", next(ports)), PATHS) as calls:
        until(lambda: calls.of("only") > 20, "it is called")
        apply(home, edge("second"))
        until(lambda: pid_of(home, "envoy/default/edge-0") not in (0, before), "replaced", 60)
        until(lambda: all_ready(home) and instances(home, "edge") == ["default/edge-0"], "one")
        seen = calls.of("only")
        until(lambda: calls.of("only") > seen + 50, "the new one is called")
    assert calls.lost == {}
    assert pid_of(home, "forwards") == forwards
