"""What one client has refused, and what it gets instead."""

import re
from dataclasses import dataclass

from meshbus.compile.extensions import stand_in
from meshbus.compile.resources import LDS, Resource
from meshbus_xds_gateway.session_state import UNSURE
from meshbus_xds_gateway.verdicts import Refusal, Verdicts

RETRY_S, MAX_RETRY_S = 2.0, 60.0
"""When a listener whose address was in use is offered again; doubles."""

_CONTENT = re.compile(r"goo\.gle/debug\w*")
"""Where a message printed by Envoy begins."""
_CUT = "a constraint of Envoy is broken; its message ended before the reason"

Named = tuple[str, str]
"""Type URL, name."""


class KeepError(Exception):
    """What the client has of a resource (or has not) is to stay."""


@dataclass(frozen=True, slots=True)
class Blocked:
    """A resource that a client does not get in its present content."""

    sequence: int
    """Model version since when."""
    refusal: Refusal


@dataclass(slots=True)
class _Retry:
    """A listener that could not bind its address."""

    version: str
    due: float | None
    """When to offer it again; None: it has been."""
    delay_s: float = RETRY_S


class ClientRefusals:
    """Refusals as one session sees them: its own, and those of others that block it."""

    __slots__ = ("_own", "_proxy", "_retries", "_verdicts", "blocked")

    def __init__(self, proxy: str, verdicts: Verdicts) -> None:
        self.blocked: dict[Named, Blocked] = {}
        """What the client does not get."""
        self._proxy = proxy
        self._verdicts = verdicts
        self._own: dict[Named, Refusal] = {}
        self._retries: dict[Named, _Retry] = {}

    @property
    def waits(self) -> bool:
        """Something is to be offered again, later."""
        return any(retry.due is not None for retry in self._retries.values())

    def forget(self, type_url: str, name: str, content: Resource | None) -> None:
        """The client is to have another content, or none, or has taken what it had refused."""
        key = (type_url, name)
        self.blocked.pop(key, None)
        own, retry = self._own.get(key), self._retries.get(key)
        if own is not None and (content is None or own.resource.version != content.version):
            del self._own[key]
        if retry is not None and (content is None or retry.version != content.version):
            del self._retries[key]

    def concern(self, type_url: str) -> bool:
        """Something of this type was refused, and not forgotten."""
        return any(
            kind == type_url
            for held in (self.blocked, self._own, self._retries)
            for kind, _ in held
        )

    def refuse(
        self, resource: Resource, message: str, since: int, before: Resource | None, now: float
    ) -> Refusal | None:
        """The client has refused this content alone. Gives the refusal, once for each content.

        Args:
            since: Model version that gave the client the content.
            before: What the client has in its place, None: nothing.
        """
        key = (resource.type_url, resource.name)
        fallback = before or self._verdicts.fallback_of(resource) or stand_in(resource)
        refusal = self._own[key] = Refusal(
            resource, reason_of(message), self._proxy, since, fallback
        )
        if not cannot_bind(resource.type_url, message):
            self._verdicts.refuse(refusal)
            return refusal
        self._verdicts.give_up(resource)
        retry = self._retries.get(key)
        if retry is not None and retry.version == resource.version:
            retry.delay_s = min(retry.delay_s * 2, MAX_RETRY_S)
            retry.due = now + retry.delay_s
            return None
        self._retries[key] = _Retry(resource.version, now + RETRY_S)
        return refusal

    def take_due(self, now: float) -> list[Named]:
        """Listeners to offer again now, whose address was in use."""
        out = []
        for key, retry in self._retries.items():
            if retry.due is not None and now >= retry.due:
                retry.due = None
                self._own.pop(key, None)
                out.append(key)
        return out

    def next_due(self) -> list[float]:
        """When to offer listeners again."""
        return [retry.due for retry in self._retries.values() if retry.due is not None]

    def admit(self, resource: Resource, known: str | None, since: int) -> Resource:
        """What the client is to be offered when it should have `resource`: it, or what stands in.

        Args:
            known: Version that the client has; empty or None: it has nothing.
            since: Model version since when it should have it.
        Raises:
            KeepError: Nothing is to be offered.
        """
        key = (resource.type_url, resource.name)
        own = self._own.get(key)
        refusal = self._verdicts.refusal_of(resource, self._proxy)
        if own is not None and own.resource.version == resource.version:
            refusal = own
        if refusal is None:
            return resource
        self.blocked[key] = Blocked(max(since, refusal.sequence), refusal)
        fallback = refusal.fallback
        kept = bool(known) and known != UNSURE
        if fallback is None or kept or (own and own.resource.version == fallback.version):
            raise KeepError
        return fallback


def cannot_bind(type_url: str, message: str) -> bool:
    """Envoy refuses a listener because its address is taken: the fault of the machine and of the
    moment, not of the content.

    Source: what Envoy 1.40 says, `cannot bind '127.0.0.1:80': Address already in use`.
    """
    return type_url == LDS and "cannot bind" in message


def reason_of(message: str) -> str:
    """What Envoy says without the content that it repeats: that is long, the reason comes after
    it, and Envoy cuts what is too long."""
    content = _CONTENT.search(message)
    if content is None:
        return message
    _, found, reason = message[content.end() :].rpartition("\n: ")
    return message[: content.start()] + (reason if found else _CUT)
