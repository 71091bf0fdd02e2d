"""One rule of an AuthorizationPolicy as a policy of Envoy's RBAC.

Rules are written for HTTP. On TCP what only HTTP can tell makes an ALLOW rule match nothing, and
is left out of a DENY, AUDIT or CUSTOM rule: both fail safe.
Source: https://istio.io/latest/docs/tasks/security/authorization/authz-tcp/
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

from envoy.config.rbac.v3 import rbac_pb2

from meshbus.compile import authorization_matchers as match
from meshbus.compile.findings import NotCompiledError
from meshbus.compile.names import CLUSTER_DOMAIN

ALLOW = "ALLOW"
DENY = "DENY"
AUDIT = "AUDIT"
CUSTOM = "CUSTOM"
_BRACKETS = re.compile(r"\[([^\[\]]+)\]")


class Circumstances(NamedTuple):
    """What about a rule's surroundings changes what it means."""

    namespace: str
    """Of the policy: service accounts without namespace are its own."""
    action: str
    trust_domains: tuple[str, ...]
    """The mesh's own and its aliases."""


class _Clause(NamedTuple):
    """One field: the value must be one of `values` and none of `refused`. `build` makes the
    condition of several values, or of one if `single`."""

    build: Callable[[Any], Any]
    values: list[str]
    refused: list[str]
    single: bool
    http: bool


def migrated(principals: Iterable[str], trust_domains: tuple[str, ...]) -> list[str]:
    """Principals of any of the mesh's trust domains, and of `cluster.local`, which is the mesh's
    own whatever that is called, stand for all of them.

    Source: https://istio.io/latest/docs/tasks/security/authorization/authz-td-migration/; Istio,
    Bundle.ReplaceTrustDomainAliases.
    """
    out: dict[str, None] = {}
    for principal in principals:
        domain, _, rest = principal.partition("/")
        formed = rest.count("/") == 3 and domain != "*"
        known_here = domain == CLUSTER_DOMAIN or any(
            _fits(known, domain) or _fits(domain, known) for known in trust_domains
        )
        if not formed or not known_here:
            out[principal] = None
            continue
        for known in trust_domains:
            # Envoy is told `*-td` as it is written; `td-*` it could not be told.
            covered = domain.startswith("*") and known.endswith(domain[1:])
            out[principal if covered else f"{known}/{rest}"] = None
    return list(out)


def _fits(domain: str, pattern: str) -> bool:
    if pattern.startswith("*"):
        return domain.endswith(pattern[1:])
    if pattern.endswith("*"):
        return domain.startswith(pattern[:-1])
    return domain == pattern


class RulePolicies(NamedTuple):
    """A rule as policies of the RBAC filters."""

    http: rbac_pb2.Policy
    tcp: rbac_pb2.Policy | None
    """None: on TCP the rule matches nothing. Often the same as `http`."""

    def on(self, tcp: bool) -> rbac_pb2.Policy | None:
        """That of one kind of filter."""
        return self.tcp if tcp else self.http


def rule_policies(rule: Mapping[str, Any], around: Circumstances) -> RulePolicies:
    """The RBAC policies of a rule.

    Raises:
        NotCompiledError: A value cannot be compiled.
    """
    who, what = _conditions(rule.get("when") or (), around)
    sources = [f.get("source") or {} for f in rule.get("from") or ()] or [{}]
    operations = [t.get("operation") or {} for t in rule.get("to") or ()] or [{}]
    asked = [[*_operation(o), *what] for o in operations]
    callers = [[*_source(s, around), *who] for s in sources]
    http = _together(asked, callers)
    if not any(clause.http for part in (*asked, *callers) for clause in part):
        return RulePolicies(http, http)
    if around.action == ALLOW:
        return RulePolicies(http, None)
    asked = [[clause for clause in part if not clause.http] for part in asked]
    callers = [[clause for clause in part if not clause.http] for part in callers]
    return RulePolicies(http, _together(asked, callers))


def nothing() -> rbac_pb2.Policy:
    """The policy that no request meets."""
    return rbac_pb2.Policy(
        permissions=[rbac_pb2.Permission(not_rule=rbac_pb2.Permission(any=True))],
        principals=[rbac_pb2.Principal(not_id=rbac_pb2.Principal(any=True))],
    )


