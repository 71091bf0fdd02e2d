"""AuthorizationPolicy: which policies a workload follows, and the filters that carry them out.

The filters are in every server-side chain, by reference; what they do comes by ECDS. So a listener
does not change when policies come and go, nor when the mesh config first names a provider: what
policies say holds for the next request of connections that are open.

| filter (HTTP and TCP) | is |
|---|---|
| `envoy.filters.*.rbac.custom` | shadow rules: which requests a CUSTOM policy asks about |
| `envoy.filters.*.ext_authz` | asks the provider about those |
| `envoy.filters.*.rbac.audit` | AUDIT |
| `envoy.filters.*.rbac.deny` | DENY, and CUSTOM whose provider cannot be used: refused |
| `envoy.filters.*.rbac.allow` | ALLOW |

A filter without policies does nothing: an RBAC filter without rules.
Source: https://istio.io/latest/docs/reference/config/security/authorization-policy/
"""

from typing import Any, NamedTuple

from envoy.config.core.v3 import extension_pb2
from envoy.config.rbac.v3 import rbac_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac_pb2
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network_rbac_pb2

from meshbus.compile.authorization_providers import (
    RBAC_HTTP,
    RBAC_NETWORK,
    SHADOW_PREFIX,
    Provider,
    authorization_providers,
    policy_prefix,
)
from meshbus.compile.authorization_rules import (
    ALLOW,
    AUDIT,
    CUSTOM,
    DENY,
    Circumstances,
    RulePolicies,
    nothing,
    rule_policies,
)
from meshbus.compile.engine import Reader
from meshbus.compile.findings import Finding, Part
from meshbus.compile.legacy_rbac import Access, grants
from meshbus.compile.resources import ECDS, TYPE_PREFIX, Resource, encode
from meshbus.compile.settings import mesh
from meshbus.compile.targets import Labels, Target, target_of
from meshbus.compile.values import any_of
from meshbus.compile.written import entries, fields
from meshbus.model.keys import Key
from meshbus.model.world import Query

ASK_HTTP = "envoy.filters.http.ext_authz"
ASK_NETWORK = "envoy.filters.network.ext_authz"
HTTP_RBAC_TYPE = TYPE_PREFIX + http_rbac_pb2.RBAC.DESCRIPTOR.full_name
NETWORK_RBAC_TYPE = TYPE_PREFIX + network_rbac_pb2.RBAC.DESCRIPTOR.full_name
ASK_HTTP_TYPE = TYPE_PREFIX + "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz"
ASK_NETWORK_TYPE = TYPE_PREFIX + "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz"
_DRY_RUN = "istio.io/dry-run"
_DRY_RUN_PATH = f"metadata.annotations[{_DRY_RUN}]"
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_ENVOY_ACTIONS = {
    ALLOW: rbac_pb2.RBAC.ALLOW,
    DENY: rbac_pb2.RBAC.DENY,
    AUDIT: rbac_pb2.RBAC.LOG,
}


class Slot(NamedTuple):
    """One filter of a chain whose configuration comes by ECDS."""

    name: str
    """Of the filter and of the resource."""
    types: tuple[str, ...]
    """Type URLs that its configuration may have."""


class PolicyHead(NamedTuple):
    """What decides whom a policy concerns; changes less often than its rules."""

    key: Key
    action: str
    target: Target


class Policies(NamedTuple):
    """The policies that a workload follows, by action; of the root namespace first, older first.
    Workloads that follow the same share every filter."""

    allow: tuple[Key, ...] = ()
    deny: tuple[Key, ...] = ()
    audit: tuple[Key, ...] = ()
    custom: tuple[Key, ...] = ()


ASKING_HTTP = (
    Slot(f"{RBAC_HTTP}.custom", (HTTP_RBAC_TYPE,)),
    Slot(ASK_HTTP, (ASK_HTTP_TYPE, HTTP_RBAC_TYPE)),
)
"""Filters that ask about requests, before tokens are looked at."""
DECIDING_HTTP = tuple(
    Slot(f"{RBAC_HTTP}.{action}", (HTTP_RBAC_TYPE,)) for action in ("audit", "deny", "allow")
)
"""Filters that decide about requests, after tokens were looked at."""
NETWORK_SLOTS = (
    Slot(f"{RBAC_NETWORK}.custom", (NETWORK_RBAC_TYPE,)),
    Slot(ASK_NETWORK, (ASK_NETWORK_TYPE, NETWORK_RBAC_TYPE)),
    *(Slot(f"{RBAC_NETWORK}.{a}", (NETWORK_RBAC_TYPE,)) for a in ("audit", "deny", "allow")),
)
"""Filters that decide about TCP connections."""


