"""Namespaces by their labels: which are looked at, and who sees what is declared in them."""

from collections.abc import Iterable, Mapping
from typing import Any

from meshbus.api.selectors import NAMESPACE_NAME, matches_selector
from meshbus.compile.engine import Reader
from meshbus.compile.settings import mesh
from meshbus.compile.written import entries
from meshbus.model.world import Query


def entry_visibility(reader: Reader, namespace: str) -> str:
    """Node: `serviceEntryVisibility` of a namespace's ServiceEntries; empty: nothing is said."""
    wish = reader.node(mesh).entry_visibility
    return visibility_of(wish, reader.node(namespace_labels, namespace)) if wish else ""


def visibility_of(wish: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """That of the first policy whose rules all match a namespace's labels, else the default."""
    for policy in entries(wish.get("policies")):
        rules = entries(policy.get("matchingRules"))
        selectors = [rule.get("namespaceSelector") for rule in rules]
        if all(isinstance(s, Mapping) and matches_selector(s, labels) for s in selectors):
            return str(policy.get("visibility") or "")
    return str(wish.get("defaultVisibility") or "")


def capped(targets: Iterable[str], visibility: str, namespace: str) -> tuple[str, ...] | None:
    """Who sees what a namespace exports to some, under its visibility; None: nobody.

    Source: Istio, MeshConfig.serviceEntryVisibility: with `applyToSidecars` it narrows `exportTo`.
    """
    if visibility == "NONE":
        return None
    found = tuple(targets)
    if visibility != "NAMESPACE":
        return found
    return (namespace,) if {"*", ".", namespace}.intersection(found) else None


def namespace_labels(reader: Reader, namespace: str) -> dict[str, str]:
    """Node: labels of a namespace, with its name, which Kubernetes puts there."""
    held = {NAMESPACE_NAME: namespace}
    for entry in reader.entries(Query("reg.namespaces", "all", None)):
        if entry.key.name == namespace:
            held = {**entry.row.labels, **held}
    return held


def is_discovered(reader: Reader, namespace: str) -> bool:
    """Node: objects of a namespace count: one of the `discoverySelectors` of the mesh chooses it,
    or there are none.

    Source: Istio, MeshConfig.discoverySelectors.
    """
    selectors = reader.node(mesh).discovery_selectors
    if not selectors:
        return True
    labels = reader.node(namespace_labels, namespace)
    return any(matches_selector(selector, labels) for selector in selectors)
