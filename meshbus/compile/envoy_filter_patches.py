"""Patches of EnvoyFilters, applied to generated messages as typed protos.

Source: Istio, EnvoyFilter reference; pilot/pkg/networking/core/envoyfilter of 1.31 where the
reference is silent (where an insertion goes that names nothing).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)

from meshbus.api.envoy_types import PATCHED_TYPES
from meshbus.compile.connections import HCM
from meshbus.compile.envoy_filter_merge import merge, message_of_value
from meshbus.compile.findings import NotCompiledError
from meshbus.compile.values import any_of
from meshbus.model.keys import Key

INBOUND = "SIDECAR_INBOUND"
OUTBOUND = "SIDECAR_OUTBOUND"
GATEWAY = "GATEWAY"
_OLD_NAMES = {
    "envoy.http_connection_manager": HCM,
    "envoy.tcp_proxy": "envoy.filters.network.tcp_proxy",
    "envoy.router": "envoy.filters.http.router",
    "envoy.cors": "envoy.filters.http.cors",
    "envoy.fault": "envoy.filters.http.fault",
}
_ROUTER = "envoy.filters.http.router"


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

    def message(self) -> Any:
        """The value as a message.

        Raises:
            NotCompiledError: It is none.
        """
        return message_of_value(
            PATCHED_TYPES[self.apply_to], self.value, f"{self.path}.patch.value"
        )

    def concerns(self, context: str) -> bool:
        """Resources of this side of a proxy are patched."""
        return self.context in ("ANY", context)


def canonical(name: str) -> str:
    """The present name of a filter."""
    return _OLD_NAMES.get(name, name)


# --------------------------------------------------------------------------- lists


def change_list(items: Any, patch: Patch, picks: Callable[[Any], bool], end: int | None) -> bool:
    """Apply a patch to the members of a list that it picks. True: something was changed.

    `end`: where an addition goes; None: after all. An insertion that names no neighbour goes
    before or after all.
    """
    operation = patch.operation
    chosen = [index for index, item in enumerate(items) if picks(item)]
    if operation in ("MERGE", "MERGE_AND_REPLACE_LIST"):
        value = patch.message()
        for index in chosen:
            merge(items[index], value, replace_lists=operation == "MERGE_AND_REPLACE_LIST")
        return bool(chosen)
    if operation == "REMOVE":
        for index in reversed(chosen):
            del items[index]
        return bool(chosen)
    if operation == "REPLACE":
        for index in chosen[:1]:
            items[index].CopyFrom(patch.message())
        return bool(chosen)
    if operation == "ADD":
        items.insert(len(items) if end is None else end, patch.message())
        return True
    if operation == "INSERT_FIRST":
        items.insert(0, patch.message())
        return True
    if operation in ("INSERT_BEFORE", "INSERT_AFTER"):
        if not chosen:
            return False
        after = operation == "INSERT_AFTER"
        items.insert(chosen[-1] + 1 if after else chosen[0], patch.message())
        return True
    raise NotCompiledError(f"{patch.path}.patch.operation", f"unknown operation {operation}")


# --------------------------------------------------------------------------- listeners


def patch_listener(listener: Any, patch: Patch) -> bool:
    """Apply a patch to a listener, and what is in it."""
    match = patch.match
    if match.get("name") and match["name"] != listener.name:
        return False
    wanted = int(match.get("portNumber") or 0)
    own = listener.address.socket_address.port_value
    chains = match.get("filterChain") or {}
    if wanted and wanted != own:
        # Captured inbound traffic shares a listener: its chains say the port.
        if listener.name != "virtualInbound":
            return False
        chains = {**chains, "destinationPort": wanted}
    if patch.apply_to == "LISTENER":
        return _patch_whole(listener, patch)
    if patch.apply_to == "LISTENER_FILTER":
        name = canonical(str(match.get("listenerFilter") or ""))
        return change_list(
            listener.listener_filters, patch, lambda f: not name or f.name == name, None
        )
    if patch.apply_to == "FILTER_CHAIN":
        return _patch_chains(listener, patch, chains)
    return _each(
        [chain for chain in _chains(listener) if _chain_matches(chain, chains)],
        lambda chain: _patch_filters(chain, patch, chains.get("filter") or {}),
    )


def _each(items: list[Any], change: Callable[[Any], bool]) -> bool:
    done = [change(item) for item in items]
    return any(done)


def _patch_whole(message: Any, patch: Patch) -> bool:
    if patch.operation not in ("MERGE", "MERGE_AND_REPLACE_LIST"):
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

    changed = change_list(listener.filter_chains, patch, picks, None)
    if listener.HasField("default_filter_chain") and picks(listener.default_filter_chain):
        if patch.operation == "REMOVE":
            listener.ClearField("default_filter_chain")
            return True
        if patch.operation.startswith("MERGE"):
            return _patch_whole(listener.default_filter_chain, patch)
    return changed


def _chain_matches(chain: Any, match: Mapping[str, Any]) -> bool:
    own = chain.filter_chain_match
    if match.get("name") and match["name"] != chain.name:
        return False
    if match.get("sni") and match["sni"] not in own.server_names:
        return False
    if match.get("transportProtocol") and match["transportProtocol"] != own.transport_protocol:
        return False
    if match.get("applicationProtocols"):
        wanted = {p.strip() for p in str(match["applicationProtocols"]).split(",")}
        if wanted != set(own.application_protocols):
            return False
    port = int(match.get("destinationPort") or 0)
    return not port or port == own.destination_port.value


def _patch_filters(chain: Any, patch: Patch, match: Mapping[str, Any]) -> bool:
    name = canonical(str(match.get("name") or ""))
    if patch.apply_to == "NETWORK_FILTER":
        return change_list(chain.filters, patch, lambda f: not name or f.name == name, None)
    inner = canonical(str((match.get("subFilter") or {}).get("name") or ""))
    changed = False
    for item in chain.filters:
        if item.name != HCM or (name and name != HCM):
            continue
        manager = hcm_pb2.HttpConnectionManager.FromString(item.typed_config.value)
        last = next((i for i, f in enumerate(manager.http_filters) if f.name == _ROUTER), None)
        if change_list(manager.http_filters, patch, lambda f: not inner or f.name == inner, last):
            item.typed_config.CopyFrom(any_of(manager))
            changed = True
    return changed


# --------------------------------------------------------------------------- routes


def patch_routes(table: Any, patch: Patch) -> bool:
    """Apply a patch to a route configuration, and what is in it."""
    match = patch.match
    if match.get("name") and match["name"] != table.name:
        return False
    port, port_name, gateway = described_table(table.name)
    if match.get("portNumber") and int(match["portNumber"]) != port:
        return False
    if match.get("portName") and match["portName"] != port_name:
        return False
    if match.get("gateway") and gateway and match["gateway"] != gateway:
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
        return change_list(table.virtual_hosts, patch, of_host, None)
    route = host.get("route") or {}
    action = str(route.get("action") or "ANY").lower()

    def of_route(item: Any) -> bool:
        kind = item.WhichOneof("action")
        return (not route.get("name") or route["name"] == item.name) and (
            action == "any" or action == kind
        )

    return _each(
        [item for item in table.virtual_hosts if of_host(item)],
        lambda item: change_list(item.routes, patch, of_route, None),
    )


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
    """Merge a patch into a cluster that it matches."""
    return serves(cluster, patch.match) and _patch_whole(cluster, patch)


def serves(cluster: Any, match: Mapping[str, Any]) -> bool:
    """An inbound cluster is of the service that a match names; others say it by their names."""
    wanted = match.get("service")
    if not wanted or not cluster.name.startswith("inbound|"):
        return True
    # Reading a map of a message by a key that is not there would put it in.
    known = cluster.metadata.filter_metadata
    fields = known["istio"].fields if "istio" in known else {}
    held = fields["services"].list_value.values if "services" in fields else ()
    return any(item.struct_value.fields["host"].string_value == wanted for item in held)


def may_match(name: str, match: Mapping[str, Any]) -> bool:
    """A cluster's name is what a match asks for; whose an inbound one is, `serves` tells."""
    if match.get("name") and match["name"] != name:
        return False
    parts = name.split("|")
    port, subset, host = parts[1:] if len(parts) == 4 else ("", "", "")
    if match.get("portNumber") and str(match["portNumber"]) != port:
        return False
    if match.get("subset") and match["subset"] != subset:
        return False
    return not (match.get("service") and match["service"] != host and parts[0] != "inbound")
