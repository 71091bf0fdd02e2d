"""EndpointSlice: endpoints of a service, in slices.

Source: https://kubernetes.io/docs/reference/kubernetes-api/service-resources/endpoint-slice-v1/
"""

from typing import Annotated, Literal

from msgspec import UNSET, Meta

from meshbus.api.core import Protocol
from meshbus.api.shape import Free, Maybe, PortOrUnset, Shape


class EndpointPort(Shape, frozen=True, kw_only=True):
    """A port of every endpoint of the slice."""

    name: str = ""
    """Its name, as in the service."""
    protocol: Protocol = "TCP"
    """Transport protocol."""
    port: PortOrUnset | None = None
    """Port number; any if unset."""
    app_protocol: str | None = None
    """Application protocol."""


class EndpointConditions(Shape, frozen=True, kw_only=True):
    """How an endpoint is."""

    ready: bool | None = None
    """Whether it may have traffic; unset counts as true."""
    serving: bool | None = None
    """Whether it answers, ready or ending."""
    terminating: bool | None = None
    """Whether it is ending."""


class Endpoint(Shape, frozen=True, kw_only=True):
    """One endpoint."""

    addresses: Annotated[list[str], Meta(min_length=1, max_length=100)]
    """Its addresses; the first counts."""
    conditions: Maybe[EndpointConditions] = UNSET
    """How it is."""
    hostname: str | None = None
    """Its name."""
    target_ref: Maybe[Free] = UNSET
    """The object it is."""
    deprecated_topology: dict[str, str] = {}
    """Topology of the old version."""
    node_name: str | None = None
    """Its node."""
    zone: str | None = None
    """Its zone."""
    hints: Maybe[Free] = UNSET
    """Zones that should use it."""


class EndpointSliceContent(Shape, frozen=True, kw_only=True):
    """Some endpoints of a service."""

    address_type: Literal["IPv4", "IPv6", "FQDN"]
    """Kind of the addresses."""
    endpoints: Annotated[list[Endpoint], Meta(max_length=1000)] = []
    """The endpoints."""
    ports: Annotated[list[EndpointPort], Meta(max_length=100)] | None = None
    """Ports of every endpoint."""
