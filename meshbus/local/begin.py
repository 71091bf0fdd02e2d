"""From a home and its settings to a running supervisor."""

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from meshbus.local import netns
from meshbus.local.addresses import (
    BRIDGE_RANGE,
    LOOPBACK_RANGE,
    choose_block,
    choose_block6,
    choose_port,
    listening_now,
    port_is_free,
)
from meshbus.local.binaries import find_envoy, find_nats_server
from meshbus.local.guard import start_supervisor
from meshbus.local.home import (
    CAPTURE_MODES,
    Family,
    Home,
    HomeError,
    HomeSettings,
    HomeState,
    api_token,
    write_bus_seeds,
)
from meshbus.local.network import IPV4, IPV6, LOOPBACK, network_of
from meshbus.local.processes import Records, last_line, runs
from meshbus.local.status import SupervisorStatus, read_status

POLL_S = 0.05
PORT_NAMES = ("api", "bus", "xds", "policy", "telemetry", "dns")


class Addresses(Protocol):
    """Addresses of a machine."""

    def is_free(self, port: int, host: str) -> bool:
        """Whether a server could listen there now; port 0: whether it is an address at all."""

    def can_add(self) -> bool:
        """Whether this process may give the machine further ones."""


class OwnAddresses:
    """Those of this machine."""

    def is_free(self, port: int, host: str) -> bool:
        """By listening there."""
        return port_is_free(port, host)

    def can_add(self) -> bool:
        """As root, with `ip` of iproute2."""
        return os.geteuid() == 0 and shutil.which("ip") is not None


_OWN_ADDRESSES = OwnAddresses()


def prepare(home: Home, capture: str, addresses: Addresses = _OWN_ADDRESSES) -> HomeState:
    """Make a home ready to be run, or check one that runs.

    Args:
        capture: `proxy` or `netns`; empty: as before, `proxy` the first time.
        addresses: What the machine has.
    Raises:
        HomeError: What hinders, and what to do about it.
    """
    if capture and capture not in CAPTURE_MODES:
        raise HomeError(f"--capture {capture}: proxy or netns is needed")
    find_nats_server()
    find_envoy()
    home.create()
    settings = home.settings()
    before = state = home.state()
    mode = capture or (state.capture if state is not None else "proxy")
    if mode == "netns":
        netns.check_netns_possible(settings.ip_families)
    if home.locked():
        assert state is not None
        _runs_as_asked(home, state, mode, settings.ip_families)
        return state
    families = _families(home, settings.ip_families, mode, addresses)
    if state is None or state.capture != mode or state.families != families:
        state = _new_state(home, state, mode, families)
    if mode == "proxy" and IPV6 in families:
        _check_loopback(home, state, addresses)
    busy = {record.name for record in Records(home.records).all() if runs(record)}
    if before is not None and (before.capture, before.families) != (state.capture, state.families):
        if busy:
            raise HomeError(
                f"processes of the mesh in {home.path} still run as it was started, with --capture "
                f"{before.capture}: `meshbus down --home {home.path}` first"
            )
        _forget_proxies(home)
    hosts = network_of(state).loopbacks
    ports = _ports(settings, state, hosts, addresses, running=bool(busy))
    state = msgspec.structs.replace(state, ports=ports)
    home.keep_state(state)
    write_bus_seeds(home)
    api_token(home)
    home.stopping_file.unlink(missing_ok=True)
    return state


def _forget_proxies(home: Home) -> None:
    """Remove what Envoys were given in another capture mode: it belongs to another user, and the
    token counts from another address. What applications wrote stays."""
    for folder in home.instances.glob("*/proxy"):
        shutil.rmtree(folder)


def _runs_as_asked(home: Home, state: HomeState, mode: str, families: list[Family]) -> None:
    how = ""
    if mode != state.capture:
        how = f"--capture {state.capture}"
    elif families and tuple(families) != network_of(state).families:
        how = f"ipFamilies: [{', '.join(network_of(state).families)}]"
    if how:
        raise HomeError(
            f"the mesh in {home.path} runs with {how}: `meshbus down --home {home.path}` first"
        )


def _families(home: Home, wanted: list[Family], mode: str, addresses: Addresses) -> list[Family]:
    """The families of a home: those of its settings, as far as the machine has them."""
    if not wanted and mode == "netns" and addresses.is_free(0, LOOPBACK[IPV6]):
        return [IPV4, IPV6]
    for family in wanted:
        if not addresses.is_free(0, LOOPBACK[family]):
            raise HomeError(
                f"{home.settings_file}: ipFamilies: this machine has no {family} "
                f"(nothing can listen on {LOOPBACK[family]}): leave it out, or switch it on"
            )
    return wanted or [IPV4]


