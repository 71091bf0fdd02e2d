"""Several processes of one service behind one port: `meshbus serve NAME --workers N`.

The supervisor serves nobody. It holds the ports, starts the workers, which share them
(SO_REUSEPORT), starts again those that die, shows them on one admin port, and makes the keys of TLS
tickets that they share. A worker ends with its supervisor, however that ends.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import structlog
from prometheus_client import CollectorRegistry, ProcessCollector

from meshbus.runtime.admin import Admin, admin_app
from meshbus.runtime.http import AddressInUseError, bind, bound_address, serve_http, split_address
from meshbus.runtime.settings import ProcessSettings, SettingsError, env_name
from meshbus.runtime.ticket_keys import CHANNEL, ROTATE_S, TicketRing, Told, message
from meshbus.runtime.worker_metrics import merge_metrics

MOST = 256
FIRST_PAUSE_S, MAX_PAUSE_S, STEADY_S = 0.05, 15.0, 10.0
_LOOK_S, _LOOK_READY_S = 0.1, 1.0
_STOP_S = 4.0
_PORT_PATIENCE_S = 3.0
"""Workers of a supervisor that was killed are about to end."""
_WRONG_USE = 2

log = structlog.get_logger("workers")


@dataclass(frozen=True)
class Pool:
    """What is to be run."""

    service: str
    count: int
    process: ProcessSettings
    env: Mapping[str, str]
    settings_file: str
    ports: Mapping[str, str]
    """Settings of the service that are addresses which the workers share, and their values."""
    version: str


class _Worker:
    """One worker, while it runs and between two runs."""

    def __init__(self, index: int, state: Path) -> None:
        self.index = index
        self.state = state
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: socket.socket | None = None
        self.admin = ""
        """Address of its admin port; empty: not known (yet)."""
        self.problem = "starting"
        """Why it is not ready; empty: it is."""
        self.restarts = 0

    @property
    def name(self) -> str:
        return str(self.index)


class Workers:
    """The supervisor of one service's workers."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._ring = TicketRing()
        base = Path(pool.process.state).absolute() / f"{pool.service}-workers"
        self._workers = [_Worker(i, base / str(i)) for i in range(pool.count)]
        self._held: list[socket.socket] = []
        self._env: dict[str, str] = {}
        self._shared: dict[str, str] = {}
        self._admin = Admin()
        self._ever_ready = False
        self._client = httpx.AsyncClient(timeout=2.0, trust_env=False)

    async def run(self) -> None:
        """Until cancelled.

        Raises:
            AddressInUseError: A port cannot be had.
            SettingsError: A worker cannot use its settings; it has said why.
        """
        pool = self._pool
        admin_socket = bind(pool.process.admin, "MESHBUS_ADMIN")
        prefix = "MESHBUS_" + pool.service.upper().replace("-", "_")
        for setting, address in pool.ports.items():
            shared = self._shared[setting] = await self._hold(address, setting)
            self._env[env_name(prefix, setting)] = shared
        self._env[env_name(prefix, "workers")] = "1"
        self._env[env_name(prefix, "reuse_port")] = "true"
        self._env["MESHBUS_ADMIN"] = "127.0.0.1:0"
        self._admin.add_ready("workers", self._why_not_ready)
        self._admin.add_debug("workers", self._show)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._serve_admin(admin_socket))
                tasks.create_task(self._turn_keys())
                for worker in self._workers:
                    tasks.create_task(self._keep(worker))
                    tasks.create_task(self._look(worker))
        except BaseExceptionGroup as group:
            known = group.subgroup((AddressInUseError, SettingsError))
            if known is not None:
                raise known.exceptions[0] from None
            raise
        finally:
            await self._end_all()
            await self._client.aclose()

    # ------------------------------------------------------------------ ports

    async def _hold(self, address: str, setting: str) -> str:
        """Bind a port without listening, so that it stays that of the workers; its address."""
        host, port = split_address(address)
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise SettingsError(f"{setting}: {address}: {error}") from None
        family, _, _, _, where = found[0]
        end = loop.time() + _PORT_PATIENCE_S
        while port and not _free(family, where):
            if loop.time() > end:
                raise AddressInUseError(
                    f"{setting}: {address} cannot be listened on; is the port in use?"
                )
            await asyncio.sleep(0.05)
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            sock.bind(where)
        except OSError as error:
            sock.close()
            raise AddressInUseError(f"{setting}: {address}: {error.strerror}") from error
        self._held.append(sock)
        return (
            f"[{host}]:{sock.getsockname()[1]}"
            if ":" in host
            else (f"{host}:{sock.getsockname()[1]}")
        )

    # ------------------------------------------------------------------ processes

    async def _keep(self, worker: _Worker) -> None:
        loop = asyncio.get_running_loop()
        pause = 0.0
        while True:
            begun = loop.time()
            process = self._start(worker)
            code = await _exited(process)
            self._forget(worker)
            if code == _WRONG_USE:
                raise SettingsError(f"worker {worker.name} cannot be started; it has said why")
            if not self._ever_ready:
                raise SettingsError(f"worker {worker.name} ended with {code}; see its log")
            worker.restarts += 1
            steady = loop.time() - begun > STEADY_S
            pause = 0.0 if steady or not pause else min(MAX_PAUSE_S, pause * 2)
            log.warning("worker ended", worker=worker.name, code=code, restart_in_s=pause)
            await asyncio.sleep(pause)
            pause = pause or FIRST_PAUSE_S

    def _start(self, worker: _Worker) -> "subprocess.Popen[bytes]":
        pool = self._pool
        worker.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._admin_file(worker).unlink(missing_ok=True)
        ours, theirs = socket.socketpair()
        pod = pool.process.pod or f"{pool.service}-0"
        env = {
            **pool.env,
            **self._env,
            "MESHBUS_POD": f"{pod}-w{worker.index}",
            "MESHBUS_STATE": str(worker.state),
            CHANNEL: str(theirs.fileno()),
        }
        argv = [sys.executable, "-m", "meshbus.runtime.worker", pool.service]
        if pool.settings_file:
            argv.append(pool.settings_file)
        with theirs:
            worker.process = subprocess.Popen(  # noqa: S603 - ourselves
                argv, env=env, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )
        ours.setblocking(False)
        worker.channel = ours
        self._tell(worker)
        return worker.process

    def _tell(self, worker: _Worker) -> None:
        if worker.channel is not None:
            # A few hundred bytes: a worker that does not take them is about to be found dead.
            with contextlib.suppress(OSError):
                worker.channel.send(message(Told(list(self._ring.keys), self._pool.count)))

    async def _turn_keys(self) -> None:
        while True:
            await asyncio.sleep(ROTATE_S)
            self._ring.turn()
            for worker in self._workers:
                self._tell(worker)

    def _forget(self, worker: _Worker) -> None:
        worker.admin, worker.problem, worker.process = "", "starting", None
        if worker.channel is not None:
            worker.channel.close()
            worker.channel = None

    async def _end_all(self) -> None:
        running = [w.process for w in self._workers if w.process is not None]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await asyncio.gather(*(_exited(process) for process in running))
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
        for sock in self._held:
            sock.close()

    # ------------------------------------------------------------------ what it shows

    def _admin_file(self, worker: _Worker) -> Path:
        return worker.state / f"admin-{self._pool.service}.json"

    async def _look(self, worker: _Worker) -> None:
        """Ask a worker whether it is ready, again and again."""
        while True:
            await asyncio.sleep(_LOOK_S if worker.problem else _LOOK_READY_S)
            process = worker.process
            if process is None:
                continue
            problem = await self._problem_of(worker, process.pid)
            if worker.process is process:
                worker.problem = problem
                self._ever_ready = self._ever_ready or not problem

    async def _problem_of(self, worker: _Worker, pid: int) -> str:
        try:
            about = json.loads(self._admin_file(worker).read_text())
        except (OSError, ValueError):
            return "starting"
        if about.get("pid") != pid:
            return "starting"
        worker.admin = str(about["address"])
        reply = await self._ask(worker, "/readyz")
        if reply is None:
            return "does not answer"
        if reply.status_code == 200:
            if not worker.problem:
                return ""
            await self._show_pages_of(worker)
            return ""
        return (reply.text.strip().splitlines() or ["not ready"])[0]

    async def _show_pages_of(self, worker: _Worker) -> None:
        """Its debug pages are pages of ours, with what every worker shows there."""
        index = await self._ask(worker, "/debug")
        prefix = f"/debug/{self._pool.service}/"
        for page in index.json()["pages"] if index is not None else ():
            name = page.removeprefix(prefix)
            if name not in self._admin.debug:
                self._admin.add_debug(name, partial(self._page, page))

    async def _page(self, page: str) -> dict[str, Any]:
        replies = await asyncio.gather(*(self._ask(w, page) for w in self._workers))
        return {
            worker.name: reply.json() if reply is not None and reply.is_success else None
            for worker, reply in zip(self._workers, replies, strict=True)
        }

    async def _ask(self, worker: _Worker, path: str) -> httpx.Response | None:
        if not worker.admin:
            return None
        try:
            return await self._client.get(f"http://{worker.admin}{path}")
        except httpx.HTTPError:
            return None

    def _why_not_ready(self) -> str | None:
        problems = [f"worker {w.name}: {w.problem}" for w in self._workers if w.problem]
        # Others go on while one is started again.
        if len(problems) < len(self._workers) and self._ever_ready:
            return None
        return "; ".join(problems)

    def _show(self) -> dict[str, Any]:
        workers = [
            {
                "worker": worker.index,
                "pid": worker.process.pid if worker.process is not None else None,
                "admin": worker.admin,
                "ready": not worker.problem,
                "problem": worker.problem,
                "restarts": worker.restarts,
            }
            for worker in self._workers
        ]
        return {"ports": self._shared, "workers": workers}

    async def _metrics(self) -> bytes:
        replies = await asyncio.gather(*(self._ask(w, "/metrics") for w in self._workers))
        return merge_metrics(
            {
                worker.name: reply.text
                for worker, reply in zip(self._workers, replies, strict=True)
                if reply is not None and reply.is_success
            }
        )

    async def _serve_admin(self, sock: socket.socket) -> None:
        # process.py starts this module: not the other way round.
        from meshbus.runtime.process import write_json

        pool = self._pool
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        app = admin_app(
            {pool.service: self._admin},
            {"process": registry},
            version=pool.version,
            more_metrics=self._metrics,
        )
        about = {"address": bound_address(sock), "pid": os.getpid()}
        write_json(Path(pool.process.state) / f"admin-{pool.service}.json", about)
        log.info("listening", admin=about["address"], workers=pool.count)
        await serve_http(app, sock)


def _free(family: int, where: Sequence[Any]) -> bool:
    """Nobody listens there: also not one who would share the port with us."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(tuple(where))
            probe.listen(1)
        except OSError:
            return False
        return True


async def _exited(process: "subprocess.Popen[bytes]") -> int:
    """Its exit code, once it has ended."""
    code = process.poll()
    if code is not None:
        return code
    descriptor = os.pidfd_open(process.pid)
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    loop.add_reader(descriptor, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return process.wait()
