"""`http` of a virtual service: Envoy routes, in order.

Source of the rules: Istio, VirtualService reference; pilot/pkg/networking/core/route of 1.31 where
the reference is silent (defaults, order, what wins).
"""

import base64
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2 as rc_pb2
from envoy.extensions.filters.common.fault.v3 import fault_pb2 as common_fault_pb2
from envoy.extensions.filters.http.cors.v3 import cors_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2
from envoy.extensions.retry.priority.previous_priorities.v3 import previous_priorities_config_pb2
from google.protobuf import duration_pb2

from meshbus.compile.connections import Tunnel
from meshbus.compile.delegates import HttpRule, http_rules
from meshbus.compile.findings import NotCompiledError, Report
from meshbus.compile.headings import Labels, qualified_gateway
from meshbus.compile.names import ClusterName, config_path, fqdn
from meshbus.compile.proxy_headers import ProxyHeaders
from meshbus.compile.resources import field
from meshbus.compile.route_match import described, is_catch_all, route_match
from meshbus.compile.sessions import Session, keep_session
from meshbus.compile.settings import MeshSettings
from meshbus.compile.values import (
    any_of,
    boolean,
    duration,
    nanos_of,
    runtime_percent,
    string_matcher,
    uint32,
)
from meshbus.compile.visibility import Ref
from meshbus.compile.written import pairs
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject, Service

CORS_FILTER = "envoy.filters.http.cors"
FAULT_FILTER = "envoy.filters.http.fault"
DEFAULT_RETRY_ON = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
DEFAULT_ROUTE = "default"

_GRPC_STATUS = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
_REDIRECT_CODES = {
    0: rc_pb2.RedirectAction.MOVED_PERMANENTLY,
    301: rc_pb2.RedirectAction.MOVED_PERMANENTLY,
    302: rc_pb2.RedirectAction.FOUND,
    303: rc_pb2.RedirectAction.SEE_OTHER,
    307: rc_pb2.RedirectAction.TEMPORARY_REDIRECT,
    308: rc_pb2.RedirectAction.PERMANENT_REDIRECT,
}


class Conduct(NamedTuple):
    """What a destination rule asks of the caller's side, besides what stands in the cluster."""

    hashing: dict[str, Any] | None = None
    """`consistentHash`."""
    tunnel: Tunnel | None = None
    idle_ns: int | None = None
    """After which a TCP connection without traffic is closed; 0: never, None: Envoy's default."""
    lifetime_ns: int | None = None
    """After which a TCP connection is closed whatever is on it; None: never."""
    session: Session | None = None


@dataclass(frozen=True, slots=True)
class RouteContext:
    """For whom routes are made."""

    namespace: str
    """Of the proxy."""
    port: int
    """That the request came to: of the service for sidecars, of the server for gateways."""
    gateways: frozenset[str]
    """`mesh`, or `NAMESPACE/NAME` of the gateway."""
    sources: frozenset[Labels]
    """Label selectors of routes that pick the proxy."""
    tls: bool
    settings: MeshSettings
    service: Callable[[str], Service | None]
    """The service of a host, as the proxy sees it."""
    read: Callable[[Key], ConfigObject | None]
    """An object by key."""
    policy: Callable[[str, int, str], Conduct]
    """What the destination rules of (host, port, subset) ask of who calls it."""
    headers: ProxyHeaders
    """What the proxy says of itself and callers, in headers."""


def names_gateway(match: dict[str, Any], context: RouteContext, namespace: str) -> bool:
    """`gateways` of a match has where these routes hold."""
    named = (qualified_gateway(str(g), namespace) for g in match.get("gateways") or ())
    return any(name in context.gateways for name in named)


def names_caller(match: dict[str, Any], context: RouteContext) -> bool:
    """`sourceLabels` and `sourceNamespace` of a match pick this proxy, or say nothing."""
    wanted = pairs(match.get("sourceLabels"))
    if wanted and wanted not in context.sources:
        return False
    return match.get("sourceNamespace") in (None, "", context.namespace)


def _source_matches(match: dict[str, Any], context: RouteContext, namespace: str) -> bool:
    """A match of `http` is for this proxy: with gateways given, who calls does not count.

    Source: Istio, sourceMatchHTTP.
    """
    if match.get("gateways"):
        return names_gateway(match, context, namespace)
    return names_caller(match, context)


