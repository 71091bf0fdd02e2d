"""`meshbus up`: manifests of others, workloads that come and go, a second `up`, what goes wrong."""

import asyncio
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from standalone import all_ready, gateway_port, mesh, meshbus, pid_of, remaining, status_of, until

from meshbus.local.api import MeshApi
from meshbus.local.bootstrap import ADMIN_SOCKET
from meshbus.local.demo import sample_path
from meshbus.local.home import Home, HomeError
from meshbus.local.probe import ask_envoy
from meshbus.local.processes import Records
from meshbus.local.traffic import Traffic, fetch

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with mesh(tmp_path_factory.mktemp("up")) as running:
        yield running


def workload(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "standalone.meshbus.io/v1alpha1",
        "kind": "Workload",
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": {"app": "reviews", "version": "v1"},
        },
        "spec": {
            "serviceAccount": "bookinfo-reviews",
            "command": ["python3", "-m", "bookinfo.reviews"],
            "ports": [{"name": "http", "port": 9080}],
            **spec,
        },
    }


def is_gone(home: Home, instance: str) -> bool:
    """Neither in the status nor with a process that is still ending."""
    records = Records(home.records).all()
    return instance not in status_of(home).instances and not any(
        record.name.endswith(f"/{instance}") for record in records
    )


def test_published_routes_are_taken_unchanged(home: Home, shared_data: Path) -> None:
    folder = shared_data / "samples" / "bookinfo" / "networking"
    if not folder.is_dir():
        pytest.skip("the published samples are not here")

    def apply(name: str) -> None:
        documents = [d for d in yaml.safe_load_all((folder / name).read_text()) if d]
        with MeshApi(home) as api:
            change, _ = api.apply(documents)
            receipt = api.receipt(change)
            assert receipt.state == "converged", receipt

    for name in ("destination-rule-all.yaml", "bookinfo-gateway.yaml"):
        apply(name)
    port = gateway_port(home)
    apply("virtual-service-all-v1.yaml")
    assert {fetch("127.0.0.1", port).version for _ in range(12)} == {"v1"}
    apply("virtual-service-reviews-v3.yaml")
    assert {fetch("127.0.0.1", port).version for _ in range(12)} == {"v3"}
    apply("virtual-service-ratings-test-abort.yaml")
    jason = {"cookie": "meshbus-bookinfo-user=jason"}
    assert "Ratings service is currently" in fetch("127.0.0.1", port, headers=jason).body
    assert "Ratings service is currently" not in fetch("127.0.0.1", port).body
    apply("virtual-service-reviews-test-v2.yaml")
    apply("virtual-service-ratings-test-delay.yaml")
    assert "Error fetching product reviews" in fetch("127.0.0.1", port, headers=jason).body
    apply("virtual-service-all-v1.yaml")
    assert fetch("127.0.0.1", port, headers=jason).version == "v1"


def test_workloads_come_scale_and_go_by_the_api(home: Home) -> None:
    with MeshApi(home) as api, Traffic("127.0.0.1", gateway_port(home)) as traffic:
        api.apply([workload("reviews-v1-extra", replicas=2)])
        names = ["default/reviews-v1-extra-0", "default/reviews-v1-extra-1"]
        until(
            lambda: all(
                name in status_of(home).instances and status_of(home).instances[name].ready
                for name in names
            ),
            "both replicas are ready",
        )
        api.apply([workload("reviews-v1-extra", replicas=1)])
        until(lambda: not pid_of(home, f"app/{names[1]}"), "one replica ends")
        assert pid_of(home, f"app/{names[0]}")
        pid = pid_of(home, f"app/{names[0]}")
        api.apply(
            [workload("reviews-v1-extra", replicas=1, env={"SERVICE_VERSION": "v1", "A": "b"})]
        )
        until(lambda: pid_of(home, f"app/{names[0]}") not in (0, pid), "a changed one restarts")
        until(lambda: all_ready(home), "everything is ready")
        api.delete([workload("reviews-v1-extra")])
        until(lambda: is_gone(home, names[0]), "it is gone")
        assert traffic.problems == []


