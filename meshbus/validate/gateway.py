"""Rules of Gateway.

Source: https://istio.io/latest/docs/reference/config/networking/gateway/
"""

from msgspec import UnsetType

from meshbus.api.addresses import is_ip
from meshbus.api.networking.gateway import Gateway, Server
from meshbus.validate.malformed import independent
from meshbus.validate.metadata import ObjectName
from meshbus.validate.names import (
    is_label,
    label_key_problem,
    label_value_problem,
    namespaced_host_problem,
    protocol_is_http,
    protocol_is_known,
    protocol_is_tls,
)
from meshbus.validate.report import Findings
from meshbus.validate.server_tls import check_server_tls
from meshbus.validate.unix_sockets import UNIX_PREFIX, unix_socket_problem

_SEMANTICS = ("internal.istio.io/gateway-semantics", "gateway")
"""On Gateways that something made of one of the Gateway API: a host for no namespace (`~/HOST`) is
one without routes, and names may have dots."""
HTTP3 = "traffic.meshbus.io/http3"


@independent
def check(spec: Gateway, name: ObjectName, out: Findings) -> None:
    """Everything but its shape."""
    made = name.annotations.get(_SEMANTICS[0]) == _SEMANTICS[1]
    if not (made or is_label(name.name)):
        out.error("metadata.name", f"invalid gateway name {name.name!r}: dots are not allowed")
    if not spec.servers:
        out.required("spec.servers", "gateway must have at least one server")
    _check_selector(spec, out)
    http3 = name.annotations.get(HTTP3)
    if http3 is not None and http3 not in ("true", "false"):
        out.error(f"metadata.annotations[{HTTP3}]", f"{http3!r} is neither true nor false")
    for index, server in enumerate(spec.servers):
        _check_server(server, f"spec.servers[{index}]", made, out)
    _check_names(spec, out)


@independent
def _check_selector(spec: Gateway, out: Findings) -> None:
    for key, value in spec.selector.items():
        if problem := label_key_problem(key) or label_value_problem(value):
            out.warn(f"spec.selector[{key}]", f"no workload can have this label: {problem}")


@independent
def _check_names(spec: Gateway, out: Findings) -> None:
    ports: set[str] = set()
    names: set[str] = set()
    for index, server in enumerate(spec.servers):
        path = f"spec.servers[{index}]"
        if server.port.name in ports:
            message = f"port names in servers must be unique: {server.port.name!r}"
            out.error(f"{path}.port.name", message, "Duplicate")
        ports.add(server.port.name)
        if server.name and server.name in names:
            # A warning: Istio's validation lets it pass, and nothing hangs on the name.
            message = f"names of servers should be unique: {server.name!r}"
            out.warn(f"{path}.name", message, "Duplicate")
        names.add(server.name)


@independent
def _check_server(server: Server, path: str, made: bool, out: Findings) -> None:
    _check_hosts(server, path, made, out)
    if not isinstance(server.tls, UnsetType):
        check_server_tls(server.tls, f"{path}.tls", out)
    if _check_port(server, path, out):
        _check_protocol(server, path, out)


@independent
def _check_hosts(server: Server, path: str, made: bool, out: Findings) -> None:
    if not server.hosts:
        out.required(f"{path}.hosts", "server config must contain at least one host")
    for index, host in enumerate(server.hosts):
        seen = host.removeprefix("~/") if made else host
        if problem := namespaced_host_problem(seen, gateway=True):
            out.error(f"{path}.hosts[{index}]", problem)


def _check_port(server: Server, path: str, out: Findings) -> bool:
    port, before = server.port, len(out.errors)
    on_socket = server.bind.startswith(UNIX_PREFIX)
    if not protocol_is_known(port.protocol):
        message = (
            f"invalid protocol {port.protocol!r}, supported are HTTP, HTTPS, HTTP2, GRPC, "
            "GRPC-WEB, MONGO, REDIS, MYSQL, TCP, TLS"
        )
        out.error(f"{path}.port.protocol", message)
    if (port.number or not on_socket) and not 1 <= port.number <= 65535:
        out.error(f"{path}.port.number", f"{port.number}: port must be between 1-65535")
    if port.target_port:
        out.error(f"{path}.port.targetPort", "has no effect on Gateways")
    if not port.name:
        out.required(f"{path}.port.name", "port name must be set")
    right = len(out.errors) == before
    if on_socket:
        if problem := unix_socket_problem(server.bind):
            out.error(f"{path}.bind", problem)
        if port.number:
            out.error(f"{path}.port.number", "must be 0 for a unix domain socket")
    elif server.bind and not is_ip(server.bind):
        out.error(f"{path}.bind", f"{server.bind} is not a valid IP")
    return right


@independent
def _check_protocol(server: Server, path: str, out: Findings) -> None:
    protocol, tls = server.port.protocol, server.tls
    if isinstance(tls, UnsetType):
        if protocol_is_tls(protocol):
            message = "server must have TLS settings for HTTPS/TLS protocols"
            out.required(f"{path}.tls", message)
        return
    if tls.https_redirect and not protocol_is_http(protocol):
        out.warn(f"{path}.tls.httpsRedirect", "should only be used with http servers")
    if protocol_is_tls(protocol):
        return
    if not protocol_is_http(protocol):
        message = "server cannot have TLS settings for non HTTPS/TLS ports"
        out.error(f"{path}.tls", message, "Conflict")
    elif (
        tls.mode not in ("PASSTHROUGH", "AUTO_PASSTHROUGH")
        or tls.ca_certificates
        or tls.private_key
        or tls.server_certificate
    ):
        message = "server cannot have TLS settings for plain text HTTP ports"
        out.error(f"{path}.tls", message, "Conflict")
