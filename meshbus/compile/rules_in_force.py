"""Destination rules: which are merged, and which of them proxies follow for a host."""

from typing import NamedTuple

from meshbus.compile.engine import Reader
from meshbus.compile.names import covers, fqdn, is_wildcard
from meshbus.compile.scope import public_services
from meshbus.compile.settings import mesh
from meshbus.compile.visibility import Ref, export_to, istio_objects, object_namespaces
from meshbus.model.keys import Key


class RuleHosts(NamedTuple):
    """Hosts that the destination rules of one namespace are about."""

    exact: frozenset[str]
    wildcards: tuple[str, ...]


class Consolidated(NamedTuple):
    """Rules of one host that are merged: those with equal audience and selector."""

    audience: frozenset[str]
    """`exportTo`; `.` stands for the namespace of the rules."""
    selector: tuple[tuple[str, str], ...] | None
    """`workloadSelector`; None: every workload."""
    keys: tuple[Key, ...]
    """Older first."""

    def shown_to(self, viewer: str, owner: str) -> bool:
        """Proxies of `viewer` see rules of `owner`."""
        names = self.audience
        return "*" in names or viewer in names or ("." in names and viewer == owner)


def destination_rules(reader: Reader, namespace: str) -> dict[str, tuple[Ref, ...]]:
    """Node: destination rules of a namespace by full host, older first."""
    found: dict[str, list[Ref]] = {}
    for ref in istio_objects(reader, "destinationrules", namespace):
        host = ref.row.spec.get("host")
        if isinstance(host, str):
            found.setdefault(fqdn(host, ref.row.namespace), []).append(ref)
    return {host: tuple(refs) for host, refs in sorted(found.items())}


def rule_hosts(reader: Reader, namespace: str) -> RuleHosts:
    """Node: the hosts of `destination_rules` alone, which change less often."""
    hosts = reader.node(destination_rules, namespace)
    return RuleHosts(
        frozenset(h for h in hosts if not is_wildcard(h)),
        tuple(h for h in hosts if is_wildcard(h)),
    )


def rules_of_host(reader: Reader, namespace: str, host: str) -> tuple[Ref, ...]:
    """Node: rules of exactly this host in a namespace."""
    return reader.node(destination_rules, namespace).get(host, ())


def _selector(ref: Ref) -> tuple[tuple[str, str], ...] | None:
    selector = ref.row.spec.get("workloadSelector")
    if not selector:
        return None
    return tuple(sorted((str(k), str(v)) for k, v in (selector.get("matchLabels") or {}).items()))


def consolidated_rules(reader: Reader, namespace: str, host: str) -> tuple[Consolidated, ...]:
    """Node: rules of a host in a namespace, grouped into those that are merged, older first.

    A rule joins the older ones of its selector if it is shown to all who see those; it also stands
    alone for those whom it alone is shown to. A rule for all workloads joins older ones for some.
    Unlike Istio, what is meant for some workloads is never merged into what holds for all.
    """
    default = reader.node(mesh).destination_rule_export_to
    out: list[Consolidated] = []
    for ref in reader.node(rules_of_host, namespace, host):
        audience = frozenset(export_to(ref.row, default))
        selector = _selector(ref)
        alone = True
        for index, held in enumerate(out):
            joins = held.selector == selector
            if held.audience != audience and not audience >= held.audience:
                continue
            if joins or selector is None:
                out[index] = held._replace(keys=(*held.keys, ref.key))
                alone &= not (joins and held.audience == audience)
        if alone:
            out.append(Consolidated(audience, selector, (ref.key,)))
    return tuple(out)


