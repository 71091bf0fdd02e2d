"""Route configurations `PORT` of captured traffic, joined from chunks.

A chunk is the virtual hosts of one namespace's services, as bytes. What a namespace's own proxies
call its services by differs from what all others do; so a table is made of the chunks that
everybody has, but for that of the viewer's own namespace. Where a domain occurs twice the table is
made as a whole instead, for Envoy would refuse it.
"""

from collections.abc import Iterator
from typing import NamedTuple

from meshbus.compile.engine import Reader, the_one
from meshbus.compile.families import IPV4
from meshbus.compile.findings import Finding, Part, Report
from meshbus.compile.names import (
    BLACK_HOLE,
    namespace_in,
    with_port,
)
from meshbus.compile.one_set import one_set
from meshbus.compile.proxy_headers import NO_WISHES
from meshbus.compile.rules_in_force import rules_are_common, some_rules_are_for_others
from meshbus.compile.scope import (
    aliased_hosts,
    aliases_of,
    audiences,
    common_viewer,
    listener_of,
    listener_viewer,
    public_services,
    visible_services,
)
from meshbus.compile.viewers import HTTP_PROXY, NOBODY, Viewer
from meshbus.compile.virtual_hosts import (
    HostRoutes,
    HttpPort,
    Table,
    View,
    asked_table,
    catch_all,
    domains_at,
    encode_table,
    fill,
    http_ports,
    proxy_table,
    routed_beside,
    routed_hosts,
    service_names,
    service_routes,
    speakers_for,
)
from meshbus.compile.visibility import object_namespaces
from meshbus.model.keys import Key
from meshbus.model.rows import Service

EVERYBODY = View(Viewer(NOBODY), frozenset(), frozenset(), True, IPV4, "")
"""The view of proxies to whom nothing special applies."""
UNCOUNTED = EVERYBODY._replace(headers=NO_WISHES._replace(attempt_count=False))
"""The same without `x-envoy-attempt-count`."""


class Chunk(NamedTuple):
    """Virtual hosts, encoded one after the other."""

    data: bytes = b""
    domains: str = ""
    """In lower case, each once, in order, a line each: a tenth of what a set of them takes."""
    named: int = 0
    """How often a domain is named: more than there are domains when one occurs twice."""
    origins: frozenset[Key] = frozenset()
    speaks: frozenset[Key] = frozenset()
    """Virtual services that speak for its services."""
    findings: tuple[Finding, ...] = ()


def route_view(reader: Reader, view: View) -> View:
    """Node: the view, or where routes to other namespaces are everybody's `EVERYBODY` (without
    counts of attempts `UNCOUNTED`)."""
    if view.viewer.egress or view.sources or view.rules:
        return view
    if reader.node(common_viewer, view.viewer).namespace != NOBODY:
        return view
    if reader.node(some_name_callers) or reader.node(some_rules_are_for_others):
        return view
    if not reader.node(rules_are_common, view.namespace):
        return view
    if reader.node(has_aliases, view.viewer) or view.namespace in reader.node(named_by_others):
        return view
    return EVERYBODY if view.headers.attempt_count else UNCOUNTED


def named_by_others(reader: Reader) -> frozenset[str]:
    """Node: namespaces that hosts of services elsewhere name, so that their proxies have short
    names for these which nobody else has."""
    public = reader.node(public_services)
    named = ((namespace_in(host), ref.row.namespace) for host, ref in public.items())
    return frozenset(namespace for namespace, owner in named if namespace != owner)


def has_aliases(reader: Reader, viewer: Viewer) -> bool:
    """Node: a service of the viewer's own namespace stands for another, so that its proxies have
    short names for that one which nobody else has."""
    visible = reader.node(visible_services, viewer)
    aliases = reader.node(aliased_hosts, viewer)
    return any(visible[host].row.namespace == viewer.namespace for host in aliases)


def some_name_callers(reader: Reader) -> bool:
    """Node: a virtual service has routes for callers of certain namespaces."""
    return any(
        reader.node(names_callers, namespace)
        for namespace in reader.node(object_namespaces, "virtualservices")
    )


