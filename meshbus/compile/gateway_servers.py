"""Gateways: which servers a router runs, at which ports, for which hosts."""

from typing import Any, NamedTuple

from meshbus.api.networking.gateway import SERVICES_ANNOTATION
from meshbus.compile.endpoints import target_ports
from meshbus.compile.engine import Reader
from meshbus.compile.families import FIRST_UNPRIVILEGED
from meshbus.compile.findings import Finding, Report
from meshbus.compile.inbound import namespace_services, serves
from meshbus.compile.ingress import ingress_gateways
from meshbus.compile.names import HTTP, UDP, narrower
from meshbus.compile.proxy_keys import ProxyKeys
from meshbus.compile.values import UNIX
from meshbus.compile.visibility import Ref, age, istio_objects, object_namespaces
from meshbus.model.keys import Key

AUTO_PASSTHROUGH = "AUTO_PASSTHROUGH"
NO_TRANSLATION = "experimental.istio.io/disable-gateway-port-translation"
"""Label of a Service whose ports say nothing about Gateways. Source: Knative's use of Istio."""
HTTP3_ANNOTATION = "traffic.meshbus.io/http3"
"""Annotation of a Gateway: its HTTPS servers speak HTTP/3 too, over UDP."""
TERMINATED = frozenset({"SIMPLE", "MUTUAL", "OPTIONAL_MUTUAL", "ISTIO_MUTUAL"})


class Front(NamedTuple):
    """A service in front of a router."""

    host: str
    untranslated: bool
    """Gateways say the ports behind it, not its own."""
    ports: tuple[tuple[int, int], ...]
    """Each of its ports, and the one behind."""
    udp: tuple[tuple[int, int], ...] = ()
    """The same of UDP."""


class Router(NamedTuple):
    """What decides the servers of a router; replicas share it."""

    proxy: ProxyKeys
    """Without what tells replicas apart."""
    fronts: tuple[Front, ...]
    unprivileged: bool = False
    """It cannot bind ports below 1024."""


class Server(NamedTuple):
    """One server of a Gateway."""

    gateway: Key
    """Of the object."""
    path: str
    number: int
    """`port.number`: what VirtualServices match."""
    port: int
    """The port that the router listens on."""
    port_name: str
    protocol: str
    hosts: tuple[str, ...]
    """`NAMESPACE/HOST` or `HOST`."""
    tls: dict[str, Any] | None
    bind: str
    owner: tuple[str, str]
    """Namespace and name of the gateway."""
    udp_port: int = 0
    """The UDP port on which it speaks HTTP/3; 0: it does not."""
    given_name: str = ""
    """`name` of the server."""

    @property
    def name(self) -> str:
        """`NAMESPACE/NAME` of the gateway."""
        return "/".join(self.owner)

    @property
    def mode(self) -> str:
        """TLS mode; empty without TLS."""
        if self.tls is None or (self.is_http and self.tls.get("httpsRedirect")):
            return ""
        return str(self.tls.get("mode") or "PASSTHROUGH")

    @property
    def is_http(self) -> bool:
        """Plaintext HTTP."""
        return self.protocol in HTTP

    @property
    def ends_https(self) -> bool:
        """HTTPS whose TLS ends here."""
        return self.protocol == "HTTPS" and self.mode in TERMINATED

    @property
    def redirects(self) -> bool:
        """Plaintext requests are sent to https."""
        return bool((self.tls or {}).get("httpsRedirect"))

    @property
    def stat_prefix(self) -> str:
        """Begins the names of its statistics: its own name, where a chain is for it alone."""
        own = self.given_name if self.ends_https else ""
        return own or f"outbound_{self.bind or '0.0.0.0'}_{self.port};"  # noqa: S104 - a name

    def route_name(self) -> str:
        """The route configuration of its HTTP, as Istio names it."""
        bind = f".{self.bind}" if self.bind else ""
        if self.is_http:
            return f"http.{self.port}{bind}"
        namespace, name = self.owner
        return f"https.{self.number}.{self.port_name}.{name}.{namespace}{bind}"

    def host_names(self) -> tuple[str, ...]:
        """Hosts without their namespaces."""
        return tuple(host.rpartition("/")[2] for host in self.hosts)

    def server_names(self) -> tuple[str, ...]:
        """Hosts as SNI is matched by; empty: any."""
        names = self.host_names()
        return () if "*" in names else tuple(dict.fromkeys(names))

    def matching_hosts(self, vs: Ref) -> list[str]:
        """Hosts that both the server and a virtual service, by its heading, are for: the narrower
        of each pair."""
        own = []
        for host in self.hosts:
            namespace, slash, name = host.rpartition("/")
            if namespace == ".":
                namespace = self.owner[0]
            if not slash or namespace == "*" or namespace == vs.row.namespace:
                own.append(name)
        out: dict[str, None] = {}
        for full in vs.row.hosts:
            for host in own:
                both = narrower(host, full.lower())
                if both is not None:
                    out[both] = None
        return list(out)


