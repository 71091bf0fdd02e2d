"""Processes that outlive their supervisor: recorded, adopted, restarted, ended as a group.

Each has a session of its own, so that no signal of a terminal reaches it, and a mark in its
environment. Its record says pid, start time and boot: a pid that was reused is never taken for it.
"""

import contextlib
import hashlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from meshbus.local.home import write_private

MARK = "MESHBUS_LOCAL"
"""Variable of every process of a home: `<home id>/<process name>`."""
LOG_LIMIT_BYTES = 8 * 1024 * 1024
LOGS_S = 30.0
"""How often logs are looked at."""
INHERITED = (
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "LD_LIBRARY_PATH",
)
"""What processes get of the environment that the mesh was started in; nothing else leaks in."""


def inherited() -> dict[str, str]:
    """The environment that every process starts from; commands of this installation come first."""
    found = {name: os.environ[name] for name in INHERITED if name in os.environ}
    own = str(Path(sys.executable).parent)
    path = found.get("PATH", os.defpath)
    if path.split(os.pathsep, 1)[0] != own:
        found["PATH"] = own + os.pathsep + path
    return found


class Command(msgspec.Struct, frozen=True):
    """How to start a process. Nothing secret is in it."""

    name: str
    """Unique in the home: `nats-server`, `service/ca`, `app/default/reviews-v1-0`."""
    argv: Sequence[str]
    env: Mapping[str, str]
    """Besides what is `INHERITED`."""
    folder: Path
    """Where it runs."""
    log: Path
    """What it prints is appended here."""

    @property
    def fingerprint(self) -> str:
        """Equal for commands that start the same thing."""
        parts = [*self.argv, "", *(f"{k}={v}" for k, v in sorted(self.env.items()))]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


class ProcessRecord(msgspec.Struct, frozen=True):
    """A process that was started."""

    name: str
    pid: int
    started: int
    """Clock ticks after boot, from /proc/<pid>/stat."""
    boot: str
    fingerprint: str


def boot_id() -> str:
    """What is different after each boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int | None:
    """When a process started; None when it does not run (a zombie does not)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def runs(record: ProcessRecord) -> bool:
    """The very process of the record runs."""
    return record.boot == boot_id() and start_ticks(record.pid) == record.started


class Records:
    """The process records of a home, one file each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, name: str) -> Path:
        return self._folder / (name.replace("%", "%25").replace("/", "%2F") + ".json")

    def put(self, record: ProcessRecord) -> None:
        """Write one."""
        write_private(self._path(record.name), msgspec.json.encode(record))

    def get(self, name: str) -> ProcessRecord | None:
        """One by name; None when there is none that can be read."""
        return _read_record(self._path(name))

    def remove(self, name: str) -> None:
        """Forget one."""
        self._path(name).unlink(missing_ok=True)

    def all(self) -> list[ProcessRecord]:
        """Every record that can be read."""
        found = (_read_record(path) for path in sorted(self._folder.glob("*.json")))
        return [record for record in found if record is not None]


def _read_record(path: Path) -> ProcessRecord | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=ProcessRecord)
    except (OSError, msgspec.MsgspecError):
        return None


def record_of_self(name: str) -> ProcessRecord:
    """The record of this process."""
    ticks = start_ticks(os.getpid())
    assert ticks is not None
    return ProcessRecord(name, os.getpid(), ticks, boot_id(), "")


def spawn(command: Command, home_id: str, records: Records) -> "subprocess.Popen[bytes]":
    """Start a process and record it.

    Raises:
        OSError: The program is missing or cannot be run.
    """
    log = os.open(command.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        process = subprocess.Popen(  # noqa: S603 - what its owner asked to run
            list(command.argv),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=command.folder,
            env={**inherited(), **command.env, MARK: f"{home_id}/{command.name}"},
            start_new_session=True,
        )
    finally:
        os.close(log)
    ticks = start_ticks(process.pid)
    if ticks is not None:
        records.put(ProcessRecord(command.name, process.pid, ticks, boot_id(), command.fingerprint))
    return process


def limit_logs(folder: Path) -> None:
    """Move what is too long in a folder of logs aside, over what was moved before. Their writers
    append, so that they go on in the emptied file."""
    for path in folder.glob("*.log"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > LOG_LIMIT_BYTES:
                shutil.copyfile(path, path.with_name(path.name + ".1"))
                os.truncate(path, 0)


def last_line(path: Path) -> str:
    """The last line of a log file."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 4096))
        lines = file.read().decode(errors="replace").strip().splitlines()
        if lines:
            return lines[-1]
    return f"see {path}"


def marked_processes(home_id: str) -> list[int]:
    """Pids of all processes that carry the mark of a home and that this user may see: also those
    whose supervisor died before it could record them, and their children."""
    prefix = f"{MARK}={home_id}/".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if environment.startswith(prefix) or b"\0" + prefix in environment:
            found.append(int(entry.name))
    return found


def signal_session(pid: int, number: int) -> None:
    """Send a signal to a process and to all of its session's group."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def end_all(home_id: str, records: Iterable[ProcessRecord], grace_s: float) -> list[str]:
    """End every process of a home, politely and then not.

    Args:
        records: What is known to run; more is found by its mark.
        grace_s: How long SIGTERM is given.
    Returns:
        Names of the recorded processes that had to be ended.
    """
    alive = {record.pid: record for record in records if runs(record)}
    own = os.getpid()
    pids = ({*alive} | {*marked_processes(home_id)}) - {own}
    for pid in pids:
        signal_session(pid, signal.SIGTERM)
    _wait_gone(pids, grace_s)
    for pid in {*marked_processes(home_id)} - {own} | {p for p in pids if start_ticks(p)}:
        signal_session(pid, signal.SIGKILL)
        pids.add(pid)
    _wait_gone(pids, 5.0)
    return sorted(record.name for record in alive.values())


def _wait_gone(pids: Iterable[int], timeout_s: float) -> None:
    """Until none of the processes runs, or the time is over."""
    deadline = time.monotonic() + timeout_s
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
        finally:
            os.close(descriptor)
