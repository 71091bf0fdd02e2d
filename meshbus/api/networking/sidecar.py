"""Sidecar: what the proxies of workloads listen on, and what they may reach.

Source: https://istio.io/latest/docs/reference/config/networking/sidecar/
"""

from typing import Literal

from msgspec import UNSET

from meshbus.api.networking.destination_rule import ClientTLSSettings, ConnectionPoolSettings
from meshbus.api.networking.gateway import ServerTLSSettings
from meshbus.api.networking.virtual_service import Destination
from meshbus.api.networking.workload import LabelSelector
from meshbus.api.shape import Maybe, Shape, UInt32

CaptureMode = Literal["DEFAULT", "IPTABLES", "NONE"]


class SidecarPort(Shape, frozen=True, kw_only=True):
    """A port that a sidecar opens."""

    number: UInt32 = 0
    """Port number; 0 only with a Unix socket."""
    protocol: str = ""
    """Protocol; detected if empty."""
    name: str = ""
    """A name."""
    target_port: UInt32 = 0
    """Has no effect here."""


class IstioIngressListener(Shape, frozen=True, kw_only=True):
    """A port on which a workload is reached."""

    port: SidecarPort
    """The port."""
    bind: str = ""
    """Address to listen on."""
    capture_mode: CaptureMode = "DEFAULT"
    """Whether traffic is redirected to it."""
    default_endpoint: str = ""
    """Where the application listens: `127.0.0.1:PORT`, `0.0.0.0:PORT`, `[::1]:PORT` or
    `unix://` path."""
    tls: Maybe[ServerTLSSettings] = UNSET
    """TLS of the application's own."""
    connection_pool: Maybe[ConnectionPoolSettings] = UNSET
    """Limits towards the application."""


class IstioEgressListener(Shape, frozen=True, kw_only=True):
    """What a workload may reach."""

    port: Maybe[SidecarPort] = UNSET
    """Only on this port; every port if unset."""
    bind: str = ""
    """Address, or `unix://` path, to listen on."""
    capture_mode: CaptureMode = "DEFAULT"
    """Whether traffic is redirected to it."""
    hosts: list[str]
    """`NAMESPACE/HOST`; `*`, `.` and `~` may stand for the namespace."""


class OutboundTrafficPolicy(Shape, frozen=True, kw_only=True):
    """What happens to traffic to unknown hosts."""

    mode: Literal["REGISTRY_ONLY", "ALLOW_ANY", "ALLOW_ANY_DYNAMIC_DNS"] = "REGISTRY_ONLY"
    """Refused, or passed on."""
    egress_proxy: Maybe[Destination] = UNSET
    """Where it is passed to."""
    tls: Maybe[ClientTLSSettings] = UNSET
    """TLS towards hosts that are resolved as they are met."""


class Sidecar(Shape, frozen=True, kw_only=True):
    """What the proxies of workloads listen on, and what they may reach."""

    workload_selector: Maybe[LabelSelector] = UNSET
    """Workloads it concerns; all of the namespace if unset."""
    ingress: list[IstioIngressListener] = []
    """Where they are reached; their services say if empty."""
    egress: list[IstioEgressListener] = []
    """What they may reach; everything if empty."""
    inbound_connection_pool: Maybe[ConnectionPoolSettings] = UNSET
    """Limits towards the application, on every port."""
    outbound_traffic_policy: Maybe[OutboundTrafficPolicy] = UNSET
    """What happens to traffic to unknown hosts; overrides the mesh config."""
