"""ServiceRole, ServiceRoleBinding and (Cluster)RbacConfig of Istio 1.4.

The config says for which services access has to be granted; roles grant it, bindings say to whom.
What they grant is written as rules of an ALLOW policy, so that it is compiled as those are. They
hold for workloads that no AuthorizationPolicy is about.
Source: https://istio.io/v1.4/docs/reference/config/security/istio.rbac.v1alpha1/ and
https://istio.io/v1.4/docs/concepts/security/#authorization
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from meshbus.compile.engine import Reader
from meshbus.compile.findings import Finding
from meshbus.compile.legacy_authentication import bound_to_origin
from meshbus.compile.legacy_services import Labels, services_of
from meshbus.compile.settings import mesh
from meshbus.compile.written import entries, fields, texts
from meshbus.model.keys import Key
from meshbus.model.world import Query

_DEFAULT = "default"
_STATIC = ("destination.labels", "destination.name", "destination.namespace", "destination.user")
"""Attributes of the workload, known when a rule is compiled."""


class Access(NamedTuple):
    """A workload whose callers need a role."""

    namespace: str
    hosts: tuple[str, ...]
    """Services of the workload that roles are needed for."""
    names: tuple[str, ...]
    labels: Labels
    permissive: bool
    """Nothing is enforced yet."""
    by_origin: bool
    """The principal of a request is that of its token."""


class RbacScope(NamedTuple):
    """Where roles are needed."""

    mode: str
    namespaces: frozenset[str]
    services: frozenset[str]
    permissive: bool

    def covers(self, host: str, namespace: str) -> bool:
        """Whether callers of a service need a role."""
        listed = namespace in self.namespaces or host in self.services
        match self.mode:
            case "ON":
                return True
            case "ON_WITH_INCLUSION":
                return listed
            case "ON_WITH_EXCLUSION":
                return not listed
        return False


def rbac_scope(reader: Reader) -> tuple[RbacScope, tuple[Key, ...]]:
    """Node: the config in force; a ClusterRbacConfig counts before an RbacConfig of the root
    namespace. Both must have the name `default`."""
    root = reader.node(mesh).root_namespace
    for table, namespace in (("cfg.clusterrbacconfigs", ""), ("cfg.rbacconfigs", root)):
        for entry in reader.entries(Query(table, "namespace", namespace)):
            if entry.row.name != _DEFAULT or entry.row.deletion is not None:
                continue
            spec = entry.row.spec
            mode = str(spec.get("mode") or "OFF")
            field = {"ON_WITH_INCLUSION": "inclusion", "ON_WITH_EXCLUSION": "exclusion"}.get(mode)
            listed = fields(spec.get(field)) if field else {}
            scope = RbacScope(
                mode,
                frozenset(texts(listed.get("namespaces"))),
                frozenset(texts(listed.get("services"))),
                spec.get("enforcementMode") == "PERMISSIVE",
            )
            return scope, (entry.key,)
    return RbacScope("OFF", frozenset(), frozenset(), False), ()


def access_of(reader: Reader, namespace: str, labels: Labels) -> Access | None:
    """What callers of a workload need; None: no role."""
    scope, _ = reader.node(rbac_scope)
    if scope.mode == "OFF":
        return None
    services = services_of(reader, namespace, labels)
    covered = [s for s in services if scope.covers(s.host, namespace)]
    if not covered and not (not services and scope.covers("", namespace)):
        return None
    origin = bound_to_origin(reader, namespace, labels)
    hosts = tuple(service.host for service in covered)
    names = tuple(service.name for service in covered)
    return Access(namespace, hosts, names, labels, scope.permissive, origin)


# --------------------------------------------------------------------------- roles


class Granted(NamedTuple):
    """A rule that roles and bindings make, as one of AuthorizationPolicy."""

    name: str
    """As Envoy reports it."""
    rule: Mapping[str, Any]
    permissive: bool
    key: Key


class Grants(NamedTuple):
    """Everything that is granted to callers of a workload."""

    rules: tuple[Granted, ...]
    origins: tuple[Key, ...]
    findings: tuple[Finding, ...]


def grants(reader: Reader, access: Access) -> Grants:
    """Node: the rules of the roles and bindings of a workload's namespace."""
    _, config = reader.node(rbac_scope)
    bindings = reader.entries(Query("cfg.servicerolebindings", "namespace", access.namespace))
    out: list[Granted] = []
    used = list(config)
    findings: list[Finding] = []
    for entry in sorted(bindings, key=lambda e: (e.row.created, e.row.name)):
        if entry.row.deletion is not None:
            continue
        spec = entry.row.spec
        rules, source = _rules_of(reader, entry.key, spec)
        if rules is None:
            findings.append(Finding(entry.key, "spec.roleRef", f"there is no ServiceRole {source}"))
            continue
        used += [entry.key, source] if isinstance(source, Key) else [entry.key]
        permissive = access.permissive or spec.get("mode") == "PERMISSIVE"
        named = source if isinstance(source, Key) else entry.key
        prefix = f"ns[{named.namespace}]-servicerole[{named.name}]-rule"
        for index, rule in enumerate(rules):
            if not _about(rule, access):
                continue
            for number, subject in enumerate(entries(spec.get("subjects"))):
                name = f"{prefix}[{index}]-binding[{entry.row.name}]-subject[{number}]"
                granted = _rule(rule, subject, access)
                out.append(Granted(name, granted, permissive, named))
    return Grants(tuple(out), tuple(dict.fromkeys(used)), tuple(findings))


