"""Rules of Sidecar.

Source: https://istio.io/latest/docs/reference/config/networking/sidecar/
"""

from msgspec import UnsetType

from meshbus.api.addresses import is_ip
from meshbus.api.networking.sidecar import (
    IstioEgressListener,
    IstioIngressListener,
    OutboundTrafficPolicy,
    Sidecar,
    SidecarPort,
)
from meshbus.validate.client_tls import check_client_tls
from meshbus.validate.destinations import check_destination
from meshbus.validate.malformed import independent
from meshbus.validate.metadata import ObjectName
from meshbus.validate.names import (
    fqdn_problem,
    is_label,
    namespaced_host_problem,
    protocol_is_http,
    protocol_is_known,
    protocol_is_tls,
)
from meshbus.validate.report import Findings
from meshbus.validate.server_tls import check_server_tls
from meshbus.validate.targets import check_label_selector
from meshbus.validate.traffic_policy import check_connection_pool
from meshbus.validate.unix_sockets import UNIX_PREFIX, unix_socket_problem

_LOCAL_HOSTS = frozenset({"", "127.0.0.1", "0.0.0.0", "::1", "::"})  # noqa: S104 - input


@independent
def check(spec: Sidecar, name: ObjectName, out: Findings) -> None:
    """Everything but its shape."""
    check_label_selector(spec.workload_selector, "spec.workloadSelector", out)
    nothing = not spec.egress and not spec.ingress
    if (
        nothing
        and isinstance(spec.outbound_traffic_policy, UnsetType)
        and isinstance(spec.inbound_connection_pool, UnsetType)
    ):
        out.required("spec", "empty configuration provided")
    ports: set[int] = set()
    for index, ingress in enumerate(spec.ingress):
        path = f"spec.ingress[{index}]"
        _check_ingress(ingress, path, out)
        if ingress.port.number in ports:
            out.error(f"{path}.port.number", "ports of listeners must be unique", "Duplicate")
        ports.add(ingress.port.number)
    check_connection_pool(spec.inbound_connection_pool, "spec.inboundConnectionPool", out)
    _check_egress_listeners(spec, name, out)
    _check_outbound(spec.outbound_traffic_policy, "spec.outboundTrafficPolicy", out)


@independent
def _check_port(port: SidecarPort, path: str, out: Findings) -> None:
    if port.target_port:
        out.error(f"{path}.targetPort", "has no effect on Sidecars")
    if port.name and not is_label(port.name):
        out.error(f"{path}.name", f"invalid port name {port.name!r}")
    if port.protocol and not protocol_is_known(port.protocol):
        out.error(f"{path}.protocol", f"unsupported protocol {port.protocol!r}")


@independent
def _check_number_and_bind(port: SidecarPort, bind: str, path: str, out: Findings) -> None:
    if not 1 <= port.number <= 65535:
        out.error(f"{path}.port.number", f"{port.number}: port must be between 1-65535")
    if bind and not is_ip(bind):
        out.error(f"{path}.bind", f"{bind} is not a valid IP")


@independent
def _check_ingress(ingress: IstioIngressListener, path: str, out: Findings) -> None:
    _check_port(ingress.port, f"{path}.port", out)
    _check_number_and_bind(ingress.port, ingress.bind, path, out)
    if ingress.default_endpoint and (problem := _endpoint_problem(ingress.default_endpoint)):
        out.error(f"{path}.defaultEndpoint", problem)
    if not isinstance(ingress.tls, UnsetType):
        tls = ingress.tls
        unsupported = {
            "subjectAltNames": tls.subject_alt_names,
            "httpsRedirect": tls.https_redirect,
            "credentialName": tls.credential_name,
            "credentialNames": tls.credential_names,
            "tlsCertificates": tls.tls_certificates,
        }
        for field, value in unsupported.items():
            if value:
                out.error(f"{path}.tls.{field}", "is not supported in ingress tls")
        if tls.mode in ("ISTIO_MUTUAL", "AUTO_PASSTHROUGH"):
            out.error(f"{path}.tls.mode", f"cannot be {tls.mode} in ingress tls")
        if not protocol_is_tls(ingress.port.protocol):
            message = "TLS settings are for ports of protocol HTTPS or TLS"
            out.error(f"{path}.tls", message, "Conflict")
        check_server_tls(tls, f"{path}.tls", out)
    check_connection_pool(ingress.connection_pool, f"{path}.connectionPool", out)
    pool = ingress.connection_pool
    limits_http = not isinstance(pool, UnsetType) and not isinstance(pool.http, UnsetType)
    if limits_http and not protocol_is_http(ingress.port.protocol):
        message = "the protocol of the port is not HTTP; only TCP settings will apply"
        out.warn(f"{path}.connectionPool.http", message)


