"""IPv6 addresses of instances on the loopback interface, for capture mode `proxy`. Linux.

All of 127.0.0.0/8 is there on every machine; of IPv6 there is `::1` alone. The others are added
where they are missing, which root may; what an administrator has added before anyone may use.
"""

import ipaddress
import subprocess
from collections.abc import Iterable
from ipaddress import IPv6Network

from meshbus.local.addresses import can_bind
from meshbus.local.netns import NetworkError


def add_addresses(addresses: Iterable[str]) -> None:
    """Make IPv6 addresses of this machine, unless they are.

    Raises:
        NetworkError: One is missing and cannot be added; the message has the command that adds it.
    """
    for address in addresses:
        if ":" not in address or can_bind(address):
            continue
        # Without `nodad` it cannot be bound for a moment.
        command = ["ip", "-6", "addr", "replace", f"{address}/128", "dev", "lo", "nodad"]
        problem = _run(command)
        if problem:
            raise NetworkError(f"{' '.join(command)}: {problem}: root has to do it")


def remove_addresses(addresses: Iterable[str]) -> None:
    """Take addresses away from loopback; does nothing where they are not or may not be."""
    for address in addresses:
        if ":" in address:
            _run(["ip", "-6", "addr", "del", f"{address}/128", "dev", "lo"])


def remove_all(block: IPv6Network) -> None:
    """Take away every address of a block. For the end of a home: needs no records."""
    remove_addresses(str(address) for address in _held() if address in block)


def _held() -> list[ipaddress.IPv6Address]:
    """Addresses of loopback."""
    output = subprocess.run(
        ["ip", "-6", "-o", "addr", "show", "dev", "lo"],  # noqa: S607 - found by PATH, as root's
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    rows = [line.split() for line in output.splitlines()]
    return [ipaddress.IPv6Address(row[3].partition("/")[0]) for row in rows if len(row) > 3]


def _run(command: list[str]) -> str:
    """Why a command failed; empty: it did not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError as error:
        return str(error.strerror)
    return "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"
