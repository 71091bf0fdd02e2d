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
    tcp: bool
    trust_domains: tuple[str, ...]
    """The mesh's own and its aliases."""


class _Clause(NamedTuple):
    """One field: the value must be one of `values` and none of `refused`. `build` makes the
    condition of several values, or of one if `single`."""

    build: Callable[[list[str]], Any]
    values: list[str]
    refused: list[str]
    single: bool
    http: bool


def migrated(principals: Iterable[str], trust_domains: tuple[str, ...]) -> list[str]:
    """Principals of any of the mesh's trust domains stand for all of them.

    Source: https://istio.io/latest/docs/tasks/security/authorization/authz-td-migration/
    """
    out: dict[str, None] = {}
    for principal in principals:
        domain, slash, rest = principal.partition("/")
        formed = slash and rest.count("/") >= 3 and domain != "*"
        if not formed or not any(_same(d, domain) for d in trust_domains):
            out[principal] = None
            continue
        for known in trust_domains:
            out[principal if _same(known, domain) else f"{known}/{rest}"] = None
    return list(out)


def _same(known: str, written: str) -> bool:
    if written.startswith("*"):
        return known.endswith(written[1:])
    if written.endswith("*"):
        return known.startswith(written[:-1])
    return known == written


def rule_policy(rule: Mapping[str, Any], around: Circumstances) -> rbac_pb2.Policy | None:
    """The RBAC policy of a rule. None: on TCP it matches nothing.

    Raises:
        NotCompiledError: A value cannot be compiled.
    """
    who, what = _conditions(rule.get("when") or (), around)
    sources = [f.get("source") or {} for f in rule.get("from") or ()] or [{}]
    operations = [t.get("operation") or {} for t in rule.get("to") or ()] or [{}]
    asked = [[*_operation(o), *what] for o in operations]
    callers = [[*_source(s, around), *who] for s in sources]
    if around.tcp and around.action == ALLOW:
        clauses = (clause for part in (*asked, *callers) for clause in part)
        if any(clause.http and (clause.values or clause.refused) for clause in clauses):
            return None
    return rbac_pb2.Policy(
        permissions=[_permission(clauses, around) for clauses in asked],
        principals=[_principal(clauses, around) for clauses in callers],
    )


def nothing() -> rbac_pb2.Policy:
    """The policy that no request meets."""
    return rbac_pb2.Policy(
        permissions=[rbac_pb2.Permission(not_rule=rbac_pb2.Permission(any=True))],
        principals=[rbac_pb2.Principal(not_id=rbac_pb2.Principal(any=True))],
    )


# --------------------------------------------------------------------------- fields


_NO_VALUES: tuple[list[str], list[str]] = ([], [])


def _values(fields: Mapping[str, Any], name: str) -> tuple[list[str], list[str]]:
    wanted, refused = fields.get(name), fields.get(f"not{name[0].upper()}{name[1:]}")
    if not wanted and not refused:
        return _NO_VALUES
    return [str(v) for v in wanted or ()], [str(v) for v in refused or ()]


def _each(
    build: Callable[[str], Any], values: tuple[list[str], list[str]], *, http: bool = False
) -> _Clause:
    return _Clause(lambda one: build(one[0]), *values, True, http)


_SourceField = tuple[str, bool, Callable[[str, Circumstances], rbac_pb2.Principal]]
_SOURCE: tuple[_SourceField, ...] = (
    ("serviceAccounts", False, lambda v, around: match.service_account(v, around.namespace)),
    ("principals", False, lambda v, _: match.identity(v)),
    ("requestPrincipals", True, lambda v, _: match.token_identity(v)),
    ("namespaces", False, lambda v, _: match.namespace_identity(v)),
    ("trustDomains", False, lambda v, _: match.trust_domain(v)),
    ("remoteIpBlocks", False, lambda v, _: _remote_ip(v)),
    ("ipBlocks", False, lambda v, _: _source_ip(v)),
)
"""Fields of a source: name, whether only HTTP can tell, what a value means."""


def _source(source: Mapping[str, Any], around: Circumstances) -> list[_Clause]:
    out = []
    for name, http, build in _SOURCE:
        values = _values(source, name)
        if values == _NO_VALUES:
            continue
        if name == "principals":
            out.append(_identities(*values, around))
        else:
            out.append(_each(partial(_about, build, around), values, http=http))
    return out


def _about(
    build: Callable[[str, Circumstances], rbac_pb2.Principal], around: Circumstances, value: str
) -> rbac_pb2.Principal:
    return build(value, around)


