"""`http[].match` of a virtual service: which requests a route is for."""

from typing import Any

from envoy.config.route.v3 import route_components_pb2 as rc_pb2
from envoy.type.matcher.v3 import metadata_pb2, value_pb2

from meshbus.compile.authorization_matchers import (
    JWT_METADATA,
    JWT_PAYLOAD,
    any_value,
    metadata,
)
from meshbus.compile.findings import NotCompiledError
from meshbus.compile.values import boolean, is_presence, regex, string_matcher

_ANY_PATH = rc_pb2.RouteMatch(prefix="/")
_CLAIMS = "@request.auth.claims"


def claim_of(name: str) -> list[str]:
    """The claim of a token that a header match is about, `@request.auth.claims.a.b` or
    `@request.auth.claims[a][b]`; empty: it is about a header.

    Source: Istio, "JWT claim based routing"; case counts in the claim alone.
    """
    rest = name[len(_CLAIMS) :]
    if name[: len(_CLAIMS)].lower() != _CLAIMS:
        return []
    if rest.startswith(".") and len(rest) > 1:
        return rest[1:].split(".")
    if rest.startswith("[") and rest.endswith("]") and len(rest) > 2:
        return rest[1:-1].split("][")
    return []


def route_match(match: dict[str, Any] | None, path: str) -> rc_pb2.RouteMatch:
    """Envoy's match of one HTTPMatchRequest; None matches everything.

    Raises:
        NotCompiledError: A matcher without a value, or one that is not compiled.
    Source: Istio, HTTPMatchRequest reference and TranslateRouteMatch.
    """
    out = rc_pb2.RouteMatch()
    out.CopyFrom(_ANY_PATH)
    if match is None:
        return out
    headers = match.get("headers") or {}
    without = match.get("withoutHeaders") or {}
    for name in sorted({*headers, *without}):
        claim = claim_of(name)
        if claim:
            for field, matches in (("headers", headers), ("withoutHeaders", without)):
                if name in matches:
                    where = f"{path}.{field}[{name}]"
                    matched = claim_matcher(claim, matches[name], where)
                    matched.invert = field == "withoutHeaders"
                    out.dynamic_metadata.append(matched)
            continue
        if name in headers:
            out.headers.append(header_matcher(name, headers[name], f"{path}.headers[{name}]"))
        if name in without:
            matcher = header_matcher(name, without[name], f"{path}.withoutHeaders[{name}]")
            matcher.invert_match = True
            if not is_presence(without[name]):
                matcher.treat_missing_header_as_empty = True
            out.headers.append(matcher)
    uri = match.get("uri")
    if uri:
        if "exact" in uri:
            out.path = str(uri["exact"])
        elif "prefix" in uri:
            out.prefix = str(uri["prefix"])
        elif "regex" in uri:
            out.safe_regex.CopyFrom(regex(str(uri["regex"])))
        else:
            raise NotCompiledError(f"{path}.uri", "one of exact, prefix and regex is needed")
    out.case_sensitive.CopyFrom(boolean(not match.get("ignoreUriCase", False)))
    for field, header in (
        ("method", ":method"),
        ("authority", ":authority"),
        ("scheme", ":scheme"),
    ):
        if match.get(field):
            out.headers.append(header_matcher(header, match[field], f"{path}.{field}"))
    for name in sorted(match.get("queryParams") or {}):
        value = match["queryParams"][name]
        query = out.query_parameters.add(name=name)
        if is_presence(value):
            query.present_match = True
        else:
            query.string_match.CopyFrom(string_matcher(value, f"{path}.queryParams[{name}]"))
    return out


def claim_matcher(
    claim: list[str], match: dict[str, Any] | None, path: str
) -> metadata_pb2.MetadataMatcher:
    """A claim of the token that RequestAuthentication has found valid: its text, or one of them
    when it is a list.

    Source: Istio, "JWT claim based routing".
    """
    if match is None or is_presence(match):
        return metadata(
            JWT_METADATA, [JWT_PAYLOAD, *claim], value_pb2.ValueMatcher(present_match=True)
        )
    text = value_pb2.ValueMatcher(string_match=string_matcher(match, path))
    listed = value_pb2.ValueMatcher(list_match=value_pb2.ListMatcher(one_of=text))
    return metadata(JWT_METADATA, [JWT_PAYLOAD, *claim], any_value([listed, text]))


def header_matcher(name: str, match: dict[str, Any] | None, path: str) -> rc_pb2.HeaderMatcher:
    """A header that is there, or whose value matches."""
    if match is None or is_presence(match):
        return rc_pb2.HeaderMatcher(name=name, present_match=True)
    return rc_pb2.HeaderMatcher(name=name, string_match=string_matcher(match, path))


def is_catch_all(match: rc_pb2.RouteMatch) -> bool:
    """Every request matches: routes after it are never reached."""
    specifier = match.WhichOneof("path_specifier")
    any_path = (specifier == "prefix" and match.prefix == "/") or (
        specifier == "safe_regex" and match.safe_regex.regex in {"*", ".*"}
    )
    selective = match.headers or match.query_parameters or match.dynamic_metadata
    return any_path and not selective


def described(match: rc_pb2.RouteMatch) -> str:
    """The path of a match as it stands in span names."""
    specifier = match.WhichOneof("path_specifier")
    if specifier == "path":
        return str(match.path)
    if specifier == "safe_regex":
        return str(match.safe_regex.regex)
    return f"{match.prefix}*"
