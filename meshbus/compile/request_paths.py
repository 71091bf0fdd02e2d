"""Paths of requests as Envoy's connection manager hands them to filters.

Source: Envoy, HttpConnectionManager `normalize_path`, `merge_slashes`,
`path_with_escaped_slashes_action`; https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/
(ProxyPathNormalization).
"""

import re
import string
from typing import NamedTuple

_UNRESERVED = frozenset(string.ascii_letters + string.digits + "-._~")
_ESCAPED = frozenset(' "<>`{}^|')
_SLASHES = re.compile(r"%(2f|5c)", re.IGNORECASE)
_MANY = re.compile("/{2,}")
_ENCODED = re.compile("%([0-9a-fA-F]{2})")


class PathRules(NamedTuple):
    """What a connection manager does to paths."""

    normalize: bool = True
    """As RFC 3986 says."""
    merge_slashes: bool = False
    escaped_slashes: str = "IMPLEMENTATION_SPECIFIC_DEFAULT"
    """A `PathWithEscapedSlashesAction` of Envoy's connection manager."""


def rules_of(normalization: str) -> PathRules:
    """What `pathNormalization` says: `NONE`, `BASE`, `MERGE_SLASHES` or
    `DECODE_AND_MERGE_SLASHES`."""
    decoded = normalization == "DECODE_AND_MERGE_SLASHES"
    return PathRules(
        normalization != "NONE",
        decoded or normalization == "MERGE_SLASHES",
        "UNESCAPE_AND_FORWARD" if decoded else "IMPLEMENTATION_SPECIFIC_DEFAULT",
    )


def normalized(path: str, rules: PathRules) -> str | None:
    """A path (with its query) as filters see it; a client that is redirected comes with that path.
    None: the request is refused for its escaped slashes."""
    if not path.startswith("/"):
        return path
    plain, mark, query = path.partition("?")
    if rules.escaped_slashes == "REJECT_REQUEST" and _SLASHES.search(plain):
        return None
    if rules.escaped_slashes in {"UNESCAPE_AND_FORWARD", "UNESCAPE_AND_REDIRECT"}:
        plain = _SLASHES.sub(lambda found: {"2f": "/", "5c": "\\"}[found[1].lower()], plain)
    if rules.normalize:
        plain = _canonical(plain)
    if rules.merge_slashes:
        plain = _MANY.sub("/", plain)
    return plain + mark + query


def _canonical(path: str) -> str:
    """RFC 3986 6.2.2: dots resolved, what needs no escape written plainly, `\\` as `/`."""
    path = _ENCODED.sub(_decoded, path).replace("\\", "/")
    path = "".join(f"%{ord(c):02X}" if c in _ESCAPED else c for c in path)
    out: list[str] = []
    segments = path.split("/")[1:]
    for number, segment in enumerate(segments):
        last = number == len(segments) - 1
        if segment == ".":
            if last:
                out.append("")
        elif segment == "..":
            if out:
                out.pop()
            if last:
                out.append("")
        else:
            out.append(segment)
    return "/" + "/".join(out)


def _decoded(found: re.Match[str]) -> str:
    character = chr(int(found[1], 16))
    return character if character in _UNRESERVED else found[0]
