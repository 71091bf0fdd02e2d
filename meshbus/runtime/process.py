"""One process: the services it runs, their connections, the admin port, signals."""

import asyncio
import contextlib
import ctypes
import json
import os
import resource
import signal
import socket
import ssl
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Gauge, ProcessCollector

from meshbus.bus.connection import NatsBus
from meshbus.bus.interface import Bus
from meshbus.bus.nkeys import UserKey
from meshbus.runtime.admin import Admin, admin_app
from meshbus.runtime.clock import SystemClock
from meshbus.runtime.http import AddressInUseError, bind, bound_address, serve_http
from meshbus.runtime.kubernetes import Kubernetes, connect_kubernetes
from meshbus.runtime.logs import configure_logs
from meshbus.runtime.service import Context, Service, load_service
from meshbus.runtime.settings import (
    ProcessSettings,
    SettingsError,
    env_name,
    load_file,
    load_settings,
)
from meshbus.runtime.ticket_keys import SupervisorGoneError, WorkerChannel, channel_of

STOP_S = 5.0
"""How long a process may take to stop. Then it goes as it is: nothing needs a clean end."""

_PR_SET_DUMPABLE = 4

log = structlog.get_logger("process")


def meshbus_version() -> str:
    """The version of what is installed."""
    try:
        return version("meshbus")
    except PackageNotFoundError:
        return "0+unknown"


@dataclass(frozen=True)
class Plan:
    """Services with their settings, checked before anything is started."""

    process: ProcessSettings
    services: list[tuple[type[Service], Any]]
    workers: int = 1
    """Processes that the one service of this plan is to have."""


def plan_process(names: Sequence[str], env: Mapping[str, str], settings_file: str = "") -> Plan:
    """Load services and settings.

    Raises:
        SettingsError, UnknownServiceError: With a message for who started the process.
    """
    file = load_file(settings_file) if settings_file else {}
    sections = file.pop("services", {}) or {}
    process = load_settings(ProcessSettings, "MESHBUS", env, file)
    services = []
    for name in dict.fromkeys(names):
        cls = load_service(name)
        prefix = "MESHBUS_" + name.upper().replace("-", "_")
        services.append((cls, load_settings(cls.settings_type, prefix, env, sections.get(name))))
    several = [cls.name for cls, settings in services if getattr(settings, "workers", 1) > 1]
    if several and len(services) > 1:
        raise SettingsError(
            f"workers: {several[0]} can have several only in a process of its own: serve it alone"
        )
    return Plan(process, services, getattr(services[0][1], "workers", 1))


def with_workers(names: Sequence[str], env: Mapping[str, str], workers: int) -> dict[str, str]:
    """The environment in which a service has so many workers.

    Raises:
        SettingsError: Not one service, or one that cannot have several.
        UnknownServiceError: There is no such service.
    """
    if len(names) != 1 or not hasattr(load_service(names[0]), "shared_ports"):
        raise SettingsError("--workers is for one service that can have several: xds-gateway")
    prefix = "MESHBUS_" + names[0].upper().replace("-", "_")
    return {**env, env_name(prefix, "workers"): str(workers)}


