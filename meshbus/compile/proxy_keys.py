"""What a proxy is: everything about it that its configuration may depend on."""

from dataclasses import dataclass, replace
from sys import intern
from typing import Any

import msgspec

from meshbus.compile.families import IPV4, Families, families_of
from meshbus.model.rows import WorkloadInstance, WorkloadPort

PROXY_CONFIG = "proxy.istio.io/config"
SELF_DISCOVERY = "ENABLE_SELF_DISCOVERY"
"""Metadata, as Istio's: "true" where the bootstrap has `LOCAL_CLUSTER`."""
NODE_LOCALITY = "NODE_LOCALITY"
"""Metadata: `node.locality`, what a proxy's Envoy takes for its own."""
SIDECAR = "sidecar"
ROUTER = "router"
CAPTURE_REDIRECT = "redirect"
CAPTURE_PROXY = "proxy"
CAPTURE_TPROXY = "tproxy"
"""As `redirect`, but the application sees the address of its client."""
CAPTURE_NONE = "none"
_MODES = {"TPROXY": CAPTURE_TPROXY, "NONE": CAPTURE_NONE}


@dataclass(frozen=True, slots=True)
class ProxyKeys:
    """One proxy. Two proxies whose keys differ only in what nothing reads share every resource."""

    type: str
    """`sidecar` or `router`."""
    name: str
    """Instance (pod) name."""
    namespace: str
    labels: tuple[tuple[str, str], ...] = ()
    service_account: str = "default"
    ips: tuple[str, ...] = ()
    workload: str = ""
    network: str = ""
    cluster: str = ""
    locality: str = ""
    capture: str = CAPTURE_REDIRECT
    """See `WorkloadInstance.capture`; `tproxy` besides."""
    http_proxy_address: str = ""
    http_proxy_port: int = 0
    app_address: str = ""
    families: Families = IPV4
    ports: tuple[tuple[str, int, str], ...] = ()
    """(name, port, protocol) that the workload declares itself."""
    metadata: tuple[tuple[str, str], ...] = ()
    dns: bool = False
    """Its application asks mesh DNS: allocated addresses are called."""
    proxy_config: str = ""
    """Its annotation `proxy.istio.io/config`, or metadata PROXY_CONFIG."""
    may_ask: bool = False
    """Its stream and version are such that it can be sent what a request needs when it needs it."""

    @property
    def label_map(self) -> dict[str, str]:
        """Labels as a mapping."""
        return dict(self.labels)

    @property
    def captured(self) -> bool:
        """A sidecar whose traffic is captured by iptables."""
        return self.type == SIDECAR and self.capture in (CAPTURE_REDIRECT, CAPTURE_TPROXY)

    @property
    def transparent(self) -> bool:
        """Inbound connections keep the address of their client."""
        return self.type == SIDECAR and self.capture == CAPTURE_TPROXY

    @property
    def unprivileged(self) -> bool:
        """It may not bind ports below `FIRST_UNPRIVILEGED`."""
        return dict(self.metadata).get("UNPRIVILEGED_POD", "").lower() == "true"

    @property
    def has_local_cluster(self) -> bool:
        """Its bootstrap has `LOCAL_CLUSTER`."""
        return (SELF_DISCOVERY, "true") in self.metadata

    @property
    def node_locality(self) -> str:
        """Where its Envoy thinks that it is: the bootstrap of a pod is written before its node is
        known. Empty: it is not known, or nowhere."""
        return dict(self.metadata).get(NODE_LOCALITY, "")

    @property
    def speaks_grpc(self) -> bool:
        """No Envoy: an application that speaks xDS through gRPC (`GENERATOR: grpc`)."""
        return ("GENERATOR", "grpc") in self.metadata

    def as_class(self) -> "ProxyKeys":
        """The same without what tells replicas of one workload apart."""
        return replace(
            self,
            name="",
            ips=(),
            locality="",
            http_proxy_address="",
            http_proxy_port=0,
            app_address="",
            metadata=(),
        )


