"""Machines outside a cluster join it by WorkloadGroups: real Envoys, a real API server, two
replicas of config. Their entries are objects of the API server, made, changed and removed as RBAC
of the chart lets config."""

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cluster import Cluster, free_port
from machine_process import (
    MachineProcess,
    called_by,
    condition,
    kill_all,
    running_application,
)
from nats_process import NatsServer
from rows import rows_of
from test_kube_crds import install_definitions

from meshbus.kube.permissions import MACHINES
from meshbus.model.keys import Key
from services import Process, serving

pytestmark = [pytest.mark.slow, pytest.mark.real]
ROOT = "machines-system"
TEAM = "machines-team"
ENVOY, APPLICATION, CLIENT = "127.201.9.1", "127.201.9.2", "127.201.9.3"
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{ROOT}/leases/meshbus-config"
ENTRIES = f"/apis/networking.istio.io/v1/namespaces/{TEAM}/workloadentries"


class World(NamedTuple):
    """A mesh on a cluster that machines join."""

    cluster: Cluster
    configs: tuple[Process, Process]
    folder: Path


def group(name: str, probe: dict[str, Any] | None) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "metadata": {"labels": {"app": name, "version": "v7"}},
        "template": {"serviceAccount": name, "ports": {"http": 8080}},
    }
    if probe is not None:
        spec["probe"] = probe
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadGroup",
        "metadata": {"name": name, "namespace": TEAM},
        "spec": spec,
    }


def entry(name: str, **annotations: str) -> dict[str, Any]:
    """A WorkloadEntry that somebody wrote."""
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntry",
        "metadata": {"name": name, "namespace": TEAM, "annotations": annotations},
        "spec": {"address": "192.0.2.9", "labels": {"app": "written"}},
    }


PROBE = {
    "periodSeconds": 1,
    "failureThreshold": 2,
    "httpGet": {"path": "/", "port": 8080},
}


