"""What a proxy may see: services, virtual services and destination rules.

A `Viewer` is a namespace and, under a Sidecar, the hosts that it imports. Lookups are nodes cut
along namespaces and imported hosts, so that a change re-runs what looked there and stops where the
answer is the same; what a Sidecar does not import is not read.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from meshbus.compile.engine import Reader
from meshbus.compile.headings import ISTIO_NETWORKING, heading, virtual_service_keys
from meshbus.compile.names import covers, fqdn, is_http, is_sniffed, is_wildcard, overlaps
from meshbus.compile.namespaces import capped, entry_visibility, is_discovered
from meshbus.compile.settings import mesh
from meshbus.compile.values import UNIX
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject, Service, ServicePort
from meshbus.model.world import Entry, Query

HTTP_PROXY = "HTTP_PROXY"
ANY = "*"

Import = tuple[str, str]
"""(namespace or `*`, host, wildcard or `*`) of a Sidecar's egress hosts."""


class Egress(NamedTuple):
    """One egress listener of a Sidecar."""

    port: int
    """0: every port that no other listener of the Sidecar is for."""
    protocol: str
    bind: str
    captured: bool
    """Traffic is redirected to it; else it binds its port."""
    hosts: tuple[Import, ...]

    @property
    def is_socket(self) -> bool:
        """It binds a Unix socket: its hosts are called there, at all their ports, and nowhere
        else."""
        return self.bind.startswith(UNIX)

    @property
    def is_everything(self) -> bool:
        """As without a Sidecar: all that is exported, at every port, by redirection."""
        plain = self.captured and not self.port and not self.bind
        return plain and self.hosts == ((ANY, ANY),)

    @property
    def only_port(self) -> int:
        """The port without which a service is not imported; 0: a service is, whatever its ports."""
        return 0 if self.protocol == HTTP_PROXY or self.is_socket else self.port


class Viewer(NamedTuple):
    """Whose eyes: proxies of equal viewers see the same."""

    namespace: str
    egress: tuple[Egress, ...] = ()
    """Of the Sidecar in force; empty: everything that is exported to the namespace."""


NOBODY = ""
"""Namespace of a viewer that sees what everybody sees."""


def alone(namespace: str, egress: Egress) -> Viewer:
    """Who imports the hosts of one egress listener, and nothing else."""
    if egress.hosts == ((ANY, ANY),):
        return Viewer(namespace)
    return Viewer(namespace, (Egress(0, "", "", True, egress.hosts),))


def listener_viewer(viewer: Viewer, port: int) -> Viewer:
    """Whose virtual services count for calls to a port: those that the egress listener for it
    imports.

    Source: Istio, SidecarScope: each egress listener has virtual services of its own.
    """
    if not viewer.egress:
        return viewer
    egress = listener_of(viewer, port)
    return alone(viewer.namespace, egress or Egress(0, "", "", True, ()))


def listener_of(viewer: Viewer, port: int) -> Egress | None:
    """The egress listener for calls to a port: the first that is for it, or for every port."""
    found = (e for e in viewer.egress if not e.is_socket and e.port in (0, port))
    return next(found, None)


class Ref(NamedTuple):
    """A row with its key: equal when the row is, whenever it was written. Of virtual services in
    lists the row is their `Heading`."""

    key: Key
    row: Any


PRIVATE, NAMED, PUBLIC = range(3)
"""Precedence of what a namespace sees: its own that it keeps to itself, what names it, what is for
everybody. Source: Istio, PushContext.servicesExportedToNamespace and VirtualServicesForGateway."""

Ranked = tuple[int, Ref]
"""Something that is seen, after its precedence."""


