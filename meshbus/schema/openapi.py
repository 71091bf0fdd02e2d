"""OpenAPI v3 of one group and version, as clients of Kubernetes read it.

kubectl takes three things from it: the schemas (`explain`), the kind behind a path
(`x-kubernetes-group-version-kind`), and whether a patch knows `fieldValidation` and `dryRun`.
Source: https://kubernetes.io/docs/concepts/overview/kubernetes-api/#openapi-v3
"""

from typing import Any

from meshbus.api.kinds import KindInfo, all_kinds
from meshbus.schema.metadata import (
    DELETE_OPTIONS,
    LIST_META,
    OBJECT_META,
    PATCH,
    STATUS,
    shared_schemas,
)
from meshbus.schema.objects import object_schema

_JSON, _YAML = "application/json", "application/yaml"
_PATCHES = (
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/apply-patch+yaml",
)
_STRATEGIC = "application/strategic-merge-patch+json"
_KUBERNETES_GROUPS = ("", "discovery.k8s.io", "networking.k8s.io")


def openapi_of(group: str, version: str) -> dict[str, Any]:
    """The document at `/openapi/v3/apis/<group>/<version>`, or `/openapi/v3/api/v1`.

    A group or version that is not served has no paths and no kinds of its own.
    """
    schemas = shared_schemas()
    paths: dict[str, Any] = {}
    for info in all_kinds():
        if info.group == group and version in info.versions:
            name = schema_name(info, version)
            metadata = {
                "allOf": [_ref(OBJECT_META)],
                "default": {},
                "description": "Metadata of the object.",
            }
            schemas[name] = object_schema(info, version, metadata)
            schemas[f"{name}List"] = _list_schema(info, version, name)
            paths.update(_paths(info, version, name))
    return {
        "openapi": "3.0.0",
        "info": {"title": "Meshbus", "version": version},
        "paths": dict(sorted(paths.items())),
        "components": {"schemas": dict(sorted(schemas.items()))},
    }


def schema_name(info: KindInfo, version: str) -> str:
    """The name of a kind's schema: `io.istio.networking.v1.VirtualService`."""
    if not info.group:
        return f"io.k8s.api.core.{version}.{info.kind}"
    if info.group in _KUBERNETES_GROUPS:
        return f"io.k8s.api.{info.group.split('.')[0]}.{version}.{info.kind}"
    return ".".join([*reversed(info.group.split(".")), version, info.kind])


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _kind(info: KindInfo, version: str) -> dict[str, str]:
    return {"group": info.group, "version": version, "kind": info.kind}


def _list_schema(info: KindInfo, version: str, name: str) -> dict[str, Any]:
    kind = {"group": info.group, "version": version, "kind": info.list_kind}
    return {
        "type": "object",
        "description": f"A list of {info.kind}.",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"allOf": [_ref(LIST_META)], "default": {}},
            "items": {"type": "array", "items": {"allOf": [_ref(name)], "default": {}}},
        },
        "x-kubernetes-group-version-kind": [kind],
    }


def _parameter(name: str, where: str, kind: str, text: str) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "in": where, "description": text}
    if where == "path":
        found["required"] = True
    return {**found, "schema": {"type": kind, "uniqueItems": True}}