# --------------------------------------------------------------------------- selection


def policy_heads(reader: Reader, namespace: str) -> tuple[PolicyHead, ...]:
    """Node: policies of a namespace without their rules, older first."""
    entries = sorted(
        reader.entries(Query("cfg.authorizationpolicies", "namespace", namespace)),
        key=lambda e: (e.row.created, e.row.name),
    )
    return tuple(
        PolicyHead(e.key, str(e.row.spec.get("action") or ALLOW), target_of(e.row.spec))
        for e in entries
        if e.row.deletion is None
    )


def policies_of(reader: Reader, namespace: str, labels: Labels) -> Policies:
    """The policies that workloads of these labels follow."""
    root = reader.node(mesh).root_namespace
    found: dict[str, list[Key]] = {ALLOW: [], DENY: [], AUDIT: [], CUSTOM: []}
    for owner in dict.fromkeys((root, namespace)):
        for head in reader.node(policy_heads, owner):
            if head.target.concerns(labels, namespace == owner) and head.action in found:
                found[head.action].append(head.key)
    return Policies(*(tuple(found[a]) for a in (ALLOW, DENY, AUDIT, CUSTOM)))


# --------------------------------------------------------------------------- rules


class Compiled(NamedTuple):
    """Rules of one policy by the name that Envoy reports."""

    rules: tuple[tuple[str, RulePolicies], ...]
    dry_run: bool
    provider: str
    findings: tuple[Finding, ...]


def trust_domains(reader: Reader) -> tuple[str, ...]:
    """Node: the mesh's trust domain and its aliases."""
    settings = reader.node(mesh)
    return (settings.trust_domain, *settings.trust_domain_aliases)


def compiled_policy(reader: Reader, key: Key) -> Compiled:
    """Node: the rules of one policy, for HTTP and for TCP."""
    row = reader.get(key)
    if row is None:
        return Compiled((), False, "", ())
    action = str(row.spec.get("action") or ALLOW)
    around = Circumstances(row.namespace, action, reader.node(trust_domains))
    prefix = f"ns[{row.namespace}]-policy[{row.name}]-rule"
    rules: list[tuple[str, RulePolicies]] = []
    findings: list[Finding] = []
    written = entries(row.spec.get("rules"))
    if not written and action == ALLOW:
        rules.append((f"{prefix}[0]", RulePolicies(nothing(), nothing())))
    for index, rule in enumerate(written):
        try:
            rules.append((f"{prefix}[{index}]", rule_policies(rule, around)))
        except Exception as fault:  # noqa: BLE001 - the wall between objects
            # An ALLOW rule that is not understood allows nothing. One that forbids must not be
            # lost: what it is about is forbidden whole.
            findings.append(Finding(key, f"spec.rules[{index}]", str(fault)))
            if action != ALLOW:
                rules.append((f"{prefix}[{index}]", rule_policies({}, around)))
    dry_run = row.annotations.get(_DRY_RUN) in _TRUE
    provider = str(fields(row.spec.get("provider")).get("name") or "")
    if dry_run and action not in (ALLOW, DENY):
        # Nobody is asked, and nothing is noted, of what shall only be tried.
        message = f"a policy of action {action} cannot be run dry: it has no effect"
        return Compiled((), False, provider, (Finding(key, _DRY_RUN_PATH, message),))
    return Compiled(tuple(rules), dry_run, provider, tuple(findings))


def rules_on(
    reader: Reader, key: Key, tcp: bool
) -> tuple[bool, tuple[tuple[str, rbac_pb2.Policy], ...]]:
    """Node: whether a policy runs dry, and its rules that mean something to one kind of filter. A
    change that concerns HTTP alone leaves those of TCP as they are."""
    compiled = reader.node(compiled_policy, key)
    return compiled.dry_run, tuple(
        (name, policy)
        for name, policies in compiled.rules
        if (policy := policies.on(tcp)) is not None
    )


