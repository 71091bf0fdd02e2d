"""Schemas of whole objects: `apiVersion`, `kind`, `metadata`, the content, `status`."""

from typing import Any

from meshbus.api.kinds import KindInfo
from meshbus.schema.types import struct_schema

_API_VERSION = "Version of the schema of this object: GROUP/VERSION."
_KIND = "Kind of this object, in CamelCase."
_STATUS = "What the mesh says of this object; read-only."
_OPEN: dict[str, Any] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


def version_name(info: KindInfo, version: str) -> str:
    """`GROUP/VERSION`, or the version alone for core kinds."""
    return f"{info.group}/{version}" if info.group else version


def object_schema(info: KindInfo, version: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """The schema of an object of the Kubernetes-style API; `metadata` is that of its metadata."""
    properties: dict[str, Any] = {
        "apiVersion": {"type": "string", "description": _API_VERSION},
        "kind": {"type": "string", "description": _KIND},
        "metadata": metadata,
    }
    shape = info.shape()
    content = struct_schema(shape) if shape is not None else dict(_OPEN)
    described = content.get("description") or f"A {info.kind}, as it is."
    if info.spec_field:
        properties["spec"] = content
    else:
        properties |= content.get("properties", {})
    if info.has_status:
        properties["status"] = {**_OPEN, "description": _STATUS}
    required = [] if info.spec_field else list(content.get("required", ()))
    schema: dict[str, Any] = {
        "type": "object",
        "description": described,
        "properties": properties,
    }
    if required:
        schema["required"] = required
    schema["x-kubernetes-group-version-kind"] = [
        {"group": info.group, "version": version, "kind": info.kind}
    ]
    return schema


def json_schema_of(info: KindInfo) -> dict[str, Any]:
    """A JSON Schema (2020-12) of one kind, for editors and CI: unknown fields are refused."""
    versions = [version_name(info, version) for version in info.versions]
    shape = info.shape()
    content: dict[str, Any] = {"type": "object"}
    if shape is not None:
        content = _plain(struct_schema(shape, closed=True))
    properties: dict[str, Any] = {
        "apiVersion": {"type": "string", "enum": versions, "description": _API_VERSION},
        "kind": {"type": "string", "enum": [info.kind], "description": _KIND},
        "metadata": {"type": "object", "description": "Name, namespace, labels, annotations."},
    }
    required = ["apiVersion", "kind", "metadata"]
    if info.spec_field:
        properties["spec"] = content
    else:
        properties |= content.get("properties", {})
        required += content.get("required", [])
    if info.has_status:
        properties["status"] = {"type": "object", "description": _STATUS}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"{info.kind} ({info.group or 'core'})",
        "description": content.get("description", ""),
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _plain(schema: Any) -> Any:
    """OpenAPI's words for null and for numbers or strings in those of JSON Schema."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {k: _plain(v) for k, v in schema.items() if not str(k).startswith("x-kubernetes")}
    if schema.get("x-kubernetes-int-or-string") is True:
        result["type"] = ["integer", "string"]
    if result.pop("nullable", None) is True:
        kinds = result.get("type", [])
        result["type"] = [*(kinds if isinstance(kinds, list) else [kinds]), "null"]
        if "enum" in result:
            result["enum"] = [*result["enum"], None]
    return result
