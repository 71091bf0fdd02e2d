"""What the Envoy of a pod starts with, in three parts: files of a ConfigMap that are the same for
every pod (`bootstrap_files`), a document of its own on its command line (`own_bootstrap`), and
`$(NAME)` in that document, which the kubelet replaces with what the pod turns out to be.

Nothing but Envoy reads them. The token and the roots are files that Envoy watches, so both renew
without a restart. Sources: https://kubernetes.io/docs/reference/kubernetes-api/ (Container, args)
and https://www.envoyproxy.io/docs/envoy/latest/operations/cli (`--config-yaml` goes over `-c`).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from meshbus.inject.status_listener import Prober, Scrape, status_resources

TYPE = "type.googleapis.com/"
FOLDER = "/etc/istio/proxy"
"""Where the ConfigMap is mounted."""
ROOTS_FOLDER = "/var/run/secrets/istio"
ROOTS_FILE = "root-cert.pem"
TOKEN_FOLDER = "/var/run/secrets/tokens"  # noqa: S105 - a path
TOKEN_FILE = "istio-token"  # noqa: S105
BOOTSTRAP_FILE, ROOTS_SDS_FILE, TOKEN_SDS_FILE = (
    "bootstrap.json",
    "roots-sds.json",
    "token-sds.json",
)


def bootstrap_files(folder: str = FOLDER) -> dict[str, str]:
    """The files of the ConfigMap that every namespace with sidecars has.

    Args:
        folder: Where the proxy sees them.
    """
    documents = {
        BOOTSTRAP_FILE: _shared_bootstrap(),
        ROOTS_SDS_FILE: _secret(
            "xds-roots",
            "validation_context",
            {
                "trusted_ca": {"filename": f"{ROOTS_FOLDER}/{ROOTS_FILE}"},
                "watched_directory": {"path": ROOTS_FOLDER},
            },
        ),
        TOKEN_SDS_FILE: _secret(
            "xds-token",
            "generic_secret",
            {
                "secret": {
                    "filename": f"{TOKEN_FOLDER}/{TOKEN_FILE}",
                    "watched_directory": {"path": TOKEN_FOLDER},
                }
            },
        ),
    }
    return {name: json.dumps(document, indent=1) + "\n" for name, document in documents.items()}


def _secret(name: str, kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
    secret = f"{TYPE}envoy.extensions.transport_sockets.tls.v3.Secret"
    return {"resources": [{"@type": secret, "name": name, kind: content}]}


def _shared_bootstrap() -> dict[str, Any]:
    over_ads = {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"}
    return {
        "dynamic_resources": {
            "lds_config": over_ads,
            "cds_config": over_ads,
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
                                "retry_back_off": {"base_interval": "0.5s", "max_interval": "15s"}
                            },
                        }
                    }
                ],
            },
        },
        "layered_runtime": {
            "layers": [
                {"name": "static", "static_layer": {"envoy.deprecated_features:warn": False}}
            ]
        },
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": f"{TYPE}envoy.extensions.resource_monitors."
                        "downstream_connections.v3.DownstreamConnectionsConfig",
                        "max_active_downstream_connections": 50000,
                    },
                }
            ]
        },
    }


@dataclass(frozen=True)
class OwnBootstrap:
    """What one proxy's Envoy is told on its command line."""

    type: str
    """`sidecar` or `router`."""
    cluster: str
    """Name of its cluster, in traces and statistics."""
    gateway: tuple[str, int]
    """Name and port of the xds-gateway; the name is what its certificate must prove."""
    metadata: Mapping[str, Any]
    admin_port: int = 15000
    ports: Sequence[int] = (15021, 15020)
    """Ports of readiness, probes and merged metrics."""
    probers: Mapping[str, Prober] = field(default_factory=dict)
    """Probes of the application by path."""
    scrapes: Sequence[Scrape] = ()
    """Metrics of the application."""
    captured: bool = True
    application: str = "$(INSTANCE_IP)"
    """Address at which the application is probed."""
    tls: bool = True
    domain: str = "cluster.local"
    runtime: Mapping[str, str] = field(default_factory=dict)
    stats: Mapping[str, Any] = field(default_factory=dict)
    json_logs: bool = False
    patched: Callable[[dict[str, Any]], dict[str, Any]] = dict
    """What EnvoyFilters make of it."""


def own_bootstrap(own: OwnBootstrap) -> dict[str, Any]:
    """The document for `--config-yaml`."""
    listeners, clusters = status_resources(
        ports=own.ports,
        admin_port=own.admin_port,
        probers=own.probers,
        scrapes=own.scrapes,
        captured=own.captured,
        application=own.application,
    )
    domain = f"$(POD_NAMESPACE).svc.{own.domain}"
    document: dict[str, Any] = {
        "node": {
            "id": f"{own.type}~$(INSTANCE_IP)~$(POD_NAME).$(POD_NAMESPACE)~{domain}",
            "cluster": own.cluster,
            "metadata": dict(own.metadata),
        },
        "admin": {
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": own.admin_port}},
            "ignore_global_conn_limit": True,
        },
        "static_resources": {
            "clusters": [gateway_cluster(own.gateway), *clusters],
            "listeners": listeners,
        },
    }
    if own.runtime:
        document["layered_runtime"] = {
            "layers": [{"name": "own", "static_layer": dict(own.runtime)}]
        }
    if own.stats:
        document["stats_config"] = dict(own.stats)
    if own.json_logs:
        keys = {"level": "%l", "time": "%Y-%m-%dT%T.%fZ", "scope": "envoy %n", "msg": "%j"}
        document["application_log_config"] = {"log_format": {"json_format": keys}}
    return document