def _identities(values: list[str], refused: list[str], around: Circumstances) -> _Clause:
    domains = around.trust_domains
    return _each(match.identity, (migrated(values, domains), migrated(refused, domains)))


def _source_ip(value: str) -> rbac_pb2.Principal:
    return rbac_pb2.Principal(direct_remote_ip=match.cidr(value))


def _remote_ip(value: str) -> rbac_pb2.Principal:
    return rbac_pb2.Principal(remote_ip=match.cidr(value))


def _header(name: str) -> Callable[[str], rbac_pb2.Principal]:
    return lambda value: rbac_pb2.Principal(header=match.header_matcher(name, value))


def _claim(path: list[str]) -> Callable[[list[str]], rbac_pb2.Principal]:
    return lambda values: match.claim_principal(path, match.claim_values(values))


def _operation(operation: Mapping[str, Any]) -> list[_Clause]:
    fields = {"hosts": _host, "methods": _method, "paths": match.path_permission}
    out = []
    for name, build in (*fields.items(), ("ports", match.port_permission)):
        values = _values(operation, name)
        if values != _NO_VALUES:
            out.append(_each(build, values, http=name in fields))
    return out


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


def _conditions(
    when: Iterable[Mapping[str, Any]], around: Circumstances
) -> tuple[list[_Clause], list[_Clause]]:
    """Conditions about the caller, and about what is asked."""
    who: list[_Clause] = []
    what: list[_Clause] = []
    for condition in when:
        key = str(condition.get("key") or "")
        values = _values(condition, "values")
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


def _caller(key: str, values: tuple[list[str], list[str]], around: Circumstances) -> _Clause:
    plain: dict[str, Callable[[str], rbac_pb2.Principal]] = {
        "source.ip": _source_ip,
        "remote.ip": _remote_ip,
        "source.namespace": match.namespace_identity,
        "source.trustDomain": match.trust_domain,
        "source.serviceAccount": lambda v: match.service_account(v, around.namespace),
    }
    if key in plain:
        return _each(plain[key], values)
    if key == "source.principal":
        return _identities(*values, around)
    if key == "request.auth.principal":
        return _each(match.token_identity, values, http=True)
    claims = {"request.auth.audiences": ["aud"], "request.auth.presenter": ["azp"]}
    path = claims.get(key) or _BRACKETS.findall(key)
    if key in claims or (key.startswith("request.auth.claims[") and path):
        return _Clause(_claim(path), *values, False, True)
    if key.startswith("request.headers[") and path:
        return _each(_header(path[0]), values, http=True)
    raise NotCompiledError("when", f"unknown attribute {key}")


# --------------------------------------------------------------------------- together


def _built(clause: _Clause, values: list[str], around: Circumstances) -> list[Any]:
    """Conditions of which one must hold; empty: no condition."""
    if not values:
        return []
    if clause.http and around.tcp:
        return []
    return [clause.build([v]) for v in values] if clause.single else [clause.build(values)]


def _permission(clauses: list[_Clause], around: Circumstances) -> rbac_pb2.Permission:
    rules: list[rbac_pb2.Permission] = []
    for clause in clauses:
        wanted = _built(clause, clause.values, around)
        if wanted:
            rules.append(_one_permission(wanted, clause.single))
        refused = _built(clause, clause.refused, around)
        if refused:
            other = _one_permission(refused, clause.single)
            rules.append(rbac_pb2.Permission(not_rule=other))
    rules = rules or [rbac_pb2.Permission(any=True)]
    return rbac_pb2.Permission(and_rules=rbac_pb2.Permission.Set(rules=rules))


def _one_permission(rules: list[rbac_pb2.Permission], single: bool) -> rbac_pb2.Permission:
    return (
        rbac_pb2.Permission(or_rules=rbac_pb2.Permission.Set(rules=rules)) if single else rules[0]
    )


def _principal(clauses: list[_Clause], around: Circumstances) -> rbac_pb2.Principal:
    ids: list[rbac_pb2.Principal] = []
    for clause in clauses:
        wanted = _built(clause, clause.values, around)
        if wanted:
            ids.append(_one_principal(wanted, clause.single))
        refused = _built(clause, clause.refused, around)
        if refused:
            ids.append(rbac_pb2.Principal(not_id=_one_principal(refused, clause.single)))
    ids = ids or [rbac_pb2.Principal(any=True)]
    return rbac_pb2.Principal(and_ids=rbac_pb2.Principal.Set(ids=ids))


def _one_principal(ids: list[rbac_pb2.Principal], single: bool) -> rbac_pb2.Principal:
    return rbac_pb2.Principal(or_ids=rbac_pb2.Principal.Set(ids=ids)) if single else ids[0]
