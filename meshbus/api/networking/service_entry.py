"""ServiceEntry: services that no platform reports.

Source: https://istio.io/latest/docs/reference/config/networking/service-entry/
"""

from typing import Annotated, Literal

from msgspec import UNSET, Meta

from meshbus.api.networking.workload import LabelSelector, WorkloadEntry
from meshbus.api.shape import Maybe, Port, Shape


class ServicePort(Shape, frozen=True, kw_only=True):
    """A port of a service."""

    number: Port
    """Port number."""
    protocol: Annotated[str, Meta(max_length=256)] = ""
    """HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP or TLS; detected if empty."""
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    """A name, unique in the entry."""
    target_port: Maybe[Port] = UNSET
    """Port of the endpoints; `number` if unset."""


class ServiceEntry(Shape, frozen=True, kw_only=True):
    """A service, and how its endpoints are found."""

    hosts: Annotated[
        list[Annotated[str, Meta(extra={"format": "not-wildcard"})]],
        Meta(min_length=1, max_length=256),
    ]
    """Names of the service; `*.` may stand first."""
    addresses: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=256)] = []
    """Virtual addresses, or CIDRs."""
    ports: Annotated[list[ServicePort], Meta(max_length=256)] = []
    """Ports."""
    location: Literal["MESH_EXTERNAL", "MESH_INTERNAL"] = "MESH_EXTERNAL"
    """Whether its endpoints belong to the mesh."""
    resolution: Literal["NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS"] = "NONE"
    """How endpoints are found."""
    endpoints: Annotated[list[WorkloadEntry], Meta(max_length=4096)] | None = None
    """The endpoints, with STATIC and DNS."""
    workload_selector: Maybe[LabelSelector] = UNSET
    """Workloads that are its endpoints."""
    export_to: list[str] = []
    """Namespaces that see it: `*` all, `.` its own, `~` none."""
    subject_alt_names: list[str] = []
    """Names of which an endpoint's certificate must hold one."""
