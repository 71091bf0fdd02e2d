"""Clusters that Envoys ask for when a route leads to them (on-demand CDS).

A request can wait for its cluster; a connection, a filter's call and a mirrored request cannot. So
clusters that listeners, filters or mirrors name are sent as ever, and the others of services on
demand. Endpoints follow their clusters.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from meshbus.compile.engine import Reader
from meshbus.compile.layers import Layer, layer_of, remembered
from meshbus.compile.names import ClusterName
from meshbus.compile.scope import destinations_of, visible_virtual_services
from meshbus.compile.shared_parts import SharedPart
from meshbus.compile.virtual_hosts import View

Asked = tuple[Callable[..., Any], tuple[Any, ...]]
"""A node whose value is a `SharedPart`."""
_NAME = re.compile(rb"outbound\|")


def needed_names(reader: Reader, naming: tuple[Asked, ...]) -> frozenset[str]:
    """Node: clusters that resources of some parts name: listeners and filters."""
    parts = (reader.node(node, *args) for node, args in naming)
    return frozenset[str]().union(*(_named_in(part.resources) for part in parts))


def _named_in(layer: Layer) -> frozenset[str]:
    def read() -> frozenset[str]:
        return frozenset(name for r in layer.values() for name in names_in(r.body))

    return remembered(layer.derived, "clusters named", (), read)


def names_in(body: bytes) -> set[str]:
    """Names of services' clusters in a protobuf message. A name stands behind its length, which is
    one byte, or two of which the first has its highest bit set."""
    found = set()
    for match in _NAME.finditer(body):
        start = match.start()
        length = body[start - 1] if start else 0
        if start > 1 and body[start - 2] & 0x80 and length < len(match[0]):
            length = (body[start - 2] & 0x7F) | length << 7
        found.add(body[start : start + length].decode("utf-8", "replace"))
    return found


def mirrored(reader: Reader, view: View) -> frozenset[tuple[str, int]]:
    """Node: (host, port) of what virtual services that mirror lead to; port 0: any."""
    found: set[tuple[str, int]] = set()
    for ref in reader.node(visible_virtual_services, view.viewer):
        if ref.row.mirrors:
            found.update((d.host, d.port) for d in reader.node(destinations_of, ref.key))
    return frozenset(found)


class Split(NamedTuple):
    """How clusters are divided; proxies of a namespace share it, for filters of their own that call
    a service are few."""

    clusters: Asked
    naming: tuple[Asked, ...]
    """Listeners of the view."""
    own: frozenset[str]
    """Clusters that listeners and filters of the proxy's own name."""
    view: View


def early_clusters(reader: Reader, split: Split) -> SharedPart:
    """Node: clusters that a proxy is sent unasked, of those of a part."""
    return _split(reader, split, early=True)


def late_clusters(reader: Reader, split: Split) -> SharedPart:
    """Node: the others of that part."""
    return _split(reader, split, early=False)


def _split(reader: Reader, split: Split, *, early: bool) -> SharedPart:
    part: SharedPart = reader.node(split.clusters[0], *split.clusters[1])
    needed = reader.node(needed_names, split.naming) | split.own
    mirrors = reader.node(mirrored, split.view)
    chosen = {
        name: resource
        for name, resource in part.resources.items()
        if _is_early(name, needed, mirrors) is early
    }
    return SharedPart(layer_of(chosen), part.findings if early else ())


def _is_early(name: str, needed: frozenset[str], mirrors: frozenset[tuple[str, int]]) -> bool:
    if name in needed or not name.startswith("outbound|"):
        return True
    if not mirrors:
        return False
    cluster = ClusterName.parse(name)
    return (cluster.host, cluster.port) in mirrors or (cluster.host, 0) in mirrors


def endpoints_of(
    reader: Reader, endpoints: Asked, clusters: tuple[Callable[..., Any], tuple[Any, ...]]
) -> SharedPart:
    """Node: of the endpoints of a part those of the clusters of another."""
    part: SharedPart = reader.node(endpoints[0], *endpoints[1])
    held: SharedPart = reader.node(clusters[0], *clusters[1])
    kept = {n: r for n, r in part.resources.items() if n in held.resources}
    return SharedPart(layer_of(kept), part.findings)
