"""CustomResourceDefinitions of the mesh's kinds, generated from their structs.

Schemas are structural: fields that nobody declares are refused by `kubectl` and pruned by the API
server, as with Istio's own. What one object can be judged by alone stands in them, as limits and as
CEL rules; the rest is the validating webhook's.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from meshbus.api.kinds import KindInfo, all_kinds
from meshbus.schema.cel_rules import RULES
from meshbus.schema.columns import PRINTER_COLUMNS, PrinterColumn
from meshbus.schema.types import struct_schema

_PRESERVE = "x-kubernetes-preserve-unknown-fields"
_INT_OR_STRING = "x-kubernetes-int-or-string"
_NOT_IN_DEFINITIONS = ("x-kubernetes-patch", "x-kubernetes-group-version-kind")
_WITHOUT = frozenset(
    {
        "",
        "discovery.k8s.io",
        "networking.k8s.io",
        "gateway.networking.k8s.io",
        "mesh.istio.io",
        "standalone.meshbus.io",
    }
)
"""Groups without definitions: Kubernetes' own, that of the Gateway API (which brings them itself),
the mesh config (a ConfigMap there), and what only a mesh without Kubernetes has."""
_PROGRAMMED = PrinterColumn(
    "Programmed", "condition:Programmed", 1, description="Whether all proxies have it."
)
_AGE = {
    "name": "Age",
    "type": "date",
    "jsonPath": ".metadata.creationTimestamp",
    "description": "Time since it was created.",
}
_CONDITIONS = {
    "type": "array",
    "description": "What the mesh says of this object.",
    "items": {
        "type": "object",
        _PRESERVE: True,
        "required": ["type", "status"],
        "properties": {
            "type": {"type": "string", "description": "What is said."},
            "status": {"type": "string", "description": "`True`, `False` or `Unknown`."},
            "reason": {"type": "string", "description": "Why, for programs."},
            "message": {"type": "string", "description": "Why, for people."},
            "lastTransitionTime": {
                "type": "string",
                "format": "date-time",
                "description": "When the status last changed.",
            },
            "lastProbeTime": {
                "type": "string",
                "format": "date-time",
                "description": "When it was last looked at.",
            },
            "observedGeneration": {
                "type": "integer",
                "format": "int64",
                "description": "Generation of the object that this is about.",
            },
        },
    },
}
_STATUS: dict[str, Any] = {
    "type": "object",
    "description": "What the mesh says of this object; read-only.",
    _PRESERVE: True,
    "properties": {
        "conditions": _CONDITIONS,
        "observedGeneration": {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            _INT_OR_STRING: True,
            "description": "Generation of the object that the status is about.",
        },
        "validationMessages": {
            "type": "array",
            "description": "Findings about the object.",
            "items": {"type": "object", _PRESERVE: True},
        },
    },
}


def defined_kinds() -> tuple[KindInfo, ...]:
    """Kinds that a cluster learns of by our definitions."""
    return tuple(info for info in all_kinds() if info.group not in _WITHOUT)


def followed_kinds() -> tuple[KindInfo, ...]:
    """Kinds of definitions that a cluster may have: ours, and those of the Gateway API that are
    read here."""
    others = (info for info in all_kinds() if info.group == "gateway.networking.k8s.io")
    return (*defined_kinds(), *others)


@cache
def definition_of(info: KindInfo) -> Mapping[str, Any]:
    """The CustomResourceDefinition of a kind."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{info.plural}.{info.group}",
            "labels": {"app.kubernetes.io/part-of": "meshbus", "app": "meshbus"},
            "annotations": {"helm.sh/resource-policy": "keep"},
        },
        "spec": {
            "group": info.group,
            "names": _names(info),
            "scope": "Namespaced" if info.namespaced else "Cluster",
            "versions": [
                _version(info, version, described=version == info.version)
                for version in info.versions
            ],
        },
    }


def definitions() -> Iterable[Mapping[str, Any]]:
    """Those of all kinds."""
    return (definition_of(info) for info in defined_kinds())


def _names(info: KindInfo) -> dict[str, Any]:
    names: dict[str, Any] = {
        "kind": info.kind,
        "listKind": info.list_kind,
        "plural": info.plural,
        "singular": info.singular,
    }
    if info.short_names:
        names["shortNames"] = list(info.short_names)
    if info.categories:
        names["categories"] = list(info.categories)
    return names


def _version(info: KindInfo, version: str, *, described: bool) -> dict[str, Any]:
    columns = [*PRINTER_COLUMNS.get((info.group, info.kind), ())]
    if info.has_status:
        columns.append(_PROGRAMMED)
    made: dict[str, Any] = {
        "name": version,
        "served": True,
        "storage": version == info.version,
        "additionalPrinterColumns": [*(_column(one) for one in columns), _AGE],
        "schema": {"openAPIV3Schema": _schema(info, described=described)},
    }
    if info.has_status:
        made["subresources"] = {"status": {}}
    return made


def _column(column: PrinterColumn) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": column.name,
        "type": column.type,
        "jsonPath": column.json_path,
    }
    if column.description:
        made["description"] = column.description
    if column.priority:
        made["priority"] = column.priority
    return made


def _schema(info: KindInfo, *, described: bool) -> dict[str, Any]:
    """The schema of one version; `described` False leaves descriptions out: versions differ in
    name only, and a definition has a limited size."""
    shape = info.shape()
    spec = struct_schema(shape) if shape is not None else {"type": "object", _PRESERVE: True}
    content: dict[str, Any] = _structural(spec, described)
    if rules := RULES.get((info.group, info.kind)):
        content["x-kubernetes-validations"] = [
            {"rule": rule, "message": message} for rule, message in rules
        ]
    properties: dict[str, Any] = {"spec": content}
    if info.has_status:
        properties["status"] = _STATUS if described else _structural(_STATUS, described)
    return {"type": "object", "properties": properties}


def _structural(schema: Mapping[str, Any], described: bool) -> dict[str, Any]:
    """A schema as a definition may have it."""
    made: dict[str, Any] = {}
    for name, value in schema.items():
        if name.startswith(_NOT_IN_DEFINITIONS) or (name == "description" and not described):
            continue
        if name == "properties":
            value = {key: _structural(one, described) for key, one in value.items()}
        elif name in ("items", "additionalProperties") and isinstance(value, Mapping):
            value = _structural(value, described)
        made[name] = value
    if made.get(_INT_OR_STRING):
        return made
    if "type" not in made or (
        made["type"] == "object" and not {"properties", "additionalProperties"} & made.keys()
    ):
        made[_PRESERVE] = True
    if made.get("nullable") and "enum" in made:
        made["enum"] = [*made["enum"], None]
    return made
