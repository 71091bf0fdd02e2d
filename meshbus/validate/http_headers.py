"""Headers that routes change or match.

Source: https://istio.io/latest/docs/reference/config/networking/virtual-service/#Headers and, for
`%...%`, https://www.envoyproxy.io/docs/envoy/latest/configuration/observability/access_log/usage
"""

import re

from msgspec import UnsetType

from meshbus.api.networking.virtual_service import HeaderOperations, Headers
from meshbus.validate.malformed import independent
from meshbus.validate.names import is_header_name
from meshbus.validate.report import Findings

_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f]")
_CLAIM = re.compile(r"@request\.auth\.claims(?:\..+|\[.+\])", re.IGNORECASE)
_PSEUDO = frozenset({":method", ":scheme", ":authority", ":path", ":status"})
_ARGUMENT = r"""\[\ *(?:"(?:\\.|[^"\\)])*"\ *(?:,\ *|(?=\])))+\]\ *|[^ \["](?:\\.|[^)"\\])*"""
_COMMAND = re.compile(rf"%%|%[^%(]+(?:\(\ *(?:{_ARGUMENT})\)(?::\d+)?\ *)?%")
"""`%%`, `%NAME%`, `%NAME(text)%`, `%NAME(["text", ...])%`, `%NAME(text):LENGTH%`."""


def is_authority(name: str) -> bool:
    """Whether the header is the authority of the request."""
    return name.lower() in (":authority", "host")


def is_claim_match(name: str) -> bool:
    """Whether a match is on a claim of a token instead of a header."""
    return bool(_CLAIM.fullmatch(name))


@independent
def check_matched_name(name: str, path: str, out: Findings) -> None:
    """The name of a header that a route matches."""
    if not name:
        out.required(path, "the name of a header cannot be empty")
    elif not is_claim_match(name) and name not in _PSEUDO and not is_header_name(name):
        out.error(path, f"{name!r} is not the name of a header")


@independent
def _check_changed_name(name: str, path: str, out: Findings, *, authority: bool) -> None:
    if not name:
        out.required(path, "the name of a header cannot be empty")
    elif name.startswith(":") and not (authority and is_authority(name)):
        out.error(path, f"{name!r}: headers that begin with ':' cannot be changed here")
    elif name.lower() == "host" and not authority:
        out.error(path, "the Host header cannot be changed here")


def header_value_problem(value: str) -> str | None:
    """Why the value of a header is not one that Envoy takes: `%NAME%` and `%NAME(...)%` stand for
    something, `%%` for a percent sign."""
    if value and _CONTROL.search(value):
        return "holds control characters"
    position = 0
    while (position := value.find("%", position)) >= 0:
        command = _COMMAND.match(value, position)
        if command is None:
            return f"{value!r}: '%' begins no command; write '%%' for a percent sign"
        position = command.end()
    return None


@independent
def _check_operations(
    operations: HeaderOperations, path: str, out: Findings, *, request: bool
) -> None:
    for verb, changes in (("add", operations.add), ("set", operations.set)):
        for name, value in changes.items():
            at = f"{path}.{verb}[{name}]"
            _check_changed_name(name, at, out, authority=request)
            if problem := header_value_problem(value):
                out.error(at, f"header value {problem}")
    for index, name in enumerate(operations.remove):
        _check_changed_name(name, f"{path}.remove[{index}]", out, authority=False)


@independent
def check_headers(headers: Headers | UnsetType, path: str, out: Findings) -> None:
    """The changes to headers of a route or destination."""
    if isinstance(headers, UnsetType):
        return
    if not isinstance(headers.request, UnsetType):
        _check_operations(headers.request, f"{path}.request", out, request=True)
    if not isinstance(headers.response, UnsetType):
        _check_operations(headers.response, f"{path}.response", out, request=False)