class Visible(NamedTuple):
    """What one namespace exports: to everyone, and to some."""

    public: tuple[Ref, ...]
    restricted: tuple[tuple[Ref, frozenset[str]], ...]
    """With the namespaces that see each; `.` stands for its own."""

    def seen_from(self, namespace: str) -> Iterable[Ranked]:
        """Those that a namespace sees, with their precedence for it."""
        yield from ((PUBLIC, ref) for ref in self.public)
        for ref, targets in self.restricted:
            if ref.row.namespace == namespace and (namespace in targets or "." in targets):
                yield PRIVATE, ref
            elif namespace in targets:
                yield NAMED, ref


_NOBODY_SEES = frozenset({"~"})


def _split(refs: Iterable[tuple[Ref, Iterable[str]]]) -> Visible:
    public: list[Ref] = []
    restricted: list[tuple[Ref, frozenset[str]]] = []
    for ref, targets in refs:
        names = frozenset(targets)
        if "*" in names or not names:
            public.append(ref)
        else:
            restricted.append((ref, _NOBODY_SEES if "~" in names else names))
    return Visible(tuple(public), tuple(restricted))


def age(ref: Ref) -> tuple[float, str, str]:
    """Sort key: older first, of equal age by name, then namespace (DESIGN §5). The name of a
    ServiceEntry's service is its host.

    Source: Istio, SortServicesByCreationTime.
    """
    row = ref.row
    name = row.host if isinstance(row, Service) and row.origin == "external" else row.name
    return (row.created, name, row.namespace)


# --------------------------------------------------------------------------- services


def service_namespaces(reader: Reader) -> tuple[str, ...]:
    """Node: namespaces that hold services."""
    return tuple(
        sorted({e.key.namespace for e in reader.entries(Query("reg.services", "all", None))})
    )


def exported_services(reader: Reader, namespace: str) -> Visible:
    """Node: services of one namespace, by who sees them."""
    return _exported(reader, reader.entries(Query("reg.services", "namespace", namespace)))


def _exported(reader: Reader, found: Iterable[Entry]) -> Visible:
    default = reader.node(mesh).service_export_to
    return _split(
        (Ref(e.key, e.row), targets)
        for e in found
        if (targets := _capped(reader, e.row, e.row.export_to or default)) is not None
    )


def _capped(reader: Reader, row: Service, targets: Iterable[str]) -> Iterable[str] | None:
    """Who sees a service of those that it is exported to; None: nobody."""
    if row.origin != "external":
        return targets
    return capped(targets, reader.node(entry_visibility, row.namespace), row.namespace)


def exported_host(reader: Reader, host: str) -> Visible:
    """Node: services of one host in every namespace, by who sees them."""
    return _exported(reader, reader.entries(Query("reg.services", "host", host)))


def imported_services(reader: Reader, owner: str, pattern: str) -> Visible:
    """Node: services that an egress host stands for, by who sees them.

    A host without wildcard is looked up alone: other services of its namespace are not read.
    """
    if not is_wildcard(pattern):
        held = reader.node(exported_host, pattern)
        return held if owner == ANY else _only(held, lambda ref: ref.row.namespace == owner)
    if owner != ANY and pattern == ANY:
        return reader.node(exported_services, owner)
    owners = reader.node(service_namespaces) if owner == ANY else (owner,)
    parts = [reader.node(exported_services, o) for o in owners]
    joined = Visible(
        tuple(ref for part in parts for ref in part.public),
        tuple(pair for part in parts for pair in part.restricted),
    )
    return _only(joined, lambda ref: covers(pattern, ref.row.host))


def _only(visible: Visible, wanted: Callable[[Ref], bool]) -> Visible:
    return Visible(
        tuple(ref for ref in visible.public if wanted(ref)),
        tuple(pair for pair in visible.restricted if wanted(pair[0])),
    )


def _best(refs: Iterable[Ranked], namespace: str) -> dict[str, Ref]:
    """One service for each host: the viewer's own wins, then Kubernetes', then by precedence, then
    the older."""
    found: dict[str, Ranked] = {}
    for ranked in refs:
        held = found.get(ranked[1].row.host)
        if held is None or _service_rank(ranked, namespace) < _service_rank(held, namespace):
            found[ranked[1].row.host] = ranked
    return {host: ref for host, (_, ref) in found.items()}


