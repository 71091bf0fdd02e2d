"""What an Envoy starts with: who it is and how it reaches the xds-gateway. Everything else it is
sent. Pure: values in, files out.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meshbus.api.addresses import is_ip
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
from meshbus.local.proxy_start import NO_START, ProxyStart

BOOTSTRAP_FILE = "bootstrap.json"
TOKEN_FILE = "token"  # noqa: S105 - the name of a file
TOKEN_SDS_FILE = "token-sds.json"  # noqa: S105
ROOTS_FILE = "roots.pem"
ROOTS_SDS_FILE = "roots-sds.json"
ADMIN_SOCKET = "admin.sock"


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
    document = {
        "node": {
            "id": identity.node_id,
            "cluster": f"{identity.workload}.{identity.namespace}",
            "locality": {"region": region, "zone": zone, "sub_zone": sub_zone},
            "metadata": {
                SELF_DISCOVERY: "true",
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
        "dynamic_resources": over_ads("0.1s", "5s"),
        "cluster_manager": zones_of_own_kind(),
        "static_resources": {
            "clusters": [
                _gateway_cluster(gateway, gateway_name, folder, identity.addresses),
                local_cluster(),
            ]
        },
        "layered_runtime": {
            "layers": [
                runtime_layer(),
                *([listener_limits_layer()] if start.listeners_limited else []),
                *([{"name": "own", "static_layer": dict(start.runtime)}] if start.runtime else []),
            ]
        },
        "overload_manager": connection_limit(start.connections),
    }
    return start.reports.into(document)


def _gateway_cluster(
    gateway: tuple[str, int], gateway_name: str, folder: str, own: Sequence[str]
) -> dict[str, Any]:
    """`own`: addresses of the proxy. The gateway takes a token from one address alone: of two
    families the preferred one is tried, and the other where the name has no such address."""
    families = [":" in address for address in own]
    if len(set(families)) > 1:
        lookup = "AUTO" if families[0] else "V4_PREFERRED"
    else:
        lookup = "V6_ONLY" if families[0] else "V4_ONLY"
    roots = {"name": ROOTS, "sds_config": from_file(f"{folder}/{ROOTS_SDS_FILE}")}
    return gateway_cluster(
        gateway,
        gateway_name,
        roots={"validation_context_sds_secret_config": roots},
        token_sds=f"{folder}/{TOKEN_SDS_FILE}",
        discovery={
            **(
                {"type": "STATIC"}
                if is_ip(gateway[0])
                else {"type": "STRICT_DNS", "dns_lookup_family": lookup}
            ),
            "connect_timeout": "2s",
        },
    )


def token_sds(folder: str) -> dict[str, Any]:
    """The SDS file that names the token file."""
    return token_secret(f"{folder}/{TOKEN_FILE}", folder)


def roots_sds(folder: str, gateway_name: str) -> dict[str, Any]:
    """The SDS file that names the roots and pins the gateway's name."""
    return roots_secret(f"{folder}/{ROOTS_FILE}", folder, (gateway_name,))


def forward_bootstrap(ports: Sequence[int], folder: str, hosts: Sequence[str]) -> dict[str, Any]:
    """The bootstrap of the Envoy that takes `localhost:PORT` to gateways.

    Args:
        ports: Local ports; where each leads to is in a file of its own (`forward_targets`).
        folder: Where Envoy finds its files, as an absolute path.
        hosts: Addresses of `localhost`.
    """
    first, *others = hosts

    def targets(local: int) -> dict[str, Any]:
        path = {"path": f"{folder}/{forward_file(local)}", "watched_directory": {"path": folder}}
        return {"path_config_source": path, "resource_api_version": "V3"}

    return {
        "node": {"id": "forwards", "cluster": "forwards"},
        "admin": {"address": {"pipe": {"path": ADMIN_SOCKET, "mode": 0o600}}},
        "static_resources": {
            "listeners": [
                {
                    "name": f"forward_{local}",
                    "address": {"socket_address": {"address": first, "port_value": local}},
                    "additional_addresses": [
                        {"address": {"socket_address": {"address": host, "port_value": local}}}
                        for host in others
                    ],
                    "filter_chains": [
                        {
                            "filters": [
                                {
                                    "name": "envoy.filters.network.tcp_proxy",
                                    "typed_config": {
                                        "@type": f"{TYPE}envoy.extensions.filters.network."
                                        "tcp_proxy.v3.TcpProxy",
                                        "stat_prefix": f"forward_{local}",
                                        "cluster": f"forward_{local}",
                                        "max_connect_attempts": 3,
                                    },
                                }
                            ]
                        }
                    ],
                }
                for local in ports
            ],
            "clusters": [
                {
                    "name": f"forward_{local}",
                    "type": "EDS",
                    "connect_timeout": "2s",
                    "eds_cluster_config": {"eds_config": targets(local)},
                }
                for local in ports
            ],
        },
    }


def forward_file(local: int) -> str:
    """The file that says where a local port leads to. Envoy takes one cluster of a file alone."""
    return f"to-{local}.json"


def forward_targets(local: int, places: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """Where a local port leads to, as the file that the forwards' Envoy follows.

    Args:
        places: (address, port) of gateways.
    """
    endpoints = [
        {"endpoint": {"address": {"socket_address": {"address": address, "port_value": port}}}}
        for address, port in places
    ]
    return {
        "resources": [
            {
                "@type": f"{TYPE}envoy.config.endpoint.v3.ClusterLoadAssignment",
                "cluster_name": f"forward_{local}",
                "endpoints": [{"lb_endpoints": endpoints}],
            }
        ]
    }


def render(document: Mapping[str, Any]) -> bytes:
    """A document as Envoy reads it."""
    return json.dumps(document, indent=1).encode() + b"\n"


def envoy_argv(
    binary: str,
    *,
    concurrency: int = 1,
    log_level: str = "warning",
    file_flush: Sequence[str] = (),
    config_file: str = BOOTSTRAP_FILE,
) -> list[str]:
    """The command line of an Envoy in the folder of its bootstrap. Envoys of one machine share no
    memory (`--disable-hot-restart`), so they need no base id.

    Args:
        concurrency: Worker threads; 0: one per CPU.
        file_flush: When lines of log files are written.
        config_file: Its bootstrap.
    """
    return [
        binary,
        "--config-path",
        config_file,
        "--disable-hot-restart",
        *(["--concurrency", str(concurrency)] if concurrency else []),
        "--log-level",
        log_level,
        "--drain-time-s",
        "5",
        "--drain-strategy",
        "immediate",
        *file_flush,
    ]
