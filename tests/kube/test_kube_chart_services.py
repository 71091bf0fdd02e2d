"""The services as the chart starts them: each with its environment, ServiceAccount, bus key and
files, against a real API server and a NATS with the chart's configuration. Only addresses are
others, as there is one machine: images and pods are processes."""

import base64
import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from nats_process import nats_binary
from test_kube_chart import CHART, helm, helm_program, rendered, sets
from test_kube_crds import install_definitions
from typer.testing import CliRunner

from meshbus.cli.main import app

__all__ = ["helm_program"]
pytestmark = [pytest.mark.real, pytest.mark.slow]
FLAGS = sets(
    "crds.enabled=false", "keys.generate=true", "global.meshID=m", "validation.enabled=false"
)


def data_of(cluster: Cluster, namespace: str, name: str) -> dict[str, str]:
    held = cluster.get(f"/api/v1/namespaces/{namespace}/secrets/{name}")["data"]
    return {key: base64.b64decode(value).decode() for key, value in held.items()}


@contextlib.contextmanager
def bus(cluster: Cluster, namespace: str, folder: Path) -> Iterator[str]:
    """nats-server with the Secret that its pod would mount."""
    folder.mkdir()
    secret = data_of(cluster, namespace, "meshbus-nats")
    for name, text in secret.items():
        (folder / name).write_text(text)
    text = secret["nats.conf"].replace("/etc/nats", str(folder)).replace("/data", f"{folder}/data")
    text = text.replace('"port": 4222', '"port": -1').replace("0.0.0.0:8222", "127.0.0.1:-1")
    head = f'ports_file_dir: "{folder}"\nhost: "127.0.0.1"\n'
    (folder / "nats.conf").write_text(head + text.strip()[1:-1])
    binary = nats_binary()
    assert binary
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [binary, "-c", str(folder / "nats.conf")],
            stderr=log,
            env={**os.environ, "POD_NAME": "meshbus-nats-0"},
        )
    try:
        deadline = time.monotonic() + 20
        while not (found := re.findall(r"127\.0\.0\.1:(\d+)", _ports(folder))):
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield f"tls://localhost:{found[0]}"
    finally:
        server.kill()
        server.wait()


def _ports(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.glob("*.ports"))


def environment(
    cluster: Cluster, namespace: str, template: dict[str, Any], folder: Path, url: str
) -> dict[str, str]:
    """What the container has, with addresses and folders of this machine."""
    spec, name = template["spec"], template["metadata"]["labels"]["app.kubernetes.io/component"]
    values = {
        item["name"]: item["value"] for item in spec["containers"][0]["env"] if "value" in item
    }
    fields = {"POD_NAME": f"{name}-0", "POD_IP": "127.0.0.1"}
    for key, value in values.items():
        value = re.sub(r"\$\((\w+)\)", lambda found: fields[found[1]], value)
        values[key] = re.sub(r"^0\.0\.0\.0:\d+$", "127.0.0.1:0", value)
    seeds, roots = folder / "bus", folder / "roots"
    for path in (seeds, roots, folder / "state", folder / "injection"):
        path.mkdir(parents=True)
    for source in next(v for v in spec["volumes"] if v["name"] == "bus-keys")["projected"][
        "sources"
    ]:
        for file, text in data_of(cluster, namespace, source["secret"]["name"]).items():
            (seeds / file).write_text(text)
    (roots / "ca.crt").write_text(data_of(cluster, namespace, "meshbus-nats-roots")["ca.crt"])
    held = cluster.get(f"/api/v1/namespaces/{namespace}/configmaps/meshbus-injection")
    (folder / "injection" / "values.yaml").write_text(held["data"]["values.yaml"])
    values |= {
        "MESHBUS_BUS_URL": url,
        "MESHBUS_BUS_SEEDS": str(seeds),
        "MESHBUS_BUS_ROOTS": str(roots / "ca.crt"),
        "MESHBUS_STATE": str(folder / "state"),
    }
    if "MESHBUS_CONFIG_INJECTION" in values:
        values["MESHBUS_CONFIG_INJECTION"] = str(folder / "injection" / "values.yaml")
    if spec["automountServiceAccountToken"]:
        account = cluster.account_folder(folder / "account", namespace, spec["serviceAccountName"])
        values |= cluster.pod_env(account)
    return values


def ready(folder: Path, service: str) -> str:
    """Empty if it is; else why not."""
    try:
        address = json.loads((folder / "state" / f"admin-{service}.json").read_text())["address"]
        with urllib.request.urlopen(f"http://{address}/readyz", timeout=5):
            return ""
    except urllib.error.HTTPError as error:
        return error.read().decode()
    except (OSError, ValueError) as error:
        return repr(error)


@pytest.mark.parametrize("profile", ["default", "demo"])
def test_every_service_gets_ready_with_what_the_chart_gives_it(
    helm_program: str, cluster: Cluster, namespace: str, tmp_path: Path, profile: str
) -> None:
    install_definitions(cluster)
    flags = (*FLAGS, *sets(f"profile={profile}"))
    release = f"mesh-{namespace}"
    keys = ["cluster-keys", "-n", namespace, "--kubeconfig", str(cluster.kubeconfig)]
    assert CliRunner().invoke(app, keys).exit_code == 0
    helm(
        helm_program, cluster, "install", release, str(CHART), "-n", namespace, "--no-hooks", *flags
    )
    templates = {
        document["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"]:
            document["spec"]["template"]
        for document in rendered(helm_program, namespace, *flags)
        if document["kind"] in ("Deployment", "StatefulSet")
        and "app.kubernetes.io/component" in document["spec"]["template"]["metadata"]["labels"]
        and document["metadata"]["name"] != "meshbus-nats"
    }  # fmt: skip
    expected = {"config", "discovery", "ca", "policy", "telemetry", "xds-gateway"}
    assert set(templates) == ({"all"} if profile == "demo" else expected)
    running: dict[str, subprocess.Popen[bytes]] = {}
    with bus(cluster, namespace, tmp_path / "nats") as url:
        try:
            for name, template in templates.items():
                folder = tmp_path / name
                env = environment(cluster, namespace, template, folder, url)
                args = template["spec"]["containers"][0]["args"]
                with (folder / "log").open("wb") as log:
                    running[name] = subprocess.Popen(
                        [sys.executable, "-m", "meshbus.cli.main", *args],
                        env={"PATH": os.environ["PATH"], **env},
                        stdout=log,
                        stderr=log,
                    )
            deadline = time.monotonic() + 90
            waiting = dict.fromkeys(templates, "not asked")
            while waiting:
                for name in list(waiting):
                    said = (tmp_path / name / "log").read_text()
                    assert running[name].poll() is None, f"{name}: {said[-3000:]}"
                    service = "config" if name == "all" else name
                    if reason := ready(tmp_path / name, service):
                        waiting[name] = reason
                    else:
                        del waiting[name]
                assert time.monotonic() < deadline, f"{waiting}\n{said[-3000:]}"
                time.sleep(0.1)
            for name in templates:
                said = (tmp_path / name / "log").read_text()
                assert "forbidden" not in said.lower(), said
        finally:
            for process in running.values():
                process.kill()
                process.wait()
            helm(helm_program, cluster, "uninstall", release, "-n", namespace, "--no-hooks")
