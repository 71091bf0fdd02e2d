"""What a proxy may see: services, virtual services and destination rules of its namespace.

Lookups are nodes cut along namespaces, so that a change in one namespace re-runs what looked there
and stops where the answer is the same.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from meshbus.compile.engine import Reader
from meshbus.compile.names import fqdn, is_wildcard, most_specific
from meshbus.compile.settings import mesh
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject, Service
from meshbus.model.world import Query

ISTIO_NETWORKING = "networking.istio.io/"


class Ref(NamedTuple):
    """A row with its key: equal when the row is, whenever it was written."""

    key: Key
    row: Any


class Visible(NamedTuple):
    """What one namespace exports: to everyone, and to some."""

    public: tuple[Ref, ...]
    restricted: tuple[tuple[Ref, frozenset[str]], ...]
    """With the namespaces that see each; `.` stands for its own."""

    def seen_from(self, viewer: str, owner: str) -> Iterable[Ref]:
        """Those that `viewer` sees."""
        if not self.restricted:
            return self.public
        return [
            *self.public,
            *(
                ref
                for ref, targets in self.restricted
                if viewer in targets or (viewer == owner and "." in targets)
            ),
        ]


def _split(refs: Iterable[tuple[Ref, Iterable[str]]]) -> Visible:
    public: list[Ref] = []
    restricted: list[tuple[Ref, frozenset[str]]] = []
    for ref, targets in refs:
        names = frozenset(targets)
        if "*" in names or not names:
            public.append(ref)
        else:
            restricted.append((ref, names))
    return Visible(tuple(public), tuple(restricted))


def age(ref: Ref) -> tuple[float, str, str]:
    """Sort key: older first, of equal age by name, then namespace (DESIGN §5)."""
    return (ref.row.created, ref.row.name, ref.row.namespace)


# --------------------------------------------------------------------------- services


def service_namespaces(reader: Reader) -> tuple[str, ...]:
    """Node: namespaces that hold services."""
    return tuple(
        sorted({e.key.namespace for e in reader.entries(Query("reg.services", "all", None))})
    )


def exported_services(reader: Reader, namespace: str) -> Visible:
    """Node: services of one namespace, by who sees them."""
    default = reader.node(mesh).service_export_to
    return _split(
        (Ref(e.key, e.row), e.row.export_to or default)
        for e in reader.entries(Query("reg.services", "namespace", namespace))
    )


def visible_services(reader: Reader, viewer: str) -> dict[str, Ref]:
    """Node: the service that each host means to proxies of a namespace, in order of host.

    Of two services with one host the viewer's own wins, then Kubernetes', then the older.
    """
    found: dict[str, Ref] = {}
    for owner in reader.node(service_namespaces):
        for ref in reader.node(exported_services, owner).seen_from(viewer, owner):
            host = ref.row.host
            held = found.get(host)
            if held is None or _service_rank(ref, viewer) < _service_rank(held, viewer):
                found[host] = ref
    return {host: found[host] for host in sorted(found)}


def _service_rank(ref: Ref, viewer: str) -> tuple[bool, bool, tuple[float, str, str]]:
    row: Service = ref.row
    return (row.namespace != viewer, row.origin != "kubernetes", age(ref))


# --------------------------------------------------------------------------- config objects


def istio_objects(reader: Reader, plural: str, namespace: str) -> tuple[Ref, ...]:
    """Objects of networking.istio.io of one kind in one namespace, older first."""
    refs = [
        Ref(e.key, e.row)
        for e in reader.entries(Query(f"cfg.{plural}", "namespace", namespace))
        if e.row.api_version.startswith(ISTIO_NETWORKING) and e.row.deletion is None
    ]
    return tuple(sorted(refs, key=age))


def object_namespaces(reader: Reader, plural: str) -> tuple[str, ...]:
    """Node: namespaces that hold objects of a kind."""
    return tuple(
        sorted({e.key.namespace for e in reader.entries(Query(f"cfg.{plural}", "all", None))})
    )


def export_to(row: ConfigObject, default: tuple[str, ...]) -> tuple[str, ...]:
    """`spec.exportTo`, or the mesh's default."""
    value = row.spec.get("exportTo")
    return tuple(str(v) for v in value) if isinstance(value, list) and value else default


def exported_virtual_services(reader: Reader, namespace: str) -> Visible:
    """Node: virtual services of one namespace, by who sees them."""
    default = reader.node(mesh).virtual_service_export_to
    return _split(
        (ref, export_to(ref.row, default))
        for ref in istio_objects(reader, "virtualservices", namespace)
    )


def visible_virtual_services(reader: Reader, viewer: str) -> tuple[Ref, ...]:
    """Node: virtual services that proxies of a namespace follow, older first."""
    found: list[Ref] = []
    for owner in reader.node(object_namespaces, "virtualservices"):
        found += reader.node(exported_virtual_services, owner).seen_from(viewer, owner)
    return tuple(sorted(found, key=age))


# --------------------------------------------------------------------------- destination rules


class RuleHosts(NamedTuple):
    """Hosts that the destination rules of one namespace are about."""

    exact: frozenset[str]
    wildcards: tuple[str, ...]


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


def find_rules(
    reader: Reader, viewer: str, owner: str, host: str, selected: frozenset[Key]
) -> tuple[Key, ...]:
    """Rules that proxies of `viewer` follow for a host whose service lives in `owner`.

    Searched in the viewer's namespace, the service's, the root's; the first that has a rule for the
    host, or for the longest wildcard that covers it, decides. Rules with a workloadSelector count
    when they are in `selected`. More than one rule of a host: older first, merged by the reader.
    Source: Istio, DestinationRule reference and `PushContext.destinationRule`.
    """
    settings = reader.node(mesh)
    searched: set[str] = set()
    for namespace in (viewer, owner, settings.root_namespace):
        if namespace in searched:
            continue
        searched.add(namespace)
        hosts = reader.node(rule_hosts, namespace)
        pattern = host if host in hosts.exact else most_specific(hosts.wildcards, host)
        if pattern is None:
            continue
        keys = []
        for ref in reader.node(rules_of_host, namespace, pattern):
            targets = export_to(ref.row, settings.destination_rule_export_to)
            shown = "*" in targets or viewer in targets or (viewer == namespace and "." in targets)
            if namespace != viewer and not shown:
                continue
            if ref.row.spec.get("workloadSelector") and ref.key not in selected:
                continue
            keys.append(ref.key)
        if keys:
            return tuple(keys)
    return ()


def selecting_rules(
    reader: Reader, namespace: str, labels: tuple[tuple[str, str], ...]
) -> frozenset[Key]:
    """Node: destination rules whose workloadSelector picks these labels (own namespace only)."""
    held = set(labels)
    found = set()
    for refs in reader.node(destination_rules, namespace).values():
        for ref in refs:
            selector = ref.row.spec.get("workloadSelector")
            if selector and held.issuperset((selector.get("matchLabels") or {}).items()):
                found.add(ref.key)
    return frozenset(found)
