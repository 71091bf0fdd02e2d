"""Keeps one process running: adopts it when it already runs, restarts it when it dies."""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable

import structlog

from meshbus.local.processes import Command, Records, runs, signal_session, spawn, start_ticks

FIRST_PAUSE_S = 0.05
MAX_PAUSE_S = 15.0
STEADY_S = 10.0
"""A process that ran this long has started well: the next restart is at once again."""

log = structlog.get_logger("local")


class Keeper:
    """One process of a home. `run` keeps it until cancelled, and leaves it running then; `stop`
    ends it."""

    def __init__(
        self,
        home_id: str,
        records: Records,
        command: Callable[[], Command],
        changed: Callable[[], None] = lambda: None,
        *,
        as_it_runs: bool = False,
    ) -> None:
        """
        Args:
            command: Asked before each start.
            changed: Called when it has started or died.
            as_it_runs: What runs is adopted, also when it would be started in another way now;
                else it is ended.
        """
        self._home_id = home_id
        self._records = records
        self._command = command
        self._changed = changed
        self._as_it_runs = as_it_runs
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._task: asyncio.Task[None] | None = None
        self.restarts = 0
        """How often it died and was started again."""
        self.error = ""
        """Why it cannot be started now."""
        self.adopted = False
        """It ran before this supervisor did."""

    @property
    def pid(self) -> int:
        """Its pid, 0 when it does not run."""
        return self._pid

    def start(self) -> None:
        """Keep it from now on, in a task of its own."""
        if self._task is None:
            self._task = asyncio.create_task(self.run())

    def release(self) -> None:
        """Stop keeping it, and leave it running."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def run(self) -> None:
        """Keep it until cancelled."""
        pause = 0.0
        loop = asyncio.get_running_loop()
        while True:
            if not self._adopt() and not self._spawn():
                pause = min(MAX_PAUSE_S, max(FIRST_PAUSE_S, pause * 2))
                self._changed()
                await asyncio.sleep(pause)
                continue
            begun = loop.time()
            self._changed()
            await self._exited()
            self._forget()
            self._changed()
            self.restarts += 1
            steady = loop.time() - begun > STEADY_S
            pause = 0.0 if steady or pause == 0.0 else min(MAX_PAUSE_S, pause * 2)
            log.warning("process ended", process=self._command().name, restart_in_s=pause)
            await asyncio.sleep(pause)
            pause = pause or FIRST_PAUSE_S

    def _adopt(self) -> bool:
        command = self._command()
        record = self._records.get(command.name)
        if record is None or not runs(record):
            return False
        if record.fingerprint != command.fingerprint and not self._as_it_runs:
            signal_session(record.pid, signal.SIGKILL)  # started for what was asked before
            return False
        self._pid, self._process, self.adopted, self.error = record.pid, None, True, ""
        return True

    def _spawn(self) -> bool:
        command = self._command()
        try:
            self._process = spawn(command, self._home_id, self._records)
        except OSError as error:
            self.error = f"{command.argv[0]}: {error.strerror}"
            log.error("cannot start", process=command.name, error=self.error)
            return False
        self._pid, self.adopted, self.error = self._process.pid, False, ""
        return True

    async def _exited(self) -> None:
        try:
            descriptor = os.pidfd_open(self._pid)
        except ProcessLookupError:
            return
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()
        loop.add_reader(descriptor, gone.set)
        try:
            await gone.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)

    def _forget(self) -> None:
        if self._process is not None:
            self._process.poll()
        self._pid, self._process = 0, None

    async def stop(self, grace_s: float = 5.0) -> None:
        """End it and its children; SIGKILL after `grace_s`."""
        self.release()
        name = self._command().name
        record = self._records.get(name)
        pid = self._pid or (record.pid if record is not None and runs(record) else 0)
        if pid and start_ticks(pid) is not None:
            self._pid = pid
            signal_session(pid, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self._exited()
            signal_session(pid, signal.SIGKILL)
            await self._exited()
        self._forget()
        self._records.remove(name)