def in_precedence(
    reader: Reader, services: Mapping[str, Ref], namespace: str
) -> list[tuple[str, Ref]]:
    """Services of a viewer's namespace by host, in the order in which they get what only one can
    have: by precedence, then the older."""
    default = reader.node(mesh).service_export_to

    def place(item: tuple[str, Ref]) -> tuple[int, tuple[float, str, str]]:
        row: Service = item[1].row
        targets = frozenset(_capped(reader, row, row.export_to or default) or ())
        if "*" in targets or not targets:
            return PUBLIC, age(item[1])
        return PRIVATE if row.namespace == namespace else NAMED, age(item[1])

    return sorted(services.items(), key=place)


def egress_services(
    reader: Reader, namespace: str, hosts: tuple[Import, ...], port: int = 0
) -> dict[str, Ref]:
    """Node: the services that the hosts of one egress listener mean to a namespace; with `port`,
    of those that have it. One that is asked for by namespace has no precedence over what any
    namespace may give.

    Source: Istio, IstioEgressListenerWrapper.selectServices.
    """
    refs = (
        ranked
        for owner, pattern in hosts
        for ranked in reader.node(imported_services, owner, pattern).seen_from(namespace)
        if _has_port(ranked[1].row, port)
    )
    return _best(refs, namespace)


def _has_port(row: Service, port: int) -> bool:
    """A service has a port; 0: any."""
    return not port or any(held.number == port for held in row.ports)


def public_services(reader: Reader) -> dict[str, Ref]:
    """Node: what everybody sees, in order of host: the same object for all who see no more and
    have no service of their own of a host that others have too."""
    refs = (
        (PUBLIC, ref)
        for owner in reader.node(service_namespaces)
        for ref in reader.node(exported_services, owner).public
    )
    found = _best(refs, "")
    return {host: found[host] for host in sorted(found)}


def restricted_services(reader: Reader) -> tuple[tuple[Ref, frozenset[str]], ...]:
    """Node: what some see, with who sees it."""
    owners = reader.node(service_namespaces)
    return tuple(p for owner in owners for p in reader.node(exported_services, owner).restricted)


def _seen_by_all(reader: Reader, namespace: str) -> dict[str, Ref]:
    """Everything that is exported to a namespace."""
    public = reader.node(public_services)
    own = reader.node(exported_services, namespace)
    some = list(Visible((), reader.node(restricted_services)).seen_from(namespace))
    shadowed = [ref for ref in own.public if public[ref.row.host].key != ref.key]
    if not some and not shadowed:
        return public
    everybody = ((PUBLIC, ref) for ref in (*public.values(), *own.public))
    found = _best((*everybody, *some), namespace)
    return {host: found[host] for host in sorted(found)}


def visible_services(reader: Reader, viewer: Viewer) -> dict[str, Ref]:
    """Node: the service that each host means to a viewer, in order of host.

    Under a Sidecar a service has those ports that its egress listeners are for: a listener with a
    port has that port alone, and where it has HTTP, or something without an address, no other
    listener has it.
    """
    if not viewer.egress:
        return _seen_by_all(reader, viewer.namespace)
    return _as_imported(viewer, lambda egress: _imported(reader, viewer, egress))


def visible_service(reader: Reader, viewer: Viewer, host: str) -> Ref | None:
    """Node: what `visible_services` has for one host; services of other hosts are not read."""
    held = reader.node(exported_host, host)

    def imported(egress: Egress) -> dict[str, Ref]:
        owners = {owner for owner, pattern in egress.hosts if covers(pattern, host)}
        refs = (
            ranked
            for ranked in held.seen_from(viewer.namespace)
            if (ANY in owners or ranked[1].row.namespace in owners)
            and _has_port(ranked[1].row, egress.only_port)
        )
        return _best(refs, viewer.namespace)

    if not viewer.egress:
        return _best(held.seen_from(viewer.namespace), viewer.namespace).get(host)
    return _as_imported(viewer, imported).get(host)