class Made(NamedTuple):
    """An encoded route, and what it was made of."""

    data: bytes
    """An entry of `VirtualHost.routes`, with tag and length."""
    match: bytes
    """Its `RouteMatch`."""
    source: Key
    path: str
    catches_all: bool


def encode_route(route: rc_pb2.Route) -> bytes:
    """A `VirtualHost.routes` entry.

    Source: envoy/config/route/v3/route_components.proto: VirtualHost.routes=3.
    """
    return field(3, route.SerializeToString(deterministic=True))


def http_routes(vs: Ref, context: RouteContext, report: Report) -> list[Made]:
    """Routes of a virtual service for one port, up to the first that catches everything.

    A rule that cannot be compiled is left out and reported; the others go on.
    """
    out: list[Made] = []
    for item in http_rules(vs, context.read, context.settings, report):
        for number, match in enumerate(item.rule.get("match") or [None]):
            where = item.path if match is None else f"{item.path}.match[{number}]"
            with report.guard(item.source.key, where):
                route = _route(vs, item, match, where, context)
                if route is None:
                    continue
                match_ = route.match.SerializeToString(deterministic=True)
                last = is_catch_all(route.match)
                out.append(Made(encode_route(route), match_, item.source.key, where, last))
                if last:
                    return out
    return out


def joined_routes(made: Iterable[Made], report: Report) -> list[bytes]:
    """Routes of several virtual services for one host, those of older ones first: in order, but the
    one that catches everything at the end. Of two for the same requests the older's counts.

    Source: Istio, buildGatewayHTTPRouteConfig and SortVHostRoutes; here for sidecars too.
    """
    seen: dict[bytes, Made] = {}
    out: list[Made] = []
    for item in made:
        held = seen.setdefault(item.match, item)
        if held is item:
            out.append(item)
        elif held.source != item.source:
            name = f"VirtualService {held.source.namespace}/{held.source.name}"
            report.add(item.source, item.path, f"{name} of the same host is for these requests")
    out.sort(key=lambda item: item.catches_all)
    return [item.data for item in out]


def _route(
    vs: Ref,
    item: HttpRule,
    match: dict[str, Any] | None,
    where: str,
    context: RouteContext,
) -> rc_pb2.Route | None:
    rule, path, namespace = item.rule, item.path, item.source.row.namespace
    if match is not None:
        if match.get("port") and int(match["port"]) != context.port:
            return None
        if not _source_matches(match, context, vs.row.namespace):
            return None
    rule = {**rule, "headers": all_headers(rule)}
    name = str(rule.get("name") or "")
    if match is not None and match.get("name"):
        name = f"{name}.{match['name']}"
    route = rc_pb2.Route(name=name, match=route_match(match, where))
    if match is not None and match.get("statPrefix"):
        route.stat_prefix = str(match["statPrefix"])
    route.metadata.filter_metadata["istio"]["config"] = config_path(
        "virtual-service", vs.row.namespace, vs.row.name
    )
    authority = _apply_headers(route, rule.get("headers"))
    if rule.get("redirect"):
        _redirect(route, rule["redirect"], context, path)
    elif rule.get("directResponse"):
        _direct_response(route, rule["directResponse"], path)
    else:
        _forward(route, rule, namespace, authority, context, path)
    route.decorator.operation = _operation(route, vs, context)
    if rule.get("fault"):
        route.typed_per_filter_config[FAULT_FILTER].CopyFrom(
            any_of(fault(rule["fault"], f"{path}.fault"))
        )
    if rule.get("corsPolicy"):
        route.typed_per_filter_config[CORS_FILTER].CopyFrom(
            any_of(cors(rule["corsPolicy"], f"{path}.corsPolicy"))
        )
    return route


def _operation(route: rc_pb2.Route, vs: Ref, context: RouteContext) -> str:
    path = described(route.match)
    if route.WhichOneof("action") == "route" and route.route.cluster.startswith("outbound|"):
        _, port, _, host = route.route.cluster.split("|")
        return f"{host}:{port}{path}"
    return f"{vs.row.name}:{context.port}{path}"


# --------------------------------------------------------------------------- destinations


