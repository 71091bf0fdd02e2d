"""Clusters: one for each port of a service, and for each subset of each port."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from envoy.config.cluster.v3 import cluster_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2

from meshbus.api.addresses import is_ip
from meshbus.compile.credential_names import is_config_map
from meshbus.compile.dynamic_names import DYNAMIC_DNS, resolve_as_named
from meshbus.compile.endpoints import (
    all_mutual,
    assignment,
    bare_endpoint,
    encode_endpoint,
    encoded_endpoint,
    service_identities,
)
from meshbus.compile.engine import Reader
from meshbus.compile.families import Families
from meshbus.compile.findings import Part, Report
from meshbus.compile.health_checks import apply_health_check
from meshbus.compile.locality import Place, Ranking, is_on, ranking_of, zone_setting
from meshbus.compile.names import (
    AS_NAMED,
    BLACK_HOLE,
    INBOUND_PASSTHROUGH,
    PASSTHROUGH,
    UDP,
    ClusterName,
    config_path,
    inbound_cluster,
    is_http,
    is_wildcard,
    spiffe,
)
from meshbus.compile.networks import networks
from meshbus.compile.proxy_headers import keep_upstream_case
from meshbus.compile.proxy_logs import LOG_SERVICE
from meshbus.compile.resources import CDS, Resource, encode
from meshbus.compile.sessions import apply_session
from meshbus.compile.settings import MeshSettings, mesh
from meshbus.compile.stat_names import outbound_stat_name
from meshbus.compile.telemetry import CONTROL_SERVICES, control_cluster
from meshbus.compile.tls_contexts import (
    control_plane_client,
    mesh_alpn,
    mesh_client,
    originated,
    plaintext,
    socket,
)
from meshbus.compile.traffic_policy import (
    NO_RULE,
    Rule,
    Subset,
    apply_connection_pool,
    apply_error_codes,
    apply_load_balancer,
    apply_locality,
    apply_options,
    apply_outlier_detection,
    apply_protocol,
    apply_proxy_protocol,
    apply_zones,
    dns_refresh,
    merged_rule,
    policy_in_force,
)
from meshbus.compile.values import address, ads, seconds, uint32
from meshbus.model.keys import Key
from meshbus.model.rows import Endpoint, Service, ServicePort
from meshbus.model.world import Query

A_YEAR_S = 31_536_000
MESH = Key("", "mesh", "config", "", "mesh")
"""Stands for the mesh config in findings."""


class ClusterStyle(NamedTuple):
    """What about a proxy changes its outbound clusters."""

    router: bool
    captured: bool
    """Original destinations are known: a sidecar with captured traffic."""
    families: Families
    place: Place | None = None
    """Where the proxy is, for what is resolved by itself; None for services not ranked by it."""
    keep_case: bool = False
    """See `ProxyHeaders.keep_case`."""
    zoned: bool = False
    """The proxy knows the zones of its own kind, for some of its clusters."""
    buffer: int | None = None
    """See `ConnectionSettings.cluster_buffer`."""


def limit_buffers(cluster: cluster_pb2.Cluster, size: int | None) -> None:
    """How many bytes are kept of a connection to it; None: as many as Envoy likes."""
    if size is not None:
        cluster.per_connection_buffer_limit_bytes.CopyFrom(uint32(size))


def service_clusters(
    reader: Reader, service: Key, rules: tuple[Key, ...], style: ClusterStyle
) -> Part:
    """Node: clusters of one service under the destination rules that apply to it."""
    row: Service | None = reader.get(service)
    if row is None:
        return Part()
    rule = reader.node(merged_rule, rules) if rules else NO_RULE
    report = Report()
    report.extend(rule.losses)
    out: list[Resource] = []
    for port in row.ports:
        if port.protocol == UDP:
            continue
        for subset in (None, *rule.subsets):
            built = _cluster(reader, service, row, port, rule, subset, style, report)
            if built is not None:
                limit_buffers(built, style.buffer)
                origins = _origins(service, row, rule, subset)
                out.append(encode(reader, CDS, built.name, built, origins))
    return Part(tuple(out), report.findings())


def _origins(service: Key, row: Service, rule: Rule, subset: Subset | None) -> list[Key]:
    origins = [source_key(service, row)]
    if subset is not None:
        origins.append(subset.origin)
    if rule.policy_origin is not None:
        origins.append(rule.policy_origin)
    elif subset is None and rule.origins:
        origins.append(rule.origins[0])
    return origins


def source_key(service: Key, row: Service) -> Key:
    """Key of the object that a service came from; the service's own when that is not known."""
    table, _, rest = row.source.partition("/")
    plane, _, kind = table.partition(".")
    namespace, slash, name = rest.partition("/")
    return Key(service.cluster, plane, kind, namespace, name) if slash else service