def gateway_cluster(gateway: tuple[str, int], folder: str = FOLDER) -> dict[str, Any]:
    """The cluster that Envoy gets everything else from: TLS 1.3, the name pinned, the pod's token
    in every stream."""
    host, port = gateway
    http = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    filters = f"{TYPE}envoy.extensions.filters.http"
    address = {"socket_address": {"address": host, "port_value": port}}
    return {
        "name": "xds-gateway",
        "type": "STRICT_DNS",
        "dns_lookup_family": "ALL",
        "respect_dns_ttl": True,
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": "xds-gateway",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": f"{TYPE}envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "sni": host,
                "common_tls_context": {
                    # Without this an upstream TLS context ends at 1.2.
                    "tls_params": {
                        "tls_minimum_protocol_version": "TLSv1_3",
                        "tls_maximum_protocol_version": "TLSv1_3",
                    },
                    "combined_validation_context": {
                        "default_validation_context": {
                            "match_typed_subject_alt_names": [
                                {"san_type": "DNS", "matcher": {"exact": host}}
                            ]
                        },
                        "validation_context_sds_secret_config": {
                            "name": "xds-roots",
                            "sds_config": _from_file(f"{folder}/{ROOTS_SDS_FILE}"),
                        },
                    },
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
                "http_filters": [
                    {
                        "name": "envoy.filters.http.credential_injector",
                        "typed_config": {
                            "@type": f"{filters}.credential_injector.v3.CredentialInjector",
                            "overwrite": True,
                            "credential": {
                                "name": "envoy.http.injected_credentials.generic",
                                "typed_config": {
                                    "@type": f"{TYPE}envoy.extensions.http."
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


def _from_file(path: str) -> dict[str, Any]:
    return {"path_config_source": {"path": path}, "resource_api_version": "V3"}


def envoy_args(
    own: OwnBootstrap,
    *,
    concurrency: int,
    log_level: str,
    component_log_level: str,
    drain_s: int,
) -> list[str]:
    """The arguments of the proxy's container.

    Args:
        concurrency: Worker threads; 0: one per CPU of the node.
        drain_s: How long connections of a listener that goes may take to end.
    """
    document = json.dumps(own.patched(own_bootstrap(own)), separators=(",", ":"))
    args = ["-c", f"{FOLDER}/{BOOTSTRAP_FILE}", "--config-yaml", document]
    if concurrency:
        args += ["--concurrency", str(concurrency)]
    args += ["--log-level", {"warn": "warning", "err": "error"}.get(log_level, log_level)]
    if component_log_level:
        args += ["--component-log-level", component_log_level]
    return [
        *args,
        "--drain-time-s",
        str(drain_s),
        "--drain-strategy",
        "immediate",
        # One Envoy per pod: no shared memory, no base id.
        "--disable-hot-restart",
    ]


def carrier_bootstrap(gateway: tuple[str, int], socket: str) -> dict[str, Any]:
    """An Envoy that carries the xDS streams of a socket to the gateway, with TLS and the pod's
    token, and says when it is ready."""
    listeners, clusters = status_resources(
        ports=(15021, 15020),
        admin_port=15000,
        probers={},
        scrapes=(),
        captured=False,
        application="$(INSTANCE_IP)",
    )
    manager = {
        "@type": f"{TYPE}envoy.extensions.filters.network.http_connection_manager.v3."
        "HttpConnectionManager",
        "stat_prefix": "xds",
        "codec_type": "HTTP2",
        "stream_idle_timeout": "0s",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "xds",
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {"prefix": "/envoy.service.discovery.v3."},
                            "route": {
                                "cluster": "xds-gateway",
                                "timeout": "0s",
                                "host_rewrite_literal": gateway[0],
                            },
                        }
                    ],
                }
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": f"{TYPE}envoy.extensions.filters.http.router.v3.Router",
                    "suppress_envoy_headers": True,
                },
            }
        ],
    }
    carrier = {
        "name": "xds",
        "address": {"pipe": {"path": socket, "mode": 0o666}},
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": manager,
                    }
                ]
            }
        ],
    }
    return {
        "node": {"id": "xds-carrier~$(POD_NAME).$(POD_NAMESPACE)", "cluster": "xds-carrier"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 15000}}},
        "static_resources": {
            "clusters": [gateway_cluster(gateway), *clusters],
            "listeners": [*listeners, carrier],
        },
    }
