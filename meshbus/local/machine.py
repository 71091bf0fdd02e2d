"""What all instances of a home share."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from meshbus.bus.interface import Bus
from meshbus.local.desired import InstanceSpec
from meshbus.local.home import Home, HomeState
from meshbus.local.processes import Records
from meshbus.local.proxy_start import NO_START, ProxyStart
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject
from meshbus.model.status import InstanceReport


@dataclass
class Machine:
    """What all instances of a home share."""

    home: Home
    state: HomeState
    records: Records
    bus: Bus
    envoy: str
    cluster: str
    gateway: tuple[str, int]
    """Address and port of the xds-gateway as the Envoys reach it."""
    gateway_name: str
    report: Callable[[InstanceReport], None]
    changed: Callable[[], None]
    """Something that `up` shows has changed."""
    roots: str = ""
    """Root certificates of the mesh in PEM; empty: not known yet."""
    hosts: Callable[[str], str] = lambda namespace: ""
    """The hosts file for workloads of a namespace."""
    proxy_start: Callable[[InstanceSpec, str], ProxyStart] = lambda spec, relay: NO_START
    """What the Envoy of an instance starts with now, that has an address for itself."""
    envoy_filters: Callable[[], list[tuple[Key, ConfigObject]]] = list
    """EnvoyFilters in force: they may patch bootstraps."""
    root_namespace: str = "istio-system"
    roots_known: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def in_namespaces(self) -> bool:
        """Capture mode netns."""
        return self.state.capture == "netns"
