"""Conditions and values of AuthorizationPolicy.

Source: https://istio.io/latest/docs/reference/config/security/conditions/
"""

import re
from collections.abc import Iterable, Sequence

from meshbus.validate.names import subnet_problem

_IP_KEYS = frozenset({"source.ip", "remote.ip", "destination.ip"})
_PLAIN_KEYS = frozenset(
    {
        "source.namespace",
        "source.principal",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
        "connection.sni",
    }
)
_MAP_KEYS = (
    "request.headers",
    "request.experimental.inline.headers",
    "request.auth.claims",
    "experimental.envoy.filters.",
)
_REPLACED = {
    "destination.labels": "the selector",
    "destination.namespace": "metadata.namespace",
    "destination.name": "the selector",
    "destination.user": "the selector",
}
_LONGEST_SERVICE_ACCOUNT = 320
_MOST_SERVICE_ACCOUNTS = 16
_MATCH_ONE, _MATCH_ANY = "{*}", "{**}"
_SEGMENT = re.compile(r"[-a-zA-Z0-9._~%!$&'()+,;:@=]+")
"""What a segment of a path may hold (RFC 3986), but for `*`."""


def condition_problem(key: str, values: Sequence[str]) -> str | None:
    """Why a condition on the attribute with these values cannot be."""
    if "" in values:
        return "an empty value is not allowed"
    base = key.partition("[")[0]
    if base in _REPLACED:
        return f"attribute {key} is replaced by {_REPLACED[base]}"
    if key.startswith(_MAP_KEYS):
        if not re.fullmatch(r"[^\[\]]+(\[[^\[\]]+\])+", key):
            return f"bad key {key!r}: should have format a[b]"
        return None
    if key in _IP_KEYS:
        return _first(subnet_problem(value) for value in values)
    if key == "source.trustDomain":
        return _first(trust_domain_problem(value) for value in values)
    if key == "destination.port":
        return _first(port_problem(value) for value in values)
    if key == "source.serviceAccount":
        if len(values) > _MOST_SERVICE_ACCOUNTS:
            return f"at most {_MOST_SERVICE_ACCOUNTS} service accounts"
        return _first(service_account_problem(value) for value in values)
    return None if key in _PLAIN_KEYS else f"unknown attribute {key}"


def _first(problems: Iterable[str | None]) -> str | None:
    return next((problem for problem in problems if problem), None)


def port_problem(value: str) -> str | None:
    """Why it is not the number of a port; that of no port matches nothing, and is taken."""
    if value.isascii() and value.isdigit() and int(value) <= 65535:
        return None
    return f"invalid port {value!r}: port must be between 0-65535"


def trust_domain_problem(value: str) -> str | None:
    """Why it is no trust domain, nor `*` with the start or the end of one."""
    if "/" in value:
        return f"{value!r} is not a trust domain: it holds a slash"
    if "*" in value.removeprefix("*") and "*" in value[:-1]:
        return f"{value!r}: `*` may stand at one end only"
    return None


def service_account_problem(value: str) -> str | None:
    """Why it is not `SERVICE_ACCOUNT` or `NAMESPACE/SERVICE_ACCOUNT`."""
    if "*" in value:
        return f"{value!r}: wildcard not allowed"
    if len(value) > _LONGEST_SERVICE_ACCOUNT:
        return f"{value[:40]!r}… is longer than {_LONGEST_SERVICE_ACCOUNT}"
    if value.count("/") > 1 or not all(value.split("/")):
        return f"{value!r}: expected format 'serviceAccount' or 'namespace/serviceAccount'"
    return None


def path_template_problem(path: str) -> str | None:
    """Why a path with `{*}` or `{**}` cannot be matched."""
    templated = _MATCH_ONE in path or _MATCH_ANY in path
    any_seen = False
    for part in path.strip("/").split("/"):
        if part in (_MATCH_ONE, _MATCH_ANY):
            if any_seen:
                return f"invalid path {path!r}: {{**}} is not the last operator"
            any_seen = part == _MATCH_ANY
        elif "{" in part or "}" in part:
            return f"invalid path {path!r}: only {{*}} and {{**}} are supported, as whole segments"
        elif templated and not _SEGMENT.fullmatch(part):
            return f"invalid path {path!r}: {part!r} is not a segment beside a path template"
    return None
