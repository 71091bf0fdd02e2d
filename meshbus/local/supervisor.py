"""The supervisor of a home: `python -m meshbus.local.supervisor HOME`.

Runs the control plane, and the workloads that the model names, until SIGTERM. Killed at any time
it leaves everything running, and the next one adopts it.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence, Set
from ipaddress import IPv6Network
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog

from meshbus.bus.connection import NatsBus
from meshbus.bus.mirror import WorldMirror
from meshbus.bus.nkeys import UserKey
from meshbus.local import loopback, netns
from meshbus.local.addresses import AddressBook
from meshbus.local.binaries import find_envoy, find_nats_server
from meshbus.local.control_plane import CLUSTER, ControlPlane
from meshbus.local.desired import InstanceSpec, instances_of
from meshbus.local.forwards import Forwards
from meshbus.local.guard import SUPERVISOR
from meshbus.local.home import Home, HomeError, HomeState, write_private
from meshbus.local.hosts import hosts_for
from meshbus.local.instance import Instance, forget_instance, last_report, recorded
from meshbus.local.keeper import Keeper
from meshbus.local.machine import Machine
from meshbus.local.network import host_port, network_of
from meshbus.local.processes import LOGS_S, Command, Records, limit_logs, record_of_self
from meshbus.local.proxy_start import ProxyStart, proxy_start
from meshbus.local.reports import Reporter
from meshbus.local.rollout import Running, Steps, WorkloadStatus, next_steps
from meshbus.local.rollout import status_of as progress_of
from meshbus.local.status import InstanceStatus, SupervisorStatus, write_status
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject
from meshbus.model.world import Query, World
from meshbus.runtime.logs import configure_logs

ALREADY_RUNNING = 3
LOOK_STARTING_S = 0.05
LOOK_STEADY_S = 1.0
FILTERS = (
    f"m.{CLUSTER}.cfg.workloads.>",
    f"m.{CLUSTER}.cfg.proxyconfigs.>",
    f"m.{CLUSTER}.cfg.sidecars.>",
    f"m.{CLUSTER}.mesh.config.>",
    f"m.{CLUSTER}.cfg.envoyfilters.>",
    f"m.{CLUSTER}.reg.services.>",
    f"m.{CLUSTER}.reg.workloads.>",
    f"m.{CLUSTER}.sec.trust.>",
)

log = structlog.get_logger("local")


class Leaving(NamedTuple):
    """An instance that is being ended."""

    instance: Instance
    task: asyncio.Task[None]


class Supervisor:
    """Everything of one home. `run` until cancelled; then `stop` ends what it runs."""

    def __init__(self, home: Home, state: HomeState) -> None:
        self._home = home
        self._state = state
        self._settings = home.settings()
        self._records = Records(home.records)
        self._moved = asyncio.Event()
        self._world_moved = asyncio.Event()
        self._world_moved.set()
        network = network_of(state)
        self._control_plane = ControlPlane(
            home,
            state,
            self._settings,
            self._records,
            nats_binary=find_nats_server(),
            changed=self.show,
        )
        key = UserKey.from_seed((home.seeds / "local.seed").read_text())
        self._bus = NatsBus(
            f"nats://{host_port(network.loopback, state.ports['bus'])}", "local", key
        )
        self._reporter = Reporter(self._bus, CLUSTER, state.id)
        self._mirror = WorldMirror()
        self._mirror.subscribe(self._world_changed)
        self._machine = Machine(
            home=home,
            state=state,
            records=self._records,
            bus=self._bus,
            envoy=find_envoy(),
            cluster=CLUSTER,
            gateway=(network.proxies_reach, state.ports["xds"]),
            gateway_name=f"xds-gateway.{self._settings.root_namespace}.svc",
            report=self._reporter.put,
            changed=self._instance_moved,
            hosts=self._hosts_for,
            proxy_start=self._start_of,
            envoy_filters=self._envoy_filters,
            root_namespace=self._settings.root_namespace,
        )
        self._forwards = Forwards(self._machine, self._settings.ports.forwards)
        self._guard = Keeper(state.id, self._records, self._guard_command)
        self._instances: dict[str, Instance] = {}
        self._leaving: dict[str, Leaving] = {}
        self._adopted = False
        self._workloads: dict[str, WorkloadStatus] = {}
        self._workload_problems: dict[str, str] = {}
        self._book = self._read_book()
        self._synced = False
        self._synced_at = 0
        self._access = False

    def _guard_command(self) -> Command:
        argv = [sys.executable, "-m", "meshbus.local.guard", str(self._home.path)]
        return Command("guard", argv, {}, self._home.path, self._home.logs / "guard.log")

    # ------------------------------------------------------------------ life

    async def run(self) -> None:
        """Until cancelled."""
        if self._state.capture == "netns":
            await netns.make_bridge(self._state)
        self._control_plane.start()
        self._guard.start()
        self._bus.start()
        follower = self._mirror.follow(self._bus, FILTERS, name="local")
        async with asyncio.TaskGroup() as group:
            group.create_task(follower.run())
            group.create_task(self._reporter.run())
            group.create_task(self._look())
            group.create_task(self._show())
            await follower.wait_synced()
            self._synced = True
            group.create_task(self._reconcile())

    async def stop(self) -> None:
        """End everything: workloads, services, the bus; then the namespaces."""
        self._guard.release()
        await self._guard.stop(grace_s=0.5)
        leaving = list(self._leaving.values())
        everyone = [*self._instances.values(), *(one.instance for one in leaving)]
        for one in leaving:
            one.task.cancel()
        await asyncio.gather(*(one.task for one in leaving), return_exceptions=True)
        for instance in everyone:
            await instance.release()
        await asyncio.gather(self._forwards.stop(), *(instance.end() for instance in everyone))
        await self._bus.close()
        await self._control_plane.stop()
        if self._state.capture == "netns":
            netns.remove_all(self._state.id)
        elif self._state.block6:
            loopback.remove_all(IPv6Network(self._state.block6))

    # ------------------------------------------------------------------ looking and showing

    async def _look(self) -> None:
        logs_next = 0.0
        while True:
            if await self._control_plane.look():
                self._moved.set()
            if not self._access and self._control_plane.write_access():
                self._access = True
                self._moved.set()
            if time.monotonic() > logs_next:
                logs_next = time.monotonic() + LOGS_S
                limit_logs(self._home.logs)
            steady = self._access and not any(self._control_plane.problems.values())
            await asyncio.sleep(LOOK_STEADY_S if steady else LOOK_STARTING_S)

    async def _show(self) -> None:
        while True:
            self._moved.clear()
            self.show()
            await self._moved.wait()
            await asyncio.sleep(0.02)  # what moves together is shown together

    def show(self) -> None:
        """Write the status file."""
        status = SupervisorStatus(
            pid=os.getpid(),
            capture=self._state.capture,
            services=self._control_plane.problems,
            access=self._access,
            synced=self._synced_at > 0,
            sequence=self._synced_at,
            instances={
                name: InstanceStatus(
                    ready=instance.ready and self._is_listed(instance.spec),
                    problem=instance.problem,
                    addresses=list(instance.addresses.inbound),
                    app_address=instance.addresses.application,
                    gateway=instance.spec.spec.gateway,
                    restarts=instance.restarts,
                )
                for name, instance in sorted(self._instances.items())
            },
            workloads=self._workloads,
            workload_problems=self._workload_problems,
            forwards=self._forwards.ports,
            problem=self._control_plane.hopeless(),
        )
        write_status(self._home, status)

    def _is_listed(self, spec: InstanceSpec) -> bool:
        """The registry says that it is ready, so that the Envoys of its callers will hear of it."""
        row = self._mirror.world.get(_registry_key(spec))
        return row is not None and bool(row.ready)

    # ------------------------------------------------------------------ instances

    def _world_changed(self, world: World, touched: frozenset[Query]) -> None:
        self._world_moved.set()

    def _instance_moved(self) -> None:
        self._moved.set()
        self._world_moved.set()

    async def _reconcile(self) -> None:
        """Make what runs equal to what the model asks for, each time something has changed."""
        while True:
            await self._world_moved.wait()
            self._world_moved.clear()
            world = self._mirror.world
            self._take_roots(world)
            wanted = self._wanted(world)
            if not self._adopted:
                self._adopted = True
                self._adopt({spec.id for specs in wanted.values() for spec in specs})
            self._bring_about(wanted)
            self._forget_ended(wanted)
            ending = (one.instance for one in self._leaving.values())
            self._forwards.follow([*self._instances.values(), *ending])
            self._synced_at = world.sequence
            for instance in self._instances.values():
                instance.write_hosts()
            self._moved.set()

    def _take_roots(self, world: World) -> None:
        key = Key(CLUSTER, "sec", "trust", "", self._settings.trust_domain)
        row = world.get(key)
        if row is None or row.roots_pem == self._machine.roots:
            return
        self._machine.roots = row.roots_pem
        self._machine.roots_known.set()
        for instance in self._instances.values():
            instance.write_roots()

    def _envoy_filters(self) -> list[tuple[Key, ConfigObject]]:
        return [(entry.key, entry.row) for entry in self._mirror.world.all("cfg.envoyfilters")]

    def _wanted(self, world: World) -> dict[str, list[InstanceSpec]]:
        """Instances by workload."""
        wanted: dict[str, list[InstanceSpec]] = {}
        problems = {}
        for entry in world.all("cfg.workloads"):
            name = f"{entry.row.namespace}/{entry.row.name}"
            try:
                wanted[name] = instances_of(entry.row, capture=self._state.capture)
            except ValueError as error:
                problems[name] = str(error)
        self._workload_problems = problems
        return wanted

    def _adopt(self, wanted: Set[str]) -> None:
        """Go on with what a supervisor before this one ran, as it is, and with what it was about to
        end."""
        for folder in sorted(self._home.instances.iterdir()):
            spec = recorded(folder)
            if spec is None:
                continue
            instance = Instance(self._machine, spec, self._book.index_of(spec.id), adopted=True)
            report = last_report(folder)
            if instance.runs and not (report is not None and report.draining):
                self._instances[spec.id] = instance
                instance.start()
            elif instance.runs or spec.id not in wanted:
                self._leave(instance)
        self._keep_book()

    def _bring_about(self, wanted: Mapping[str, Sequence[InstanceSpec]]) -> None:
        running: dict[str, dict[str, Running]] = {}
        for name, instance in self._instances.items():
            spec = instance.spec
            of_workload = running.setdefault(f"{spec.namespace}/{spec.workload}", {})
            of_workload[name] = Running(spec, self._readiness(instance), instance.problem)
        self._workloads = {}
        for workload in sorted({*wanted, *running} - set(self._workload_problems)):
            asked, held = wanted.get(workload, ()), running.get(workload, {})
            self._take(next_steps(asked, held, self._leaving.keys(), room=self._book.has_room))
            if asked:
                self._workloads[workload] = progress_of(asked, held, self._leaving.keys())

    def _readiness(self, instance: Instance) -> bool | None:
        if instance.ready:
            return True if self._is_listed(instance.spec) else None
        return False if instance.looked else None

    def _take(self, steps: Steps) -> None:
        for spec in steps.relabel:
            self._instances[spec.id].relabel(spec)
        for name in (*steps.replace, *steps.remove):
            self._leave(self._instances.pop(name))
        for spec in steps.start:
            try:
                index = self._book.index_of(spec.id)
            except ValueError as error:
                self._workload_problems[f"{spec.namespace}/{spec.workload}"] = str(error)
                continue
            self._keep_book()
            instance = Instance(self._machine, spec, index)
            self._instances[spec.id] = instance
            instance.start()

    def _leave(self, instance: Instance) -> None:
        name, key = instance.spec.id, _registry_key(instance.spec)

        def left() -> bool:
            row = self._mirror.world.get(key)
            return row is None or not row.ready

        async def retire() -> None:
            try:
                await instance.retire(left)
            except (netns.NetworkError, OSError) as error:
                log.error("instance not ended cleanly", instance=name, error=str(error))
            del self._leaving[name]
            self._world_moved.set()

        self._leaving[name] = Leaving(instance, asyncio.create_task(retire()))

    def _forget_ended(self, wanted: Mapping[str, Sequence[InstanceSpec]]) -> None:
        """Instances that have ended and that nobody asks for any more."""
        known = {spec.id for specs in wanted.values() for spec in specs}
        ended = set(self._book.taken) - known - self._instances.keys() - self._leaving.keys()
        for name in sorted(ended):
            forget_instance(self._machine, name)
            self._book.release(name)
        if ended:
            self._keep_book()

    def _read_book(self) -> AddressBook:
        try:
            text = (self._home.path / "addresses.json").read_bytes()
            return msgspec.json.decode(text, type=AddressBook)
        except (OSError, msgspec.MsgspecError):
            return AddressBook()

    def _keep_book(self) -> None:
        write_private(self._home.path / "addresses.json", msgspec.json.encode(self._book))

    def _start_of(self, spec: InstanceSpec, relay: str) -> ProxyStart:
        world = self._mirror.world
        mesh = [entry.row.spec for entry in world.all("mesh.config")]
        objects = [entry.row for entry in world.all("cfg.proxyconfigs")]
        root = self._settings.root_namespace
        return proxy_start(spec, mesh[0] if mesh else {}, objects, root, relay)

    def _hosts_for(self, namespace: str) -> str:
        return hosts_for(self._mirror.world, namespace, self._settings.root_namespace)


def _registry_key(spec: InstanceSpec) -> Key:
    return Key(CLUSTER, "reg", "workloads", spec.namespace, spec.name)


async def supervise(home: Home, state: HomeState) -> int:
    """Run until SIGTERM or SIGINT, then end everything."""
    supervisor = Supervisor(home, state)
    task = asyncio.create_task(supervisor.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    home.stopping_file.touch()
    await supervisor.stop()
    return 0


def main(arguments: Sequence[str]) -> int:
    """The process; 1 when the home cannot be run, 3 when another supervisor runs it."""
    home = Home(Path(arguments[0]))
    os.umask(0o077)
    configure_logs("info", "text")
    lock = home.lock()
    if lock is None:
        print(f"a supervisor runs {home.path} already", file=sys.stderr)
        return ALREADY_RUNNING
    try:
        state = home.state()
        if state is None:
            raise HomeError(f"{home.state_file} is missing: start with `meshbus up`")
        Records(home.records).put(record_of_self(SUPERVISOR))
        return asyncio.run(supervise(home, state))
    except (HomeError, netns.NetworkError) as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        os.close(lock)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
