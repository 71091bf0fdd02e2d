"""Values of an AuthorizationPolicy as Envoy's RBAC matches them.

A value may begin or end with `*`; `*` alone asks that there is something.
Source: https://istio.io/latest/docs/reference/config/security/authorization-policy/ and
https://istio.io/latest/docs/reference/config/security/conditions/
"""

import re
from functools import lru_cache
from ipaddress import ip_network

from envoy.config.core.v3 import address_pb2, extension_pb2
from envoy.config.rbac.v3 import rbac_pb2
from envoy.config.route.v3 import route_components_pb2 as rc_pb2
from envoy.extensions.path.match.uri_template.v3 import uri_template_match_pb2
from envoy.type.matcher.v3 import metadata_pb2, path_pb2, string_pb2, value_pb2

from meshbus.compile.findings import NotCompiledError
from meshbus.compile.values import any_of, regex, uint32

JWT_METADATA = "envoy.filters.http.jwt_authn"
JWT_PAYLOAD = "payload"
"""Where the filter of RequestAuthentication leaves the claims of a valid token."""
_SPIFFE = "spiffe://"
_META = re.compile(r"[\\.+*?()|\[\]{}^$]")
_ANYTHING = ".+"
remembered = lru_cache(maxsize=4096)
"""Policies repeat values, and messages are costly to make. What is remembered is never changed:
who puts it into another message copies it."""


def quoted(text: str) -> str:
    """The text as an RE2 expression that matches it alone."""
    return _META.sub(lambda found: "\\" + found[0], text)


def pattern(text: str) -> string_pb2.StringMatcher:
    """An RE2 expression for the whole text."""
    return string_pb2.StringMatcher(safe_regex=regex(text))


def text_matcher(value: str, *, ignore_case: bool = False) -> string_pb2.StringMatcher:
    """A value that may begin or end with `*`."""
    if value == "*":
        return pattern(_ANYTHING)
    if value.startswith("*"):
        return string_pb2.StringMatcher(suffix=value[1:], ignore_case=ignore_case)
    if value.endswith("*"):
        return string_pb2.StringMatcher(prefix=value[:-1], ignore_case=ignore_case)
    return string_pb2.StringMatcher(exact=value, ignore_case=ignore_case)


def header_matcher(name: str, value: str, *, ignore_case: bool = False) -> rc_pb2.HeaderMatcher:
    """A header with a value; `*`: that is there."""
    if value == "*":
        return rc_pb2.HeaderMatcher(name=name, present_match=True)
    matcher = text_matcher(value, ignore_case=ignore_case)
    return rc_pb2.HeaderMatcher(name=name, string_match=matcher)


def inline_header_matcher(name: str, value: str) -> rc_pb2.HeaderMatcher:
    """A header that is a list separated by commas, one entry of which has a value."""
    if value == "*":
        return rc_pb2.HeaderMatcher(name=name, present_match=True)
    if value.startswith("*"):
        entry = f".*{quoted(value[1:])}"
    elif value.endswith("*"):
        entry = f"{quoted(value[:-1])}.*"
    else:
        entry = quoted(value)
    return rc_pb2.HeaderMatcher(name=name, string_match=pattern(f"(.*,)?{entry}(,.*)?"))


def cidr(value: str) -> address_pb2.CidrRange:
    """An address or a network.

    Raises:
        NotCompiledError: It is neither.
    """
    try:
        network = ip_network(value, strict=False)
    except ValueError as error:
        raise NotCompiledError("", f"{value!r} is neither an address nor a network") from error
    return address_pb2.CidrRange(
        address_prefix=value.partition("/")[0], prefix_len=uint32(network.prefixlen)
    )


# --------------------------------------------------------------------------- who calls


def authenticated(matcher: string_pb2.StringMatcher) -> rbac_pb2.Principal:
    """A caller whose certificate has such a name."""
    return rbac_pb2.Principal(
        authenticated=rbac_pb2.Principal.Authenticated(principal_name=matcher)
    )


@remembered
def identity(value: str) -> rbac_pb2.Principal:
    """`TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT`, with wildcards."""
    if value != "*" and value.startswith("*"):
        return authenticated(pattern(f"{_SPIFFE}.*{quoted(value[1:])}"))
    return authenticated(text_matcher(value if value == "*" else _SPIFFE + value))


@remembered
def namespace_identity(value: str) -> rbac_pb2.Principal:
    """An identity of a namespace."""
    return authenticated(pattern(f".*/ns/{quoted(value).replace(chr(92) + '*', '.*')}/.*"))


@remembered
def service_account(value: str, namespace: str) -> rbac_pb2.Principal:
    """`ACCOUNT` of the policy's namespace, or `NAMESPACE/ACCOUNT`; in every trust domain."""
    owner, slash, name = value.partition("/")
    owner, name = (owner, name) if slash else (namespace, value)
    return authenticated(pattern(f"spiffe://.+/ns/{quoted(owner)}/(.+/|)sa/{quoted(name)}(/.+)?"))


