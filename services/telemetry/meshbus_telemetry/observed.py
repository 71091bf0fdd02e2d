"""Who called what, remembered so that policies can be suggested. Pure.

Paths are generalised as they come in: a segment that looks like an identifier becomes `{*}`.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from meshbus.model.requests import ObservedCall
from meshbus_telemetry.access import Access, identity_of
from meshbus_telemetry.parties import UNKNOWN

KEEP_S = 24 * 3600.0
MAX_PATHS = 50
"""Paths of one caller at one port and method; more become their first segment, then `/*`."""
_IDENTIFIER = re.compile(
    r"[0-9]+|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[0-9a-fA-F]{16,}"
    r"|[^/]*[{}*\[\]][^/]*"
)


class Call(NamedTuple):
    """One kind of request."""

    namespace: str
    workload: str
    port: int
    protocol: str
    principal: str
    """`TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT`; empty: nobody knows."""
    method: str
    path: str
    """With `{*}` for segments that change, or `/*` at its end."""


@dataclass
class _Seen:
    first: float
    last: float
    count: int
    sample: str
    host: str


@lru_cache(maxsize=4096)
def general_path(path: str) -> str:
    """A path in which identifiers are `{*}`."""
    if not path.startswith("/"):
        return path
    segments = path.split("/")
    return "/".join("{*}" if s and _IDENTIFIER.fullmatch(s) else s for s in segments)


class Observed:
    """Calls of the last day, at most `most` kinds of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen: dict[Call, _Seen] = {}
        self._paths: dict[Call, set[str]] = {}
        self.overflowed = 0
        """Requests whose kind was one too many."""

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, access: Access, now: float) -> None:
        """Take one request. Those that a policy refused are not what anybody should be allowed."""
        if access.cause or access.at.workload == UNKNOWN:
            return
        call = self._call(access)
        seen = self._seen.get(call)
        if seen is None:
            if len(self._seen) >= self._most:
                self._sweep(now)
            if len(self._seen) >= self._most:
                self.overflowed += 1
                return
            seen = self._seen[call] = _Seen(now, now, 0, access.path, access.host)
        seen.count += 1
        seen.last = now

    def _call(self, access: Access) -> Call:
        at = access.at
        whole = Call(
            at.namespace,
            at.workload,
            access.port,
            access.protocol,
            identity_of(access.source),
            access.method,
            "",
        )
        if access.protocol != "http":
            return whole
        paths = self._paths.setdefault(whole, set())
        general = general_path(access.path)
        segments = general.split("/")
        first = f"/{segments[1]}/*" if len(segments) > 2 and segments[1] != "{*}" else ""
        for path in (general, first):
            if path in paths:
                return whole._replace(path=path)
        # Half of the room is for whole paths, the rest for what they begin with.
        if len(paths) < MAX_PATHS // 2:
            path = general
        elif first and len(paths) < MAX_PATHS:
            path = first
        else:
            return whole._replace(path="/*")
        paths.add(path)
        return whole._replace(path=path)

    def _sweep(self, now: float) -> None:
        for call in [c for c, seen in self._seen.items() if seen.last < now - KEEP_S]:
            del self._seen[call]
            self._paths.get(call._replace(path=""), set()).discard(call.path)

    def since(self, now: float, since_s: float, namespace: str = "") -> list[ObservedCall]:
        """Calls of the last seconds, sorted."""
        return [
            ObservedCall(*call, seen.count, seen.first, seen.last, seen.sample, seen.host)
            for call, seen in sorted(self._seen.items())
            if seen.last >= now - since_s and namespace in ("", call.namespace)
        ]
