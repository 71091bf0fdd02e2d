"""Whether an object may be written: its shape, Istio's rules, and what this release carries out.

Pure. Unknown fields are judged by Kubernetes' `fieldValidation`: Strict refuses, Warn removes them
and says so, Ignore removes them. What is valid in Istio but not carried out here is refused always:
config that is accepted has an effect.
"""

from collections.abc import Sequence

from meshbus.api.kinds import KindInfo, by_plural
from meshbus.api.nulls import without_nulls
from meshbus.api.proto_json import document_as_json
from meshbus.validate import validate_object
from meshbus.validate.report import Violation
from meshbus.validate.support import silent_fields_of, unsupported_fields
from meshbus_config.documents import Document, Space
from meshbus_config.errors import (
    ApiError,
    Cause,
    bad_request,
    conflict,
    forbidden,
    invalid,
    not_found,
)
from meshbus_config.paths import remove

STRICT, WARN, IGNORE = "Strict", "Warn", "Ignore"
_REASONS = {
    "Required": "FieldValueRequired",
    "Duplicate": "FieldValueDuplicate",
    "Enum": "FieldValueNotSupported",
    "Unsupported": "FieldValueForbidden",
    "TooLong": "FieldValueTooLong",
    "Type": "FieldValueTypeInvalid",
}
PERMANENT_NAMESPACES = ("default", "kube-system")
"""Namespaces that always exist, besides the root namespace."""


def admit(info: KindInfo, document: Document, field_validation: str) -> tuple[Document, list[str]]:
    """The document as it may be kept, and warnings for the person who wrote it.

    Raises:
        ApiError: 400 for unknown fields when Strict, 422 for broken rules.
    """
    document = without_nulls(document)
    name = _name_of(document)
    warnings: list[str] = []
    report = validate_object(document)
    unknown = [v for v in report.errors if v.code == "Unknown"]
    if unknown:
        if field_validation == STRICT:
            raise _not_decoded(info, name, report.errors)
        for violation in unknown:
            if not remove(document, violation.path):
                raise invalid(info, name, [_cause(v) for v in report.errors])
            if field_validation == WARN:
                warnings.append(f'unknown field "{violation.path}"')
        report = validate_object(document)
    document = document_as_json(document)
    problems = [*report.errors, *(() if report.errors else unsupported_fields(document))]
    if problems:
        raise invalid(info, name, [_cause(v) for v in problems])
    told = [*report.warnings, *silent_fields_of(document)]
    warnings += [f"{v.path}: {v.message}" if v.path else v.message for v in told]
    return document, warnings


def _not_decoded(info: KindInfo, name: str, errors: Sequence[Violation]) -> ApiError:
    """400 as kubectl knows it for unknown fields, with everything else that is wrong."""
    unknown = [v for v in errors if v.code == "Unknown"]
    texts = [f'unknown field "{v.path}" ({v.message})' for v in unknown]
    texts += [f"{v.path}: {v.message}" for v in errors if v not in unknown]
    causes = [_cause(v) for v in errors]
    return bad_request(f"strict decoding error: {', '.join(texts)}", info, name, causes)


def _name_of(document: Document) -> str:
    metadata = document.get("metadata")
    return str(metadata.get("name") or "") if isinstance(metadata, dict) else ""


def _cause(violation: Violation) -> Cause:
    reason = _REASONS.get(violation.code, "FieldValueInvalid")
    return Cause(reason, violation.message, violation.path)


def namespace_kind() -> KindInfo:
    """The kind Namespace."""
    info = by_plural("", "v1", "namespaces")
    assert info is not None
    return info


def check_place(space: Space, info: KindInfo, namespace: str, name: str) -> None:
    """Whether an object of this kind may be made there.

    Raises:
        ApiError: 404, the namespace does not exist; 409, there may be only one.
    """
    if info.namespaced and space.get(namespace_kind(), "", namespace) is None:
        raise not_found(namespace_kind(), namespace)
    if info.kind == "MeshConfig":
        for other in space.all(info):
            if other.row.name != name:
                raise conflict(
                    info, name, f"a mesh has one MeshConfig, and that is {other.row.name!r}"
                )


def check_removal(space: Space, info: KindInfo, name: str) -> None:
    """Whether an object may be deleted at all.

    Raises:
        ApiError: 403, a namespace that always exists.
    """
    if info is not namespace_kind():
        return
    if name in (*PERMANENT_NAMESPACES, space.root_namespace):
        raise forbidden(info, name, "this namespace may not be deleted")
