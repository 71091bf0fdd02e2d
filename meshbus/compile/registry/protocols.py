"""The protocol of a port.

Source: Istio, "Explicit protocol selection": `appProtocol` before the port's name
(`<protocol>[-suffix]`); ports on which the server speaks first are TCP when nothing is declared.
"""

from typing import Any

_NAMES = {
    "http": "HTTP",
    "http2": "HTTP2",
    "https": "HTTPS",
    "grpc": "GRPC",
    "grpc-web": "GRPC-WEB",
    "http_proxy": "TCP",
    "tcp": "TCP",
    "tls": "TLS",
    "udp": "UDP",
    "mongo": "MONGO",
    "redis": "REDIS",
    "mysql": "MYSQL",
    "hbone": "TCP",
}
_APP_PROTOCOLS = {
    "kubernetes.io/h2c": "HTTP2",
    "kubernetes.io/http": "HTTP",
    "kubernetes.io/https": "HTTPS",
    "kubernetes.io/ws": "HTTP",
    "kubernetes.io/wss": "HTTPS",
    "kubernetes.io/grpc": "GRPC",
    "gateway.istio.io/passthrough": "TLS",
    "h2c": "HTTP2",
}
_SERVER_FIRST = frozenset({25, 53, 3306, 27017})
"""SMTP, DNS, MySQL, MongoDB: waiting for the client's first bytes would wait for ever."""


def declared_protocol(name: str) -> str:
    """The protocol that a name like `http-web` says, or empty."""
    lower = name.lower()
    if lower.startswith("grpc-web"):
        return "GRPC-WEB"
    return _NAMES.get(lower.split("-", 1)[0], "")


def protocol_of_port(name: str, number: int, app_protocol: str = "", transport: str = "TCP") -> str:
    """As `ServicePort.protocol`: empty, when nothing says it and it is to be detected."""
    if transport.upper() == "UDP":
        return "UDP"
    if app_protocol:
        lower = app_protocol.lower()
        return _APP_PROTOCOLS.get(lower) or _NAMES.get(lower) or declared_protocol(lower)
    found = declared_protocol(name)
    if found:
        return found
    return "TCP" if number in _SERVER_FIRST else ""


def protocol_of_entry(protocol: str) -> str:
    """The protocol of a ServiceEntry's port, which its field alone says: without it is detected,
    whatever the port is called.

    Source: Istio, convertPort of pilot/pkg/serviceregistry/serviceentry.
    """
    return _NAMES.get(protocol.lower(), "")


def integer(value: Any, default: int = 0) -> int:
    """A number as documents have them."""
    return value if isinstance(value, int) and not isinstance(value, bool) else default
