"""Rules of WorkloadEntry.

Source: https://istio.io/latest/docs/reference/config/networking/workload-entry/
"""

from collections.abc import Collection

from msgspec import UnsetType

from meshbus.api.addresses import is_ip
from meshbus.api.networking.workload import WorkloadEntry
from meshbus.validate.malformed import independent
from meshbus.validate.metadata import ObjectName
from meshbus.validate.names import fqdn_problem
from meshbus.validate.own_proxy_config import check_own_proxy_config
from meshbus.validate.report import Findings
from meshbus.validate.targets import check_labels
from meshbus.validate.unix_sockets import UNIX_PREFIX, unix_socket_problem


@independent
def check(spec: WorkloadEntry, name: ObjectName, out: Findings) -> None:
    """Everything but its shape."""
    check_own_proxy_config(name.annotations, out)
    check_entry(spec, "spec", out)


@independent
def check_entry(
    entry: WorkloadEntry,
    path: str,
    out: Findings,
    *,
    names_allowed: bool = True,
    service_ports: Collection[str] | None = None,
) -> None:
    """An entry alone, or as an endpoint of a service with these ports."""
    address = entry.address
    if not address and not entry.network:
        out.required(f"{path}.address", "Address is required")
        return
    if not address:
        out.warn(f"{path}.address", f"address is unset with network {entry.network!r}")
    elif address.startswith(UNIX_PREFIX):
        if problem := unix_socket_problem(address):
            out.error(f"{path}.address", problem)
        if not isinstance(entry.ports, UnsetType):
            out.error(f"{path}.ports", "UDS may not include ports", "Conflict")
        if service_ports is not None and len(service_ports) != 1:
            out.error(path, "exactly 1 service port required for unix endpoints")
    elif not is_ip(address):
        if not names_allowed:
            out.error(f"{path}.address", f"{address!r} is not an IP address")
        elif problem := fqdn_problem(address):
            out.error(f"{path}.address", f"is neither an IP address nor a name: {problem}")
    if service_ports is not None:
        for port in entry.ports or ():
            if port not in service_ports:
                out.error(f"{path}.ports[{port}]", "is not defined by the service entry")
    check_labels(entry.labels, f"{path}.labels", out)
