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
from meshbus.compile.resources import ECDS, TYPE_PREFIX, encode
from meshbus.compile.settings import mesh
from meshbus.compile.targets import Labels, Target, target_of
from meshbus.compile.values import any_of
from meshbus.model.keys import Key
from meshbus.model.world import Query

TOKENS = JWT_METADATA
"""Name of the filter and of its configuration."""
TOKENS_TYPE = TYPE_PREFIX + jwt_pb2.JwtAuthentication.DESCRIPTOR.full_name
_NO_KEYS = '{"keys":[]}'
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
    """The RequestAuthentications of workloads of these labels: all that concern them count."""
    root = reader.node(mesh).root_namespace
    return tuple(
        head.key
        for owner in dict.fromkeys((root, namespace))
        for head in reader.node(authentication_heads, owner)
        if head.target.concerns(labels, namespace == owner)
    )


def token_filter(reader: Reader, keys: tuple[Key, ...]) -> Part:
    """Node: the configuration of the filter that checks tokens, for these objects.

    Each rule accepts what it verifies, or a request that has no token for it.
    """
    out = jwt_pb2.JwtAuthentication(bypass_cors_preflight=True)
    findings: list[Finding] = []
    requirements: list[jwt_pb2.JwtRequirement] = []
    for key in keys:
        row = reader.get(key)
        for index, rule in enumerate(row.spec.get("jwtRules") or () if row is not None else ()):
            name = f"{row.namespace}/{row.name}/{index}"
            out.providers[name].CopyFrom(_provider(rule))
            if not rule.get("jwks"):
                message = (
                    "keys are not fetched by this release: every token of the issuer is refused; "
                    "give them in `jwks`"
                )
                findings.append(Finding(key, f"spec.jwtRules[{index}].jwksUri", message))
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
            everywhere.requires.requires_all.requirements.extend(requirements)
    extension = extension_pb2.TypedExtensionConfig(name=TOKENS, typed_config=any_of(out))
    return Part((encode(reader, ECDS, TOKENS, extension, keys),), tuple(findings))


def _provider(rule: Mapping[str, Any]) -> jwt_pb2.JwtProvider:
    provider = jwt_pb2.JwtProvider(
        issuer=str(rule.get("issuer") or ""),
        audiences=[str(a) for a in rule.get("audiences") or ()],
        forward=bool(rule.get("forwardOriginalToken")),
        forward_payload_header=str(rule.get("outputPayloadToHeader") or ""),
        payload_in_metadata=JWT_PAYLOAD,
        from_params=[str(p) for p in rule.get("fromParams") or ()],
        from_cookies=[str(c) for c in rule.get("fromCookies") or ()],
    )
    for header in rule.get("fromHeaders") or ():
        provider.from_headers.add(
            name=str(header.get("name") or ""), value_prefix=str(header.get("prefix") or "")
        )
    for claim in rule.get("outputClaimToHeaders") or ():
        provider.claim_to_headers.add(
            header_name=str(claim.get("header") or ""), claim_name=str(claim.get("claim") or "")
        )
    spaced = dict.fromkeys((*_SPACE_DELIMITED, *map(str, rule.get("spaceDelimitedClaims") or ())))
    provider.normalize_payload_in_metadata.space_delimited_claims.extend(spaced)
    provider.local_jwks.inline_string = str(rule.get("jwks") or _NO_KEYS)
    return provider
