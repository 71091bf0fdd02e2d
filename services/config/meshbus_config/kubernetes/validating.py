"""The validating webhook: our verdicts on objects of the mesh, and who was let write what."""

from collections.abc import Callable
from typing import Any

import structlog

from meshbus.api.kinds import kind_of
from meshbus.model.rows import ConfigObject
from meshbus.validate import validate_object
from meshbus.validate.report import Violation
from meshbus.validate.support import unsupported_fields
from meshbus_config.kubernetes.objects import Judged
from meshbus_config.kubernetes.revisions import Revisions
from meshbus_config.kubernetes.webhooks import AdmissionRequest, Answer
from meshbus_config.kubernetes.writing import Authors

_SHOWN = 5

log = structlog.get_logger("admission")


class Validating:
    """Answers whether an object may be written."""

    def __init__(
        self,
        revisions: Revisions,
        authors: Authors,
        may: Callable[[Judged], str | None],
        rejected: Callable[[AdmissionRequest, str], None],
    ) -> None:
        """
        Args:
            may: Why an object is not allowed, seen with all others; None: it is.
            rejected: Told of each refusal.
        """
        self._revisions = revisions
        self._authors = authors
        self._may = may
        self._rejected = rejected

    async def answer(self, request: AdmissionRequest) -> Answer:
        """The verdict."""
        if request.operation not in ("CREATE", "UPDATE") or request.subresource:
            return Answer(True)
        document = request.document()
        metadata = document.get("metadata") or {}
        if not self._revisions.is_ours(metadata.get("labels") or {}):
            return Answer(True)
        # A new object has its name only after admission where the server completes it.
        metadata.setdefault("name", request.name or metadata.get("generateName", "") + "x")
        for of_the_server in ("managedFields", "selfLink"):
            metadata.pop(of_the_server, None)
        report = validate_object(document)
        problems = tuple(report.errors) or tuple(unsupported_fields(document, injects=True))
        warnings = [f"{v.path}: {v.message}" if v.path else v.message for v in report.warnings]
        if problems:
            return self._refuse(request, problems, warnings)
        judged = _judged(document)
        refusal = self._may(judged) if judged is not None else None
        if refusal is not None:
            self._rejected(request, refusal)
            return Answer(False, refusal, "Forbidden", 403, warnings=warnings)
        if not request.dry_run:
            uid, generation = str(metadata.get("uid") or ""), metadata.get("generation")
            if uid and isinstance(generation, int):
                self._authors.saw(uid, generation, request.user.username)
            log.info(
                "admitted",
                operation=request.operation,
                kind=request.kind.kind,
                namespace=request.namespace,
                name=request.name,
                user=request.user.username,
                generation=generation,
            )
        return Answer(True, warnings=warnings)

    def _refuse(
        self, request: AdmissionRequest, problems: tuple[Violation, ...], warnings: list[str]
    ) -> Answer:
        texts = [f"{one.path}: {one.message}" if one.path else one.message for one in problems]
        message = "; ".join(texts[:_SHOWN])
        if len(texts) > _SHOWN:
            message += f"; and {len(texts) - _SHOWN} more"
        self._rejected(request, message)
        causes = [
            {"reason": "FieldValueInvalid", "message": one.message, "field": one.path}
            for one in problems
        ]
        return Answer(False, message, "Invalid", 422, causes, warnings)


def _judged(document: dict[str, Any]) -> Judged | None:
    info = kind_of(str(document.get("apiVersion")), str(document.get("kind")))
    if info is None:
        return None
    metadata = document["metadata"]
    row = ConfigObject(
        api_version=info.api_version,
        kind=info.kind,
        namespace=str(metadata.get("namespace") or ""),
        name=str(metadata.get("name") or ""),
        uid=str(metadata.get("uid") or ""),
        generation=0,
        created=0.0,
        labels=metadata.get("labels") or {},
        spec=document.get("spec") or {},
    )
    return Judged(row, (), (), "", "", {})
