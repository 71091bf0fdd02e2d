"""Processes that outlive who started them."""

import asyncio
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from meshbus.local.keeper import Keeper
from meshbus.local.processes import (
    LOG_LIMIT_BYTES,
    MARK,
    Command,
    ProcessRecord,
    Records,
    boot_id,
    end_all,
    last_line,
    limit_logs,
    marked_processes,
    record_of_self,
    runs,
    start_ticks,
)

pytestmark = pytest.mark.real
SLEEP = [sys.executable, "-c", "import signal; signal.pause()"]


@pytest.fixture
def home_id() -> Iterator[str]:
    name = uuid.uuid4().hex[:8]
    yield name
    end_all(name, [], grace_s=1)


def command(folder: Path, argv: list[str] | None = None) -> Command:
    return Command("app/default/a-0", argv or SLEEP, {}, folder, folder / "log")


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.01)


def test_a_reused_pid_is_not_taken_for_the_process() -> None:
    own = record_of_self("me")
    assert runs(own)
    assert not runs(ProcessRecord("me", own.pid, own.started + 1, own.boot, ""))
    assert not runs(ProcessRecord("me", own.pid, own.started, "another boot", ""))
    assert start_ticks(2**22 + 1) is None
    assert boot_id() == own.boot


def test_records_survive_odd_names_and_broken_files(tmp_path: Path) -> None:
    records = Records(tmp_path)
    record = ProcessRecord("app/default/a%2Fb-0", 1, 2, "b", "f")
    records.put(record)
    (tmp_path / "broken.json").write_text("{")
    assert records.all() == [record]
    assert records.get(record.name) == record
    records.remove(record.name)
    assert records.get(record.name) is None


async def test_a_dead_process_is_started_again(tmp_path: Path, home_id: str) -> None:
    records = Records(tmp_path)
    told: list[int] = []
    keeper = Keeper(home_id, records, lambda: command(tmp_path), lambda: told.append(keeper.pid))
    keeper.start()
    await until(lambda: keeper.pid)
    first = keeper.pid
    os.kill(first, signal.SIGKILL)
    await until(lambda: keeper.pid not in (0, first))
    assert told[:3] == [first, 0, keeper.pid]
    assert keeper.restarts == 1
    await keeper.stop()
    assert marked_processes(home_id) == []
    assert records.all() == []


async def test_what_runs_is_adopted_and_what_differs_is_replaced(
    tmp_path: Path, home_id: str
) -> None:
    records = Records(tmp_path)
    before = Keeper(home_id, records, lambda: command(tmp_path))
    before.start()
    await until(lambda: before.pid)
    before.release()

    after = Keeper(home_id, records, lambda: command(tmp_path))
    after.start()
    await until(lambda: after.pid)
    assert (after.pid, after.adopted) == (before.pid, True)
    os.kill(after.pid, signal.SIGKILL)
    os.waitpid(before.pid, 0)
    await until(lambda: after.pid not in (0, before.pid))
    after.release()

    changed = Keeper(home_id, records, lambda: command(tmp_path, [*SLEEP, "more"]))
    changed.start()
    await until(lambda: changed.pid)
    assert changed.pid != after.pid
    assert not changed.adopted
    await changed.stop()


async def test_a_missing_program_is_told(tmp_path: Path, home_id: str) -> None:
    keeper = Keeper(home_id, Records(tmp_path), lambda: command(tmp_path, ["/no/such/program"]))
    keeper.start()
    await until(lambda: keeper.error)
    assert "/no/such/program" in keeper.error
    keeper.release()


async def test_all_processes_of_a_home_end_also_unrecorded_ones_and_children(
    tmp_path: Path, home_id: str
) -> None:
    script = "import subprocess, sys, signal; subprocess.Popen(sys.argv[1:]); signal.pause()"
    keeper = Keeper(
        home_id,
        Records(tmp_path),
        lambda: command(tmp_path, [sys.executable, "-c", script, *SLEEP]),
    )
    keeper.start()
    await until(lambda: len(marked_processes(home_id)) == 2)
    keeper.release()
    await asyncio.to_thread(end_all, home_id, [], 2.0)
    assert [pid for pid in marked_processes(home_id) if start_ticks(pid)] == []


async def test_only_what_is_listed_is_inherited(
    tmp_path: Path, home_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "secret")
    keeper = Keeper(home_id, Records(tmp_path), lambda: command(tmp_path))
    keeper.start()
    await until(lambda: keeper.pid and Path(f"/proc/{keeper.pid}/environ").read_bytes())
    environment = Path(f"/proc/{keeper.pid}/environ").read_bytes()
    assert b"MY_TOKEN" not in environment
    assert f"{MARK}={home_id}/app/default/a-0".encode() in environment
    await keeper.stop()


def test_long_logs_are_moved_aside_under_their_writer(tmp_path: Path) -> None:
    with (tmp_path / "a.log").open("a") as writer:
        writer.write("x" * (LOG_LIMIT_BYTES + 1))
        writer.flush()
        limit_logs(tmp_path)
        writer.write("next")
    assert (tmp_path / "a.log").read_text() == "next"
    assert (tmp_path / "a.log.1").stat().st_size == LOG_LIMIT_BYTES + 1


def test_the_last_line_of_a_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("one\ntwo\n\n")
    assert last_line(tmp_path / "log") == "two"
    assert "nothing" in last_line(tmp_path / "nothing")