def proxy_of_instance(row: WorkloadInstance) -> ProxyKeys:
    """The proxy of a workload instance."""
    return ProxyKeys(
        type=ROUTER if row.gateway else SIDECAR,
        name=row.name,
        namespace=row.namespace,
        labels=tuple(sorted(row.labels.items())),
        service_account=row.service_account or "default",
        ips=tuple(row.addresses),
        workload=row.workload,
        network=row.network,
        cluster=row.cluster,
        locality=row.locality,
        capture=row.capture,
        http_proxy_address=row.http_proxy_address,
        http_proxy_port=row.http_proxy_port,
        app_address=row.app_address,
        families=families_of(row.addresses),
        ports=tuple(_port(p) for p in row.ports),
        dns=row.dns,
        proxy_config=row.annotations.get(PROXY_CONFIG, ""),
    )


def with_metadata(keys: ProxyKeys, metadata: tuple[tuple[str, str], ...]) -> ProxyKeys:
    """The proxy with what it says of itself: EnvoyFilters match it, INTERCEPTION_MODE says how it
    was set up to capture, and HTTP_PROXY_PORT where it is an HTTP proxy besides.

    Source: Istio's node metadata.
    """
    said = dict(metadata)
    mode = said.get("INTERCEPTION_MODE", "")
    redirected = keys.type == SIDECAR and keys.capture == CAPTURE_REDIRECT
    keys = replace(
        keys,
        metadata=metadata,
        capture=_MODES.get(mode, keys.capture) if redirected else keys.capture,
    )
    http_proxy = said.get("HTTP_PROXY_PORT", "")
    asks = keys.type == SIDECAR and keys.capture != CAPTURE_PROXY
    if asks and http_proxy.isdigit():
        keys = replace(
            keys, http_proxy_address=keys.families.localhost, http_proxy_port=int(http_proxy)
        )
    return keys


def _port(port: WorkloadPort) -> tuple[str, int, str]:
    return (port.name, port.port, port.protocol)


def proxy_of_json(document: dict[str, Any]) -> ProxyKeys:
    """The proxy of a `P.json` (DESIGN §8.1): type, name, namespace, labels, serviceAccount, ips,
    network, cluster, locality, metadata.

    Raises:
        ValueError: The type is unknown, or a field is not what it should be.
    """
    kind = document.get("type", SIDECAR)
    if kind not in {SIDECAR, ROUTER}:
        raise ValueError(f"type: sidecar or router is needed, not {kind!r}")
    labels = document.get("labels") or {}
    metadata = document.get("metadata") or {}
    ips = document.get("ips") or []
    if not isinstance(labels, dict) or not isinstance(metadata, dict) or not isinstance(ips, list):
        raise ValueError("labels and metadata are objects, ips is a list")
    locality = document.get("locality") or ""
    if isinstance(locality, dict):
        parts = [str(locality.get(k) or "") for k in ("region", "zone", "subZone")]
        locality = "/".join(parts).rstrip("/")
    ips = [str(ip) for ip in ips]
    keys = ProxyKeys(
        type=kind,
        name=str(document.get("name") or ""),
        namespace=intern(str(document.get("namespace") or "default")),
        labels=tuple(sorted((intern(str(k)), intern(str(v))) for k, v in labels.items())),
        service_account=intern(str(document.get("serviceAccount") or "default")),
        ips=tuple(ips),
        workload=str(metadata.get("WORKLOAD_NAME") or document.get("name") or ""),
        network=str(document.get("network") or ""),
        cluster=intern(str(document.get("cluster") or "")),
        locality=intern(str(locality)),
        families=families_of(ips),
        dns=str(metadata.get("DNS_CAPTURE") or "").lower() == "true",
        proxy_config=_text(metadata.get("PROXY_CONFIG")),
    )
    return with_metadata(keys, tuple(sorted((str(k), str(v)) for k, v in metadata.items())))


def _text(settings: Any) -> str:
    """Settings as text that can be read as YAML."""
    if isinstance(settings, dict):
        return msgspec.json.encode(settings, order="deterministic").decode()
    return settings if isinstance(settings, str) else ""
