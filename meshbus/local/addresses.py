"""Addresses and ports of a home: chosen once, kept, and not those of another home.

Capture mode `proxy` takes two loopback addresses per instance (its Envoy's and its application's)
of each family of the home, mode `netns` one on the home's bridge.
"""

import hashlib
import ipaddress
import random
import socket
from collections.abc import Callable, Iterable
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import NamedTuple

import msgspec

LOOPBACK_RANGE = IPv4Network("127.128.0.0/9")
BRIDGE_RANGE = IPv4Network("10.192.0.0/10")
BRIDGE6_RANGE = IPv6Network("fd6d:6573::/32")
BLOCK_PREFIX = 22
BLOCK6_PREFIX = 64
MAX_INSTANCES = 500
PORT_RANGE = range(20000, 32000)
"""Below the range of ephemeral ports (32768 on Linux): while a service restarts, no outgoing
connection can take its port."""


class InstanceAddresses(NamedTuple):
    """Where one instance is."""

    inbound: tuple[str, ...]
    """What others reach it at: one of each family of the home, the preferred one first."""
    application: str
    """What the application binds, and its Envoy calls; in mode netns empty."""


class AddressBook(msgspec.Struct):
    """Which instance has which index; the lowest free one is given. Kept in a file of the home."""

    taken: dict[str, int] = {}

    def index_of(self, instance: str) -> int:
        """The index of an instance (`NAMESPACE/NAME`), a new one when it has none.

        Raises:
            ValueError: There are too many instances.
        """
        held = self.taken.get(instance)
        if held is not None:
            return held
        used = set(self.taken.values())
        index = next((i for i in range(MAX_INSTANCES) if i not in used), None)
        if index is None:
            raise ValueError(f"more than {MAX_INSTANCES} instances on one machine")
        self.taken[instance] = index
        return index

    @property
    def has_room(self) -> bool:
        """One more can be given."""
        return len(self.taken) < MAX_INSTANCES

    def release(self, instance: str) -> None:
        """Forget an instance that is gone."""
        self.taken.pop(instance, None)


def choose_block(
    home: str, within: IPv4Network, used: Iterable[ipaddress.IPv4Address | IPv4Network]
) -> IPv4Network:
    """A block for a home: the first free one from a place that its path decides.

    Args:
        home: Path of the home.
        used: Addresses and networks that must not be in it.
    Raises:
        ValueError: None is free.
    """
    taken = [IPv4Network(item) for item in used]
    count = 1 << (BLOCK_PREFIX - within.prefixlen)
    start = int.from_bytes(hashlib.sha256(home.encode()).digest()[:8]) % count
    size = 1 << (32 - BLOCK_PREFIX)
    for step in range(count):
        offset = ((start + step) % count) * size
        block = IPv4Network((int(within.network_address) + offset, BLOCK_PREFIX))
        if not any(block.overlaps(other) for other in taken):
            return block
    raise ValueError(f"no free block of addresses in {within}")


def choose_block6(home: str) -> IPv6Network:
    """A /64 of unique local addresses for a home."""
    digest = int.from_bytes(hashlib.sha256(home.encode()).digest()[:4])
    return IPv6Network((int(BRIDGE6_RANGE.network_address) | digest << 64, BLOCK6_PREFIX))


def listening_addresses(table: str) -> list[ipaddress.IPv4Address]:
    """Addresses that somebody listens on, from the text of /proc/net/tcp."""
    found = set()
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 3 and fields[3] == "0A":
            raw = bytes.fromhex(fields[1].split(":")[0])
            found.add(ipaddress.IPv4Address(raw[::-1]))
    return sorted(found)


def listening_now() -> list[ipaddress.IPv4Address]:
    """Addresses that somebody on this machine listens on."""
    return listening_addresses(Path("/proc/net/tcp").read_text())


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError:
        return False
    return True


def can_bind(address: str) -> bool:
    """It is an address of this machine."""
    return port_is_free(0, address)


def choose_port(taken: Iterable[int], free: Callable[[int], bool] = port_is_free) -> int:
    """A port that nobody has.

    Raises:
        ValueError: None was found.
    """
    used = set(taken)
    for port in random.sample(PORT_RANGE, 200):
        if port not in used and free(port):
            return port
    raise ValueError(f"no free port between {PORT_RANGE.start} and {PORT_RANGE.stop - 1}")
