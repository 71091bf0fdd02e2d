"""Patches of EnvoyFilters, applied to generated messages as typed protos.

Source: Istio, EnvoyFilter reference; pilot/pkg/networking/core/envoyfilter of 1.31 where the
reference is silent (where an insertion goes that names nothing).
"""

from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple

from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)

from meshbus.api.envoy_types import PATCHED_TYPES
from meshbus.compile.connections import HCM
from meshbus.compile.envoy_filter_1_4 import name_of_today
from meshbus.compile.envoy_filter_merge import merge, merge_filter, message_of_value
from meshbus.compile.findings import NotCompiledError
from meshbus.compile.values import any_of
from meshbus.model.keys import Key

INBOUND = "SIDECAR_INBOUND"
OUTBOUND = "SIDECAR_OUTBOUND"
GATEWAY = "GATEWAY"
_ROUTER = "envoy.filters.http.router"
_CAPTURING = ("virtualInbound", "virtualOutbound")
_TERMINAL = (HCM, "envoy.filters.network.tcp_proxy")
_CLASSES = {
    "AUTHN": ("envoy.filters.http.jwt_authn",),
    "AUTHZ": (
        "envoy.filters.http.jwt_authn",
        "envoy.filters.http.ext_authz",
        "envoy.filters.http.rbac",
    ),
}
"""What filters of a class come after; at a proxy that has none of these they are the first."""


class Patch(NamedTuple):
    """One patch."""

    source: Key
    path: str
    """Where in the object: `spec.configPatches[0]`."""
    apply_to: str
    context: str
    match: dict[str, Any]
    """`listener`, `routeConfiguration` or `cluster` of the match; empty: everything."""
    operation: str
    value: dict[str, Any]
    filter_class: str = ""
    number: int = 0
    """Among the patches of its object."""

    @property
    def adds(self) -> bool:
        """It brings something new that has no neighbours."""
        return self.operation == "ADD" or (
            self.operation in _INSERTIONS and self.apply_to not in _ORDERED
        )

    def message(self) -> Any:
        """The value as a message.

        Raises:
            NotCompiledError: It is none.
        """
        old = self.path.startswith("spec.filters[")
        field = "filterConfig" if old else "patch.value"
        return message_of_value(PATCHED_TYPES[self.apply_to], self.value, f"{self.path}.{field}")

    def concerns(self, context: str) -> bool:
        """Resources of this side of a proxy are patched."""
        return self.context in ("ANY", context)


def canonical(name: str) -> str:
    """The present name of a filter."""
    return name_of_today(name)


# --------------------------------------------------------------------------- order

_MERGES = frozenset({"MERGE", "MERGE_AND_REPLACE_LIST"})
_INSERTIONS = frozenset({"INSERT_FIRST", "INSERT_BEFORE", "INSERT_AFTER"})
_FILTERS = frozenset({"NETWORK_FILTER", "HTTP_FILTER", "LISTENER_FILTER"})
_ORDERED = frozenset({"NETWORK_FILTER", "HTTP_FILTER", "LISTENER_FILTER", "HTTP_ROUTE"})
"""What has neighbours; of all else an insertion is an addition."""
_OUTSIDE_IN = {
    "LISTENER": 0,
    "CLUSTER": 0,
    "ROUTE_CONFIGURATION": 0,
    "EXTENSION_CONFIG": 0,
    "LISTENER_FILTER": 1,
    "FILTER_CHAIN": 2,
    "VIRTUAL_HOST": 2,
    "NETWORK_FILTER": 3,
    "HTTP_ROUTE": 3,
    "HTTP_FILTER": 4,
}
_LAST = 9


def stage(patch: Patch) -> tuple[int, int]:
    """When a patch of its type is applied, before the order in which patches are written: from the
    outside in, filters merged after filters came and went, routes the other way round; what is
    added whole comes last, as it is written.

    Source: pilot/pkg/networking/core/envoyfilter of 1.31 (patchListener, patchVirtualHosts).
    """
    place = _OUTSIDE_IN.get(patch.apply_to, _LAST)
    merges = patch.operation in _MERGES
    if patch.apply_to in ("NETWORK_FILTER", "HTTP_FILTER"):
        return place, int(merges)
    if patch.apply_to == "HTTP_ROUTE":
        return place, int(patch.operation == "ADD" or patch.operation in _INSERTIONS)
    if patch.apply_to in ("LISTENER", "FILTER_CHAIN", "VIRTUAL_HOST", "CLUSTER"):
        return (_LAST, place) if patch.adds else (place, 0)
    return place, 0


# --------------------------------------------------------------------------- lists