def trust_domain(value: str) -> rbac_pb2.Principal:
    """An identity of a trust domain."""
    if value == "*":
        return authenticated(string_pb2.StringMatcher(prefix=_SPIFFE))
    if "*" not in value:
        return authenticated(string_pb2.StringMatcher(prefix=f"{_SPIFFE}{value}/"))
    return authenticated(pattern(f"{_SPIFFE}{quoted(value).replace(chr(92) + '*', '[^/]*')}/.*"))


@remembered
def token_identity(value: str) -> rbac_pb2.Principal:
    """`ISSUER/SUBJECT` of a token. Issuers contain slashes: the last one divides."""
    issuer, slash, subject = value.rpartition("/")
    if not slash:
        issuer, subject = value, ""
        if value == "*":
            subject = "*"
        elif value.startswith("*"):
            issuer, subject = "*", value
        elif value.endswith("*"):
            subject = "*"
    # A wildcard in front is the issuer's, one at the end the subject's; elsewhere it is a letter.
    ahead = value.startswith("*")
    behind = value.endswith("*") and not ahead
    return rbac_pb2.Principal(
        and_ids=rbac_pb2.Principal.Set(
            ids=[
                claim_principal(["iss"], _part(issuer, ahead or not slash)),
                claim_principal(["sub"], _part(subject, behind or not slash)),
            ]
        )
    )


def _part(text: str, wild: bool) -> value_pb2.ValueMatcher:
    return value_of_text(text_matcher(text) if wild else string_pb2.StringMatcher(exact=text))


def value_of_text(matcher: string_pb2.StringMatcher) -> value_pb2.ValueMatcher:
    """A value that is such a text."""
    return value_pb2.ValueMatcher(string_match=matcher)


def claim_principal(path: list[str], value: value_pb2.ValueMatcher) -> rbac_pb2.Principal:
    """A claim of a valid token."""
    return rbac_pb2.Principal(metadata=metadata(JWT_METADATA, [JWT_PAYLOAD, *path], value))


def claim_values(values: list[str]) -> value_pb2.ValueMatcher:
    """A claim that is one of the values, or a list that has one of them."""
    one = any_value([value_of_text(text_matcher(v)) for v in values])
    listed = value_pb2.ValueMatcher(list_match=value_pb2.ListMatcher(one_of=one))
    return any_value([listed, one])


def any_value(values: list[value_pb2.ValueMatcher]) -> value_pb2.ValueMatcher:
    """One of several."""
    if len(values) == 1:
        return values[0]
    return value_pb2.ValueMatcher(or_match=value_pb2.OrMatcher(value_matchers=values))


def metadata(
    name: str, path: list[str], value: value_pb2.ValueMatcher
) -> metadata_pb2.MetadataMatcher:
    """Dynamic metadata that a filter has left."""
    return metadata_pb2.MetadataMatcher(
        filter=name,
        path=[metadata_pb2.MetadataMatcher.PathSegment(key=key) for key in path],
        value=value,
    )


# --------------------------------------------------------------------------- what is asked


@remembered
def path_permission(value: str) -> rbac_pb2.Permission:
    """A path without query: a value with wildcards, or a template with `{*}` and `{**}`."""
    if "{*}" not in value and "{**}" not in value:
        return rbac_pb2.Permission(url_path=path_pb2.PathMatcher(path=text_matcher(value)))
    template = value.replace("{*}", "*").replace("{**}", "**")
    config = uri_template_match_pb2.UriTemplateMatchConfig(path_template=template)
    return rbac_pb2.Permission(
        uri_template=extension_pb2.TypedExtensionConfig(
            name="uri-template", typed_config=any_of(config)
        )
    )


@remembered
def port_permission(value: str) -> rbac_pb2.Permission:
    """A port of the workload.

    Raises:
        NotCompiledError: It is none.
    """
    if not (value.isascii() and value.isdigit() and int(value) < 65536):
        raise NotCompiledError("", f"{value!r} is not a port")
    return rbac_pb2.Permission(destination_port=int(value))


def filter_metadata(key: str, values: list[str]) -> rbac_pb2.Permission:
    """`experimental.envoy.filters.NAME[KEY]`: metadata of an Envoy filter; `[v]` asks for a list
    that has `v`."""
    name, _, rest = key.removeprefix("experimental.").partition("[")
    matchers = []
    for value in values:
        inner = value_of_text(text_matcher(value.strip("[]")))
        listed = value.startswith("[") and value.endswith("]")
        matchers.append(
            value_pb2.ValueMatcher(list_match=value_pb2.ListMatcher(one_of=inner))
            if listed
            else value_of_text(text_matcher(value))
        )
    return rbac_pb2.Permission(
        metadata=metadata(name, [rest.removesuffix("]")], any_value(matchers))
    )
