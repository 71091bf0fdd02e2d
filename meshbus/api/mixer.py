"""Kinds of config.istio.io that configured Mixer in Istio 1.4.

Source: https://istio.io/v1.4/docs/reference/config/policy-and-telemetry/istio.policy.v1beta1/
"""

from typing import Any, Literal

from msgspec import UNSET

from meshbus.api.shape import AnyDuration, Free, Maybe, Shape, UInt32

ValueType = Literal[
    "VALUE_TYPE_UNSPECIFIED",
    "STRING",
    "INT64",
    "DOUBLE",
    "BOOL",
    "TIMESTAMP",
    "IP_ADDRESS",
    "EMAIL_ADDRESS",
    "URI",
    "DNS_NAME",
    "DURATION",
    "STRING_MAP",
]


class AttributeInfo(Shape, frozen=True, kw_only=True):
    """One attribute."""

    description: str = ""
    """What it says."""
    value_type: ValueType = "VALUE_TYPE_UNSPECIFIED"
    """Type of its values."""


class AttributeManifest(Shape, frozen=True, kw_only=True):
    """The attributes that a component reports."""

    revision: str = ""
    """Version of the manifest."""
    name: str = ""
    """The component."""
    attributes: dict[str, AttributeInfo] = {}
    """Attributes by name."""


class Connection(Shape, frozen=True, kw_only=True):
    """How an adapter out of process is reached."""

    address: str = ""
    """Its address."""
    timeout: Maybe[AnyDuration] = UNSET
    """Time for an answer."""
    authentication: Maybe[Free] = UNSET
    """`tls` or `mutual`."""


class Handler(Shape, frozen=True, kw_only=True):
    """A configured adapter."""

    name: str = ""
    """Use `metadata.name`."""
    compiled_adapter: str = ""
    """An adapter that is built in: `memquota`, `denier`, `listchecker`, ..."""
    adapter: str = ""
    """An adapter out of process."""
    params: Maybe[Any] = UNSET
    """Configuration of the adapter."""
    connection: Maybe[Connection] = UNSET
    """How an adapter out of process is reached."""


class Instance(Shape, frozen=True, kw_only=True):
    """What an adapter is told, as expressions on attributes."""

    name: str = ""
    """Use `metadata.name`."""
    compiled_template: str = ""
    """A template that is built in: `quota`, `listentry`, `metric`, ..."""
    template: str = ""
    """A template of one's own."""
    params: Maybe[Any] = UNSET
    """Fields of the template."""
    attribute_bindings: dict[str, str] = {}
    """Attributes that are made of the adapter's answer."""


class Action(Shape, frozen=True, kw_only=True):
    """Which adapter is told what."""

    handler: str = ""
    """A handler, `NAME` or `NAME.NAMESPACE`."""
    instances: list[str] = []
    """Instances."""
    name: str = ""
    """A name by which header operations refer to its answer."""


class HeaderOperation(Shape, frozen=True, kw_only=True):
    """A change to a header."""

    name: str = ""
    """The header."""
    values: list[str] = []
    """Expressions of its values."""
    operation: Literal["REPLACE", "REMOVE", "APPEND"] = "REPLACE"
    """How."""


class FractionalPercent(Shape, frozen=True, kw_only=True):
    """A share."""

    numerator: UInt32 = 0
    """Numerator."""
    denominator: Literal["HUNDRED", "TEN_THOUSAND"] = "HUNDRED"
    """Denominator."""


class RandomSampling(Shape, frozen=True, kw_only=True):
    """A share of the requests."""

    attribute_expression: str = ""
    """An expression instead of the share."""
    percent_sampled: Maybe[FractionalPercent] = UNSET
    """The share."""
    use_independent_randomness: bool = False
    """Whether each proxy draws for itself."""


class RateLimitSampling(Shape, frozen=True, kw_only=True):
    """So many requests of each stretch of time."""

    sampling_duration: Maybe[AnyDuration] = UNSET
    """The stretch."""
    max_unsampled_entries: int = 0
    """Requests before sampling begins."""
    sampling_rate: int = 0
    """One of so many after that."""


class Sampling(Shape, frozen=True, kw_only=True):
    """Which requests a rule sees."""

    random: Maybe[RandomSampling] = UNSET
    """A share."""
    rate_limit: Maybe[RateLimitSampling] = UNSET
    """By rate."""


class Rule(Shape, frozen=True, kw_only=True):
    """When which adapters are told what."""

    match: str = ""
    """An expression that must hold; empty means always."""
    actions: list[Action] = []
    """What is done."""
    request_header_operations: list[HeaderOperation] = []
    """Changes to headers of the request."""
    response_header_operations: list[HeaderOperation] = []
    """Changes to headers of the response."""
    sampling: Maybe[Sampling] = UNSET
    """Which requests it sees."""


class Adapter(Shape, frozen=True, kw_only=True):
    """An adapter out of process."""

    name: str = ""
    """Use `metadata.name`."""
    description: str = ""
    """What it does."""
    templates: list[str] = []
    """Templates it takes."""
    config: str = ""
    """Base64 descriptor of its configuration."""
    session_based: bool = False
    """Whether it keeps a session."""


class Template(Shape, frozen=True, kw_only=True):
    """A template of one's own."""

    descriptor: str = ""
    """Base64 descriptor of its fields."""
