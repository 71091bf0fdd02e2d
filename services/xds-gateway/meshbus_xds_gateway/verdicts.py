"""What proxies say to contents, shared by all streams of a gateway: accepted, refused, being tried.

A content (type, name, version) that nobody has accepted yet goes to one proxy first; the others
wait for its answer, at most `TRIAL_S`. If it refuses, a second one is asked in the same way: one
proxy that refuses everything must not speak for the fleet. If both refuse, the content goes to
nobody else: they keep, or get, the last content that was accepted in its place. A content that some
proxy has accepted is not taken away from others for the fault of one.

A content is a *probe* while it is asked whose fault a refusal is (`quarantine.py`): it goes to one
proxy and to no other until that is known.
"""

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Protocol

from meshbus.compile.resources import CDS, ECDS, LDS, RDS, Resource
from meshbus_xds_gateway.content import Change

TRIAL_S = 1.0
"""How long the others wait for the first proxy's answer."""
MAX_REFUSALS = 1024
"""Older ones are forgotten: their content would be offered, and refused, once more."""
MAX_ACCEPTED = 65536
"""Contents remembered as accepted; a forgotten one is tried first once more."""
_TRIED_FIRST = frozenset({CDS, LDS, RDS, ECDS})
"""Endpoints are not: they change often, must arrive soon, and cannot be wrong in the same ways."""

Content = tuple[str, str, str]
"""Type URL, name, version."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One content that a proxy refused."""

    resource: Resource
    message: str
    proxy: str
    sequence: int
    """Model version that gave the proxy this content."""
    fallback: Resource | None
    """The content before it, which was accepted; None: there was none."""


class Trier(Protocol):
    """One who offers contents: a session."""

    proxy: str
    """Whose it is."""

    def wake(self) -> None:
        """What it waits for has been answered."""


@dataclass(slots=True)
class _Trial:
    """A content that one session has been offered first."""

    session: Trier
    until: float
    waiting: dict[Trier, None] = field(default_factory=dict)
    """Others that wait for the answer."""


def content_of(resource: Resource) -> Content:
    """What identifies a content; equal contents of different origins are one."""
    return (resource.type_url, resource.name, resource.version)


