"""Metadata of objects: names, namespaces, labels, annotations.

Source: https://kubernetes.io/docs/concepts/overview/working-with-objects/
"""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

import msgspec

from meshbus.api.kinds import KindInfo
from meshbus.validate.names import (
    is_namespace,
    is_service_name,
    is_subdomain,
    label_key_problem,
    label_value_problem,
)
from meshbus.validate.report import Findings

_FIELDS = frozenset(
    {
        "name",
        "generateName",
        "namespace",
        "selfLink",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "labels",
        "annotations",
        "ownerReferences",
        "finalizers",
        "managedFields",
        "clusterName",
    }
)
_LARGEST_ANNOTATIONS_BYTES = 256 * 1024
_DRY_RUN = "istio.io/dry-run"
_ALWAYS_REJECT = "internal.istio.io/webhook-always-reject"
_OF_THE_CONTROL_PLANE = ("internal.istio.io/parents", "internal.istio.io/parent-namespace")
"""Set on objects made of others, whose rights they then have: not for people."""


class ObjectName(msgspec.Struct, frozen=True):
    """What rules know of the object they look at."""

    api_version: str
    """As the document has it."""
    name: str
    namespace: str
    """`default` if the document says none."""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


def read_metadata(info: KindInfo, api_version: str, value: Any, out: Findings) -> ObjectName:
    """The name of the object, with what is wrong with its metadata in `out`."""
    if not isinstance(value, Mapping):
        if value is None:
            out.required("metadata.name")
        else:
            out.error("metadata", "must be an object", "Type")
        return ObjectName(api_version, "", "default")
    for field in value:
        if field not in _FIELDS:
            close = get_close_matches(str(field), _FIELDS, n=1, cutoff=0.7)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            out.error(f"metadata.{field}", f"unknown field {field!r}{hint}", "Unknown")
    name, prefix = _text(value, "name", out), _text(value, "generateName", out)
    if name:
        _check_name(info, name, out)
    elif not prefix:
        out.required("metadata.name", "name or generateName is required")
    namespace = _text(value, "namespace", out)
    if namespace and not is_namespace(namespace):
        out.error("metadata.namespace", f"{namespace!r} is not the name of a namespace")
    elif namespace and not info.namespaced and not info.proto_json:
        out.error("metadata.namespace", f"a {info.kind} has no namespace")
    labels = _strings(value, "labels", out)
    for key, label in labels.items():
        if problem := label_key_problem(key) or label_value_problem(label):
            out.error(f"metadata.labels[{key}]", problem)
    annotations = _strings(value, "annotations", out)
    for key in annotations:
        if problem := label_key_problem(key):
            out.error(f"metadata.annotations[{key}]", problem.replace("label", "annotation", 1))
    if sum(len(k) + len(v) for k, v in annotations.items()) > _LARGEST_ANNOTATIONS_BYTES:
        out.error("metadata.annotations", "are larger than 256 KiB", "TooLong")
    found = ObjectName(api_version, name or prefix, namespace or "default", labels, annotations)
    _check_annotations(info, found, out)
    return found


def _check_name(info: KindInfo, name: str, out: Findings) -> None:
    rule: Callable[[str], bool] = is_subdomain
    wanted = "lower-case letters, digits, `-` and `.`, at most 253"
    if info.group == "" and info.kind == "Service":
        rule, wanted = (
            is_service_name,
            "lower-case letters, digits and `-`, at most 63, a letter first",
        )
    elif (info.group == "" and info.kind == "Namespace") or info.kind == "Workload":
        rule, wanted = is_namespace, "lower-case letters, digits and `-`, at most 63"
    if not rule(name):
        out.error("metadata.name", f"{name!r} is not a name: {wanted}")


def _check_annotations(info: KindInfo, found: ObjectName, out: Findings) -> None:
    if _DRY_RUN in found.annotations and info.kind != "AuthorizationPolicy":
        out.error(
            f"metadata.annotations[{_DRY_RUN}]",
            f"a {info.kind} cannot be run dry; remove the annotation",
        )
    if _ALWAYS_REJECT in found.annotations:
        out.error(f"metadata.annotations[{_ALWAYS_REJECT}]", "asks for a refusal")
    for annotation in _OF_THE_CONTROL_PLANE:
        if annotation in found.annotations:
            out.error(f"metadata.annotations[{annotation}]", "may not be set by users")


def _text(metadata: Mapping[str, Any], field: str, out: Findings) -> str:
    value = metadata.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        out.error(f"metadata.{field}", "must be a string", "Type")
        return ""
    return value


def _strings(metadata: Mapping[str, Any], field: str, out: Findings) -> dict[str, str]:
    value = metadata.get(field)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        out.error(f"metadata.{field}", "must be an object", "Type")
        return {}
    found: dict[str, str] = {}
    for key, text in value.items():
        if not isinstance(text, str):
            out.error(f"metadata.{field}[{key}]", "must be a string; put it in quotes", "Type")
        else:
            found[str(key)] = text
    return found
