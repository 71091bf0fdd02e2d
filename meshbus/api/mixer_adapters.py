"""Parameters of Mixer's adapters and fields of its templates, as far as they are carried out here.

Expressions on attributes are strings. Adapters and templates that are not listed take any content.
Source: https://istio.io/v1.4/docs/reference/config/policy-and-telemetry/adapters/ and templates/
"""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta

from meshbus.api.shape import AnyDuration, Free, Int32, Maybe, Shape

Amount = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class MemquotaOverride(Shape, frozen=True, kw_only=True):
    """A limit for some of the requests."""

    dimensions: dict[str, str] = {}
    """Values that the dimensions must have; `*` any."""
    max_amount: Amount = 0
    """Units in the window."""
    valid_duration: Maybe[AnyDuration] = UNSET
    """The window; without one units are never given back by time."""


class MemquotaQuota(Shape, frozen=True, kw_only=True):
    """A limit."""

    name: str = ""
    """Name of the quota instance."""
    max_amount: Amount = 0
    """Units in the window."""
    valid_duration: Maybe[AnyDuration] = UNSET
    """The window."""
    overrides: list[MemquotaOverride] = []
    """Limits for some of the requests; the first that matches counts."""


class Memquota(Shape, frozen=True, kw_only=True):
    """Quotas kept in memory."""

    quotas: list[MemquotaQuota] = []
    """Limits."""
    min_deduplication_duration: Maybe[AnyDuration] = UNSET
    """Time for which a request counts once."""


class RedisquotaOverride(Shape, frozen=True, kw_only=True):
    """A limit for some of the requests."""

    dimensions: dict[str, str] = {}
    """Values that the dimensions must have."""
    max_amount: Amount = 0
    """Units in the window."""


class RedisquotaQuota(Shape, frozen=True, kw_only=True):
    """A limit."""

    name: str = ""
    """Name of the quota instance."""
    max_amount: Amount = 0
    """Units in the window."""
    valid_duration: Maybe[AnyDuration] = UNSET
    """The window."""
    bucket_duration: Maybe[AnyDuration] = UNSET
    """Step of a rolling window."""
    rate_limit_algorithm: Literal["FIXED_WINDOW", "ROLLING_WINDOW"] = "FIXED_WINDOW"
    """How the window moves."""
    overrides: list[RedisquotaOverride] = []
    """Limits for some of the requests."""


class Redisquota(Shape, frozen=True, kw_only=True):
    """Quotas kept in Redis."""

    redis_server_url: str = ""
    """Where Redis is."""
    connection_pool_size: Amount = 0
    """Connections."""
    quotas: list[RedisquotaQuota] = []
    """Limits."""


class DenierStatus(Shape, frozen=True, kw_only=True):
    """What a refused request is told."""

    code: Int32 = 0
    """A gRPC status."""
    message: str = ""
    """Text."""
    details: list[Free] = []
    """Without effect."""


class Denier(Shape, frozen=True, kw_only=True):
    """Refuses everything."""

    status: Maybe[DenierStatus] = UNSET
    """What a refused request is told."""
    valid_duration: Maybe[AnyDuration] = UNSET
    """How long the answer may be kept."""
    valid_use_count: Int32 = 0
    """How often the answer may be used."""


class Listchecker(Shape, frozen=True, kw_only=True):
    """Allows what is on a list, or what is not."""

    provider_url: str = ""
    """Where the list is."""
    refresh_interval: Maybe[AnyDuration] = UNSET
    """Time between looks."""
    ttl: Maybe[AnyDuration] = UNSET
    """How long a list is used without a new one."""
    caching_interval: Maybe[AnyDuration] = UNSET
    """How long an answer may be kept."""
    caching_use_count: Int32 = 0
    """How often an answer may be used."""
    overrides: list[str] = []
    """Further entries."""
    entry_type: Literal["STRINGS", "CASE_INSENSITIVE_STRINGS", "IP_ADDRESSES", "REGEX"] = "STRINGS"
    """What entries are."""
    blacklist: bool = False
    """Whether the list says who is refused."""


class QuotaTemplate(Shape, frozen=True, kw_only=True):
    """What is counted apart."""

    dimensions: dict[str, str] = {}
    """Expressions by name."""


class ListEntryTemplate(Shape, frozen=True, kw_only=True):
    """What is looked up in a list."""

    value: str = ""
    """An expression."""


class CheckNothingTemplate(Shape, frozen=True, kw_only=True):
    """Nothing."""


ADAPTERS: dict[str, type[msgspec.Struct]] = {
    "memquota": Memquota,
    "redisquota": Redisquota,
    "denier": Denier,
    "listchecker": Listchecker,
}
"""Parameters by name of the adapter."""
TEMPLATES: dict[str, type[msgspec.Struct]] = {
    "quota": QuotaTemplate,
    "listentry": ListEntryTemplate,
    "checknothing": CheckNothingTemplate,
}
"""Fields by name of the template."""
