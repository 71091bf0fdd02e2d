"""The Secrets of the bus: made once, and a real nats-server and real services that use them."""

import asyncio
import base64
import os
import re
import subprocess
from pathlib import Path

import pytest
from cluster import Cluster
from nats_process import nats_binary
from typer.testing import CliRunner

from meshbus.bus.connection import NatsBus
from meshbus.cli.main import app
from meshbus.runtime.process import bus_tls, read_seed
from meshbus.runtime.settings import ProcessSettings

pytestmark = [pytest.mark.real, pytest.mark.slow]


def make(cluster: Cluster, namespace: str) -> None:
    arguments = ["cluster-keys", "-n", namespace, "--kubeconfig", str(cluster.kubeconfig)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, (result.output, result.exception)


def secret(cluster: Cluster, namespace: str, name: str) -> dict[str, str]:
    held = cluster.get(f"/api/v1/namespaces/{namespace}/secrets/{name}")["data"]
    return {key: base64.b64decode(value).decode() for key, value in held.items()}


def test_keys_are_made_once_and_the_bus_takes_them(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    make(cluster, namespace)
    first = {
        name: secret(cluster, namespace, f"meshbus-{name}")
        for name in ("nats", "nats-roots", "bus-config", "bus-xds-gateway")
    }
    make(cluster, namespace)
    assert secret(cluster, namespace, "meshbus-nats") == first["nats"]
    assert secret(cluster, namespace, "meshbus-bus-config") == first["bus-config"]
    assert set(first["bus-config"]) == {"config.seed"}
    assert "PRIVATE" not in first["nats"]["nats.conf"]
    assert "SU" + "A" not in first["nats"]["nats.conf"], "no seed in the server's configuration"

    folder = tmp_path / "nats"
    folder.mkdir()
    config = (
        first["nats"]["nats.conf"].replace("/etc/nats", str(folder)).replace("/data", str(tmp_path))
    )
    config = re.sub(r'"port": 4222', '"port": -1', config)
    config = config.replace("0.0.0.0:8222", "127.0.0.1:-1")
    (folder / "nats.conf").write_text(
        f'ports_file_dir: "{folder}"\nhost: "127.0.0.1"\n' + config.strip()[1:-1]
    )
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (folder / name).write_text(first["nats"][name])
    (folder / "roots.crt").write_text(first["nats-roots"]["ca.crt"])
    (folder / "config.seed").write_text(first["bus-config"]["config.seed"])
    binary = nats_binary()
    assert binary
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [binary, "-c", str(folder / "nats.conf")],
            stderr=log,
            env={**os.environ, "POD_NAME": "nats-0"},
        )
    try:
        asyncio.run(_connect(folder, server))
    finally:
        server.kill()
        server.wait()


async def _connect(folder: Path, server: "subprocess.Popen[bytes]") -> None:
    async with asyncio.timeout(20):
        while not (found := list(folder.glob("*.ports"))) or not found[0].read_text():
            assert server.poll() is None, (folder / "log").read_text()
            await asyncio.sleep(0.05)
        port = re.search(r'"(?:nats|tls)://127.0.0.1:(\d+)"', found[0].read_text())
        assert port, found[0].read_text()
        process = ProcessSettings(
            bus_url=f"tls://localhost:{port[1]}",
            bus_seeds=str(folder),
            bus_roots=str(folder / "roots.crt"),
        )
        bus = NatsBus(process.bus_url, "config", read_seed(process, "config"), tls=bus_tls(process))
        bus.start()
        await bus.wait_connected()
        await bus.ensure_streams()
        await bus.close()