def _cluster(
    reader: Reader,
    service: Key,
    row: Service,
    port: ServicePort,
    rule: Rule,
    subset: Subset | None,
    style: ClusterStyle,
    report: Report,
) -> cluster_pb2.Cluster | None:
    settings = reader.node(mesh)
    policy = _policy(row, rule, port, subset, settings)
    ranking = ranking_of(policy, settings, row)
    name = ClusterName(port.number, subset.name if subset else "", row.host)
    cluster = cluster_pb2.Cluster(name=str(name))
    cluster.alt_stat_name = outbound_stat_name(settings.outbound_stat_name, row, port, name.subset)
    options = http_protocol_options_pb2.HttpProtocolOptions()
    fault = subset.origin if subset and subset.policy else rule.policy_origin
    blame = fault or (rule.origins[0] if rule.origins else Key("", "", "", "", ""))
    place = subset.path if subset else "spec"
    if not _discovery(cluster, row, port, subset, style, ranking, settings):
        message = f"{row.host}: a wildcard host without resolution needs captured traffic"
        report.add(source_key(service, row), "spec.hosts", message)
        return None
    _metadata(cluster, row, rule, subset)
    with report.guard(blame, place):
        apply_connection_pool(cluster, options, policy, settings)
    http2 = apply_protocol(options, port.protocol, policy, settings, router=style.router)
    if style.keep_case:
        keep_upstream_case(options)
    with report.guard(blame, place):
        apply_outlier_detection(cluster, policy)
        apply_error_codes(options, policy)
    with report.guard(blame, place):
        heeded = _choose_endpoints(cluster, row, port, policy, settings, zoned=style.zoned)
        if not heeded and _chooses(policy):
            field = f"{place}.trafficPolicy.loadBalancer.zoneAwareLbSetting"
            report.add(blame, field, f"{row.host}: zones have no say beside {_chooses(policy)}")
    if not cluster.HasField("connect_timeout"):
        cluster.connect_timeout.CopyFrom(seconds(10))
    with report.guard(blame, place):
        apply_health_check(cluster, rule.health)
    with report.guard(blame, place):
        apply_session(cluster, rule.session, row)
    with report.guard(blame, place):
        if not (style.router or rule.selects):
            policy = _without_secrets(policy)
        _transport(reader, cluster, options, row, port, name, policy, settings, http2)
        apply_proxy_protocol(cluster, policy)
    if is_http(port.protocol) or port.protocol == "" or _has_common(options):
        apply_options(cluster, options)
    return cluster


def _policy(
    row: Service, rule: Rule, port: ServicePort, subset: Subset | None, settings: MeshSettings
) -> dict[str, Any]:
    own = policy_in_force(rule, port.number, subset, affinity=row.session_affinity)
    return {**settings.default_traffic, **own}


def _choose_endpoints(
    cluster: cluster_pb2.Cluster,
    row: Service,
    port: ServicePort,
    policy: dict[str, Any],
    settings: MeshSettings,
    *,
    zoned: bool,
) -> bool:
    """Which endpoint is called. False: zones are asked for, and have no say."""
    if row.resolution != DYNAMIC_DNS:
        if cluster.type != cluster_pb2.Cluster.ORIGINAL_DST:
            apply_locality(cluster, ranking_of(policy, settings, row))
        apply_load_balancer(cluster, policy, port.protocol)
    return apply_zones(cluster, zone_setting(policy, settings, row), elsewhere=zoned)


