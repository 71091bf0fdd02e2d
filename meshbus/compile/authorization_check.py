"""Would a request be let in? The filters of a workload, asked as its Envoy would ask them.

The answer comes from the resources that the workload's Envoy gets, so that it is what the Envoy
does; the objects behind them are read off the names of the rules.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from envoy.config.core.v3 import extension_pb2
from envoy.config.rbac.v3 import rbac_pb2
from envoy.extensions.filters.http.jwt_authn.v3 import config_pb2 as jwt_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac_pb2
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network_rbac_pb2

from meshbus.compile.authorization_matchers import JWT_METADATA, JWT_PAYLOAD
from meshbus.compile.authorization_providers import RBAC_HTTP, RBAC_NETWORK
from meshbus.compile.connection_settings import connection_settings_of
from meshbus.compile.engine import Engine, Reader
from meshbus.compile.inbound import ServedPort, served_ports
from meshbus.compile.names import is_http, is_sniffed
from meshbus.compile.peer_authentication import DISABLE, STRICT, mutual_tls
from meshbus.compile.proxy_keys import ROUTER, ProxyKeys
from meshbus.compile.rbac_decision import Asked, decide, header_matches
from meshbus.compile.request_authentication import TOKENS
from meshbus.compile.request_paths import PathRules, normalized
from meshbus.compile.resources import ECDS, Resource
from meshbus.compile.security_filters import security_extensions, security_of
from meshbus.compile.settings import mesh

ALLOWED, DENIED, ASKED = "allowed", "denied", "asked"
_RULE = re.compile(
    r"ns\[(?P<namespace>.*?)\]-(?P<kind>policy|servicerole)\[(?P<name>.*?)\]-rule\[(?P<index>\d+)\]"
)
_KINDS = {"policy": "AuthorizationPolicy", "servicerole": "ServiceRole"}
_CUSTOM = re.compile(r"istio-ext-authz-(?P<provider>.*?)-ns\[")


@dataclass(frozen=True, slots=True)
class Question:
    """A request that somebody thinks of making."""

    caller: tuple[str, str] | None = None
    """Namespace and service account; None: a caller without a sidecar, in plain text."""
    port: int = 0
    """Of the workload; 0: the first that it serves."""
    method: str = "GET"
    path: str = "/"
    host: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    claims: Mapping[str, Any] | None = None
    """Of a token that is valid; None: there is no token."""
    source_ip: str = "127.0.0.1"
    remote_ip: str = ""
    sni: str = ""


class RuleMatched(NamedTuple):
    """A rule and what it does."""

    action: str
    """`ALLOW`, `DENY`, `AUDIT`, `CUSTOM`."""
    name: str
    """As Envoy reports it."""
    kind: str = ""
    """`AuthorizationPolicy`, `ServiceRole`."""
    namespace: str = ""
    policy: str = ""
    rule: int = 0


class Answer(NamedTuple):
    """What becomes of the request."""

    outcome: str
    """`allowed`, `denied`, or `asked`: an external provider decides, and then the rest."""
    status: int
    """What the caller gets where it is denied; 0: the connection is closed."""
    because: str
    rule: RuleMatched | None
    """The rule that decided; None: that no rule matched did."""
    provider: str
    audited: RuleMatched | None
    dry_run: tuple[tuple[str, str, RuleMatched | None], ...]
    """Of policies that run dry: action, outcome, rule."""


class _Filters(NamedTuple):
    configs: Mapping[str, Any]

    def rbac(self, name: str, tcp: bool) -> Any:
        message = network_rbac_pb2.RBAC() if tcp else http_rbac_pb2.RBAC()
        found = self.configs.get(f"{RBAC_NETWORK if tcp else RBAC_HTTP}.{name}")
        if found is not None:
            found.Unpack(message)
        return message

    def tokens(self) -> jwt_pb2.JwtAuthentication:
        message = jwt_pb2.JwtAuthentication()
        found = self.configs.get(TOKENS)
        if found is not None:
            found.Unpack(message)
        return message


class Facts(NamedTuple):
    """What of a workload and its mesh the answer depends on."""

    served: ServedPort
    mode: str
    """Of mutual TLS, at the port."""
    trust_domain: str
    paths: PathRules
    resources: tuple[Resource, ...]


def facts(reader: Reader, target: ProxyKeys, port: int) -> Facts:
    """Node: what answers about one port of a workload (0: the first) are made from."""
    served = _port(reader, target, port)
    settings = reader.node(mesh)
    mode = mutual_tls(reader, target.namespace, target.labels).at(served.port)
    part = reader.node(security_extensions, security_of(reader, target.namespace, target.labels))
    resources = tuple(r for r in part.resources if r.type_url == ECDS)
    treatment = connection_settings_of(
        settings.proxy_config, target.proxy_config, router=target.type == ROUTER
    )
    paths = treatment.paths(settings.path_normalization)
    return Facts(served, mode, settings.trust_domain, paths, resources)


def _called(addresses: Sequence[str], caller: str) -> str:
    """The address of a workload that is called from an address: one of the same family, if it has
    any."""
    same = [address for address in addresses if (":" in address) == (":" in caller)]
    return (same or [*addresses, "127.0.0.1"])[0]


def check(engine: Engine, target: ProxyKeys, question: Question) -> Answer:
    """What a workload's Envoy does with the request."""
    known = engine.get(facts, target, question.port)
    served = known.served
    if target.type != ROUTER and known.mode == STRICT and question.caller is None:
        why = "PeerAuthentication STRICT: connections without mutual TLS are not taken"
        return Answer(DENIED, 0, why, None, "", None, ())
    identity = ""
    if question.caller is not None and known.mode != DISABLE:
        namespace, account = question.caller
        identity = f"spiffe://{known.trust_domain}/ns/{namespace}/sa/{account}"
    path = normalized(question.path, known.paths)
    tcp = not (is_http(served.protocol) or is_sniffed(served.protocol))
    filters = _Filters(
        {
            resource.name: extension_pb2.TypedExtensionConfig.FromString(resource.body).typed_config
            for resource in known.resources
        }
    )
    asked = Asked(
        identity=identity,
        source_ip=question.source_ip,
        remote_ip=question.remote_ip,
        destination_ip=_called(target.ips, question.source_ip),
        port=served.port,
        sni=question.sni,
        headers={} if tcp else _headers(question, path or question.path, target),
    )
    if tcp:
        return _decided(filters, asked, tcp=True)
    if "#" in question.path:
        why = "a path with a fragment is not taken by any Envoy"
        return Answer(DENIED, 400, why, None, "", None, ())
    if path is None:
        why = "httpPathWithEscapedSlashesAction REJECT_REQUEST: the path has escaped slashes"
        return Answer(DENIED, 400, why, None, "", None, ())
    answer, asked = _with_token(filters.tokens(), asked, question.claims)
    return answer or _decided(filters, asked, tcp=False)


