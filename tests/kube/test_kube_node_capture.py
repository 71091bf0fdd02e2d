"""Capture by the node: the plugin as a runtime calls it, the agent, a real API server that knows
the pod, and a network namespace whose traffic is then captured."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from test_kube_injection import until

from meshbus.cli.node_capture import edit_chain, with_plugin, without_plugin
from meshbus.inject import Injector, Owner

sys.path.insert(0, str(Path(__file__).parents[1] / "integration" / "inject"))
from pod_machine import INIT, PodMachine

PLUGIN = INIT.parents[1] / "cni" / "meshbus-cni"
CHAIN = {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}, {"type": "portmap"}]}
PREVIOUS = {"cniVersion": "1.0.0", "ips": [{"address": "10.1.1.2/24"}], "interfaces": []}
pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, ("iptables-restore", "nc", "nsenter"))),
        reason="needs root, iptables, nc and nsenter",
    ),
]


@pytest.fixture
def node(cluster: Cluster, tmp_path: Path) -> Iterator[Path]:
    """The agent of a node whose folders are below the path."""
    for name in ("bin", "conf"):
        (tmp_path / name).mkdir()
    (tmp_path / "conf" / "10-net.conflist").write_text(json.dumps(CHAIN))
    process = subprocess.Popen(
        [sys.executable, "-m", "meshbus.cli.main", "node-capture", "--spool", str(tmp_path / "s"),
         "--cni-bin", str(tmp_path / "bin"), "--cni-conf", str(tmp_path / "conf"),
         "--plugin", str(PLUGIN), "--init", str(INIT), "--kubeconfig", str(cluster.kubeconfig)],
    )  # fmt: skip
    until((tmp_path / "s" / "requests").is_dir, "the agent runs")
    yield tmp_path
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    left = json.loads((tmp_path / "conf" / "10-net.conflist").read_text())
    assert left == CHAIN, "without its agent the plugin is in nobody's way"


def call(folder: Path, machine: PodMachine, namespace: str, pod: str) -> tuple[int, Any]:
    """The plugin as a runtime calls it."""
    config = {**CHAIN["plugins"][0], "cniVersion": "1.0.0", "name": "net", "prevResult": PREVIOUS}
    environment = {
        "PATH": os.environ["PATH"],
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": f"c-{pod}",
        "CNI_NETNS": f"/run/netns/{machine.name}",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={pod}",
        "MESHBUS_CNI_SPOOL": str(folder / "s"),
        "MESHBUS_CNI_PATIENCE": "20",
    }
    done = subprocess.run(
        [str(folder / "bin" / "meshbus-cni")], input=json.dumps(config), env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout)


def test_pods_of_the_mesh_are_captured_and_others_are_not(
    cluster: Cluster, namespace: str, node: Path
) -> None:
    chain = node / "conf" / "10-net.conflist"
    until(lambda: "meshbus-cni" in chain.read_text(), "the plugin is in the chain")
    until(lambda: cluster.exists(f"/api/v1/namespaces/{namespace}/serviceaccounts/default"), "SA")
    plain = {"metadata": {"labels": {"app": "web"}},
             "spec": {"containers": [{"name": "web", "image": "web"}]}}  # fmt: skip
    owner = Owner("apps/v1", "Deployment", "web", namespace)
    injected = Injector({"pilot": {"cni": {"enabled": True}}}).inject(plain, owner).pod
    for name, pod in (("plain", plain), ("meshed", injected)):
        body = {"apiVersion": "v1", "kind": "Pod", "spec": pod["spec"],
                "metadata": {**pod["metadata"], "name": name}}  # fmt: skip
        cluster.request("POST", f"/api/v1/namespaces/{namespace}/pods", body)
    (node / "pod").mkdir()
    with PodMachine(node / "pod", {}) as machine:
        validation = next(
            c for c in injected["spec"]["initContainers"] if c["name"].endswith("validation")
        )

        def captured() -> bool:
            return machine.start(validation, {}, program=[str(INIT)]).wait(30) == 0

        assert call(node, machine, namespace, "plain") == (0, PREVIOUS)
        code, said = call(node, machine, namespace, "absent")
        assert (code, said["code"]) == (1, 11), "who is not known does not start"
        assert not captured()
        assert call(node, machine, namespace, "meshed") == (0, PREVIOUS)
        assert captured(), machine.log("istio-validation")
        assert call(node, machine, namespace, "meshed") == (0, PREVIOUS), "again is the same"


def test_without_an_agent_no_pod_starts(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c",
                   "MESHBUS_CNI_SPOOL": str(tmp_path)}  # fmt: skip
    done = subprocess.run(
        [str(PLUGIN)], input="{}", env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert json.loads(done.stdout)["code"] == 11
    environment["CNI_COMMAND"] = "DEL"
    assert subprocess.run([str(PLUGIN)], env=environment, check=False).returncode == 0


def test_the_chain_is_written_whole_and_once(tmp_path: Path) -> None:
    path = tmp_path / "10-net.conflist"
    path.write_text(json.dumps(CHAIN))
    edit_chain(path, with_plugin)
    first = path.stat().st_mtime_ns
    edit_chain(path, with_plugin)
    assert path.stat().st_mtime_ns == first
    assert [p["type"] for p in json.loads(path.read_text())["plugins"]] == [
        "bridge",
        "portmap",
        "meshbus-cni",
    ]
    edit_chain(path, without_plugin)
    assert json.loads(path.read_text()) == CHAIN
    path.write_text("{")
    edit_chain(path, with_plugin)
    assert path.read_text() == "{", "what is not understood stays"