def gateways_for(reader: Reader, labels: tuple[tuple[str, str], ...]) -> tuple[Ref, ...]:
    """Node: Gateways whose selector picks these labels, older first; those that Ingress objects
    stand for after all others."""
    held = set(labels)
    written = [
        ref
        for namespace in reader.node(object_namespaces, "gateways")
        for ref in istio_objects(reader, "gateways", namespace)
    ]
    every = (*sorted(written, key=age), *reader.node(ingress_gateways))
    return tuple(
        ref
        for ref in every
        if SERVICES_ANNOTATION in ref.row.annotations
        or held.issuperset((ref.row.spec.get("selector") or {}).items())
    )


def router_of(reader: Reader, proxy: ProxyKeys) -> Router:
    """A router with the services in front of it, older first: those that select it, and those of
    fixed endpoints that have its address.

    Source: Istio, resolvePorts (pilot/pkg/model/gateway.go).
    """
    fronts = []
    by_name = {name: number for name, number, _ in proxy.ports}
    for ref in sorted(reader.node(namespace_services, proxy.namespace), key=age):
        row = ref.row
        if not serves(reader, row, proxy):
            continue
        targets = {t.name: t.ports for t in reader.node(target_ports, row.namespace, row.host)}
        ports: list[tuple[int, int]] = []
        udp: list[tuple[int, int]] = []
        for port in row.ports:
            behind = targets.get(port.name) or (
                port.target_port or by_name.get(port.name) or port.number,
            )
            (udp if port.protocol == UDP else ports).append((port.number, behind[0]))
        untranslated = NO_TRANSLATION in row.labels
        fronts.append(Front(row.host, untranslated, tuple(ports), tuple(udp)))
    return Router(proxy.as_class(), tuple(fronts), proxy.unprivileged)


def _ports_of(gateway: Ref, number: int, fronts: tuple[Front, ...]) -> list[int]:
    """The ports that a router listens on for a server's port. Of the services in front the oldest
    says it, and without any it is the port itself; a Gateway that names the services has those of
    them all, and no other."""
    named = gateway.row.annotations.get(SERVICES_ANNOTATION)
    if named is not None:
        hosts = {host.strip() for host in named.split(",")}
        found = {t for f in fronts if f.host in hosts for n, t in f.ports if n == number}
        return sorted(found)
    for front in fronts:
        if not front.untranslated:
            for known, behind in front.ports:
                if known == number:
                    return [behind]
    return [number]


class Servers(NamedTuple):
    """What a router runs, and what of its Gateways it does not."""

    servers: tuple[Server, ...]
    findings: tuple[Finding, ...]


