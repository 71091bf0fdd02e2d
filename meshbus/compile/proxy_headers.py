"""How proxies treat connections and headers, as ProxyConfig says it: `gatewayTopology` and
`proxyHeaders` of the mesh config's `defaultConfig`, and of a proxy's own annotation.

`metadataExchangeHeaders` needs nothing: no proxy is sent filters that put metadata into headers.

Source: https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/#ProxyConfig
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from envoy.config.core.v3 import protocol_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from envoy.extensions.http.header_formatters.preserve_case.v3 import preserve_case_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2

from meshbus.compile.own_proxy_config import own_fields
from meshbus.compile.values import any_of, boolean

SERVER_NAME = "istio-envoy"
_DETAILS = ("SANITIZE_SET", "APPEND_FORWARD")
"""Modes in which a proxy writes details of the caller's certificate."""


class ProxyHeaders(NamedTuple):
    """What is said, with defaults."""

    trusted_hops: int = 0
    """Proxies before a gateway that say truly whose request it is."""
    gateway_certificate: str = ""
    """`forwardClientCertDetails` of gateways; empty: `SANITIZE_SET`."""
    proxy_protocol: bool = False
    """Connections to gateways begin with PROXY protocol."""
    sidecar_certificate: str = ""
    """The same of the server side of sidecars; empty: `APPEND_FORWARD`."""
    details: tuple[tuple[str, bool], ...] = ()
    """Details of the caller's certificate that are written, where something says which."""
    server: str = SERVER_NAME
    """Value of the `server` header of responses; empty: it is left as it is."""
    request_id: bool = True
    """A request without `x-request-id` is given one."""
    debug_headers: bool = True
    """`x-envoy-*` headers of the router."""
    attempt_count: bool = True
    """Requests say in `x-envoy-attempt-count` how often they have been sent."""
    keep_case: bool = False
    """Names of HTTP/1 headers keep their upper and lower case."""
    forwarded_host: bool = False
    """`x-forwarded-host` says what a `rewrite` has changed."""
    forwarded_port: bool = False
    """`x-forwarded-port` says where a request came to."""


NO_WISHES = ProxyHeaders()
"""What holds where nothing is said."""


def headers_of(settings: Mapping[str, Any], own: str = "") -> ProxyHeaders:
    """What holds of a proxy: `defaultConfig`, and fields of its annotation `proxy.istio.io/config`
    over that; of `proxyHeaders` each header by itself. An annotation that cannot be read says
    nothing.

    Source: Istio, MergeProxyConfig (pkg/config/mesh).
    """
    mine = own_fields(own)
    both = {**settings, **mine}
    topology = _record(both.get("gatewayTopology"))
    said = {**_record(settings.get("proxyHeaders")), **_set(mine.get("proxyHeaders"))}
    server = _record(said.get("server"))
    details = _record(said.get("setCurrentClientCertDetails"))
    hops = topology.get("numTrustedProxies")
    return ProxyHeaders(
        trusted_hops=hops if isinstance(hops, int) and 0 < hops < 2**32 else 0,
        gateway_certificate=_mode(topology.get("forwardClientCertDetails")),
        proxy_protocol=isinstance(topology.get("proxyProtocol"), dict),
        sidecar_certificate=_mode(said.get("forwardedClientCert")),
        details=tuple(sorted((str(k), bool(v)) for k, v in details.items())),
        server="" if server.get("disabled") else str(server.get("value") or SERVER_NAME),
        request_id=not _record(said.get("requestId")).get("disabled"),
        debug_headers=not _record(said.get("envoyDebugHeaders")).get("disabled"),
        attempt_count=not _record(said.get("attemptCount")).get("disabled"),
        keep_case=said.get("preserveHttp1HeaderCase") is True,
        forwarded_host=_record(said.get("xForwardedHost")).get("enabled") is True,
        forwarded_port=_record(said.get("xForwardedPort")).get("enabled") is True,
    )


def _set(value: Any) -> dict[str, Any]:
    """Fields that say something."""
    return {k: v for k, v in _record(value).items() if v not in (None, "UNDEFINED")}


def _record(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _mode(value: Any) -> str:
    known = hcm_pb2.HttpConnectionManager.ForwardClientCertDetails.keys()
    return value if isinstance(value, str) and value in known else ""


def apply_headers(manager: hcm_pb2.HttpConnectionManager, headers: ProxyHeaders) -> None:
    """What holds of every connection manager."""
    if headers.server:
        manager.server_name = headers.server
    else:
        manager.server_header_transformation = hcm_pb2.HttpConnectionManager.PASS_THROUGH
    if not headers.request_id:
        manager.generate_request_id.CopyFrom(boolean(False))
    manager.append_x_forwarded_port = headers.forwarded_port
    if headers.keep_case:
        _keep_case(manager.http_protocol_options)


def keep_upstream_case(options: http_protocol_options_pb2.HttpProtocolOptions) -> None:
    """The same where HTTP/1 goes upstream: both sides have to remember the names."""
    chosen = options.WhichOneof("upstream_protocol_options")
    if chosen is not None:
        protocols = getattr(options, chosen)
        if protocols.HasField("http_protocol_options"):
            _keep_case(protocols.http_protocol_options)


def _keep_case(options: protocol_pb2.Http1ProtocolOptions) -> None:
    """Source: envoy, configuration/http/http_conn_man/header_casing."""
    formatter = options.header_key_format.stateful_formatter
    formatter.name = "preserve_case"
    own = preserve_case_pb2.PreserveCaseFormatterConfig(
        formatter_type_on_envoy_headers=preserve_case_pb2.PreserveCaseFormatterConfig.PROPER_CASE
    )
    formatter.typed_config.CopyFrom(any_of(own))


def forward_certificate(
    manager: hcm_pb2.HttpConnectionManager, headers: ProxyHeaders, *, gateway: bool
) -> None:
    """`x-forwarded-client-cert`: a gateway writes it anew, a sidecar's server side adds to it,
    unless something else is said.

    Source: Istio, GetProxyHeaders and buildGatewayConnectionManager.
    """
    said = headers.gateway_certificate if gateway else headers.sidecar_certificate
    mode = said or ("SANITIZE_SET" if gateway else "APPEND_FORWARD")
    manager.forward_client_cert_details = (
        hcm_pb2.HttpConnectionManager.ForwardClientCertDetails.Value(mode)
    )
    if mode not in _DETAILS:
        return
    wanted = {"subject": True, "dns": True, "uri": True, "cert": gateway}
    if not gateway:
        wanted.update(headers.details)
    details = manager.set_current_client_cert_details
    details.subject.CopyFrom(boolean(wanted["subject"]))
    details.dns, details.uri = wanted["dns"], wanted["uri"]
    details.cert, details.chain = wanted["cert"], wanted.get("chain", False)
