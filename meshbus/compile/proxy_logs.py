"""Access logs by the mesh config: what proxies write themselves, and whom they send it to.

`accessLogFile` and `enableEnvoyAccessLogService` hold unless `defaultProviders.accessLogging` names
providers, which then stand in their place.
Source: https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/ (MeshConfig,
ExtensionProvider); pilot/pkg/networking/core/accesslog.go of 1.31 where it is silent.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.core.v3 import config_source_pb2, grpc_service_pb2
from envoy.extensions.access_loggers.grpc.v3 import als_pb2
from envoy.extensions.access_loggers.open_telemetry.v3 import logs_service_pb2
from opentelemetry.proto.common.v1 import common_pb2 as otel_pb2

from meshbus.compile.file_logs import FileLog, file_log
from meshbus.compile.names import ClusterName
from meshbus.compile.values import any_of
from meshbus.compile.written import entries, fields, number, texts

BUILT_IN = "envoy"
"""The provider that is there without being declared: a file, `/dev/stdout`."""
STDOUT = "/dev/stdout"
LOG_SERVICE = "envoy_accesslog_service"
"""The cluster of `defaultConfig.envoyAccessLogService`."""
HTTP_LOG = "envoy.access_loggers.http_grpc"
TCP_LOG = "envoy.access_loggers.tcp_grpc"
OTEL_LOG = "envoy.access_loggers.open_telemetry"
_LOG_NAMES = {"envoyHttpAls": "http_envoy_accesslog", "envoyTcpAls": "tcp_envoy_accesslog"}
_OTEL_NAME = "otel_envoy_accesslog"
LOGGERS = ("envoyFileAccessLog", "envoyHttpAls", "envoyTcpAls", "envoyOtelAls")
"""Kinds of providers that take logs."""


class RemoteLog(NamedTuple):
    """Logs that are sent to a service by gRPC."""

    kind: str
    """`envoyHttpAls`, `envoyTcpAls` or `envoyOtelAls`."""
    cluster: str
    name: str
    text: str = ""
    """OpenTelemetry: format of the body."""
    labels: tuple[tuple[str, str], ...] = ()
    """OpenTelemetry: attributes."""
    request_headers: tuple[str, ...] = ()
    response_headers: tuple[str, ...] = ()
    trailers: tuple[str, ...] = ()
    filter_state: tuple[str, ...] = ()


class ProxyLogs(NamedTuple):
    """All logs of a proxy, but for those of our own telemetry service."""

    files: tuple[FileLog, ...] = ()
    remote: tuple[RemoteLog, ...] = ()

    def http(self) -> Iterator[accesslog_pb2.AccessLog]:
        """Those of a connection manager."""
        yield from (file_log(log) for log in self.files)
        yield from (_remote(log) for log in self.remote if log.kind != "envoyTcpAls")

    def tcp(self) -> Iterator[accesslog_pb2.AccessLog]:
        """Those of a TCP proxy."""
        yield from (file_log(log) for log in self.files)
        yield from (_remote(log) for log in self.remote if log.kind != "envoyHttpAls")

    def listener(self) -> Iterator[accesslog_pb2.AccessLog]:
        """Those of a listener: of connections that no chain takes."""
        yield from (file_log(log) for log in self.files if log.listeners)


NO_LOGS = ProxyLogs()


def proxy_logs(spec: Mapping[str, Any]) -> ProxyLogs:
    """The logs that a MeshConfig in JSON form asks for."""
    listeners = not spec.get("disableEnvoyListenerLog")
    chosen = texts(fields(spec.get("defaultProviders")).get("accessLogging"))
    if chosen:
        return _of_providers(chosen, entries(spec.get("extensionProviders")), listeners)
    path = str(spec.get("accessLogFile") or "")
    json = spec.get("accessLogEncoding") == "JSON"
    file = FileLog(path, str(spec.get("accessLogFormat") or ""), json, listeners)
    service = fields(fields(spec.get("defaultConfig")).get("envoyAccessLogService"))
    sent = bool(spec.get("enableEnvoyAccessLogService") and service.get("address"))
    return ProxyLogs(
        (file,) if path else (),
        tuple(RemoteLog(k, LOG_SERVICE, name) for k, name in _LOG_NAMES.items()) if sent else (),
    )


def _of_providers(
    chosen: Iterable[str], providers: Iterable[Mapping[str, Any]], listeners: bool
) -> ProxyLogs:
    known: dict[str, Mapping[str, Any]] = {BUILT_IN: {"envoyFileAccessLog": {}}}
    known.update((str(provider.get("name")), provider) for provider in providers)
    files: list[FileLog] = []
    remote: list[RemoteLog] = []
    for name in dict.fromkeys(chosen):
        for kind in LOGGERS:
            held = known.get(name, {}).get(kind)
            if not isinstance(held, Mapping):
                continue
            if kind == "envoyFileAccessLog":
                files.append(_file(held, listeners))
            elif (log := _sent(kind, held)) is not None:
                remote.append(log)
    return ProxyLogs(tuple(files), tuple(remote))


def _file(spec: Mapping[str, Any], listeners: bool) -> FileLog:
    form = fields(spec.get("logFormat"))
    labels = form.get("labels")
    json = isinstance(labels, Mapping)
    text = msgspec.json.encode(labels, order="deterministic").decode() if json else ""
    return FileLog(
        str(spec.get("path") or STDOUT),
        text or str(form.get("text") or ""),
        json,
        listeners,
        bool(spec.get("omitEmptyValues")),
    )


def _sent(kind: str, spec: Mapping[str, Any]) -> RemoteLog | None:
    host = str(spec.get("service") or "").rpartition("/")[2]
    port = number(spec.get("port"))
    if not host or not port:
        return None
    form = fields(spec.get("logFormat"))
    return RemoteLog(
        kind,
        str(ClusterName(port, "", host)),
        str(spec.get("logName") or _LOG_NAMES.get(kind, _OTEL_NAME)),
        str(form.get("text") or ""),
        tuple(sorted((str(k), str(v)) for k, v in fields(form.get("labels")).items())),
        tuple(texts(spec.get("additionalRequestHeadersToLog"))),
        tuple(texts(spec.get("additionalResponseHeadersToLog"))),
        tuple(texts(spec.get("additionalResponseTrailersToLog"))),
        tuple(texts(spec.get("filterStateObjectsToLog"))),
    )


def _remote(log: RemoteLog) -> accesslog_pb2.AccessLog:
    common = als_pb2.CommonGrpcAccessLogConfig(
        log_name=log.name,
        grpc_service=grpc_service_pb2.GrpcService(
            envoy_grpc=grpc_service_pb2.GrpcService.EnvoyGrpc(cluster_name=log.cluster)
        ),
        transport_api_version=config_source_pb2.ApiVersion.V3,
        filter_state_objects_to_log=log.filter_state,
    )
    if log.kind == "envoyTcpAls":
        config: Any = als_pb2.TcpGrpcAccessLogConfig(common_config=common)
        return accesslog_pb2.AccessLog(name=TCP_LOG, typed_config=any_of(config))
    if log.kind == "envoyHttpAls":
        config = als_pb2.HttpGrpcAccessLogConfig(
            common_config=common,
            additional_request_headers_to_log=log.request_headers,
            additional_response_headers_to_log=log.response_headers,
            additional_response_trailers_to_log=log.trailers,
        )
        return accesslog_pb2.AccessLog(name=HTTP_LOG, typed_config=any_of(config))
    config = logs_service_pb2.OpenTelemetryAccessLogConfig(
        common_config=common, disable_builtin_labels=True
    )
    config.body.string_value = log.text or "%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE%"
    for name, value in log.labels:
        config.attributes.values.append(
            otel_pb2.KeyValue(key=name, value=otel_pb2.AnyValue(string_value=value))
        )
    return accesslog_pb2.AccessLog(name=OTEL_LOG, typed_config=any_of(config))
