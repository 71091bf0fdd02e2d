"""WorkloadEntry and WorkloadGroup: workloads that no platform reports.

Source: https://istio.io/latest/docs/reference/config/networking/workload-entry/ and
https://istio.io/latest/docs/reference/config/networking/workload-group/
"""

from typing import Annotated

from msgspec import UNSET, Meta

from meshbus.api.shape import Maybe, NonNegative, Port, Shape, UInt32

Labels = Annotated[dict[str, Annotated[str, Meta(max_length=63)]], Meta(max_length=256)]
Annotations = Annotated[dict[str, str], Meta(max_length=256)]


class LabelSelector(Shape, frozen=True, kw_only=True):
    """Workloads of the namespace by their labels (`networking.WorkloadSelector`)."""

    labels: Annotated[dict[str, Annotated[str, Meta(max_length=63)]], Meta(max_length=256)] = {}
    """Labels that a workload must have, without wildcards."""


class WorkloadEntry(Shape, frozen=True, kw_only=True):
    """One workload."""

    address: Annotated[str, Meta(max_length=256)] = ""
    """IP address, name, or `unix://` path."""
    ports: Maybe[
        Annotated[dict[str, Port], Meta(max_length=128, extra={"format": "port-names"})]
    ] = UNSET
    """Port numbers by the names that the service gives them."""
    labels: Labels = {}
    """Labels."""
    network: Annotated[str, Meta(max_length=2048)] = ""
    """Network it is on."""
    locality: Annotated[str, Meta(max_length=2048)] = ""
    """`region/zone/sub-zone`."""
    weight: UInt32 = 0
    """Its share relative to others."""
    service_account: Annotated[str, Meta(max_length=253)] = ""
    """Service account of its namespace that it runs as."""


class ObjectMeta(Shape, frozen=True, kw_only=True):
    """Metadata of the WorkloadEntries that are made of a group."""

    labels: Labels = {}
    """Labels."""
    annotations: Annotations = {}
    """Annotations."""


class HTTPHeader(Shape, frozen=True, kw_only=True):
    """A header of a probe."""

    name: Annotated[str, Meta(pattern=r"^[-A-Za-z0-9]+$")] = ""
    """Its name."""
    value: str = ""
    """Its value."""


class HTTPHealthCheckConfig(Shape, frozen=True, kw_only=True):
    """Healthy if a GET answers with 2xx or 3xx."""

    path: str = ""
    """Path that is asked."""
    port: Port
    """Port."""
    host: str = ""
    """Host header."""
    scheme: Annotated[str, Meta(extra={"format": "probe-scheme"})] = ""
    """HTTP or HTTPS."""
    http_headers: list[HTTPHeader] = []
    """Headers."""


class TCPHealthCheckConfig(Shape, frozen=True, kw_only=True):
    """Healthy if a connection can be made."""

    host: str = ""
    """Address; the workload's if empty."""
    port: Port
    """Port."""


class ExecHealthCheckConfig(Shape, frozen=True, kw_only=True):
    """Healthy if a command exits with 0."""

    command: list[Annotated[str, Meta(min_length=1)]]
    """The command and its arguments; no shell."""


class GrpcHealthCheckConfig(Shape, frozen=True, kw_only=True):
    """Healthy if the gRPC health service says so."""

    service: str = ""
    """Service that is asked about."""
    port: Port | None = None
    """Port."""


class ReadinessProbe(Shape, frozen=True, kw_only=True):
    """Whether a workload may have traffic."""

    one_of = (("httpGet", "tcpSocket", "exec", "grpc"),)

    initial_delay_seconds: NonNegative = 0
    """Time before the first probe."""
    timeout_seconds: NonNegative = 0
    """Time for an answer; 1 if unset."""
    period_seconds: NonNegative = 0
    """Time between probes; 10 if unset."""
    success_threshold: NonNegative = 0
    """Successes in a row that make it healthy; 1 if unset."""
    failure_threshold: NonNegative = 0
    """Failures in a row that make it unhealthy; 3 if unset."""
    http_get: Maybe[HTTPHealthCheckConfig] = UNSET
    """By HTTP."""
    tcp_socket: Maybe[TCPHealthCheckConfig] = UNSET
    """By TCP."""
    exec: Maybe[ExecHealthCheckConfig] = UNSET
    """By a command."""
    grpc: Maybe[GrpcHealthCheckConfig] = UNSET
    """By gRPC."""


class WorkloadGroup(Shape, frozen=True, kw_only=True):
    """What workloads that register themselves have in common."""

    metadata: Maybe[ObjectMeta] = UNSET
    """Metadata of their entries."""
    template: WorkloadEntry
    """Their entries, but for the address."""
    probe: Maybe[ReadinessProbe] = UNSET
    """Whether they may have traffic."""
