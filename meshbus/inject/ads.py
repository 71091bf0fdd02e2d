"""How an Envoy reaches the xds-gateway: the parts of a bootstrap that pods, machines and processes
share. Pure.

The token and the roots are files that Envoy watches (SDS from a path), so both renew without a
restart; the credential injector puts the token into every stream.
Source: https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/credential_injector_filter
"""

from collections.abc import Mapping
from typing import Any

from msgspec import UNSET

from meshbus.api.mesh.proxy_config import MeshProxyConfig
from meshbus.compile.names import LISTENER_LIMITS, LOCAL_CLUSTER

TYPE = "type.googleapis.com/"
GATEWAY = "xds-gateway"
"""Name of the cluster that everything else comes from."""
ROOTS, TOKEN = "xds-roots", "xds-token"
CONNECTIONS = 50_000
"""That a proxy takes where nobody says how many."""
_IN_METADATA = "ISTIO_META_GLOBAL_DOWNSTREAM_MAX_CONNECTIONS"
_IN_RUNTIME = "overload.global_downstream_max_connections"


def over_ads(base: str, most: str) -> dict[str, Any]:
    """`dynamic_resources`: all by delta ADS, each stream opened anew after `base` to `most`."""
    source = {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"}
    waits = {"base_interval": base, "max_interval": most}
    gateway = {
        "cluster_name": GATEWAY,
        "skip_envoy_headers": True,
        "retry_policy": {"retry_back_off": waits},
    }
    return {
        "lds_config": source,
        "cds_config": source,
        "ads_config": {
            "api_type": "DELTA_GRPC",
            "transport_api_version": "V3",
            "set_node_on_first_message_only": True,
            "grpc_services": [{"envoy_grpc": gateway}],
        },
    }


def zones_of_own_kind() -> dict[str, Any]:
    """`cluster_manager`: Envoy prefers endpoints of its zone as far as it knows in which zones its
    like are.

    Source: https://www.envoyproxy.io/docs/envoy/latest/faq/configuration/zone_aware_routing
    """
    return {"local_cluster_name": LOCAL_CLUSTER}


def local_cluster() -> dict[str, Any]:
    """The instances of the proxy's own workload, which nobody calls: the gateway says that there
    are none as long as no rule speaks of zones. Envoy takes it from the bootstrap alone."""
    source = {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"}
    return {
        "name": LOCAL_CLUSTER,
        "type": "EDS",
        "connect_timeout": "1s",
        "eds_cluster_config": {"eds_config": source},
    }


def runtime_layer() -> dict[str, Any]:
    """The layer of `layered_runtime` that every proxy has."""
    return {"name": "static", "static_layer": {"envoy.deprecated_features:warn": False}}


def listener_limits_layer() -> dict[str, Any]:
    """The layer of a proxy whose listeners have limits: they come when the listeners do."""
    source = {"ads": {}, "resource_api_version": "V3"}
    return {"name": LISTENER_LIMITS, "rtds_layer": {"name": LISTENER_LIMITS, "rtds_config": source}}


def limits_listeners(proxy: MeshProxyConfig) -> bool:
    """Its listeners have limits."""
    said = proxy.connection_settings
    return said is not UNSET and said.listener_connection_limit is not None


def connections_of(proxy: MeshProxyConfig) -> int | None:
    """How many connections a proxy takes, if it is said: in `connectionSettings`, or in the ways
    that were there before.

    Source: Istio,
    https://istio.io/latest/docs/ops/configuration/traffic-management/edge-proxy/
    """
    said = proxy.connection_settings
    if said is not UNSET and said.global_downstream_connection_limit is not None:
        return said.global_downstream_connection_limit
    for text in (
        proxy.proxy_metadata.get(_IN_METADATA, ""),
        proxy.runtime_values.get(_IN_RUNTIME, ""),
    ):
        if text.isascii() and text.isdigit() and 0 < int(text) < 2**31:
            return int(text)
    return None


def connection_limit(most: int | None = None) -> dict[str, Any]:
    """`overload_manager`: how many connections a proxy takes."""
    limit = f"{TYPE}envoy.extensions.resource_monitors.downstream_connections.v3"
    monitor = {
        "name": "envoy.resource_monitors.global_downstream_max_connections",
        "typed_config": {
            "@type": f"{limit}.DownstreamConnectionsConfig",
            "max_active_downstream_connections": CONNECTIONS if most is None else most,
        },
    }
    return {"resource_monitors": [monitor]}


def gateway_cluster(
    address: tuple[str, int],
    name: str,
    *,
    roots: Mapping[str, Any],
    token_sds: str,
    discovery: Mapping[str, Any],
) -> dict[str, Any]:
    """The cluster of the xds-gateway: TLS 1.3, its name as SNI, the token in every stream.

    Args:
        address: Host and port.
        name: What it is asked for as.
        roots: The validation of a CommonTlsContext: what its certificate has to prove.
        token_sds: Path of the SDS file of the token.
        discovery: How `address` is looked up and connected to: fields of a Cluster.
    """
    host, port = address
    endpoint = {"address": {"socket_address": {"address": host, "port_value": port}}}
    http = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {
        "name": GATEWAY,
        **discovery,
        "load_assignment": {
            "cluster_name": GATEWAY,
            "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}],
        },
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": f"{TYPE}envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "sni": name,
                "common_tls_context": {
                    # Without this an upstream TLS context ends at 1.2.
                    "tls_params": {
                        "tls_minimum_protocol_version": "TLSv1_3",
                        "tls_maximum_protocol_version": "TLSv1_3",
                    },
                    **roots,
                },
            },
        },
        "typed_extension_protocol_options": {
            http: {
                "@type": TYPE + http,
                "explicit_http_config": {
                    "http2_protocol_options": {
                        "connection_keepalive": {"interval": "30s", "timeout": "5s"}
                    }
                },
                "http_filters": _token_filters(token_sds),
            }
        },
    }


