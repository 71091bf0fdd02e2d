"""The families of IP that a proxy has: what it binds, resolves and connects from.

Source: Istio, "Install Istio in Dual-Stack mode"; pilot/pkg/networking/core of 1.31 (wildcards and
local addresses by the proxy's IP mode).
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from envoy.config.cluster.v3 import cluster_pb2

ANY_V4 = "0.0.0.0"  # noqa: S104 - what captured traffic is matched by, not what is exposed
ANY_V6 = "::"
FIRST_UNPRIVILEGED = 1024
"""Ports below it are bound with privileges alone."""


class Families(NamedTuple):
    """Which families there are: at least one."""

    v4: bool = True
    v6: bool = False

    @property
    def anywhere(self) -> tuple[str, ...]:
        """Every address of each family, the first one preferred."""
        return tuple([ANY_V4] * self.v4 + [ANY_V6] * self.v6)

    @property
    def localhost(self) -> str:
        """The loopback address."""
        return "127.0.0.1" if self.v4 else "::1"

    @property
    def sources(self) -> tuple[str, ...]:
        """Addresses that a sidecar calls its application from: capture leaves them alone."""
        return tuple(["127.0.0.6"] * self.v4 + ["::6"] * self.v6)

    @property
    def lookup(self) -> Any:
        """What names are resolved to; of both families both are tried."""
        if self.v4 and self.v6:
            return cluster_pb2.Cluster.ALL
        return cluster_pb2.Cluster.V6_ONLY if self.v6 else cluster_pb2.Cluster.V4_ONLY

    def has(self, where: str) -> bool:
        """An address, or a range of them, is of a family that is there."""
        return self.v6 if ":" in where else self.v4


IPV4 = Families()
"""Where nothing else is known."""


def families_of(addresses: Iterable[str]) -> Families:
    """Those of a proxy's addresses; IPv4 where none are known."""
    found = list(addresses)
    v6 = any(":" in address for address in found)
    return Families(v4=not v6 or any(":" not in address for address in found), v6=v6)
