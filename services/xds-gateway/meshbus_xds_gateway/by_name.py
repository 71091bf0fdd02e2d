"""The part of a session that goes name by name: for a client that is not like the others now.

`expand` writes out what a shared state stands for, `collapse` goes back to it. In between each name
has the version that the client has, and names to look at are pending.
"""

from collections.abc import Callable, Iterable

from meshbus.compile.resources import ECDS, LDS, RDS, VHDS, Resource
from meshbus_xds_gateway.client_refusals import ClientRefusals, KeepError
from meshbus_xds_gateway.content import NO_NAMES, NOTHING, Change, Content
from meshbus_xds_gateway.session_state import ABSENT, Detail, Flight, Names, TypeState

GATED = frozenset({LDS, RDS, VHDS})
"""Sent after the clusters and endpoints that they may lead to."""


class UnknownContent(Resource):
    """What a client has from an earlier stream and nobody here knows: a version without content."""

    __slots__ = ()

    def __init__(self, type_url: str, name: str, version: str) -> None:
        super().__init__(type_url, name, b"", frozenset())
        self.version = version


def expand(state: TypeState, wanted: Content, since: int) -> Detail:
    """Keep a type name by name from now on. `since`: of what lacks and has no earlier version."""
    detail = Detail()
    have, flight = state.have, state.flight
    if state.wildcard:
        detail.known = {n: r.version for layer in have.layers for n, r in layer.items()}
    else:
        for name in state.covered:
            held = have.get(name)
            detail.known[name] = ABSENT if held is None else held.version
    reached, covered = have, state.covered
    if flight is not None:
        detail.sent.update((r.name, r) for r in flight.push.resources)
        detail.sent.update((name, None) for name in flight.push.removed)
        detail.sent_since = dict.fromkeys(detail.sent, flight.since)
        reached, covered = flight.target, flight.covered
    lacking: set[str] = set(reached.differing(wanted))
    if not state.wildcard:
        lacking &= covered
        lacking |= state.names - covered
        lacking &= state.names
    detail.pending = dict.fromkeys(sorted(lacking), state.since or since)
    for name in (*detail.sent, *detail.pending):
        held = have.get(name) if name in detail.known else None
        if held is not None and not isinstance(held, UnknownContent):
            detail.before[name] = held
    state.detail = detail
    state.have, state.covered, state.since = NOTHING, NO_NAMES, 0
    return detail


def collapse(state: TypeState, wanted: Content) -> bool:
    """Go back to a shared state, if the client has exactly that."""
    detail = state.detail
    if detail is None or not detail.quiet or state.flight is not None:
        return False
    known = detail.known
    if state.wildcard:
        held = sum(1 for version in known.values() if version)
        if state.names or held != len(wanted):
            return False
        alike = all(known.get(n) == r.version for layer in wanted.layers for n, r in layer.items())
    else:
        alike = all(_is_known(known.get(name), wanted.get(name)) for name in state.names)
    if alike:
        state.detail = None
        state.have, state.covered, state.since = wanted, state.names, 0
    return alike


def _is_known(version: str | None, resource: Resource | None) -> bool:
    return version == (ABSENT if resource is None else resource.version)


class ByName:
    """What to send of one type now, name by name."""

    def __init__(
        self,
        type_url: str,
        state: TypeState,
        detail: Detail,
        wanted: Names | Content,
        refusals: ClientRefusals,
    ) -> None:
        self._type_url = type_url
        self._state = state
        self._detail = detail
        self._wanted = wanted
        self._refusals = refusals

    def sendable(
        self,
        building: Callable[[], bool],
        may_remove: Callable[[], bool],
        is_tried: Callable[[Resource], bool],
    ) -> list[str]:
        """Names to send now; forgets pending ones that need nothing.

        Args:
            building: Clusters or endpoints are on their way and waited for.
            may_remove: Nothing is left that has to come before removals.
            is_tried: Another client tries a content.
        """
        state, detail = self._state, self._detail
        while detail.parts:
            part = [n for n in detail.parts.popleft() if n in detail.pending]
            names = [n for n in part if self._settle(n) is not None]
            if names:
                return names
        updates: list[str] = []
        removals: list[str] = []
        for name in list(detail.pending):
            kind = self._settle(name)
            if kind == "update":
                updates.append(name)
            elif kind == "removal":
                removals.append(name)
        if not updates and not removals:
            return []
        gated = self._type_url in GATED
        if self._type_url == LDS or not state.answered:
            # All or nothing: a listener that takes over the port of another must come with its
            # removal, and a client that starts goes on with what the first answer holds.
            if any(detail.known.values()) and gated and building():
                return []
            offered = self._offerable(updates, is_tried)
            return updates + removals if len(offered) == len(updates) else []
        if gated and building():
            updates = [n for n in updates if not detail.known.get(n)]
        absent = [n for n in removals if not detail.known.get(n)]
        offered = self._offerable(updates, is_tried)
        if updates or absent:
            return offered + absent
        return removals if may_remove() else []

    def take(self, names: Iterable[str]) -> Flight:
        """The response of these names."""
        detail = self._detail
        detail.sent, detail.sent_since = {}, {}
        for name in names:
            since = detail.sent_since[name] = detail.pending.pop(name)
            detail.forced.discard(name)
            detail.sent[name] = self.desired(name, since)
        updates = tuple(r for r in detail.sent.values() if r is not None)
        removed = tuple(n for n, r in detail.sent.items() if r is None)
        return Flight(Change(self._type_url, updates, removed))

    def desired(self, name: str, since: int) -> Resource | None:
        """What the client should have of a name. None: nothing.

        Raises:
            KeepError: What it has (or has not) is to stay.
        """
        resource = self._wanted.get(name)
        if resource is None:
            return None
        return self._refusals.admit(resource, self._detail.known.get(name), since)

    def _offerable(self, names: list[str], is_tried: Callable[[Resource], bool]) -> list[str]:
        out = []
        for name in names:
            resource = self.desired(name, self._detail.pending[name])
            assert resource is not None
            if not is_tried(resource):
                out.append(name)
        return out

    def _settle(self, name: str) -> str | None:
        """`update` or `removal`: what a pending name needs; None: nothing (now)."""
        state, detail = self._state, self._detail
        try:
            desired = self.desired(name, detail.pending[name])
        except KeepError:
            detail.settle(name)
            return None
        known = detail.known.get(name)
        if desired is None:
            if name in self._wanted:
                return None  # it will come
            told = known == ABSENT and name not in detail.forced
            if told or (known is None and name not in state.names):
                detail.settle(name)
                detail.before.pop(name, None)
                return None
            if self._type_url == ECDS and known:  # see `content._made_change`
                detail.settle(name)
                detail.known[name] = ABSENT
                detail.before.pop(name, None)
                return None
            return "removal"
        if known == desired.version and name not in detail.forced:
            detail.settle(name)
            if desired is self._wanted.get(name):
                detail.before.pop(name, None)
            return None
        return "update"
