"""How proxies treat connections and headers, as ProxyConfig says it: `gatewayTopology` and
`proxyHeaders` of the mesh config's `defaultConfig`, and of a gateway's own annotation.

Source: https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/#ProxyConfig
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)

from meshbus.api.yaml_text import NotReadableError, read_yaml
from meshbus.compile.values import boolean

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


NO_WISHES = ProxyHeaders()
"""What holds where nothing is said."""


def headers_of(settings: Mapping[str, Any], own: str = "") -> ProxyHeaders:
    """What holds of a proxy: `defaultConfig`, and fields of its annotation `proxy.istio.io/config`
    over that. An annotation that cannot be read says nothing."""
    both = {**settings, **_read(own)}
    topology = _record(both.get("gatewayTopology"))
    said = _record(both.get("proxyHeaders"))
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
    )


def _read(text: str) -> dict[str, Any]:
    try:
        held = read_yaml(text) if text else None
    except NotReadableError:
        return {}
    return _record(held)


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
