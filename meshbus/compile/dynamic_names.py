"""Hosts that are resolved as requests and connections name them: Envoy's dynamic forward proxy.

ServiceEntries of resolution DYNAMIC_DNS, and what the HTTP proxy of a sidecar passes on.
Source: https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/dynamic_forward_proxy_filter
"""

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_components_pb2 as lc_pb2
from envoy.extensions.clusters.dynamic_forward_proxy.v3 import cluster_pb2 as dfp_pb2
from envoy.extensions.common.dynamic_forward_proxy.v3 import dns_cache_pb2
from envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3 import (
    sni_dynamic_forward_proxy_pb2 as sni_pb2,
)

from meshbus.compile.engine import Reader
from meshbus.compile.families import Families
from meshbus.compile.scope import visible_services
from meshbus.compile.values import any_of, uint32
from meshbus.compile.viewers import Viewer

DYNAMIC_DNS = "DYNAMIC_DNS"
_CACHE = "meshbus"
_MOST_HOSTS = 1024


def names_cache(families: Families) -> dns_cache_pb2.DnsCacheConfig:
    """The cache of a proxy: clusters and filters of one name must have the same."""
    return dns_cache_pb2.DnsCacheConfig(
        name=_CACHE,
        dns_lookup_family=families.lookup,
        max_hosts=uint32(_MOST_HOSTS),
    )


def resolve_as_named(cluster: cluster_pb2.Cluster, families: Families) -> None:
    """The cluster goes to whatever host it is asked for. Its TLS, if it has any, checks that name,
    unless a rule names another; Envoy alone would not take a cluster without TLS."""
    cluster.ClearField("type")
    cluster.cluster_type.name = "envoy.clusters.dynamic_forward_proxy"
    cluster.cluster_type.typed_config.CopyFrom(
        any_of(
            dfp_pb2.ClusterConfig(
                dns_cache_config=names_cache(families), allow_insecure_cluster_options=True
            )
        )
    )
    cluster.lb_policy = cluster_pb2.Cluster.CLUSTER_PROVIDED


def resolve_sni(chain: lc_pb2.FilterChain, port: int, families: Families) -> None:
    """Connections of a chain go to the host that their SNI names, at a port."""
    found = lc_pb2.Filter(
        name="envoy.filters.network.sni_dynamic_forward_proxy",
        typed_config=any_of(
            sni_pb2.FilterConfig(dns_cache_config=names_cache(families), port_value=port)
        ),
    )
    chain.filters.insert(len(chain.filters) - 1, found)


def named_as_met(reader: Reader, viewer: Viewer) -> frozenset[str]:
    """Node: hosts of resolution DYNAMIC_DNS that a viewer sees."""
    return frozenset(
        host
        for host, ref in reader.node(visible_services, viewer).items()
        if ref.row.resolution == DYNAMIC_DNS
    )
