"""Kinds of telemetry.istio.io.

Source: https://istio.io/latest/docs/reference/config/telemetry/
"""

from typing import Annotated, Literal

from msgspec import UNSET, Meta

from meshbus.api.selectors import PolicyTargetReference, TargetRefs, WorkloadSelector
from meshbus.api.shape import Duration, Maybe, Shape, Text

WorkloadMode = Literal["CLIENT_AND_SERVER", "CLIENT", "SERVER"]


class ProviderRef(Shape, frozen=True, kw_only=True):
    """A provider of the mesh config."""

    name: Text
    """Its name."""


class TracingSelector(Shape, frozen=True, kw_only=True):
    """Which side reports."""

    mode: WorkloadMode = "CLIENT_AND_SERVER"
    """Side."""


class LiteralTag(Shape, frozen=True, kw_only=True):
    """A fixed value."""

    value: Text
    """The value."""


class EnvironmentTag(Shape, frozen=True, kw_only=True):
    """A variable of the proxy's environment."""

    name: Text
    """Its name."""
    default_value: str = ""
    """If it is missing."""


class HeaderTag(Shape, frozen=True, kw_only=True):
    """A header of the request."""

    name: Text
    """Its name."""
    default_value: str = ""
    """If it is missing."""


class FormatterTag(Shape, frozen=True, kw_only=True):
    """A value in Envoy's format language."""

    value: Text
    """The format."""


class CustomTag(Shape, frozen=True, kw_only=True):
    """A tag of spans."""

    one_of = (("literal", "environment", "header", "formatter"),)

    literal: Maybe[LiteralTag] = UNSET
    """A fixed value."""
    environment: Maybe[EnvironmentTag] = UNSET
    """From the environment."""
    header: Maybe[HeaderTag] = UNSET
    """From a header."""
    formatter: Maybe[FormatterTag] = UNSET
    """From a format."""


class Tracing(Shape, frozen=True, kw_only=True):
    """How requests are traced."""

    match: Maybe[TracingSelector] = UNSET
    """Which side reports."""
    providers: list[ProviderRef] = []
    """Where spans go."""
    random_sampling_percentage: Annotated[float, Meta(ge=0, le=100)] | None = None
    """Share of the requests that are traced unless already decided."""
    disable_span_reporting: bool | None = None
    """Whether spans are left out while the context is passed on."""
    disable_context_propagation: bool | None = None
    """Whether the context is not passed on."""
    custom_tags: dict[str, CustomTag] = {}
    """Further tags."""
    use_request_id_for_trace_sampling: bool | None = None
    """Whether the request id carries the decision."""
    enable_istio_tags: bool | None = None
    """Whether spans carry the names of the mesh."""


class MetricSelector(Shape, frozen=True, kw_only=True):
    """Which metrics."""

    one_of = (("metric", "customMetric"),)

    metric: Maybe[
        Literal[
            "ALL_METRICS",
            "REQUEST_COUNT",
            "REQUEST_DURATION",
            "REQUEST_SIZE",
            "RESPONSE_SIZE",
            "TCP_OPENED_CONNECTIONS",
            "TCP_CLOSED_CONNECTIONS",
            "TCP_SENT_BYTES",
            "TCP_RECEIVED_BYTES",
            "GRPC_REQUEST_MESSAGES",
            "GRPC_RESPONSE_MESSAGES",
        ]
    ] = UNSET
    """A metric of the mesh."""
    custom_metric: Maybe[Text] = UNSET
    """Any other."""
    mode: WorkloadMode = "CLIENT_AND_SERVER"
    """Side."""


class TagOverride(Shape, frozen=True, kw_only=True):
    """Changes a tag."""

    operation: Literal["UPSERT", "REMOVE"] = "UPSERT"
    """How."""
    value: Maybe[str] = UNSET
    """A CEL expression of its value."""


class MetricsOverrides(Shape, frozen=True, kw_only=True):
    """Changes metrics."""

    match: Maybe[MetricSelector] = UNSET
    """Which; all if unset."""
    disabled: bool | None = None
    """Whether they are left out."""
    tag_overrides: dict[str, TagOverride] = {}
    """Changes to their tags."""


class Metrics(Shape, frozen=True, kw_only=True):
    """Which metrics are reported."""

    providers: list[ProviderRef] = []
    """Where they go."""
    overrides: list[MetricsOverrides] = []
    """Changes, in order."""
    reporting_interval: Maybe[Duration] = UNSET
    """Time between reports of long connections."""


class LogSelector(Shape, frozen=True, kw_only=True):
    """Which side logs."""

    mode: WorkloadMode = "CLIENT_AND_SERVER"
    """Side."""


class AccessLoggingFilter(Shape, frozen=True, kw_only=True):
    """What is logged."""

    expression: str = ""
    """A CEL expression that must hold."""


class AccessLogging(Shape, frozen=True, kw_only=True):
    """Which requests are logged."""

    match: Maybe[LogSelector] = UNSET
    """Which side logs."""
    providers: list[ProviderRef] = []
    """Where logs go."""
    disabled: bool | None = None
    """Whether nothing is logged."""
    filter: Maybe[AccessLoggingFilter] = UNSET
    """What is logged."""


class Telemetry(Shape, frozen=True, kw_only=True):
    """What is told about requests."""

    selector: Maybe[WorkloadSelector] = UNSET
    """Workloads it concerns."""
    target_ref: Maybe[PolicyTargetReference] = UNSET
    """Resource it is attached to."""
    target_refs: TargetRefs = UNSET
    """Resources it is attached to."""
    tracing: list[Tracing] = []
    """Traces."""
    metrics: list[Metrics] = []
    """Metrics."""
    access_logging: list[AccessLogging] = []
    """Logs."""