class RuleSet(NamedTuple):
    """What one RBAC filter does."""

    rules: rbac_pb2.RBAC | None
    """None: nothing is decided."""
    shadow: rbac_pb2.RBAC | None
    """Decided only to be seen."""
    shadow_prefix: str


def rule_set(
    reader: Reader, action: str, keys: tuple[Key, ...], refused: tuple[Key, ...], tcp: bool
) -> RuleSet:
    """Node: policies of one action. `refused`: CUSTOM policies whose requests are denied because
    nobody can be asked."""
    parts: dict[bool, dict[str, rbac_pb2.Policy]] = {}
    for key in keys:
        dry_run, rules = reader.node(rules_on, key, tcp)
        parts.setdefault(dry_run, {}).update(rules)
    for key in refused:
        prefix = policy_prefix(reader.node(provider_of, key))
        _, rules = reader.node(rules_on, key, tcp)
        parts.setdefault(False, {}).update(
            (f"{prefix}-{name}-deny-due-to-bad-CUSTOM-action", rule) for name, rule in rules
        )
    envoy = _ENVOY_ACTIONS[action]
    rbac = {dry: rbac_pb2.RBAC(action=envoy, policies=rules) for dry, rules in parts.items()}
    shadow = rbac.get(True)
    named = "deny" if action == DENY and shadow is not None else "allow"
    return RuleSet(rbac.get(False), shadow, f"istio_dry_run_{named}_")


def findings_of(reader: Reader, key: Key) -> tuple[Finding, ...]:
    """Node: what of a policy cannot be compiled."""
    return reader.node(compiled_policy, key).findings


def provider_of(reader: Reader, key: Key) -> str:
    """Node: whom a CUSTOM policy asks."""
    return reader.node(compiled_policy, key).provider


class Asked(NamedTuple):
    """CUSTOM policies of a workload: which can be asked about, and what is refused instead."""

    provider: str
    keys: tuple[Key, ...]
    refused: tuple[Key, ...]
    findings: tuple[Finding, ...]


def asked(reader: Reader, keys: tuple[Key, ...]) -> Asked:
    """Node: whom CUSTOM policies ask. Where that cannot be told, requests are refused.

    Source: Istio, the tests of its ext_authz builder: one provider for each workload.
    """
    keys = tuple(key for key in keys if reader.node(compiled_policy, key).rules)
    if not keys:
        return Asked("", (), (), ())
    names = {key: reader.node(provider_of, key) for key in keys}
    providers = reader.node(authorization_providers)
    fault = ""
    if len(set(names.values())) > 1:
        several = ", ".join(sorted({*names.values()}))
        fault = f"policies of one workload name several providers: {several}"
    else:
        name = names[keys[0]]
        found = providers.get(name)
        if found is None:
            known = ", ".join(sorted(providers)) or "none"
            fault = f"extension provider {name!r} is not in the mesh config; there: {known}"
        elif isinstance(found, str):
            fault = f"extension provider {name!r} cannot be used: {found}"
    if fault:
        message = f"{fault}. Its requests are refused"
        findings = tuple(Finding(key, "spec.provider.name", message) for key in keys)
        return Asked("", (), keys, findings)
    return Asked(names[keys[0]], keys, (), ())


# --------------------------------------------------------------------------- filters


def authorization_filters(reader: Reader, policies: Policies, access: Access | None) -> Part:
    """Node: configurations of every slot, for workloads that follow these policies, or whose
    callers need a role of Istio 1.4."""
    custom = reader.node(asked, policies.custom)
    parts = []
    for tcp in (False, True):
        parts += [
            reader.node(asking_filters, policies.custom, tcp),
            reader.node(rbac_filter, AUDIT, policies.audit, (), tcp),
            reader.node(rbac_filter, DENY, policies.deny, custom.refused, tcp),
            reader.node(rbac_filter, ALLOW, policies.allow, (), tcp)
            if access is None
            else reader.node(role_filter, access, tcp),
        ]
    findings = {finding for part in parts for finding in part.findings}
    for key in (key for keys in policies for key in keys):
        findings.update(reader.node(findings_of, key))
    return Part(
        tuple(resource for part in parts for resource in part.resources),
        tuple(sorted(findings.union(custom.findings))),
    )


