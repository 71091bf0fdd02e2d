"""Virtual hosts that Envoys ask for by the authority of a request (VHDS).

A resource `TABLE/AUTHORITY` is a virtual host for that authority alone, with the routes that the
whole table would have for it, be they those for what nobody claims. So every question has an answer
(a request whose question is answered with nothing waits for ever), no domain occurs twice, and a
host that comes, changes or goes is a changed answer to those who have asked.

Source: https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/vhds
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from zlib import crc32

from meshbus.compile.engine import Reader
from meshbus.compile.findings import Part, Report
from meshbus.compile.on_demand import EVERYTHING_BEFORE
from meshbus.compile.outbound import capture_plan
from meshbus.compile.resources import VHDS, Resource, resource_of
from meshbus.compile.route_tables import (
    Served,
    chunk_catalog,
    chunks_of,
    served_at,
    unclaimed_view,
    whole,
)
from meshbus.compile.shared_parts import SharedPart, merged
from meshbus.compile.virtual_hosts import (
    HTTP_PROXY_ROUTE,
    HostRoutes,
    View,
    encode_host_body,
    fill_all,
    unclaimed_tail,
)

FIRST = "~"
"""Authority of no request: the first answer that a route configuration waits for."""
_NOWHERE = "invalid"
"""Top-level domain that is nobody's (RFC 2606)."""
_LONGEST_SUFFIX = 300
"""Of a wildcard domain: a name of DNS and a port. Authorities are as long as callers like."""


class Tables(NamedTuple):
    """The route configurations whose virtual hosts are asked for."""

    view: View
    http_proxy: bool
    """There is an HTTP proxy for the application."""


def asked_tables(reader: Reader, tables: Tables) -> tuple[str, ...]:
    """Node: their names."""
    plan = reader.node(capture_plan, tables.view)
    if tables.view.captured:
        return tuple(name for name, host, _ in plan.route_names() if not host)
    names = [HTTP_PROXY_ROUTE] if tables.http_proxy else []
    return (*names, *(str(port) for port, shared in plan.placed() if shared.http))


def first_hosts(reader: Reader, tables: Tables) -> SharedPart:
    """Node: what is sent unasked: Envoy takes a route configuration into use with the first
    virtual host of it that comes."""
    nothing = HostRoutes(b"", (), ())
    names = reader.node(asked_tables, tables)
    return merged([Part(tuple(_resource(reader, n, FIRST, [], nothing) for n in names))])


def asked_host(reader: Reader, tables: Tables, name: str) -> Resource | None:
    """Node: the virtual host `TABLE/AUTHORITY`; None: there is no such table."""
    table, _, authority = name.rpartition("/")
    if table not in reader.node(asked_tables, tables):
        return None
    view = tables.view._replace(on_demand=EVERYTHING_BEFORE)
    exact = table == HTTP_PROXY_ROUTE or served_at(view, int(table)).all_ports
    host = authority.lower() if exact else without_port(authority.lower())
    return _resource(reader, table, authority, [host], reader.node(routes_for, view, table, host))


def routes_for(reader: Reader, view: View, table: str, host: str) -> HostRoutes:
    """Node: the routes that a whole table has for a host."""
    if table == HTTP_PROXY_ROUTE:
        served, unclaimed = Served(view, True), view
    else:
        served = served_at(view, int(table))
        unclaimed = served.view if served.all_ports else unclaimed_view(reader, view, int(table))
    catalogs = (
        (reader.node(whole_catalog, served.view),)
        if served.all_ports
        else reader.node(catalogs_of, view, int(table))
    )
    return find_host(catalogs, host) or HostRoutes(unclaimed_tail(unclaimed), (), ())


def whole_catalog(reader: Reader, view: View) -> dict[str, HostRoutes]:
    """Node: routes of the services at all ports by domain."""
    return fill_all(reader, view, Report()).by_domain


def port_catalog(reader: Reader, view: View, port: int) -> dict[str, HostRoutes]:
    """Node: routes of a table that is made as a whole by domain."""
    return whole(reader, view, port, Report()).by_domain


def catalogs_of(reader: Reader, view: View, port: int) -> tuple[dict[str, HostRoutes], ...]:
    """Node: routes of the table of a port by domain, in parts."""
    chunks = reader.node(chunks_of, view, port)
    if chunks is None:
        return (reader.node(port_catalog, view, port),)
    return tuple(reader.node(chunk_catalog, seen, port, owner) for seen, owner in chunks)


def find_host(catalogs: Sequence[Mapping[str, HostRoutes]], host: str) -> HostRoutes | None:
    """The routes that Envoy would find for a host: of the exact domain, else of the longest
    wildcard, else of `*`.

    Source: https://www.envoyproxy.io/docs/envoy/latest/api-v3/config/route/v3/route_components.proto
    (VirtualHost.domains).
    """
    first = max(1, len(host) - _LONGEST_SUFFIX)
    wildcards = (f"*{host[at:]}" for at in range(first, len(host)))
    for domain in itertools.chain((host,), wildcards, ("*",)):
        for catalog in catalogs:
            found = catalog.get(domain)
            if found is not None:
                return found
    return None


def without_port(authority: str) -> str:
    """The host of an authority."""
    host, _, port = authority.rpartition(":")
    if not host or not port.isdigit() or ":" in host.rpartition("]")[2]:
        return authority
    return host


def _resource(
    reader: Reader, table: str, authority: str, domains: list[str], routes: HostRoutes
) -> Resource:
    """One answer. Envoy keeps virtual hosts by the name inside: equal for equal domains, so that
    none occurs twice. What would be taken for a pattern is given a domain of nobody's."""
    if not domains or "*" in domains[0]:
        domains = [f"{crc32(authority.encode()):08x}.{_NOWHERE}"]
    reader.encoded("vhds")
    body = encode_host_body(domains[0], domains, routes.tail)
    return resource_of(VHDS, f"{table}/{authority}", body, routes.origins)