def _token_filters(token_sds: str) -> list[dict[str, Any]]:
    filters = f"{TYPE}envoy.extensions.filters.http"
    credentials = f"{TYPE}envoy.extensions.http.injected_credentials"
    token = {"name": TOKEN, "sds_config": from_file(token_sds)}
    return [
        {
            "name": "envoy.filters.http.credential_injector",
            "typed_config": {
                "@type": f"{filters}.credential_injector.v3.CredentialInjector",
                "overwrite": True,
                "credential": {
                    "name": "envoy.http.injected_credentials.generic",
                    "typed_config": {
                        "@type": f"{credentials}.generic.v3.Generic",
                        "header": "authorization",
                        "header_value_prefix": "Bearer ",
                        "credential": token,
                    },
                },
            },
        },
        {
            "name": "envoy.filters.http.upstream_codec",
            "typed_config": {"@type": f"{filters}.upstream_codec.v3.UpstreamCodec"},
        },
    ]


def from_file(path: str) -> dict[str, Any]:
    """A ConfigSource that reads and watches a file."""
    return {"path_config_source": {"path": path}, "resource_api_version": "V3"}


def roots_secret(file: str, folder: str, names: tuple[str, ...] = ()) -> dict[str, Any]:
    """The SDS file of the roots.

    Args:
        file: Path of the roots, PEM.
        folder: What Envoy watches to see the file replaced.
        names: DNS names of which a certificate has to prove one; none: any.
    """
    matchers = [{"san_type": "DNS", "matcher": {"exact": name}} for name in names]
    return _secret(
        ROOTS,
        "validation_context",
        {
            "trusted_ca": {"filename": file},
            "watched_directory": {"path": folder},
            **({"match_typed_subject_alt_names": matchers} if matchers else {}),
        },
    )


def token_secret(file: str, folder: str) -> dict[str, Any]:
    """The SDS file of the token in `file`; Envoy watches `folder` to see it replaced."""
    value = {"filename": file, "watched_directory": {"path": folder}}
    return _secret(TOKEN, "generic_secret", {"secret": value})


def _secret(name: str, kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
    secret = f"{TYPE}envoy.extensions.transport_sockets.tls.v3.Secret"
    return {"resources": [{"@type": secret, "name": name, kind: content}]}
