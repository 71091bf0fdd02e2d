"""The attributes that rules may name without declaring them.

Source: Mixer 1.4, attribute vocabulary (attributemanifests `istio-proxy` and `kubernetes`).
"""

from collections.abc import Iterable, Mapping
from typing import Any

from meshbus.mixer.values import (
    BOOL,
    DURATION,
    INT64,
    IP_ADDRESS,
    STRING,
    STRING_MAP,
    TIMESTAMP,
    TYPES,
)

_NAMES = {
    STRING: (
        "origin.uid origin.user "
        "request.id request.host request.method request.path request.url_path request.reason "
        "request.referer request.scheme request.useragent request.api_key "
        "request.auth.principal request.auth.audiences request.auth.presenter "
        "request.auth.raw_claims "
        "response.grpc_status response.grpc_message "
        "source.uid source.user source.principal source.name source.namespace source.owner "
        "source.serviceAccount source.services source.workload.uid source.workload.name "
        "source.workload.namespace "
        "destination.uid destination.principal destination.name destination.namespace "
        "destination.owner destination.serviceAccount destination.service.uid "
        "destination.service.name destination.service.namespace destination.service.host "
        "destination.workload.uid destination.workload.name destination.workload.namespace "
        "destination.container.name "
        "connection.event connection.id connection.requested_server_name "
        "context.protocol context.proxy_error_code context.proxy_version "
        "context.reporter.kind context.reporter.uid "
        "api.service api.version api.operation api.protocol "
        "rbac.permissive.response_code rbac.permissive.effective_policy_id check.error_message"
    ),
    INT64: (
        "request.size request.total_size response.code response.size response.total_size "
        "destination.port connection.received.bytes connection.received.bytes_total "
        "connection.sent.bytes connection.sent.bytes_total check.error_code"
    ),
    BOOL: "connection.mtls context.reporter.local check.cache_hit quota.cache_hit",
    IP_ADDRESS: "origin.ip source.ip destination.ip",
    TIMESTAMP: "request.time response.time context.time context.timestamp",
    DURATION: "response.duration connection.duration",
    STRING_MAP: (
        "request.headers request.query_params request.auth.claims response.headers "
        "source.labels source.metadata destination.labels destination.metadata"
    ),
}

STANDARD: Mapping[str, str] = {
    name: kind for kind, names in _NAMES.items() for name in names.split()
}
"""Attribute to type."""


def manifest_with(declared: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The standard attributes and those of `attributemanifest` specs.

    Args:
        declared: Specs, `{"attributes": {name: {"valueType": TYPE}}}`; what is not so is left out,
            a standard attribute keeps its type.
    """
    out: dict[str, str] = {}
    for spec in declared:
        attributes = spec.get("attributes")
        for name, info in attributes.items() if isinstance(attributes, dict) else ():
            kind = info.get("valueType") if isinstance(info, dict) else None
            if kind in TYPES:
                out.setdefault(str(name), kind)
    return {**out, **STANDARD}
