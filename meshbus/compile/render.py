"""Snapshots as JSON: proto JSON in camelCase, every `Any` expanded, secrets by name only.

The shape is DESIGN §8.1:
`{"listeners", "routes", "clusters", "endpoints", "extensions", "secrets"}`.
"""

from importlib import import_module
from typing import Any

from google.protobuf import descriptor_pool, json_format, message_factory

from meshbus.compile.findings import Finding
from meshbus.compile.proxy import Snapshot
from meshbus.compile.resources import CDS, ECDS, EDS, LDS, RDS, RTDS, TYPE_PREFIX, VHDS, Resource
from meshbus.compile.traffic_policy import budget_intervals

_SECTIONS = (
    ("listeners", LDS),
    ("routes", RDS),
    ("clusters", CDS),
    ("endpoints", EDS),
    ("extensions", ECDS),
)
_MODULES = {
    CDS: "envoy.config.cluster.v3.cluster_pb2",
    EDS: "envoy.config.endpoint.v3.endpoint_pb2",
    LDS: "envoy.config.listener.v3.listener_pb2",
    RDS: "envoy.config.route.v3.route_pb2",
    ECDS: "envoy.config.core.v3.extension_pb2",
    VHDS: "envoy.config.route.v3.route_components_pb2",
    RTDS: "envoy.service.runtime.v3.rtds_pb2",
}
REDACTED = "[redacted]"
_SECRET_FIELDS = frozenset({"privateKey", "password", "tokenSecret", "hmacSecret"})


def message_of(resource: Resource) -> Any:
    """The protobuf message of a resource, its type imported when needed."""
    import_module(_MODULES[resource.type_url])
    name = resource.type_url.removeprefix(TYPE_PREFIX)
    descriptor = descriptor_pool.Default().FindMessageTypeByName(name)
    return message_factory.GetMessageClass(descriptor).FromString(resource.body)


def render_resource(resource: Resource) -> dict[str, Any]:
    """One resource as proto JSON; inline keys are redacted."""
    message = message_of(resource)
    document: dict[str, Any] = _redacted(json_format.MessageToDict(message))
    if resource.type_url == CDS:
        for index, interval in enumerate(budget_intervals(message)):
            if interval:
                budget = document["circuitBreakers"]["thresholds"][index]["retryBudget"]
                budget["budgetInterval"] = interval
    return document


def render_snapshot(snapshot: Snapshot) -> dict[str, Any]:
    """All resources of a proxy, each section in order of name; virtual hosts that came by
    themselves stand in their route configurations. `runtime` is there where values of it are."""
    out: dict[str, Any] = {}
    for section, type_url in _SECTIONS:
        resources = snapshot.resources.get(type_url, {})
        out[section] = [render_resource(resources[name]) for name in sorted(resources)]
    asked = snapshot.resources.get(VHDS, {})
    for table in out["routes"]:
        hosts = [n for n in sorted(asked) if n.rpartition("/")[0] == table["name"]]
        if hosts:
            table.setdefault("virtualHosts", []).extend(render_resource(asked[n]) for n in hosts)
    if runtime := snapshot.resources.get(RTDS, {}):
        out["runtime"] = [render_resource(runtime[name]) for name in sorted(runtime)]
    out["secrets"] = [
        {"name": need.name, **_secret_body(need.part)} for need in sorted(snapshot.secrets)
    ]
    return out


def render_findings(findings: tuple[Finding, ...]) -> list[dict[str, str]]:
    """Findings for people: the object as `plane.kind/namespace/name`."""
    return [
        {
            "object": f"{f.object.table}/{f.object.namespace}/{f.object.name}",
            "path": f.path,
            "message": f.message,
        }
        for f in findings
    ]


def _secret_body(part: str) -> dict[str, Any]:
    if part == "ca":
        return {"validationContext": {"trustedCa": {"inlineString": REDACTED}}}
    return {
        "tlsCertificate": {
            "certificateChain": {"inlineString": REDACTED},
            "privateKey": {"inlineString": REDACTED},
        }
    }


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: {"inlineString": REDACTED}
            if name in _SECRET_FIELDS and isinstance(item, dict) and "filename" not in item
            else _redacted(item)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_redacted(item) for item in value]
    return value