def test_an_envoy_is_started_with_the_patches_of_its_bootstrap(home: Home) -> None:
    patch = {
        "applyTo": "BOOTSTRAP",
        "match": {"context": "SIDECAR_INBOUND"},
        "patch": {"operation": "MERGE", "value": {"statsFlushInterval": "9s"}},
    }
    envoy_filter = {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": {"name": "flush", "namespace": "default"},
        "spec": {
            "workloadSelector": {"labels": {"app": "reviews", "patched": "yes"}},
            "configPatches": [patch],
        },
    }
    patched = workload("reviews-v1-patched")
    patched["metadata"]["labels"]["patched"] = "yes"
    name = "default/reviews-v1-patched-0"
    folder = home.instances / "default.reviews-v1-patched-0" / "proxy"

    def flush() -> str:
        path = "/config_dump?mask=bootstrap.stats_flush_interval"
        _, text = asyncio.run(ask_envoy(folder, ADMIN_SOCKET, path))
        found = re.search(r'"stats_flush_interval": "(.*)"', text)
        return found[1] if found else ""

    def effective() -> str:
        path = "/apis/networking.istio.io/v1alpha3/namespaces/default/envoyfilters/flush"
        with MeshApi(home) as api:
            conditions = api.get(path).get("status", {}).get("conditions", [])
        return next((c["message"] for c in conditions if c["type"] == "Effective"), "")

    with MeshApi(home) as api:
        api.apply([envoy_filter, patched])
        until(
            lambda: name in status_of(home).instances and status_of(home).instances[name].ready,
            "the patched one is ready",
        )
        assert flush() == "9s"
        assert "starts again" not in effective()
        patch["patch"]["value"]["statsFlushInterval"] = "8s"
        api.apply([envoy_filter])
        until(lambda: "starts again" in effective(), "it is told that the change waits")
        assert flush() == "9s"
        api.delete([envoy_filter, patched])
        until(lambda: is_gone(home, name), "it is gone")


def test_a_workload_that_cannot_run_is_shown_and_hinders_nobody(home: Home) -> None:
    broken = workload("broken", command=["/no/such/program"])
    with MeshApi(home) as api:
        api.apply([broken])
        until(
            lambda: (
                "default/broken-0" in status_of(home).instances
                and "/no/such/program" in status_of(home).instances["default/broken-0"].problem
            ),
            "the problem is shown",
        )
        assert fetch("127.0.0.1", gateway_port(home)).status == 200
        api.delete([broken])
        until(lambda: is_gone(home, "default/broken-0"), "it is gone")


def test_a_second_up_goes_on_with_what_runs(home: Home) -> None:
    before = {record.name: record.pid for record in Records(home.records).all()}
    result = meshbus("up", "--home", str(home.path), "-d")
    assert result.returncode == 0, result.stderr
    assert f"http://localhost:{gateway_port(home)}" in result.stdout
    assert {record.name: record.pid for record in Records(home.records).all()} == before
    result = meshbus("up", "--home", str(home.path), "-d", "--capture", "netns")
    assert result.returncode == 1
    assert re.search("runs with --capture proxy|needs root", result.stderr)


def test_secrets_are_in_private_files_and_nowhere_else(home: Home) -> None:
    with MeshApi(home) as api:
        assert api.get("/api/v1/namespaces")["items"]
    secrets = [home.tokens_file.read_text().split(",")[0]]
    secrets += [path.read_text().strip() for path in home.seeds.iterdir()]
    until(
        lambda: len(list(home.instances.glob("*/proxy/token"))) == 7,
        "instances of other tests have been cleared away",
    )
    tokens = list(home.instances.glob("*/proxy/token"))
    secrets += [path.read_text() for path in tokens]
    for path in [*tokens, home.tokens_file, home.api_file, home.kubeconfig_file]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    everywhere = [path.read_text(errors="replace") for path in home.logs.iterdir()]
    everywhere += [Path(f"/proc/{pid}/cmdline").read_text() for pid in remaining(home)]
    stored = b"".join(p.read_bytes() for p in (home.bus / "jetstream").rglob("*") if p.is_file())
    for secret in secrets:
        assert secret
        assert not any(secret in text for text in everywhere)
        assert secret.encode() not in stored