class Place(NamedTuple):
    """Where in a list a patch is at work."""

    picks: Callable[[Any], bool]
    """Members that its match is about."""
    named: bool = True
    """The match names members. If not, nothing is removed or replaced, and an insertion goes to
    one of the ends."""
    end: int | None = None
    """Where an addition goes; None: after all."""


def change_list(items: Any, patch: Patch, place: Place) -> bool:
    """Apply a patch to the members of a list that it picks. True: something was changed.

    Raises:
        NotCompiledError: The operation is none, or needs a match that names something.
    """
    operation = patch.operation
    chosen = [index for index, item in enumerate(items) if place.picks(item)]
    if operation in _MERGES:
        value, lists = patch.message(), operation == "MERGE_AND_REPLACE_LIST"
        for index in chosen:
            if patch.apply_to in _FILTERS:
                path = f"{patch.path}.patch.value.typedConfig"
                merge_filter(items[index], value, path, replace_lists=lists)
            else:
                merge(items[index], value, replace_lists=lists)
        return bool(chosen)
    if operation in ("REMOVE", "REPLACE"):
        if not place.named:
            raise NotCompiledError(
                f"{patch.path}.match", f"{operation} needs the name of what it is about"
            )
        if operation == "REPLACE":
            for index in chosen[:1]:
                items[index].CopyFrom(patch.message())
            return bool(chosen)
        for index in reversed(chosen):
            del items[index]
        return bool(chosen)
    if operation != "ADD" and operation not in _INSERTIONS:
        raise NotCompiledError(f"{patch.path}.patch.operation", f"unknown operation {operation}")
    where = _position(items, patch, place, chosen)
    if where is not None:
        items.insert(where, patch.message())
    return where is not None


def _position(items: Any, patch: Patch, place: Place, chosen: list[int]) -> int | None:
    """Where a new member goes; None: beside nothing."""
    operation = patch.operation
    if patch.adds or (operation == "INSERT_AFTER" and not place.named):
        return len(items) if place.end is None else place.end
    if not place.named or (operation == "INSERT_FIRST" and patch.apply_to != "HTTP_ROUTE"):
        return 0
    if not chosen:
        return None
    return {"INSERT_FIRST": 0, "INSERT_AFTER": chosen[0] + 1}.get(operation, chosen[0])


# --------------------------------------------------------------------------- listeners


def patch_listener(listener: Any, patch: Patch) -> bool:
    """Apply a patch to a listener, and what is in it."""
    match = patch.match
    if match.get("name") and match["name"] != listener.name:
        return False
    if not _in_ranges(listener.address.socket_address.address, match.get("address")):
        return False
    wanted = int(match.get("portNumber") or 0)
    own = listener.address.socket_address.port_value
    chains = match.get("filterChain") or {}
    if listener.name in _CAPTURING and patch.apply_to != "LISTENER":
        # Captured traffic shares a listener: its chains say the port.
        if wanted and patch.apply_to != "LISTENER_FILTER":
            chains = {**chains, "listenerPort": wanted}
    elif wanted and wanted != own:
        return False
    if patch.apply_to == "LISTENER":
        return _patch_whole(listener, patch)
    if patch.apply_to == "LISTENER_FILTER":
        name = canonical(str(match.get("listenerFilter") or ""))
        place = Place(lambda f: not name or f.name == name, bool(name))
        return change_list(listener.listener_filters, patch, place)
    if patch.apply_to == "FILTER_CHAIN":
        return _patch_chains(listener, patch, chains)
    return _each(
        [chain for chain in _chains(listener) if _chain_matches(chain, chains)],
        lambda chain: _patch_filters(chain, patch, chains),
    )


def _each(items: list[Any], change: Callable[[Any], bool]) -> bool:
    done = [change(item) for item in items]
    return any(done)


def _in_ranges(where: str, ranges: Any) -> bool:
    """An address is in one of some networks, if there are any."""
    if not ranges:
        return True
    try:
        return any(ip_address(where) in ip_network(str(r), strict=False) for r in ranges)
    except ValueError:
        return False


def _patch_whole(message: Any, patch: Patch) -> bool:
    if patch.operation not in _MERGES:
        raise NotCompiledError(
            f"{patch.path}.patch.operation", f"{patch.operation} is not for a {patch.apply_to}"
        )
    replace = patch.operation == "MERGE_AND_REPLACE_LIST"
    merge(message, patch.message(), replace_lists=replace)
    return True


def _chains(listener: Any) -> Iterator[Any]:
    yield from listener.filter_chains
    if listener.HasField("default_filter_chain"):
        yield listener.default_filter_chain


