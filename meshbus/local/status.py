"""What `up` shows of a supervisor: a file that the supervisor rewrites when something changes."""

import msgspec

from meshbus.local.home import Home, write_private
from meshbus.local.rollout import WorkloadStatus


class InstanceStatus(msgspec.Struct, frozen=True):
    """One instance."""

    ready: bool
    """It takes requests, and the registry knows."""
    problem: str
    addresses: list[str]
    app_address: str
    gateway: bool
    restarts: int = 0


class SupervisorStatus(msgspec.Struct, frozen=True):
    """All that a supervisor runs."""

    pid: int
    capture: str
    services: dict[str, str]
    """Why a part of the control plane is not ready, by name; empty: ready."""
    access: bool
    """`api.json` and `kubeconfig` are there."""
    synced: bool
    """The instances below are those that the model asks for."""
    sequence: int
    """Version of the model that they are of."""
    instances: dict[str, InstanceStatus]
    """By `NAMESPACE/NAME`."""
    workloads: dict[str, WorkloadStatus]
    """Of those that can be run, by `NAMESPACE/NAME`."""
    workload_problems: dict[str, str]
    """Workload objects that cannot be run, and why."""
    forwards: dict[str, int]
    """Local port by `NAMESPACE/WORKLOAD:PORT` of a gateway."""
    problem: str = ""
    """Why waiting for it is of no use; empty: it is."""

    @property
    def workloads_ready(self) -> bool:
        """Every instance is ready, and runs what was asked for last."""
        return all(instance.ready for instance in self.instances.values()) and all(
            workload.updated == workload.replicas for workload in self.workloads.values()
        )

    @property
    def control_plane_ready(self) -> bool:
        """Everything that the API needs runs."""
        return self.access and not any(self.services.values())


def write_status(home: Home, status: SupervisorStatus) -> None:
    """Show it."""
    write_private(home.status_file, msgspec.json.encode(status))


def read_status(home: Home) -> SupervisorStatus | None:
    """What was shown last; None when nothing can be read."""
    try:
        return msgspec.json.decode(home.status_file.read_bytes(), type=SupervisorStatus)
    except (OSError, msgspec.MsgspecError):
        return None