def read_seed(process: ProcessSettings, identity: str) -> UserKey | None:
    """The bus key of an identity.

    Raises:
        SettingsError: The file cannot be read, or holds no key.
    """
    if not process.bus_seeds:
        return None
    path = Path(process.bus_seeds) / f"{identity}.seed"
    try:
        return UserKey.from_seed(path.read_text())
    except OSError as error:
        raise SettingsError(f"MESHBUS_BUS_SEEDS: {path}: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"MESHBUS_BUS_SEEDS: {path}: {error}") from None


def bus_tls(process: ProcessSettings) -> ssl.SSLContext | None:
    """What proves the nats-server; None where it is reached in the clear.

    Raises:
        SettingsError: The file cannot be read, or there is none for a `tls://` address.
    """
    if not process.bus_url.startswith("tls://"):
        return None
    if not process.bus_roots:
        raise SettingsError("MESHBUS_BUS_ROOTS: is needed for a tls:// address")
    try:
        context = ssl.create_default_context(cafile=process.bus_roots)
    except OSError as error:
        raise SettingsError(f"MESHBUS_BUS_ROOTS: {process.bus_roots}: {error}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def make_context(
    cls: type[Service],
    settings: Any,
    process: ProcessSettings,
    bus: Bus,
    *,
    several: bool = False,
    worker: WorkerChannel | None = None,
    kubernetes: Kubernetes | None = None,
) -> Context[Any]:
    """The context of one service of a process."""
    pod = process.pod or f"{cls.name}-0"
    if several and process.pod:
        pod = f"{cls.name}-{process.pod}"
    state = Path(process.state) / cls.name
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    admin = Admin()
    admin.add_ready("bus", lambda: None if bus.connected else "not connected to the bus")
    registry = CollectorRegistry()
    Gauge(
        "meshbus_bus_connected", "1 while connected to the bus.", ["service"], registry=registry
    ).labels(cls.name).set_function(lambda: float(bus.connected))
    return Context(
        name=cls.name,
        pod=pod,
        cluster=process.cluster,
        root_namespace=process.root_namespace,
        trust_domain=process.trust_domain,
        state=state,
        settings=settings,
        bus=bus,
        clock=SystemClock(),
        log=structlog.get_logger(cls.name).bind(service=cls.name, pod=pod),
        metrics=registry,
        admin=admin,
        worker=worker,
        revision=process.revision,
        kubernetes=kubernetes,
    )


async def run_service(service: Service) -> None:
    """Run it; returning is a fault."""
    await service.run()
    raise RuntimeError(f"service {service.name} ended by itself")


def write_json(path: Path, value: object, mode: int = 0o600) -> None:
    """Write a small file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as file:
        json.dump(value, file)
    aside.replace(path)


def keep_memory_private() -> None:
    """Memory holds keys: a crash must not write them to a disk, and other processes of this user
    must not read them. A limit alone does not hold where the kernel hands cores to a program.

    Source: core(5), prctl(2) PR_SET_DUMPABLE.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


async def run_process(plan: Plan, worker: WorkerChannel | None = None) -> None:
    """Run until cancelled or until one of the services fails.

    Args:
        worker: What the supervisor tells, if this process is one of several workers.

    The address of the admin port is written to `<state>/admin-<service>.json`.
    """
    process = plan.process
    keep_memory_private()
    kubernetes = await connect_kubernetes(process)
    admin_socket = bind(process.admin, "MESHBUS_ADMIN")
    address = bound_address(admin_socket)
    buses: list[NatsBus] = []
    several = len(plan.services) > 1
    contexts: list[Context[Any]] = []
    services: list[Service] = []
    for cls, settings in plan.services:
        bus = NatsBus(
            process.bus_url,
            cls.name,
            read_seed(process, cls.name),
            tls=bus_tls(process),
            replicas=process.bus_replicas,
        )
        buses.append(bus)
        context = make_context(
            cls, settings, process, bus, several=several, worker=worker, kubernetes=kubernetes
        )
        contexts.append(context)
        services.append(cls(context))
    process_registry = CollectorRegistry()
    ProcessCollector(registry=process_registry)
    registries = {"process": process_registry, **{c.name: c.metrics for c in contexts}}
    app = admin_app({c.name: c.admin for c in contexts}, registries, version=meshbus_version())
    for bus in buses:
        bus.start()
    try:
        async with asyncio.TaskGroup() as group:
            if worker is not None:
                group.create_task(worker.run())
                await worker.ready()
            group.create_task(_serve_admin(app, admin_socket, contexts, address, process))
            for service in services:
                group.create_task(run_service(service), name=service.name)
    finally:
        for bus in buses:
            await bus.close()
        if kubernetes is not None:
            await kubernetes.client.close()


async def _serve_admin(
    app: Any,
    sock: socket.socket,
    contexts: list[Context[Any]],
    address: str,
    process: ProcessSettings,
) -> None:
    for context in contexts:
        write_json(
            Path(process.state) / f"admin-{context.name}.json",
            {"address": address, "pid": os.getpid()},
        )
    log.info("listening", admin=address, services=[c.name for c in contexts])
    await serve_http(app, sock)


def _leave_now() -> None:
    log.error("not stopped in time", limit_s=STOP_S)
    os._exit(1)


async def _run_plan(
    plan: Plan, env: Mapping[str, str], settings_file: str, worker: WorkerChannel | None
) -> None:
    if plan.workers == 1:
        await run_process(plan, worker)
        return
    # Imported here: what supervises workers is not needed by most processes.
    from meshbus.runtime.workers import Pool, Workers

    [(cls, settings)] = plan.services
    shared = getattr(cls, "shared_ports", ())
    ports = {name: getattr(settings, name) for name in shared if getattr(settings, name)}
    pool = Pool(cls.name, plan.workers, plan.process, env, settings_file, ports, meshbus_version())
    await Workers(pool).run()


def main(
    names: Sequence[str], env: Mapping[str, str], settings_file: str = "", *, workers: int = 0
) -> int:
    """Run services as a process of their own: the body of `meshbus serve`.

    Args:
        workers: Processes of the one service that is named; 0: as its settings say.
    Returns:
        0 after SIGTERM or SIGINT, 1 after a fault, 2 for wrong use.
    """
    try:
        if workers:
            env = with_workers(names, env, workers)
        plan = plan_process(names, env, settings_file)
    except Exception as error:  # noqa: BLE001 - whatever hinders the start is told, not thrown
        print(f"meshbus serve: {error}", file=sys.stderr)
        return 2
    configure_logs(plan.process.log_level, plan.process.log_format)
    os.umask(0o077)

    async def body() -> int:
        task = asyncio.create_task(_run_plan(plan, env, settings_file, channel_of(env)))
        loop = asyncio.get_running_loop()

        def stop() -> None:
            task.cancel()
            loop.call_later(STOP_S, _leave_now)

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        try:
            await task
        except asyncio.CancelledError:
            log.info("stopped")
            return 0
        except BaseExceptionGroup as group:
            for cause in group.exceptions:
                known = isinstance(cause, AddressInUseError | SettingsError | SupervisorGoneError)
                log.error("failed", error=str(cause), exc_info=None if known else cause)
            return 1
        except (AddressInUseError, SettingsError, ValueError) as error:
            log.error("failed", error=str(error))
            return 1
        return 1

    with contextlib.suppress(ImportError):
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(body())
    return asyncio.run(body())
