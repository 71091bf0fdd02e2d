"""Walks compiled resources with a described call, as an Envoy would take it.

`walk(document, Call(...))` answers which listener, filter chain, route configuration, virtual host,
route and cluster the call meets, or which error. The document is what `meshbus compile` prints.

Source: Envoy, "Listener filter chain match", "Route matching", "How domains are searched".
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import re2

Json = dict[str, Any]

NO_LISTENER = "no listener"
NO_CHAIN = "no filter chain"
NO_HOST = "no virtual host"
NO_ROUTE = "no route"
REDIRECT_TLS = "redirect to https"
PROTOCOL = "protocol"
TLS = "tls"
MTLS = "mtls"


@dataclass(frozen=True)
class Call:
    """One connection, and the request on it."""

    address: str = "1.1.1.1"
    """Original destination, or where a gateway is called."""
    port: int = 80
    protocol: str = "http"
    """`http`, `http2` or `tcp`."""
    tls: str = ""
    """Empty: plaintext; `tls`: of the caller; `mtls`: between proxies of the mesh."""
    sni: str = ""
    alpn: str = ""
    """Empty: what callers of the protocol and kind of TLS offer."""
    host: str = ""
    path: str = "/"
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    inbound: bool = False
    gateway: bool = False
    """The call comes to the listener itself, not by redirection."""
    source: str = "10.9.9.9"

    def server_name(self) -> str:
        """SNI; TLS of a caller's own asks for the host."""
        return self.sni or (self.host.partition(":")[0] if self.tls == "tls" else "")

    def offered(self) -> str:
        """ALPN."""
        if self.alpn:
            return self.alpn
        if self.tls == "mtls":
            return {"http": "istio-http/1.1", "http2": "istio-h2", "tcp": "istio"}[self.protocol]
        return {"http": "http/1.1", "http2": "h2", "tcp": ""}[self.protocol] if self.tls else ""


@dataclass(frozen=True)
class Met:
    """What a call met; empty where it did not come so far."""

    error: str = ""
    listener: str = ""
    chain: str = ""
    routes: str = ""
    host: str = ""
    route: str = ""
    cluster: str = ""
    clusters: tuple[tuple[str, int], ...] = ()
    """Weighted."""
    status: int = 0
    """Of a direct response or redirect."""
    location: str = ""


class _Stop(Exception):
    def __init__(self, error: str, met: "Met | None" = None) -> None:
        self.error = error
        self.met = met


def walk(document: Json, call: Call) -> Met:
    """What the call meets."""
    met = Met()
    try:
        listener = _listener(document["listeners"], call)
        met = replace(met, listener=listener["name"])
        chain = _chain(listener, call)
        met = replace(met, chain=chain.get("name", ""))
        plain = _after_tls(chain, call)
        return _filters(document, chain, plain, met)
    except _Stop as stop:
        return replace(stop.met or met, error=stop.error)


# --------------------------------------------------------------------------- listeners


def _addresses(listener: Json) -> Iterable[tuple[str, int]]:
    own = [listener.get("address", {})]
    own += [extra["address"] for extra in listener.get("additionalAddresses", ())]
    for address in own:
        socket = address.get("socketAddress", {})
        yield socket.get("address", ""), int(socket.get("portValue", 0))


def _any(address: str) -> str:
    return "::" if ":" in address else "0.0.0.0"


def _listener(listeners: list[Json], call: Call) -> Json:
    if call.inbound and not call.gateway:
        for listener in listeners:
            if listener["name"] == "virtualInbound":
                return listener
        raise _Stop(NO_LISTENER)
    for address in (call.address, _any(call.address)):
        for listener in listeners:
            if (address, call.port) in _addresses(listener):
                if call.gateway and listener.get("bindToPort") is False:
                    continue
                return listener
    if not call.gateway:
        for listener in listeners:
            if listener["name"] == "virtualOutbound":
                return listener
    raise _Stop(NO_LISTENER)


def _inspectors(listener: Json, port: int) -> set[str]:
    """Listener filters that look at a connection to the port."""
    return {
        f["name"].rpartition(".")[2]
        for f in listener.get("listenerFilters", ())
        if not _predicate(f.get("filterDisabled", {}), port)
    }


def _predicate(rule: Json, port: int) -> bool:
    if "orMatch" in rule:
        return any(_predicate(r, port) for r in rule["orMatch"]["rules"])
    if "notMatch" in rule:
        return not _predicate(rule["notMatch"], port)
    ports = rule.get("destinationPortRange")
    return ports is not None and ports.get("start", 0) <= port < ports["end"]


