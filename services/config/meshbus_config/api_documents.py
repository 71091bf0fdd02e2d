"""What describes the API itself: OpenAPI of `/v1`, AsyncAPI of EVENTS. Pure."""

from collections.abc import Mapping
from typing import Any

from meshbus.api.kinds import groups
from meshbus.schema import openapi_of

_STATUS = {"$ref": "#/components/schemas/Status"}


def _operation(
    summary: str, parameters: Mapping[str, str] | None = None, *, body: str = "", path: str = ""
) -> dict[str, Any]:
    found: list[dict[str, Any]] = [
        {
            "name": name,
            "in": "query",
            "description": text,
            "schema": {"type": "string"},
        }
        for name, text in (parameters or {}).items()
    ]
    if path:
        found.append({"name": path, "in": "path", "required": True, "schema": {"type": "string"}})
    operation: dict[str, Any] = {
        "summary": summary,
        "tags": ["mesh"],
        "parameters": found,
        "responses": {
            "200": {
                "description": "OK",
                "content": {"application/json": {"schema": {"type": "object"}}},
            },
            "default": {
                "description": "A refusal",
                "content": {"application/json": {"schema": _STATUS}},
            },
        },
    }
    if body:
        operation["requestBody"] = {
            "description": body,
            "required": True,
            "content": {
                "application/json": {"schema": {"type": "array", "items": {"type": "object"}}}
            },
        }
    return operation


_BULK = {
    "atomic": "true (default): all or none, as one change; false: each for itself",
    "dryRun": "All: judge, do not write",
    "fieldValidation": "Strict (default), Warn or Ignore",
}

MESH_PATHS: dict[str, dict[str, Any]] = {
    "/v1/apply": {"post": _operation("Apply objects", _BULK, body="objects")},
    "/v1/delete": {"post": _operation("Delete objects", _BULK, body="objects")},
    "/v1/changes": {"get": _operation("The latest changes", {"limit": "at most so many"})},
    "/v1/changes/{change}": {
        "get": _operation(
            "How far a change has come",
            {"wait": "seconds to wait until it has converged or is rejected"},
            path="change",
        )
    },
    "/v1/proxies": {"get": _operation("Connected proxies")},
    "/v1/proxies/{proxy}/config": {
        "get": _operation(
            "What a proxy was sent",
            {"type": "clusters, listeners, routes, endpoints, secrets, extensions or all"},
            path="proxy",
        )
    },
    "/v1/authz/check": {"post": _operation("Would a request be let in, and by which rule")},
    "/v1/authz/suggest": {
        "get": _operation(
            "Policies that allow what was observed",
            {
                "since": "a duration such as 1h, or an RFC 3339 time",
                "namespace": "of who was called",
            },
        )
    },
    "/v1/graph": {"get": _operation("Who calls whom")},
    "/v1/traces": {"get": _operation("The latest traces")},
    "/v1/events": {
        "get": _operation(
            "Events, server-sent",
            {
                "filter": "kind=, namespace=, name=, verb= with shell patterns, comma between",
                "since": "a duration such as 5m, or an RFC 3339 time",
                "follow": "false: end after past events",
            },
        )
    },
}


def openapi_document(version: str) -> dict[str, Any]:
    """`/openapi.json`: every path of the API in one document."""
    paths: dict[str, Any] = dict(MESH_PATHS)
    schemas: dict[str, Any] = {}
    for group, versions in groups().items():
        for served in versions:
            document = openapi_of(group, served)
            paths.update(document.get("paths", {}))
            schemas.update(document.get("components", {}).get("schemas", {}))
    schemas["Status"] = {
        "type": "object",
        "description": "A Kubernetes Status: why a request was refused.",
        "properties": {
            "kind": {"type": "string"},
            "apiVersion": {"type": "string"},
            "status": {"type": "string"},
            "message": {"type": "string"},
            "reason": {"type": "string"},
            "code": {"type": "integer"},
            "details": {"type": "object"},
        },
    }
    return {
        "openapi": "3.0.0",
        "info": {"title": "Meshbus", "version": version},
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


OPENAPI_V2 = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"


def openapi_v2() -> bytes:
    """`/openapi/v2` in protobuf: a document without definitions.

    kubectl reads it where it cannot ask the server to validate (a List); a kind that is not in it
    is left to the server then. All else is in OpenAPI v3.
    Source: gnostic openapiv2/OpenAPIv2.proto, message Document.
    """
    info = b"\x0a\x07meshbus\x12\x011"
    return b"\x0a\x032.0\x12" + bytes([len(info)]) + info + b"\x42\x00\x4a\x00"


VERBS = {
    "applied": "An object was written. data: change, action, user, apiVersion, generation",
    "deleted": "An object was deleted. data: change, action, user, apiVersion, generation",
    "rejected": "An object was refused by validation. data: user, reason, message",
    "converged": "Every connected proxy has a change. data: as /v1/changes/{change}",
    "nacked": "A proxy refused a resource that came of an object",
    "issued": "Certificates were issued in ten seconds. data: count, identities, certificates",
    "revoked": "Certificates or an identity were revoked. data: certificates, reason, by",
    "allowed": "An identity that was blocked may have certificates again",
    "expiring": "A root, or the CA that is plugged in, ends soon. data: warnings, rootEnds",
    "rotating": "A change of roots has come to its next phase. data: phase, root, next",
    "rotated": "A change of roots is over",
    "registered": "A workload instance came",
    "gone": "A workload instance went",
    "denied": "Requests were denied, or would be by what runs dry",
    "audited": "Requests matched an AUDIT policy",
    "exhausted": "A quota is used up",
}


def asyncapi_document(version: str) -> dict[str, Any]:
    """`/asyncapi.json`: the events for other people's programs (AsyncAPI 3.0)."""
    address = "events.v1.{cluster}.{kind}.{namespace}.{name}."
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Meshbus events",
            "version": version,
            "description": "CloudEvents 1.0 in JSON form on NATS JetStream, kept for 7 days in the "
            "stream EVENTS. Subject tokens are escaped: bytes outside [-_a-zA-Z0-9] as =XX, an "
            "empty token as -.",
        },
        "channels": {
            verb: {
                "address": f"{address}{verb}",
                "parameters": {
                    name: {"description": f"{name} of the object"}
                    for name in ("cluster", "kind", "namespace", "name")
                },
                "messages": {verb: {"$ref": f"#/components/messages/{verb}"}},
            }
            for verb in VERBS
        },
        "operations": {
            f"on_{verb}": {"action": "send", "channel": {"$ref": f"#/channels/{verb}"}}
            for verb in VERBS
        },
        "components": {
            "messages": {
                verb: {
                    "contentType": "application/cloudevents+json",
                    "summary": text,
                    "payload": {"$ref": "#/components/schemas/CloudEvent"},
                }
                for verb, text in VERBS.items()
            },
            "schemas": {
                "CloudEvent": {
                    "type": "object",
                    "required": ["specversion", "id", "source", "type"],
                    "properties": {
                        "specversion": {"const": "1.0"},
                        "id": {"type": "string"},
                        "source": {"type": "string"},
                        "type": {"type": "string"},
                        "subject": {"type": "string"},
                        "time": {"type": "string", "format": "date-time"},
                        "datacontenttype": {"const": "application/json"},
                        "data": {"type": "object"},
                    },
                }
            },
        },
    }