@pytest.fixture(scope="module")
def world(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("machines")
    install_definitions(cluster)
    for name in (ROOT, TEAM):
        metadata = {"name": name}
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    nats = NatsServer(folder / "nats")
    gateway = f"127.0.0.1:{free_port()}"
    api = {"MESHBUS_CONFIG_API": "127.0.0.1:0", "MESHBUS_CONFIG_MACHINES_GATEWAY": gateway}

    def config(name: str) -> contextlib.AbstractContextManager[Process]:
        place = folder / name
        scopes = (MACHINES,)
        return serving(cluster, nats, "config", place, root=ROOT, env=api, pod=name, scopes=scopes)

    with contextlib.ExitStack() as ends:
        ends.callback(nats.kill)
        nats.start()
        ends.enter_context(serving(cluster, nats, "ca", folder / "ca", root=ROOT))
        replicas = (ends.enter_context(config("c0")), ends.enter_context(config("c1")))
        ends.enter_context(serving(cluster, nats, "discovery", folder / "discovery", root=ROOT))
        listen = {"MESHBUS_XDS_GATEWAY_LISTEN": gateway}
        started = serving(cluster, nats, "xds-gateway", folder / "gateway", root=ROOT, env=listen)
        ends.enter_context(started).wait_ready()
        for replica in replicas:
            replica.wait_ready()
        ports = [{"name": "http", "port": 8080}]
        service = {"selector": {"app": "vm"}, "ports": ports}
        meta = {"name": "vm", "namespace": TEAM}
        cluster.apply({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": service})
        cluster.apply(group("vm", PROBE))
        cluster.apply(group("client", None))
        (folder / "token").write_text(operator(cluster))
        (folder / "roots.pem").write_text(asyncio.run(roots(nats)))
        yield World(cluster, replicas, folder)
        for name in (ROOT, TEAM):
            metadata = {"name": name}
            cluster.delete({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})


def operator(cluster: Cluster) -> str:
    """The token of an account that may let machines in, and nothing else."""
    rbac = "rbac.authorization.k8s.io/v1"
    name = "machine-operator"
    rule = {"verbs": ["post"], "nonResourceURLs": [f"/v1/workloads/{TEAM}/*"]}
    role = {"apiGroup": rbac.split("/")[0], "kind": "ClusterRole", "name": name}
    subject = {"kind": "ServiceAccount", "name": name, "namespace": ROOT}
    for document in (
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": name, "namespace": ROOT},
        },
        {"apiVersion": rbac, "kind": "ClusterRole", "metadata": {"name": name}, "rules": [rule]},
        {
            "apiVersion": rbac,
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": role,
            "subjects": [subject],
        },
    ):
        cluster.apply(document)
    return cluster.token(ROOT, name)


@pytest.fixture(scope="module")
def application() -> Iterator[None]:
    with running_application(APPLICATION):
        yield


def until(holds: Any, what: str, limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.05)


def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "meshbus.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def holder(cluster: Cluster) -> str:
    """The replica that writes to the API server."""
    name: str = cluster.get(LEASE)["spec"]["holderIdentity"]
    return name


def url_of(config: Process) -> str:
    url: str = json.loads((config.folder / "config" / "api.json").read_text())["url"]
    return url


async def roots(nats: NatsServer) -> str:
    """The roots of the mesh, which in namespaces are in ConfigMap `meshbus-ca-root-cert`."""
    key = Key("Kubernetes", "sec", "trust", "", "cluster.local")
    async with rows_of(nats) as rows:
        await rows.until(lambda: rows.mirror.world.get(key))
        found: str = rows.mirror.world.get(key).roots_pem
    return found


def configure(
    world: World, group: str, folder: Path, *more: str, by: Process | None = None
) -> "subprocess.CompletedProcess[str]":
    return command(
        *("workload", "configure", group, "-n", TEAM, "-o", str(folder)),
        *("--api", url_of(by or world.configs[0]), "--api-name", f"config.{ROOT}.svc"),
        *("--roots", str(world.folder / "roots.pem"), "--token", str(world.folder / "token")),
        *more,
    )


@pytest.fixture
def machines(world: World, application: None) -> Iterator[list[MachineProcess]]:
    running: list[MachineProcess] = []
    yield running
    kill_all(running)
    items = world.cluster.get(ENTRIES)["items"]
    for item in items:
        world.cluster.request("DELETE", f"{ENTRIES}/{item['metadata']['name']}")


def entries(world: World) -> dict[str, dict[str, Any]]:
    items = world.cluster.get(ENTRIES)["items"]
    return {item["metadata"]["name"]: item for item in items}


def status(world: World, name: str, kind: str) -> str:
    """A condition of an entry; empty: it has none."""
    return condition(entries(world).get(name, {}), kind)


def healthy(world: World, name: str) -> str:
    return status(world, name, "Healthy")


def call(host: str = f"vm.{TEAM}:8080") -> tuple[int, dict[str, str]]:
    """What the client's application gets by its Envoy: status, headers that the server saw."""
    return called_by(CLIENT, f"http://{host}/")


def joined(
    world: World, machines: list[MachineProcess], group: str, folder: Path, address: str, *more: str
) -> MachineProcess:
    done = configure(world, group, folder, *more)
    assert done.returncode == 0, done.stderr
    machines.append(MachineProcess(folder, address, APPLICATION))
    return machines[-1]


def test_machines_join_a_cluster_and_call_each_other(
    world: World, machines: list[MachineProcess], tmp_path: Path
) -> None:
    server = joined(world, machines, "vm", tmp_path / "vm", ENVOY, "--name", "vm-one")
    joined(world, machines, "client", tmp_path / "client", CLIENT, "--name", "client-one")
    until(lambda: healthy(world, "vm-one") == "True", "it is healthy")
    found = entries(world)["vm-one"]
    meta, spec = found["metadata"], found["spec"]
    assert meta["annotations"]["istio.io/autoRegistrationGroup"] == "vm"
    assert meta["annotations"]["proxy.istio.io/health-checks-enabled"] == "true"
    (owner,) = meta["ownerReferences"]
    made_by = world.cluster.get(f"/apis/networking.istio.io/v1/namespaces/{TEAM}/workloadgroups/vm")
    assert (owner["kind"], owner["name"]) == ("WorkloadGroup", "vm")
    assert owner["uid"] == made_by["metadata"]["uid"]
    assert (spec["address"], spec["serviceAccount"]) == (ENVOY, "vm")
    assert spec["labels"] == {"app": "vm", "version": "v7"}
    until(lambda: call()[0] == 200, "it is called")
    identity = call()[1]["x-forwarded-client-cert"]
    assert f"By=spiffe://cluster.local/ns/{TEAM}/sa/vm" in identity
    assert f"URI=spiffe://cluster.local/ns/{TEAM}/sa/client" in identity
    # Nothing is written while nothing changes.
    until(lambda: status(world, "vm-one", "Programmed") == "True", "proxies have it")

    def stays() -> bool:
        before, heard = entries(world)["vm-one"], beats(world.configs[0])
        until(lambda: beats(world.configs[0]) >= heard + 4, "it has spoken again")
        return entries(world)["vm-one"] == before

    until(stays, "what is said of it now is written, and nothing more")
    assert server.end() == 0
    until(lambda: "vm-one" not in entries(world), "it says goodbye", 10)
    until(lambda: call()[0] == 503, "its endpoint is gone")


def beats(config: Process) -> int:
    """How often machines have spoken to a replica."""
    _, text = config.admin("/debug/config/machines")
    spoken: int = json.loads(text)["beats"]
    return spoken


def test_one_that_is_not_healthy_is_withdrawn(
    world: World, machines: list[MachineProcess], tmp_path: Path
) -> None:
    global APPLICATION
    shared, APPLICATION = APPLICATION, "127.201.9.4"
    try:
        joined(world, machines, "client", tmp_path / "client", CLIENT, "--name", "client-two")
        with running_application(APPLICATION):
            joined(world, machines, "vm", tmp_path / "vm", ENVOY, "--name", "vm-two")
            until(lambda: healthy(world, "vm-two") == "True", "it is healthy")
            until(lambda: call()[0] == 200, "it is called")
        until(lambda: healthy(world, "vm-two") == "False", "it is not healthy")
        until(lambda: call()[0] == 503, "it is not called")
        # Other conditions of the entry stand beside that of its health.
        conditions = entries(world)["vm-two"]["status"]["conditions"]
        assert {"Accepted", "Healthy"} <= {one["type"] for one in conditions}
        with running_application(APPLICATION):
            until(lambda: healthy(world, "vm-two") == "True", "it is healthy again")
            until(lambda: call()[0] == 200, "it is called again")
    finally:
        APPLICATION = shared


def test_one_that_dies_is_forgotten_and_others_are_left_alone(
    world: World, machines: list[MachineProcess], tmp_path: Path
) -> None:
    written = entry("written", **{"istio.io/autoRegistrationGroup": "of-istio"})
    world.cluster.apply(written)
    dead = joined(world, machines, "vm", tmp_path / "vm", ENVOY, "--name", "vm-dead")
    joined(world, machines, "client", tmp_path / "client", CLIENT, "--name", "client-three")
    until(lambda: {"vm-dead", "client-three"} <= entries(world).keys(), "both are there")
    dead.kill()
    until(lambda: "vm-dead" not in entries(world), "the dead one is forgotten", 40)
    assert {"written", "client-three"} <= entries(world).keys()


def test_a_name_that_somebody_else_has_is_refused(
    world: World, machines: list[MachineProcess], tmp_path: Path
) -> None:
    world.cluster.apply(entry("taken"))
    one = joined(world, machines, "vm", tmp_path / "vm", ENVOY, "--name", "taken")
    log = one.folder / "run.log"
    until(lambda: "no machine made it" in log.read_text(), "it is told")
    assert entries(world)["taken"]["spec"]["address"] == "192.0.2.9"
    assert one.end() == 0
    assert "taken" in entries(world)


def test_who_may_let_machines_in(world: World, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(world.cluster.token(TEAM, "default"))
    refused = configure(world, "vm", tmp_path / "vm", "--token", str(tmp_path / "token"))
    assert refused.returncode == 1
    assert "cannot post path" in refused.stderr
    missing = configure(world, "nobody", tmp_path / "nobody")
    assert missing.returncode == 1
    assert "nobody" in missing.stderr
    wrong = configure(world, "vm", tmp_path / "wrong", "--api-name", "other.example.com")
    assert wrong.returncode == 1
    assert not (tmp_path / "wrong").exists()


def test_replicas_die_and_machines_stay(
    world: World, machines: list[MachineProcess], tmp_path: Path
) -> None:
    """The machine speaks to the replica that does not write; the one that does dies, and the other
    one, which takes over, has heard of it all the time."""
    first, second = world.configs
    leader = first if holder(world.cluster) == "c0" else second
    other = second if leader is first else first
    done = configure(world, "vm", tmp_path / "vm", "--name", "vm-kept", by=other)
    assert done.returncode == 0, done.stderr
    machines.append(MachineProcess(tmp_path / "vm", ENVOY, APPLICATION))
    until(lambda: healthy(world, "vm-kept") == "True", "it is healthy")
    uid = entries(world)["vm-kept"]["metadata"]["uid"]
    key = f"{TEAM}/vm-kept"

    def heard_by(config: Process) -> float:
        _, text = config.admin("/debug/config/machines")
        seconds: float = json.loads(text)["silent_s"].get(key, 1e9)
        return seconds

    until(lambda: heard_by(leader) < 5, "the leader has heard of it")
    leader.process.kill()
    leader.process.wait()
    name = "c1" if leader is first else "c0"
    until(lambda: holder(world.cluster) == name, "the other one takes over", 60)
    dead = machines[-1]
    kept = entries(world)["vm-kept"]
    assert kept["metadata"]["uid"] == uid
    dead.kill()
    until(lambda: "vm-kept" not in entries(world), "it is forgotten", 40)