def destination_cluster(
    destination: dict[str, Any], namespace: str, context: RouteContext, path: str
) -> ClusterName:
    """The cluster of a `Destination`. It need not exist: requests to it are answered with 503.

    The port is the one given, else the only one of the service, else the one called. A name that
    stands for a service (ExternalName) leads where calls to that service go.

    Source: Istio, GetDestinationCluster.
    """
    host = str(destination.get("host") or "")
    if not host:
        raise NotCompiledError(f"{path}.host", "a host is needed")
    full = fqdn(host, namespace)
    service = context.service(full)
    port = int((destination.get("port") or {}).get("number") or 0)
    if not port:
        only = service is not None and len(service.ports) == 1
        port = service.ports[0].number if service is not None and only else context.port
    return ClusterName(port, str(destination.get("subset") or ""), _concrete(full, context))


def _concrete(host: str, context: RouteContext) -> str:
    """The service that a host stands for: itself, unless it is an alias of another."""
    seen = {host}
    while (service := context.service(host)) is not None and service.external_name:
        target = service.external_name.rstrip(".").lower()
        if target in seen or context.service(target) is None:
            break
        seen.add(target)
        host = target
    return host


def _forward(
    route: rc_pb2.Route,
    rule: dict[str, Any],
    namespace: str,
    authority: str,
    context: RouteContext,
    path: str,
) -> None:
    action = route.route
    given = rule.get("timeout")
    set_timeout(
        action,
        duration_pb2.Duration() if given is None else duration(given, f"{path}.timeout"),
    )
    action.cluster_not_found_response_code = rc_pb2.RouteAction.SERVICE_UNAVAILABLE
    rewrite = rule.get("rewrite") or {}
    pattern = rewrite.get("uriRegexRewrite")
    if pattern:
        action.regex_rewrite.pattern.regex = str(pattern.get("match", ""))
        action.regex_rewrite.substitution = str(pattern.get("rewrite", ""))
    elif rewrite.get("uri"):
        action.prefix_rewrite = str(rewrite["uri"])
    authority = str(rewrite.get("authority") or authority)
    if authority:
        action.host_rewrite_literal = authority
    _mirrors(action, rule, namespace, context, path)
    targets = rule.get("route") or []
    if not targets:
        raise NotCompiledError(path, "one of route, redirect and directResponse is needed")
    hashed = False
    if len(targets) == 1:
        where = f"{path}.route[0].destination"
        cluster = destination_cluster(
            targets[0].get("destination") or {}, namespace, context, where
        )
        action.cluster = str(cluster)
        own = _apply_headers(route, all_headers(targets[0]))
        if own and not authority:
            action.host_rewrite_literal = own
        keep_session(route, _conduct(cluster, context).session)
        hashed = _hash(action, cluster, context)
    else:
        for index, target in enumerate(targets):
            weight = int(target.get("weight") or 0)
            if weight == 0:
                continue
            where = f"{path}.route[{index}].destination"
            cluster = destination_cluster(
                target.get("destination") or {}, namespace, context, where
            )
            entry = action.weighted_clusters.clusters.add(name=str(cluster))
            entry.weight.CopyFrom(uint32(weight))
            own = _apply_headers(entry, all_headers(target))
            if own:
                entry.host_rewrite_literal = own
            keep_session(entry, _conduct(cluster, context).session)
            _hash(action, cluster, context)
        if not action.weighted_clusters.clusters:
            raise NotCompiledError(f"{path}.route", "all weights are 0")
    action.append_x_forwarded_host = context.headers.forwarded_host and _changes_host(action)
    retry = retry_policy(
        rule["retries"] if rule.get("retries") is not None else context.settings.retry_policy,
        hashed,
        f"{path}.retries",
    )
    if retry is not None:
        action.retry_policy.CopyFrom(retry)


def set_timeout(action: rc_pb2.RouteAction, timeout: duration_pb2.Duration) -> None:
    """How long an answer may take, 0: forever; a deadline that a gRPC call brings holds up to that.

    Source: Istio, setTimeout: its successor `max_stream_duration` also ends what streams.
    """
    action.timeout.CopyFrom(timeout)
    action.max_grpc_timeout.CopyFrom(timeout)


