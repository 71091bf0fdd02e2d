"""A machine that has joined a mesh, as processes of this one: `meshbus workload run`, the
application that it serves, and calls by its Envoy."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

APP = Path(__file__).parent / "tasks" / "echo_app.py"


class MachineProcess:
    """`meshbus workload run` of a folder."""

    def __init__(self, folder: Path, address: str, application: str) -> None:
        """Args:
        address: Of its Envoy.
        application: Of what it serves.
        """
        self.folder = folder
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "meshbus.cli.main", "workload", "run", str(folder)),
                *("--address", address, "--capture", "proxy", "--application", application),
            ],
            start_new_session=True,
            stderr=(folder / "run.log").open("ab"),
        )

    def kill(self) -> None:
        """The machine loses its power: everything on it ends at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> int:
        """It is shut down."""
        self.process.terminate()
        return self.process.wait(20)


def kill_all(machines: Iterable[MachineProcess]) -> None:
    """Those that still run."""
    for one in machines:
        if one.process.poll() is None:
            one.kill()


def connects(host: str, port: int) -> bool:
    """Somebody listens there."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def running_application(address: str) -> Iterator["subprocess.Popen[bytes]"]:
    """The application of a machine, at port 8080, once it listens."""
    env = {**os.environ, "MESHBUS_BIND_ADDRESS": address, "VERSION": "vm"}
    process = subprocess.Popen([sys.executable, str(APP), "http:8080"], env=env)
    try:
        while not connects(address, 8080):
            assert process.poll() is None, "the application has ended"
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.wait()


def called_by(address: str, url: str) -> tuple[int, dict[str, str]]:
    """What an application gets by its Envoy: status (0: no answer), headers that the server saw."""
    connection = http.client.HTTPConnection(address, 15080, timeout=20)
    try:
        connection.request("GET", url)
        answer = connection.getresponse()
        body = answer.read()
    except OSError:
        return 0, {}
    finally:
        connection.close()
    return answer.status, json.loads(body)["headers"] if answer.status == 200 else {}


def condition(entry: Mapping[str, Any], kind: str) -> str:
    """The status of a condition of an entry; empty: it has none."""
    conditions = entry.get("status", {}).get("conditions", [])
    return next((str(one["status"]) for one in conditions if one["type"] == kind), "")
