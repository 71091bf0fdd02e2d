"""`tls` and `tcp` of a virtual service: where connections go by SNI, port and address."""

from typing import Any, NamedTuple

from meshbus.compile.engine import Reader
from meshbus.compile.findings import NotCompiledError, Report
from meshbus.compile.http_routes import (
    RouteContext,
    bound_gateways,
    destination_cluster,
    source_matches,
)
from meshbus.compile.names import MESH_GATEWAY, fqdn
from meshbus.compile.scope import Ref, Viewer, visible_virtual_services


class L4Route(NamedTuple):
    """Connections that match go to one of the clusters, by weight."""

    server_names: tuple[str, ...]
    subnets: tuple[str, ...]
    clusters: tuple[tuple[str, int], ...]


def mesh_l4_services(reader: Reader, viewer: Viewer) -> dict[str, tuple[Ref, ...]]:
    """Node: those with `tls` or `tcp` for sidecars of a viewer by host, older first."""
    found: dict[str, list[Ref]] = {}
    for ref in reader.node(visible_virtual_services, viewer):
        spec = ref.row.spec
        if MESH_GATEWAY in bound_gateways(ref) and (spec.get("tls") or spec.get("tcp")):
            for host in spec.get("hosts") or ():
                found.setdefault(fqdn(str(host), ref.row.namespace), []).append(ref)
    return {host: tuple(found[host]) for host in sorted(found)}


def l4_routes(vs: Ref, section: str, context: RouteContext, report: Report) -> list[L4Route]:
    """Routes of `tls` or `tcp` that hold for this port and proxy, in order.

    For `tcp` the first that matches everything ends the list.
    Source: Istio, TLSMatchAttributes and L4MatchAttributes references.
    """
    out: list[L4Route] = []
    for index, rule in enumerate(vs.row.spec.get(section) or ()):
        path = f"spec.{section}[{index}]"
        for match in rule.get("match") or ([{}] if section == "tcp" else []):
            with report.guard(vs.key, path):
                if match.get("port") and int(match["port"]) != context.port:
                    continue
                if not source_matches(match, context, vs.row.namespace):
                    continue
                route = L4Route(
                    tuple(str(n) for n in match.get("sniHosts") or ()),
                    tuple(str(n) for n in match.get("destinationSubnets") or ()),
                    weighted_targets(rule.get("route") or [], vs, context, path),
                )
                if section == "tls" and not route.server_names:
                    raise NotCompiledError(f"{path}.match", "sniHosts is needed")
                out.append(route)
                if section == "tcp" and not route.subnets:
                    return out
    return out


def weighted_targets(
    routes: list[dict[str, Any]], vs: Ref, context: RouteContext, path: str
) -> tuple[tuple[str, int], ...]:
    """Clusters with weights; a single destination has weight 1.

    Raises:
        NotCompiledError: There is no destination, or all weights are 0.
    """
    out = []
    for index, target in enumerate(routes):
        weight = 1 if len(routes) == 1 else int(target.get("weight") or 0)
        if weight:
            cluster = destination_cluster(
                target.get("destination") or {},
                vs.row.namespace,
                context,
                f"{path}.route[{index}].destination",
            )
            out.append((str(cluster), weight))
    if not out:
        raise NotCompiledError(f"{path}.route", "a destination with a weight is needed")
    return tuple(out)
