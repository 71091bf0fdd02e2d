"""Unix sockets of a Sidecar's egress: where an application calls the services of a listener's hosts
without a network.

HTTP is routed by name and port, as by an HTTP proxy; TLS goes by SNI; what is neither goes to the
oldest service that takes it. Nothing else is reached there: a socket has no other destination.
Source: networking Sidecar, IstioEgressListener `bind`; Istio names listener and routes by the bind.
"""

from envoy.config.core.v3 import base_pb2
from envoy.config.listener.v3 import listener_pb2

from meshbus.compile.chains import Chains, unclaimed_chain
from meshbus.compile.connections import Reporting, encode_listener
from meshbus.compile.engine import Reader
from meshbus.compile.findings import Part, Report
from meshbus.compile.names import BLACK_HOLE, TLS, UDP, is_http, is_sniffed
from meshbus.compile.outbound import (
    http_chain,
    inspect,
    reporting_of,
    service_chains,
)
from meshbus.compile.scope import in_precedence, visible_services
from meshbus.compile.settings import mesh
from meshbus.compile.telemetry import LOG_OUTBOUND
from meshbus.compile.values import listener_address
from meshbus.compile.viewers import Egress, Viewer
from meshbus.compile.virtual_hosts import View, proxy_table


def sockets_of(view: View) -> tuple[Egress, ...]:
    """Egress listeners of a view that bind a socket."""
    return tuple(egress for egress in view.viewer.egress if egress.is_socket)


def socket_listeners(reader: Reader, view: View) -> Part:
    """Node: the listeners."""
    report = Report()
    reporting = reporting_of(reader, LOG_OUTBOUND, view)
    made = [_listener(reader, view, egress, reporting, report) for egress in sockets_of(view)]
    out = tuple(encode_listener(reader, listener, reporting) for listener in made)
    return Part(out, report.findings())


def socket_routes(reader: Reader, view: View) -> tuple[Part, ...]:
    """Their route configurations."""
    return tuple(
        proxy_table(reader, _behind(view, egress), egress.bind)
        for egress in sockets_of(view)
        if _may_be_http(egress)
    )


def _may_be_http(egress: Egress) -> bool:
    return is_http(egress.protocol) or is_sniffed(egress.protocol)


def _behind(view: View, egress: Egress) -> View:
    """What is called through a socket: the services of its hosts, at all ports."""
    everything = egress._replace(port=0, protocol="", bind="")
    viewer = Viewer(view.namespace, (everything,))
    whole = view.on_demand._replace(hosts=False)
    return view._replace(viewer=viewer, captured=False, unknown=BLACK_HOLE, on_demand=whole)


def _listener(
    reader: Reader, view: View, egress: Egress, reporting: Reporting, report: Report
) -> listener_pb2.Listener:
    behind = _behind(view, egress)
    out = listener_pb2.Listener(
        name=egress.bind,
        address=listener_address(egress.bind, 0),
        traffic_direction=base_pb2.OUTBOUND,
    )
    if _may_be_http(egress):
        stat = f"outbound_{egress.bind};"
        chain = http_chain(reader, behind, 0, stat, egress.bind, reporting)
        if not is_sniffed(egress.protocol):
            chain.ClearField("filter_chain_match")
            out.filter_chains.append(chain)
            return out
        out.filter_chains.append(chain)
    _add_connections(reader, behind, out, reporting, report)
    if out.filter_chains:
        inspect(out, reader.node(mesh), http=is_sniffed(egress.protocol))
    return out


def _add_connections(
    reader: Reader,
    behind: View,
    listener: listener_pb2.Listener,
    reporting: Reporting,
    report: Report,
) -> None:
    """Chains of what is not HTTP."""
    chains = Chains()
    for_rest = True
    seen = reader.node(visible_services, behind.viewer)
    for host, ref in in_precedence(reader, seen, behind.namespace):
        for port in ref.row.ports:
            number, protocol = port.number, port.protocol
            if protocol == UDP or is_http(protocol) or not (protocol in TLS or for_rest):
                continue
            for_rest &= protocol in TLS
            own = service_chains(
                reader, behind, host, number, protocol, reporting, report, names=(host,)
            )
            chains.add(own)
    nowhere = unclaimed_chain("BlackHoleFilterChain", BLACK_HOLE, reporting)
    chains.put(listener, nowhere)