def _chooses(policy: dict[str, Any]) -> str:
    """What of a load balancer that speaks of zones leaves them no say."""
    balancer = policy.get("loadBalancer") or {}
    if not is_on(balancer.get("zoneAwareLbSetting")):
        return ""
    if balancer.get("simple") == "PASSTHROUGH":
        return "simple: PASSTHROUGH"
    return "consistentHash" if balancer.get("consistentHash") is not None else ""


def _without_secrets(policy: dict[str, Any]) -> dict[str, Any]:
    """As sidecars follow a rule that is for all: a Secret is for gateways, and TLS with it begins
    there. Authorities in a ConfigMap are for everybody. Source: networking
    ClientTLSSettings.credentialName; Istio, ClusterBuilder.buildUpstreamClusterTLSContext."""
    tls = policy.get("tls") or {}
    name = str(tls.get("credentialName") or "")
    if name and not is_config_map(name) and tls.get("mode") in ("SIMPLE", "MUTUAL"):
        return {**policy, "tls": {"mode": "DISABLE"}}
    return policy


def _has_common(options: http_protocol_options_pb2.HttpProtocolOptions) -> bool:
    fields = (
        "common_http_protocol_options",
        "upstream_http_protocol_options",
        "outlier_detection",
    )
    return any(options.HasField(field) for field in fields)


def _discovery(
    cluster: cluster_pb2.Cluster,
    row: Service,
    port: ServicePort,
    subset: Subset | None,
    style: ClusterStyle,
    ranking: Ranking | None,
    settings: MeshSettings,
) -> bool:
    """How endpoints are found. False: this service cannot be reached in this capture mode."""
    if row.external_name:
        _dns(cluster, [(row.external_name, port.number, None)], style, settings, logical=True)
        return True
    if row.resolution.startswith("DNS"):
        targets = _dns_targets(row.dns_endpoints, port, subset)
        if not row.dns_endpoints:
            targets = [(row.host, port.target_port or port.number, None)]
        logical = row.resolution == "DNS_ROUND_ROBIN"
        _dns(cluster, targets, style, settings, logical=logical, ranking=ranking)
        return True
    if row.resolution == DYNAMIC_DNS:
        resolve_as_named(cluster, style.families)
        return True
    if row.resolution == "NONE":
        behind = port.target_port or port.number
        if style.captured:
            _original_destination(cluster)
            if behind != port.number:
                cluster.original_dst_lb_config.upstream_port_override.CopyFrom(uint32(behind))
            return True
        if is_wildcard(row.host):
            return False
        _dns(cluster, [(row.host, behind, None)], style, settings, logical=False)
        return True
    if row.headless and style.captured:
        _original_destination(cluster)
        return True
    cluster.type = cluster_pb2.Cluster.EDS
    cluster.eds_cluster_config.service_name = cluster.name
    cluster.eds_cluster_config.eds_config.CopyFrom(ads())
    return True


def _dns_targets(
    endpoints: Iterable[Endpoint], port: ServicePort, subset: Subset | None
) -> list[tuple[str, int, Endpoint | None]]:
    """Name, port and endpoint of each of a subset."""
    return [
        (e.addresses[0], e.ports.get(port.name, port.target_port or port.number), e)
        for e in endpoints
        if e.addresses and (subset is None or subset.labels.items() <= e.labels.items())
    ]


def _original_destination(cluster: cluster_pb2.Cluster) -> None:
    cluster.type = cluster_pb2.Cluster.ORIGINAL_DST
    cluster.lb_policy = cluster_pb2.Cluster.CLUSTER_PROVIDED