def _patch_chains(listener: Any, patch: Patch, chains: Mapping[str, Any]) -> bool:
    def picks(chain: Any) -> bool:
        return _chain_matches(chain, chains)

    changed = change_list(listener.filter_chains, patch, Place(picks))
    if listener.HasField("default_filter_chain") and picks(listener.default_filter_chain):
        if patch.operation == "REMOVE":
            listener.ClearField("default_filter_chain")
            return True
        if patch.operation in _MERGES:
            return _patch_whole(listener.default_filter_chain, patch)
    return changed


def _chain_matches(chain: Any, match: Mapping[str, Any]) -> bool:
    own = chain.filter_chain_match
    port = own.destination_port.value
    if match.get("name") and match["name"] != chain.name:
        return False
    if match.get("sni") and match["sni"] not in own.server_names:
        return False
    if match.get("transportProtocol") and match["transportProtocol"] != own.transport_protocol:
        return False
    wanted = str(match.get("applicationProtocols") or "")
    if wanted and not {p.strip() for p in wanted.split(",")} <= set(own.application_protocols):
        return False
    if match.get("protocol") and match["protocol"] != _protocol_of(chain):
        return False
    ports = (int(match.get(name) or 0) for name in ("destinationPort", "listenerPort"))
    return all(not said or said == port for said in ports)


def _protocol_of(chain: Any) -> str:
    """`HTTP` or `TCP`, as Istio 1.4 told listeners apart."""
    return "HTTP" if any(item.name == HCM for item in chain.filters) else "TCP"


def _patch_filters(chain: Any, patch: Patch, match: Mapping[str, Any]) -> bool:
    wanted = match.get("filter") or {}
    name = canonical(str(wanted.get("name") or ""))
    if patch.apply_to == "NETWORK_FILTER":
        place = Place(lambda f: not name or f.name == name, bool(name), _before_terminal(chain))
        return change_list(chain.filters, patch, place)
    inner = canonical(str((wanted.get("subFilter") or {}).get("name") or ""))
    changed = False
    for item in chain.filters:
        if item.name != HCM or (name and name != HCM):
            continue
        manager = hcm_pb2.HttpConnectionManager.FromString(item.typed_config.value)
        place = Place(
            lambda f: not inner or f.name == inner, bool(inner), _http_end(manager, patch)
        )
        if change_list(manager.http_filters, patch, place):
            item.typed_config.CopyFrom(any_of(manager))
            changed = True
    return changed


def _before_terminal(chain: Any) -> int | None:
    """Envoy refuses a chain with anything after the filter that ends connections."""
    ends = (i for i, item in enumerate(chain.filters) if item.name in _TERMINAL)
    return next(ends, None)


def _http_end(manager: Any, patch: Patch) -> int | None:
    """Where an added HTTP filter goes: before the router, or where its class stands.

    Source: Istio, EnvoyFilter reference, Patch.FilterClass.
    """
    names = [item.name for item in manager.http_filters]
    router = names.index(_ROUTER) if _ROUTER in names else None
    if patch.filter_class == "STATS":
        return next((i for i, name in enumerate(names) if "stats" in name), router)
    after = _CLASSES.get(patch.filter_class, ())
    held = [i + 1 for i, name in enumerate(names) if name.startswith(after)] if after else []
    return held[-1] if held else 0 if after else router


# --------------------------------------------------------------------------- routes


def patch_routes(table: Any, patch: Patch) -> bool:
    """Apply a patch to a route configuration, and what is in it."""
    match = patch.match
    if not _table_matches(table, match):
        return False
    if patch.apply_to == "ROUTE_CONFIGURATION":
        return _patch_whole(table, patch)
    host = match.get("vhost") or {}

    def of_host(item: Any) -> bool:
        domain = host.get("domainName")
        return (not host.get("name") or host["name"] == item.name) and (
            not domain or domain in item.domains
        )

    if patch.apply_to == "VIRTUAL_HOST":
        return change_list(table.virtual_hosts, patch, Place(of_host))
    route = host.get("route") or {}
    action = str(route.get("action") or "ANY").lower()

    def of_route(item: Any) -> bool:
        kind = item.WhichOneof("action")
        return (not route.get("name") or route["name"] == item.name) and (
            action == "any" or action == kind
        )

    inserts = patch.operation in _INSERTIONS
    place = Place(of_route, bool(route) or not inserts)
    return _each(
        [item for item in table.virtual_hosts if of_host(item)],
        lambda item: change_list(item.routes, patch, place),
    )