def _headers(question: Question, path: str, target: ProxyKeys) -> dict[str, str]:
    host = question.host or f"{target.workload or target.name}.{target.namespace}"
    return {
        **{name.lower(): value for name, value in question.headers.items()},
        ":method": question.method,
        ":path": path,
        ":authority": host,
    }


def _port(reader: Reader, target: ProxyKeys, number: int) -> ServedPort:
    ports = served_ports(reader, target)
    if number:
        # A port that nobody declared is reached too; what it speaks is found out.
        return next((p for p in ports if p.port == number), ServedPort(number, "", ()))
    first = next((p for p in ports if is_http(p.protocol)), ports[0] if ports else None)
    return first or ServedPort(80, "HTTP", ())


def _with_token(
    tokens: jwt_pb2.JwtAuthentication, asked: Asked, claims: Mapping[str, Any] | None
) -> tuple[Answer | None, Asked]:
    """The request with what its token says, or the refusal of the token."""
    for rule in tokens.rules:
        if all(header_matches(header, asked.headers) for header in rule.match.headers):
            break
    else:
        return None, asked
    status = _needed(rule.requires, tokens, claims)
    if status != _GOOD:
        issuer = "" if claims is None else str(claims.get("iss") or "")
        why = {
            _MISSING: "there is no token, and one is needed",
            _UNKNOWN: f"no rule has the issuer {issuer!r}",
            _AUDIENCE: f"the token is not for the audiences that are asked for of {issuer!r}",
        }[status]
        code = 403 if status == _AUDIENCE else 401
        return Answer(DENIED, code, why, None, "", None, ()), asked
    good = next((p for p in tokens.providers.values() if _verified(p, claims) == _GOOD), None)
    if good is None or claims is None:
        return None, asked
    spaced = set(good.normalize_payload_in_metadata.space_delimited_claims)
    payload = {
        name: value.split(" ") if name in spaced and isinstance(value, str) else value
        for name, value in claims.items()
    }
    return None, replace(asked, metadata={JWT_METADATA: {JWT_PAYLOAD: payload}})