def _as_imported(viewer: Viewer, imported: Callable[[Egress], Mapping[str, Ref]]) -> dict[str, Ref]:
    """Services under a Sidecar, of those that each of its egress listeners imports."""
    own = {e.port for e in viewer.egress if e.only_port}
    ports: dict[str, dict[int, ServicePort]] = {}
    chosen: dict[str, Ref] = {}
    for egress in viewer.egress:
        if egress.protocol == HTTP_PROXY or egress.is_socket:
            continue
        for host, ref in imported(egress).items():
            if chosen.setdefault(host, ref).key != ref.key:
                continue
            held = ports.setdefault(host, {})
            for port in ref.row.ports:
                if egress.port:
                    wanted = egress.port == port.number
                else:
                    wanted = port.number not in own or _has_own_place(ref.row, port)
                if wanted:
                    held.setdefault(port.number, _as_listened(port, egress))
    return {host: _with_ports(chosen[host], ports[host]) for host in sorted(chosen) if ports[host]}


def _imported(reader: Reader, viewer: Viewer, egress: Egress) -> dict[str, Ref]:
    return reader.node(egress_services, viewer.namespace, egress.hosts, egress.only_port)


def _has_own_place(row: Service, port: ServicePort) -> bool:
    """Connections to a port are told apart by where they go: the listener of a Sidecar at the same
    port of every address does not stand in their way."""
    if is_http(port.protocol) or is_sniffed(port.protocol):
        return False
    return row.headless or any("/" not in address for address in row.addresses)


def _as_listened(port: ServicePort, egress: Egress) -> ServicePort:
    if not egress.port or not egress.protocol or egress.protocol == port.protocol:
        return port
    return msgspec.structs.replace(port, protocol=egress.protocol)


def _with_ports(ref: Ref, ports: Mapping[int, ServicePort]) -> Ref:
    kept = [ports[number] for number in ports]
    if kept == ref.row.ports:
        return ref
    return Ref(ref.key, msgspec.structs.replace(ref.row, ports=kept))


def aliased_hosts(reader: Reader, viewer: Viewer) -> dict[str, str]:
    """Node: services of type ExternalName that stand for a service which the viewer sees, and its
    host. They have no routes of their own: calls to them go where calls to that service go.

    Source: Istio, "ExternalName services are aliases" (release notes of 1.21).
    """
    visible = reader.node(visible_services, viewer)
    out = {}
    for host, ref in visible.items():
        target, seen = host, {host}
        while (found := visible.get(target)) is not None and found.row.external_name:
            target = found.row.external_name.rstrip(".").lower()
            if target in seen:
                break
            seen.add(target)
        if ref.row.external_name and target in visible and target != host:
            out[host] = target
    return out


def aliases_of(reader: Reader, viewer: Viewer, host: str) -> tuple[str, ...]:
    """Node: hosts that stand for a service."""
    return tuple(a for a, target in reader.node(aliased_hosts, viewer).items() if target == host)