def _changes_host(action: rc_pb2.RouteAction) -> bool:
    entries = (action, *action.weighted_clusters.clusters)
    return any(entry.host_rewrite_literal for entry in entries)


def _conduct(cluster: ClusterName, context: RouteContext) -> Conduct:
    return context.policy(cluster.host, cluster.port, cluster.subset)


def _hash(action: rc_pb2.RouteAction, cluster: ClusterName, context: RouteContext) -> bool:
    spec = _conduct(cluster, context).hashing
    policy = hash_policy(spec) if spec else None
    if policy is None:
        return False
    action.hash_policy.append(policy)
    return True


def hash_policy(spec: dict[str, Any]) -> rc_pb2.RouteAction.HashPolicy | None:
    """What `consistentHash` hashes: a header, a cookie, the source address, a query parameter."""
    out = rc_pb2.RouteAction.HashPolicy()
    if spec.get("httpHeaderName"):
        out.header.header_name = str(spec["httpHeaderName"])
    elif spec.get("httpCookie"):
        cookie = spec["httpCookie"]
        out.cookie.name = str(cookie.get("name", ""))
        out.cookie.path = str(cookie.get("path") or "")
        if cookie.get("ttl") is not None:
            out.cookie.ttl.CopyFrom(duration(cookie["ttl"], "consistentHash.httpCookie.ttl"))
        for attribute in cookie.get("attributes") or ():
            out.cookie.attributes.add(
                name=str(attribute.get("name", "")), value=str(attribute.get("value") or "")
            )
    elif spec.get("useSourceIp"):
        out.connection_properties.source_ip = True
    elif spec.get("httpQueryParameterName"):
        out.query_parameter.name = str(spec["httpQueryParameterName"])
    else:
        return None
    return out


def _mirrors(
    action: rc_pb2.RouteAction,
    rule: dict[str, Any],
    namespace: str,
    context: RouteContext,
    path: str,
) -> None:
    wanted: list[tuple[dict[str, Any], float, str]] = []
    if rule.get("mirror"):
        share = 100.0
        if rule.get("mirrorPercentage") is not None:
            share = float(rule["mirrorPercentage"].get("value") or 0)
        elif rule.get("mirrorPercent") is not None:
            share = float(rule["mirrorPercent"])
        wanted.append((rule["mirror"], share, f"{path}.mirror"))
    for index, policy in enumerate(rule.get("mirrors") or ()):
        percentage = policy.get("percentage")
        share = 100.0 if percentage is None else float(percentage.get("value") or 0)
        if policy.get("destination"):
            wanted.append((policy["destination"], share, f"{path}.mirrors[{index}].destination"))
    for destination, share, where in wanted:
        if share > 0:
            cluster = destination_cluster(destination, namespace, context, where)
            mirror = action.request_mirror_policies.add(cluster=str(cluster))
            mirror.runtime_fraction.CopyFrom(runtime_percent(share))
            mirror.trace_sampled.CopyFrom(boolean(False))


# --------------------------------------------------------------------------- parts of a route


def retry_policy(
    spec: dict[str, Any] | None, hashed: bool, path: str = ""
) -> rc_pb2.RetryPolicy | None:
    """How a request is tried again. Without a policy: twice, on failures that happen before the
    request is processed; on another host unless a hash chooses it. `attempts: 0`: never.

    Source: Istio 1.31, pilot/pkg/networking/core/route/retry.
    """
    out = rc_pb2.RetryPolicy(
        retry_on=DEFAULT_RETRY_ON,
        num_retries=uint32(2),
        host_selection_retry_max_attempts=5,
    )
    if not hashed:
        _previous_hosts(out)
    if spec is None:
        return out
    attempts = int(spec.get("attempts") or 0)
    if attempts <= 0:
        return None
    out.num_retries.value = attempts
    if spec.get("retryOn"):
        conditions, codes = _retry_conditions(str(spec["retryOn"]))
        out.retry_on = conditions
        del out.retriable_status_codes[:]
        out.retriable_status_codes.extend(codes)
    if spec.get("perTryTimeout") is not None:
        out.per_try_timeout.CopyFrom(duration(spec["perTryTimeout"], f"{path}.perTryTimeout"))
    if spec.get("retryIgnorePreviousHosts") is not None:
        del out.retry_host_predicate[:]
        if spec["retryIgnorePreviousHosts"]:
            _previous_hosts(out)
    if spec.get("retryRemoteLocalities"):
        out.retry_priority.name = "envoy.retry_priorities.previous_priorities"
        out.retry_priority.typed_config.CopyFrom(
            any_of(previous_priorities_config_pb2.PreviousPrioritiesConfig(update_frequency=2))
        )
    if spec.get("backoff") is not None:
        out.retry_back_off.base_interval.CopyFrom(duration(spec["backoff"], f"{path}.backoff"))
    return out


