"""The three servers of the chart's NATS, with the configuration and certificates that the chart's
Job makes: any one of them is killed, and nothing that was written is lost."""

import asyncio
import contextlib
import os
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, free_port
from forwarding import service
from nats_process import nats_binary
from test_kube_cluster_keys import secret
from typer.testing import CliRunner

from meshbus.bus.connection import NatsBus
from meshbus.bus.interface import BusError
from meshbus.bus.mirror import WorldMirror
from meshbus.bus.writer import ModelWriter
from meshbus.cli.main import app
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject
from meshbus.runtime.process import bus_tls, read_seed
from meshbus.runtime.settings import ProcessSettings

pytestmark = [pytest.mark.real, pytest.mark.slow]
SERVERS = 3


class Servers:
    """nats-server processes with one configuration."""

    def __init__(self, folder: Path, held: dict[str, str]) -> None:
        self.folder = folder
        self.clients = [free_port() for _ in range(SERVERS)]
        self._peers = [free_port() for _ in range(SERVERS)]
        self._monitors = [free_port() for _ in range(SERVERS)]
        self.port = 0
        """Leads to one that is alive."""
        self._held = held
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, index: int) -> None:
        """Start one, also again."""
        folder = self.folder / f"meshbus-nats-{index}"
        (folder / "data").mkdir(parents=True, exist_ok=True)
        for name, text in self._held.items():
            (folder / name).write_text(text)
        text = self._held["nats.conf"]
        for number, port in enumerate(self._peers):
            # The certificate names both the pods and this machine.
            at = text.index(f"nats://meshbus-nats-{number}.")
            end = text.index(":6222", at)
            text = f"{text[:at]}nats://localhost{text[end:]}"
            text = text.replace("nats://localhost:6222", f"nats://localhost:{port}", 1)
        for written, here in (
            ("/etc/nats", str(folder)),
            ('"/data"', f'"{folder}/data"'),
            ('"host": ""', '"host": "127.0.0.1"'),
            ('"port": 4222', f'"port": {self.clients[index]}'),
            ('"port": 6222', f'"host": "127.0.0.1", "port": {self._peers[index]}'),
            ("0.0.0.0:8222", f"127.0.0.1:{self._monitors[index]}"),
        ):
            assert written in text, written
            text = text.replace(written, here)
        (folder / "nats.conf").write_text(text)
        binary = nats_binary()
        assert binary
        with (folder / "log").open("ab") as log:
            self._running[index] = subprocess.Popen(
                [binary, "-c", str(folder / "nats.conf")],
                stderr=log,
                env={**os.environ, "POD_NAME": f"meshbus-nats-{index}"},
            )

    def kill(self, index: int) -> None:
        """End one without warning."""
        process = self._running.pop(index)
        process.kill()
        process.wait()

    def stop(self) -> None:
        """End all."""
        for index in list(self._running):
            self.kill(index)

    def healthy(self, index: int) -> bool:
        """Whether its streams have caught up."""
        url = f"http://127.0.0.1:{self._monitors[index]}/healthz"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    def log(self) -> str:
        """What they have said last."""
        return "".join(
            f"--- {path.parent.name}\n{path.read_text()[-1500:]}"
            for path in sorted(self.folder.glob("*/log"))
        )


@pytest.fixture
def servers(cluster: Cluster, namespace: str, tmp_path: Path) -> Any:
    arguments = ["cluster-keys", "-n", namespace, "--replicas", str(SERVERS)]
    made = CliRunner().invoke(app, [*arguments, "--kubeconfig", str(cluster.kubeconfig)])
    assert made.exit_code == 0, made.output
    for name in ("meshbus-nats-roots", "meshbus-bus-config", "meshbus-bus-xds-gateway"):
        for file, text in secret(cluster, namespace, name).items():
            (tmp_path / file).write_text(text)
    running = Servers(tmp_path, secret(cluster, namespace, "meshbus-nats"))
    with service(running.clients) as running.port:
        yield running
    running.stop()


def bus_of(folder: Path, port: int, identity: str) -> NatsBus:
    process = ProcessSettings(
        bus_url=f"tls://localhost:{port}",
        bus_seeds=str(folder),
        bus_roots=str(folder / "ca.crt"),
    )
    bus = NatsBus(
        process.bus_url,
        identity,
        read_seed(process, identity),
        tls=bus_tls(process),
        replicas=SERVERS,
    )
    bus.start()
    return bus


def row(number: int, content: int) -> tuple[Key, ConfigObject]:
    name = f"r{number}"
    made = ConfigObject(
        "networking.istio.io/v1", "VirtualService", "n", name, name, 1, 0.0,
        spec={"hosts": [str(content)]},
    )  # fmt: skip
    return Key("c", "cfg", "virtualservices", "n", name), made


def holds(mirror: WorldMirror, acknowledged: dict[Key, int]) -> bool:
    """Whether each row is what was acknowledged last, or newer: an answer may have been lost."""
    rows = {entry.key: entry.row for entry in mirror.world.all("cfg.virtualservices")}
    return all(
        key in rows and int(rows[key].spec["hosts"][0]) >= content
        for key, content in acknowledged.items()
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.05)


async def healthy(servers: Servers, index: int) -> None:
    """As the readiness of its pod says; then the next one may go."""
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(servers.healthy, index):
            await asyncio.sleep(0.1)


async def test_any_of_three_servers_is_killed_and_nothing_is_lost(
    servers: Servers, tmp_path: Path
) -> None:
    for index in range(SERVERS):
        servers.start(index)
    async with asyncio.TaskGroup() as tasks:
        config, gateway = (
            bus_of(tmp_path, servers.port, name) for name in ("config", "xds-gateway")
        )
        try:
            async with asyncio.timeout(60):
                await config.wait_connected()
                while True:
                    with contextlib.suppress(BusError):
                        await config.ensure_streams()
                        break
                    await asyncio.sleep(0.1)
            writer = ModelWriter(config, cluster="c", service="config", pod="config-0")
            writing = tasks.create_task(writer.run())
            mirror = WorldMirror()
            following = tasks.create_task(mirror.follow(gateway).run())
            acknowledged: dict[Key, int] = {}
            content = 0

            async def write(count: int) -> None:
                nonlocal content
                done = 0
                while done < count:
                    content += 1
                    key, made = row(content % 40, content)
                    with contextlib.suppress(BusError):
                        await writer.wait_leading()
                        await writer.commit([(key, made)])
                        acknowledged[key] = content
                        done += 1

            async with asyncio.timeout(180):
                await write(30)
                for index in range(SERVERS):
                    task = asyncio.create_task(write(60))
                    await asyncio.sleep(0)
                    servers.kill(index)
                    await task
                    # Two are a majority: all that was taken is there, also for who follows.
                    await until(lambda: holds(mirror, acknowledged))
                    servers.start(index)
                    await healthy(servers, index)
            fresh = WorldMirror()
            again = tasks.create_task(fresh.follow(gateway).run())
            await until(lambda: holds(fresh, acknowledged))
            for task in (writing, following, again):
                task.cancel()
        except BaseException:
            print(servers.log())
            raise
        finally:
            await config.close()
            await gateway.close()
