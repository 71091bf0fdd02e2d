"""Rules of a VirtualService that no request can reach: warnings."""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UnsetType

from meshbus.api.networking.virtual_service import HTTPMatchRequest, StringMatch, VirtualService
from meshbus.validate.malformed import independent
from meshbus.validate.report import Findings


@independent
def find_unreachable(spec: VirtualService, out: Findings) -> None:
    """Warns of rules and matches that earlier ones leave nothing for."""
    for field, routes in (("http", spec.http), ("tls", spec.tls), ("tcp", spec.tcp)):
        _find_duplicates(field, routes, out)
    _find_covered(spec, out)


@independent
def _find_duplicates(field: str, routes: Sequence[Any], out: Findings) -> None:
    seen: dict[bytes, int] = {}
    empty: int | None = None
    for index, route in enumerate(routes):
        path = f"spec.{field}[{index}]"
        if not route.match:
            if empty is not None:
                message = "rule not used (only the last rule can have no matches)"
                out.warn(path, message, "VirtualServiceUnreachableRule")
            empty = index
            continue
        duplicates = 0
        for number, match in enumerate(route.match):
            nameless = (
                msgspec.structs.replace(match, name="") if field == "http" and match.name else match
            )
            key = msgspec.json.encode(nameless, order="deterministic")
            if key in seen:
                duplicates += 1
                message = f"match not used (duplicate of a match in rule #{seen[key]})"
                out.warn(f"{path}.match[{number}]", message, "VirtualServiceIneffectiveMatch")
            else:
                seen[key] = index
        if duplicates == len(route.match):
            message = "rule not used (all matches used by prior rules)"
            out.warn(path, message, "VirtualServiceUnreachableRule")


@independent
def _find_covered(spec: VirtualService, out: Findings) -> None:
    prefixes: list[tuple[str, str, HTTPMatchRequest]] = []
    for index, route in enumerate(spec.http):
        for number, match in enumerate(route.match):
            if isinstance(match.uri, UnsetType) or not match.uri.prefix:
                continue
            at = f"spec.http[{index}].match[{number}]"
            for earlier, prefix, other in prefixes:
                longer = match.uri.prefix != prefix and match.uri.prefix.startswith(prefix)
                if longer and _rest_covers(other, match):
                    message = f"match not used (prefix {prefix!r} of {earlier} comes first)"
                    out.warn(at, message, "VirtualServiceIneffectiveMatch")
            prefixes.append((at, match.uri.prefix, match))


def _rest_covers(earlier: HTTPMatchRequest, later: HTTPMatchRequest) -> bool:
    return (
        earlier.port == later.port
        and (isinstance(earlier.method, UnsetType) or _text(earlier.method) == _text(later.method))
        and _text(earlier.authority) == _text(later.authority)
        and earlier.headers == later.headers
        and earlier.query_params == later.query_params
        and earlier.without_headers == later.without_headers
        and earlier.source_labels == later.source_labels
        and earlier.gateways == later.gateways
        and earlier.source_namespace == later.source_namespace
    )


def _text(match: StringMatch | UnsetType) -> bytes:
    return b"" if isinstance(match, UnsetType) else msgspec.json.encode(match)
