"""Route configurations of routers, joined of encoded virtual hosts.

A virtual host is a node of its own, so that a changed virtual service is compiled for its hosts
and no other. What is read to find out which virtual services are for which host is headings alone.

Hosts are joined in shares: a changed host is put into its share, and few shares into the table.
"""

from typing import NamedTuple
from zlib import crc32

from meshbus.compile.engine import Reader
from meshbus.compile.findings import Finding, Part, Report
from meshbus.compile.gateway_servers import Router, Server, servers_of
from meshbus.compile.http_routes import Made, RouteContext, http_routes, joined_routes
from meshbus.compile.ingress import ingress_headings, ingress_routes
from meshbus.compile.names import with_port
from meshbus.compile.scope import visible_virtual_services
from meshbus.compile.settings import mesh
from meshbus.compile.viewers import Viewer
from meshbus.compile.virtual_hosts import (
    View,
    conduct_of,
    encode_host,
    encode_table,
    encode_tail,
    service_of,
)
from meshbus.compile.visibility import Ref
from meshbus.model.keys import Key

SHARES = 64
"""Of the hosts of a table."""


class Facing(NamedTuple):
    """What of a server its routes depend on."""

    gateway: str
    """`NAMESPACE/NAME`."""
    number: int
    """`port.number`."""
    tls: bool
    redirects: bool


Written = tuple[Key, str]
"""A virtual service: of several that stand for parts of one Ingress the name tells which."""


class Shown(NamedTuple):
    """A host as one server shows it."""

    facing: Facing
    services: tuple[Written, ...]
    """Virtual services for it, older first."""
    named: bool
    """The server has it among its own hosts, and sends its requests to https."""


class Share(NamedTuple):
    """Some virtual hosts of a table."""

    hosts: tuple[tuple[str, bytes], ...] = ()
    """Entries of `RouteConfiguration.virtual_hosts` by host, in order."""
    origins: frozenset[Key] = frozenset()
    findings: tuple[Finding, ...] = ()


# --------------------------------------------------------------------------- what is there


def gateway_services(reader: Reader, viewer: Viewer, gateway: str) -> tuple[Ref, ...]:
    """Node: headings of the virtual services bound to a gateway, as seen from a router's namespace,
    older first, and of those that Ingress objects stand for."""
    written = reader.node(visible_virtual_services, viewer)
    return tuple(
        ref for ref in (*written, *reader.node(ingress_headings)) if gateway in ref.row.gateways
    )


def written_service(reader: Reader, written: Written) -> Ref | None:
    """A virtual service with its routes."""
    key, name = written
    if key.kind == "ingresses":
        services = reader.node(ingress_routes).services
        return next((ref for ref in services if (ref.key, ref.row.name) == written), None)
    row = reader.get(key)
    return None if row is None or row.name != name else Ref(key, row)


def route_context(reader: Reader, view: View, facing: Facing) -> RouteContext:
    """For whom the routes of a server are made."""
    return RouteContext(
        namespace=view.namespace,
        port=facing.number,
        gateways=frozenset({facing.gateway}),
        sources=view.sources,
        tls=facing.tls,
        settings=reader.node(mesh),
        service=lambda host: reader.node(service_of, view.viewer, host),
        read=reader.get,
        policy=lambda host, number, subset: reader.node(conduct_of, view, host, number, subset),
        headers=view.headers,
    )


def facing_of(server: Server) -> Facing:
    """What of a server its routes depend on."""
    return Facing(server.name, server.number, server.tls is not None, server.redirects)


# --------------------------------------------------------------------------- hosts


def shown_hosts(
    reader: Reader, router: Router, viewer: Viewer, indexes: tuple[int, ...]
) -> dict[int, tuple[tuple[str, tuple[Shown, ...]], ...]]:
    """Node: hosts of one route configuration by their share, in order. `indexes`: its servers, of
    those of the router."""
    found: dict[str, dict[Facing, list[Written]]] = {}
    named: set[tuple[str, Facing]] = set()
    servers = reader.node(servers_of, router).servers
    for server in (servers[index] for index in indexes):
        facing = facing_of(server)
        for ref in reader.node(gateway_services, viewer, server.name):
            if "http" not in ref.row.sections:
                continue
            for host in server.matching_hosts(ref):
                services = found.setdefault(host, {}).setdefault(facing, [])
                if (ref.key, ref.row.name) not in services:
                    services.append((ref.key, ref.row.name))
        if server.redirects:
            for host in server.host_names():
                found.setdefault(host, {}).setdefault(facing, [])
                named.add((host, facing))
    shares: dict[int, list[tuple[str, tuple[Shown, ...]]]] = {}
    for host in sorted(found):
        shown = tuple(
            Shown(facing, tuple(services), (host, facing) in named)
            for facing, services in found[host].items()
        )
        shares.setdefault(share_of(host), []).append((host, shown))
    return {share: tuple(shares[share]) for share in sorted(shares)}


