"""Network namespaces of a home: one per instance, on one bridge, with capture rules. Root, Linux.

Everything made here carries the home's id in its name, so that it can be found and removed also
when nothing remembers it.
"""

import asyncio
import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from ipaddress import IPv4Network
from pathlib import Path

from meshbus.local.capture import PASSTHROUGH_SOURCE6, CapturePorts, capture_rules
from meshbus.local.enter import EnterPlan
from meshbus.local.home import HomeError, HomeState
from meshbus.local.network import IPV4, IPV6, network_of, of_family

_CLONE_NEWNET = 0x40000000
NETNS_FOLDER = Path("/run/netns")
HINT = "or use --capture proxy, which needs none of this"


class NetworkError(Exception):
    """A step of setting up the network failed; the message says which and why."""


def check_netns_possible(families: Sequence[str]) -> None:
    """Everything that capture mode netns needs is here.

    Args:
        families: Those that the home asks for.
    Raises:
        HomeError: What is missing, and what to do.
    """
    if sys.platform != "linux":
        raise HomeError(f"--capture netns works on Linux only: {HINT}")
    if os.geteuid() != 0:
        raise HomeError(f"--capture netns needs root (network namespaces, iptables): {HINT}")
    needed = ["ip", "iptables-restore", *(["ip6tables-restore"] if IPV6 in families else [])]
    missing = [name for name in needed if shutil.which(name) is None]
    if missing:
        raise HomeError(
            f"--capture netns needs {' and '.join(missing)} (packages iproute2, iptables): {HINT}"
        )


def bridge_name(home_id: str) -> str:
    """The bridge of a home."""
    return f"mb{home_id}"


def namespace_name(home_id: str, index: int) -> str:
    """The network namespace of an instance."""
    return f"mb-{home_id}-{index}"


def bridge_mac(home_id: str) -> str:
    """The bridge's own link address.

    Linux gives a bridge the lowest one of its ports unless it has been given one: it would change
    as instances come and go, and those that stay would send to the old one for half a minute.
    """
    digest = hashlib.sha256(home_id.encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))  # 02: one of local meaning


def mount_point(home_id: str) -> Path:
    """An empty directory; in the mounts of an Envoy its private folder is there, since the user
    that it runs as may not look into the home."""
    return Path(f"/run/meshbus-{home_id}")


async def make_bridge(state: HomeState) -> None:
    """Make the bridge of a home, unless it is there.

    Raises:
        NetworkError: A step failed.
    """
    name, network = bridge_name(state.id), network_of(state)
    mount_point(state.id).mkdir(mode=0o755, exist_ok=True)
    if not Path(f"/sys/class/net/{name}").exists():
        await _ip(f"link add {name} type bridge")
    lines = [f"link set {name} address {bridge_mac(state.id)} up"]
    for bridge, resolver in zip(network.bridges, network.resolvers, strict=True):
        nodad, alone = ("nodad", 128) if ":" in bridge else ("", 32)
        lines += [
            f"addr replace {bridge}/{network.prefix(bridge)} dev {name} {nodad}",
            f"addr replace {resolver}/{alone} dev {name} {nodad}",
        ]
    await _ip(*lines)


