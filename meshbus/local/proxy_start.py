"""What an Envoy of this machine starts with of ProxyConfig: the mesh's `defaultConfig`, ProxyConfig
objects, and the annotation of its Workload. Pure.

What comes by xDS (headers, topology) is not here. A change counts when a proxy starts the next
time, as on Kubernetes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET

from meshbus.api.mesh.proxy_config import MeshProxyConfig
from meshbus.compile.own_proxy_config import own_fields
from meshbus.compile.settings import settings_of
from meshbus.compile.written import fields
from meshbus.inject.ads import connections_of, limits_listeners
from meshbus.inject.hooks import drain_seconds, waits_until_idle
from meshbus.inject.proxy_configs import proxy_wishes
from meshbus.inject.reports import NO_REPORTS, Reporter, Reports, file_flush_args, reports_of
from meshbus.local.capture import STANDARD_PORTS, CapturePorts
from meshbus.local.desired import InstanceSpec
from meshbus.model.rows import ConfigObject

_METADATA = "ISTIO_META_"
_IDLE_DRAIN_S = 30.0
"""How long an Envoy waits at most until nobody is connected, where nothing else is said: as long as
Kubernetes gives a pod."""


class ProxyStart(NamedTuple):
    """What one Envoy starts with."""

    concurrency: int = 1
    """Worker threads; 0: one per CPU."""
    environment: Mapping[str, str] = {}
    metadata: Mapping[str, str] = {}
    """Of its node: from variables `ISTIO_META_NAME`."""
    runtime: Mapping[str, str] = {}
    """Settings of Envoy's runtime."""
    connections: int | None = None
    """How many connections it takes; None: as all do."""
    listeners_limited: bool = False
    """It asks how many each of its listeners takes."""
    reports: Reports = NO_REPORTS
    file_flush: Sequence[str] = ()
    """Arguments that say when lines of log files are written."""
    shortest_drain_s: float = 0.0
    """How long it goes on at least when it is to end."""
    longest_drain_s: float = 5.0
    """How long requests may go on at most when it is to end; 5 s as in Istio."""
    until_idle: bool = False
    """It goes on until the last connection has ended, not the last request alone."""
    config_file: str = ""
    """A bootstrap of one's own that is used in place of that of the mesh."""
    capture: CapturePorts = STANDARD_PORTS
    """Where it takes captured traffic in: the mesh says so when the instance is made."""


NO_START = ProxyStart()
"""Where nothing is said."""


def proxy_start(
    spec: InstanceSpec,
    mesh: Mapping[str, Any],
    objects: Iterable[ConfigObject],
    root: str,
    relay: str = "127.0.0.1",
) -> ProxyStart:
    """What the Envoy of an instance starts with.

    Args:
        mesh: The mesh config.
        objects: ProxyConfig objects.
        root: The namespace whose objects are for the whole mesh.
        relay: An address of the instance alone.
    """
    wishes = proxy_wishes(objects, spec.labels, spec.namespace, root)
    given = wishes.over(fields(mesh.get("defaultConfig")), own_fields(spec.proxy_config))
    settings = settings_of(dict(mesh))
    ports = CapturePorts(settings.outbound_port, settings.inbound_port)
    return start_of(given, Reporter(relay, spec.namespace, in_pod=False))._replace(capture=ports)


def start_of(given: Mapping[str, Any], reporter: Reporter) -> ProxyStart:
    """What an Envoy starts with, by the fields of ProxyConfig that count for it."""
    try:
        proxy = msgspec.convert(given, MeshProxyConfig, strict=False)
    except msgspec.ValidationError:  # refused where it was written; nothing stops for it here
        return NO_START
    variables = proxy.proxy_metadata
    idle = waits_until_idle(proxy)
    shortest = drain_seconds(proxy, idle=True) if idle else 0
    said = proxy.termination_drain_duration is not UNSET
    longest = drain_seconds(proxy, idle=False) if said or not idle else _IDLE_DRAIN_S
    return ProxyStart(
        concurrency=1 if proxy.concurrency is None else max(0, proxy.concurrency),
        environment=variables,
        metadata={
            name.removeprefix(_METADATA): value
            for name, value in variables.items()
            if name.startswith(_METADATA)
        },
        runtime=proxy.runtime_values,
        connections=connections_of(proxy),
        listeners_limited=limits_listeners(proxy),
        reports=reports_of({}, proxy, reporter),
        file_flush=file_flush_args(proxy),
        shortest_drain_s=shortest,
        longest_drain_s=max(shortest, longest),
        until_idle=idle,
        config_file=proxy.custom_config_file,
    )
