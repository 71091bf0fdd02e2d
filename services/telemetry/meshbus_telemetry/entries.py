"""Entries of Envoy's access logs to reports: who called whom and how it went. Pure."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from envoy.data.accesslog.v3 import accesslog_pb2

from meshbus.mixer.workloads import Peer
from meshbus.model.rows import WorkloadInstance
from meshbus_telemetry.parties import (
    NOBODY,
    NOWHERE,
    UNKNOWN,
    Directory,
    Party,
    Target,
)

SOURCE, DESTINATION = "source", "destination"
LOG_NAMES: Mapping[str, str] = {"meshbus_outbound": SOURCE, "meshbus_inbound": DESTINATION}
"""Reporter by name of the log; see `meshbus.compile.telemetry`."""

FLAGS: Mapping[str, str] = {
    "failed_local_healthcheck": "LH",
    "no_healthy_upstream": "UH",
    "upstream_request_timeout": "UT",
    "local_reset": "LR",
    "upstream_remote_reset": "UR",
    "upstream_connection_failure": "UF",
    "upstream_connection_termination": "UC",
    "upstream_overflow": "UO",
    "no_route_found": "NR",
    "delay_injected": "DI",
    "fault_injected": "FI",
    "rate_limited": "RL",
    "unauthorized_details": "UAEX",
    "rate_limit_service_error": "RLSE",
    "downstream_connection_termination": "DC",
    "upstream_retry_limit_exceeded": "URX",
    "stream_idle_timeout": "SI",
    "invalid_envoy_request_headers": "IH",
    "downstream_protocol_error": "DPE",
    "upstream_max_stream_duration_reached": "UMSDR",
    "response_from_cache_filter": "RFCF",
    "no_filter_config_found": "NFCF",
    "duration_timeout": "DT",
    "upstream_protocol_error": "UPE",
    "no_cluster_found": "NC",
    "overload_manager": "OM",
    "dns_resolution_failure": "DF",
    "downstream_remote_reset": "DR",
}
"""Field of `ResponseFlags` to the code in Envoy's text logs. Source: Envoy, access log usage."""
OPENING = frozenset(
    {
        accesslog_pb2.TcpUpstreamConnected,
        accesslog_pb2.DownstreamStart,
    }
)
PERIODIC = frozenset({accesslog_pb2.TcpPeriodic, accesslog_pb2.DownstreamPeriodic})


class Reporter(NamedTuple):
    """The proxy that reports."""

    side: str
    """SOURCE or DESTINATION."""
    party: Party
    row: WorkloadInstance | None
    """None while the model does not know it."""


class Ends(NamedTuple):
    """Labels that requests and connections share."""

    reporter: str
    source: Party
    destination: Party
    target: Target
    security: str
    """`mutual_tls`, `none`, or `unknown` where the reporter cannot know."""
    flags: str
    cluster: str = ""
    """That was called, of a source's report."""
    authority: str = ""
    """That was asked for, of HTTP."""
    address: str = ""
    """`ADDRESS:PORT` that was reached; empty: none."""
    local: str = ""
    """`ADDRESS:PORT` that the caller meant."""
    route: str = ""
    """Name of the route that was taken."""


class Request(NamedTuple):
    """One HTTP request."""

    ends: Ends
    protocol: str
    """`http` or `grpc`."""
    code: int
    grpc_status: str
    duration_ms: float
    request_bytes: int
    response_bytes: int

    @property
    def failed(self) -> bool:
        """It did not get an answer, or one of the server's errors."""
        return self.code >= 500 or self.code == 0 or self.grpc_status not in {"", "0"}


class Connection(NamedTuple):
    """One TCP connection at one moment. Bytes are sums since it began."""

    ends: Ends
    stream: str
    """Id of the connection."""
    phase: str
    """`open`, `continue`, `close`."""
    received_bytes: int
    sent_bytes: int
    duration_ms: float

    @property
    def settled(self) -> bool:
        """Who the peer is, is known. A server's Envoy reports the opening as soon as it has reached
        the application, which is often before the handshake with the client is over: such a
        connection is counted with its next report."""
        ends = self.ends
        return not (
            self.phase == "open" and ends.reporter == DESTINATION and ends.security == "none"
        )


def request_of(entry: Any, reporter: Reporter, directory: Directory) -> Request:
    """The report of an `HTTPAccessLogEntry`."""
    request, response = entry.request, entry.response
    common = entry.common_properties
    content_type = request.request_headers.get("content-type", "")
    protocol = "grpc" if content_type.startswith("application/grpc") else "http"
    status = ""
    if protocol == "grpc":
        status = response.response_trailers.get("grpc-status", "") or response.response_headers.get(
            "grpc-status", ""
        )
    return Request(
        _ends(common, reporter, request.authority[:256], directory),
        protocol,
        int(response.response_code.value),
        status[:8],
        _duration_ms(common),
        request.request_headers_bytes + request.request_body_bytes,
        response.response_headers_bytes + response.response_body_bytes,
    )


def connection_of(entry: Any, reporter: Reporter, directory: Directory) -> Connection:
    """The report of a `TCPAccessLogEntry`."""
    common, properties = entry.common_properties, entry.connection_properties
    kind = common.access_log_type
    phase = "open" if kind in OPENING else "continue" if kind in PERIODIC else "close"
    return Connection(
        _ends(common, reporter, "", directory),
        common.stream_id,
        phase,
        properties.received_bytes,
        properties.sent_bytes,
        _duration_ms(common),
    )


def _ends(common: Any, reporter: Reporter, authority: str, directory: Directory) -> Ends:
    own = reporter.party
    flags = _flags(common.response_flags)
    if reporter.side == SOURCE:
        target = directory.called(common.upstream_cluster, authority)
        address = _address(common.upstream_remote_address)
        destination = directory.endpoint(target.host, address) if address else NOBODY
        return Ends(
            SOURCE,
            own,
            destination,
            target,
            UNKNOWN,
            flags,
            common.upstream_cluster,
            authority,
            _place(common.upstream_remote_address),
            _place(common.downstream_local_address),
            common.route_name,
        )
    tls = common.tls_properties
    peer = Peer(
        _uri(tls.peer_certificate_properties),
        tls.peer_certificate_properties.subject,
        _address(common.downstream_direct_remote_address)
        or _address(common.downstream_remote_address),
    )
    target = NOWHERE
    if reporter.row is not None:
        target = directory.serving(reporter.row, common.upstream_cluster, authority)
    return Ends(
        DESTINATION,
        directory.peer(peer),
        own,
        target,
        "mutual_tls" if peer.uri else "none",
        flags,
    )


def _uri(certificate: Any) -> str:
    return next((name.uri for name in certificate.subject_alt_name if name.uri), "")


def _address(address: Any) -> str:
    return str(address.socket_address.address)


def _place(address: Any) -> str:
    found = address.socket_address
    if not found.address:
        return ""
    host = f"[{found.address}]" if ":" in found.address else found.address
    return f"{host}:{found.port_value}"


def _duration_ms(common: Any) -> float:
    value = common.duration
    if not (value.seconds or value.nanos):
        value = common.time_to_last_downstream_tx_byte
    return float(value.seconds * 1000.0 + value.nanos / 1e6)


def _flags(flags: Any) -> str:
    codes = [FLAGS[field.name] for field, _ in flags.ListFields() if field.name in FLAGS]
    return ",".join(codes) or "-"
