"""VirtualService: how requests to a host are routed.

Source: https://istio.io/latest/docs/reference/config/networking/virtual-service/
"""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, field

from meshbus.api.shape import Bytes, Duration, Int32, Maybe, Shape, UInt32


class StringMatch(Shape, frozen=True, kw_only=True):
    """How a string is matched; case-sensitive."""

    one_of = (("exact", "prefix", "regex"),)

    exact: Maybe[str] = UNSET
    """The whole string."""
    prefix: Maybe[str] = UNSET
    """Its beginning."""
    regex: Maybe[str] = UNSET
    """An RE2 expression that matches the whole string."""


class PortSelector(Shape, frozen=True, kw_only=True):
    """A port of a service."""

    number: UInt32 = 0
    """Port number, 1 to 65535."""


class Destination(Shape, frozen=True, kw_only=True):
    """A service, or a subset of it, that receives requests."""

    host: str
    """Name of a service in the registry; a short name is of the rule's own namespace."""
    subset: str = ""
    """Subset of the host's DestinationRule."""
    port: Maybe[PortSelector] = UNSET
    """Needed when the service has more than one port."""


class HeaderOperations(Shape, frozen=True, kw_only=True):
    """Changes to headers."""

    set: dict[str, str] = {}
    """Overwrites these."""
    add: dict[str, str] = {}
    """Appends to these."""
    remove: list[str] = []
    """Removes these."""


class Headers(Shape, frozen=True, kw_only=True):
    """Changes to the headers of requests and responses."""

    request: Maybe[HeaderOperations] = UNSET
    """Before a request is forwarded."""
    response: Maybe[HeaderOperations] = UNSET
    """Before a response is returned."""


class HTTPMatchRequest(Shape, frozen=True, kw_only=True):
    """A condition on requests; every field of it must hold."""

    name: str = ""
    """A name for this match, for logs."""
    uri: Maybe[StringMatch] = UNSET
    """Path of the request."""
    scheme: Maybe[StringMatch] = UNSET
    """Scheme of the URI."""
    method: Maybe[StringMatch] = UNSET
    """HTTP method."""
    authority: Maybe[StringMatch] = UNSET
    """HTTP authority (Host)."""
    headers: dict[str, StringMatch] = {}
    """Headers by lower-case name; an empty match asks for presence."""
    port: UInt32 = 0
    """Port of the host that was asked."""
    source_labels: dict[str, str] = {}
    """Labels of the workload that calls."""
    gateways: list[str] = []
    """Gateways to which this condition applies; overrides the rule's list."""
    query_params: dict[str, StringMatch] = {}
    """Query parameters."""
    ignore_uri_case: bool = False
    """Whether `uri` is matched without regard to case (exact and prefix only)."""
    without_headers: dict[str, StringMatch] = {}
    """Headers that must not match."""
    source_namespace: str = ""
    """Namespace of the workload that calls."""
    stat_prefix: str = ""
    """Prefix of the statistics of this route."""


class HTTPRouteDestination(Shape, frozen=True, kw_only=True):
    """A destination and its share of the requests."""

    destination: Destination
    """Where the requests go."""
    weight: Int32 = 0
    """Its share relative to the other destinations of the route."""
    headers: Maybe[Headers] = UNSET
    """Changes to headers for this destination alone."""
    remove_response_headers: list[str] = []
    """Istio 1.4: use `headers.response.remove`."""
    append_response_headers: dict[str, str] = {}
    """Istio 1.4: use `headers.response.add`."""
    remove_request_headers: list[str] = []
    """Istio 1.4: use `headers.request.remove`."""
    append_request_headers: dict[str, str] = {}
    """Istio 1.4: use `headers.request.add`."""


class HTTPRedirect(Shape, frozen=True, kw_only=True):
    """Answers with a redirect."""

    one_of = (("port", "derivePort"), ("uri", "prefixRewrite"))

    uri: str = ""
    """Replaces the whole path; `%PREFIX()%` stands for the matched prefix."""
    authority: str = ""
    """Replaces the authority."""
    port: Maybe[UInt32] = UNSET
    """Port of the redirect."""
    derive_port: Maybe[Literal["FROM_PROTOCOL_DEFAULT", "FROM_REQUEST_PORT"]] = UNSET
    """Where the port of the redirect comes from."""
    scheme: str = ""
    """`http` or `https`."""
    redirect_code: UInt32 = 0
    """Status of the answer; 301 if unset."""
    prefix_rewrite: str = ""
    """Replaces the matched prefix of the path."""


class HTTPBody(Shape, frozen=True, kw_only=True):
    """The body of a direct response."""

    one_of = (("string", "bytes"),)

    string: Maybe[str] = UNSET
    """As text."""
    bytes: Maybe[Bytes] = UNSET
    """As base64."""


