"""What an Envoy is sent when a request needs it, instead of before: virtual hosts and clusters.

Chosen by `proxyMetadata`, of the mesh config's `defaultConfig` or of a proxy's own annotation
`proxy.istio.io/config`:

- `MESHBUS_VIRTUAL_HOSTS: on-demand`: route configurations come without virtual hosts (VHDS);
- `MESHBUS_CLUSTERS: on-demand`: of the clusters of services come those that listeners and filters
  name; the others, and their endpoints, when a route leads to them.

Source: https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/on_demand_updates_filter
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from envoy.extensions.filters.http.on_demand.v3 import on_demand_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)

from meshbus.compile.own_proxy_config import own_fields
from meshbus.compile.values import ads, any_of, seconds
from meshbus.compile.written import fields

VIRTUAL_HOSTS = "MESHBUS_VIRTUAL_HOSTS"
CLUSTERS = "MESHBUS_CLUSTERS"
ON_DEMAND = "on-demand"
CLUSTER_TIMEOUT_S = 15
"""How long a request waits for a cluster."""


class OnDemand(NamedTuple):
    """What a proxy asks for."""

    hosts: bool = False
    clusters: bool = False


EVERYTHING_BEFORE = OnDemand()
"""It asks for nothing: what it may need is sent."""


def on_demand_of(settings: Mapping[str, Any], own: str = "") -> OnDemand:
    """What a proxy asks for. `settings`: of `defaultConfig`; `own`: its annotation, which says of
    each name what holds."""
    said: dict[str, Any] = {}
    for config in (settings, own_fields(own)):
        said.update(fields(config.get("proxyMetadata")))
    return OnDemand(said.get(VIRTUAL_HOSTS) == ON_DEMAND, said.get(CLUSTERS) == ON_DEMAND)


def on_demand_filter(wanted: OnDemand) -> list[hcm_pb2.HttpFilter]:
    """The HTTP filter that asks, before every filter that looks at the route."""
    if wanted == EVERYTHING_BEFORE:
        return []
    config = on_demand_pb2.OnDemand()
    if wanted.clusters:
        config.odcds.source.CopyFrom(ads())
        config.odcds.timeout.CopyFrom(seconds(CLUSTER_TIMEOUT_S))
    name = "envoy.filters.http.on_demand"
    return [hcm_pb2.HttpFilter(name=name, typed_config=any_of(config))]