def _dns(
    cluster: cluster_pb2.Cluster,
    targets: Iterable[tuple[str, int, Endpoint | None]],
    style: ClusterStyle,
    settings: MeshSettings,
    *,
    logical: bool,
    ranking: Ranking | None = None,
) -> None:
    targets = list(targets)
    logical = logical and len(targets) == 1
    cluster.type = cluster_pb2.Cluster.LOGICAL_DNS if logical else cluster_pb2.Cluster.STRICT_DNS
    cluster.dns_lookup_family = style.families.lookup
    dns_refresh(cluster, settings)
    members = [
        encoded_endpoint(e, encode_endpoint(e, port, e.tls_mode == "istio", host=host))
        if e is not None
        else bare_endpoint(host, port)
        for host, port, e in targets
    ]
    cluster.load_assignment.ParseFromString(assignment(cluster.name, members, ranking, style.place))


def _metadata(
    cluster: cluster_pb2.Cluster, row: Service, rule: Rule, subset: Subset | None
) -> None:
    """`istio` metadata: which service, which rule, which subset; read by telemetry."""
    fields: dict[str, Any] = {
        "services": [{"host": row.host, "name": row.name, "namespace": row.namespace}]
    }
    if rule.origins:
        origin = subset.origin if subset else rule.origins[0]
        fields["config"] = config_path("destination-rule", origin.namespace, origin.name)
    if subset is not None:
        fields["subset"] = subset.name
    cluster.metadata.filter_metadata["istio"].update(fields)


def _transport(
    reader: Reader,
    cluster: cluster_pb2.Cluster,
    options: http_protocol_options_pb2.HttpProtocolOptions,
    row: Service,
    port: ServicePort,
    name: ClusterName,
    policy: dict[str, Any],
    settings: MeshSettings,
    http2: bool,
) -> None:
    tls = policy.get("tls")
    mode = (tls or {}).get("mode")
    if tls is not None and mode in (None, "", "DISABLE"):
        return
    alpn = mesh_alpn(port.protocol, http2)
    if tls is not None and mode == "ISTIO_MUTUAL":
        names = tls.get("subjectAltNames") or _identities(reader, row)
        cluster.transport_socket.CopyFrom(
            socket(mesh_client(str(tls.get("sni") or name.sni), names, alpn))
        )
        return
    if tls is not None:
        context = originated(
            {**tls, "subjectAltNames": tls.get("subjectAltNames") or row.subject_alt_names},
            http2,
            settings.tls_defaults,
        )
        if not context.sni:
            upstream = options.upstream_http_protocol_options
            upstream.auto_sni = True
            upstream.auto_san_validation = not (
                tls.get("subjectAltNames") or row.subject_alt_names or tls.get("insecureSkipVerify")
            )
        cluster.transport_socket.CopyFrom(socket(context))
        return
    if not settings.auto_mtls or row.external or row.resolution == DYNAMIC_DNS:
        return
    context = mesh_client(name.sni, _identities(reader, row), alpn)
    if cluster.type == cluster_pb2.Cluster.ORIGINAL_DST:
        # Hosts of this type have no metadata to choose by.
        if reader.node(all_mutual, row.namespace, row.host):
            cluster.transport_socket.CopyFrom(socket(context))
        return
    match = cluster.transport_socket_matches.add(name="tlsMode-istio")
    match.match["tlsMode"] = "istio"
    match.transport_socket.CopyFrom(socket(context))
    match = cluster.transport_socket_matches.add(name="tlsMode-disabled")
    match.match.SetInParent()
    match.transport_socket.CopyFrom(plaintext())


def _identities(reader: Reader, row: Service) -> tuple[str, ...]:
    found = reader.node(service_identities, row.namespace, row.host)
    if row.dns_endpoints:
        domain = reader.node(mesh).trust_domain
        found += tuple(
            spiffe(domain, e.namespace or row.namespace, e.service_account)
            for e in row.dns_endpoints
            if e.service_account
        )
    names = {*found, *row.subject_alt_names}
    settings = reader.node(mesh)
    own = f"spiffe://{settings.trust_domain}/"
    for alias in settings.trust_domain_aliases:
        # While a trust domain is renamed, servers have certificates of either.
        names |= {f"spiffe://{alias}/" + n.removeprefix(own) for n in names if n.startswith(own)}
    return tuple(sorted(names))