def names_callers(reader: Reader, namespace: str) -> bool:
    """Node: a virtual service of a namespace has."""
    return any(ref.row.names_callers for ref, _ in reader.node(audiences, namespace))


# --------------------------------------------------------------------------- chunks


def owners_at(reader: Reader, viewer: Viewer, port: int) -> dict[str, tuple[HttpPort, ...]]:
    """Node: services with HTTP at a port, by their namespace."""
    found: dict[str, list[HttpPort]] = {}
    for member in reader.node(http_ports, viewer).get(port, ()):
        found.setdefault(member.service.namespace, []).append(member)
    return {owner: tuple(found[owner]) for owner in sorted(found)}


def members_at(reader: Reader, viewer: Viewer, port: int, owner: str) -> tuple[HttpPort, ...]:
    """Node: one namespace of `owners_at`."""
    return reader.node(owners_at, viewer, port).get(owner, ())


def speakers(
    reader: Reader, viewer: Viewer, port: int, owner: str
) -> tuple[tuple[HttpPort, tuple[Key, ...]], ...]:
    """Node: `members_at`, each with the virtual services that speak for it."""
    routed = reader.node(routed_hosts, listener_viewer(reader, viewer, port))
    return tuple(
        (member, speakers_for(member.host, routed))
        for member in reader.node(members_at, viewer, port, owner)
    )


class _Filled(NamedTuple):
    """Virtual hosts of a chunk before they are joined."""

    table: Table
    domains: list[str]
    """In lower case, as often as they are named."""
    speaks: set[Key]
    report: Report


def host_chunk(reader: Reader, view: View, port: int, owner: str) -> Chunk:
    """Node: virtual hosts of one namespace's services at a port."""
    # Views of many namespaces see the same of another.
    made: Chunk = reader.node(the_one, _chunk(_filled(reader, view, port, owner)))
    return made


def other_hosts(reader: Reader, view: View, port: int) -> Chunk:
    """Node: virtual hosts of virtual services for what is no service at this port, see
    `routed_beside`."""
    return _chunk(_others(reader, view, port))


def chunk_catalog(reader: Reader, view: View, port: int, owner: str) -> dict[str, HostRoutes]:
    """Node: routes of a chunk (of `other_hosts` without owner) by domain."""
    filled = _filled(reader, view, port, owner) if owner else _others(reader, view, port)
    return filled.table.by_domain


def _filled(reader: Reader, view: View, port: int, owner: str) -> _Filled:
    report = Report()
    table = Table()
    viewer = reader.node(common_viewer, view.viewer)
    members = reader.node(speakers, viewer, port, owner)
    table.reserve([m.host for m, _ in members])
    speaks: set[Key] = set()
    domains: list[str] = []
    for member, named in members:
        routes, keys = service_routes(reader, view, member, named, port, report)
        speaks.update(keys)
        row: Service = reader.get(member.service)
        aliases = reader.node(aliases_of, viewer, member.host)
        names = domains_at(service_names(row, view.namespace, aliases), port, False)
        domains += (name.lower() for name in names)
        table.add(with_port(member.host, port), names, routes, member.host)
    return _Filled(table, domains, speaks, report)


def _others(reader: Reader, view: View, port: int) -> _Filled:
    report = Report()
    table = Table()
    viewer = reader.node(common_viewer, view.viewer)

    def speaks() -> Iterator[Key]:
        for owner in reader.node(owners_at, viewer, port):
            yield from reader.node(host_chunk, view, port, owner).speaks

    domains: list[str] = []
    for host, names, routes in routed_beside(
        reader, view, viewer, port, speaks, report, all_ports=False
    ):
        own = domains_at(names, port, False)
        domains += (name.lower() for name in own)
        table.add(with_port(host, port), own, routes, host)
    return _Filled(table, domains, set(), report)


def _chunk(filled: _Filled) -> Chunk:
    table = filled.table
    return Chunk(
        b"".join(table.hosts[name] for name in sorted(table.hosts)),
        "\n".join(sorted(set(filled.domains))),
        len(filled.domains),
        one_set(table.origins),
        one_set(filled.speaks),
        filled.report.findings(),
    )


# --------------------------------------------------------------------------- tables