class HTTPDirectResponse(Shape, frozen=True, kw_only=True):
    """Answers without asking anybody."""

    status: UInt32
    """HTTP status."""
    body: Maybe[HTTPBody] = UNSET
    """What the answer says."""


class Delegate(Shape, frozen=True, kw_only=True):
    """Another VirtualService that goes on with the routing."""

    name: str = ""
    """Its name."""
    namespace: str = ""
    """Its namespace; that of the root if empty."""


class RegexRewrite(Shape, frozen=True, kw_only=True):
    """Replaces what an expression matches."""

    match: str = ""
    """An RE2 expression."""
    rewrite: str = ""
    """What replaces it; `\\1` stands for the first group."""


class HTTPRewrite(Shape, frozen=True, kw_only=True):
    """Changes path or authority before a request is forwarded."""

    uri: str = ""
    """Replaces the matched path or prefix."""
    authority: str = ""
    """Replaces the authority."""
    uri_regex_rewrite: Maybe[RegexRewrite] = UNSET
    """Rewrites the path by an expression."""


class HTTPRetry(Shape, frozen=True, kw_only=True):
    """When and how often a failed request is tried again."""

    attempts: Int32 = 0
    """Retries after the first attempt; 0 turns retries off."""
    per_try_timeout: Maybe[Duration] = UNSET
    """Time for each attempt; that of the route if unset."""
    retry_on: str = ""
    """Conditions, separated by commas, as Envoy names them, or status codes."""
    retry_remote_localities: bool | None = None
    """Whether other localities may be tried."""
    retry_ignore_previous_hosts: bool | None = None
    """Whether hosts already tried are avoided; true if unset."""
    backoff: Maybe[Duration] = UNSET
    """Least time between retries."""


class Percent(Shape, frozen=True, kw_only=True):
    """A share of requests, 0.0 to 100.0."""

    value: float = 0.0
    """Percent."""


class HTTPMirrorPolicy(Shape, frozen=True, kw_only=True):
    """Copies requests to another destination and ignores what it answers."""

    destination: Destination
    """Where the copies go."""
    percentage: Maybe[Percent] = UNSET
    """Share of the requests that are copied; all if unset."""


class FaultDelay(Shape, frozen=True, kw_only=True):
    """Delays requests."""

    one_of = (("fixedDelay", "exponentialDelay"),)

    percent: Int32 = 0
    """Istio 1.4: use `percentage`."""
    percentage: Maybe[Percent] = UNSET
    """Share of the requests."""
    fixed_delay: Maybe[Duration] = UNSET
    """How long."""
    exponential_delay: Maybe[Duration] = UNSET
    """Not carried out by any release of Istio."""


class FaultAbort(Shape, frozen=True, kw_only=True):
    """Answers requests with an error."""

    one_of = (("httpStatus", "grpcStatus", "http2Error"),)

    percent: Int32 = 0
    """Istio 1.4: use `percentage`."""
    percentage: Maybe[Percent] = UNSET
    """Share of the requests."""
    http_status: Maybe[Int32] = UNSET
    """HTTP status of the answer."""
    grpc_status: Maybe[str] = UNSET
    """gRPC status of the answer, by name."""
    http2_error: Maybe[str] = UNSET
    """Not carried out by any release of Istio."""


class HTTPFaultInjection(Shape, frozen=True, kw_only=True):
    """Faults for tests of resilience."""

    delay: Maybe[FaultDelay] = UNSET
    """A delay before requests are forwarded."""
    abort: Maybe[FaultAbort] = UNSET
    """An error instead of an answer."""


class CorsPolicy(Shape, frozen=True, kw_only=True):
    """Cross-origin resource sharing."""

    allow_origin: list[str] = []
    """Istio 1.4: use `allowOrigins`."""
    allow_origins: list[StringMatch] = []
    """Origins that may ask."""
    allow_methods: list[str] = []
    """`Access-Control-Allow-Methods`."""
    allow_headers: list[str] = []
    """`Access-Control-Allow-Headers`."""
    expose_headers: list[str] = []
    """`Access-Control-Expose-Headers`."""
    max_age: Maybe[Duration] = UNSET
    """How long a preflight answer may be kept."""
    allow_credentials: bool | None = None
    """Whether credentials may be sent."""
    unmatched_preflights: Literal["UNSPECIFIED", "FORWARD", "IGNORE"] = "UNSPECIFIED"
    """What happens to preflights of other origins."""