def _chain(listener: Json, call: Call) -> Json:
    """The chain by the most specific match, criterion by criterion."""
    seen = _inspectors(listener, call.port)
    transport, names, protocols = "raw_buffer", "", ()
    if "tls_inspector" in seen and call.tls:
        transport, names = "tls", call.server_name().lower()
        protocols = tuple(filter(None, (call.offered(),)))
    elif "http_inspector" in seen and not call.tls and call.protocol != "tcp":
        protocols = ("http/1.1",) if call.protocol == "http" else ("h2c",)
    chains = list(listener.get("filterChains", ()))
    steps = (
        lambda m: _rank_port(m, call.port),
        lambda m: _rank_range(m.get("prefixRanges"), call.address),
        lambda m: _rank_names(m.get("serverNames"), names),
        lambda m: _rank_text(m.get("transportProtocol"), transport),
        lambda m: _rank_list(m.get("applicationProtocols"), protocols),
        lambda m: _rank_range(m.get("directSourcePrefixRanges"), call.source),
        lambda m: _rank_range(m.get("sourcePrefixRanges"), call.source),
    )
    for step in steps:
        ranked = [(step(c.get("filterChainMatch", {})), c) for c in chains]
        best = max((rank for rank, _ in ranked), default=-1)
        if best < 0:
            chains = []
            break
        chains = [c for rank, c in ranked if rank == best]
    if len(chains) > 1:
        names = [c.get("filterChainMatch") for c in chains]
        raise AssertionError(f"{listener['name']}: several chains match alike: {names}")
    if chains:
        return chains[0]
    if "defaultFilterChain" in listener:
        return listener["defaultFilterChain"]
    raise _Stop(NO_CHAIN)


def _rank_port(match: Json, port: int) -> int:
    wanted = match.get("destinationPort")
    return 0 if wanted is None else 1 if wanted == port else -1


def _rank_text(wanted: str | None, value: str) -> int:
    return 0 if not wanted else 1 if wanted == value else -1


def _rank_list(wanted: list[str] | None, values: tuple[str, ...]) -> int:
    return 0 if not wanted else 1 if set(wanted) & set(values) else -1


def _rank_names(wanted: list[str] | None, name: str) -> int:
    if not wanted:
        return 0
    ranks = [-1]
    for pattern in wanted:
        if pattern == name and name:
            ranks.append(10_000)
        elif pattern.startswith("*.") and name.endswith(pattern[1:]):
            ranks.append(len(pattern))
    return max(ranks)


def _rank_range(wanted: list[Json] | None, address: str) -> int:
    if not wanted:
        return 0
    held = ipaddress.ip_address(address)
    ranks = [-1]
    for entry in wanted:
        network = ipaddress.ip_network(
            f"{entry['addressPrefix']}/{entry.get('prefixLen', 0)}", strict=False
        )
        if held.version == network.version and held in network:
            ranks.append(network.prefixlen + 1)
    return max(ranks)


def _after_tls(chain: Json, call: Call) -> Call:
    """The call as the filters of a chain see it."""
    socket = chain.get("transportSocket", {}).get("typedConfig", {})
    if socket.get("@type", "").endswith(("ProxyProtocolUpstreamTransport",)):
        socket = {}
    if not socket:
        return call
    if not call.tls:
        raise _Stop(TLS)
    validation = socket.get("requireClientCertificate")
    if call.tls == "tls" and validation:
        raise _Stop(MTLS)
    return replace(call, tls="")


# --------------------------------------------------------------------------- filters


def _filters(document: Json, chain: Json, call: Call, met: Met) -> Met:
    for item in chain.get("filters", ()):
        config = item.get("typedConfig", {})
        kind = config.get("@type", "").rpartition(".")[2]
        if kind == "TcpProxy":
            if "weightedClusters" in config:
                return _weighted(config["weightedClusters"]["clusters"], met)
            return replace(met, cluster=config.get("cluster", ""))
        if kind == "HttpConnectionManager":
            if call.protocol == "tcp" or call.tls:
                raise _Stop(PROTOCOL)
            return _http(document, config, call, met)
    raise _Stop(PROTOCOL)


def _weighted(clusters: list[Json], met: Met) -> Met:
    shares = tuple((c["name"], int(c.get("weight", 0))) for c in clusters)
    return replace(met, clusters=shares, cluster=max(shares, key=lambda s: s[1])[0])


def _http(document: Json, manager: Json, call: Call, met: Met) -> Met:
    name = manager.get("rds", {}).get("routeConfigName", "")
    met = replace(met, routes=name)
    table = manager.get("routeConfig") or next(
        (r for r in document["routes"] if r["name"] == name), None
    )
    if table is None:
        raise AssertionError(f"no route configuration {name!r}")
    host = _virtual_host(table, call)
    if host is None:
        raise _Stop(NO_HOST, met)
    met = replace(met, host=host["name"])
    if host.get("requireTls") == "ALL" and not _ended_tls(call, met, document):
        return replace(met, error=REDIRECT_TLS)
    for route in host.get("routes", ()):
        if not _route_matches(route["match"], call):
            continue
        return _action(route, call, replace(met, route=route.get("name", "")))
    return replace(met, error=NO_ROUTE)


def _ended_tls(call: Call, met: Met, document: Json) -> bool:
    listener = next(x for x in document["listeners"] if x["name"] == met.listener)
    return any("transportSocket" in c for c in listener.get("filterChains", ()))


