"""What an Envoy starts with: who it is and how it reaches the xds-gateway. Everything else it is
sent. Pure: values in, files out.

The token travels in a file that Envoy watches (SDS from a path, header set by the credential
injector), so that a renewed token needs no restart; the roots likewise.
Source: https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/credential_injector_filter
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meshbus.local.proxy_start import NO_START, ProxyStart

BOOTSTRAP_FILE = "bootstrap.json"
TOKEN_FILE = "token"  # noqa: S105 - the name of a file
TOKEN_SDS_FILE = "token-sds.json"  # noqa: S105
ROOTS_FILE = "roots.pem"
ROOTS_SDS_FILE = "roots-sds.json"
ADMIN_SOCKET = "admin.sock"
_TYPE = "type.googleapis.com/"


@dataclass(frozen=True)
class ProxyIdentity:
    """What a proxy says of itself. The gateway believes its token, not this."""

    type: str
    """`sidecar` or `router`."""
    name: str
    """Instance name."""
    namespace: str
    workload: str
    service_account: str
    addresses: Sequence[str]
    labels: Mapping[str, str]
    cluster: str
    """Name of the cluster in the model."""
    locality: str = ""
    """`region/zone/subzone`."""

    @property
    def node_id(self) -> str:
        """`TYPE~ADDRESS~INSTANCE.NAMESPACE~DNS DOMAIN`, as Istio's."""
        domain = f"{self.namespace}.svc.cluster.local"
        return f"{self.type}~{self.addresses[0]}~{self.name}.{self.namespace}~{domain}"


def envoy_bootstrap(
    identity: ProxyIdentity,
    gateway: tuple[str, int],
    gateway_name: str,
    folder: str,
    start: ProxyStart = NO_START,
) -> dict[str, Any]:
    """The bootstrap of a proxy.

    Args:
        gateway: Address and port of the xds-gateway.
        gateway_name: DNS name that its certificate proves, `xds-gateway.istio-system.svc`.
        folder: Where Envoy finds its files, as an absolute path it can see.
        start: What ProxyConfig says.
    """
    region, zone, sub_zone = [*identity.locality.split("/"), "", "", ""][:3]
    return {
        "node": {
            "id": identity.node_id,
            "cluster": f"{identity.workload}.{identity.namespace}",
            "locality": {"region": region, "zone": zone, "sub_zone": sub_zone},
            "metadata": {
                **start.metadata,
                "NAME": identity.name,
                "NAMESPACE": identity.namespace,
                "SERVICE_ACCOUNT": identity.service_account,
                "WORKLOAD_NAME": identity.workload,
                "CLUSTER_ID": identity.cluster,
                "INSTANCE_IPS": ",".join(identity.addresses),
                "LABELS": dict(identity.labels),
            },
        },
        # A socket in the private folder: on a port any user of the machine could stop the proxy.
        "admin": {
            "address": {"pipe": {"path": ADMIN_SOCKET, "mode": 0o600}},
            "ignore_global_conn_limit": True,
        },
        "dynamic_resources": {
            "lds_config": _over_ads(),
            "cds_config": _over_ads(),
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [
                    {
                        "envoy_grpc": {
                            "cluster_name": "xds-gateway",
                            "skip_envoy_headers": True,
                            "retry_policy": {
                                "retry_back_off": {"base_interval": "0.1s", "max_interval": "5s"}
                            },
                        }
                    }
                ],
            },
        },
        "static_resources": {"clusters": [_gateway_cluster(gateway, gateway_name, folder)]},
        "layered_runtime": {
            "layers": [
                {
                    "name": "static",
                    "static_layer": {"envoy.deprecated_features:warn": False},
                },
                *([{"name": "own", "static_layer": dict(start.runtime)}] if start.runtime else []),
            ]
        },
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": f"{_TYPE}envoy.extensions.resource_monitors."
                        "downstream_connections.v3.DownstreamConnectionsConfig",
                        "max_active_downstream_connections": 50000,
                    },
                }
            ]
        },
        **({"stats_config": dict(start.stats)} if start.stats else {}),
    }


