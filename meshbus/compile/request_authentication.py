"""RequestAuthentication: which tokens of requests are valid.

A request without token passes, one with an invalid token is answered 401; what a valid one says is
left in dynamic metadata, where AuthorizationPolicy reads it.
Source: https://istio.io/latest/docs/reference/config/security/request_authentication/
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from envoy.config.core.v3 import extension_pb2
from envoy.extensions.filters.http.jwt_authn.v3 import config_pb2 as jwt_pb2

from meshbus.compile.authorization_matchers import JWT_METADATA, JWT_PAYLOAD
from meshbus.compile.engine import Reader
from meshbus.compile.findings import Finding, Part
from meshbus.compile.key_sets import keys_of
from meshbus.compile.legacy_authentication import (
    MAX_NEEDS,
    combinations_of,
    legacy_tokens,
    needs,
    rule_of_origin,
)
from meshbus.compile.resources import ECDS, TYPE_PREFIX, encode
from meshbus.compile.settings import mesh
from meshbus.compile.targets import Labels, Target, target_of
from meshbus.compile.values import any_of
from meshbus.compile.written import entries, fields, texts
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject
from meshbus.model.world import Query

TOKENS = JWT_METADATA
"""Name of the filter and of its configuration."""
TOKENS_TYPE = TYPE_PREFIX + jwt_pb2.JwtAuthentication.DESCRIPTOR.full_name
_NOBODY = (
    '{"keys":[{"kty":"EC","crv":"P-256","kid":"nobody",'
    '"x":"jerhqj-7qU22jFEOcn_C3kv0ZE1TDkQwFrGeKYdKlW4",'
    '"y":"J-I2cyKTSg-dTq6O-ZM7wPi8PXArLzAoYiW7rwHkhwk"}]}'
)
"""A key that nobody has: Envoy refuses an empty set, and tokens whose keys are not known must not
pass. Its x is SHA-256 of `meshbus: a key that nobody has/0`, its y the smaller root."""
_PLURAL = "requestauthentications"
_SPACE_DELIMITED = ("scope", "permission")
"""Claims that are lists in practice although they are written as one text."""


class AuthenticationHead(NamedTuple):
    """Whom a RequestAuthentication concerns."""

    key: Key
    target: Target


def authentication_heads(reader: Reader, namespace: str) -> tuple[AuthenticationHead, ...]:
    """Node: RequestAuthentications of a namespace, older first."""
    entries = sorted(
        reader.entries(Query("cfg.requestauthentications", "namespace", namespace)),
        key=lambda e: (e.row.created, e.row.name),
    )
    return tuple(
        AuthenticationHead(e.key, target_of(e.row.spec)) for e in entries if e.row.deletion is None
    )


def authentications_of(reader: Reader, namespace: str, labels: Labels) -> tuple[Key, ...]:
    """The RequestAuthentications of workloads of these labels: all that concern them count. Where
    none does, the policy of Istio 1.4 that does."""
    root = reader.node(mesh).root_namespace
    found = tuple(
        head.key
        for owner in dict.fromkeys((root, namespace))
        for head in reader.node(authentication_heads, owner)
        if head.target.concerns(labels, namespace == owner)
    )
    return found or legacy_tokens(reader, namespace, labels)


def token_filter(reader: Reader, keys: tuple[Key, ...]) -> Part:
    """Node: the configuration of the filter that checks tokens, for these objects.

    Each rule accepts what it verifies, or a request that has no token for it.
    """
    out = jwt_pb2.JwtAuthentication(bypass_cors_preflight=True)
    findings: list[Finding] = []
    requirements: list[jwt_pb2.JwtRequirement] = []
    for key in keys:
        row = reader.get(key)
        if row is None:
            continue
        if key.kind != _PLURAL:
            findings += _legacy(reader, key, row, out)
            continue
        for index, rule in enumerate(entries(row.spec.get("jwtRules"))):
            name = f"{row.namespace}/{row.name}/{index}"
            findings += _add_provider(reader, key, f"spec.jwtRules[{index}]", name, rule, out)
            requirement = jwt_pb2.JwtRequirement()
            either = requirement.requires_any.requirements
            either.add(provider_name=name)
            either.add().allow_missing.SetInParent()
            requirements.append(requirement)
    if requirements:
        everywhere = out.rules.add()
        everywhere.match.prefix = "/"
        if len(requirements) == 1:
            everywhere.requires.CopyFrom(requirements[0])
        else:
            # A token of one issuer is nothing to the rule of another that looks in the same place:
            # either one rule takes it, or each rule takes what it finds in its own place.
            one_of = everywhere.requires.requires_any.requirements
            for requirement in requirements:
                one_of.add().CopyFrom(requirement.requires_any.requirements[0])
            one_of.add().requires_all.requirements.extend(requirements)
    extension = extension_pb2.TypedExtensionConfig(name=TOKENS, typed_config=any_of(out))
    return Part((encode(reader, ECDS, TOKENS, extension, keys),), tuple(findings))


def _add_provider(
    reader: Reader,
    key: Key,
    path: str,
    name: str,
    rule: Mapping[str, Any],
    out: jwt_pb2.JwtAuthentication,
) -> list[Finding]:
    keys_text, fault = keys_of(reader, rule)
    out.providers[name].CopyFrom(_provider(rule, keys_text or _NOBODY))
    if fault is None:
        return []
    message = f"{fault.message}: every token of the issuer is refused"
    return [Finding(key, f"{path}.{fault.path}", message)]


def _legacy(
    reader: Reader, key: Key, row: ConfigObject, out: jwt_pb2.JwtAuthentication
) -> list[Finding]:
    """Origins of a policy of Istio 1.4: one of them must be good, on paths that ask for it."""
    findings: list[Finding] = []
    origins = [fields(origin.get("jwt")) for origin in entries(row.spec.get("origins"))]
    if combinations_of(origins) > MAX_NEEDS:
        message = "too many combinations of trigger rules: tokens are asked for on every path"
        findings.append(Finding(key, "spec.origins", message))
        origins = [{n: v for n, v in jwt.items() if n != "triggerRules"} for jwt in origins]
    names = [f"{row.namespace}/{row.name}/{index}" for index in range(len(origins))]
    for index, jwt in enumerate(origins):
        path = f"spec.origins[{index}].jwt"
        findings += _add_provider(reader, key, path, names[index], rule_of_origin(jwt), out)
    for need in needs(origins):
        rule = out.rules.add()
        rule.match.CopyFrom(need.match)
        one_of = rule.requires.requires_any.requirements
        for index in need.origins:
            one_of.add(provider_name=names[index])
        if row.spec.get("originIsOptional"):
            one_of.add().allow_missing_or_failed.SetInParent()
        elif len(need.origins) == 1:
            rule.requires.provider_name = names[need.origins[0]]
    return findings


def _provider(rule: Mapping[str, Any], keys: str) -> jwt_pb2.JwtProvider:
    provider = jwt_pb2.JwtProvider(
        issuer=str(rule.get("issuer") or ""),
        audiences=texts(rule.get("audiences")),
        forward=bool(rule.get("forwardOriginalToken")),
        forward_payload_header=str(rule.get("outputPayloadToHeader") or ""),
        payload_in_metadata=JWT_PAYLOAD,
        # Routes may be chosen by claims, which are not known before this filter has run.
        clear_route_cache=True,
        from_params=texts(rule.get("fromParams")),
        from_cookies=texts(rule.get("fromCookies")),
    )
    for header in entries(rule.get("fromHeaders")):
        provider.from_headers.add(
            name=str(header.get("name") or ""), value_prefix=str(header.get("prefix") or "")
        )
    for claim in entries(rule.get("outputClaimToHeaders")):
        provider.claim_to_headers.add(
            header_name=str(claim.get("header") or ""), claim_name=str(claim.get("claim") or "")
        )
    spaced = dict.fromkeys((*_SPACE_DELIMITED, *texts(rule.get("spaceDelimitedClaims"))))
    provider.normalize_payload_in_metadata.space_delimited_claims.extend(spaced)
    provider.local_jwks.inline_string = keys
    return provider