# --------------------------------------------------------------------------- fields


_NO_VALUES: tuple[list[str], list[str]] = ([], [])


def _values(fields: Mapping[str, Any], name: str, negation: str) -> tuple[list[str], list[str]]:
    wanted, refused = fields.get(name), fields.get(negation)
    if not wanted and not refused:
        return _NO_VALUES
    return [str(v) for v in wanted or ()], [str(v) for v in refused or ()]


def _negation(name: str) -> str:
    return f"not{name[0].upper()}{name[1:]}"


def _each(
    build: Callable[[str], Any], values: tuple[list[str], list[str]], *, http: bool = False
) -> _Clause:
    return _Clause(build, *values, True, http)


def _identities(values: list[str], refused: list[str], around: Circumstances) -> _Clause:
    domains = around.trust_domains
    return _each(match.identity, (migrated(values, domains), migrated(refused, domains)))


def aliased(values: Iterable[str], trust_domains: tuple[str, ...]) -> list[str]:
    """A trust domain of the mesh stands for all of them.

    Source: Istio, Bundle.ExpandTrustDomainAliases.
    """
    found = (trust_domains if value in trust_domains else (value,) for value in values)
    return list(dict.fromkeys(name for names in found for name in names))


def _domains(values: list[str], refused: list[str], around: Circumstances) -> _Clause:
    known = around.trust_domains
    return _each(match.trust_domain, (aliased(values, known), aliased(refused, known)))


def _source_ip(value: str) -> rbac_pb2.Principal:
    return rbac_pb2.Principal(direct_remote_ip=match.cidr(value))


def _remote_ip(value: str) -> rbac_pb2.Principal:
    return rbac_pb2.Principal(remote_ip=match.cidr(value))


_SOURCE = tuple(
    (name, _negation(name), http, build)
    for name, http, build in (
        ("serviceAccounts", False, match.identity),
        ("principals", False, match.identity),
        ("requestPrincipals", True, match.token_identity),
        ("namespaces", False, match.namespace_identity),
        ("trustDomains", False, match.trust_domain),
        ("remoteIpBlocks", False, _remote_ip),
        ("ipBlocks", False, _source_ip),
    )
)
"""Fields of a source: name, negation, whether only HTTP can tell, what a value means."""


def _source(source: Mapping[str, Any], around: Circumstances) -> list[_Clause]:
    out = []
    for name, negation, http, build in _SOURCE if source else ():
        # Most fields are not there, and there are many rules.
        if name not in source and negation not in source:
            continue
        values = _values(source, name, negation)
        if name == "principals":
            out.append(_identities(*values, around))
        elif name == "trustDomains":
            out.append(_domains(*values, around))
        elif name == "serviceAccounts":
            out.append(_each(_account_of(around), values))
        else:
            out.append(_each(build, values, http=http))
    return out


def _account_of(around: Circumstances) -> Callable[[str], rbac_pb2.Principal]:
    return lambda value: match.service_account(value, around.namespace)


@match.remembered
def _header_is(name: str, value: str) -> rbac_pb2.Principal:
    return rbac_pb2.Principal(header=match.header_matcher(name, value))


def _header(name: str) -> Callable[[str], rbac_pb2.Principal]:
    return partial(_header_is, name)


@match.remembered
def _header_lists(name: str, value: str) -> rbac_pb2.Principal:
    return rbac_pb2.Principal(header=match.inline_header_matcher(name, value))


def _claim(path: list[str]) -> Callable[[list[str]], rbac_pb2.Principal]:
    return lambda values: match.claim_principal(path, match.claim_values(values))


@match.remembered
def _host(value: str) -> rbac_pb2.Permission:
    matcher = match.header_matcher(":authority", value, ignore_case=True)
    return rbac_pb2.Permission(header=matcher)


@match.remembered
def _method(value: str) -> rbac_pb2.Permission:
    return rbac_pb2.Permission(header=match.header_matcher(":method", value))


def _sni(value: str) -> rbac_pb2.Permission:
    return rbac_pb2.Permission(requested_server_name=match.text_matcher(value))


