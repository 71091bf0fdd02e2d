"""Rules of ServiceEntry.

Source: https://istio.io/latest/docs/reference/config/networking/service-entry/
"""

from msgspec import UnsetType

from meshbus.api.addresses import is_ip
from meshbus.api.networking.service_entry import ServiceEntry
from meshbus.validate.malformed import independent
from meshbus.validate.metadata import ObjectName
from meshbus.validate.names import (
    fqdn_problem,
    is_label,
    partial_wildcard_problem,
    protocol_is_http,
    protocol_is_known,
    protocol_is_tcp,
    protocol_is_tls,
    subnet_problem,
    wildcard_domain_problem,
)
from meshbus.validate.report import Findings
from meshbus.validate.targets import check_export_to, check_label_selector, check_labels
from meshbus.validate.workload_entry import check_entry

_AUTO_ALLOCATE = "networking.istio.io/enable-autoallocate-ip"


@independent
def check(spec: ServiceEntry, name: ObjectName, out: Findings) -> None:
    """Everything but its shape."""
    check_label_selector(spec.workload_selector, "spec.workloadSelector", out)
    selected = not isinstance(spec.workload_selector, UnsetType)
    if selected and spec.endpoints is not None:
        message = "only one of WorkloadSelector or Endpoints can be set"
        out.error("spec", message, "Conflict")
    _check_hosts(spec, out)
    _check_addresses(spec, out)
    check_export_to(spec.export_to, name.namespace, "spec.exportTo", out, none_allowed=True)
    _check_ports(spec, name, out)
    _check_resolution(spec, selected, out)
    plain = [
        p for p in spec.ports if not (protocol_is_http(p.protocol) or protocol_is_tls(p.protocol))
    ]
    if spec.resolution != "NONE" and len(spec.hosts) > 1 and plain:
        out.error("spec.ports", "multiple hosts provided with non-HTTP, non-TLS ports", "Conflict")


@independent
def _check_hosts(spec: ServiceEntry, out: Findings) -> None:
    for index, host in enumerate(spec.hosts):
        path = f"spec.hosts[{index}]"
        if problem := wildcard_domain_problem(host):
            out.error(path, problem)
        elif problem := partial_wildcard_problem(host):
            out.warn(path, problem)


@independent
def _check_addresses(spec: ServiceEntry, out: Findings) -> None:
    for index, address in enumerate(spec.addresses):
        if problem := subnet_problem(address):
            out.error(f"spec.addresses[{index}]", problem)
    if any("/" in a for a in spec.addresses) and spec.resolution not in ("NONE", "STATIC"):
        message = "CIDR addresses are allowed only for NONE/STATIC resolution types"
        out.error("spec.addresses", message, "Conflict")


@independent
def _check_ports(spec: ServiceEntry, name: ObjectName, out: Findings) -> None:
    names: set[str] = set()
    numbers: set[int] = set()
    allocated = (
        name.labels.get(_AUTO_ALLOCATE, "true").lower() != "false"
        and spec.resolution != "NONE"
        and not any(host.startswith("*") for host in spec.hosts)
    )
    for index, port in enumerate(spec.ports):
        path = f"spec.ports[{index}]"
        if not is_label(port.name):
            out.error(f"{path}.name", f"invalid port name {port.name!r}")
        if port.name in names:
            out.error(f"{path}.name", f"Duplicate value {port.name!r}", "Duplicate")
        if port.number in numbers:
            message = f"port number cannot be duplicated: {port.number}"
            out.error(f"{path}.number", message, "Duplicate")
        names.add(port.name)
        numbers.add(port.number)
        if port.protocol and not protocol_is_known(port.protocol):
            out.error(f"{path}.protocol", f"unsupported protocol {port.protocol!r}")
        tcp = port.protocol in ("", "TCP")
        unaddressed = not spec.addresses and not allocated
        if tcp and unaddressed:
            out.warn(path, "addresses are required for ports serving TCP (or unset) protocol")


@independent
def _check_resolution(spec: ServiceEntry, selected: bool, out: Findings) -> None:
    endpoints = spec.endpoints or []
    if spec.resolution == "NONE":
        if spec.endpoints is not None:
            out.error("spec.endpoints", "NONE mode cannot set endpoints", "Conflict")
        if selected:
            message = "should not be set when resolution mode is NONE"
            out.warn("spec.workloadSelector", message)
    elif spec.resolution == "STATIC":
        ports = {port.name for port in spec.ports}
        for index, endpoint in enumerate(endpoints):
            at = f"spec.endpoints[{index}]"
            check_entry(endpoint, at, out, names_allowed=False, service_ports=ports)
    elif spec.resolution == "DYNAMIC_DNS":
        _check_dynamic(spec, selected, out)
    else:
        _check_dns(spec, out)


@independent
def _check_dynamic(spec: ServiceEntry, selected: bool, out: Findings) -> None:
    if spec.endpoints or selected:
        message = "DYNAMIC_DNS mode cannot set endpoints or workloadSelector"
        out.error("spec", message, "Conflict")
    for index, host in enumerate(spec.hosts):
        if not host.startswith("*"):
            out.error(f"spec.hosts[{index}]", "must be a wildcard with DYNAMIC_DNS resolution")
    for index, port in enumerate(spec.ports):
        if not (protocol_is_http(port.protocol) or protocol_is_tls(port.protocol)):
            message = "must be HTTP or TLS with DYNAMIC_DNS resolution"
            out.error(f"spec.ports[{index}].protocol", message)


@independent
def _check_dns(spec: ServiceEntry, out: Findings) -> None:
    endpoints = spec.endpoints or []
    if not endpoints:
        for index, host in enumerate(spec.hosts):
            if fqdn_problem(host):
                message = f"must be a FQDN if no endpoints are provided for {spec.resolution}"
                out.error(f"spec.hosts[{index}]", message)
    if spec.resolution == "DNS_ROUND_ROBIN" and len(endpoints) > 1:
        message = "DNS_ROUND_ROBIN mode cannot have multiple endpoints"
        out.error("spec.endpoints", message, "Conflict")
    ports = {port.name for port in spec.ports}
    for index, endpoint in enumerate(endpoints):
        path = f"spec.endpoints[{index}]"
        if not is_ip(endpoint.address) and (problem := fqdn_problem(endpoint.address)):
            out.error(f"{path}.address", f"is neither an IP address nor a name: {problem}")
        check_labels(endpoint.labels, f"{path}.labels", out)
        for port in endpoint.ports or ():
            if port not in ports:
                out.error(f"{path}.ports[{port}]", "is not defined by the service entry")
    tcp = [port for port in spec.ports if protocol_is_tcp(port.protocol)]
    if spec.addresses and tcp and len(spec.hosts) > 1:
        out.warn("spec.hosts", "several hosts with addresses and a TCP port cannot be told apart")