def _table_matches(table: Any, match: Mapping[str, Any]) -> bool:
    """A route configuration is what a match asks for. Names of ports and Gateways are for gateways
    alone, where only configurations of HTTPS have them.

    Source: pilot/pkg/networking/core/envoyfilter of 1.31, routeConfigurationMatch.
    """
    if match.get("name") and match["name"] != table.name:
        return False
    port, port_name, gateway = described_table(table.name)
    wanted = int(match.get("portNumber") or 0)
    if not table.name.startswith(("http.", "https.")):
        return not wanted or wanted == port
    if wanted and wanted not in (_server_ports(table) or {port}):
        return False
    if match.get("portName") and match["portName"] != port_name:
        return False
    return not match.get("gateway") or match["gateway"] == gateway


def _server_ports(table: Any) -> set[int]:
    """The ports of Gateways behind a configuration: it is named after the one that is listened
    at, its hosts after those."""
    ends = (host.name.rpartition(":")[2] for host in table.virtual_hosts)
    return {int(end) for end in ends if end.isdigit()}


def described_table(name: str) -> tuple[int, str, str]:
    """Port, port's name and gateway (`NAMESPACE/NAME`) of a route configuration by its name."""
    if name.startswith("https."):
        parts = name.split(".")
        if len(parts) >= 5 and parts[1].isdigit():
            return int(parts[1]), parts[2], f"{parts[4]}/{parts[3]}"
    if name.startswith("http."):
        port = name.split(".")[1]
        return (int(port) if port.isdigit() else 0), "", ""
    if name.startswith("inbound|"):
        port = name.split("|")[1]
        return (int(port) if port.isdigit() else 0), "", ""
    tail = name.rpartition(":")[2]
    return (int(tail) if tail.isdigit() else 0), "", ""


# --------------------------------------------------------------------------- clusters


def patch_cluster(cluster: Any, patch: Patch) -> bool:
    """Merge a patch into a cluster that it matches.

    TLS goes into the TLS that is there, also where that is chosen by endpoint; TLS of another kind
    takes its place.
    Source: pilot/pkg/networking/core/envoyfilter of 1.31, mergeTransportSocketCluster.
    """
    if not serves(cluster, patch.match):
        return False
    if patch.operation not in _MERGES:
        return _patch_whole(cluster, patch)
    value = patch.message()
    replace = patch.operation == "MERGE_AND_REPLACE_LIST"
    if value.HasField("transport_socket"):
        socket = value.transport_socket
        choices = [m.transport_socket for m in cluster.transport_socket_matches]
        held = next((c for c in choices if c.name == socket.name), None)
        if held is not None:
            merge(held, socket, replace_lists=replace)
        elif choices:
            raise NotCompiledError(
                f"{patch.path}.patch.value.transportSocket",
                f"none of the transport sockets of {cluster.name} is a {socket.name}",
            )
        elif cluster.transport_socket.name == socket.name:
            merge(cluster.transport_socket, socket, replace_lists=replace)
        else:
            cluster.transport_socket.CopyFrom(socket)
        value.ClearField("transport_socket")
    merge(cluster, value, replace_lists=replace)
    return True


def serves(cluster: Any, match: Mapping[str, Any]) -> bool:
    """An inbound cluster is of the service that a match names; others say it by their names."""
    wanted = match.get("service")
    if match.get("name") or not wanted or not cluster.name.startswith("inbound|"):
        return True
    # Reading a map of a message by a key that is not there would put it in.
    known = cluster.metadata.filter_metadata
    fields = known["istio"].fields if "istio" in known else {}
    held = fields["services"].list_value.values if "services" in fields else ()
    return any(item.struct_value.fields["host"].string_value == wanted for item in held)


def may_match(name: str, match: Mapping[str, Any]) -> bool:
    """A cluster's name is what a match asks for; whose an inbound one is, `serves` tells. A match
    that names a cluster asks for nothing else."""
    if match.get("name"):
        return bool(match["name"] == name)
    port, subset, host = _parts_of(name)
    if match.get("portNumber") and str(match["portNumber"]) != port:
        return False
    if match.get("subset") and match["subset"] != subset:
        return False
    inbound = name.startswith("inbound|")
    return not (match.get("service") and match["service"] != host and not inbound)


def _parts_of(name: str) -> tuple[str, str, str]:
    """Port, subset and host of a cluster's name, also of one in the form of an SNI."""
    parts = name.split("|")
    if len(parts) == 4:
        return parts[1], parts[2], parts[3]
    parts = name.split("_.", 3)
    if len(parts) == 4 and parts[0] == "outbound":
        return parts[1], parts[2], parts[3]
    return "", "", ""
