"""Rules of Workload: a process on this machine."""

from meshbus.api.addresses import is_ip
from meshbus.api.standalone import Workload
from meshbus.validate.malformed import independent
from meshbus.validate.metadata import ObjectName
from meshbus.validate.names import fqdn_problem, is_namespace, is_subdomain
from meshbus.validate.own_proxy_config import check_own_proxy_config
from meshbus.validate.report import Findings

_RESERVED = frozenset(
    {"MESHBUS_BIND_ADDRESS", "POD_NAME", "POD_NAMESPACE", "http_proxy", "HTTP_PROXY"}
)


@independent
def check(spec: Workload, name: ObjectName, out: Findings) -> None:
    """Everything but its shape."""
    check_own_proxy_config(name.annotations, out)
    if not is_subdomain(spec.service_account):
        message = f"{spec.service_account!r} is not the name of a service account"
        out.error("spec.serviceAccount", message)
    if spec.command and not spec.command[0]:
        out.required("spec.command[0]", "the program must be named")
    if spec.gateway:
        for field, value in (("command", spec.command), ("address", spec.address)):
            if value:
                out.error(f"spec.{field}", "a gateway is an Envoy and nothing else", "Conflict")
        if not spec.sidecar:
            out.error("spec.sidecar", "a gateway is an Envoy: it cannot be false", "Conflict")
    elif spec.command and spec.address:
        message = "only one of command (started here) or address (somebody else's) can be set"
        out.error("spec", message, "Conflict")
    elif not spec.command and not spec.address:
        message = "command, or the address of a process of somebody else, is required"
        out.required("spec.command", message)
    if spec.address:
        if not is_ip(spec.address) and (problem := fqdn_problem(spec.address)):
            out.error("spec.address", f"is neither an IP address nor a name: {problem}")
        if spec.replicas > 1:
            out.error("spec.replicas", "must be 1 for a process at an address", "Conflict")
    for variable in spec.env:
        if not variable or "=" in variable or "\0" in variable:
            out.error(f"spec.env[{variable}]", "is not the name of a variable")
        elif variable in _RESERVED:
            out.warn(f"spec.env[{variable}]", "is set by the mesh; this value has no effect")
    names: set[str] = set()
    numbers: set[int] = set()
    for index, port in enumerate(spec.ports):
        path = f"spec.ports[{index}]"
        if port.name and not is_namespace(port.name):
            out.error(f"{path}.name", f"{port.name!r}: lower-case letters, digits and `-`")
        if not port.name and len(spec.ports) > 1:
            out.required(f"{path}.name", "is required when there are several ports")
        if port.name in names:
            out.error(f"{path}.name", f"Duplicate value {port.name!r}", "Duplicate")
        if port.port in numbers:
            out.error(f"{path}.port", f"Duplicate value {port.port}", "Duplicate")
        names.add(port.name)
        numbers.add(port.port)