def find_rules(
    reader: Reader, viewer: str, owner: str, host: str, selected: frozenset[Key]
) -> tuple[Key, ...]:
    """Rules that proxies of `viewer` follow for a host whose service lives in `owner`.

    Searched in the viewer's namespace, the service's, the root's; the first that shows a rule for
    the host, or for the longest wildcard that covers it, decides. Proxies of the root namespace
    look there first only for rules that are private to it, so that rules for the whole mesh do not
    hide those of the services. Of the merged rules one group counts: that which selects the
    workload (its rules are in `selected`), else that for all; of several the oldest.
    """
    root = reader.node(mesh).root_namespace
    places = [(namespace, False) for namespace in dict.fromkeys((viewer, owner, root))]
    if viewer == root:
        places = [(root, True), *((n, False) for n in dict.fromkeys((owner, root)))]
    for namespace, private in places:
        keys = _rules_in(reader, namespace, viewer, host, selected, private)
        if keys:
            return keys
    return ()


def _rules_in(
    reader: Reader,
    namespace: str,
    viewer: str,
    host: str,
    selected: frozenset[Key],
    private: bool,
) -> tuple[Key, ...]:
    """The rules of the most specific host of a namespace that has any for the viewer."""
    hosts = reader.node(rule_hosts, namespace)
    patterns = [host] if host in hosts.exact else []
    patterns += sorted((w for w in hosts.wildcards if covers(w, host)), key=len, reverse=True)
    for pattern in patterns:
        shown = [
            held
            for held in reader.node(consolidated_rules, namespace, pattern)
            if held.shown_to(viewer, namespace) and not (private and held.audience != {"."})
        ]
        if not shown:
            continue
        for held in shown:
            if held.selector is not None and namespace == viewer and held.keys[0] in selected:
                return held.keys
        for held in shown:
            if held.selector is None:
                return held.keys
        return ()
    return ()


def rules_are_public(reader: Reader, namespace: str) -> bool:
    """Node: destination rules of a namespace, and of the root's, are exported to everybody."""
    settings = reader.node(mesh)
    return all(
        "*" in export_to(ref.row, settings.destination_rule_export_to)
        for owner in (namespace, settings.root_namespace)
        for refs in reader.node(destination_rules, owner).values()
        for ref in refs
    )


def some_rules_are_for_others(reader: Reader) -> bool:
    """Node: a destination rule is exported to certain namespaces, besides its own."""
    owners = reader.node(object_namespaces, "destinationrules")
    return any(reader.node(rules_are_for_others, owner) for owner in owners)


def rules_are_for_others(reader: Reader, namespace: str) -> bool:
    """Node: a destination rule of a namespace is."""
    settings = reader.node(mesh)
    for refs in reader.node(destination_rules, namespace).values():
        for ref in refs:
            targets = export_to(ref.row, settings.destination_rule_export_to)
            if "*" not in targets and not {".", "~", namespace}.issuperset(targets):
                return True
    return False


def rules_are_common(reader: Reader, namespace: str) -> bool:
    """Node: destination rules of a namespace are about its own services alone, for everybody:
    its proxies follow the same rules as those of any other namespace."""
    if not reader.node(rules_are_public, namespace):
        return False
    hosts = reader.node(rule_hosts, namespace)
    if hosts.wildcards:
        return False
    public = reader.node(public_services)
    for host in hosts.exact:
        ref = public.get(host)
        if ref is None or ref.row.namespace != namespace:
            return False
        if any(
            r.row.spec.get("workloadSelector") for r in reader.node(rules_of_host, namespace, host)
        ):
            return False
    return True


def rule_selectors(
    reader: Reader, namespace: str
) -> tuple[tuple[Key, frozenset[tuple[str, str]]], ...]:
    """Node: destination rules of a namespace that pick workloads, with the labels they pick by."""
    found = []
    for refs in reader.node(destination_rules, namespace).values():
        for ref in refs:
            selector = ref.row.spec.get("workloadSelector")
            if selector:
                found.append((ref.key, frozenset((selector.get("matchLabels") or {}).items())))
    return tuple(found)


def selecting_rules(
    reader: Reader, namespace: str, labels: tuple[tuple[str, str], ...]
) -> frozenset[Key]:
    """Destination rules whose workloadSelector picks these labels (own namespace only)."""
    held = set(labels)
    return frozenset(
        key for key, picked in reader.node(rule_selectors, namespace) if held.issuperset(picked)
    )
