"""Names, hosts, addresses and protocols: what is well-formed.

Every function answers the reason why a value is not, or None.
Sources: RFC 1123, RFC 1035, Kubernetes' object names and labels
(https://kubernetes.io/docs/concepts/overview/working-with-objects/names/), and Istio's reference
pages for hosts with wildcards.
"""

import re
from collections.abc import Iterable
from ipaddress import ip_address

from meshbus.api.addresses import is_ip

_LABEL = re.compile(r"[a-zA-Z0-9](?:[-a-zA-Z0-9]{0,61}[a-zA-Z0-9])?")
_WILDCARD_LABEL = re.compile(
    r"(?=.{1,63}\Z)(?:\*|(?:\*-?)?[a-zA-Z0-9](?:[-a-zA-Z0-9]*[a-zA-Z0-9])?)"
)
_LOWER_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_LOWER_ALPHA_LABEL = re.compile(r"[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?")
_QUALIFIED_NAME = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_HEADER_NAME = re.compile(r"[!#$%&'*+,\-.^_`|~0-9A-Za-z]+")
_MESH_SNI = re.compile(r"outbound_[^_]*[0-9][^_]*_[^_]*_[^_]*[a-zA-Z]")

_HTTP = frozenset({"http", "http2", "http_proxy", "grpc", "grpc-web"})
_TLS = frozenset({"https", "tls"})
_TCP = frozenset({"tcp", "mongo", "redis", "mysql"})
_OTHER = frozenset({"udp", "hbone", "double-hbone"})
_PROTOCOLS = _HTTP | _TLS | _TCP | _OTHER


def is_label(value: str) -> bool:
    """Whether it is one label of a DNS name, in any case."""
    return value != "" and bool(_LABEL.fullmatch(value))


def is_namespace(value: str) -> bool:
    """Whether it can be the name of a namespace."""
    return bool(_LOWER_LABEL.fullmatch(value))


def is_service_name(value: str) -> bool:
    """Whether it can be the name of a Kubernetes Service (RFC 1035)."""
    return bool(_LOWER_ALPHA_LABEL.fullmatch(value))


def is_subdomain(value: str) -> bool:
    """Whether it can be the name of most objects."""
    return 0 < len(value) <= 253 and all(_LOWER_LABEL.fullmatch(p) for p in value.split("."))


def is_header_name(value: str) -> bool:
    """Whether it can be the name of a header that a rule refers to (RFC 9110; Istio lets a comma
    pass as well)."""
    return bool(_HEADER_NAME.fullmatch(value))


def subnet_problem(value: str) -> str | None:
    """Why it is neither an address nor a CIDR."""
    address, slash, bits = value.partition("/")
    if not slash:
        return None if is_ip(value) else f"{value!r} is not an IP address"
    try:
        width = ip_address(address).max_prefixlen
    except ValueError:
        return f"{value!r} is not a CIDR block"
    canonical = bits.isascii() and bits.isdigit() and str(int(bits)) == bits
    if not canonical or int(bits) > width or "%" in address:
        return f"{value!r} is not a CIDR block"
    return None


def _labels_problem(domain: str, labels: Iterable[str]) -> str | None:
    parts = list(labels)
    if parts[-1].isascii() and parts[-1].isdigit():
        return f"domain name {domain!r}: the last label {parts[-1]!r} must not be a number"
    for index, label in enumerate(parts):
        if not label and index == len(parts) - 1:
            return None
        if not is_label(label):
            return f"domain name {domain!r}: label {label!r} is invalid"
    return None


def _length_problem(domain: str) -> str | None:
    if not domain:
        return "a domain name must not be empty"
    return f"domain name {domain!r} is longer than 255" if len(domain) > 255 else None


def fqdn_problem(value: str) -> str | None:
    """Why it is not a domain name."""
    return _length_problem(value) or _labels_problem(value, value.split("."))


