"""What a viewer sees: services and virtual services.

Lookups are nodes cut along namespaces and imported hosts, so that a change re-runs what looked
there and stops where the answer is the same; what a Sidecar does not import is not read.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from meshbus.compile.engine import Reader
from meshbus.compile.headings import heading, virtual_service_keys
from meshbus.compile.names import covers, fqdn, is_http, is_sniffed, is_wildcard, overlaps
from meshbus.compile.namespaces import capped, entry_visibility
from meshbus.compile.settings import mesh
from meshbus.compile.viewers import ANY, HTTP_PROXY, NOBODY, Egress, Import, Viewer, alone
from meshbus.compile.visibility import (
    NAMED,
    PRIVATE,
    PUBLIC,
    Ranked,
    Ref,
    Visible,
    age,
    by_audience,
    object_namespaces,
)
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject, Service, ServicePort
from meshbus.model.world import Entry, Query

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
    return by_audience(
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
    return _as_imported(reader, viewer, lambda egress: _imported(reader, viewer, egress))


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
    return _as_imported(reader, viewer, imported).get(host)


def _as_imported(
    reader: Reader, viewer: Viewer, imported: Callable[[Egress], Mapping[str, Ref]]
) -> dict[str, Ref]:
    """Services under a Sidecar, of those that each of its egress listeners imports."""
    own = {
        e.port: reader.node(is_everywhere, viewer, e)
        for e in viewer.egress
        if e.only_port and reader.node(imports_some, viewer, e)
    }
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
                    taken = own.get(port.number)
                    wanted = taken is None or _fits_beside(ref.row, port, everywhere=taken)
                if wanted:
                    held.setdefault(port.number, _as_listened(port, egress))
    return {host: _with_ports(chosen[host], ports[host]) for host in sorted(chosen) if ports[host]}


def imports_some(reader: Reader, viewer: Viewer, egress: Egress) -> bool:
    """Node: an egress listener imports a service. One with a port that does not is no listener."""
    return bool(_imported(reader, viewer, egress))


def is_everywhere(reader: Reader, viewer: Viewer, egress: Egress) -> bool:
    """Node: an egress listener with a port has it at every address, for HTTP or for something
    that has no address of its own."""
    return any(
        not _has_own_place(ref.row, _as_listened(port, egress))
        for ref in _imported(reader, viewer, egress).values()
        for port in ref.row.ports
        if port.number == egress.port
    )


def listener_of(reader: Reader, viewer: Viewer, port: int) -> Egress | None:
    """The egress listener for calls to a port: the first that is for it, or for every port."""
    for egress in viewer.egress:
        if egress.is_socket or egress.port not in (0, port):
            continue
        if not egress.only_port or reader.node(imports_some, viewer, egress):
            return egress
    return None


def listener_viewer(reader: Reader, viewer: Viewer, port: int) -> Viewer:
    """Whose virtual services count for calls to a port: those that the egress listener for it
    imports.

    Source: Istio, SidecarScope: each egress listener has virtual services of its own.
    """
    if not viewer.egress:
        return viewer
    egress = listener_of(reader, viewer, port)
    return alone(viewer.namespace, egress or Egress(0, "", "", True, ()))


def _imported(reader: Reader, viewer: Viewer, egress: Egress) -> dict[str, Ref]:
    return reader.node(egress_services, viewer.namespace, egress.hosts, egress.only_port)


def _has_own_place(row: Service, port: ServicePort) -> bool:
    """Connections to a port are told apart by where they go."""
    if is_http(port.protocol) or is_sniffed(port.protocol):
        return False
    return row.headless or any("/" not in address for address in row.addresses)


def _fits_beside(row: Service, port: ServicePort, *, everywhere: bool) -> bool:
    """The listener of a Sidecar for a port, at every address or at those of its services, does not
    stand in the way of another service there. HTTP of a port has one table: that listener's.

    Source: Istio, buildSidecarOutboundListeners: listeners of ports are locked, others are not.
    """
    if is_http(port.protocol) or is_sniffed(port.protocol):
        return False
    return not everywhere or _has_own_place(row, port)


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


# --------------------------------------------------------------------------- virtual services


def exported_virtual_services(reader: Reader, namespace: str) -> Visible:
    """Node: headings of the virtual services of one namespace, by who sees them."""
    return by_audience(reader.node(audiences, namespace))


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
    return {host: by_audience(pairs) for host, pairs in sorted(found.items())}


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
