"""What Envoy's RBAC decides about a request: its protos, evaluated as Envoy does.

Source: Envoy's documentation of the RBAC filters and of type.matcher; equality with a real Envoy is
tested over generated policies and requests.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple

import re2
from envoy.config.rbac.v3 import rbac_pb2
from envoy.config.route.v3 import route_components_pb2 as rc_pb2
from envoy.extensions.path.match.uri_template.v3 import uri_template_match_pb2
from envoy.type.matcher.v3 import metadata_pb2, string_pb2, value_pb2

_CHARACTERS = r"a-zA-Z0-9\-._~%!$&'()*+,;:@="
_ONE_SEGMENT, _SEGMENTS = f"[{_CHARACTERS}]+", f"[{_CHARACTERS}/]*"
"""What `*` and `**` of a template match. Source: Envoy, uri_template path matcher."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request or a TCP connection, as the server's Envoy sees it."""

    identity: str = ""
    """The URI of the caller's certificate, `spiffe://...`; empty: plaintext."""
    source_ip: str = "127.0.0.1"
    """Of the connection."""
    remote_ip: str = ""
    """Of the original client; empty: as `source_ip`."""
    destination_ip: str = "127.0.0.1"
    port: int = 80
    """Of the workload."""
    sni: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Names in lower case, with `:authority`, `:method` and `:path`; empty for TCP."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What filters before have left, by filter: claims of a valid token are
    `{"envoy.filters.http.jwt_authn": {"payload": {...}}}`."""

    @property
    def path(self) -> str:
        """Without query and fragment."""
        return self.headers.get(":path", "").partition("?")[0].partition("#")[0]


class Verdict(NamedTuple):
    """What one set of rules says."""

    allowed: bool
    rule: str
    """The first by name of the rules that match; empty: none does."""


def decide(rules: rbac_pb2.RBAC, asked: Asked) -> Verdict:
    """What rules of one action decide. LOG allows everything: its rule is what is logged."""
    matched = next((n for n in sorted(rules.policies) if _holds(rules.policies[n], asked)), "")
    if rules.action == rbac_pb2.RBAC.ALLOW:
        return Verdict(bool(matched), matched)
    return Verdict(rules.action != rbac_pb2.RBAC.DENY or not matched, matched)


def _holds(policy: rbac_pb2.Policy, asked: Asked) -> bool:
    return any(_permits(p, asked) for p in policy.permissions) and any(
        _is(p, asked) for p in policy.principals
    )


def _permits(rule: rbac_pb2.Permission, asked: Asked) -> bool:
    match rule.WhichOneof("rule"):
        case "any":
            return bool(rule.any)
        case "and_rules":
            return all(_permits(r, asked) for r in rule.and_rules.rules)
        case "or_rules":
            return any(_permits(r, asked) for r in rule.or_rules.rules)
        case "not_rule":
            return not _permits(rule.not_rule, asked)
        case "header":
            return header_matches(rule.header, asked.headers)
        case "url_path":
            return bool(asked.headers) and text_matches(rule.url_path.path, asked.path)
        case "destination_ip":
            return _within(rule.destination_ip, asked.destination_ip)
        case "destination_port":
            return int(rule.destination_port) == asked.port
        case "requested_server_name":
            return text_matches(rule.requested_server_name, asked.sni)
        case "metadata":
            return _metadata_matches(rule.metadata, asked.metadata)
        case "uri_template":
            template = uri_template_match_pb2.UriTemplateMatchConfig()
            rule.uri_template.typed_config.Unpack(template)
            pattern = _template(template.path_template)
            return bool(asked.headers) and pattern.fullmatch(asked.path) is not None
        case other:
            raise ValueError(f"permission {other} is not made by this compiler")


def _is(principal: rbac_pb2.Principal, asked: Asked) -> bool:
    match principal.WhichOneof("identifier"):
        case "any":
            return bool(principal.any)
        case "and_ids":
            return all(_is(p, asked) for p in principal.and_ids.ids)
        case "or_ids":
            return any(_is(p, asked) for p in principal.or_ids.ids)
        case "not_id":
            return not _is(principal.not_id, asked)
        case "authenticated":
            name = principal.authenticated.principal_name
            return bool(asked.identity) and text_matches(name, asked.identity)
        case "direct_remote_ip":
            return _within(principal.direct_remote_ip, asked.source_ip)
        case "remote_ip":
            return _within(principal.remote_ip, asked.remote_ip or asked.source_ip)
        case "header":
            return header_matches(principal.header, asked.headers)
        case "metadata":
            return _metadata_matches(principal.metadata, asked.metadata)
        case other:
            raise ValueError(f"principal {other} is not made by this compiler")


# --------------------------------------------------------------------------- matchers


def header_matches(matcher: rc_pb2.HeaderMatcher, headers: Mapping[str, str]) -> bool:
    """A header that is not there matches only what asks for its absence."""
    value = headers.get(matcher.name.lower())
    kind = matcher.WhichOneof("header_match_specifier")
    if kind == "present_match":
        there = (value is not None) == bool(matcher.present_match)
        return there != bool(matcher.invert_match)
    if value is None:
        return False
    if kind == "string_match":
        return text_matches(matcher.string_match, value) != bool(matcher.invert_match)
    raise ValueError(f"header match {kind} is not made by this compiler")


def text_matches(matcher: string_pb2.StringMatcher, text: str) -> bool:
    """A text as Envoy compares it."""
    kind = matcher.WhichOneof("match_pattern")
    if kind == "safe_regex":
        return _regex(matcher.safe_regex.regex).fullmatch(text) is not None
    wanted = str(getattr(matcher, kind or "exact"))
    if matcher.ignore_case:
        wanted, text = wanted.lower(), text.lower()
    match kind:
        case "prefix":
            return text.startswith(wanted)
        case "suffix":
            return text.endswith(wanted)
        case "contains":
            return wanted in text
    return text == wanted


def _metadata_matches(matcher: metadata_pb2.MetadataMatcher, metadata: Mapping[str, Any]) -> bool:
    value: Any = metadata.get(matcher.filter)
    for segment in matcher.path:
        if not isinstance(value, Mapping):
            value = None
            break
        value = value.get(segment.key)
    return _value_matches(matcher.value, value) != bool(matcher.invert)


def _value_matches(matcher: value_pb2.ValueMatcher, value: Any) -> bool:
    match matcher.WhichOneof("match_pattern"):
        case "string_match":
            return isinstance(value, str) and text_matches(matcher.string_match, value)
        case "list_match":
            one = matcher.list_match.one_of
            return isinstance(value, list) and any(_value_matches(one, v) for v in value)
        case "or_match":
            return any(_value_matches(m, value) for m in matcher.or_match.value_matchers)
        case other:
            raise ValueError(f"value match {other} is not made by this compiler")


def _within(cidr: Any, address: str) -> bool:
    # An IPv4 address in IPv6 clothes is that IPv4 address.
    one = ip_address(address)
    mapped = getattr(one, "ipv4_mapped", None)
    network = _network(cidr.address_prefix, cidr.prefix_len.value)
    return (mapped or one) in network


@lru_cache(maxsize=4096)
def _network(prefix: str, length: int) -> Any:
    return ip_network(f"{prefix}/{length}", strict=False)


@lru_cache(maxsize=4096)
def _regex(text: str) -> Any:
    return re2.compile(text)


@lru_cache(maxsize=1024)
def _template(text: str) -> Any:
    wild = {"*": _ONE_SEGMENT, "**": _SEGMENTS}
    return re2.compile("/".join(wild.get(s) or re2.escape(s) for s in text.split("/")))
