"""The end of a mesh: also when its supervisor was killed, and when records are missing."""

import contextlib
import os
import signal
import time
from ipaddress import IPv6Network

from meshbus.local import loopback, netns
from meshbus.local.guard import SUPERVISOR
from meshbus.local.home import Home
from meshbus.local.processes import Records, end_all, marked_processes, runs, signal_session

GRACE_S = 15.0
"""For a supervisor that ends everything by itself, in order."""


def end_mesh(home: Home) -> list[str]:
    """End every process of a home, remove its namespaces and rules; the data stays.

    Returns:
        Names of the processes that ran.
    """
    state = home.state()
    if state is None:
        return []
    home.run.mkdir(mode=0o700, exist_ok=True)
    home.stopping_file.touch()  # from now on the guard starts nothing
    records = Records(home.records)
    running = sorted(record.name for record in records.all() if runs(record))
    supervisor = records.get(SUPERVISOR)
    guard = records.get("guard")
    if guard is not None and runs(guard):
        signal_session(guard.pid, signal.SIGKILL)
    if supervisor is not None and runs(supervisor):
        with contextlib.suppress(ProcessLookupError):
            os.kill(supervisor.pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        while runs(supervisor) and time.monotonic() < deadline:
            time.sleep(0.02)
    end_all(state.id, records.all(), grace_s=2.0)
    if state.capture == "netns" and os.geteuid() == 0:
        netns.remove_all(state.id)
    if state.capture == "proxy" and state.block6 and os.geteuid() == 0:
        loopback.remove_all(IPv6Network(state.block6))
    for record in records.all():
        records.remove(record.name)
    for path in (home.status_file, home.api_file, home.stopping_file):
        path.unlink(missing_ok=True)
    return running


def left_over(home: Home) -> list[int]:
    """Processes of a home that still run."""
    state = home.state()
    return marked_processes(state.id) if state is not None else []
