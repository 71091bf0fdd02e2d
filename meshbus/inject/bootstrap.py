"""What the Envoy of a pod starts with, in three parts: files of a ConfigMap that are the same for
every pod (`bootstrap_files`), a document of its own on its command line (`own_bootstrap`), and
`$(NAME)` in that document, which the kubelet replaces with what the pod turns out to be.

Nothing but Envoy reads them. Sources:
https://kubernetes.io/docs/reference/kubernetes-api/ (Container, args)
and https://www.envoyproxy.io/docs/envoy/latest/operations/cli (`--config-yaml` goes over `-c`).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from meshbus.compile.proxy_keys import SELF_DISCOVERY
from meshbus.inject.ads import (
    ROOTS,
    TYPE,
    connection_limit,
    from_file,
    gateway_cluster,
    listener_limits_layer,
    local_cluster,
    over_ads,
    roots_secret,
    runtime_layer,
    token_secret,
    zones_of_own_kind,
)
from meshbus.inject.reports import NO_REPORTS, Reports
from meshbus.inject.status_listener import Prober, Scrape, status_resources

OWN_ZONE = "own"
"""`node.locality.zone` of pods."""
FOLDER = "/etc/istio/proxy"
"""Where the ConfigMap is mounted."""
ROOTS_FOLDER = "/var/run/secrets/istio"
ROOTS_FILE = "root-cert.pem"
TOKEN_FOLDER = "/var/run/secrets/tokens"  # noqa: S105 - a path
TOKEN_FILE = "istio-token"  # noqa: S105
BOOTSTRAP_FILE, UNLIMITED_FILE, ROOTS_SDS_FILE, TOKEN_SDS_FILE = (
    "bootstrap.json",
    "bootstrap-unlimited.json",
    "roots-sds.json",
    "token-sds.json",
)


def bootstrap_files(folder: str = FOLDER) -> dict[str, str]:
    """The files of the ConfigMap that every namespace with sidecars has.

    Args:
        folder: Where the proxy sees them.
    """
    shared = _shared_bootstrap()
    documents = {
        BOOTSTRAP_FILE: {**shared, "overload_manager": connection_limit()},
        # Envoy adds lists of its two documents: who says a limit itself starts from one without.
        UNLIMITED_FILE: shared,
        ROOTS_SDS_FILE: roots_secret(f"{ROOTS_FOLDER}/{ROOTS_FILE}", ROOTS_FOLDER),
        TOKEN_SDS_FILE: token_secret(f"{TOKEN_FOLDER}/{TOKEN_FILE}", TOKEN_FOLDER),
    }
    return {name: json.dumps(document, indent=1) + "\n" for name, document in documents.items()}


def _shared_bootstrap() -> dict[str, Any]:
    return {
        # Where its node is nobody knows before the pod has one: the gateway, which does, tells what
        # is in the same locality by this name.
        "node": {"locality": {"zone": OWN_ZONE}, "metadata": {SELF_DISCOVERY: "true"}},
        "cluster_manager": zones_of_own_kind(),
        "static_resources": {"clusters": [local_cluster()]},
        "dynamic_resources": over_ads("0.5s", "15s"),
        "layered_runtime": {"layers": [runtime_layer()]},
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
    connections: int | None = None
    """How many connections it takes; None: as all do."""
    listeners_limited: bool = False
    """It asks how many each of its listeners takes."""
    reports: Reports = NO_REPORTS
    compressed: bool = True
    """Its metrics are compressed for a scraper that takes it."""
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
        compressed=own.compressed,
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
            "clusters": [_gateway_cluster(own.gateway), *clusters],
            "listeners": listeners,
        },
    }
    layers = [listener_limits_layer()] if own.listeners_limited else []
    if own.runtime:
        layers.append({"name": "own", "static_layer": dict(own.runtime)})
    if layers:
        document["layered_runtime"] = {"layers": layers}
    if own.connections is not None:
        document["overload_manager"] = connection_limit(own.connections)
    if own.json_logs:
        keys = {"level": "%l", "time": "%Y-%m-%dT%T.%fZ", "scope": "envoy %n", "msg": "%j"}
        document["application_log_config"] = {"log_format": {"json_format": keys}}
    return own.reports.into(document)


def _gateway_cluster(gateway: tuple[str, int]) -> dict[str, Any]:
    """The name that is connected to is the one that the certificate must prove."""
    name = gateway[0]
    pinned = {"match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": name}}]}
    return gateway_cluster(
        gateway,
        name,
        roots={
            "combined_validation_context": {
                "default_validation_context": pinned,
                "validation_context_sds_secret_config": {
                    "name": ROOTS,
                    "sds_config": from_file(f"{FOLDER}/{ROOTS_SDS_FILE}"),
                },
            }
        },
        token_sds=f"{FOLDER}/{TOKEN_SDS_FILE}",
        discovery={
            "type": "STRICT_DNS",
            "dns_lookup_family": "ALL",
            "respect_dns_ttl": True,
            "connect_timeout": "5s",
        },
    )


def envoy_args(
    own: OwnBootstrap,
    *,
    concurrency: int,
    log_level: str,
    component_log_level: str,
    drain_s: int,
    file_flush: Sequence[str] = (),
    config_file: str = "",
) -> list[str]:
    """The arguments of the proxy's container.

    Args:
        concurrency: Worker threads; 0: one per CPU of the node.
        drain_s: How long connections of a listener that goes may take to end.
        file_flush: When lines of log files are written.
        config_file: A bootstrap of one's own in the container, in place of that of the mesh.
    """
    if config_file:
        args = ["-c", config_file]
    else:
        document = json.dumps(own.patched(own_bootstrap(own)), separators=(",", ":"))
        shared = BOOTSTRAP_FILE if own.connections is None else UNLIMITED_FILE
        args = ["-c", f"{FOLDER}/{shared}", "--config-yaml", document]
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
        *file_flush,
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
            "clusters": [_gateway_cluster(gateway), *clusters],
            "listeners": [*listeners, carrier],
        },
    }
