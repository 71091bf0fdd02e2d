"""Quotas at a workload's inbound side: the rate limit filter and the descriptors it asks about."""

from dataclasses import dataclass, field
from typing import Any

from meshbus.compile.engine import Reader
from meshbus.compile.proxy_keys import ProxyKeys


@dataclass(frozen=True)
class QuotaFilters:
    """What quotas add to the inbound HTTP connection managers of a workload."""

    http_filter: Any
    """`HttpFilter`, placed before the router."""
    rate_limits: list[Any] = field(default_factory=list)
    """Route `RateLimit`s, put on the inbound virtual host."""


def inbound_quota(reader: Reader, proxy: ProxyKeys) -> QuotaFilters | None:
    """The filters that quotas ask for at this proxy; None when no quota concerns it."""
    return None
