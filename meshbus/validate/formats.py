"""Formats that the structs of the kinds name in `Meta(extra={"format": ...})`."""

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import SplitResult, urlsplit

from meshbus.api.durations import MILLISECOND_NS, nanoseconds
from meshbus.validate.names import is_label

_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_LONGEST_PORT_NAME = 62
_MODULE_SCHEMES = ("", "http", "https", "file", "oci")


def _any_duration(value: str) -> str | None:
    if nanoseconds(value) is None:
        return f"{value!r} is not a duration (`5s`, `250ms`, `1h30m`)"
    return None


def _duration(value: str) -> str | None:
    parsed = nanoseconds(value)
    if parsed is None:
        return f"{value!r} is not a duration (`5s`, `250ms`, `1h30m`)"
    return None if parsed >= MILLISECOND_NS else "must be a valid duration of at least 1ms"


def _date_time(value: str) -> str | None:
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return f"{value!r} is not a time (RFC 3339)"
    return None


def _byte(value: str) -> str | None:
    try:
        base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError):
        # The value may be a secret: it is not repeated.
        return "is not base64"
    return None


def _not_wildcard(value: str) -> str | None:
    return "hostname cannot be wildcard" if value == "*" else None


def _probe_scheme(value: str) -> str | None:
    return None if value in ("", "HTTP", "HTTPS") else "must be HTTP or HTTPS"


def split_url(value: str) -> SplitResult | None:
    """The parts of a URL; None if it is not one."""
    if _BAD_ESCAPE.search(value) or any(c.isspace() or ord(c) < 0x20 for c in value):
        return None
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        return None
    return parts


def _jwks_uri(value: str) -> str | None:
    parts = split_url(value)
    if parts is None or parts.scheme not in ("http", "https"):
        return "url must have scheme http:// or https://"
    if not parts.hostname:
        return "url must name a host"
    return "url must have a port after ':'" if parts.netloc.endswith(":") else None


def _module_url(value: str) -> str | None:
    named = _SCHEME.match(value)
    if named and named[1].lower() not in _MODULE_SCHEMES:
        return (
            f"unsupported scheme {named[1]!r}: url must have one of http, https, file, oci "
            "(the name of a registry with a port needs `oci://` before it)"
        )
    if split_url(value if named else f"http://{value}") is None:
        return "url must have one of the schemes http, https, file, oci"
    return None


def _match_labels(value: Mapping[str, Any]) -> str | None:
    for key, wanted in value.items():
        if not key:
            return "key must not be empty"
        if "*" in key:
            return f"{key!r}: wildcard not allowed in label key match"
        if isinstance(wanted, str) and "*" in wanted:
            return f"{wanted!r}: wildcard not allowed in label value match"
    return None


def _port_names(value: Mapping[str, Any]) -> str | None:
    for name in value:
        if not is_label(name) or len(name) > _LONGEST_PORT_NAME:
            return f"{name!r} is not the name of a port"
    return None


def _ports(value: Mapping[str, Any]) -> str | None:
    for port in value:
        if not (port.isascii() and port.isdigit()):
            return f"type conversion error from {port!r}: keys must be port numbers"
        if not 1 <= int(port) <= 65535:
            return f"{port}: port must be between 1-65535"
    return None


FORMATS: dict[str, Callable[[Any], str | None]] = {
    "duration": _duration,
    "any-duration": _any_duration,
    "date-time": _date_time,
    "byte": _byte,
    "not-wildcard": _not_wildcard,
    "probe-scheme": _probe_scheme,
    "jwks-uri": _jwks_uri,
    "module-url": _module_url,
    "match-labels": _match_labels,
    "port-names": _port_names,
    "ports": _ports,
}
"""By name: why a value is not of the format, or None."""