class HTTPRoute(Shape, frozen=True, kw_only=True):
    """A rule for HTTP requests; the first that matches is used."""

    name: str = ""
    """A name, for logs."""
    match: list[HTTPMatchRequest] = []
    """Conditions, of which one must hold; none means every request."""
    route: list[HTTPRouteDestination] = []
    """Where requests go, by weight."""
    redirect: Maybe[HTTPRedirect] = UNSET
    """A redirect instead."""
    direct_response: Maybe[HTTPDirectResponse] = UNSET
    """A fixed answer instead."""
    delegate: Maybe[Delegate] = UNSET
    """Another VirtualService whose rules are used instead."""
    rewrite: Maybe[HTTPRewrite] = UNSET
    """Changes path or authority."""
    timeout: Maybe[Duration] = UNSET
    """Time for the whole request; none if unset."""
    retries: Maybe[HTTPRetry] = UNSET
    """Retries."""
    fault: Maybe[HTTPFaultInjection] = UNSET
    """Faults for tests."""
    mirror: Maybe[Destination] = UNSET
    """A destination that gets copies."""
    mirrors: list[HTTPMirrorPolicy] = []
    """Several destinations that get copies."""
    mirror_percent: UInt32 | None = None
    """Istio 1.4: use `mirrorPercentage`."""
    mirror_percentage: Maybe[Percent] = UNSET
    """Share of the requests that `mirror` gets; all if unset."""
    cors_policy: Maybe[CorsPolicy] = UNSET
    """Cross-origin resource sharing."""
    headers: Maybe[Headers] = UNSET
    """Changes to headers."""
    websocket_upgrade: bool = False
    """Istio 1.4: upgrades are always allowed."""
    append_headers: dict[str, str] = {}
    """Istio 1.4: use `headers.request.add`."""
    remove_response_headers: list[str] = []
    """Istio 1.4: use `headers.response.remove`."""
    append_response_headers: dict[str, str] = {}
    """Istio 1.4: use `headers.response.add`."""
    remove_request_headers: list[str] = []
    """Istio 1.4: use `headers.request.remove`."""
    append_request_headers: dict[str, str] = {}
    """Istio 1.4: use `headers.request.add`."""


class RouteDestination(Shape, frozen=True, kw_only=True):
    """A destination of connections and its share."""

    destination: Destination
    """Where connections go."""
    weight: Int32 = 0
    """Its share relative to the other destinations of the route."""


class TLSMatchAttributes(Shape, frozen=True, kw_only=True):
    """A condition on TLS connections that are passed through."""

    sni_hosts: list[str]
    """Server names, of which one must match."""
    destination_subnets: list[str] = []
    """Addresses or CIDRs of the destination."""
    port: UInt32 = 0
    """Port of the destination."""
    source_labels: dict[str, str] = {}
    """Labels of the workload that calls."""
    gateways: list[str] = []
    """Gateways to which this condition applies."""
    source_namespace: str = ""
    """Namespace of the workload that calls."""
    source_subnet: Annotated[str, Meta(max_length=64)] = ""
    """Address or CIDR of the caller; not carried out."""


class TLSRoute(Shape, frozen=True, kw_only=True):
    """A rule for TLS connections that are passed through."""

    match: list[TLSMatchAttributes]
    """Conditions, of which one must hold."""
    route: list[RouteDestination] = []
    """Where connections go, by weight."""


class L4MatchAttributes(Shape, frozen=True, kw_only=True):
    """A condition on TCP connections."""

    destination_subnets: list[str] = []
    """Addresses or CIDRs of the destination."""
    port: UInt32 = 0
    """Port of the destination."""
    source_subnet: str = ""
    """Address or CIDR of the caller; not carried out by Istio."""
    source_labels: dict[str, str] = {}
    """Labels of the workload that calls."""
    gateways: list[str] = []
    """Gateways to which this condition applies."""
    source_namespace: str = ""
    """Namespace of the workload that calls."""


class TCPRoute(Shape, frozen=True, kw_only=True):
    """A rule for TCP connections."""

    match: list[L4MatchAttributes] = []
    """Conditions, of which one must hold; none means every connection."""
    route: list[RouteDestination] = []
    """Where connections go, by weight."""


class VirtualService(Shape, frozen=True, kw_only=True):
    """How requests to hosts are routed."""

    hosts: list[str] = []
    """Hosts to which the rules apply; empty for a delegate."""
    gateways: list[str] = []
    """Gateways that apply the rules, `NAMESPACE/NAME`; `mesh` stands for all sidecars, and is
    meant if the list is empty."""
    http: list[HTTPRoute] = []
    """Rules for HTTP, in order."""
    tls: list[TLSRoute] = []
    """Rules for TLS that is passed through."""
    tcp: list[TCPRoute] = []
    """Rules for everything else."""
    export_to: list[str] = field(default_factory=list)
    """Namespaces that see it: `*` all, `.` its own."""
