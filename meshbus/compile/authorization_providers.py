"""Extension providers that decide for CUSTOM policies: Envoy's ext_authz filters.

Source: https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/ (ExtensionProvider)
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from envoy.config.core.v3 import base_pb2, config_source_pb2, grpc_service_pb2
from envoy.extensions.filters.http.ext_authz.v3 import ext_authz_pb2 as http_pb2
from envoy.extensions.filters.network.ext_authz.v3 import ext_authz_pb2 as network_pb2
from envoy.type.matcher.v3 import metadata_pb2, string_pb2
from envoy.type.v3 import http_status_pb2

from meshbus.compile.authorization_matchers import metadata, text_matcher, value_of_text
from meshbus.compile.engine import Reader
from meshbus.compile.findings import NotCompiledError
from meshbus.compile.names import ClusterName
from meshbus.compile.values import duration, seconds
from meshbus.compile.written import entries, number, pairs, texts
from meshbus.model.world import Query

RBAC_HTTP = "envoy.filters.http.rbac"
RBAC_NETWORK = "envoy.filters.network.rbac"
"""Under these names the RBAC filters leave what their shadow rules found."""
SHADOW_PREFIX = "istio_ext_authz_"
_MATCHED = f"{SHADOW_PREFIX}shadow_effective_policy_id"
_TIMEOUT_S = 600
"""Without `timeout`: that of the service's DestinationRule counts."""
_KINDS = ("envoyExtAuthzHttp", "envoyExtAuthzGrpc")


class Provider(NamedTuple):
    """One provider that can decide."""

    name: str
    http: http_pb2.ExtAuthz
    network: network_pb2.ExtAuthz | None
    """None: it decides about HTTP only."""


def authorization_providers(reader: Reader) -> dict[str, Provider | str]:
    """Node: providers by name; a text says why one cannot be used."""
    found: dict[str, Provider | str] = {}
    for entry in reader.entries(Query("mesh.config", "all", None)):
        for spec in entries(entry.row.spec.get("extensionProviders")):
            name = str(spec.get("name") or "")
            kind = next((k for k in _KINDS if isinstance(spec.get(k), Mapping)), None)
            if kind is None or not name:
                continue
            try:
                found[name] = _provider(name, spec[kind], kind == "envoyExtAuthzGrpc")
            except NotCompiledError as fault:
                found[name] = str(fault)
    return found


def policy_prefix(provider: str) -> str:
    """What names of rules begin with that ask a provider."""
    return f"istio-ext-authz-{provider}"


def _provider(name: str, spec: Mapping[str, Any], grpc: bool) -> Provider:
    host = str(spec.get("service") or "").rpartition("/")[2]
    port = number(spec.get("port"))
    if not host:
        raise NotCompiledError("service", "is needed")
    if not 1 <= port <= 65535:
        raise NotCompiledError("port", f"{port} is not a port")
    cluster = str(ClusterName(port, "", host))
    timeout = (
        duration(str(spec["timeout"]), "timeout") if spec.get("timeout") else seconds(_TIMEOUT_S)
    )
    http = http_pb2.ExtAuthz(
        transport_api_version=config_source_pb2.ApiVersion.V3,
        failure_mode_allow=bool(spec.get("failOpen")),
        clear_route_cache=bool(spec.get("clearRouteCache")),
        filter_enabled_metadata=_asked(RBAC_HTTP, name),
    )
    status = _status(str(spec.get("statusOnError") or ""))
    if status is not None:
        http.status_on_error.CopyFrom(status)
    body = spec.get("includeRequestBodyInCheck")
    if isinstance(body, Mapping):
        http.with_request_body.max_request_bytes = number(body.get("maxRequestBytes"))
        http.with_request_body.allow_partial_message = bool(body.get("allowPartialMessage"))
        http.with_request_body.pack_as_bytes = bool(body.get("packAsBytes"))
    if not grpc:
        service = http.http_service
        service.server_uri.uri = f"http://{host}"
        service.server_uri.cluster = cluster
        service.server_uri.timeout.CopyFrom(timeout)
        _http_options(http, spec)
        return Provider(name, http, None)
    target = grpc_service_pb2.GrpcService(timeout=timeout)
    target.envoy_grpc.cluster_name = cluster
    target.envoy_grpc.authority = host
    http.grpc_service.CopyFrom(target)
    network = network_pb2.ExtAuthz(
        stat_prefix="tcp.",
        failure_mode_allow=http.failure_mode_allow,
        transport_api_version=config_source_pb2.ApiVersion.V3,
        grpc_service=target,
        filter_enabled_metadata=_asked(RBAC_NETWORK, name),
    )
    return Provider(name, http, network)


def _asked(rbac: str, provider: str) -> metadata_pb2.MetadataMatcher:
    """The RBAC filter before this one has found a rule that asks the provider."""
    prefix = string_pb2.StringMatcher(prefix=policy_prefix(provider))
    return metadata(rbac, [_MATCHED], value_of_text(prefix))


def _status(text: str) -> http_status_pb2.HttpStatus | None:
    if not text:
        return None
    if not text.isdigit() or int(text) not in http_status_pb2.StatusCode.values():
        raise NotCompiledError("statusOnError", f"{text!r} is not a status")
    return http_status_pb2.HttpStatus(code=int(text))


def _http_options(out: http_pb2.ExtAuthz, spec: Mapping[str, Any]) -> None:
    service = out.http_service
    prefix = str(spec.get("pathPrefix") or "")
    if prefix and not prefix.startswith("/"):
        raise NotCompiledError("pathPrefix", "must begin with /")
    service.path_prefix = prefix
    seen = spec.get("includeRequestHeadersInCheck") or spec.get("includeHeadersInCheck")
    if seen:
        out.allowed_headers.patterns.extend(_headers(texts(seen)))
    for name, value in pairs(spec.get("includeAdditionalHeadersInCheck")):
        service.authorization_request.headers_to_add.append(
            base_pb2.HeaderValue(key=name, value=value)
        )
    answer = service.authorization_response
    for field, patterns in (
        ("headersToUpstreamOnAllow", answer.allowed_upstream_headers),
        ("headersToDownstreamOnDeny", answer.allowed_client_headers),
        ("headersToDownstreamOnAllow", answer.allowed_client_headers_on_success),
    ):
        if spec.get(field):
            patterns.patterns.extend(_headers(texts(spec[field])))


def _headers(names: Iterable[Any]) -> list[string_pb2.StringMatcher]:
    return [text_matcher(str(name), ignore_case=True) for name in names]
