"""Resources of gRPC applications that speak xDS themselves (`xds:///HOST:PORT`).

They are those of a sidecar of the same place, in the form that gRPC takes: a listener for each name
and port by which a service may be called, one route configuration, clusters and endpoints with what
gRPC knows of. What it would refuse is left out, and reported where somebody wrote it.

Source: gRFC A27 (xDS), A28 (routes), A31 (timeouts), A33 (fault injection), A42 (ring hash), A44
(retries), A50 (outlier detection); Istio, "gRPC Proxyless Service Mesh".
"""

import re
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2 as ec_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_components_pb2 as rc_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)

from meshbus.compile.clusters import ClusterStyle
from meshbus.compile.connections import http_filter
from meshbus.compile.engine import Reader
from meshbus.compile.findings import Finding, Part
from meshbus.compile.http_routes import FAULT_FILTER
from meshbus.compile.locality import Place
from meshbus.compile.names import UDP, service_domains, with_port
from meshbus.compile.resources import CDS, EDS, LDS, RDS, Resource, encode
from meshbus.compile.scope import visible_services
from meshbus.compile.shared_parts import (
    SharedPart,
    merged,
    outbound_assignments,
    outbound_clusters,
)
from meshbus.compile.values import ads, any_of, uint32
from meshbus.compile.virtual_hosts import View, sniffed_routes

# --------------------------------------------------------------------------- listeners, routes


def grpc_listeners(reader: Reader, view: View) -> SharedPart:
    """Node: a listener for every name and port that services are called by."""
    out: dict[str, Resource] = {}
    for host, ref in reader.node(visible_services, view.viewer).items():
        for port in ref.row.ports:
            if port.protocol != UDP:
                routes = with_port(host, port.number)
                for name in service_domains(host, view.namespace):
                    called = with_port(name, port.number)
                    # A full name is its own, whatever short names others have.
                    if called not in out or name == host:
                        out[called] = reader.node(grpc_listener, called, routes)
    return merged([Part(tuple(out.values()))])


def grpc_listener(reader: Reader, name: str, routes: str) -> Resource:
    """Node: the listener of one name, which asks for its routes."""
    manager = hcm_pb2.HttpConnectionManager(
        http_filters=[
            http_filter(FAULT_FILTER, fault_pb2.HTTPFault()),
            http_filter("envoy.filters.http.router", router_pb2.Router()),
        ]
    )
    manager.rds.route_config_name = routes
    manager.rds.config_source.CopyFrom(ads())
    listener = listener_pb2.Listener(name=name)
    listener.api_listener.api_listener.CopyFrom(any_of(manager))
    return encode(reader, LDS, name, listener)


def grpc_routes(reader: Reader, view: View) -> SharedPart:
    """Node: a route configuration for every port of every service."""
    parts = []
    for host, ref in reader.node(visible_services, view.viewer).items():
        for port in ref.row.ports:
            if port.protocol != UDP:
                made = reader.node(sniffed_routes, view, host, port.number)
                kept = tuple(reader.node(grpc_table, resource) for resource in made.resources)
                parts.append(Part(kept, made.findings))
    return merged(parts)


def grpc_table(reader: Reader, resource: Resource) -> Resource:
    """Node: a route configuration as gRPC takes it."""
    table = route_pb2.RouteConfiguration.FromString(resource.body)
    out = route_pb2.RouteConfiguration(name=table.name)
    for shown in table.virtual_hosts:
        made = out.virtual_hosts.add(name=shown.name, domains=shown.domains)
        made.routes.extend(_route(route) for route in shown.routes)
    return encode(reader, RDS, resource.name, out, resource.origins)


def _route(route: rc_pb2.Route) -> rc_pb2.Route:
    out = rc_pb2.Route(name=route.name, match=route.match)
    if route.match.path_separated_prefix:
        prefix = re.escape(route.match.path_separated_prefix)
        out.match.safe_regex.regex = f"{prefix}(/.*)?"
    _keep_faults(route, out)
    if route.WhichOneof("action") != "route":
        # gRPC fails requests of routes that do not lead to a cluster.
        out.non_forwarding_action.SetInParent()
        return out
    action = route.route
    if action.WhichOneof("cluster_specifier") == "cluster":
        out.route.cluster = action.cluster
    else:
        for choice in action.weighted_clusters.clusters:
            kept = out.route.weighted_clusters.clusters.add(name=choice.name, weight=choice.weight)
            _keep_faults(choice, kept)
    if action.timeout.ToNanoseconds() > 0:
        out.route.max_stream_duration.max_stream_duration.CopyFrom(action.timeout)
    if action.HasField("retry_policy"):
        out.route.retry_policy.retry_on = action.retry_policy.retry_on
        out.route.retry_policy.num_retries.CopyFrom(action.retry_policy.num_retries)
        if action.retry_policy.HasField("retry_back_off"):
            out.route.retry_policy.retry_back_off.CopyFrom(action.retry_policy.retry_back_off)
    out.route.hash_policy.extend(action.hash_policy)
    return out