def _previous_hosts(policy: rc_pb2.RetryPolicy) -> None:
    predicate = policy.retry_host_predicate.add(name="envoy.retry_host_predicates.previous_hosts")
    predicate.typed_config.CopyFrom(any_of(previous_hosts_pb2.PreviousHostsPredicate()))


def _retry_conditions(text: str) -> tuple[str, list[int]]:
    """Conditions and status codes of `retryOn`; a number is a code."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    codes = [int(p) for p in parts if p.isdigit() and 100 <= int(p) <= 599]
    names = [p for p in parts if not (p.isdigit() and 100 <= int(p) <= 599)]
    if codes and "retriable-status-codes" not in names:
        names.append("retriable-status-codes")
    return ",".join(names), codes


def all_headers(spec: dict[str, Any]) -> dict[str, Any]:
    """`headers` of a rule or destination, with what the fields of Istio 1.4 add to them."""
    headers: dict[str, Any] = dict(spec.get("headers") or {})
    for side, added, removed in (
        ("request", ("appendHeaders", "appendRequestHeaders"), "removeRequestHeaders"),
        ("response", ("appendResponseHeaders",), "removeResponseHeaders"),
    ):
        add = {k: v for field in added for k, v in (spec.get(field) or {}).items()}
        remove = list(spec.get(removed) or ())
        if add or remove:
            own = dict(headers.get(side) or {})
            own["add"] = {**add, **(own.get("add") or {})}
            own["remove"] = [*(own.get("remove") or ()), *remove]
            headers[side] = own
    return headers


def _apply_headers(target: Any, headers: dict[str, Any] | None) -> str:
    """Set, add and remove headers on a route or a weighted cluster. Returns the authority that they
    set, which Envoy changes by a rewrite instead."""
    if not headers:
        return ""
    authority = ""
    for side, add, remove in (
        ("request", target.request_headers_to_add, target.request_headers_to_remove),
        ("response", target.response_headers_to_add, target.response_headers_to_remove),
    ):
        operations = headers.get(side) or {}
        for verb, action in (
            ("set", base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD),
            ("add", base_pb2.HeaderValueOption.APPEND_IF_EXISTS_OR_ADD),
        ):
            for name in sorted(operations.get(verb) or {}):
                value = str(operations[verb][name])
                if name.lower() in {":authority", "host"}:
                    if side == "request" and (verb == "set" or not authority):
                        authority = value
                elif not name.startswith(":"):
                    add.append(
                        base_pb2.HeaderValueOption(
                            header=base_pb2.HeaderValue(key=name, value=value),
                            append_action=action,
                        )
                    )
        remove.extend(
            str(n)
            for n in operations.get("remove") or ()
            if not str(n).startswith(":") and str(n).lower() != "host"
        )
    return authority


def _redirect(route: rc_pb2.Route, spec: dict[str, Any], context: RouteContext, path: str) -> None:
    action = route.redirect
    code = int(spec.get("redirectCode") or 0)
    if code not in _REDIRECT_CODES:
        raise NotCompiledError(f"{path}.redirect.redirectCode", f"unknown redirect code {code}")
    action.response_code = _REDIRECT_CODES[code]
    if spec.get("authority"):
        action.host_redirect = str(spec["authority"])
    if spec.get("uri"):
        action.path_redirect = str(spec["uri"])
    elif spec.get("prefixRewrite"):
        action.prefix_rewrite = str(spec["prefixRewrite"])
    if spec.get("scheme"):
        action.scheme_redirect = str(spec["scheme"])
    port = int(spec.get("port") or 0)
    if spec.get("derivePort") == "FROM_REQUEST_PORT":
        port = context.port
    scheme = spec.get("scheme") or ("https" if context.tls else "http")
    if (port, scheme) not in {(80, "http"), (443, "https")}:
        action.port_redirect = port


def _direct_response(route: rc_pb2.Route, spec: dict[str, Any], path: str) -> None:
    status = int(spec.get("status") or 0)
    if not 200 <= status <= 599:
        raise NotCompiledError(f"{path}.directResponse.status", f"not a status: {status}")
    route.direct_response.status = status
    body = spec.get("body") or {}
    if "string" in body:
        route.direct_response.body.inline_string = str(body["string"])
    elif "bytes" in body:
        route.direct_response.body.inline_bytes = base64.b64decode(body["bytes"])


def fault(spec: dict[str, Any], path: str) -> fault_pb2.HTTPFault:
    """Delays and aborts. Without a percentage nothing happens, as in Istio."""
    out = fault_pb2.HTTPFault()
    delay = spec.get("delay")
    if delay:
        if "fixedDelay" not in delay:
            raise NotCompiledError(f"{path}.delay", "only fixedDelay is supported")
        out.delay.CopyFrom(
            common_fault_pb2.FaultDelay(
                fixed_delay=duration(delay["fixedDelay"], f"{path}.delay.fixedDelay"),
                percentage=runtime_percent(_share(delay)).default_value,
            )
        )
    abort = spec.get("abort")
    if abort:
        out.abort.percentage.CopyFrom(runtime_percent(_share(abort)).default_value)
        if abort.get("httpStatus") is not None:
            out.abort.http_status = int(abort["httpStatus"])
        elif abort.get("grpcStatus"):
            name = str(abort["grpcStatus"]).upper()
            if name not in _GRPC_STATUS:
                raise NotCompiledError(f"{path}.abort.grpcStatus", f"unknown gRPC status {name}")
            out.abort.grpc_status = _GRPC_STATUS.index(name)
        else:
            raise NotCompiledError(f"{path}.abort", "httpStatus or grpcStatus is needed")
    return out


def _share(spec: dict[str, Any]) -> float:
    if spec.get("percentage") is not None:
        return float(spec["percentage"].get("value") or 0)
    return float(spec.get("percent") or 0)


def cors(spec: dict[str, Any], path: str) -> cors_pb2.CorsPolicy:
    """Cross-origin requests."""
    out = cors_pb2.CorsPolicy(filter_enabled=runtime_percent(100))
    out.forward_not_matching_preflights.CopyFrom(
        boolean(spec.get("unmatchedPreflights") != "IGNORE")
    )
    origins = spec.get("allowOrigins")
    if origins is None:
        origins = [{"exact": origin} for origin in spec.get("allowOrigin") or ()]
    for index, origin in enumerate(origins):
        out.allow_origin_string_match.append(
            string_matcher(origin, f"{path}.allowOrigins[{index}]")
        )
    out.allow_methods = ",".join(spec.get("allowMethods") or ())
    out.allow_headers = ",".join(spec.get("allowHeaders") or ())
    out.expose_headers = ",".join(spec.get("exposeHeaders") or ())
    if spec.get("maxAge") is not None:
        out.max_age = str(nanos_of(str(spec["maxAge"]), f"{path}.maxAge") // 1_000_000_000)
    if spec.get("allowCredentials") is not None:
        out.allow_credentials.CopyFrom(boolean(bool(spec["allowCredentials"])))
    return out


def default_route(
    cluster: str,
    operation: str,
    settings: MeshSettings,
    hashing: dict[str, Any] | None,
    session: Session | None = None,
) -> rc_pb2.Route:
    """All requests to one cluster: what a service without virtual service gets."""
    route = rc_pb2.Route(name=DEFAULT_ROUTE, match=route_match(None, ""))
    route.decorator.operation = operation
    route.route.cluster = cluster
    set_timeout(route.route, duration_pb2.Duration())
    route.route.cluster_not_found_response_code = rc_pb2.RouteAction.SERVICE_UNAVAILABLE
    policy = hash_policy(hashing) if hashing else None
    if policy is not None:
        route.route.hash_policy.append(policy)
    retry = retry_policy(settings.retry_policy, False)
    if retry is not None:
        route.route.retry_policy.CopyFrom(retry)
    keep_session(route, session)
    return route
