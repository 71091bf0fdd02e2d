"""Filters that EnvoyFilters of Istio 1.4 insert: names of then, and what type configures them.

Then a filter was found by its name and its configuration was a Struct; today it is found by the
type of its configuration. Pure.
Source: https://www.envoyproxy.io/docs/envoy/v1.12.2/api-v2/config/filter/filter
"""

from collections.abc import Mapping
from typing import Any

from meshbus.compile.resources import TYPE_PREFIX

_HTTP = {
    "adaptive_concurrency": "AdaptiveConcurrency",
    "buffer": "Buffer",
    "cors": "Cors",
    "csrf": "CsrfPolicy",
    "dynamic_forward_proxy": "FilterConfig",
    "ext_authz": "ExtAuthz",
    "fault": "HTTPFault",
    "grpc_http1_bridge": "Config",
    "grpc_http1_reverse_bridge": "FilterConfig",
    "grpc_json_transcoder": "GrpcJsonTranscoder",
    "grpc_stats": "FilterConfig",
    "grpc_web": "GrpcWeb",
    "header_to_metadata": "Config",
    "health_check": "HealthCheck",
    "ip_tagging": "IPTagging",
    "jwt_authn": "JwtAuthentication",
    "lua": "Lua",
    "original_src": "OriginalSrc",
    "ratelimit": "RateLimit",
    "rbac": "RBAC",
    "router": "Router",
    "tap": "Tap",
}
_NETWORK = {
    "dubbo_proxy": "DubboProxy",
    "echo": "Echo",
    "ext_authz": "ExtAuthz",
    "http_connection_manager": "HttpConnectionManager",
    "mongo_proxy": "MongoProxy",
    "ratelimit": "RateLimit",
    "rbac": "RBAC",
    "redis_proxy": "RedisProxy",
    "sni_cluster": "SniCluster",
    "tcp_proxy": "TcpProxy",
    "thrift_proxy": "ThriftProxy",
    "zookeeper_proxy": "ZooKeeperProxy",
}
_TYPES = {"http": _HTTP, "network": _NETWORK}
_RENAMED = {"rate_limit": "ratelimit"}


def name_of_today(name: str) -> str:
    """What a filter is called today; a name of 1.4 that stands for two filters, or none, stays."""
    prefix, _, short = name.rpartition(".")
    if prefix != "envoy":
        return name
    short = _RENAMED.get(short, short)
    layers = [layer for layer, types in _TYPES.items() if short in types]
    return f"envoy.filters.{layers[0]}.{short}" if len(layers) == 1 else name


def filter_of(name: str, configuration: Mapping[str, Any], *, http: bool) -> dict[str, Any]:
    """The filter of today, as proto JSON.

    Args:
        name: `filterName`: `envoy.lua`, or `envoy.filters.http.lua`, as later.
        configuration: `filterConfig`; one that says its type is taken as it is, and so is one of a
            filter that is not known here.
    """
    if "@type" in configuration:
        return {"name": name, "typedConfig": dict(configuration)}
    layer = "http" if http else "network"
    types = _TYPES[layer]
    prefix, _, short = name.rpartition(".")
    short = _RENAMED.get(short, short)
    if prefix not in ("envoy", f"envoy.filters.{layer}") or short not in types:
        return {"name": name, "typedConfig": dict(configuration)}
    kind = f"envoy.extensions.filters.{layer}.{short}.v3.{types[short]}"
    typed = {"@type": f"{TYPE_PREFIX}{kind}", **configuration}
    return {"name": f"envoy.filters.{layer}.{short}", "typedConfig": typed}
