"""Whose eyes a part of the configuration is made for.

A `Viewer` is a namespace and, under a Sidecar, the hosts that each of its egress listeners imports.
"""

from typing import NamedTuple

from meshbus.compile.values import UNIX

HTTP_PROXY = "HTTP_PROXY"
ANY = "*"

Import = tuple[str, str]
"""(namespace or `*`, host, wildcard or `*`) of a Sidecar's egress hosts."""


class Egress(NamedTuple):
    """One egress listener of a Sidecar."""

    port: int
    """0: every port that no other listener of the Sidecar is for."""
    protocol: str
    bind: str
    captured: bool
    """Traffic is redirected to it; else it binds its port."""
    hosts: tuple[Import, ...]

    @property
    def is_socket(self) -> bool:
        """It binds a Unix socket: its hosts are called there, at all their ports, and nowhere
        else."""
        return self.bind.startswith(UNIX)

    @property
    def is_everything(self) -> bool:
        """As without a Sidecar: all that is exported, at every port, by redirection."""
        plain = self.captured and not self.port and not self.bind
        return plain and self.hosts == ((ANY, ANY),)

    @property
    def only_port(self) -> int:
        """The port without which a service is not imported; 0: a service is, whatever its ports."""
        return 0 if self.protocol == HTTP_PROXY or self.is_socket else self.port


class Viewer(NamedTuple):
    """Whose eyes: proxies of equal viewers see the same."""

    namespace: str
    egress: tuple[Egress, ...] = ()
    """Of the Sidecar in force; empty: everything that is exported to the namespace."""


NOBODY = ""
"""Namespace of a viewer that sees what everybody sees."""


def alone(namespace: str, egress: Egress) -> Viewer:
    """Who imports the hosts of one egress listener, and nothing else."""
    if egress.hosts == ((ANY, ANY),):
        return Viewer(namespace)
    return Viewer(namespace, (Egress(0, "", "", True, egress.hosts),))
