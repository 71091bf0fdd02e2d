"""The guard: starts the supervisor of a home again when it dies, and does nothing else.

`python -m meshbus.local.guard HOME`. The supervisor in turn restarts the guard.
"""

import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from meshbus.local.home import Home
from meshbus.local.processes import MARK, Records, runs

SUPERVISOR = "supervisor"
RETRY_S = 1.0


def supervisor_argv(home: Home) -> list[str]:
    """How the supervisor of a home is started."""
    return [sys.executable, "-m", "meshbus.local.supervisor", str(home.path)]


def start_supervisor(home: Home, home_id: str) -> "subprocess.Popen[bytes]":
    """Start the supervisor in the background."""
    log = os.open(home.logs / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return subprocess.Popen(  # noqa: S603 - our own command
            supervisor_argv(home),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=home.path,
            env={**os.environ, MARK: f"{home_id}/{SUPERVISOR}"},
            start_new_session=True,
        )
    finally:
        os.close(log)


def wait_supervisor_gone(home: Home) -> None:
    """Until the supervisor of the record has died; at once when none runs."""
    record = Records(home.records).get(SUPERVISOR)
    if record is None or not runs(record):
        return
    try:
        descriptor = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    poller.poll()
    os.close(descriptor)


def main(arguments: Sequence[str]) -> int:
    """Guard until the mesh is being stopped or its home is gone."""
    home = Home(Path(arguments[0]))
    state = home.state()
    if state is None:
        return 1
    while True:
        wait_supervisor_gone(home)
        if home.stopping_file.exists() or not home.state_file.exists():
            return 0
        process = start_supervisor(home, state.id)
        # A supervisor that cannot start ends soon, one that runs is recorded and ends late.
        process.wait()
        if home.stopping_file.exists():
            return 0
        time.sleep(RETRY_S if process.returncode > 0 else 0.0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