def is_named(row: Service) -> bool:
    """Gateways pass on connections that name it by SNI: a service of this mesh.

    Source: Istio, buildOutboundSniDnatClusters.
    """
    return not (row.external or row.external_name or row.resolution == DYNAMIC_DNS)


def named_clusters(
    reader: Reader, service: Key, rules: tuple[Key, ...], style: ClusterStyle, network: str
) -> Part:
    """Node: clusters of a service for connections that name it by SNI at a gateway of a network:
    the mutual TLS of the caller goes through to the endpoints. What destination rules say of how
    the service is called holds, but for TLS; what cannot be followed is told where its own clusters
    are made."""
    row: Service | None = reader.get(service)
    if row is None or not is_named(row):
        return Part()
    rule = reader.node(merged_rule, rules) if rules else NO_RULE
    settings = reader.node(mesh)
    out = []
    for port in row.ports:
        if port.protocol == UDP:
            continue
        for subset in (None, *rule.subsets):
            policy = _policy(row, rule, port, subset, settings)
            built = _named_cluster(row, port, subset, policy, settings, style, network)
            limit_buffers(built, style.buffer)
            origins = _origins(service, row, rule, subset)
            out.append(encode(reader, CDS, built.name, built, origins))
    return Part(tuple(out))


def _named_cluster(
    row: Service,
    port: ServicePort,
    subset: Subset | None,
    policy: dict[str, Any],
    settings: MeshSettings,
    style: ClusterStyle,
    network: str,
) -> cluster_pb2.Cluster:
    name = ClusterName(port.number, subset.name if subset else "", row.host).sni
    cluster = cluster_pb2.Cluster(name=name, connect_timeout=seconds(10))
    if row.resolution.startswith("DNS"):
        mutual = [e for e in row.dns_endpoints if e.tls_mode == "istio"]
        near = [e for e in mutual if e.network in ("", network)]
        targets = _dns_targets(near, port, subset)
        logical, ranking = row.resolution == "DNS_ROUND_ROBIN", ranking_of(policy, settings, row)
        _dns(cluster, targets, style, settings, logical=logical, ranking=ranking)
    else:
        cluster.type = cluster_pb2.Cluster.EDS
        cluster.eds_cluster_config.service_name = name
        cluster.eds_cluster_config.eds_config.CopyFrom(ads())
    elsewhere = Report()
    with elsewhere.guard(MESH, name):
        options = http_protocol_options_pb2.HttpProtocolOptions()
        apply_connection_pool(cluster, options, policy, settings)
    with elsewhere.guard(MESH, name):
        apply_outlier_detection(cluster, policy)
    with elsewhere.guard(MESH, name):
        if (policy.get("loadBalancer") or {}).get("simple") == "PASSTHROUGH":
            # Connections come to the gateway's own address.
            policy = {**policy, "loadBalancer": {}}
        _choose_endpoints(cluster, row, port, policy, settings, zoned=style.zoned)
    return cluster


# --------------------------------------------------------------------------- fixed clusters