async def make_namespace(
    state: HomeState, index: int, addresses: Sequence[str], capture: CapturePorts | None
) -> None:
    """Make the namespace of an instance: addresses, default routes to the bridge, rules that
    capture its traffic (None: it is not captured).

    Raises:
        NetworkError: A step failed.
    """
    name, bridge, network = (
        namespace_name(state.id, index),
        bridge_name(state.id),
        network_of(state),
    )
    outer = f"mb{state.id}-{index}"
    await remove_namespace(state.id, index)
    await _ip(
        f"netns add {name}",
        f"link add {outer} type veth peer name eth0 netns {name}",
        f"link set {outer} master {bridge} up",
    )
    inner = ["link set lo up", "link set eth0 up"]
    for address, way in zip(addresses, network.bridges, strict=True):
        option, nodad = ("-6", "nodad") if ":" in address else ("-4", "")
        inner += [
            f"addr add {address}/{network.prefix(address)} dev eth0 {nodad}",
            f"{option} route add default via {way}",
        ]
    if of_family(addresses, IPV6):
        inner.append(f"addr add {PASSTHROUGH_SOURCE6}/128 dev lo")
    await _ip(*inner, namespace=name)
    # Envoy has no right to low ports; in the namespace of a pod everybody has.
    await _run(
        ["ip", "netns", "exec", name, "sh", "-c",
         "echo 0 > /proc/sys/net/ipv4/ip_unprivileged_port_start"],
    )  # fmt: skip
    if capture is not None:
        restore = ["ip", "netns", "exec", name]
        for family, command in ((IPV4, "iptables-restore"), (IPV6, "ip6tables-restore")):
            for resolver in of_family(network.bridges, family):
                number = 6 if family == IPV6 else 4
                rules = capture_rules(number, resolver, ports=capture)
                await _run([*restore, command, "--noflush", "--wait"], rules)


async def remove_namespace(home_id: str, index: int) -> None:
    """Remove the namespace of an instance and its end on the bridge; does nothing if it is gone."""
    name = namespace_name(home_id, index)
    if (NETNS_FOLDER / name).exists():
        await _ip(f"netns del {name}")
    outer = f"mb{home_id}-{index}"
    if Path(f"/sys/class/net/{outer}").exists():
        # The other end may just be going by itself.
        with contextlib.suppress(NetworkError):
            await _ip(f"link del {outer}")


def socket_in(
    name: str, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM
) -> socket.socket:
    """A socket that lives in a namespace.

    Raises:
        OSError: There is no such namespace.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # Between the two calls nothing else runs in this thread; other threads stay where they are.
    with Path("/proc/thread-self/ns/net").open() as own, (NETNS_FOLDER / name).open() as other:
        if libc.setns(other.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"network namespace {name}")
        try:
            return socket.socket(family, kind)
        finally:
            if libc.setns(own.fileno(), _CLONE_NEWNET) != 0:
                raise SystemExit("cannot return to the network namespace of the machine")


def remove_all(home_id: str) -> None:
    """Remove every namespace, link and mount point of a home. For `down`: needs no records."""
    if NETNS_FOLDER.is_dir():
        for entry in NETNS_FOLDER.glob(f"mb-{home_id}-*"):
            _quietly("ip", "netns", "del", entry.name)
    for link in Path("/sys/class/net").glob(f"mb{home_id}*"):
        _quietly("ip", "link", "del", link.name)
    with contextlib.suppress(OSError):
        mount_point(home_id).rmdir()


def _quietly(*argv: str) -> None:
    subprocess.run(argv, capture_output=True, check=False)  # noqa: S603 - fixed commands


def enter_argv(plan: EnterPlan) -> list[str]:
    """The command that starts a program in a namespace."""
    return [sys.executable, "-E", "-s", "-m", "meshbus.local.enter", json.dumps(plan)]


async def _ip(*lines: str, namespace: str = "") -> None:
    where = ["-n", namespace] if namespace else []
    for line in lines:
        await _run(["ip", *where, *line.split()])


async def _run(argv: Sequence[str], text: str = "") -> None:
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate(text.encode())
    if process.returncode != 0:
        raise NetworkError(f"{' '.join(argv)}: {output.decode(errors='replace').strip()}")


def addresses_in_use() -> list[IPv4Network]:
    """Networks that the machine has an IPv4 address in or a route to (the default route aside)."""
    output = subprocess.run(
        ["ip", "-4", "-o", "route", "show", "table", "all"],  # noqa: S607 - found by PATH, as root's
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    found = []
    for line in output.splitlines():
        words = line.split()
        first = words[1] if words and words[0] in ("local", "broadcast") else (words or [""])[0]
        with contextlib.suppress(ValueError):
            found.append(IPv4Network(first, strict=False))
    return found
