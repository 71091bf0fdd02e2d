"""Core kinds of Kubernetes, as far as a mesh reads them.

Pods and Nodes are taken as they are: they are data of others, and nothing here starts them.
Source: https://kubernetes.io/docs/reference/kubernetes-api/
"""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, field

from meshbus.api.shape import Bytes, Free, Int32, Maybe, Port, PortOrUnset, Shape

Protocol = Literal["TCP", "UDP", "SCTP"]


class ServicePort(Shape, frozen=True, kw_only=True):
    """A port of a service."""

    name: str = ""
    """A name; needed when there are several."""
    protocol: Protocol = "TCP"
    """Transport protocol."""
    app_protocol: str | None = None
    """Application protocol: `http`, `grpc`, `tcp`, ..."""
    port: Port
    """Port number."""
    target_port: int | str | None = None
    """Port of the pods, by number or name; `port` if unset."""
    node_port: PortOrUnset = 0
    """Port of the nodes."""


class SessionAffinityConfig(Shape, frozen=True, kw_only=True):
    """Details of session affinity."""

    client_ip: Maybe[Free] = field(name="clientIP", default=UNSET)
    """`timeoutSeconds`."""


class ServiceSpec(Shape, frozen=True, kw_only=True):
    """A name for a set of pods."""

    ports: Annotated[
        list[ServicePort],
        Meta(
            extra_json_schema={
                "x-kubernetes-list-map-keys": ["port", "protocol"],
                "x-kubernetes-list-type": "map",
                "x-kubernetes-patch-merge-key": "port",
                "x-kubernetes-patch-strategy": "merge",
            }
        ),
    ] = []
    """Ports."""
    selector: dict[str, str] | None = None
    """Labels of the pods."""
    cluster_ip: str = field(name="clusterIP", default="")
    """Virtual address; `None` for none."""
    cluster_ips: list[str] = field(name="clusterIPs", default_factory=list)
    """Virtual addresses, one for each family."""
    type: Literal["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"] = "ClusterIP"
    """How it is exposed."""
    external_ips: list[str] = field(name="externalIPs", default_factory=list)
    """Further addresses."""
    session_affinity: Literal["None", "ClientIP"] = "None"
    """Whether a client keeps its pod."""
    session_affinity_config: Maybe[SessionAffinityConfig] = UNSET
    """Details of it."""
    load_balancer_ip: str = field(name="loadBalancerIP", default="")
    """Address of the load balancer."""
    load_balancer_source_ranges: list[str] = []
    """Clients that the load balancer lets in."""
    load_balancer_class: str | None = None
    """Kind of the load balancer."""
    external_name: str = ""
    """A DNS name, with type ExternalName."""
    external_traffic_policy: Literal["", "Cluster", "Local"] = ""
    """Whether traffic from outside stays on its node."""
    internal_traffic_policy: Literal["Cluster", "Local"] | None = None
    """Whether traffic from inside stays on its node."""
    health_check_node_port: Int32 = 0
    """Port of the load balancer's health check."""
    publish_not_ready_addresses: bool = False
    """Whether pods that are not ready are endpoints."""
    ip_families: list[Literal["IPv4", "IPv6"]] = []
    """Families of addresses."""
    ip_family_policy: Literal["SingleStack", "PreferDualStack", "RequireDualStack"] | None = None
    """Whether both families are needed."""
    allocate_load_balancer_node_ports: bool | None = None
    """Whether the load balancer gets node ports."""
    traffic_distribution: str | None = None
    """`PreferClose`, `PreferSameZone` or `PreferSameNode`."""


class NamespaceSpec(Shape, frozen=True, kw_only=True):
    """A space of names."""

    finalizers: list[str] = []
    """What must be done before it goes."""


References = Annotated[
    list[Free],
    Meta(
        extra_json_schema={
            "x-kubernetes-list-map-keys": ["name"],
            "x-kubernetes-list-type": "map",
            "x-kubernetes-patch-merge-key": "name",
            "x-kubernetes-patch-strategy": "merge",
        }
    ),
]


class ServiceAccountContent(Shape, frozen=True, kw_only=True):
    """An identity."""

    secrets: References = []
    """Secrets of its pods."""
    image_pull_secrets: References = []
    """Secrets for registries."""
    automount_service_account_token: bool | None = None
    """Whether pods get a token."""


class ConfigMapContent(Shape, frozen=True, kw_only=True):
    """Data that is no secret."""

    data: dict[str, str] = {}
    """Text."""
    binary_data: dict[str, Bytes] = {}
    """Base64."""
    immutable: bool | None = None
    """Whether it may not change."""


class SecretContent(Shape, frozen=True, kw_only=True):
    """Data that is a secret."""

    data: dict[str, Bytes] = {}
    """Base64."""
    string_data: dict[str, str] = {}
    """Text; written to `data`, never read back."""
    type: Annotated[str, Meta(max_length=253)] = "Opaque"
    """What it holds."""
    immutable: bool | None = None
    """Whether it may not change."""
