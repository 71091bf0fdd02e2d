"""Rules of Telemetry.

Source: https://istio.io/latest/docs/reference/config/telemetry/
"""

from msgspec import UnsetType

from meshbus.api.telemetry import Metrics, Telemetry, Tracing
from meshbus.validate.cel import cel_problem
from meshbus.validate.malformed import independent
from meshbus.validate.metadata import ObjectName
from meshbus.validate.report import Findings
from meshbus.validate.targets import check_targets


@independent
def check(spec: Telemetry, name: ObjectName, out: Findings) -> None:
    """Everything but its shape."""
    check_targets(spec.selector, spec.target_ref, spec.target_refs, out)
    if len(spec.tracing) > 1:
        out.warn("spec.tracing", "multiple tracing is not currently supported")
    for index, tracing in enumerate(spec.tracing):
        _check_tracing(tracing, f"spec.tracing[{index}]", out)
    for index, metrics in enumerate(spec.metrics):
        _check_metrics(metrics, f"spec.metrics[{index}]", out)
    for index, logging in enumerate(spec.access_logging):
        if isinstance(logging.filter, UnsetType):
            continue
        if problem := cel_problem(logging.filter.expression):
            out.error(f"spec.accessLogging[{index}].filter.expression", problem)


@independent
def _check_tracing(tracing: Tracing, path: str, out: Findings) -> None:
    if len(tracing.providers) > 1:
        out.warn(f"{path}.providers", "multiple providers is not currently supported")
    if "" in tracing.custom_tags:
        out.error(f"{path}.customTags", "tag name may not be empty")


@independent
def _check_metrics(metrics: Metrics, path: str, out: Findings) -> None:
    for index, override in enumerate(metrics.overrides):
        for tag, change in override.tag_overrides.items():
            at = f"{path}.overrides[{index}].tagOverrides[{tag}].value"
            if not tag:
                out.warn(at, "the name of a tag may not be empty")
            if change.operation == "UPSERT" and not change.value:
                out.required(at, "value must be set when operation is UPSERT")
            if change.operation == "REMOVE" and not isinstance(change.value, UnsetType):
                out.error(at, "value must not be set when operation is REMOVE", "Conflict")