def servers_of(reader: Reader, router: Router) -> Servers:
    """Node: servers that a router runs, older gateways first; those in conflict are reported."""
    report = Report()
    out: list[Server] = []
    kinds: dict[tuple[str, int], tuple[str, Key]] = {}
    names: set[tuple[str, int, str]] = set()
    for ref in reader.node(gateways_for, router.proxy.labels):
        for index, spec in enumerate(ref.row.spec.get("servers") or ()):
            path = f"spec.servers[{index}]"
            with report.guard(ref.key, path):
                number = int((spec.get("port") or {})["number"])
                for port in _ports_of(ref, number, router.fronts):
                    if router.unprivileged and port < FIRST_UNPRIVILEGED:
                        message = f"the gateway may not listen on port {port}"
                        report.add(ref.key, f"{path}.port.number", message)
                        continue
                    server = _server(ref, spec, path, number, port)
                    fault = _conflict(server, kinds, names)
                    if fault:
                        report.add(ref.key, f"{path}.{fault[0]}", fault[1])
                    else:
                        udp_port = _udp_port(ref, server, router, report)
                        out.append(server._replace(udp_port=udp_port))
    return Servers(tuple(out), report.findings())


def _udp_port(gateway: Ref, server: Server, router: Router, report: Report) -> int:
    """The port on which a server speaks HTTP/3, 0 if it does not: where its Gateway asks for it and
    the service in front of its port, if there is one, has that number for UDP too.

    Source: Istio, PILOT_ENABLE_QUIC_LISTENERS; here a Gateway asks.
    """
    if gateway.row.annotations.get(HTTP3_ANNOTATION, "").lower() != "true":
        return 0
    if not server.ends_https or server.bind.startswith(UNIX):
        return 0
    if server.mode != "SIMPLE":
        message = f"HTTP/3 has no client certificates: mode {server.mode} is served by TCP alone"
        report.add(gateway.key, f"{server.path}.tls.mode", message)
        return 0
    newest = (server.tls or {}).get("maxProtocolVersion") or "TLS_AUTO"
    if newest not in ("TLS_AUTO", "TLSV1_3"):
        message = "HTTP/3 needs TLS 1.3"
        report.add(gateway.key, f"{server.path}.tls.maxProtocolVersion", message)
        return 0
    exposing = [f for f in router.fronts if any(number == server.number for number, _ in f.ports)]
    for front in exposing:
        for number, behind in front.udp:
            listens = server.port if front.untranslated else behind
            if number == server.number and router.unprivileged and listens < FIRST_UNPRIVILEGED:
                message = f"the gateway may not listen on UDP port {listens}: no HTTP/3"
                report.add(gateway.key, f"{server.path}.port.number", message)
                return 0
            if number == server.number:
                return listens
    if exposing:
        message = f"{exposing[0].host} does not expose port {server.number} for UDP: no HTTP/3"
        report.add(gateway.key, f"{server.path}.port.number", message)
        return 0
    return server.port


def _conflict(
    server: Server,
    kinds: dict[tuple[str, int], tuple[str, Key]],
    names: set[tuple[str, int, str]],
) -> tuple[str, str] | None:
    """Why a server cannot be at its port beside those before it (field, message); None: it can, and
    is noted."""
    place = (server.bind, server.port)
    kind = "http" if server.is_http else "tcp" if not server.mode else "tls"
    held = kinds.setdefault(place, (kind, server.gateway))
    if held[0] != kind or (kind == "tcp" and held[1] != server.gateway):
        return "port", f"port {server.port} is taken by {held[1].name}"
    if server.ends_https:
        mark = (*place, server.route_name())
        if mark in names:
            return "port.name", "the name is taken at this port"
        names.add(mark)
    return None


def _server(ref: Ref, spec: dict[str, Any], path: str, number: int, listens: int) -> Server:
    port = spec.get("port") or {}
    return Server(
        gateway=ref.key,
        path=path,
        number=number,
        port=listens,
        port_name=str(port.get("name") or ""),
        protocol=str(port.get("protocol") or "").upper(),
        hosts=tuple(str(h).lower() for h in spec.get("hosts") or ()),
        tls=spec.get("tls"),
        bind=str(spec.get("bind") or ""),
        owner=(ref.row.namespace, ref.row.name),
        given_name=str(spec.get("name") or ""),
    )