def _check_loopback(home: Home, state: HomeState, addresses: Addresses) -> None:
    """IPv6 addresses of instances are there, or can be added."""
    first = network_of(state).instance(0)
    if addresses.can_add():
        return
    missing = [a for a in (*first.inbound, first.application) if not addresses.is_free(0, a)]
    if missing:
        raise HomeError(
            f"{home.settings_file}: ipFamilies: IPv6 with --capture proxy needs addresses of its "
            "own on the loopback interface, which root adds (with `ip` of iproute2): run this as "
            "root, or add them before, two for each instance, beginning with "
            f"`ip -6 addr add {missing[0]}/128 dev lo`, or leave IPv6 out"
        )


def _new_state(
    home: Home, before: HomeState | None, mode: str, families: list[Family]
) -> HomeState:
    name = str(home.path)
    if mode == "netns":
        block = choose_block(name, BRIDGE_RANGE, netns.addresses_in_use())
    else:
        block = choose_block(name, LOOPBACK_RANGE, listening_now())
    return HomeState(
        id=before.id if before is not None else secrets.token_hex(4),
        capture=mode,
        ports=before.ports if before is not None else {},
        block=str(block),
        block6=str(choose_block6(name)) if IPV6 in families else "",
        families=families,
    )


def _ports(
    settings: HomeSettings,
    state: HomeState,
    hosts: Sequence[str],
    addresses: Addresses,
    *,
    running: bool,
) -> dict[str, int]:
    """The ports of a home. One that is fixed and taken by somebody is an error; one that was
    chosen before and is taken now is chosen again.

    Args:
        hosts: The loopback addresses that they are on.
    """

    def free(port: int) -> bool:
        return all(addresses.is_free(port, host) for host in hosts)

    ports: dict[str, int] = {}
    for name in PORT_NAMES:
        fixed = getattr(settings.ports, name)
        kept = state.ports.get(name, 0)
        wanted = fixed or kept
        if wanted and (running or free(wanted)):
            ports[name] = wanted
        elif fixed:
            raise HomeError(
                f"port {fixed} (settings.yaml: ports.{name}) is in use by another program: "
                "end that one, or set another port or 0"
            )
        else:
            ports[name] = choose_port(ports.values(), free)
    for name, port in settings.ports.forwards.items():
        if not running and not free(port):
            raise HomeError(
                f"port {port} (settings.yaml: ports.forwards.{name}) is in use by another "
                "program: end that one, or set another port"
            )
    return ports


def ensure_supervisor(home: Home, state: HomeState) -> "subprocess.Popen[bytes] | None":
    """Start the supervisor of a home, unless one runs.

    Returns:
        Its process, None when it ran before.
    """
    if home.locked():
        return None
    home.status_file.unlink(missing_ok=True)
    return start_supervisor(home, state.id)


def wait_status(
    home: Home,
    until: Callable[[SupervisorStatus], bool],
    *,
    patience_s: float,
    process: "subprocess.Popen[bytes] | None" = None,
    seen: Callable[[SupervisorStatus], None] = lambda status: None,
    done: Callable[[SupervisorStatus], int] = lambda status: 0,
) -> SupervisorStatus:
    """Wait until the status of the supervisor is as wanted.

    Args:
        patience_s: How long at most; anew each time that more is `done`.
        process: The supervisor if this process started it: its end is noticed.
        seen: Called with each status that was read.
    Raises:
        HomeError: The supervisor ended, or the time is over; the message says what is missing.
    """
    status, most = None, 0
    deadline = time.monotonic() + patience_s
    while True:
        status = read_status(home) or status
        if status is not None:
            seen(status)
            if done(status) > most:
                most, deadline = done(status), time.monotonic() + patience_s
            if until(status):
                return status
            if status.problem:
                raise HomeError(status.problem)
        if process is not None and process.poll() is not None and not home.locked():
            raise HomeError(f"the supervisor ended: {last_line(home.logs / 'supervisor.log')}")
        if time.monotonic() > deadline:
            raise HomeError(f"not ready in time: {'; '.join(missing(status))}")
        time.sleep(POLL_S)


def missing(status: SupervisorStatus | None) -> list[str]:
    """What is not ready, one line each."""
    if status is None:
        return ["the supervisor has not started"]
    lines = [f"{name}: {problem}" for name, problem in status.services.items() if problem]
    lines += [f"Workload {name}: {text}" for name, text in status.workload_problems.items()]
    lines += [
        f"{name}: {instance.problem or 'starting'}"
        for name, instance in status.instances.items()
        if not instance.ready
    ]
    lines += [
        f"Workload {name}: {of.updated} of {of.replicas} run what was asked for last"
        for name, of in status.workloads.items()
        if of.updated < of.replicas
    ]
    return lines or ["nothing is missing"]