def _destination_ip(value: str) -> rbac_pb2.Permission:
    return rbac_pb2.Permission(destination_ip=match.cidr(value))


_OPERATION_FIELDS = tuple(
    (name, _negation(name), http, build)
    for name, http, build in (
        ("hosts", True, _host),
        ("methods", True, _method),
        ("paths", True, match.path_permission),
        ("ports", False, match.port_permission),
    )
)


def _operation(operation: Mapping[str, Any]) -> list[_Clause]:
    return [
        _each(build, _values(operation, name, negation), http=http)
        for name, negation, http, build in (_OPERATION_FIELDS if operation else ())
        if name in operation or negation in operation
    ]


def _conditions(
    when: Iterable[Mapping[str, Any]], around: Circumstances
) -> tuple[list[_Clause], list[_Clause]]:
    """Conditions about the caller, and about what is asked."""
    who: list[_Clause] = []
    what: list[_Clause] = []
    for condition in when:
        key = str(condition.get("key") or "")
        values = _values(condition, "values", "notValues")
        asked = _asked(key, values)
        if asked is not None:
            what.append(asked)
        else:
            who.append(_caller(key, values, around))
    return who, what


def _asked(key: str, values: tuple[list[str], list[str]]) -> _Clause | None:
    if key == "destination.ip":
        return _each(_destination_ip, values)
    if key == "destination.port":
        return _each(match.port_permission, values)
    if key == "connection.sni":
        return _each(_sni, values)
    if key.startswith("experimental.envoy.filters."):
        return _Clause(lambda v: match.filter_metadata(key, v), *values, False, False)
    return None


_CALLER: dict[str, Callable[[str], rbac_pb2.Principal]] = {
    "source.ip": _source_ip,
    "remote.ip": _remote_ip,
    "source.namespace": match.namespace_identity,
}


def _caller(key: str, values: tuple[list[str], list[str]], around: Circumstances) -> _Clause:
    if key in _CALLER:
        return _each(_CALLER[key], values)
    if key == "source.serviceAccount":
        return _each(_account_of(around), values)
    if key == "source.principal":
        return _identities(*values, around)
    if key == "source.trustDomain":
        return _domains(*values, around)
    if key == "request.auth.principal":
        return _each(match.token_identity, values, http=True)
    claims = {"request.auth.audiences": ["aud"], "request.auth.presenter": ["azp"]}
    path = claims.get(key) or _BRACKETS.findall(key)
    if key in claims or (key.startswith("request.auth.claims[") and path):
        return _Clause(_claim(path), *values, False, True)
    if key.startswith("request.headers[") and path:
        return _each(_header(path[0]), values, http=True)
    if key.startswith("request.experimental.inline.headers[") and path:
        return _each(partial(_header_lists, path[0]), values, http=True)
    raise NotCompiledError("when", f"unknown attribute {key}")


# --------------------------------------------------------------------------- together


def _together(asked: list[list[_Clause]], callers: list[list[_Clause]]) -> rbac_pb2.Policy:
    """Built in place: messages are copied whenever they are put into others."""
    policy = rbac_pb2.Policy()
    for part in asked:
        rules = policy.permissions.add().and_rules.rules
        for clause in part:
            if clause.values:
                _permit(rules.add(), clause, clause.values)
            if clause.refused:
                _permit(rules.add().not_rule, clause, clause.refused)
        if not rules:
            rules.add().any = True
    for part in callers:
        ids = policy.principals.add().and_ids.ids
        for clause in part:
            if clause.values:
                _identify(ids.add(), clause, clause.values)
            if clause.refused:
                _identify(ids.add().not_id, clause, clause.refused)
        if not ids:
            ids.add().any = True
    return policy


def _permit(out: rbac_pb2.Permission, clause: _Clause, values: list[str]) -> None:
    if clause.single:
        out.or_rules.rules.extend([clause.build(value) for value in values])
    else:
        out.CopyFrom(clause.build(values))


def _identify(out: rbac_pb2.Principal, clause: _Clause, values: list[str]) -> None:
    if clause.single:
        out.or_ids.ids.extend([clause.build(value) for value in values])
    else:
        out.CopyFrom(clause.build(values))