def fixed_clusters(reader: Reader, style: ClusterStyle) -> Part:
    """Node: clusters that every proxy of a style has: black hole, passthrough, control plane."""
    report = Report()
    report.extend(reader.node(networks).findings)
    out = [cluster_pb2.Cluster(name=BLACK_HOLE, type=cluster_pb2.Cluster.STATIC)]
    passthrough = cluster_pb2.Cluster(
        name=PASSTHROUGH, lb_policy=cluster_pb2.Cluster.CLUSTER_PROVIDED
    )
    options = http_protocol_options_pb2.HttpProtocolOptions()
    options.use_downstream_protocol_config.http_protocol_options.SetInParent()
    options.use_downstream_protocol_config.http2_protocol_options.SetInParent()
    settings = reader.node(mesh)
    apply_connection_pool(passthrough, options, settings.default_pool, settings)
    if style.captured:
        passthrough.type = cluster_pb2.Cluster.ORIGINAL_DST
    else:
        resolve_as_named(passthrough, style.families)
    if style.keep_case:
        keep_upstream_case(options)
    apply_options(passthrough, options)
    if not style.router:
        out.append(passthrough)
        if settings.dynamic_dns:
            with report.guard(MESH, "outboundTrafficPolicy.tls"):
                out.append(_as_named(AS_NAMED, settings, style, settings.dynamic_tls or {}))
    for cluster in out:
        cluster.connect_timeout.CopyFrom(seconds(10))
    if style.captured:
        out.append(_inbound_passthrough(settings, style))
    for cluster in out:
        if cluster.name != BLACK_HOLE:
            limit_buffers(cluster, style.buffer)
    if settings.log_service.get("address") and any(
        log.cluster == LOG_SERVICE for log in settings.logs.remote
    ):
        with report.guard(MESH, "defaultConfig.envoyAccessLogService"):
            out.append(_log_service(settings, style))
    out += [
        _control(entry.row.service, entry.row.host, entry.row.port, settings)
        for entry in reader.entries(Query("mesh.addresses", "all", None))
        if entry.row.service in CONTROL_SERVICES
    ]
    return Part(tuple(encode(reader, CDS, c.name, c) for c in out), report.findings())


def _as_named(
    name: str, settings: MeshSettings, style: ClusterStyle, tls: dict[str, Any]
) -> cluster_pb2.Cluster:
    """Requests to unknown hosts go where their names lead; `tls` holds towards all of them."""
    cluster = cluster_pb2.Cluster(name=name, connect_timeout=seconds(10))
    resolve_as_named(cluster, style.families)
    options = http_protocol_options_pb2.HttpProtocolOptions()
    apply_connection_pool(cluster, options, settings.default_pool, settings)
    if tls.get("mode") in ("SIMPLE", "MUTUAL") and not tls.get("credentialName"):
        options.explicit_http_config.http_protocol_options.SetInParent()
        cluster.transport_socket.CopyFrom(socket(originated(tls, False, settings.tls_defaults)))
        if not tls.get("sni"):
            checked = not (tls.get("subjectAltNames") or tls.get("insecureSkipVerify"))
            options.upstream_http_protocol_options.auto_sni = True
            options.upstream_http_protocol_options.auto_san_validation = checked
    else:
        options.use_downstream_protocol_config.http_protocol_options.SetInParent()
        options.use_downstream_protocol_config.http2_protocol_options.SetInParent()
    apply_options(cluster, options)
    return cluster


def _control(service: str, host: str, port: int, settings: MeshSettings) -> cluster_pb2.Cluster:
    cluster = cluster_pb2.Cluster(
        name=control_cluster(service),
        type=cluster_pb2.Cluster.STATIC,
        connect_timeout=seconds(5),
    )
    if not is_ip(host):
        cluster.type = cluster_pb2.Cluster.STRICT_DNS
        cluster.dns_lookup_family = cluster_pb2.Cluster.V4_PREFERRED
        dns_refresh(cluster, settings)
    cluster.load_assignment.cluster_name = cluster.name
    lb = cluster.load_assignment.endpoints.add().lb_endpoints.add()
    lb.endpoint.address.CopyFrom(address(host, port))
    options = http_protocol_options_pb2.HttpProtocolOptions()
    h2 = options.explicit_http_config.http2_protocol_options
    h2.connection_keepalive.interval.CopyFrom(seconds(30))
    h2.connection_keepalive.timeout.CopyFrom(seconds(10))
    apply_options(cluster, options)
    cluster.transport_socket.CopyFrom(
        control_plane_client(
            spiffe(settings.trust_domain, settings.root_namespace, f"meshbus-{service}")
        )
    )
    return cluster


