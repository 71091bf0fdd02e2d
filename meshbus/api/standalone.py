"""Workload: a process of one's own on this machine.

Environment variables, arguments and names are those of the process; its sidecar needs nothing said.
"""

from typing import Annotated, Literal

from msgspec import Meta

from meshbus.api.shape import Port, PortOrUnset, Shape


class WorkloadPort(Shape, frozen=True, kw_only=True):
    """A port that the process listens on."""

    name: Annotated[str, Meta(max_length=63)] = ""
    """Its name; says the protocol as a service's port name does."""
    port: Port
    """Port number that callers use."""
    target_port: PortOrUnset = 0
    """Port that the process listens on; `port` if 0."""


class Strategy(Shape, frozen=True, kw_only=True):
    """How instances are replaced when what they run has changed."""

    type: Literal["RollingUpdate", "Recreate"] = "RollingUpdate"
    """`RollingUpdate`: one ready instance after the other, with one more meanwhile. `Recreate`: all
    at once, the old ones first."""


class Workload(Shape, frozen=True, kw_only=True):
    """A process, or several equal ones, in the mesh."""

    service_account: Annotated[str, Meta(max_length=253)] = "default"
    """Service account that it runs as: its identity in the mesh."""
    command: list[str] = []
    """Program and arguments, no shell; left out, the process is somebody else's, at `address`."""
    env: dict[str, str] = {}
    """Further environment."""
    working_dir: str = ""
    """Directory it starts in; that of `meshbus up` if empty."""
    ports: Annotated[list[WorkloadPort], Meta(max_length=64)] = []
    """Ports that it listens on."""
    replicas: Annotated[int, Meta(ge=0, le=1000)] = 1
    """How many of it run."""
    strategy: Strategy = Strategy()
    """How instances are replaced when what they run has changed, as in a Deployment."""
    sidecar: bool = True
    """False: outside the mesh."""
    gateway: bool = False
    """True: an Envoy at the edge, and no process."""
    address: Annotated[str, Meta(max_length=253)] = ""
    """Where the process of somebody else is."""
    weight: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 0
    """Share of traffic relative to others."""
    network: Annotated[str, Meta(max_length=253)] = ""
    """Network it is on."""
    keys: Annotated[str, Meta(max_length=1024, pattern="^(/.*)?$")] = ""
    """Directory with its own `cert-chain.pem` and `key.pem`; made by the mesh if empty."""
    locality: Annotated[str, Meta(max_length=2048)] = ""
    """`region/zone/sub-zone`."""
