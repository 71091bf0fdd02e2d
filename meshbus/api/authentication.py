"""Kinds of authentication.istio.io of Istio 1.4.

Source: https://istio.io/v1.4/docs/reference/config/security/istio.authentication.v1alpha1/
"""

from typing import Literal

from msgspec import UNSET

from meshbus.api.shape import Free, Maybe, Shape, UInt32


class PolicyStringMatch(Shape, frozen=True, kw_only=True):
    """How a path is matched."""

    one_of = (("exact", "prefix", "suffix", "regex"),)

    exact: Maybe[str] = UNSET
    """The whole of it."""
    prefix: Maybe[str] = UNSET
    """Its beginning."""
    suffix: Maybe[str] = UNSET
    """Its end."""
    regex: Maybe[str] = UNSET
    """An expression."""


class TriggerRule(Shape, frozen=True, kw_only=True):
    """Requests whose tokens are checked."""

    excluded_paths: list[PolicyStringMatch] = []
    """Paths that are left out."""
    included_paths: list[PolicyStringMatch] = []
    """Paths that are meant; all if empty."""


class Jwt(Shape, frozen=True, kw_only=True):
    """Tokens of one issuer."""

    issuer: str = ""
    """The `iss` of its tokens."""
    audiences: list[str] = []
    """Audiences of which a token must name one."""
    jwks_uri: str = ""
    """Where the keys are."""
    jwks: str = ""
    """The keys."""
    jwt_headers: list[str] = []
    """Headers in which a token is looked for."""
    jwt_params: list[str] = []
    """Query parameters in which a token is looked for."""
    trigger_rules: list[TriggerRule] = []
    """Requests whose tokens are checked; all if empty."""


class MutualTls(Shape, frozen=True, kw_only=True):
    """Mutual TLS."""

    allow_tls: bool = False
    """Whether callers without a certificate are let in."""
    mode: Literal["STRICT", "PERMISSIVE"] = "STRICT"
    """Whether plain text is let in."""


class PeerAuthenticationMethod(Shape, frozen=True, kw_only=True):
    """How a caller shows who it is."""

    one_of = (("mtls", "jwt"),)

    mtls: Maybe[MutualTls] = UNSET
    """By certificate."""
    jwt: Maybe[Jwt] = UNSET
    """By token."""


class OriginAuthenticationMethod(Shape, frozen=True, kw_only=True):
    """How the end user is known."""

    jwt: Maybe[Jwt] = UNSET
    """By token."""


class PortSelector(Shape, frozen=True, kw_only=True):
    """A port."""

    one_of = (("number", "name"),)

    number: Maybe[UInt32] = UNSET
    """By number."""
    name: Maybe[str] = UNSET
    """By name."""


class TargetSelector(Shape, frozen=True, kw_only=True):
    """A service."""

    name: str = ""
    """Its short name."""
    subset: str = ""
    """Without effect."""
    labels: dict[str, str] = {}
    """Labels of its workloads."""
    ports: list[PortSelector] = []
    """Its ports; all if empty."""


class Policy(Shape, frozen=True, kw_only=True):
    """How callers and users show who they are."""

    targets: list[TargetSelector] = []
    """Services; all of the namespace if empty."""
    peers: list[PeerAuthenticationMethod] = []
    """How callers are known, of which one must succeed."""
    peer_is_optional: bool = False
    """Whether callers may stay unknown."""
    origins: list[OriginAuthenticationMethod] = []
    """How users are known, of which one must succeed."""
    origin_is_optional: bool = False
    """Whether users may stay unknown."""
    principal_binding: Literal["USE_PEER", "USE_ORIGIN"] = "USE_PEER"
    """Whose identity the request has."""
    credential_rules: list[Free] = []
    """Without effect."""