def _log_service(settings: MeshSettings, style: ClusterStyle) -> cluster_pb2.Cluster:
    """Whom access logs are sent to, by `envoyAccessLogService` of `defaultConfig`."""
    wish = settings.log_service
    cluster = cluster_pb2.Cluster(name=LOG_SERVICE, connect_timeout=seconds(5))
    host, _, port = str(wish["address"]).rpartition(":")
    host = host.strip("[]")
    if is_ip(host):
        cluster.type = cluster_pb2.Cluster.STATIC
        cluster.load_assignment.ParseFromString(
            assignment(LOG_SERVICE, [bare_endpoint(host, int(port))])
        )
    else:
        _dns(cluster, [(host, int(port), None)], style, settings, logical=False)
    options = http_protocol_options_pb2.HttpProtocolOptions()
    keepalive = {"tcp": {"tcpKeepalive": wish["tcpKeepalive"]}} if wish.get("tcpKeepalive") else {}
    apply_connection_pool(cluster, options, {"connectionPool": keepalive}, settings)
    options.explicit_http_config.http2_protocol_options.SetInParent()
    apply_options(cluster, options)
    tls = wish.get("tlsSettings") or {}
    if tls.get("mode") == "ISTIO_MUTUAL":
        sni = str(tls.get("sni") or ("" if is_ip(host) else host))
        names = tls.get("subjectAltNames") or ()
        context = mesh_client(sni, names, mesh_alpn("grpc", http2=True))
        cluster.transport_socket.CopyFrom(socket(context))
    elif tls.get("mode") in ("SIMPLE", "MUTUAL"):
        cluster.transport_socket.CopyFrom(socket(originated(tls, True, settings.tls_defaults)))
    return cluster


def _inbound_passthrough(settings: MeshSettings, style: ClusterStyle) -> cluster_pb2.Cluster:
    """Ports of the application that no service names: sent from 127.0.0.6, so that capture leaves
    them alone."""
    cluster = cluster_pb2.Cluster(name=INBOUND_PASSTHROUGH)
    _original_destination(cluster)
    options = http_protocol_options_pb2.HttpProtocolOptions()
    options.use_downstream_protocol_config.http_protocol_options.SetInParent()
    options.use_downstream_protocol_config.http2_protocol_options.SetInParent()
    apply_connection_pool(cluster, options, settings.default_pool, settings)
    if style.keep_case:
        keep_upstream_case(options)
    apply_options(cluster, options)
    _from_inpod_address(cluster, style.families)
    return cluster


def _from_inpod_address(cluster: cluster_pb2.Cluster, families: Families) -> None:
    source = cluster.upstream_bind_config.source_address
    first, *others = families.sources
    source.address = first
    source.port_value = 0
    for other in others:
        extra = cluster.upstream_bind_config.extra_source_addresses.add().address
        extra.address = other
        extra.port_value = 0


def inbound_application(
    settings: MeshSettings,
    port: int,
    protocol: str,
    app_address: str,
    families: Families,
    policy: dict[str, Any],
    *,
    keep_case: bool = False,
) -> cluster_pb2.Cluster:
    """The application behind a sidecar: at its own address, at localhost where the mesh says so
    (`inboundTrafficPolicy`), or where the traffic was going.
    `policy`: limits towards it, as a traffic policy has them."""
    cluster = cluster_pb2.Cluster(name=inbound_cluster(port))
    options = http_protocol_options_pb2.HttpProtocolOptions()
    apply_connection_pool(cluster, options, policy, settings)
    apply_protocol(options, protocol, {}, MeshSettings())
    if keep_case:
        keep_upstream_case(options)
    apply_options(cluster, options)
    if app_address or settings.inbound_localhost:
        cluster.type = cluster_pb2.Cluster.STATIC
        cluster.load_assignment.cluster_name = cluster.name
        group = cluster.load_assignment.endpoints.add()
        where = address(app_address or families.localhost, port)
        group.lb_endpoints.add().endpoint.address.CopyFrom(where)
    else:
        _original_destination(cluster)
        # An application's address stays: its connections outlive pauses between requests.
        # Source: Istio, buildInboundCluster.
        cluster.cleanup_interval.CopyFrom(seconds(A_YEAR_S))
        _from_inpod_address(cluster, families)
    return cluster
