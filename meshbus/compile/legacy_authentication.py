"""Policy and MeshPolicy of Istio 1.4: mutual TLS and tokens, by service.

For each service and port the nearest policy counts whole: one that names the service and the port,
then one that names the service, then `default` of the namespace, then the MeshPolicy. They hold for
workloads that no PeerAuthentication (for mutual TLS) or no RequestAuthentication (for tokens) is
about.
Source: https://istio.io/v1.4/docs/concepts/security/#authentication-policies
"""

from collections.abc import Iterator, Mapping
from itertools import combinations, product
from typing import Any, NamedTuple

from envoy.config.route.v3 import route_components_pb2 as rc_pb2
from envoy.type.matcher.v3 import string_pb2

from meshbus.compile.authorization_matchers import quoted
from meshbus.compile.engine import Reader
from meshbus.compile.legacy_services import Labels, ServedService, services_of
from meshbus.compile.values import regex
from meshbus.compile.written import entries, fields, texts
from meshbus.model.keys import Key
from meshbus.model.world import Query

STRICT, PERMISSIVE, DISABLE = "STRICT", "PERMISSIVE", "DISABLE"
MAX_NEEDS = 500
"""Combinations of trigger rules of one policy, which are written out."""


class LegacyPolicy(NamedTuple):
    """Whom a Policy is about, and what it asks of connections."""

    key: Key
    targets: tuple[tuple[str, Labels, tuple[int | str, ...]], ...]
    """Service, labels, ports by number or name; empty: the whole namespace or mesh."""
    mode: str
    """Of mutual TLS."""
    tokens: bool
    """It says something about tokens."""
    by_origin: bool
    """A request's principal is that of its token."""


def legacy_policies(reader: Reader, namespace: str) -> tuple[LegacyPolicy, ...]:
    """Node: policies of a namespace, older first; of the mesh if it is empty."""
    table = "cfg.policies" if namespace else "cfg.meshpolicies"
    found = sorted(
        reader.entries(Query(table, "namespace", namespace)),
        key=lambda e: (e.row.created, e.row.name),
    )
    return tuple(_policy(e.key, e.row.spec) for e in found if e.row.deletion is None)


def _policy(key: Key, spec: Mapping[str, Any]) -> LegacyPolicy:
    targets = []
    for target in entries(spec.get("targets")):
        ports = tuple(
            p["number"] if isinstance(p.get("number"), int) else str(p.get("name") or "")
            for p in entries(target.get("ports"))
        )
        labels = tuple(sorted((str(k), str(v)) for k, v in fields(target.get("labels")).items()))
        targets.append((str(target.get("name") or ""), labels, ports))
    return LegacyPolicy(
        key,
        tuple(targets),
        _mode(spec),
        bool(entries(spec.get("origins"))),
        spec.get("principalBinding") == "USE_ORIGIN",
    )


def _mode(spec: Mapping[str, Any]) -> str:
    for peer in entries(spec.get("peers")):
        if "mtls" not in peer:
            continue
        mtls = fields(peer["mtls"])
        lenient = mtls.get("mode") == PERMISSIVE or mtls.get("allowTls")
        return PERMISSIVE if lenient or spec.get("peerIsOptional") else STRICT
    return DISABLE


def _nearest(
    reader: Reader, namespace: str, labels: Labels, service: ServedService | None, port: int
) -> LegacyPolicy | None:
    """The policy of one port of a service; of the workload as a whole with port 0."""
    name = "" if service is None else service.name
    named = next((n for number, n, _ in (service.ports if service else ()) if number == port), "")
    best: tuple[int, LegacyPolicy] | None = None
    for policy in reader.node(legacy_policies, namespace):
        rank = 0 if policy.targets else 1
        for target, wanted, ports in policy.targets:
            if target != name or not set(labels).issuperset(wanted):
                continue
            if not ports:
                rank = max(rank, 2)
            elif port and (port in ports or (named and named in ports)):
                rank = max(rank, 3)
        if rank and (best is None or rank > best[0]):
            best = (rank, policy)
    if best is not None:
        return best[1]
    return next(iter(reader.node(legacy_policies, "")), None)


class LegacyModes(NamedTuple):
    """Modes of mutual TLS by Istio 1.4's policies."""

    mode: str
    """Empty: none says one."""
    ports: tuple[tuple[int, str], ...]
    """Of ports of the workload that have another one."""
    origins: tuple[Key, ...]


def legacy_modes(reader: Reader, namespace: str, labels: Labels) -> LegacyModes:
    """Node: modes for workloads of these labels."""
    if not any_policy(reader, namespace):
        return LegacyModes("", (), ())
    services = services_of(reader, namespace, labels)
    general = _nearest(reader, namespace, labels, services[0] if services else None, 0)
    used = {} if general is None else {general.key: None}
    ports: dict[int, str] = {}
    for service in services:
        for number, _, behind in service.ports:
            policy = _nearest(reader, namespace, labels, service, number)
            if policy is None:
                continue
            used[policy.key] = None
            for port in behind:
                ports.setdefault(port, policy.mode)
    mode = general.mode if general is not None else ""
    others = {port: own for port, own in ports.items() if own != mode}
    return LegacyModes(mode, tuple(sorted(others.items())), tuple(used))


