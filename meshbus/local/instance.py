"""One workload instance: its network, its Envoy, its application, and what is told about it."""

import asyncio
import functools
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog

from meshbus.local import bootstrap, loopback, netns
from meshbus.local.capture import PROXY_UID, hosts_file, resolver_file
from meshbus.local.desired import InstanceSpec, application_env, report_of
from meshbus.local.drain import drain
from meshbus.local.home import Home, write_in_place, write_private
from meshbus.local.join import fetch_token, renew_in_s
from meshbus.local.keeper import Keeper
from meshbus.local.machine import Machine
from meshbus.local.network import network_of
from meshbus.local.probe import ask_envoy, takes_connections
from meshbus.local.processes import Command, runs
from meshbus.local.proxy_start import NO_START
from meshbus.model.status import InstanceReport
from meshbus.runtime.calls import CallError

STARTING_POLL_S = 0.05
STEADY_POLL_S = 1.0
LEFT_S = 3.0
"""How long the registry may take to say that nobody is to call an instance any more."""
SPEC_FILE = "spec.json"
"""What an instance runs, of its folder: whoever comes next goes on with that."""
REPORT_FILE = "report.json"

log = structlog.get_logger("local")


class Instance:
    """`start` it; `retire` it when it is not wanted any more. Its processes outlive this object."""

    def __init__(
        self, machine: Machine, spec: InstanceSpec, index: int, *, adopted: bool = False
    ) -> None:
        """`adopted`: a supervisor before this one has started it."""
        self.spec = spec
        self.index = index
        self.ready = False
        self.looked = not adopted
        """Somebody has looked whether it is ready."""
        self.problem = ""
        """Why it is not ready, for people."""
        self._machine = machine
        self._adopted = adopted
        self._task: asyncio.Task[None] | None = None
        self._moved = asyncio.Event()
        self._network = network_of(machine.state)
        self.addresses = self._network.instance(index)
        self.folder = folder_of(machine.home, spec.id)
        self._proxy_folder = self.folder / "proxy"
        self._start = NO_START
        self._owner = PROXY_UID if machine.in_namespaces else None
        self._envoy: Keeper | None = None
        self._application: Keeper | None = None
        if spec.has_envoy:
            self._envoy = self._keeper(self._envoy_command)
        if spec.runs_application:
            self._application = self._keeper(self._application_command)

    def _keeper(self, command: Callable[[], Command]) -> Keeper:
        return Keeper(
            self._machine.state.id,
            self._machine.records,
            command,
            self._process_moved,
            as_it_runs=self._adopted,
        )

    @property
    def _keepers(self) -> list[Keeper]:
        return [keeper for keeper in (self._envoy, self._application) if keeper is not None]

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Run it from now on."""
        self._task = asyncio.create_task(self._run(), name=f"instance {self.spec.id}")

    @property
    def restarts(self) -> int:
        """How often its processes died and were started again."""
        return sum(keeper.restarts for keeper in self._keepers)

    async def end(self) -> None:
        """End its processes, as the whole mesh ends: nobody is told."""
        await self.release()
        await asyncio.gather(*(keeper.stop(grace_s=2.0) for keeper in self._keepers))

    async def release(self) -> None:
        """Stop looking after it; its processes go on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for keeper in self._keepers:
            keeper.release()

    def relabel(self, spec: InstanceSpec) -> None:
        """Only its labels have changed: nothing is restarted."""
        self.spec = spec
        self._write_spec()
        self._tell()

    async def retire(self, left: Callable[[], bool]) -> None:
        """End it: first callers are told, then requests that are under way end, then processes.
        It can be started again, or forgotten (`forget_instance`).

        Args:
            left: Whether the registry says that nobody is to call it any more.
        """
        await self.release()
        self.ready, self.looked = False, True
        self._tell(draining=True)
        deadline = time.monotonic() + LEFT_S
        while not left() and time.monotonic() < deadline:  # noqa: ASYNC110 - rows have no event
            await asyncio.sleep(0.05)
        if self._envoy is not None:
            start = self._machine.proxy_start(self.spec, self._relay)
            await drain(self._proxy_folder, start, gateway=self.spec.spec.gateway)
        self._tell()
        for keeper in reversed(self._keepers):  # the application first: it may still call out
            await keeper.stop()
        if self._machine.in_namespaces:
            await netns.remove_namespace(self._machine.state.id, self.index)
            (self.folder / "namespace").unlink(missing_ok=True)
        else:
            loopback.remove_addresses(self._own_addresses())
        (self.folder / SPEC_FILE).unlink(missing_ok=True)

    async def _run(self) -> None:
        pause = 0.2
        while True:
            try:
                await self._once()
            except (netns.NetworkError, OSError) as error:
                self.problem, self.looked = str(error), True
                log.error("instance cannot start", instance=self.spec.id, error=str(error))
                self._machine.changed()
            await asyncio.sleep(pause)
            pause = min(15.0, pause * 2)

    async def _once(self) -> None:
        adoptable = self.runs
        self._start = self._machine.proxy_start(self.spec, self._relay)
        for problem in self._start.reports.problems:
            log.warning("of ProxyConfig", instance=self.spec.id, has_no_effect=problem)
        self._make_folders()
        if not adoptable:
            self._tell()
        if self._machine.in_namespaces:
            await self._make_network()
        else:
            loopback.add_addresses(self._own_addresses())
        if self._envoy is not None:
            await self._prepare_envoy()
            self._envoy.start()
        if self._application is not None:
            self._application.start()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_readiness(first_report_waits=adoptable))
            if self._envoy is not None:
                group.create_task(self._renew_token())

    @property
    def runs(self) -> bool:
        """One of its processes does."""
        names = [f"{kind}/{self.spec.id}" for kind in ("envoy", "app")]
        known = [self._machine.records.get(name) for name in names]
        return any(record is not None and runs(record) for record in known)

    @property
    def _relay(self) -> str:
        """An address of its own."""
        return "127.0.0.1" if self._machine.in_namespaces else self.addresses.inbound[0]

    # ------------------------------------------------------------------ files and network

    def _make_folders(self) -> None:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self._proxy_folder.mkdir(mode=0o700, exist_ok=True)
        if self._owner is not None:
            os.chown(self._proxy_folder, self._owner, self._owner)
        self._write_spec()

    def _write_spec(self) -> None:
        if not self.folder.is_dir():
            return  # it has not started yet
        write_private(self.folder / SPEC_FILE, msgspec.json.encode(self.spec))

    @property
    def _seen_folder(self) -> str:
        """The folder of the Envoy as the Envoy sees it."""
        if self._machine.in_namespaces:
            return str(netns.mount_point(self._machine.state.id))
        return str(self._proxy_folder)

    async def _make_network(self) -> None:
        """The namespace, unless it is whole already: then a file says so, with its addresses."""
        self.write_hosts()
        state = self._machine.state
        whole = self.folder / "namespace"
        name = netns.namespace_name(state.id, self.index)
        about = " ".join(self.addresses.inbound)
        if (netns.NETNS_FOLDER / name).exists() and _text_of(whole) == about:
            return
        whole.unlink(missing_ok=True)
        captured = self.spec.has_envoy and not self.spec.spec.gateway
        ports = self._start.capture if captured else None
        await netns.make_namespace(state, self.index, self.addresses.inbound, ports)
        write_private(whole, about.encode())

    def _own_addresses(self) -> tuple[str, ...]:
        if not self.spec.has_envoy and not self.spec.runs_application:
            return ()  # somebody else's process, at an address of its own
        return (*self.addresses.inbound, self.addresses.application)

    def write_hosts(self) -> None:
        """Bring the hosts file up to date. It is mounted by inode: written in place."""
        if not self._machine.in_namespaces or not self.folder.is_dir():
            return
        network, namespace = self._network, self.spec.namespace
        # Names that an Envoy looks up lead to what it connects to itself: no virtual address.
        files = {
            "app.hosts": self._machine.hosts(namespace),
            "app.resolv.conf": resolver_file(network.bridges[0], namespace),
            "envoy.hosts": hosts_file([]),
            "envoy.resolv.conf": resolver_file(network.resolvers[0], ""),
        }
        for name, text in files.items():
            write_in_place(self.folder / name, text.encode())

    async def _prepare_envoy(self) -> None:
        await self._machine.roots_known.wait()
        seen, spec = self._seen_folder, self.spec.spec
        identity = bootstrap.ProxyIdentity(
            type="router" if spec.gateway else "sidecar",
            name=self.spec.name,
            namespace=self.spec.namespace,
            workload=self.spec.workload,
            service_account=spec.service_account,
            addresses=self.addresses.inbound,
            labels=self.spec.labels,
            cluster=self._machine.cluster,
            locality=spec.locality,
        )
        name = self._machine.gateway_name
        document = bootstrap.envoy_bootstrap(
            identity, self._machine.gateway, name, seen, self._start
        )
        self._write(bootstrap.BOOTSTRAP_FILE, bootstrap.render(self._patched(document)))
        self._write(bootstrap.TOKEN_SDS_FILE, bootstrap.render(bootstrap.token_sds(seen)))
        self._write(bootstrap.ROOTS_SDS_FILE, bootstrap.render(bootstrap.roots_sds(seen, name)))
        self.write_roots()
        if self._machine.in_namespaces:
            # The gateway takes a token from one address alone, and the namespace may have another.
            await self._fetch_token()
        while renew_in_s(self._proxy_folder) <= 0:
            if not await self._fetch_token():
                await asyncio.sleep(0.2)

    def _patched(self, document: dict[str, Any]) -> dict[str, Any]:
        """A bootstrap with the patches of EnvoyFilters; the gateway tells which have no effect."""
        objects = self._machine.envoy_filters()
        if not objects:
            return document
        # Envoy's messages are many and slow to load: only those who patch pay for them.
        from meshbus.compile.bootstrap_patches import bootstrap_patches, patched_bootstrap
        from meshbus.compile.proxy_keys import ROUTER, SIDECAR, ProxyKeys

        node = document["node"]["metadata"]
        proxy = ProxyKeys(
            ROUTER if self.spec.spec.gateway else SIDECAR,
            self.spec.name,
            self.spec.namespace,
            labels=tuple(sorted(self.spec.labels.items())),
            metadata=tuple(sorted((k, v) for k, v in node.items() if isinstance(v, str))),
        )
        patches = bootstrap_patches(objects, proxy, self._machine.root_namespace)
        return patched_bootstrap(document, patches)[0]

    def write_roots(self) -> None:
        """Give the Envoy the roots that hold now."""
        if self._envoy is not None and self._proxy_folder.is_dir():
            self._write(bootstrap.ROOTS_FILE, self._machine.roots.encode())

    def _write(self, name: str, content: bytes) -> None:
        path = self._proxy_folder / name
        if not path.exists() or path.read_bytes() != content:
            write_private(path, content, owner=self._owner)

    async def _fetch_token(self) -> bool:
        try:
            await fetch_token(self._machine.bus, self.spec, self._proxy_folder, owner=self._owner)
        except CallError as error:
            self.problem = f"no join token: {error.message}"
            log.debug("no join token", instance=self.spec.id, error=error.message)
            self._machine.changed()
            return False
        return True

    async def _renew_token(self) -> None:
        while True:
            await asyncio.sleep(max(1.0, renew_in_s(self._proxy_folder)))
            await self._fetch_token()

    # ------------------------------------------------------------------ processes

    def _envoy_command(self) -> Command:
        start = self._start
        argv = bootstrap.envoy_argv(
            self._machine.envoy,
            concurrency=start.concurrency,
            file_flush=start.file_flush,
            config_file=start.config_file or bootstrap.BOOTSTRAP_FILE,
        )
        folder = self._proxy_folder
        if self._machine.in_namespaces:
            argv = netns.enter_argv(
                {
                    "namespace": netns.namespace_name(self._machine.state.id, self.index),
                    "binds": [
                        *self._name_binds("envoy"),
                        (str(self._proxy_folder), self._seen_folder),
                    ],
                    "folder": self._seen_folder,
                    "user": PROXY_UID,
                    "argv": argv,
                }
            )
        env = start.environment
        return Command(f"envoy/{self.spec.id}", argv, env, folder, self._log("envoy"))

    def _application_command(self) -> Command:
        spec, state = self.spec.spec, self._machine.state
        env = application_env(self.spec, self.addresses, capture=state.capture)
        folder = Path(spec.working_dir) if spec.working_dir else self.folder
        argv = list(spec.command)
        if self._machine.in_namespaces:
            argv = netns.enter_argv(
                {
                    "namespace": netns.namespace_name(state.id, self.index),
                    "binds": self._name_binds("app"),
                    "folder": str(folder),
                    "user": 0,
                    "argv": argv,
                }
            )
        return Command(f"app/{self.spec.id}", argv, env, folder, self._log("app"))

    def _name_binds(self, whose: str) -> list[tuple[str, str]]:
        files = ((f"{whose}.hosts", "/etc/hosts"), (f"{whose}.resolv.conf", "/etc/resolv.conf"))
        return [(str(self.folder / name), to) for name, to in files if Path(to).exists()]

    def _log(self, kind: str) -> Path:
        return self._machine.home.logs / f"{kind}.{self.spec.namespace}.{self.spec.name}.log"

    def _process_moved(self) -> None:
        if self.ready and any(not keeper.pid for keeper in self._keepers):
            # Its callers are told in this very step, not at the next look.
            self.ready = False
            self._tell()
        self._moved.set()

    # ------------------------------------------------------------------ readiness

    async def _watch_readiness(self, *, first_report_waits: bool) -> None:
        told = not first_report_waits
        while True:
            problem = await self._why_not_ready()
            if problem:
                problem = problem if told else await self._second_look(problem)
            self.looked = True
            if (problem == "") != self.ready or problem != self.problem or not told:
                self.ready, self.problem, told = problem == "", problem, True
                self._tell()
            pause = STEADY_POLL_S if self.ready else STARTING_POLL_S
            self._moved.clear()
            try:
                async with asyncio.timeout(pause):
                    await self._moved.wait()
            except TimeoutError:
                continue

    async def _second_look(self, problem: str) -> str:
        """After adoption: a look that failed by chance must not empty an endpoint."""
        for _ in range(5):
            await asyncio.sleep(STARTING_POLL_S)
            problem = await self._why_not_ready()
            if not problem:
                break
        return problem

    async def _why_not_ready(self) -> str:
        for keeper in self._keepers:
            if not keeper.pid:
                what = "Envoy" if keeper is self._envoy else "the application"
                return keeper.error or f"{what} does not run (see {self._machine.home.logs})"
        if self._application is not None and not await self._application_listens():
            return "the application does not listen on its ports yet"
        if self._envoy is not None:
            status, _ = await ask_envoy(self._proxy_folder, bootstrap.ADMIN_SOCKET, "/ready")
            if status != 200:
                return "Envoy has no configuration yet"
        spec = self.spec.spec
        if self._application is None and not spec.gateway and spec.ports:
            port = spec.ports[0].port
            if not await takes_connections(spec.address, port):
                return f"nobody takes connections at {spec.address} port {port}"
        return ""

    async def _application_listens(self) -> bool:
        """Its ports take connections, seen from where its Envoy is."""
        make_socket: Callable[[int], socket.socket] = socket.socket
        hosts = [self.addresses.application or self.addresses.inbound[0]]
        if self._machine.in_namespaces:
            name = netns.namespace_name(self._machine.state.id, self.index)
            make_socket = functools.partial(netns.socket_in, name)
            hosts = [*self._network.loopbacks, *self.addresses.inbound]
        elif not self.spec.has_envoy:
            hosts = [self.addresses.inbound[0]]
        for port in self.spec.spec.ports:
            for host in hosts:
                if await takes_connections(host, port.port, make_socket=make_socket):
                    break
            else:
                return False
        return True

    def _tell(self, *, draining: bool = False) -> None:
        report = report_of(
            self.spec,
            self.addresses,
            capture=self._machine.state.capture,
            ready=self.ready,
            draining=draining,
        )
        if self.folder.is_dir():
            write_private(self.folder / REPORT_FILE, msgspec.json.encode(report))
        self._machine.report(report)
        self._machine.changed()


def folder_of(home: Home, name: str) -> Path:
    """The folder of an instance (`NAMESPACE/NAME`)."""
    return home.instances / name.replace("/", ".", 1)


def recorded(folder: Path) -> InstanceSpec | None:
    """What an instance of this folder was started with, that has not ended in order."""
    try:
        return msgspec.json.decode((folder / SPEC_FILE).read_bytes(), type=InstanceSpec)
    except (OSError, msgspec.MsgspecError):
        return None


def last_report(folder: Path) -> InstanceReport | None:
    """What was told last of an instance of this folder."""
    try:
        return msgspec.json.decode((folder / REPORT_FILE).read_bytes(), type=InstanceReport)
    except (OSError, msgspec.MsgspecError):
        return None


def forget_instance(machine: Machine, name: str) -> None:
    """Tell that an instance (`NAMESPACE/NAME`) that has ended is gone, and take its folder away."""
    folder = folder_of(machine.home, name)
    report = last_report(folder)
    if report is not None:
        machine.report(msgspec.structs.replace(report, ready=False, draining=False, gone=True))
    shutil.rmtree(folder, ignore_errors=True)


def _text_of(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