def _endpoint_problem(endpoint: str) -> str | None:
    if endpoint.startswith(UNIX_PREFIX):
        return unix_socket_problem(endpoint)
    host, colon, port = endpoint.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    plain = host[1:-1] if bracketed else host
    if not colon or plain not in _LOCAL_HOSTS or (":" in plain) != bracketed:
        return (
            "must be of form 127.0.0.1:PORT, 0.0.0.0:PORT, [::1]:PORT, [::]:PORT, :PORT or "
            "unix://PATH"
        )
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        return f"{port!r}: port must be between 1-65535"
    return None


@independent
def _check_egress_listeners(spec: Sidecar, name: ObjectName, out: Findings) -> None:
    ports: set[int] = set()
    sockets: set[str] = set()
    for index, egress in enumerate(spec.egress):
        path = f"spec.egress[{index}]"
        if isinstance(egress.port, UnsetType):
            if index != len(spec.egress) - 1:
                out.error(path, "the egress listener with empty port should be the last listener")
        elif egress.port.number == 0:
            _check_port(egress.port, f"{path}.port", out)
            _check_socket(egress, path, out)
            if egress.bind in sockets:
                out.error(f"{path}.bind", "sockets of listeners must be unique", "Duplicate")
            sockets.add(egress.bind)
        else:
            _check_port(egress.port, f"{path}.port", out)
            _check_number_and_bind(egress.port, egress.bind, path, out)
            if egress.port.number in ports:
                out.error(f"{path}.port.number", "ports of listeners must be unique", "Duplicate")
            ports.add(egress.port.number)
        _check_hosts(egress, name, path, out)


@independent
def _check_socket(egress: IstioEgressListener, path: str, out: Findings) -> None:
    if not egress.bind.startswith(UNIX_PREFIX):
        out.error(f"{path}.bind", "ports with 0 value must have a unix domain socket bind address")
    elif problem := unix_socket_problem(egress.bind):
        out.error(f"{path}.bind", problem)
    if egress.capture_mode not in ("DEFAULT", "NONE"):
        out.error(f"{path}.captureMode", "must be DEFAULT/NONE for unix domain socket listeners")


@independent
def _check_hosts(egress: IstioEgressListener, name: ObjectName, path: str, out: Findings) -> None:
    if not egress.hosts:
        out.required(f"{path}.hosts", "egress listener must contain at least one host")
    seen: dict[str, set[str]] = {}
    for index, entry in enumerate(egress.hosts):
        at = f"{path}.hosts[{index}]"
        if problem := namespaced_host_problem(entry, gateway=False):
            out.error(at, problem)
            continue
        namespace, _, host = entry.partition("/")
        hosts = seen.setdefault(name.namespace if namespace == "." else namespace, set())
        if host in hosts or "*" in hosts or (host == "*" and hosts):
            out.warn(at, f"duplicated egress host: {entry}", "Duplicate")
        hosts.add(host)
    if "*" in seen.get("*", ()) and len(seen) > 1:
        out.warn(f"{path}.hosts", "`*/*` selects everything, no other hosts can be added")


@independent
def _check_outbound(policy: OutboundTrafficPolicy | UnsetType, path: str, out: Findings) -> None:
    if isinstance(policy, UnsetType):
        return
    check_client_tls(policy.tls, f"{path}.tls", out)
    if policy.mode == "ALLOW_ANY_DYNAMIC_DNS":
        # Source: Istio 1.31, ALLOW_ANY_DYNAMIC_DNS: "only valid at the MeshConfig level".
        message = "ALLOW_ANY_DYNAMIC_DNS can be set in the mesh config alone"
        out.error(f"{path}.mode", message, "Unsupported")
    proxy = policy.egress_proxy
    if isinstance(proxy, UnsetType):
        return
    if policy.mode != "ALLOW_ANY":
        out.error(f"{path}.egressProxy", "must be set only with mode ALLOW_ANY", "Conflict")
        return
    if problem := fqdn_problem(proxy.host):
        out.error(f"{path}.egressProxy.host", problem)
    if isinstance(proxy.port, UnsetType):
        out.required(f"{path}.egressProxy.port")
    check_destination(proxy, f"{path}.egressProxy", out)