def reachable_services(reader: Reader, viewer: Viewer) -> dict[str, Ref]:
    """Node: `visible_services`, and what a proxy must have clusters for besides: services behind
    an HTTP proxy port or a Unix socket of the Sidecar, every port of what is imported without a
    port, and destinations of the virtual services that each listener imports. A listener with a
    port imports of a destination that port alone.

    Source: Istio, SidecarScope: destinations of imported virtual services are imported.
    """
    if not viewer.egress:
        return reader.node(visible_services, viewer)
    found = dict(reader.node(visible_services, viewer))
    for egress in viewer.egress:
        if egress.only_port:
            continue
        for host, ref in _imported(reader, viewer, egress).items():
            if host not in found or found[host].key == ref.key:
                found[host] = ref
    for egress in viewer.egress:
        routed = reader.node(routed_destinations, alone(viewer.namespace, egress))
        for host, numbers in routed.items():
            wanted = numbers if not egress.only_port else frozenset({egress.only_port})
            chosen = found.get(host) or _destination(reader, viewer.namespace, host)
            if chosen is None:
                continue
            whole: Service = reader.get(chosen.key)
            named = {p.number: p for p in whole.ports if 0 in wanted or p.number in wanted}
            held = {p.number: p for p in chosen.row.ports} if host in found else {}
            if named:
                found[host] = _with_ports(chosen, {**named, **held})
    return {host: found[host] for host in sorted(found)}


def _destination(reader: Reader, namespace: str, host: str) -> Ref | None:
    """The service that a destination means to a namespace which has not imported it."""
    return _best(reader.node(exported_host, host).seen_from(namespace), namespace).get(host)


def routed_destinations(reader: Reader, viewer: Viewer) -> dict[str, frozenset[int]]:
    """Node: destinations of virtual services for sidecars of a viewer; 0 stands for every port."""
    found: dict[str, set[int]] = {}
    for ref in reader.node(visible_virtual_services, viewer):
        if not ref.row.for_sidecars:
            continue
        for destination in reader.node(destinations_of, ref.key):
            if not destination.callers or viewer.namespace in destination.callers:
                found.setdefault(destination.host, set()).add(destination.port)
    return {host: frozenset(found[host]) for host in sorted(found)}


class Destined(NamedTuple):
    """A destination of a virtual service."""

    host: str
    port: int
    """0: every port."""
    callers: frozenset[str]
    """Namespaces that it is for; empty: all."""


def destinations_of(reader: Reader, key: Key) -> tuple[Destined, ...]:
    """Node: destinations of a virtual service and of its delegates."""
    row = reader.get(key)
    if row is None:
        return ()
    found: dict[Destined, None] = {}
    for holder in (row, *_delegates(reader, Ref(key, row))):
        for destination, callers in _destinations(holder.spec):
            host = fqdn(str(destination.get("host") or ""), holder.namespace)
            port = (destination.get("port") or {}).get("number") or 0
            found[Destined(host, int(port), callers)] = None
    return tuple(found)


def _delegates(reader: Reader, vs: Ref) -> Iterable[ConfigObject]:
    for rule in vs.row.spec.get("http") or ():
        delegate = rule.get("delegate")
        if delegate:
            namespace = str(delegate.get("namespace") or vs.row.namespace)
            key = vs.key._replace(namespace=namespace, name=str(delegate.get("name") or ""))
            row = reader.get(key)
            if row is not None:
                yield row


def _destinations(spec: Mapping[str, Any]) -> Iterable[tuple[Mapping[str, Any], frozenset[str]]]:
    """Destinations, and the namespaces whose workloads alone may take the routes to them."""
    for section in ("http", "tls", "tcp"):
        for rule in spec.get(section) or ():
            matches: list[Mapping[str, Any]] = rule.get("match") or [{}]
            named = [m.get("sourceNamespace") for m in matches]
            callers = frozenset(map(str, named)) if all(named) else frozenset()
            for target in (*(rule.get("route") or ()), *(rule.get("mirrors") or ())):
                yield target.get("destination") or {}, callers
            if rule.get("mirror"):
                yield rule["mirror"], callers


def _service_rank(ranked: Ranked, viewer: str) -> tuple[bool, bool, int, tuple[float, str, str]]:
    precedence, ref = ranked
    row: Service = ref.row
    return (row.namespace != viewer, row.origin != "kubernetes", precedence, age(ref))


# --------------------------------------------------------------------------- config objects


