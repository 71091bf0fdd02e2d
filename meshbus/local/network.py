"""Where everything of a home is: its families of IP, and the addresses of each. Pure.

Of several families the first one is preferred: the control plane is reached by it.
"""

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network
from typing import Literal, NamedTuple

from meshbus.local.addresses import InstanceAddresses
from meshbus.local.home import HomeState

IPV4: Literal["IPv4"] = "IPv4"
IPV6: Literal["IPv6"] = "IPv6"
LOOPBACK = {IPV4: "127.0.0.1", IPV6: "::1"}
FIRST_HOST = 4
"""Of a block: the first ones are the bridge's and spare."""


class HomeNetwork(NamedTuple):
    """Families and blocks of addresses of one home."""

    capture: str
    families: tuple[str, ...]
    """`IPv4`, `IPv6`; at least one."""
    blocks: dict[str, IPv4Network | IPv6Network]
    """By family."""

    @property
    def loopback(self) -> str:
        """Where the control plane is reached from this machine."""
        return LOOPBACK[self.families[0]]

    @property
    def loopbacks(self) -> tuple[str, ...]:
        """The loopback addresses of all families."""
        return tuple(LOOPBACK[family] for family in self.families)

    @property
    def proxies_reach(self) -> str:
        """Where Envoys reach the control plane."""
        return self.bridges[0] if self.capture == "netns" else self.loopback

    @property
    def bridges(self) -> tuple[str, ...]:
        """Addresses of the machine itself on the bridge, one of each family."""
        return tuple(self._each(1))

    @property
    def resolvers(self) -> tuple[str, ...]:
        """Where Envoys find names: further addresses of the machine on the bridge."""
        return tuple(self._each(2))

    def instance(self, index: int) -> InstanceAddresses:
        """Addresses of an instance: its own in its namespace, or two on loopback."""
        if self.capture == "netns":
            return InstanceAddresses(tuple(self._each(FIRST_HOST + index)), "")
        inbound = tuple(self._each(FIRST_HOST + 2 * index))
        return InstanceAddresses(inbound, next(self._each(FIRST_HOST + 2 * index + 1)))

    def prefix(self, address: str) -> int:
        """Length of the prefix of an address's block."""
        return self.blocks[IPV6 if ":" in address else IPV4].prefixlen

    def _each(self, offset: int) -> Iterator[str]:
        return (str(self.blocks[family].network_address + offset) for family in self.families)


def network_of(state: HomeState) -> HomeNetwork:
    """The network that was decided for a home."""
    blocks: dict[str, IPv4Network | IPv6Network] = {IPV4: IPv4Network(state.block)}
    if state.block6:
        blocks[IPV6] = IPv6Network(state.block6)
    return HomeNetwork(state.capture, tuple(state.families or blocks), blocks)


def host_port(host: str, port: int | str) -> str:
    """`HOST:PORT`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def of_family(addresses: Iterable[str], family: str) -> list[str]:
    """Those of one family."""
    return [address for address in addresses if (":" in address) == (family == IPV6)]