def chunk_domains(reader: Reader, view: View, port: int, owner: str) -> tuple[str, int]:
    """Node: domains of a chunk (of `other_hosts` without owner), which change less often."""
    chunk = (
        reader.node(host_chunk, view, port, owner)
        if owner
        else reader.node(other_hosts, view, port)
    )
    return chunk.domains, chunk.named


def domains_are_distinct(reader: Reader, view: View, port: int) -> bool:
    """Node: no domain is in two virtual hosts of a table."""
    base = reader.node(route_view, view)
    owners = reader.node(owners_at, reader.node(common_viewer, view.viewer), port)
    parts = [
        reader.node(chunk_domains, view if owner == view.namespace else base, port, owner)
        for owner in owners
    ]
    parts.append(reader.node(chunk_domains, base, port, ""))
    together = set[str]().union(*(domains.split("\n") for domains, _ in parts if domains))
    return len(together) == sum(named for _, named in parts)


def chunks_of(reader: Reader, view: View, port: int) -> tuple[tuple[View, str], ...] | None:
    """Node: chunks that a table is joined from (the viewer of each, its owner; no owner: those of
    `other_hosts`); None: it is made as a whole."""
    if not reader.node(domains_are_distinct, view, port):
        return None
    base = reader.node(route_view, view)
    owners = reader.node(owners_at, reader.node(common_viewer, view.viewer), port)
    own = ((view if owner == view.namespace else base, owner) for owner in owners)
    return (*own, (base, ""))


class Served(NamedTuple):
    """Whose virtual hosts a route configuration has."""

    view: View
    all_ports: bool
    """Of services at all ports, else at its own."""


def served_at(view: View, port: int) -> Served:
    """What the route configuration `PORT` has: the services with HTTP at that port; at a port where
    a Sidecar has an HTTP proxy, the services of its hosts at all ports."""
    for egress in view.viewer.egress:
        if egress.port == port and egress.protocol == HTTP_PROXY:
            everything = egress._replace(port=0, protocol="")
            viewer = Viewer(view.namespace, (everything,))
            # What is called by the proxy has no other destination than the proxy itself.
            return Served(view._replace(viewer=viewer, captured=False, unknown=BLACK_HOLE), True)
    return Served(view, False)


def unclaimed_view(reader: Reader, view: View, port: int) -> View:
    """The view by which goes what nobody claims: what was not redirected has no other destination
    than the listener that it came to."""
    listener = listener_of(reader, view.viewer, port)
    bound = view.bound or (listener is not None and not listener.captured)
    return view._replace(unknown=BLACK_HOLE) if bound else view


def port_routes(reader: Reader, view: View, port: int) -> Part:
    """Node: the route configuration `PORT`."""
    served = served_at(view, port)
    if view.on_demand.hosts:
        return asked_table(reader, str(port), ignore_port=not served.all_ports)
    if served.all_ports:
        return proxy_table(reader, served.view, str(port))
    last = catch_all(unclaimed_view(reader, view, port))
    named = reader.node(chunks_of, view, port)
    if named is None:
        return _whole_table(reader, view, port, last)
    chunks = [
        reader.node(host_chunk, seen, port, owner)
        if owner
        else reader.node(other_hosts, seen, port)
        for seen, owner in named
    ]
    origins = set[Key]().union(*(chunk.origins for chunk in chunks))
    findings = {finding for chunk in chunks for finding in chunk.findings}
    hosts = [*(chunk.data for chunk in chunks), last]
    resource = encode_table(reader, str(port), hosts, origins, ignore_port=True)
    return Part((resource,), tuple(sorted(findings)))


def whole(reader: Reader, view: View, port: int, report: Report) -> Table:
    """A table that is made as a whole."""
    table = Table()
    members = reader.node(http_ports, view.viewer).get(port, ())
    fill(reader, view, port, members, table, report, all_ports=False)
    return table


def _whole_table(reader: Reader, view: View, port: int, last: bytes) -> Part:
    report = Report()
    table = whole(reader, view, port, report)
    resource = encode_table(reader, str(port), table.encoded(last), table.origins, ignore_port=True)
    return Part((resource,), report.findings())