def rbac_filter(
    reader: Reader, action: str, keys: tuple[Key, ...], refused: tuple[Key, ...], tcp: bool
) -> Part:
    """Node: the RBAC filter of one action; arguments as those of `rule_set`."""
    made = reader.node(rule_set, action, keys, refused, tcp)
    name = f"{RBAC_NETWORK if tcp else RBAC_HTTP}.{action.lower()}"
    resource = _resource(reader, name, _rbac(made, tcp), (*keys, *refused))
    return Part((resource,))


def role_filter(reader: Reader, access: Access, tcp: bool) -> Part:
    """Node: the RBAC filter that lets those in who have a role."""
    granted = reader.node(grants, access)
    around = Circumstances(access.namespace, ALLOW, reader.node(trust_domains))
    parts: dict[bool, dict[str, rbac_pb2.Policy]] = {access.permissive: {}}
    findings = list(granted.findings)
    for one in granted.rules:
        try:
            policy = rule_policies(one.rule, around).on(tcp)
        except Exception as fault:  # noqa: BLE001 - the wall between objects
            findings.append(Finding(one.key, "spec.rules", str(fault)))
            continue
        if policy is not None:
            parts.setdefault(one.permissive, {})[one.name] = policy
    rbac = {
        dry: rbac_pb2.RBAC(action=rbac_pb2.RBAC.ALLOW, policies=rules)
        for dry, rules in parts.items()
    }
    made = RuleSet(rbac.get(False), rbac.get(True), "istio_dry_run_allow_")
    name = f"{RBAC_NETWORK if tcp else RBAC_HTTP}.allow"
    return Part((_resource(reader, name, _rbac(made, tcp), granted.origins),), tuple(findings))


def _rbac(made: RuleSet, tcp: bool) -> Any:
    out: Any = network_rbac_pb2.RBAC(stat_prefix="tcp.") if tcp else http_rbac_pb2.RBAC()
    if made.rules is not None:
        out.rules.CopyFrom(made.rules)
    if made.shadow is not None:
        out.shadow_rules.CopyFrom(made.shadow)
    if made.rules is not None or made.shadow is not None:
        out.shadow_rules_stat_prefix = made.shadow_prefix
    return out


def asking_filters(reader: Reader, keys: tuple[Key, ...], tcp: bool) -> Part:
    """Node: the filter that finds what is asked about, and the one that asks, for CUSTOM policies;
    without one both do nothing."""
    custom = reader.node(asked, keys)
    base, ask = (RBAC_NETWORK, ASK_NETWORK) if tcp else (RBAC_HTTP, ASK_HTTP)
    finder: Any = network_rbac_pb2.RBAC(stat_prefix="tcp.") if tcp else http_rbac_pb2.RBAC()
    asker = finder
    provider = reader.node(authorization_providers).get(custom.provider)
    message = None
    if isinstance(provider, Provider):
        message = provider.network if tcp else provider.http
    if message is not None:
        prefix = policy_prefix(custom.provider)
        rules: dict[str, rbac_pb2.Policy] = {}
        for key in custom.keys:
            _, of_policy = reader.node(rules_on, key, tcp)
            rules.update((f"{prefix}-{name}", rule) for name, rule in of_policy)
        finder = type(finder)()
        finder.CopyFrom(asker)
        finder.shadow_rules.CopyFrom(rbac_pb2.RBAC(action=rbac_pb2.RBAC.DENY, policies=rules))
        finder.shadow_rules_stat_prefix = SHADOW_PREFIX
        asker = message
    return Part(
        (
            _resource(reader, f"{base}.custom", finder, custom.keys),
            _resource(reader, ask, asker, custom.keys),
        )
    )


def _resource(reader: Reader, name: str, config: Any, origins: tuple[Key, ...]) -> Resource:
    extension = extension_pb2.TypedExtensionConfig(name=name, typed_config=any_of(config))
    return encode(reader, ECDS, name, extension, origins)