_WRITE = [
    _parameter("dryRun", "query", "string", "`All`: nothing is written."),
    _parameter("fieldManager", "query", "string", "Who writes."),
    _parameter("fieldValidation", "query", "string", "`Strict`, `Warn` or `Ignore`."),
]
_FORCE = _parameter("force", "query", "boolean", "Takes fields from other managers.")
_LIST = [
    _parameter("labelSelector", "query", "string", "Objects by labels."),
    _parameter("fieldSelector", "query", "string", "Objects by fields."),
    _parameter("limit", "query", "integer", "At most so many."),
    _parameter("continue", "query", "string", "Goes on where a list ended."),
    _parameter("resourceVersion", "query", "string", "At least this version."),
    _parameter("resourceVersionMatch", "query", "string", "`Exact` or `NotOlderThan`."),
    _parameter("watch", "query", "boolean", "Changes instead of a list."),
    _parameter("allowWatchBookmarks", "query", "boolean", "Versions are told now and then."),
    _parameter("sendInitialEvents", "query", "boolean", "The list comes as changes."),
    _parameter("timeoutSeconds", "query", "integer", "How long a watch lasts."),
]
_DELETE = [
    _parameter("dryRun", "query", "string", "`All`: nothing is deleted."),
    _parameter("gracePeriodSeconds", "query", "integer", "Seconds until it goes."),
    _parameter("propagationPolicy", "query", "string", "What happens to what belongs to it."),
]


def _operation(
    info: KindInfo,
    version: str,
    action: str,
    verb: str,
    reply: str,
    parameters: list[dict[str, Any]],
    body: dict[str, Any] | None = None,
    scope: str = "",
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": f"{verb}{_title(info.group)}{_title(version)}{scope}{info.kind}",
        "description": f"{verb} {info.kind}",
        "tags": [f"{info.group or 'core'}_{version}"],
        "parameters": parameters,
        "responses": {
            "200": {
                "description": "OK",
                "content": {kind: {"schema": _ref(reply)} for kind in (_JSON, _YAML)},
            },
            "401": {"description": "Unauthorized"},
        },
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": _kind(info, version),
    }
    if body is not None:
        found["requestBody"] = {"content": body, "required": action != "delete"}
    return found


def _title(text: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in text.replace("-", ".").split("."))


def _paths(info: KindInfo, version: str, name: str) -> dict[str, Any]:
    base = f"/apis/{info.group}/{version}" if info.group else f"/api/{version}"
    namespace = _parameter("namespace", "path", "string", "Namespace.")
    own = [namespace] if info.namespaced else []
    place = (
        f"{base}/namespaces/{{namespace}}/{info.plural}"
        if info.namespaced
        else f"{base}/{info.plural}"
    )
    scope = "Namespaced" if info.namespaced else ""
    whole = {kind: {"schema": _ref(name)} for kind in (_JSON, _YAML)}
    options = {_JSON: {"schema": _ref(DELETE_OPTIONS)}}

    def operation(
        action: str,
        verb: str,
        reply: str,
        parameters: list[dict[str, Any]],
        body: dict[str, Any] | None = None,
        part: str = scope,
    ) -> dict[str, Any]:
        return _operation(info, version, action, verb, reply, parameters, body, part)

    found: dict[str, Any] = {
        place: {
            "get": operation("list", "list", f"{name}List", _LIST),
            "post": operation("post", "create", name, _WRITE, whole),
            "delete": operation("deletecollection", "deletecollection", STATUS, _LIST, options),
            "parameters": own,
        }
    }
    if info.namespaced:
        every = operation("list", "list", f"{name}List", _LIST, part="AllNamespaces")
        found[f"{base}/{info.plural}"] = {"get": every}
    named = [_parameter("name", "path", "string", f"Name of the {info.kind}."), *own]
    for suffix, part in (("", scope), ("/status", f"{scope}Status")):
        if suffix and not info.has_status:
            continue
        item = {
            "get": operation("get", "read", name, [], part=part),
            "put": operation("put", "replace", name, _WRITE, whole, part),
            "patch": operation("patch", "patch", name, [*_WRITE, _FORCE], _patches(info), part),
            "parameters": named,
        }
        if not suffix:
            item["delete"] = operation("delete", "delete", STATUS, _DELETE, options, part)
        found[f"{place}/{{name}}{suffix}"] = item
    return found


def _patches(info: KindInfo) -> dict[str, Any]:
    kinds = [*_PATCHES, _STRATEGIC] if info.group in _KUBERNETES_GROUPS else _PATCHES
    return {kind: {"schema": _ref(PATCH)} for kind in kinds}
