"""Capture mode netns: applications know nothing of the mesh, nothing is left behind."""

import http.client
import ipaddress
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from standalone import all_ready, gateway_port, mesh, meshbus, pid_of, remaining, status_of, until

from meshbus.local.addresses import AddressBook
from meshbus.local.end import end_mesh
from meshbus.local.home import Home
from meshbus.local.netns import bridge_name, namespace_name, socket_in
from meshbus.local.network import network_of
from meshbus.local.traffic import Traffic, fetch

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("iptables-restore") is None,
        reason="capture mode netns needs root and iptables",
    ),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with mesh(tmp_path_factory.mktemp("netns"), "--capture", "netns") as running:
        yield running


def namespaces(home_id: str) -> list[str]:
    return [entry.name for entry in Path("/run/netns").glob(f"mb-{home_id}-*")]


def test_inbound_is_captured_in_both_families(home: Home) -> None:
    addresses = status_of(home).instances["default/reviews-v3-0"].addresses
    assert len(addresses) == 2
    for address in addresses:
        connection = http.client.HTTPConnection(address, 9080, timeout=5)
        connection.request("GET", "/reviews/0")
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("server")) == (200, "istio-envoy"), address
        connection.close()


def test_an_application_calls_by_name_and_its_envoy_runs_as_a_user_of_its_own(home: Home) -> None:
    envoy = Path(f"/proc/{pid_of(home, 'envoy/default/productpage-v1-0')}")
    uid = next(line for line in (envoy / "status").read_text().splitlines() if "Uid:" in line)
    assert set(uid.split()[1:]) == {"1337"}
    application = pid_of(home, "app/default/productpage-v1-0")
    assert b"http_proxy" not in Path(f"/proc/{application}/environ").read_bytes()
    call = "import urllib.request as u; print(u.urlopen('http://reviews:9080/reviews/0').status)"
    inside = ["nsenter", "-n", "-m", "-t", str(application), sys.executable, "-c", call]
    result = subprocess.run(inside, capture_output=True, text=True, timeout=20, check=False)
    assert result.stdout.strip() == "200", result.stderr


ONE_GATEWAY = """
apiVersion: standalone.meshbus.io/v1alpha1
kind: Workload
metadata: {name: edge}
spec:
  gateway: true
  ports: [{name: http, port: 8080}]
"""


PROBE = """
import json, socket, sys
reached = []
for address, port in json.loads(sys.argv[1]):
    try:
        with socket.socket(socket.AF_INET) as probe:
            probe.settimeout(2)
            probe.connect((address, port))
            # Captured connections are taken by the Envoy, which then says what became of them.
            probe.sendall(b"INFO\\r\\n")
            if probe.recv(64):
                reached.append([address, port])
    except OSError:
        pass
print(json.dumps(reached))
"""


def test_an_application_reaches_neither_the_bus_nor_the_pages_of_services(home: Home) -> None:
    state = home.state()
    assert state is not None
    pages = [json.loads(p.read_text()) for p in home.services.glob("admin-*.json")]
    ports = {state.ports["bus"], *(int(str(p["address"]).rpartition(":")[2]) for p in pages)}
    assert len(ports) == 7, pages
    host = next(iter(ipaddress.ip_network(state.block).hosts()))
    wanted = [[address, port] for port in ports for address in ("127.0.0.1", str(host))]
    application = pid_of(home, "app/default/productpage-v1-0")
    inside = ["nsenter", "-n", "-m", "-t", str(application)]
    probe = [sys.executable, "-c", PROBE, json.dumps(wanted)]
    outside = subprocess.run(probe, capture_output=True, text=True, timeout=60, check=True)
    assert ["127.0.0.1", state.ports["bus"]] in json.loads(outside.stdout), "the probe works"
    result = subprocess.run(
        [*inside, *probe], capture_output=True, text=True, timeout=60, check=False
    )
    assert json.loads(result.stdout) == [], result.stderr


