"""Rules of one HTTP route of a VirtualService.

Source: https://istio.io/latest/docs/reference/config/networking/virtual-service/#HTTPRoute
"""

from http import HTTPStatus

from msgspec import UnsetType

from meshbus.api.durations import SECOND_NS, nanoseconds
from meshbus.api.networking.virtual_service import (
    CorsPolicy,
    HTTPDirectResponse,
    HTTPFaultInjection,
    HTTPMatchRequest,
    HTTPRedirect,
    HTTPRetry,
    HTTPRewrite,
    HTTPRoute,
    Percent,
)
from meshbus.validate.destinations import check_destination, check_weighted
from meshbus.validate.durations import duration_problem
from meshbus.validate.http_headers import check_headers, check_matched_name, is_authority
from meshbus.validate.malformed import independent
from meshbus.validate.matches import check_string_match, regex_problem
from meshbus.validate.names import is_header_name, is_label
from meshbus.validate.report import Findings
from meshbus.validate.targets import check_gateway_names, check_labels

_METHODS = frozenset(
    {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE", "*"}
)
_RETRY_ON = frozenset(
    {
        "5xx",
        "gateway-error",
        "reset",
        "reset-before-request",
        "connect-failure",
        "retriable-4xx",
        "refused-stream",
        "retriable-status-codes",
        "retriable-headers",
        "envoy-ratelimited",
        "http3-post-connect-failure",
        "cancelled",
        "deadline-exceeded",
        "internal",
        "resource-exhausted",
        "unavailable",
    }
)
_STATUSES = frozenset(str(int(status)) for status in HTTPStatus)
_GRPC_STATUSES = frozenset(
    {
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
    }
)
_LARGE_BODY_BYTES, _LARGEST_BODY_BYTES = 100 * 1024, 1024 * 1024
_LEAST_PERCENT = 0.0001


@independent
def check_http_route(route: HTTPRoute, path: str, out: Findings, *, delegate: bool) -> None:
    """One route; `delegate` if its VirtualService has no hosts."""
    _check_action(route, path, out, delegate)
    for index, match in enumerate(route.match):
        _check_match(match, f"{path}.match[{index}]", out)
    check_headers(route.headers, f"{path}.headers", out)
    _check_cors(route.cors_policy, f"{path}.corsPolicy", out)
    _check_fault(route.fault, f"{path}.fault", out)
    _check_mirrors(route, path, out)
    _check_redirect(route, route.redirect, f"{path}.redirect", out)
    _check_direct_response(route.direct_response, f"{path}.directResponse", out)
    check_retry(route.retries, f"{path}.retries", out)
    _check_rewrite(route.rewrite, f"{path}.rewrite", out)
    _check_authority(route, path, out)
    for index, to in enumerate(route.route):
        check_headers(to.headers, f"{path}.route[{index}].headers", out)
    check_weighted([(to.destination, to.weight) for to in route.route], f"{path}.route", out)
    _check_duration(route.timeout, f"{path}.timeout", out)


@independent
def _check_duration(value: str | UnsetType, path: str, out: Findings) -> None:
    if isinstance(value, str) and (problem := duration_problem(value)):
        out.error(path, problem)


@independent
def _check_action(route: HTTPRoute, path: str, out: Findings, delegate: bool) -> None:
    actions = [
        name
        for name, set_ in (
            ("delegate", not isinstance(route.delegate, UnsetType)),
            ("redirect", not isinstance(route.redirect, UnsetType)),
            ("directResponse", not isinstance(route.direct_response, UnsetType)),
            ("route", bool(route.route)),
        )
        if set_
    ]
    if delegate and "delegate" in actions:
        out.error(f"{path}.delegate", "a delegate cannot delegate again", "Conflict")
    # What a rule that delegates answers is answered for all rules of its delegate.
    if len(actions) > 1 and actions != ["delegate", "directResponse"]:
        out.error(path, f"cannot contain both {' and '.join(actions)}", "Conflict")
    if not actions:
        out.required(path, "route, redirect, directResponse or delegate is required")
    for action in ("redirect", "directResponse"):
        if action in actions and "delegate" not in actions:
            for name, value in (("fault", route.fault), ("rewrite", route.rewrite)):
                if not isinstance(value, UnsetType):
                    out.error(path, f"cannot contain both {name} and {action}", "Conflict")


@independent
def _check_match(match: HTTPMatchRequest, path: str, out: Findings) -> None:
    for field, headers in (("headers", match.headers), ("withoutHeaders", match.without_headers)):
        for name, wanted in headers.items():
            at = f"{path}.{field}[{name}]"
            check_matched_name(name, at, out)
            # `*` is not an expression: it stands for presence.
            if not (field == "withoutHeaders" and wanted.regex == "*"):
                check_string_match(wanted, at, out)
    check_string_match(match.uri, f"{path}.uri", out, empty_prefix=True)
    check_string_match(match.scheme, f"{path}.scheme", out)
    check_string_match(match.method, f"{path}.method", out)
    check_string_match(match.authority, f"{path}.authority", out)
    for name, wanted in match.query_params.items():
        check_string_match(wanted, f"{path}.queryParams[{name}]", out)
    if match.port > 65535:
        out.error(f"{path}.port", f"{match.port}: port must be between 1-65535")
    check_labels(match.source_labels, f"{path}.sourceLabels", out)
    check_gateway_names(match.gateways, f"{path}.gateways", out)
    if match.source_namespace and not is_label(match.source_namespace):
        out.error(f"{path}.sourceNamespace", f"{match.source_namespace!r} is no namespace")


@independent
def _check_cors(cors: CorsPolicy | UnsetType, path: str, out: Findings) -> None:
    if isinstance(cors, UnsetType):
        return
    for index, origin in enumerate(cors.allow_origins):
        at = f"{path}.allowOrigins[{index}]"
        if not (origin.exact or origin.prefix or origin.regex):
            out.error(at, "an origin needs exact, prefix or regex, not empty")
        elif origin.regex and (problem := regex_problem(origin.regex)):
            out.error(f"{at}.regex", problem)
    for index, method in enumerate(cors.allow_methods):
        if method not in _METHODS:
            out.error(f"{path}.allowMethods[{index}]", f"{method!r} is not a supported method")
    for field, names in (
        ("allowHeaders", cors.allow_headers),
        ("exposeHeaders", cors.expose_headers),
    ):
        for index, name in enumerate(names):
            if name != "*" and not is_header_name(name):
                out.error(f"{path}.{field}[{index}]", f"{name!r} is not the name of a header")
    _check_duration(cors.max_age, f"{path}.maxAge", out)
    if isinstance(cors.max_age, str) and (nanoseconds(cors.max_age) or 0) % SECOND_NS:
        out.error(f"{path}.maxAge", "is accurate only to seconds")


@independent
def _check_percentage(percentage: Percent | UnsetType, path: str, out: Findings) -> None:
    if isinstance(percentage, UnsetType):
        return
    value = percentage.value
    if not 0.0 <= value <= 100.0 or 0.0 < value < _LEAST_PERCENT:
        out.error(path, f"percentage {value} is neither 0.0, nor in range [0.0001, 100.0]")


@independent
def _check_fault(fault: HTTPFaultInjection | UnsetType, path: str, out: Findings) -> None:
    if isinstance(fault, UnsetType):
        return
    abort, delay = fault.abort, fault.delay
    if isinstance(abort, UnsetType) and isinstance(delay, UnsetType):
        out.required(path, "a fault must have an abort and/or a delay")
    if not isinstance(abort, UnsetType):
        _check_percentage(abort.percentage, f"{path}.abort.percentage", out)
        _check_percent(abort.percent, f"{path}.abort.percent", out)
        if isinstance(abort.grpc_status, str):
            if abort.grpc_status not in _GRPC_STATUSES:
                message = f"gRPC status {abort.grpc_status!r} is not supported, e.g. 'NOT_FOUND'"
                out.error(f"{path}.abort.grpcStatus", message)
        elif isinstance(abort.http2_error, str):
            out.error(f"{path}.abort.http2Error", "HTTP/2 faults are not supported")
        elif isinstance(abort.http_status, int):
            _check_status(abort.http_status, f"{path}.abort.httpStatus", out)
        else:
            out.warn(f"{path}.abort", "abort configured, but error type not set")
    if not isinstance(delay, UnsetType):
        _check_percentage(delay.percentage, f"{path}.delay.percentage", out)
        _check_percent(delay.percent, f"{path}.delay.percent", out)
        _check_duration(delay.fixed_delay, f"{path}.delay.fixedDelay", out)
        if not isinstance(delay.exponential_delay, UnsetType):
            out.error(f"{path}.delay.exponentialDelay", "is not supported")


@independent
def _check_percent(percent: int, path: str, out: Findings) -> None:
    if not 0 <= percent <= 100:
        out.error(path, f"percentage {percent} is not in range 0..100")


@independent
def _check_status(status: int, path: str, out: Findings) -> None:
    if not 200 <= status <= 600:
        out.error(path, f"HTTP status {status} is not in range 200-599")


@independent
def _check_mirrors(route: HTTPRoute, path: str, out: Findings) -> None:
    check_destination(route.mirror, f"{path}.mirror", out)
    if route.mirror_percent is not None:
        if route.mirror_percent > 100:
            out.error(f"{path}.mirrorPercent", "must be at most 100")
        out.warn(f"{path}.mirrorPercent", "is deprecated, use mirrorPercentage", "Deprecated")
    _check_mirror_share(route.mirror_percentage, f"{path}.mirrorPercentage", out)
    for index, mirror in enumerate(route.mirrors):
        at = f"{path}.mirrors[{index}]"
        check_destination(mirror.destination, f"{at}.destination", out)
        _check_mirror_share(mirror.percentage, f"{at}.percentage", out)
    if route.mirrors and not isinstance(route.mirror, UnsetType):
        out.error(path, "only one of mirror or mirrors can be set", "Conflict")


@independent
def _check_mirror_share(share: Percent | UnsetType, path: str, out: Findings) -> None:
    if not isinstance(share, UnsetType) and not 0 <= share.value <= 100:
        out.error(path, f"{share.value} must be between 0 and 100")


@independent
def _check_redirect(
    route: HTTPRoute, redirect: HTTPRedirect | UnsetType, path: str, out: Findings
) -> None:
    if isinstance(redirect, UnsetType):
        return
    port_set = not isinstance(redirect.port, UnsetType) or not isinstance(
        redirect.derive_port, UnsetType
    )
    if not (
        redirect.uri or redirect.authority or redirect.scheme or redirect.prefix_rewrite or port_set
    ):
        out.required(path, "redirect must specify URI, authority, scheme, or port")
    if redirect.redirect_code and not 300 <= redirect.redirect_code <= 399:
        out.error(
            f"{path}.redirectCode", f"{redirect.redirect_code} is not a redirect, must be 3xx"
        )
    if redirect.scheme not in ("", "http", "https"):
        out.error(f"{path}.scheme", 'must be "http" or "https"')
    if isinstance(redirect.port, int) and redirect.port > 65535:
        out.error(f"{path}.port", f"{redirect.port}: port must be between 1-65535")
    if redirect.prefix_rewrite:
        if redirect.uri:
            out.error(path, "only one of uri or prefixRewrite can be set", "Conflict")
        for match in route.match:
            if not isinstance(match.uri, UnsetType) and not isinstance(match.uri.prefix, str):
                message = "can only be used where every match of the URI is one of a prefix"
                out.error(f"{path}.prefixRewrite", message)


@independent
def _check_direct_response(
    response: HTTPDirectResponse | UnsetType, path: str, out: Findings
) -> None:
    if isinstance(response, UnsetType):
        return
    _check_status(response.status, f"{path}.status", out)
    if isinstance(response.body, UnsetType):
        return
    body = response.body.string if isinstance(response.body.string, str) else response.body.bytes
    size = len(body.encode()) if isinstance(body, str) else 0
    if not isinstance(response.body.string, str):
        size = size * 3 // 4 - (body.count("=", -2) if isinstance(body, str) else 0)
    if size > _LARGEST_BODY_BYTES:
        out.error(f"{path}.body", "must be less than 1 MB", "TooLong")
    elif size > _LARGE_BODY_BYTES:
        out.warn(f"{path}.body", "large direct responses may impact performance")


@independent
def check_retry(retry: HTTPRetry | UnsetType, path: str, out: Findings) -> None:
    """When and how often a request is tried again."""
    if isinstance(retry, UnsetType):
        return
    if retry.attempts < 0:
        out.error(f"{path}.attempts", "cannot be negative")
    configured = (
        not isinstance(retry.per_try_timeout, UnsetType)
        or bool(retry.retry_on)
        or retry.retry_remote_localities is not None
    )
    if retry.attempts == 0 and configured:
        out.error(path, "retries are configured while attempts is 0 (disabled)", "Conflict")
    _check_duration(retry.per_try_timeout, f"{path}.perTryTimeout", out)
    _check_duration(retry.backoff, f"{path}.backoff", out)
    for policy in retry.retry_on.split(",") if retry.retry_on else ():
        if policy not in _RETRY_ON and policy not in _STATUSES:
            out.error(f"{path}.retryOn", f"{policy!r} is not a valid retryOn policy")


@independent
def _check_rewrite(rewrite: HTTPRewrite | UnsetType, path: str, out: Findings) -> None:
    if isinstance(rewrite, UnsetType):
        return
    by_regex = rewrite.uri_regex_rewrite
    if rewrite.uri and not isinstance(by_regex, UnsetType):
        out.error(path, "only one of uri or uriRegexRewrite can be set", "Conflict")
    if not rewrite.uri and not rewrite.authority and isinstance(by_regex, UnsetType):
        out.required(path, "rewrite must specify uri, uriRegexRewrite or authority")
    if isinstance(by_regex, UnsetType):
        return
    if not by_regex.match or not by_regex.rewrite:
        out.required(f"{path}.uriRegexRewrite", "match and rewrite are both required")
    elif problem := regex_problem(by_regex.match):
        out.error(f"{path}.uriRegexRewrite.match", problem)


@independent
def _check_authority(route: HTTPRoute, path: str, out: Findings) -> None:
    current = "" if isinstance(route.rewrite, UnsetType) else route.rewrite.authority
    if isinstance(route.headers, UnsetType) or isinstance(route.headers.request, UnsetType):
        return
    operations = route.headers.request
    for name, value in (*operations.set.items(), *operations.add.items()):
        if is_authority(name):
            if current:
                message = f"the authority is set twice: {current!r} and {value!r}"
                out.error(f"{path}.headers.request", message, "Conflict")
            current = value
