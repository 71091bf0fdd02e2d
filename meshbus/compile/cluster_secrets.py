"""Secrets that clusters ask for: `credentialName` of destination rules, which holds at gateways,
and at sidecars under a rule with a `workloadSelector`, or where it names a ConfigMap.

Source: networking ClientTLSSettings reference.
"""

from typing import Any, NamedTuple

from meshbus.compile.credential_names import is_config_map
from meshbus.compile.credentials import (
    DESTINATION_RULE,
    SecretNeed,
    Wanting,
    certificate_need,
    roots_need,
    united,
)
from meshbus.compile.engine import Reader
from meshbus.compile.findings import Finding, Report
from meshbus.compile.reach import Reach, reaches
from meshbus.compile.traffic_policy import merged_rule
from meshbus.compile.virtual_hosts import View
from meshbus.model.keys import Key
from meshbus.model.world import Query


class Named(NamedTuple):
    """A Secret or ConfigMap that a destination rule names."""

    origin: Key
    path: str
    name: str
    certificate: bool
    """A client certificate is shown."""
    roots: bool
    """The server's certificate is checked with it."""


class ClusterSecrets(NamedTuple):
    """What the clusters of a view need."""

    needs: tuple[SecretNeed, ...]
    findings: tuple[Finding, ...]


def rule_credentials(reader: Reader, rules: tuple[Key, ...]) -> tuple[Named, ...]:
    """Node: what the rules of one host name."""
    rule = reader.node(merged_rule, rules)
    found: dict[Named, None] = {}
    if rule.policy_origin is not None:
        found.update(_of(rule.policy, rule.policy_origin, "spec.trafficPolicy"))
    for subset in rule.subsets:
        found.update(_of(subset.policy, subset.origin, f"{subset.path}.trafficPolicy"))
    return tuple(found)


def _of(policy: dict[str, Any], origin: Key, path: str) -> dict[Named, None]:
    places = [(policy.get("tls"), f"{path}.tls")]
    for index, settings in enumerate(policy.get("portLevelSettings") or ()):
        places.append((settings.get("tls"), f"{path}.portLevelSettings[{index}].tls"))
    out: dict[Named, None] = {}
    for tls, at in places:
        if not isinstance(tls, dict) or tls.get("mode") not in ("SIMPLE", "MUTUAL"):
            continue
        name = str(tls.get("credentialName") or "")
        if name:
            mutual, checks = tls["mode"] == "MUTUAL", not tls.get("insecureSkipVerify")
            out[Named(origin, f"{at}.credentialName", name, mutual, checks)] = None
    return out


def named_in(reader: Reader, reach: Reach) -> tuple[tuple[tuple[Key, ...], Named], ...]:
    """Node: what the rules of one namespace's services name, with the rules of the service."""
    return tuple(
        (member.rules, named)
        for member in reach.members
        if member.rules
        for named in reader.node(rule_credentials, member.rules)
    )


def names_config_maps(reader: Reader, view: View) -> bool:
    """Node: some rule that a view follows names a ConfigMap."""
    if not reader.entries(Query("cfg.destinationrules", "config maps", True)):
        return False
    return any(
        is_config_map(named.name)
        for reach in reader.node(reaches, view)
        for _, named in reader.node(named_in, reach)
    )


def cluster_secrets(reader: Reader, view: View, router: bool) -> ClusterSecrets:
    """Node: Secrets that the clusters of a view need."""
    report = Report()
    needs: list[SecretNeed] = []
    named: dict[Named, None] = {}
    for reach in reader.node(reaches, view):
        for rules, wanted in reader.node(named_in, reach):
            if router or is_config_map(wanted.name) or not view.rules.isdisjoint(rules):
                named[wanted] = None
    for wanted in named:
        who = Wanting(DESTINATION_RULE, wanted.origin, view.namespace)
        with report.guard(wanted.origin, wanted.path):
            if wanted.certificate:
                needs.append(certificate_need(reader, who, wanted.name, wanted.path))
        with report.guard(wanted.origin, wanted.path):
            if wanted.roots:
                needs.append(roots_need(reader, who, wanted.name, wanted.path))
    return ClusterSecrets(united(needs), report.findings())
