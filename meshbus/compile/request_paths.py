"""Paths of requests as Envoy's connection manager hands them to filters.

Source: Envoy, HttpConnectionManager `normalize_path`, `merge_slashes`,
`path_with_escaped_slashes_action`; https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/
(ProxyPathNormalization).
"""

import re
import string

_UNRESERVED = frozenset(string.ascii_letters + string.digits + "-._~")
_ESCAPED = frozenset(' "<>`{}^|')
_SLASHES = re.compile(r"%(2f|5c)", re.IGNORECASE)
_MANY = re.compile("/{2,}")
_ENCODED = re.compile("%([0-9a-fA-F]{2})")


def normalized(path: str, how: str) -> str:
    """A path (with its query) after `NONE`, `BASE`, `MERGE_SLASHES` or
    `DECODE_AND_MERGE_SLASHES`."""
    if how == "NONE" or not path.startswith("/"):
        return path
    plain, mark, query = path.partition("?")
    if how == "DECODE_AND_MERGE_SLASHES":
        plain = _SLASHES.sub(lambda found: {"2f": "/", "5c": "\\"}[found[1].lower()], plain)
    plain = _canonical(plain)
    if how in {"MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"}:
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