def _rules_of(
    reader: Reader, binding: Key, spec: Mapping[str, Any]
) -> tuple[list[Mapping[str, Any]] | None, Key | str]:
    """Rules that a binding grants and the role they are of; None: the role is not there."""
    if spec.get("actions"):
        return entries(spec["actions"]), ""
    name = str(fields(spec.get("roleRef")).get("name") or spec.get("role") or "")
    namespace = binding.namespace
    if name.startswith("/"):
        name, namespace = name[1:], reader.node(mesh).root_namespace
    key = Key(binding.cluster, "cfg", "serviceroles", namespace, name)
    row = reader.get(key)
    if row is None or row.deletion is not None:
        return None, f"{namespace}/{name}"
    return entries(row.spec.get("rules")), key


def _matches(value: str, patterns: list[str]) -> bool:
    """One of the patterns, which may begin or end with `*`, is the value."""
    for pattern in patterns:
        if pattern == "*" or pattern == value:
            return True
        if pattern.startswith("*") and value.endswith(pattern[1:]):
            return True
        if pattern.endswith("*") and value.startswith(pattern[:-1]):
            return True
    return False


def _about(rule: Mapping[str, Any], access: Access) -> bool:
    """Whether a rule is about the workload."""
    services = texts(rule.get("services"))
    if not (any(_matches(host, services) for host in access.hosts) or "*" in services):
        return False
    labels = dict(access.labels)
    for constraint in entries(rule.get("constraints")):
        key, values = str(constraint.get("key") or ""), texts(constraint.get("values"))
        base, _, rest = key.partition("[")
        held: tuple[str, ...]
        match base:
            case "destination.labels":
                label = labels.get(rest.removesuffix("]"))
                held = () if label is None else (label,)
            case "destination.namespace":
                held = (access.namespace,)
            case "destination.name":
                held = access.names
            case "destination.user":
                held = ()  # refused by validation; what is not understood grants nothing
            case _:
                continue
        if not any(_matches(value, values) for value in held):
            return False
    return True


def _rule(rule: Mapping[str, Any], subject: Mapping[str, Any], access: Access) -> Mapping[str, Any]:
    """An access rule for one subject, as a rule of AuthorizationPolicy."""
    operation = {
        field: [str(v) for v in rule[field]]
        for field in ("hosts", "notHosts", "methods", "notMethods", "paths", "notPaths")
        if rule.get(field)
    }
    for field in ("ports", "notPorts"):
        if rule.get(field):
            operation[field] = [str(port) for port in rule[field]]
    source = {
        new: texts(subject[old])
        for old, new in (
            ("names", "principals"),
            ("notNames", "notPrincipals"),
            ("namespaces", "namespaces"),
            ("notNamespaces", "notNamespaces"),
            ("ips", "ipBlocks"),
            ("notIps", "notIpBlocks"),
        )
        if subject.get(old)
    }
    when = [*_conditions(subject, access), *_constraints(rule)]
    made: dict[str, Any] = {"when": when}
    if operation:
        made["to"] = [{"operation": operation}]
    if source:
        made["from"] = [{"source": source}]
    return made


def _conditions(subject: Mapping[str, Any], access: Access) -> Iterator[dict[str, Any]]:
    user = str(subject.get("user") or "")
    if user and user != "*":  # `*` is everybody, known or not
        yield {"key": "source.principal", "values": [user]}
    groups = [
        *([str(subject["group"])] if subject.get("group") else []),
        *texts(subject.get("groups")),
    ]
    if groups:
        yield {"key": "request.auth.claims[groups]", "values": groups}
    if subject.get("notGroups"):
        yield {"key": "request.auth.claims[groups]", "notValues": texts(subject["notGroups"])}
    for key, value in sorted(fields(subject.get("properties")).items()):
        principal = key == "request.auth.principal" and not access.by_origin
        yield {"key": "source.principal" if principal else str(key), "values": [str(value)]}


def _constraints(rule: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for constraint in entries(rule.get("constraints")):
        key = str(constraint.get("key") or "")
        if not key.startswith(_STATIC):
            yield {"key": key, "values": texts(constraint.get("values"))}
