"""Kinds of security.istio.io.

Source: https://istio.io/latest/docs/reference/config/security/
"""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, field

from meshbus.api.selectors import PolicyTargetReference, TargetRefs, WorkloadSelector
from meshbus.api.shape import Duration, Maybe, Shape, Text

MtlsMode = Literal["UNSET", "DISABLE", "PERMISSIVE", "STRICT"]


class MutualTLS(Shape, frozen=True, kw_only=True):
    """Whether callers must use mutual TLS."""

    mode: MtlsMode = "UNSET"
    """`UNSET` inherits from the namespace, then from the mesh."""


class PeerAuthentication(Shape, frozen=True, kw_only=True):
    """Whether connections to workloads must use mutual TLS."""

    selector: Maybe[WorkloadSelector] = UNSET
    """Workloads it concerns; all of the namespace if unset, all of the mesh in the root one."""
    mtls: Maybe[MutualTLS] = UNSET
    """For every port."""
    port_level_mtls: Maybe[
        Annotated[dict[str, MutualTLS], Meta(min_length=1, extra={"format": "ports"})]
    ] = UNSET
    """For single ports of the workload; needs a selector."""


class JWTHeader(Shape, frozen=True, kw_only=True):
    """A header that carries a token."""

    name: Text
    """Its name."""
    prefix: str = ""
    """What stands before the token; it counts with its spaces."""


class ClaimToHeader(Shape, frozen=True, kw_only=True):
    """A claim that is passed on in a header."""

    header: Annotated[str, Meta(min_length=1, pattern=r"^[-_A-Za-z0-9]+$")]
    """The header."""
    claim: Text
    """The claim; `.` leads into nested ones."""


class JWTRule(Shape, frozen=True, kw_only=True):
    """Tokens of one issuer."""

    one_of = (("jwksUri", "jwks"),)

    issuer: Maybe[Text] = UNSET
    """The `iss` of its tokens; any, if it is left out and `jwksUri` is set."""
    audiences: list[Text] = []
    """Audiences of which a token must name one."""
    jwks_uri: Maybe[
        Annotated[str, Meta(min_length=1, max_length=2048, extra={"format": "jwks-uri"})]
    ] = UNSET
    """Where the keys are."""
    jwks: Maybe[str] = UNSET
    """The keys, as a JSON Web Key Set."""
    from_headers: list[JWTHeader] = []
    """Headers in which a token is looked for."""
    from_params: list[Text] = []
    """Query parameters in which a token is looked for."""
    from_cookies: list[Text] = []
    """Cookies in which a token is looked for."""
    output_payload_to_header: str = ""
    """Header in which the payload is passed on, as base64url."""
    forward_original_token: bool = False
    """Whether the token stays in the request."""
    output_claim_to_headers: list[ClaimToHeader] = []
    """Claims that are passed on in headers."""
    timeout: Maybe[Duration] = UNSET
    """Time to fetch the keys; 5s if unset."""
    space_delimited_claims: Annotated[list[Text], Meta(max_length=64)] = []
    """Claims that are lists separated by spaces."""


class RequestAuthentication(Shape, frozen=True, kw_only=True):
    """Which tokens of requests are valid."""

    selector: Maybe[WorkloadSelector] = UNSET
    """Workloads it concerns."""
    target_ref: Maybe[PolicyTargetReference] = UNSET
    """Resource it is attached to."""
    target_refs: TargetRefs = UNSET
    """Resources it is attached to."""
    jwt_rules: Annotated[list[JWTRule], Meta(max_length=4096)] = []
    """Rules, by issuer."""


Accounts = Maybe[Annotated[list[Annotated[str, Meta(max_length=320)]], Meta(max_length=16)]]


class Source(Shape, frozen=True, kw_only=True):
    """Who calls; all fields that are set must hold."""

    principals: Maybe[list[str]] = UNSET
    """Identities, `TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`."""
    not_principals: Maybe[list[str]] = UNSET
    """Identities that are not meant."""
    request_principals: list[str] = []
    """Identities of tokens, `ISSUER/SUBJECT`."""
    not_request_principals: list[str] = []
    """Identities of tokens that are not meant."""
    namespaces: Maybe[list[str]] = UNSET
    """Namespaces."""
    not_namespaces: Maybe[list[str]] = UNSET
    """Namespaces that are not meant."""
    service_accounts: Accounts = UNSET
    """Service accounts, `NAME` or `NAMESPACE/NAME`."""
    not_service_accounts: Accounts = UNSET
    """Service accounts that are not meant."""
    trust_domains: list[str] = []
    """Trust domains."""
    not_trust_domains: list[str] = []
    """Trust domains that are not meant."""
    ip_blocks: list[str] = []
    """Addresses or CIDRs of the connection."""
    not_ip_blocks: list[str] = []
    """Addresses or CIDRs that are not meant."""
    remote_ip_blocks: list[str] = []
    """Addresses or CIDRs of the original client."""
    not_remote_ip_blocks: list[str] = []
    """Addresses or CIDRs that are not meant."""


class From(Shape, frozen=True, kw_only=True):
    """Who calls."""

    source: Maybe[Source] = UNSET
    """Who calls."""


class Operation(Shape, frozen=True, kw_only=True):
    """What is asked; all fields that are set must hold."""

    hosts: list[str] = []
    """Hosts."""
    not_hosts: list[str] = []
    """Hosts that are not meant."""
    ports: list[str] = []
    """Ports."""
    not_ports: list[str] = []
    """Ports that are not meant."""
    methods: list[str] = []
    """Methods."""
    not_methods: list[str] = []
    """Methods that are not meant."""
    paths: list[str] = []
    """Paths; `*` at either end, or templates with `{*}` and `{**}`."""
    not_paths: list[str] = []
    """Paths that are not meant."""


class To(Shape, frozen=True, kw_only=True):
    """What is asked."""

    operation: Maybe[Operation] = UNSET
    """What is asked."""


class Condition(Shape, frozen=True, kw_only=True):
    """A further condition."""

    key: str
    """An attribute, such as `request.headers[NAME]`."""
    values: list[str] = []
    """Values it must have."""
    not_values: list[str] = []
    """Values it must not have."""


class AuthorizationRule(Shape, frozen=True, kw_only=True):
    """Requests; every part that is set must hold."""

    from_: Annotated[list[From], Meta(max_length=512)] = field(name="from", default_factory=list)
    """Who calls."""
    to: list[To] = []
    """What is asked."""
    when: list[Condition] = []
    """Further conditions."""


class ExtensionProviderRef(Shape, frozen=True, kw_only=True):
    """Who decides instead."""

    name: str = ""
    """An extension provider of the mesh config."""


class AuthorizationPolicy(Shape, frozen=True, kw_only=True):
    """Which requests are allowed."""

    selector: Maybe[WorkloadSelector] = UNSET
    """Workloads it concerns."""
    target_ref: Maybe[PolicyTargetReference] = UNSET
    """Resource it is attached to."""
    target_refs: TargetRefs = UNSET
    """Resources it is attached to."""
    rules: Annotated[list[AuthorizationRule], Meta(max_length=512)] = []
    """Requests it is about, of which one must match."""
    action: Literal["ALLOW", "DENY", "AUDIT", "CUSTOM"] = "ALLOW"
    """What happens to them."""
    provider: Maybe[ExtensionProviderRef] = UNSET
    """Who decides, with CUSTOM."""