def _action(route: Json, call: Call, met: Met) -> Met:
    if "directResponse" in route:
        return replace(met, status=int(route["directResponse"]["status"]))
    if "redirect" in route:
        return _redirected(route["redirect"], call, met)
    action = route.get("route", {})
    if "weightedClusters" in action:
        return _weighted(action["weightedClusters"]["clusters"], met)
    return replace(met, cluster=action.get("cluster", ""))


_CODES = {
    "MOVED_PERMANENTLY": 301,
    "FOUND": 302,
    "SEE_OTHER": 303,
    "TEMPORARY_REDIRECT": 307,
    "PERMANENT_REDIRECT": 308,
}


def _redirected(action: Json, call: Call, met: Met) -> Met:
    scheme = action.get("schemeRedirect") or ("https" if action.get("httpsRedirect") else "http")
    host = action.get("hostRedirect") or call.host.partition(":")[0]
    port = action.get("portRedirect")
    path = action.get("pathRedirect") or call.path
    where = f"{scheme}://{host}{f':{port}' if port else ''}{path}"
    code = _CODES[action.get("responseCode", "MOVED_PERMANENTLY")]
    return replace(met, status=code, location=where)


def _virtual_host(table: Json, call: Call) -> Json | None:
    host = (call.host or call.address).lower()
    if table.get("ignorePortInHostMatching"):
        host = re.sub(r":\d+$", "", host)
    best: tuple[int, Json] | None = None
    for candidate in table.get("virtualHosts", ()):
        for domain in candidate["domains"]:
            rank = _rank_domain(domain.lower(), host)
            if rank and (best is None or rank > best[0]):
                best = (rank, candidate)
    return None if best is None else best[1]


def _rank_domain(domain: str, host: str) -> int:
    if domain == host:
        return 100_000
    if domain == "*":
        return 1
    if domain.startswith("*") and host.endswith(domain[1:]) and len(host) >= len(domain):
        return 10_000 + len(domain)
    if domain.endswith("*") and host.startswith(domain[:-1]) and len(host) >= len(domain):
        return 1_000 + len(domain)
    return 0


# --------------------------------------------------------------------------- routes


def _route_matches(match: Json, call: Call) -> bool:
    path, _, query = call.path.partition("?")
    if not _path_matches(match, path, call.method):
        return False
    params = dict(part.partition("=")[::2] for part in query.split("&") if part)
    pseudo = {":method": call.method, ":authority": call.host, ":path": call.path}
    headers = {**pseudo, ":scheme": "http", **{k.lower(): v for k, v in call.headers.items()}}
    for wanted in match.get("headers", ()):
        if not _header_matches(wanted, headers.get(wanted["name"].lower())):
            return False
    for wanted in match.get("queryParameters", ()):
        value = params.get(wanted["name"])
        if wanted.get("presentMatch"):
            if value is None:
                return False
        elif value is None or not _text_matches(wanted.get("stringMatch", {}), value):
            return False
    if "grpc" in match and not headers.get("content-type", "").startswith("application/grpc"):
        return False
    return "dynamicMetadata" not in match or not match["dynamicMetadata"]


def _path_matches(match: Json, path: str, method: str) -> bool:
    fold = match.get("caseSensitive") is False

    def same(text: str) -> str:
        return text.lower() if fold else text

    if "connectMatcher" in match:
        return method == "CONNECT"
    if "prefix" in match:
        return same(path).startswith(same(match["prefix"]))
    if "path" in match:
        return same(path) == same(match["path"])
    if "pathSeparatedPrefix" in match:
        prefix = same(match["pathSeparatedPrefix"])
        return same(path) == prefix or same(path).startswith(prefix + "/")
    if "safeRegex" in match:
        return re2.fullmatch(match["safeRegex"]["regex"], path) is not None
    return True


def _header_matches(wanted: Json, value: str | None) -> bool:
    if "presentMatch" in wanted:
        found = (value is not None) is wanted["presentMatch"]
    elif value is None and not wanted.get("treatMissingHeaderAsEmpty"):
        return bool(wanted.get("invertMatch") and "stringMatch" not in wanted) and False
    else:
        found = _text_matches(wanted.get("stringMatch", {}), value or "")
    return found is not bool(wanted.get("invertMatch"))


def _text_matches(wanted: Json, value: str) -> bool:
    fold = bool(wanted.get("ignoreCase"))
    value = value.lower() if fold else value
    for kind, test in (
        ("exact", lambda v, w: v == w),
        ("prefix", lambda v, w: v.startswith(w)),
        ("suffix", lambda v, w: v.endswith(w)),
        ("contains", lambda v, w: w in v),
    ):
        if kind in wanted:
            return bool(test(value, wanted[kind].lower() if fold else wanted[kind]))
    if "safeRegex" in wanted:
        return re2.fullmatch(wanted["safeRegex"]["regex"], value) is not None
    return not wanted