def wildcard_domain_problem(value: str) -> str | None:
    """Why it is not a domain name whose first label may have a wildcard in front."""
    if problem := _length_problem(value):
        return problem
    first, dot, rest = value.partition(".")
    if not _WILDCARD_LABEL.fullmatch(first):
        return f"domain name {value!r}: label {first!r} is invalid"
    return _labels_problem(value, rest.split(".")) if dot else None


def gateway_domain_problem(value: str, *, sni: bool) -> str | None:
    """Like `wildcard_domain_problem`, and with SNI the names by which meshes call each other
    (`outbound_.PORT_.SUBSET_.HOST`)."""
    if not (sni and value.startswith("outbound_")):
        return wildcard_domain_problem(value)
    if problem := _length_problem(value):
        return problem
    if not _MESH_SNI.match(value):
        return f"domain name {value!r} must be of the form outbound_.PORT_.SUBSET_.HOST"
    return None


def partial_wildcard_problem(value: str) -> str | None:
    """Why its wildcard stands for less than a whole label."""
    if "*" in value and len(value) != 1 and not value.startswith("*."):
        return f"{value!r}: a wildcard must stand for whole labels (`*.example.com`)"
    return None


def namespaced_host_problem(value: str, *, gateway: bool) -> str | None:
    """Why it is not `NAMESPACE/HOST`, as Gateways and Sidecars have it."""
    namespace, slash, host = value.partition("/")
    if not slash:
        return (
            _edge_host_problem(value, gateway)
            if gateway
            else (f"{value!r} must be of the form NAMESPACE/HOST")
        )
    if not namespace or not host:
        return f"{value!r}: neither namespace nor host may be empty"
    free = ("*", ".") if gateway else ("*", ".", "~")
    if namespace not in free and not is_label(namespace):
        return f"{value!r}: {namespace!r} is not a namespace"
    return _edge_host_problem(host, gateway)


def _edge_host_problem(host: str, gateway: bool) -> str | None:
    if host != "*" and "." not in host and not (gateway and is_ip(host)):
        return f"{host!r}: short names are not allowed here"
    problem = wildcard_domain_problem(host)
    if problem and not (gateway and is_ip(host)):
        return problem
    return partial_wildcard_problem(host)


def label_key_problem(key: str) -> str | None:
    """Why it is not the key of a label: `[PREFIX/]NAME`."""
    prefix, slash, name = key.rpartition("/")
    if slash and not is_subdomain(prefix.lower()):
        return f"label key {key!r}: the prefix is not a domain name"
    if not _QUALIFIED_NAME.fullmatch(name):
        return f"label key {key!r} is invalid"
    return None


def label_value_problem(value: str) -> str | None:
    """Why it is not the value of a label."""
    if value and not _QUALIFIED_NAME.fullmatch(value):
        return f"label value {value!r} is invalid: at most 63 letters, digits, `-`, `_`, `.`"
    return None


def protocol_is_known(value: str) -> bool:
    """Whether a protocol by that name is known, in any case."""
    return value.lower() in _PROTOCOLS


def protocol_is_http(value: str) -> bool:
    """Whether requests of this protocol are HTTP."""
    return value.lower() in _HTTP


def protocol_is_tls(value: str) -> bool:
    """Whether connections of this protocol begin with TLS."""
    return value.lower() in _TLS


def protocol_is_tcp(value: str) -> bool:
    """Whether connections of this protocol are told apart by address alone, or by SNI."""
    return value.lower() in _TCP | _TLS


def host_matches(a: str, b: str) -> bool:
    """Whether there is a name that both hosts, each maybe with a wildcard, stand for."""
    if a == "*" or b == "*":
        return True
    if a.startswith("*") and b.startswith("*"):
        return a[1:].endswith(b[1:]) or b[1:].endswith(a[1:])
    if a.startswith("*"):
        return b.endswith(a[1:])
    if b.startswith("*"):
        return a.endswith(b[1:])
    return a == b


def host_is_subset(a: str, b: str) -> bool:
    """Whether every name that `a` stands for is one that `b` stands for."""
    if b.startswith("*"):
        return (a[1:] if a.startswith("*") else a).endswith(b[1:])
    return a == b