_GOOD, _MISSING, _UNKNOWN, _AUDIENCE = "good", "missing", "unknown", "audience"
_WORST = (_MISSING, _UNKNOWN, _AUDIENCE)
"""Of several failures Envoy tells the last of these."""


def _verified(provider: jwt_pb2.JwtProvider, claims: Mapping[str, Any] | None) -> str:
    if claims is None:
        return _MISSING
    if provider.issuer and provider.issuer != str(claims.get("iss") or ""):
        return _UNKNOWN
    audiences = claims.get("aud")
    given = set(audiences if isinstance(audiences, list) else [audiences])
    return _GOOD if not provider.audiences or given & set(provider.audiences) else _AUDIENCE


def _needed(
    requirement: jwt_pb2.JwtRequirement,
    tokens: jwt_pb2.JwtAuthentication,
    claims: Mapping[str, Any] | None,
) -> str:
    """Whether a token is good for a requirement, or why not."""
    match requirement.WhichOneof("requires_type"):
        case "provider_name":
            return _verified(tokens.providers[requirement.provider_name], claims)
        case "requires_any":
            parts = requirement.requires_any.requirements
            kinds = {part.WhichOneof("requires_type") for part in parts}
            found = [
                _needed(p, tokens, claims)
                for p in parts
                if p.WhichOneof("requires_type") in ("provider_name", "requires_all")
            ]
            if _GOOD in found or "allow_missing_or_failed" in kinds:
                return _GOOD
            if "allow_missing" in kinds and claims is None:
                return _GOOD
            return max(found, key=_WORST.index)
        case "requires_all":
            each = [_needed(p, tokens, claims) for p in requirement.requires_all.requirements]
            return next((status for status in each if status != _GOOD), _GOOD)
    return _GOOD


def _decided(filters: _Filters, asked: Asked, *, tcp: bool) -> Answer:
    provider = ""
    custom = filters.rbac("custom", tcp)
    if custom.HasField("shadow_rules"):
        rule = decide(custom.shadow_rules, asked).rule
        found = _CUSTOM.match(rule)
        provider = found["provider"] if found is not None else ""
    audit = filters.rbac("audit", tcp)
    audited = None
    if audit.HasField("rules") and (rule := decide(audit.rules, asked).rule):
        audited = matched("AUDIT", rule)
    dry: list[tuple[str, str, RuleMatched | None]] = []
    denied: Answer | None = None
    allowed_by: RuleMatched | None = None
    status = 0 if tcp else 403
    for action in ("deny", "allow"):
        message = filters.rbac(action, tcp)
        if message.HasField("shadow_rules"):
            dry.append(_dry(action.upper(), message.shadow_rules, asked))
        if denied is not None or not message.HasField("rules"):
            continue
        verdict = decide(message.rules, asked)
        rule_of = matched(action.upper(), verdict.rule) if verdict.rule else None
        if not verdict.allowed:
            why = _why(action, rule_of)
            denied = Answer(DENIED, status, why, rule_of, provider, audited, ())
        elif action == "allow":
            allowed_by = rule_of
    if denied is not None:
        return denied._replace(dry_run=tuple(dry))
    if provider:
        why = f"provider {provider!r} is asked; nothing else denies the request"
        return Answer(ASKED, 0, why, allowed_by, provider, audited, tuple(dry))
    why = "an ALLOW rule matches"
    if allowed_by is None:
        why = "no policy denies it, and none has to allow it"
    return Answer(ALLOWED, 200, why, allowed_by, provider, audited, tuple(dry))


def _why(action: str, rule: RuleMatched | None) -> str:
    if action == "allow":
        return "it has to be allowed, and no ALLOW rule matches"
    if rule is not None and rule.action == "CUSTOM":
        return "the provider of a CUSTOM policy cannot be asked"
    return "a DENY rule matches"


def _dry(action: str, rules: rbac_pb2.RBAC, asked: Asked) -> tuple[str, str, RuleMatched | None]:
    verdict = decide(rules, asked)
    outcome = ALLOWED if verdict.allowed else DENIED
    return action, outcome, matched(action, verdict.rule) if verdict.rule else None


def matched(action: str, name: str) -> RuleMatched:
    """The rule that Envoy reports by this name."""
    found = _RULE.search(name)
    if found is None:
        return RuleMatched(action, name)
    if name.endswith("-deny-due-to-bad-CUSTOM-action"):
        action = "CUSTOM"
    kind = _KINDS[found["kind"]]
    return RuleMatched(action, name, kind, found["namespace"], found["name"], int(found["index"]))
