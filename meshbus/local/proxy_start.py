"""What an Envoy of this machine starts with of ProxyConfig: the mesh's `defaultConfig`, ProxyConfig
objects, and the annotation of its Workload. Pure.

What comes by xDS (headers, topology) is not here. A change counts when a proxy starts the next
time, as on Kubernetes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from meshbus.api.mesh.proxy_config import MeshProxyConfig
from meshbus.api.yaml_text import NotReadableError, read_yaml
from meshbus.compile.settings import settings_of
from meshbus.compile.written import fields
from meshbus.inject.proxy_configs import proxy_wishes
from meshbus.inject.reports import NO_REPORTS, Reporter, Reports, file_flush_args, reports_of
from meshbus.local.capture import STANDARD_PORTS, CapturePorts
from meshbus.local.desired import InstanceSpec
from meshbus.model.rows import ConfigObject

_METADATA = "ISTIO_META_"


class ProxyStart(NamedTuple):
    """What one Envoy starts with."""

    concurrency: int = 1
    """Worker threads; 0: one per CPU."""
    environment: Mapping[str, str] = {}
    metadata: Mapping[str, str] = {}
    """Of its node: from variables `ISTIO_META_NAME`."""
    runtime: Mapping[str, str] = {}
    """Settings of Envoy's runtime."""
    reports: Reports = NO_REPORTS
    file_flush: Sequence[str] = ()
    """Arguments that say when lines of log files are written."""
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
    given = wishes.over(fields(mesh.get("defaultConfig")), _own(spec.proxy_config))
    settings = settings_of(dict(mesh))
    ports = CapturePorts(settings.outbound_port, settings.inbound_port)
    try:
        proxy = msgspec.convert(given, MeshProxyConfig, strict=False)
    except msgspec.ValidationError:  # refused where it was written; nothing stops for it here
        return NO_START._replace(capture=ports)
    variables = proxy.proxy_metadata
    return ProxyStart(
        concurrency=1 if proxy.concurrency is None else max(0, proxy.concurrency),
        environment=variables,
        metadata={
            name.removeprefix(_METADATA): value
            for name, value in variables.items()
            if name.startswith(_METADATA)
        },
        runtime=proxy.runtime_values,
        reports=reports_of({}, proxy, Reporter(relay, spec.namespace, in_pod=False)),
        file_flush=file_flush_args(proxy),
        capture=ports,
    )


def _own(text: str) -> dict[str, Any]:
    try:
        held = read_yaml(text) if text else None
    except NotReadableError:
        return {}
    return held if isinstance(held, dict) else {}
