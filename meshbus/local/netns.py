"""Network namespaces of a home: one per instance, on one bridge, with capture rules. Root, Linux.

Everything made here carries the home's id in its name, so that it can be found and removed also
when nothing remembers it.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from meshbus.local.addresses import (
    bridge6_address,
    bridge_address,
    proxy_resolver_address,
)
from meshbus.local.capture import PASSTHROUGH_SOURCE6, CapturePorts, capture_rules
from meshbus.local.enter import EnterPlan
from meshbus.local.home import HomeError, HomeState

_CLONE_NEWNET = 0x40000000
NETNS_FOLDER = Path("/run/netns")
HINT = "or use --capture proxy, which needs none of this"


class NetworkError(Exception):
    """A step of setting up the network failed; the message says which and why."""


def check_netns_possible() -> None:
    """Everything that capture mode netns needs is here.

    Raises:
        HomeError: What is missing, and what to do.
    """
    if sys.platform != "linux":
        raise HomeError(f"--capture netns works on Linux only: {HINT}")
    if os.geteuid() != 0:
        raise HomeError(f"--capture netns needs root (network namespaces, iptables): {HINT}")
    missing = [name for name in ("ip", "iptables-restore") if shutil.which(name) is None]
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


def mount_point(home_id: str) -> Path:
    """An empty directory; in the mounts of an Envoy its private folder is there, since the user
    that it runs as may not look into the home."""
    return Path(f"/run/meshbus-{home_id}")


def ipv6_available() -> bool:
    """The machine speaks IPv6."""
    return Path("/proc/net/if_inet6").exists()


async def make_bridge(state: HomeState) -> None:
    """Make the bridge of a home, unless it is there.

    Raises:
        NetworkError: A step failed.
    """
    name = bridge_name(state.id)
    mount_point(state.id).mkdir(mode=0o755, exist_ok=True)
    block, block6 = IPv4Network(state.block), IPv6Network(state.block6)
    if not Path(f"/sys/class/net/{name}").exists():
        await _ip(f"link add {name} type bridge")
    lines = [
        f"addr replace {bridge_address(block)}/{block.prefixlen} dev {name}",
        f"addr replace {proxy_resolver_address(block)}/32 dev {name}",
        f"link set {name} up",
    ]
    if ipv6_available():
        lines.append(f"addr replace {bridge6_address(block6)}/{block6.prefixlen} dev {name} nodad")
    await _ip(*lines)


async def make_namespace(
    state: HomeState, index: int, addresses: Sequence[str], capture: CapturePorts | None
) -> None:
    """Make the namespace of an instance: addresses, default routes to the bridge, rules that
    capture its traffic (None: it is not captured).

    Raises:
        NetworkError: A step failed.
    """
    name, bridge = namespace_name(state.id, index), bridge_name(state.id)
    outer = f"mb{state.id}-{index}"
    block, block6 = IPv4Network(state.block), IPv6Network(state.block6)
    await remove_namespace(state.id, index)
    await _ip(
        f"netns add {name}",
        f"link add {outer} type veth peer name eth0 netns {name}",
        f"link set {outer} master {bridge} up",
    )
    inner = [
        "link set lo up",
        f"addr add {addresses[0]}/{block.prefixlen} dev eth0",
        "link set eth0 up",
        f"route add default via {bridge_address(block)}",
    ]
    if len(addresses) > 1:
        inner += [
            f"addr add {addresses[1]}/{block6.prefixlen} dev eth0 nodad",
            f"addr add {PASSTHROUGH_SOURCE6}/128 dev lo",
            f"-6 route add default via {bridge6_address(block6)}",
        ]
    await _ip(*inner, namespace=name)
    # Envoy has no right to low ports; in the namespace of a pod everybody has.
    await _run(
        ["ip", "netns", "exec", name, "sh", "-c",
         "echo 0 > /proc/sys/net/ipv4/ip_unprivileged_port_start"],
    )  # fmt: skip
    if capture is not None:
        restore = ["ip", "netns", "exec", name]
        rules = capture_rules(4, bridge_address(block), ports=capture)
        await _run([*restore, "iptables-restore", "--noflush", "--wait"], rules)
        if len(addresses) > 1:
            rules = capture_rules(6, bridge6_address(block6), ports=capture)
            await _run([*restore, "ip6tables-restore", "--noflush", "--wait"], rules)


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