def any_policy(reader: Reader, namespace: str) -> bool:
    """Some policy may be about workloads of the namespace."""
    return bool(reader.node(legacy_policies, namespace) or reader.node(legacy_policies, ""))


def legacy_tokens(reader: Reader, namespace: str, labels: Labels) -> tuple[Key, ...]:
    """The policy by which tokens of requests to a workload are checked; at most one. Of several
    services the first by host counts."""
    policy = _whole(reader, namespace, labels)
    return (policy.key,) if policy is not None and policy.tokens else ()


def bound_to_origin(reader: Reader, namespace: str, labels: Labels) -> bool:
    """Whether the principal of a request to a workload is that of its token."""
    policy = _whole(reader, namespace, labels)
    return policy is not None and policy.by_origin


def _whole(reader: Reader, namespace: str, labels: Labels) -> LegacyPolicy | None:
    if not any_policy(reader, namespace):
        return None
    services = services_of(reader, namespace, labels)
    return _nearest(reader, namespace, labels, services[0] if services else None, 0)


# --------------------------------------------------------------------------- tokens


class Need(NamedTuple):
    """Which tokens a request needs whose path is matched."""

    match: rc_pb2.RouteMatch
    origins: tuple[int, ...]
    """Indexes of the policy's origins of which one must be good."""


_Literal = tuple[string_pb2.StringMatcher, bool]
"""A matcher of the path, and whether it must not match."""


def rule_of_origin(jwt: Mapping[str, Any]) -> dict[str, Any]:
    """An origin as a rule of RequestAuthentication. The token goes on to the application."""
    rule: dict[str, Any] = {
        "issuer": jwt.get("issuer"),
        "audiences": texts(jwt.get("audiences")),
        "jwks": jwt.get("jwks"),
        "jwksUri": jwt.get("jwksUri"),
        "fromHeaders": [{"name": name} for name in texts(jwt.get("jwtHeaders"))],
        "fromParams": texts(jwt.get("jwtParams")),
        "forwardOriginalToken": True,
    }
    return rule


def needs(origins: list[Mapping[str, Any]]) -> list[Need]:
    """Which origins are asked for on which paths; the first that matches counts, and a request that
    none matches needs no token. An origin without trigger rules is asked for everywhere."""
    triggers = [_triggers(entries(jwt.get("triggerRules"))) for jwt in origins]
    if all(trigger == [()] for trigger in triggers):
        return [Need(rc_pb2.RouteMatch(prefix="/"), tuple(range(len(origins))))] if origins else []
    out = []
    everyone = range(len(origins))
    for size in range(len(origins), 0, -1):
        for chosen in combinations(everyone, size):
            for parts in product(*(triggers[index] for index in chosen)):
                literals = [literal for part in parts for literal in part]
                out.append(Need(_match(literals), chosen))
    return out


def _match(literals: list[_Literal]) -> rc_pb2.RouteMatch:
    return rc_pb2.RouteMatch(
        prefix="/",
        headers=[
            rc_pb2.HeaderMatcher(name=":path", string_match=matcher, invert_match=inverted)
            for matcher, inverted in literals
        ],
    )


def _triggers(rules: list[Mapping[str, Any]]) -> list[tuple[_Literal, ...]]:
    """When a token is asked for: one of these must hold, each of whose parts must."""
    if not rules:
        return [()]
    out: list[tuple[_Literal, ...]] = []
    for rule in rules:
        excluded = [_excluded(m) for m in entries(rule.get("excludedPaths"))]
        included = [[(_included(m), False)] for m in entries(rule.get("includedPaths"))] or [[]]
        out += [
            tuple(literal for part in choice for literal in part)
            for choice in product(included, *excluded)
        ]
    return out


def combinations_of(origins: list[Mapping[str, Any]]) -> int:
    """How many needs the trigger rules of these origins make."""
    total = 1
    for jwt in origins:
        rules = entries(jwt.get("triggerRules"))
        ways = sum(
            max(1, len(entries(rule.get("includedPaths"))))
            * 2 ** sum(bool(m.get("regex")) for m in entries(rule.get("excludedPaths")))
            for rule in rules
        )
        total *= 1 + (ways if rules else 1)
    return total - 1


_REST = "(?:[?#].*)?"
"""A path is compared without its query."""


def _expression(match: Mapping[str, Any]) -> str:
    if match.get("exact"):
        return quoted(str(match["exact"])) + _REST
    if match.get("prefix"):
        return quoted(str(match["prefix"])) + ".*"
    if match.get("suffix"):
        return "[^?#]*" + quoted(str(match["suffix"])) + _REST
    return f"(?:{match.get('regex') or ''})"


def _included(match: Mapping[str, Any]) -> string_pb2.StringMatcher:
    text = _expression(match)
    return _path(text + _REST if match.get("regex") else text)


def _excluded(match: Mapping[str, Any]) -> Iterator[list[_Literal]]:
    """When a path is not excluded. An expression might take what stands in the query for the path,
    which would let a caller exclude any path: with a query it excludes nothing."""
    yield [(_path(_expression(match)), True)]
    if match.get("regex"):
        yield [(_path("[^?#]*[?#].*"), False)]


def _path(expression: str) -> string_pb2.StringMatcher:
    return string_pb2.StringMatcher(safe_regex=regex(expression))