def shared_hosts(
    reader: Reader, router: Router, viewer: Viewer, indexes: tuple[int, ...], share: int
) -> tuple[tuple[str, tuple[Shown, ...]], ...]:
    """Node: one share of `shown_hosts`."""
    return reader.node(shown_hosts, router, viewer, indexes).get(share, ())


def share_of(host: str) -> int:
    """Which share of a table a host is in."""
    return crc32(host.encode()) % SHARES


def service_routes(
    reader: Reader, view: View, facing: Facing, written: Written
) -> tuple[tuple[Made, ...], tuple[Finding, ...]]:
    """Node: routes of a virtual service at a server."""
    vs = written_service(reader, written)
    if vs is None:
        return (), ()
    report = Report()
    made = http_routes(vs, route_context(reader, view, facing), report)
    return tuple(made), report.findings()


def gateway_host(reader: Reader, view: View, host: str, shown: tuple[Shown, ...]) -> Share:
    """Node: one virtual host. Several virtual services may share a host: their routes follow each
    other by age, those that catch everything at the end.

    Source: Istio, buildGatewayHTTPRouteConfig.
    """
    report = Report()
    routes: list[Made] = []
    origins: set[Key] = set()
    done: set[tuple[str, Written]] = set()
    port: int | None = None
    require_tls = False
    for facing, services, named in shown:
        has_routes = named
        for written in services:
            made, findings = reader.node(service_routes, view, facing, written)
            report.extend(findings)
            if not made:
                continue
            has_routes = True
            origins.update((written[0], *(m.source for m in made)))
            if (facing.gateway, written) not in done:
                done.add((facing.gateway, written))
                routes += made
        if has_routes:
            port = facing.number if port is None else port
            require_tls |= facing.redirects
    if port is None:
        return Share((), frozenset(), report.findings())
    reader.encoded("vhost")
    tail = encode_tail(joined_routes(routes, report), view.headers, require_tls)
    data = encode_host(with_port(host, port), [host], tail)
    return Share(((host, data),), frozenset(origins), report.findings())


def gateway_share(
    reader: Reader,
    router: Router,
    view: View,
    indexes: tuple[int, ...],
    share: int,
) -> Share:
    """Node: the virtual hosts of one share."""
    parts = [
        reader.node(gateway_host, view, host, shown)
        for host, shown in reader.node(shared_hosts, router, view.viewer, indexes, share)
    ]
    return _joined(parts)


def _joined(parts: list[Share]) -> Share:
    findings: dict[Finding, None] = {}
    for part in parts:
        findings.update(dict.fromkeys(part.findings))
    return Share(
        tuple(sorted(pair for part in parts for pair in part.hosts)),
        frozenset[Key]().union(*(part.origins for part in parts)),
        tuple(sorted(findings)),
    )


# --------------------------------------------------------------------------- tables


ALTERNATIVE_S = 86400
"""How long clients remember that a port speaks HTTP/3 too."""


def gateway_table(
    reader: Reader, router: Router, view: View, name: str, indexes: tuple[int, ...]
) -> Part:
    """Node: a route configuration. `indexes`: its servers, of those of the router."""
    every = reader.node(servers_of, router).servers
    servers = [every[index] for index in indexes]
    used = reader.node(shown_hosts, router, view.viewer, indexes)
    whole = _joined([reader.node(gateway_share, router, view, indexes, share) for share in used])
    encoded = [data for _, data in whole.hosts]
    if not encoded:
        encoded = [
            encode_host(f"blackhole:{servers[0].number}", ["*"], encode_tail([], view.headers))
        ]
    origins = {s.gateway for s in servers} | whole.origins
    answers = {}
    if any(server.udp_port for server in servers):
        answers["alt-svc"] = f'h3=":{servers[0].number}"; ma={ALTERNATIVE_S}'
    resource = encode_table(reader, name, encoded, origins, ignore_port=True, answers=answers)
    return Part((resource,), whole.findings)