def test_without_a_token_the_api_says_nothing(home: Home) -> None:
    bad = Home(home.path)
    text = home.api_file.read_text()
    bad.api_file = home.run / "bad-api.json"
    bad.api_file.write_text(re.sub('"token":\\s*"[^"]*"', '"token": "wrong"', text))
    with MeshApi(bad) as api, pytest.raises(HomeError, match="401"):
        api.get("/api/v1/services")


def test_data_survives_down_and_up(tmp_path: Path) -> None:
    with mesh(tmp_path) as home:
        port = gateway_port(home)
        addresses = {n: i.addresses for n, i in status_of(home).instances.items()}
        assert meshbus("down", "--home", str(home.path)).returncode == 0
        assert remaining(home) == []
        result = meshbus("up", "--home", str(home.path), "-d")
        assert result.returncode == 0, result.stderr
        assert gateway_port(home) == port
        assert {n: i.addresses for n, i in status_of(home).instances.items()} == addresses
        until(lambda: fetch("127.0.0.1", port).status == 200, "the page is served")


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    home = Home(tmp_path / "h")
    home.create()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        home.settings_file.write_text(f"ports: {{api: {port}}}")
        result = meshbus("up", "--home", str(home.path), "-d")
    assert result.returncode == 1
    assert f"port {port} (settings.yaml: ports.api) is in use" in result.stderr
    assert home.state() is None


def test_settings_that_the_mesh_refuses_are_named(tmp_path: Path) -> None:
    home = Home(tmp_path / "h")
    home.create()
    home.settings_file.write_text("mesh: {trustDomain: 5}")
    result = meshbus("up", "--home", str(home.path), "-d")
    assert result.returncode == 1
    assert "settings.yaml: mesh: " in result.stderr
    assert "trustDomain" in result.stderr
    assert remaining(home) == [], "what did not start whole is ended"


def test_a_missing_binary_says_what_to_install(tmp_path: Path) -> None:
    script = (
        "import sys, shutil; from pathlib import Path;"
        "sys.executable = '/nowhere/python'; shutil.which = lambda name: None;"
        "from meshbus.cli.main import main; sys.argv = sys.argv[1:]; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, "meshbus", "up", "--home", str(tmp_path / "h"), "-d"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    assert result.returncode == 1
    assert "pip install 'meshbus[standalone]'" in result.stderr


def test_ctrl_c_ends_everything(tmp_path: Path) -> None:
    home = Home(tmp_path / "h")
    home.create()
    home.settings_file.write_text("services: {processes: one}\nmesh: {trustDomain: example.org}")
    front = subprocess.Popen(
        [sys.executable, "-m", "meshbus.cli.main", "up", "--home", home.path, "-f", sample_path()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert front.stdout is not None
    line = front.stdout.readline()
    assert line.startswith("API"), (front.stderr.read() if front.stderr else "") or line
    assert fetch("127.0.0.1", gateway_port(home)).status == 200, "served at once"
    services = [record.name for record in Records(home.records).all() if "service" in record.name]
    assert services == ["services"], "one process for all of them"
    front.send_signal(signal.SIGINT)
    front.communicate(timeout=30)
    assert front.returncode == 130
    assert remaining(home) == []


def test_what_was_deleted_while_nobody_looked_ends_with_the_next_up(tmp_path: Path) -> None:
    with mesh(tmp_path) as home:
        for victim in ("guard", "supervisor"):
            os.kill(pid_of(home, victim), signal.SIGKILL)
        kept = pid_of(home, "envoy/default/reviews-v1-0")
        with MeshApi(home) as api:
            api.delete([workload("reviews-v3")])
        result = meshbus("up", "--home", str(home.path), "-d")
        assert result.returncode == 0, result.stderr
        until(lambda: not pid_of(home, "envoy/default/reviews-v3-0"), "its Envoy ends")
        until(lambda: not pid_of(home, "app/default/reviews-v3-0"), "its application ends")
        assert pid_of(home, "envoy/default/reviews-v1-0") == kept
        until(
            lambda: (
                {fetch("127.0.0.1", gateway_port(home)).version for _ in range(12)} == {"v1", "v2"}
            ),
            "nobody is sent there",
        )