def _keep_faults(source: Any, target: Any) -> None:
    """Of what routes say to filters, what the one filter hears."""
    if FAULT_FILTER in source.typed_per_filter_config:
        target.typed_per_filter_config[FAULT_FILTER].CopyFrom(
            source.typed_per_filter_config[FAULT_FILTER]
        )


# --------------------------------------------------------------------------- clusters, endpoints


def grpc_clusters(reader: Reader, view: View, style: ClusterStyle) -> SharedPart:
    """Node: clusters of everything that a view sees, as far as gRPC can use them."""
    part = reader.node(outbound_clusters, view, style)
    made = [reader.node(grpc_cluster, r) for r in part.resources.values()]
    return merged([Part((), part.findings), *made])


def grpc_cluster(reader: Reader, resource: Resource) -> Part:
    """Node: a cluster as gRPC takes it; nothing, if it cannot use it."""
    source = cluster_pb2.Cluster.FromString(resource.body)
    out = cluster_pb2.Cluster(name=source.name, connect_timeout=source.connect_timeout)
    if source.type == cluster_pb2.Cluster.EDS:
        out.type = cluster_pb2.Cluster.EDS
        out.eds_cluster_config.CopyFrom(source.eds_cluster_config)
    elif _is_one_name(source):
        out.type = cluster_pb2.Cluster.LOGICAL_DNS
        out.load_assignment.CopyFrom(source.load_assignment)
    else:
        return Part()
    if source.HasField("transport_socket"):
        message = "gRPC clients without a proxy speak plaintext: they do not call it"
        losses = (Finding(key, "spec.trafficPolicy.tls", message) for key in resource.origins)
        return Part((), tuple(sorted(f for f in losses if f.object.kind == "destinationrules")))
    if source.lb_policy == cluster_pb2.Cluster.RING_HASH:
        out.lb_policy = cluster_pb2.Cluster.RING_HASH
        out.ring_hash_lb_config.CopyFrom(source.ring_hash_lb_config)
    for limits in source.circuit_breakers.thresholds:
        if limits.HasField("max_requests"):
            kept = out.circuit_breakers.thresholds.add(priority=limits.priority)
            kept.max_requests.CopyFrom(limits.max_requests)
    if source.HasField("outlier_detection"):
        out.outlier_detection.CopyFrom(source.outlier_detection)
    return Part((encode(reader, CDS, out.name, out, resource.origins),))


def _is_one_name(cluster: cluster_pb2.Cluster) -> bool:
    if cluster.type not in (cluster_pb2.Cluster.STRICT_DNS, cluster_pb2.Cluster.LOGICAL_DNS):
        return False
    return sum(len(group.lb_endpoints) for group in cluster.load_assignment.endpoints) == 1


def grpc_endpoints(reader: Reader, view: View, place: Place | None) -> SharedPart:
    """Node: endpoints of everything that a view sees."""
    part = reader.node(outbound_assignments, view, False, place)
    made = tuple(reader.node(grpc_assignment, r) for r in part.resources.values())
    return merged([Part(made, part.findings)])


def grpc_assignment(reader: Reader, resource: Resource) -> Resource:
    """Node: endpoints as gRPC takes them: a locality once for each priority, with a weight, for
    those without are not used; priorities without gaps."""
    source = endpoint_pb2.ClusterLoadAssignment.FromString(resource.body)
    groups: dict[tuple[int, str, str, str], list[ec_pb2.LbEndpoint]] = {}
    weights: dict[tuple[int, str, str, str], int] = {}
    for group in source.endpoints:
        at = group.locality
        mark = (group.priority, at.region, at.zone, at.sub_zone)
        for item in group.lb_endpoints:
            if item.endpoint.address.HasField("socket_address"):
                groups.setdefault(mark, []).append(_endpoint(item))
        if group.HasField("load_balancing_weight"):
            weights[mark] = weights.get(mark, 0) + group.load_balancing_weight.value
    out = endpoint_pb2.ClusterLoadAssignment(cluster_name=source.cluster_name)
    ranks = {p: rank for rank, p in enumerate(sorted({mark[0] for mark in groups}))}
    for mark, items in sorted(groups.items(), key=lambda pair: pair[0]):
        made = out.endpoints.add(priority=ranks[mark[0]], lb_endpoints=items)
        made.locality.region, made.locality.zone, made.locality.sub_zone = mark[1:]
        made.locality.SetInParent()
        total = sum(item.load_balancing_weight.value or 1 for item in items)
        made.load_balancing_weight.CopyFrom(uint32(max(weights.get(mark, total), 1)))
    if source.HasField("policy"):
        out.policy.drop_overloads.extend(source.policy.drop_overloads)
    return encode(reader, EDS, resource.name, out, resource.origins)


def _endpoint(item: ec_pb2.LbEndpoint) -> ec_pb2.LbEndpoint:
    out = ec_pb2.LbEndpoint(health_status=item.health_status)
    out.endpoint.address.CopyFrom(item.endpoint.address)
    if item.HasField("load_balancing_weight"):
        out.load_balancing_weight.CopyFrom(item.load_balancing_weight)
    return out
