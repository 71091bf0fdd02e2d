"""Rules of WorkloadGroup.

Source: https://istio.io/latest/docs/reference/config/networking/workload-group/
"""

from msgspec import UnsetType

from meshbus.api.networking.workload import ReadinessProbe, WorkloadGroup
from meshbus.validate.malformed import independent
from meshbus.validate.metadata import ObjectName
from meshbus.validate.report import Findings
from meshbus.validate.targets import check_labels


@independent
def check(spec: WorkloadGroup, name: ObjectName, out: Findings) -> None:
    """Everything but its shape."""
    if not isinstance(spec.metadata, UnsetType):
        check_labels(spec.metadata.labels, "spec.metadata.labels", out)
    check_labels(spec.template.labels, "spec.template.labels", out)
    if not isinstance(spec.probe, UnsetType):
        check_probe(spec.probe, "spec.probe", out)


@independent
def check_probe(probe: ReadinessProbe, path: str, out: Findings) -> None:
    """A probe: one method, and what it needs."""
    methods = (probe.http_get, probe.tcp_socket, probe.exec, probe.grpc)
    if all(isinstance(method, UnsetType) for method in methods):
        out.required(path, "one of httpGet, tcpSocket, exec, grpc is required")
    if not isinstance(probe.exec, UnsetType) and not probe.exec.command:
        out.required(f"{path}.exec.command", "exec.command is required")
