"""Active health checks, which Istio's API lacks: an annotation of a DestinationRule.

`traffic.meshbus.io/health-check: '{"path": "/healthz", "interval": "5s"}'`
"""

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta

from meshbus.api.shape import AnyDuration, Maybe, Shape

HEALTH_CHECK = "traffic.meshbus.io/health-check"


class HealthCheck(Shape, frozen=True, kw_only=True):
    """How callers find out which endpoints of a host are well: each proxy asks each of them."""

    path: str = ""
    """Path of an HTTP request that is answered with 200."""
    host: str = ""
    """Its Host header; the name of the cluster if empty."""
    grpc: Maybe[str] = UNSET
    """Service to ask of by gRPC's health protocol; may be empty."""
    tcp: bool = False
    """A connection is enough."""
    interval: AnyDuration = "10s"
    """Between checks."""
    timeout: AnyDuration = "1s"
    """For an answer."""
    unhealthy_threshold: Annotated[int, Meta(ge=1, le=100)] = 3
    """Failed checks after which an endpoint is left out."""
    healthy_threshold: Annotated[int, Meta(ge=1, le=100)] = 1
    """Good ones after which it is back."""


def read_health_check(text: str) -> HealthCheck:
    """The health check that an annotation says.

    Raises:
        ValueError: It is none.
    """
    try:
        found = msgspec.json.decode(text, type=HealthCheck)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from error
    if sum((bool(found.path), found.grpc is not UNSET, found.tcp)) != 1:
        raise ValueError("one of path, grpc and tcp is needed")
    if found.path and not found.path.startswith("/"):
        raise ValueError("path must begin with /")
    return found
