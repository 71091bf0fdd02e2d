"""What a service is, and what it is given."""

from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import msgspec
from prometheus_client import CollectorRegistry

from meshbus.bus.interface import Bus
from meshbus.bus.writer import ModelWriter
from meshbus.runtime.admin import Admin
from meshbus.runtime.clock import Clock
from meshbus.runtime.kubernetes import Kubernetes
from meshbus.runtime.ticket_keys import WorkerChannel

S = TypeVar("S", bound=msgspec.Struct)

ENTRY_POINTS = "meshbus.services"


@dataclass(frozen=True)
class Context(Generic[S]):
    """Everything that a service may use of the world around it."""

    name: str
    """Name of the service: `ca`."""
    pod: str
    """Name of this replica: `ca-0`."""
    cluster: str
    """Cluster token of the model's keys."""
    root_namespace: str
    trust_domain: str
    state: Path
    """The replica's private directory (mode 0700)."""
    settings: S
    bus: Bus
    clock: Clock
    log: Any
    """A structlog logger, bound to the service."""
    metrics: CollectorRegistry
    admin: Admin
    worker: WorkerChannel | None = None
    """What the supervisor tells, where this is one of several workers."""
    revision: str = ""
    """Which of the control planes on this bus it is part of; empty: there is one alone."""
    kubernetes: Kubernetes | None = None
    """The cluster that it runs for; None without Kubernetes."""

    def model_writer(self) -> ModelWriter:
        """A writer of the service's rows; it writes once it `run`s and leads."""
        return ModelWriter(
            self.bus,
            cluster=self.cluster,
            service=self.name,
            pod=self.pod,
            now=self.clock.now,
            monotonic=self.clock.monotonic,
        )


class Service(Protocol):
    """One of the services. It is made without IO and runs until it is cancelled.

    One that can have several workers behind one port says `shared_ports`, the settings that are
    addresses which they share, and has the settings `workers` and `reuse_port`.
    """

    name: ClassVar[str]
    settings_type: ClassVar[type[msgspec.Struct]]

    def __init__(self, context: Context[Any]) -> None: ...

    async def run(self) -> None:
        """Until cancelled; returning is a fault."""


class UnknownServiceError(Exception):
    """There is no service of that name; the message lists those that there are."""


def service_names() -> list[str]:
    """The services that are installed."""
    return sorted(entry.name for entry in entry_points(group=ENTRY_POINTS))


def load_service(name: str) -> type[Service]:
    """The class of a service.

    Raises:
        UnknownServiceError: There is none of that name.
    """
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name == name:
            loaded: type[Service] = entry.load()
            return loaded
    raise UnknownServiceError(f"no service {name!r}; there are {', '.join(service_names())}")