def test_instances_that_come_and_go_cut_nobody_off(home: Home) -> None:
    state = home.state()
    assert state is not None
    bridge, port = bridge_name(state.id), f"mb{state.id}-t"
    own = Path(f"/sys/class/net/{bridge}/address")
    before = own.read_text()
    network = network_of(state)
    book = msgspec.json.decode((home.path / "addresses.json").read_bytes(), type=AddressBook)

    def reached() -> bool:
        connection = socket_in(namespace_name(state.id, book.taken["default/productpage-v1-0"]))
        connection.settimeout(5)
        with connection:
            connection.connect((network.bridges[0], state.ports["xds"]))
        return True

    assert reached()
    # The lowest address there can be, which Linux would take for the bridge.
    made = ["ip", "link", "add", port, "address", "02:00:00:00:00:01", "type", "veth"]
    subprocess.run([*made, "peer", "name", f"{port}p"], check=True)
    try:
        subprocess.run(["ip", "link", "set", port, "master", bridge, "up"], check=True)
        assert own.read_text() == before
        assert reached()
    finally:
        subprocess.run(["ip", "link", "del", port], check=True)
    assert own.read_text() == before
    assert reached()


def test_the_supervisor_dies_and_nothing_else_does(home: Home) -> None:
    state = home.state()
    assert state is not None
    before = sorted(namespaces(state.id))
    with Traffic("127.0.0.1", gateway_port(home), per_second=25) as traffic:
        until(lambda: sum(traffic.versions.values()) > 10, "traffic flows")
        pid = pid_of(home, "supervisor")
        os.kill(pid, signal.SIGKILL)
        until(lambda: pid_of(home, "supervisor") not in (0, pid), "it is back")
        until(lambda: all_ready(home), "everything is ready")
        served = sum(traffic.versions.values())
        until(lambda: sum(traffic.versions.values()) > served + 25, "traffic goes on")
        assert traffic.problems == []
    assert sorted(namespaces(state.id)) == before


def test_down_leaves_no_namespace_link_or_rule_also_after_kill_9(tmp_path: Path) -> None:
    with mesh(tmp_path, "--capture", "netns") as home:
        state = home.state()
        assert state is not None
        assert namespace_name(state.id, 0) in namespaces(state.id)
        port = gateway_port(home)
        assert fetch("127.0.0.1", port).status == 200
        for victim in ("guard", "supervisor"):
            os.kill(pid_of(home, victim), signal.SIGKILL)
        end_mesh(home)
        assert remaining(home) == []
        assert namespaces(state.id) == []
        assert not list(Path("/sys/class/net").glob(f"mb{state.id}*"))
        assert not Path(f"/run/meshbus-{state.id}").exists()
        assert fetch("127.0.0.1", port).status == 0


def test_a_mesh_that_ran_without_capture_runs_with_it(tmp_path: Path) -> None:
    manifest = tmp_path / "one.yaml"
    manifest.write_text(ONE_GATEWAY)
    home = Home(tmp_path / "h")
    up = ("up", "--home", str(home.path), "-d")
    try:
        done = meshbus(*up, "-f", str(manifest))
        assert done.returncode == 0, done.stderr
        done = meshbus(*up, "--capture", "netns")
        assert "runs with --capture proxy" in done.stderr
        assert f"meshbus down --home {home.path}" in done.stderr
        # The supervisor is killed: nobody holds the home, its processes run.
        os.kill(pid_of(home, "guard"), signal.SIGKILL)
        os.kill(pid_of(home, "supervisor"), signal.SIGKILL)
        until(lambda: not home.locked(), "nobody holds the home")
        done = meshbus(*up, "--capture", "netns")
        assert "still run as it was started, with --capture proxy" in done.stderr
        end_mesh(home)
        done = meshbus(*up, "--capture", "netns")
        assert done.returncode == 0, done.stderr
        assert all_ready(home)
    finally:
        end_mesh(home)
