"""Sidecar objects: which one a workload follows, and what it says.

Source: https://istio.io/latest/docs/reference/config/networking/sidecar/
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from meshbus.compile.engine import Reader
from meshbus.compile.names import AS_NAMED, BLACK_HOLE, PASSTHROUGH, ClusterName, fqdn
from meshbus.compile.settings import MeshSettings, mesh
from meshbus.compile.viewers import Egress, Viewer
from meshbus.compile.visibility import Ref, istio_objects
from meshbus.compile.written import entries, fields, number, pairs, texts
from meshbus.model.keys import Key

Labels = tuple[tuple[str, str], ...]
REGISTRY_ONLY = "REGISTRY_ONLY"


class SidecarObject(NamedTuple):
    """One Sidecar."""

    ref: Ref
    selector: Labels
    """Empty: every workload of the namespace."""


def sidecar_objects(reader: Reader, namespace: str) -> tuple[SidecarObject, ...]:
    """Node: Sidecars of a namespace, older first."""
    return tuple(
        SidecarObject(ref, _labels(ref.row.spec.get("workloadSelector")))
        for ref in istio_objects(reader, "sidecars", namespace)
    )


def _labels(selector: Any) -> Labels:
    return pairs(fields(selector).get("labels"))


def sidecar_of(reader: Reader, namespace: str, labels: Labels) -> Ref | None:
    """The Sidecar of a workload: one of its namespace that selects it, else the namespace's own,
    else that of the root namespace; the oldest of each.

    Source: Istio, Sidecar reference ("Only one Sidecar resource ... applies").
    """
    held = set(labels)
    own = reader.node(sidecar_objects, namespace)
    for found in own:
        if found.selector and held.issuperset(found.selector):
            return found.ref
    root = reader.node(mesh).root_namespace
    for found in (*own, *(reader.node(sidecar_objects, root) if root != namespace else ())):
        if not found.selector:
            return found.ref
    return None


def viewer_of(reader: Reader, sidecar: Ref | None, namespace: str) -> Viewer:
    """What workloads of a namespace may reach under a Sidecar. `.` is the workload's namespace,
    also in a Sidecar of the root namespace."""
    if sidecar is None:
        return Viewer(namespace)
    # A node, so that the workloads of a Sidecar hold one viewer with its many hosts.
    return reader.node(viewer_under, sidecar.key, namespace)


def viewer_under(reader: Reader, key: Key, namespace: str) -> Viewer:
    """Node: `viewer_of` for a Sidecar by its key."""
    row = reader.get(key)
    if row is None:
        return Viewer(namespace)
    listeners = entries(row.spec.get("egress"))
    egress = tuple(_egress(listener, namespace) for listener in listeners)
    if all(e.is_everything for e in egress):
        return Viewer(namespace)  # everything: the same as without a Sidecar
    return Viewer(namespace, egress)


def _egress(listener: Mapping[str, Any], namespace: str) -> Egress:
    hosts = set()
    for text in texts(listener.get("hosts")):
        owner, _, host = text.partition("/")
        if owner == "~" or not host:
            continue
        owner, host = (namespace if owner == "." else owner), host.lower()
        hosts.add((owner, host))
        if owner != "*":
            hosts.add((owner, fqdn(host, owner)))  # a short name means the service, as elsewhere
    if ("*", "*") in hosts:
        hosts = {("*", "*")}
    whole = {owner for owner, host in hosts if host == "*"}
    kept = {pair for pair in hosts if pair[1] == "*" or pair[0] not in whole}
    port = fields(listener.get("port"))
    return Egress(
        number(port.get("number")),
        str(port.get("protocol") or "").upper(),
        str(listener.get("bind") or ""),
        listener.get("captureMode") != "NONE",
        tuple(sorted(kept)),
    )


def unknown_traffic(sidecar: Ref | None, settings: MeshSettings) -> str:
    """The cluster that takes what no host claims: `BlackHoleCluster` where that is refused,
    `PassthroughCluster`, `AllowAnyDynamicDNSCluster` for requests that are resolved by name (all
    else passes through then), or that of `outboundTrafficPolicy.egressProxy`."""
    policy = sidecar.row.spec.get("outboundTrafficPolicy") if sidecar is not None else None
    if not isinstance(policy, Mapping):
        if settings.dynamic_dns:
            return AS_NAMED
        return BLACK_HOLE if settings.registry_only else PASSTHROUGH
    if policy.get("mode", REGISTRY_ONLY) == REGISTRY_ONLY:
        return BLACK_HOLE
    proxy = policy.get("egressProxy")
    if not isinstance(proxy, Mapping) or sidecar is None:
        return PASSTHROUGH
    port = number(fields(proxy.get("port")).get("number"))
    host = fqdn(str(proxy.get("host") or ""), sidecar.row.namespace)
    return str(ClusterName(port, str(proxy.get("subset") or ""), host))