def _over_ads() -> dict[str, Any]:
    return {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"}


def _from_file(path: str) -> dict[str, Any]:
    return {"path_config_source": {"path": path}, "resource_api_version": "V3"}


def _gateway_cluster(gateway: tuple[str, int], gateway_name: str, folder: str) -> dict[str, Any]:
    host, port = gateway
    tls = f"{_TYPE}envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
    http = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    filters = f"{_TYPE}envoy.extensions.filters.http"
    return {
        "name": "xds-gateway",
        "type": "STATIC",
        "connect_timeout": "2s",
        "load_assignment": {
            "cluster_name": "xds-gateway",
            "endpoints": [
                {
                    "lb_endpoints": [
                        {
                            "endpoint": {
                                "address": {"socket_address": {"address": host, "port_value": port}}
                            }
                        }
                    ]
                }
            ],
        },
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": tls,
                "sni": gateway_name,
                "common_tls_context": {
                    # Without this an upstream TLS context ends at 1.2.
                    "tls_params": {
                        "tls_minimum_protocol_version": "TLSv1_3",
                        "tls_maximum_protocol_version": "TLSv1_3",
                    },
                    "validation_context_sds_secret_config": {
                        "name": "xds-roots",
                        "sds_config": _from_file(f"{folder}/{ROOTS_SDS_FILE}"),
                    },
                },
            },
        },
        "typed_extension_protocol_options": {
            http: {
                "@type": _TYPE + http,
                "explicit_http_config": {
                    "http2_protocol_options": {
                        "connection_keepalive": {"interval": "30s", "timeout": "5s"}
                    }
                },
                "http_filters": [
                    {
                        "name": "envoy.filters.http.credential_injector",
                        "typed_config": {
                            "@type": f"{filters}.credential_injector.v3.CredentialInjector",
                            "overwrite": True,
                            "credential": {
                                "name": "envoy.http.injected_credentials.generic",
                                "typed_config": {
                                    "@type": f"{_TYPE}envoy.extensions.http."
                                    "injected_credentials.generic.v3.Generic",
                                    "header": "authorization",
                                    "header_value_prefix": "Bearer ",
                                    "credential": {
                                        "name": "xds-token",
                                        "sds_config": _from_file(f"{folder}/{TOKEN_SDS_FILE}"),
                                    },
                                },
                            },
                        },
                    },
                    {
                        "name": "envoy.filters.http.upstream_codec",
                        "typed_config": {"@type": f"{filters}.upstream_codec.v3.UpstreamCodec"},
                    },
                ],
            }
        },
    }


def token_sds(folder: str) -> dict[str, Any]:
    """The SDS file that names the token file."""
    secret = {
        "@type": f"{_TYPE}envoy.extensions.transport_sockets.tls.v3.Secret",
        "name": "xds-token",
        "generic_secret": {
            "secret": {
                "filename": f"{folder}/{TOKEN_FILE}",
                "watched_directory": {"path": folder},
            }
        },
    }
    return {"resources": [secret]}


def roots_sds(folder: str, gateway_name: str) -> dict[str, Any]:
    """The SDS file that names the roots and pins the gateway's name."""
    secret = {
        "@type": f"{_TYPE}envoy.extensions.transport_sockets.tls.v3.Secret",
        "name": "xds-roots",
        "validation_context": {
            "trusted_ca": {"filename": f"{folder}/{ROOTS_FILE}"},
            "watched_directory": {"path": folder},
            "match_typed_subject_alt_names": [
                {"san_type": "DNS", "matcher": {"exact": gateway_name}}
            ],
        },
    }
    return {"resources": [secret]}


def forward_bootstrap(forwards: Mapping[int, tuple[str, int]]) -> dict[str, Any]:
    """The bootstrap of the Envoy that takes `localhost:PORT` to gateways.

    Args:
        forwards: (address, port) of a gateway by local port.
    """
    return {
        "node": {"id": "forwards", "cluster": "forwards"},
        "admin": {"address": {"pipe": {"path": ADMIN_SOCKET, "mode": 0o600}}},
        "static_resources": {
            "listeners": [
                {
                    "name": f"forward_{local}",
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": local}},
                    "filter_chains": [
                        {
                            "filters": [
                                {
                                    "name": "envoy.filters.network.tcp_proxy",
                                    "typed_config": {
                                        "@type": f"{_TYPE}envoy.extensions.filters.network."
                                        "tcp_proxy.v3.TcpProxy",
                                        "stat_prefix": f"forward_{local}",
                                        "cluster": f"forward_{local}",
                                    },
                                }
                            ]
                        }
                    ],
                }
                for local in sorted(forwards)
            ],
            "clusters": [
                {
                    "name": f"forward_{local}",
                    "type": "STATIC",
                    "connect_timeout": "2s",
                    "load_assignment": {
                        "cluster_name": f"forward_{local}",
                        "endpoints": [
                            {
                                "lb_endpoints": [
                                    {
                                        "endpoint": {
                                            "address": {
                                                "socket_address": {
                                                    "address": address,
                                                    "port_value": port,
                                                }
                                            }
                                        }
                                    }
                                ]
                            }
                        ],
                    },
                }
                for local, (address, port) in sorted(forwards.items())
            ],
        },
    }


def render(document: Mapping[str, Any]) -> bytes:
    """A document as Envoy reads it."""
    return json.dumps(document, indent=1).encode() + b"\n"


def envoy_argv(binary: str, *, concurrency: int = 1, log_level: str = "warning") -> list[str]:
    """The command line of an Envoy in the folder of its bootstrap. Envoys of one machine share no
    memory (`--disable-hot-restart`), so they need no base id.

    Args:
        concurrency: Worker threads; 0: one per CPU.
    """
    return [
        binary,
        "--config-path",
        BOOTSTRAP_FILE,
        "--disable-hot-restart",
        *(["--concurrency", str(concurrency)] if concurrency else []),
        "--log-level",
        log_level,
        "--drain-time-s",
        "5",
        "--drain-strategy",
        "immediate",
    ]