class Verdicts:
    """Bounded memory of one gateway."""

    def __init__(self) -> None:
        self._refused: OrderedDict[Content, Refusal] = OrderedDict()
        self._doubted: OrderedDict[Content, Refusal] = OrderedDict()
        """Refused by one proxy; blocked for it alone until another says the same."""
        self._accepted: OrderedDict[Content, None] = OrderedDict()
        self._trials: dict[Content, _Trial] = {}
        self._probe: Content | None = None
        self._prober = ""
        self._spared: dict[Trier, None] = {}
        """Others that wait for the end of the probe."""
        self.epoch = 0
        """Counts refusals: what was found not refused at this number need not be looked at."""

    def held(self, resource: Resource, session: Trier, now: float) -> bool:
        """Another session is trying this content: wait for what its proxy says."""
        if resource.type_url not in _TRIED_FIRST:
            return False
        content = content_of(resource)
        if content == self._probe and session.proxy != self._prober:
            self._spared[session] = None
            return True
        trial = self._trials.get(content)
        if trial is None or trial.session is session or now >= trial.until:
            return False
        trial.waiting[session] = None
        return True

    def offer(self, resource: Resource, session: Trier, now: float) -> None:
        """A session offers this content; if nobody has accepted it yet, the others wait."""
        content = content_of(resource)
        if resource.type_url in _TRIED_FIRST and content not in self._accepted:
            self._trials.setdefault(content, _Trial(session, now + TRIAL_S))

    def accept(self, resource: Resource) -> None:
        """A proxy took this content."""
        content = content_of(resource)
        self._doubted.pop(content, None)
        self._accepted[content] = None
        self._accepted.move_to_end(content)
        if len(self._accepted) > MAX_ACCEPTED:
            self._accepted.popitem(last=False)
        self._end(content)

    def refuse(self, refusal: Refusal) -> None:
        """A proxy refused a content: once two have, and none has accepted it, it is blocked for the
        others."""
        content = content_of(refusal.resource)
        if content not in self._accepted and content not in self._refused:
            first = self._doubted.get(content)
            if first is None:
                fallback = refusal.fallback
                if fallback is not None and content_of(fallback) == content:
                    refusal = replace(refusal, fallback=None)
                _keep(self._doubted, content, refusal)
            elif first.proxy != refusal.proxy:
                del self._doubted[content]
                _keep(self._refused, content, first)
                self.epoch += 1
        self._end(content)

    def held_any(self, change: Change, session: Trier, now: float) -> bool:
        """Another session is trying something that a change brings."""
        probed = self._probe is not None and self._probe[0] == change.type_url
        if not probed:
            if change.accepted_by is self or change.type_url not in _TRIED_FIRST:
                return False
            if not self._trials:
                return False
        return any(self.held(resource, session, now) for resource in change.updates)

    def offer_all(self, change: Change, session: Trier, now: float) -> None:
        """A session offers all that a change brings."""
        if change.accepted_by is self or change.type_url not in _TRIED_FIRST:
            return
        fresh = False
        for resource in change.updates:
            fresh = fresh or content_of(resource) not in self._accepted
            self.offer(resource, session, now)
        if not fresh:
            change.accepted_by = self

    def fresh_in(self, change: Change) -> int:
        """How many contents of a change nobody has accepted yet."""
        if change.accepted_by is self:
            return 0
        return sum(content_of(resource) not in self._accepted for resource in change.updates)

    def accept_all(self, change: Change) -> None:
        """A proxy took all that a change brings."""
        if change.accepted_by is self:
            return
        for resource in change.updates:
            self.accept(resource)
        change.accepted_by = self

    def refuses(self, change: Change) -> bool:
        """Something that a change brings is blocked, perhaps not for every proxy."""
        if not self._refused or change.epoch == (self, self.epoch):
            return False
        if any(content_of(resource) in self._refused for resource in change.updates):
            return True
        change.epoch = (self, self.epoch)
        return False

    def probe(self, resource: Resource | None, proxy: str = "") -> None:
        """Give a content to this proxy alone, until the next call; None: no content any more."""
        content = None if resource is None else content_of(resource)
        if (content, proxy) == (self._probe, self._prober):
            return
        self._probe, self._prober = content, proxy
        spared, self._spared = self._spared, {}
        for session in spared:
            session.wake()

    def is_probe(self, resource: Resource) -> bool:
        """One proxy is asked about this content."""
        return content_of(resource) == self._probe

    def is_accepted(self, resource: Resource) -> bool:
        """Some proxy has taken it."""
        return content_of(resource) in self._accepted

    def is_refused(self, resource: Resource) -> bool:
        """Some proxy has refused it, and none has taken it."""
        content = content_of(resource)
        return content in self._refused or content in self._doubted

    def is_blocked(self, resource: Resource) -> bool:
        """Two have refused it."""
        return content_of(resource) in self._refused

    def abandon(self, session: Trier) -> None:
        """A session has ended: what it was trying, another may try."""
        self._spared.pop(session, None)
        for content in [c for c, trial in self._trials.items() if trial.session is session]:
            self._end(content)

    def give_up(self, resource: Resource) -> None:
        """A session could not try a content, for a reason that is not the content's."""
        self._end(content_of(resource))

    def refusal_of(self, resource: Resource, proxy: str) -> Refusal | None:
        """The refusal that blocks a content for a proxy; None: it may be offered.

        Its own refusal does not block the proxy that refused: on a new stream it tries again, for
        its Envoy may be another one now.
        """
        if not self._refused:
            return None
        refusal = self._refused.get(content_of(resource))
        return None if refusal is None or refusal.proxy == proxy else refusal

    def fallback_of(self, resource: Resource) -> Resource | None:
        """What stands in for a blocked content."""
        content = content_of(resource)
        refusal = self._refused.get(content) or self._doubted.get(content)
        return None if refusal is None else refusal.fallback

    def refusals(self) -> tuple[Refusal, ...]:
        """Every content that is blocked for all, oldest first."""
        return tuple(self._refused.values())

    def _end(self, content: Content) -> None:
        trial = self._trials.pop(content, None)
        if trial is not None:
            for session in trial.waiting:
                session.wake()


def _keep(held: OrderedDict[Content, Refusal], content: Content, refusal: Refusal) -> None:
    held[content] = refusal
    if len(held) > MAX_REFUSALS:
        held.popitem(last=False)
