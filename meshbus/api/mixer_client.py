"""Kinds of config.istio.io that configured the proxies' side of Mixer in Istio 1.4.

Source: https://istio.io/v1.4/docs/reference/config/policy-and-telemetry/istio.mixer.v1.config.client/
"""

from msgspec import UNSET

from meshbus.api.networking.virtual_service import StringMatch
from meshbus.api.shape import AnyDuration, Bytes, Maybe, Shape, Timestamp


class StringMap(Shape, frozen=True, kw_only=True):
    """A map of strings."""

    entries: dict[str, str] = {}
    """Its entries."""


class AttributeValue(Shape, frozen=True, kw_only=True):
    """A value of an attribute."""

    one_of = (
        (
            "stringValue",
            "int64Value",
            "doubleValue",
            "boolValue",
            "bytesValue",
            "timestampValue",
            "durationValue",
            "stringMapValue",
        ),
    )

    string_value: Maybe[str] = UNSET
    """A string, URI, name or address of mail."""
    int64_value: Maybe[int] = UNSET
    """An integer."""
    double_value: Maybe[float] = UNSET
    """A number."""
    bool_value: Maybe[bool] = UNSET
    """A truth value."""
    bytes_value: Maybe[Bytes] = UNSET
    """Bytes, such as an IP address."""
    timestamp_value: Maybe[Timestamp] = UNSET
    """A point in time."""
    duration_value: Maybe[AnyDuration] = UNSET
    """A stretch of time."""
    string_map_value: Maybe[StringMap] = UNSET
    """A map."""


class Attributes(Shape, frozen=True, kw_only=True):
    """Attributes and their values."""

    attributes: dict[str, AttributeValue] = {}
    """Values by name."""


class IstioService(Shape, frozen=True, kw_only=True):
    """A service."""

    name: str = ""
    """Short name."""
    namespace: str = ""
    """Namespace."""
    domain: str = ""
    """Domain."""
    service: str = ""
    """Whole name instead; `*` means every service."""
    labels: dict[str, str] = {}
    """Labels of its workloads."""


class SpecReference(Shape, frozen=True, kw_only=True):
    """An object of config.istio.io."""

    name: str = ""
    """Its name."""
    namespace: str = ""
    """Its namespace."""


class Quota(Shape, frozen=True, kw_only=True):
    """What a request is charged."""

    quota: str = ""
    """Name of the quota instance."""
    charge: int = 0
    """Units."""


class AttributeMatch(Shape, frozen=True, kw_only=True):
    """Requests by attributes; all must match."""

    clause: dict[str, StringMatch] = {}
    """Matches by name of the attribute."""


class QuotaRule(Shape, frozen=True, kw_only=True):
    """Which requests are charged what."""

    match: list[AttributeMatch] = []
    """Requests, of which one must match; all if empty."""
    quotas: list[Quota] = []
    """What they are charged."""


class QuotaSpec(Shape, frozen=True, kw_only=True):
    """Which requests are charged what."""

    rules: list[QuotaRule] = []
    """Rules."""


class QuotaSpecBinding(Shape, frozen=True, kw_only=True):
    """Services whose requests are charged."""

    services: list[IstioService] = []
    """Services."""
    quota_specs: list[SpecReference] = []
    """What applies to them."""


class HTTPAPISpecPattern(Shape, frozen=True, kw_only=True):
    """Attributes of an operation."""

    one_of = (("uriTemplate", "regex"),)

    attributes: Maybe[Attributes] = UNSET
    """Its attributes."""
    http_method: str = ""
    """Its method."""
    uri_template: Maybe[str] = UNSET
    """Its path, RFC 6570."""
    regex: Maybe[str] = UNSET
    """Its path, as an expression."""


class APIKey(Shape, frozen=True, kw_only=True):
    """Where the key of an API is."""

    one_of = (("query", "header", "cookie"),)

    query: Maybe[str] = UNSET
    """A query parameter."""
    header: Maybe[str] = UNSET
    """A header."""
    cookie: Maybe[str] = UNSET
    """A cookie."""


class HTTPAPISpec(Shape, frozen=True, kw_only=True):
    """Attributes of the operations of an API."""

    attributes: Maybe[Attributes] = UNSET
    """Attributes of every operation."""
    patterns: list[HTTPAPISpecPattern] = []
    """Operations."""
    api_keys: list[APIKey] = []
    """Where keys are."""


class HTTPAPISpecBinding(Shape, frozen=True, kw_only=True):
    """Services of an API."""

    services: list[IstioService] = []
    """Services."""
    api_specs: list[SpecReference] = []
    """What applies to them."""
