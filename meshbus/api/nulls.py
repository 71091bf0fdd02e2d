"""Nulls in objects: fields that are left out.

Source: Kubernetes' API server, which drops a null where the schema does not allow one
(https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#defaulting-and-nullable).
"""

from collections.abc import Mapping
from typing import Any

from msgspec import inspect

from meshbus.api.kinds import kind_of


def without_nulls(document: dict[str, Any]) -> dict[str, Any]:
    """The object without the fields that are null.

    Entries of lists and maps stay, and what is free in form. The same document if there is nothing
    to drop, or if nobody knows its kind.
    """
    info = kind_of(str(document.get("apiVersion")), str(document.get("kind")))
    shape = info.shape() if info else None
    if info is None or shape is None or not _holds_null(document):
        return document
    kind = inspect.type_info(shape)
    if not info.spec_field:
        return dict(_pruned(kind, document))
    rest = {name: value for name, value in document.items() if name != "spec"}
    spec = document.get("spec")
    return rest if spec is None else rest | {"spec": _pruned(kind, spec)}


def _holds_null(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_null(item) for item in value.values())
    if isinstance(value, list):
        return any(map(_holds_null, value))
    return value is None


def _pruned(kind: inspect.Type, value: Any) -> Any:
    if isinstance(kind, inspect.Metadata):
        return _pruned(kind.type, value)
    if isinstance(kind, inspect.UnionType):
        for each in kind.types:
            value = _pruned(each, value)
        return value
    if isinstance(kind, inspect.StructType) and isinstance(value, Mapping):
        known = {field.encode_name: field.type for field in kind.fields}
        return {
            name: _pruned(known[name], item) if name in known else item
            for name, item in value.items()
            if item is not None or name not in known
        }
    if isinstance(kind, inspect.DictType) and isinstance(value, Mapping):
        return {name: _pruned(kind.value_type, item) for name, item in value.items()}
    if isinstance(kind, inspect.ListType) and isinstance(value, list):
        return [_pruned(kind.item_type, item) for item in value]
    return value
