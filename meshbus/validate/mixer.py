"""Rules of Mixer's handlers, instances and rules (Istio 1.4).

Source: https://istio.io/v1.4/docs/reference/config/policy-and-telemetry/
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UnsetType

from meshbus.api.durations import nanoseconds
from meshbus.api.mixer import Handler, Instance, Rule
from meshbus.api.mixer_adapters import (
    ADAPTERS,
    TEMPLATES,
    ListEntryTemplate,
    Memquota,
    QuotaTemplate,
)
from meshbus.mixer.syntax import CompileError, parse
from meshbus.validate.malformed import independent
from meshbus.validate.metadata import ObjectName
from meshbus.validate.report import Findings
from meshbus.validate.shape import read_shape

_QUOTA_ADAPTERS = frozenset({"memquota", "redisquota"})


@independent
def check_handler(spec: Handler, name: ObjectName, out: Findings) -> None:
    """A handler: one adapter, and its parameters."""
    if bool(spec.compiled_adapter) == bool(spec.adapter):
        out.required("spec", "exactly one of compiledAdapter or adapter must be set")
    if spec.compiled_adapter:
        check_adapter_params(spec.compiled_adapter, spec.params, "spec.params", out)


@independent
def check_instance(spec: Instance, name: ObjectName, out: Findings) -> None:
    """An instance: one template, and its fields."""
    if bool(spec.compiled_template) == bool(spec.template):
        out.required("spec", "exactly one of compiledTemplate or template must be set")
    if spec.compiled_template:
        before = len(out.errors)
        _check_params(TEMPLATES, spec.compiled_template, spec.params, "spec.params", out)
        if len(out.errors) == before and isinstance(spec.params, Mapping):
            _check_fields(spec.compiled_template, spec.params, out)


@independent
def check_old_quota(spec: QuotaTemplate, name: ObjectName, out: Findings) -> None:
    """An instance of the older form: its kind is `quota`."""
    for field, text in spec.dimensions.items():
        _check_expression(text, f"spec.dimensions[{field}]", out)


@independent
def check_old_listentry(spec: ListEntryTemplate, name: ObjectName, out: Findings) -> None:
    """An instance of the older form: its kind is `listentry`."""
    _check_expression(spec.value, "spec.value", out)


@independent
def check_old_memquota(spec: Memquota, name: ObjectName, out: Findings) -> None:
    """A handler of the older form: its kind is `memquota`."""
    _check_quotas("memquota", msgspec.to_builtins(spec), "spec", out)


@independent
def _check_fields(template: str, params: Mapping[str, Any], out: Findings) -> None:
    if template == "quota":
        for field, text in (params.get("dimensions") or {}).items():
            _check_expression(str(text), f"spec.params.dimensions[{field}]", out)
    elif template == "listentry":
        _check_expression(str(params.get("value") or ""), "spec.params.value", out)


@independent
def _check_expression(text: str, path: str, out: Findings) -> None:
    """Syntax alone: the types of attributes are in other objects."""
    if not text:
        return
    try:
        parse(text)
    except CompileError as error:
        out.error(path, f"not an expression: {error}")


@independent
def check_rule(spec: Rule, name: ObjectName, out: Findings) -> None:
    """A rule: actions that name a handler."""
    if (
        not spec.actions
        and not spec.request_header_operations
        and not spec.response_header_operations
    ):
        out.required("spec.actions", "a rule without actions does nothing")
    _check_expression(spec.match, "spec.match", out)
    names: set[str] = set()
    for index, action in enumerate(spec.actions):
        path = f"spec.actions[{index}]"
        if not action.handler:
            out.required(f"{path}.handler")
        if action.name and action.name in names:
            out.error(f"{path}.name", f"duplicate name {action.name!r}", "Duplicate")
        names.add(action.name)
    for field, operations in (
        ("requestHeaderOperations", spec.request_header_operations),
        ("responseHeaderOperations", spec.response_header_operations),
    ):
        for index, operation in enumerate(operations):
            path = f"spec.{field}[{index}]"
            if not operation.name:
                out.required(f"{path}.name")
            if operation.operation != "REMOVE" and not operation.values:
                out.required(f"{path}.values", f"{operation.operation} needs values")
            for number, text in enumerate(operation.values):
                _check_expression(text, f"{path}.values[{number}]", out)


@independent
def check_adapter_params(adapter: str, params: Any | UnsetType, path: str, out: Findings) -> None:
    """The parameters of an adapter that is built in."""
    before = len(out.errors)
    _check_params(ADAPTERS, adapter, params, path, out)
    if adapter in _QUOTA_ADAPTERS and len(out.errors) == before and isinstance(params, Mapping):
        _check_quotas(adapter, params, path, out)


@independent
def _check_params(
    known: Mapping[str, type[msgspec.Struct]],
    name: str,
    params: Any | UnsetType,
    path: str,
    out: Findings,
) -> None:
    shape = known.get(name)
    if shape is not None:
        content = {} if isinstance(params, UnsetType) or params is None else params
        read_shape(shape, content, path, out, proto_json=True)


def _field(record: Mapping[str, Any], camel: str, snake: str) -> Any:
    return record.get(camel, record.get(snake))


@independent
def _check_quotas(adapter: str, params: Mapping[str, Any], path: str, out: Findings) -> None:
    for index, quota in enumerate(params.get("quotas") or ()):
        at = f"{path}.quotas[{index}]"
        if not quota.get("name"):
            out.required(f"{at}.name")
        limits = [(at, quota)]
        limits += [
            (f"{at}.overrides[{number}]", override)
            for number, override in enumerate(quota.get("overrides") or ())
        ]
        for where, limit in limits:
            most = _field(limit, "maxAmount", "max_amount")
            if most is not None and int(most) < 0:
                out.error(f"{where}.maxAmount", "must be at least 0")
            window = _field(limit, "validDuration", "valid_duration")
            if window is not None and (nanoseconds(window) or 0) < 0:
                out.error(f"{where}.validDuration", "must not be negative")
        bucket = _field(quota, "bucketDuration", "bucket_duration")
        rolling = _field(quota, "rateLimitAlgorithm", "rate_limit_algorithm") == "ROLLING_WINDOW"
        window_ns = nanoseconds(_field(quota, "validDuration", "valid_duration") or "0s") or 0
        if adapter == "redisquota":
            if window_ns <= 0:
                out.required(f"{at}.validDuration", "must be longer than 0s")
            bucket_ns = nanoseconds(bucket or "0s") or 0
            if rolling and not 0 < bucket_ns < window_ns:
                message = "must be longer than 0s and shorter than validDuration"
                out.error(f"{at}.bucketDuration", message)