def istio_objects(reader: Reader, plural: str, namespace: str) -> tuple[Ref, ...]:
    """Objects of networking.istio.io of one kind in one namespace, older first; none of a namespace
    that is not looked at."""
    if not reader.node(is_discovered, namespace):
        return ()
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
    """Node: headings of the virtual services of one namespace, by who sees them."""
    return _split(reader.node(audiences, namespace))


def audiences(reader: Reader, namespace: str) -> tuple[tuple[Ref, tuple[str, ...]], ...]:
    """Node: headings of the virtual services of one namespace with the namespaces that see them,
    older first."""
    default = reader.node(mesh).virtual_service_export_to
    found = []
    for key in reader.node(virtual_service_keys, namespace):
        held = reader.node(heading, key)
        if held is not None:
            found.append((Ref(key, held), held.export_to or default))
    return tuple(sorted(found, key=lambda pair: age(pair[0])))


def virtual_services_by_host(reader: Reader, namespace: str) -> dict[str, Visible]:
    """Node: virtual services of one namespace by full host, by who sees them."""
    found: dict[str, list[tuple[Ref, tuple[str, ...]]]] = {}
    for ref, seen_by in reader.node(audiences, namespace):
        for host in ref.row.hosts:
            found.setdefault(host.lower(), []).append((ref, seen_by))
    return {host: _split(pairs) for host, pairs in sorted(found.items())}


def imported_virtual_services(reader: Reader, owner: str, pattern: str) -> tuple[Visible, ...]:
    """Node: virtual services of a namespace with a host that an egress host has in common."""
    by_host = reader.node(virtual_services_by_host, owner)
    return tuple(held for host, held in by_host.items() if overlaps(host, pattern))


def public_virtual_services(reader: Reader) -> tuple[Ref, ...]:
    """Node: virtual services that everybody sees, older first."""
    owners = reader.node(object_namespaces, "virtualservices")
    found = (r for owner in owners for r in reader.node(exported_virtual_services, owner).public)
    return tuple(sorted(found, key=age))


def restricted_virtual_services(reader: Reader) -> tuple[tuple[Ref, frozenset[str]], ...]:
    """Node: virtual services that some see, with who sees them."""
    owners = reader.node(object_namespaces, "virtualservices")
    return tuple(
        pair
        for owner in owners
        for pair in reader.node(exported_virtual_services, owner).restricted
    )


def visible_virtual_services(reader: Reader, viewer: Viewer) -> tuple[Ref, ...]:
    """Node: virtual services that proxies of a viewer follow, by precedence, then older first."""
    if not viewer.egress:
        public = reader.node(public_virtual_services)
        restricted = reader.node(restricted_virtual_services)
        some = list(Visible((), restricted).seen_from(viewer.namespace))
        return (*_in_order(some), *public) if some else public
    unique: dict[Key, Ranked] = {}
    for egress in viewer.egress:
        for owner, pattern in egress.hosts:
            owners = reader.node(object_namespaces, "virtualservices") if owner == ANY else (owner,)
            for namespace in owners:
                for part in reader.node(imported_virtual_services, namespace, pattern):
                    unique.update((r[1].key, r) for r in part.seen_from(viewer.namespace))
    return _in_order(unique.values())


def _in_order(refs: Iterable[Ranked]) -> tuple[Ref, ...]:
    return tuple(ref for _, ref in sorted(refs, key=lambda r: (r[0], age(r[1]))))


def common_viewer(reader: Reader, viewer: Viewer) -> Viewer:
    """Node: who sees the same services and virtual services: nobody in particular, or the viewer
    itself. What is made for the one serves all who see the same."""
    if viewer.egress or viewer.namespace == NOBODY:
        return viewer
    if reader.node(visible_services, viewer) is not reader.node(public_services):
        return viewer
    if reader.node(visible_virtual_services, viewer) is not reader.node(public_virtual_services):
        return viewer
    return Viewer(NOBODY)


# --------------------------------------------------------------------------- destination rules


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
