"""The state machine of one xDS stream: what the client has, what it should have, what to send next.

No IO and no clock. `Session` takes what the client says (`subscribe`, `unsubscribe`, `ack`, `nack`)
and what it should have (`update`), and gives one `Push` at a time (`poll`). It speaks neither delta
nor state-of-the-world: `delta.py` and `sotw.py` translate.

What it keeps to:

- at most one unacknowledged response per type; what changes meanwhile is merged into the next;
- make before break: clusters, their endpoints, then changed listeners and routes once those are
  acknowledged; removals last. A client that does not get on with it is waited for `HOLD_S`;
- a cluster that is sent again has its endpoints sent again: Envoy warms a changed cluster and does
  not ask for endpoints it already watches (envoyproxy/envoy#13009);
- of a refused response the resource at fault is found by sending parts of it again; the content
  that was refused alone is not sent again, the others are.

Source: https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from meshbus.compile.resources import CDS, ECDS, EDS, LDS, RDS, SDS, Resource
from meshbus_xds_gateway.refusals import Refusal, Refusals

HOLD_S = 2.0
"""How long changed listeners and routes, and removals, wait for clusters to be acknowledged."""
MAX_TYPES = 32
MAX_NAMES = 200_000
"""Names that one stream may subscribe to, over all types."""
MAX_NAME_BYTES = 4096

Wanted = Mapping[str, Mapping[str, Resource | None]]
"""By type URL and name. None: it will come (a certificate being signed), say nothing yet."""
Changed = Callable[[Mapping[str, Resource | None], Mapping[str, Resource | None]], Iterable[str]]

_ORDER = (CDS, EDS, SDS, ECDS, LDS, RDS)
_WILDCARD_TYPES = frozenset({CDS, LDS})
_GATED = frozenset({LDS, RDS})
_ABSENT = ""
"""Instead of a version: the client has been told that there is no such resource."""


class ProtocolError(Exception):
    """The client breaks the protocol or a limit; its stream ends with INVALID_ARGUMENT."""


@dataclass(frozen=True, slots=True)
class Push:
    """One response."""

    type_url: str
    nonce: str
    resources: tuple[Resource, ...]
    removed: tuple[str, ...]


@dataclass(slots=True)
class _Flight:
    """The response that waits for its acknowledgement."""

    nonce: str
    sent: dict[str, Resource | None]
    """None: removed."""
    since: dict[str, int]


@dataclass(slots=True)
class _Type:
    """One resource type of the stream."""

    wildcard: bool = False
    answered: bool = False
    """The first answer that a wildcard client needs, even an empty one, has been given."""
    names: set[str] = field(default_factory=set)
    """Subscribed by name."""
    known: dict[str, str] = field(default_factory=dict)
    """Versions that the client has acknowledged."""
    pending: dict[str, int] = field(default_factory=dict)
    """Names to look at, and the model version since when they may differ."""
    forced: set[str] = field(default_factory=set)
    """To be sent even when the client has that version."""
    before: dict[str, Resource] = field(default_factory=dict)
    """Of names that change: the content that the client has."""
    parts: deque[tuple[str, ...]] = field(default_factory=deque)
    """After a refusal: what to send apart, to find the one at fault."""
    flight: _Flight | None = None
    error: str = ""
    """Of the last refusal."""
    nonce: str = ""
    """Of the last response."""

    def wants(self, name: str) -> bool:
        return self.wildcard or name in self.names


@dataclass(frozen=True, slots=True)
class Blocked:
    """A resource that this client does not get in its present content."""

    sequence: int
    """Model version since when."""
    refusal: Refusal


def changed_names(
    old: Mapping[str, Resource | None], new: Mapping[str, Resource | None]
) -> list[str]:
    """Names whose resource is another one, there or gone."""
    out = [name for name, resource in new.items() if old.get(name) is not resource]
    out.extend(name for name in old if name not in new)
    out.extend(name for name, r in new.items() if r is None and name not in old)
    return out


class Session:
    """One stream. `proxy` names the client in refusals."""

    def __init__(self, proxy: str, refusals: Refusals) -> None:
        self.proxy = proxy
        self.refusals = refusals
        self.blocked: dict[tuple[str, str], Blocked] = {}
        """What it does not get, by type and name."""
        self._wanted: dict[str, Mapping[str, Resource | None]] = {}
        self._reached = 0
        self._types: dict[str, _Type] = {}
        self._awaited: dict[str, dict[str, int]] = {EDS: {}, RDS: {}}
        self._hold_until = 0.0
        self._nonce = 0
        self._own: dict[tuple[str, str], Refusal] = {}

    # ------------------------------------------------------------------ what it should have

    def update(
        self, wanted: Wanted, sequence: int, now: float, changed: Changed = changed_names
    ) -> bool:
        """The client should have this from now on. True when something differs.

        `wanted` may leave out types that are as they were. `changed` compares two mappings; callers
        with many sessions of one class give one that remembers.
        """
        moved = False
        for type_url, new in wanted.items():
            old = self._wanted.get(type_url)
            if new is old:
                continue
            self._wanted[type_url] = new
            state = self._types.get(type_url)
            for name in changed(old or {}, new):
                moved = True
                self._changed_content(type_url, name, new.get(name))
                if state is not None and state.wants(name):
                    held = (old or {}).get(name)
                    if held is not None and state.known.get(name) == held.version:
                        state.before.setdefault(name, held)
                    state.pending.setdefault(name, sequence)
                elif type_url in self._awaited:
                    self._await(type_url, name, name in new, sequence)
        if moved:
            self._hold(now)
        return moved

    # ------------------------------------------------------------------ what the client says

    @staticmethod
    def has_wildcard(type_url: str) -> bool:
        """A first request without names means all of this type."""
        return type_url in _WILDCARD_TYPES

    def subscribe(
        self,
        type_url: str,
        names: Iterable[str],
        *,
        wildcard: bool = False,
        known: Mapping[str, str] | None = None,
    ) -> None:
        """The client wants these, and has `known` (versions by name) from an earlier stream.

        Raises:
            ProtocolError: A limit is passed, or the type has no wildcard.
        """
        state = self._state(type_url)
        if wildcard and not state.wildcard:
            if type_url not in _WILDCARD_TYPES:
                raise ProtocolError(f"{type_url} cannot be subscribed to by wildcard")
            state.wildcard = True
            for name in self._wanted.get(type_url, ()):
                state.pending.setdefault(name, self._reached + 1)
        wanted = list(names)
        self._check_names(state, wanted, known or {})
        for name in wanted:
            state.names.add(name)
            awaited = self._awaited.get(type_url, {}).pop(name, None)
            state.pending.setdefault(name, awaited or self._reached + 1)
            if state.flight is None or name not in state.flight.sent:
                state.forced.add(name)
        for name, version in (known or {}).items():
            if state.wants(name):
                state.known[name] = version
                state.forced.discard(name)
                state.pending.setdefault(name, self._reached + 1)

    def unsubscribe(self, type_url: str, names: Iterable[str], *, wildcard: bool = False) -> None:
        """The client no longer wants these."""
        state = self._state(type_url)
        gone = list(names)
        for name in gone:
            state.names.discard(name)
        if wildcard and state.wildcard:
            state.wildcard = False
            gone.extend(n for n in {**state.known, **state.pending} if n not in state.names)
        for name in gone:
            if state.wildcard:
                state.forced.add(name)
                state.pending.setdefault(name, self._reached + 1)
            else:
                state.known.pop(name, None)
                state.pending.pop(name, None)
                state.before.pop(name, None)
                state.forced.discard(name)
                self._changed_content(type_url, name, None)

    def ack(self, type_url: str, nonce: str) -> bool:
        """The client has taken a response. False: not the one that is waited for."""
        state = self._types.get(type_url)
        if state is None or state.flight is None or state.flight.nonce != nonce:
            return False
        flight, state.flight = state.flight, None
        for name, resource in flight.sent.items():
            if resource is not None:
                self.refusals.accept(resource)
            if state.wants(name):
                state.known[name] = _ABSENT if resource is None else resource.version
                if resource is None or self._wanted.get(type_url, {}).get(name) is resource:
                    state.before.pop(name, None)
                else:
                    state.before[name] = resource
        if not state.parts:
            state.error = ""
        return True

    def nack(self, type_url: str, nonce: str, message: str) -> Refusal | None:
        """The client has refused a response.

        Returns:
            The refusal, once it is known which resource is at fault.
        """
        state = self._types.get(type_url)
        if state is None or state.flight is None or state.flight.nonce != nonce:
            return None
        flight, state.flight = state.flight, None
        state.error = message
        for name, since in flight.since.items():
            if state.wants(name):
                state.pending[name] = min(since, state.pending.get(name, since))
        if len(flight.sent) > 1:
            state.parts.extendleft(reversed(_parts_of(tuple(flight.sent), message)))
            state.forced.update(n for n in flight.sent if state.wants(n))
            return None
        for name, resource in flight.sent.items():
            state.forced.discard(name)
            if resource is not None:
                return self._refuse(state, resource, message, flight.since[name])
            state.pending.pop(name, None)
            state.known[name] = _ABSENT
        return None

    # ------------------------------------------------------------------ what to send

    def poll(self, now: float) -> Push | None:
        """The next response, None when there is nothing to say now. Ask again until None."""
        if now >= self._hold_until:
            for names in self._awaited.values():
                names.clear()
        for type_url in (*_ORDER, *(t for t in self._types if t not in _ORDER)):
            state = self._types.get(type_url)
            if state is None or state.flight is not None:
                continue
            sendable = self._sendable(type_url, state, now)
            if sendable or (state.wildcard and not state.answered):
                return self._send(type_url, state, sendable, now)
        return None

    def wake_at(self, now: float) -> float | None:
        """When to poll again though nothing has happened; None: no need."""
        if now >= self._hold_until:
            return None
        held = any(self._awaited.values()) or any(s.pending for s in self._types.values())
        return self._hold_until if held else None

    # ------------------------------------------------------------------ how far it is

    def converged(self, sequence: int, now: float) -> int:
        """The model version at which the client has all that it is to have; at most `sequence`,
        the version that its snapshot is made of. 0: it has never had all.

        What is blocked does not count: see `blocked`.
        """
        if not all(t in self._types and self._types[t].answered for t in (CDS, LDS)):
            return 0
        open_since = [sequence + 1]
        for state in self._types.values():
            open_since.extend(state.pending.values())
            if state.flight is not None:
                open_since.extend(state.flight.since.values())
        if now < self._hold_until:
            for names in self._awaited.values():
                open_since.extend(names.values())
        self._reached = min(open_since) - 1
        return self._reached

    def status(self, type_url: str) -> tuple[str, str, str]:
        """(status, nonce, error) of a type as `proxy-status` shows it."""
        state = self._types.get(type_url)
        if state is None:
            return ("NOT SENT", "", "")
        nonce = state.nonce
        refused = [b.refusal.message for (t, _), b in self.blocked.items() if t == type_url]
        if refused:
            return ("REJECTED", nonce, refused[0])
        if state.flight is not None or state.pending:
            return ("STALE", nonce, state.error)
        return ("SYNCED", nonce, "")

    # ------------------------------------------------------------------ inside

    def _state(self, type_url: str) -> _Type:
        state = self._types.get(type_url)
        if state is None:
            if len(self._types) >= MAX_TYPES:
                raise ProtocolError(f"more than {MAX_TYPES} resource types on one stream")
            state = self._types[type_url] = _Type()
            # A type without wildcard is answered when a name is: nothing is owed at first.
            state.answered = type_url not in _WILDCARD_TYPES
        return state

    def _check_names(self, state: _Type, names: list[str], known: Mapping[str, str]) -> None:
        held = sum(len(s.names) for s in self._types.values())
        if held + len(names) > MAX_NAMES or len(known) > MAX_NAMES:
            raise ProtocolError(f"more than {MAX_NAMES} resources subscribed to on one stream")
        for name in names:
            if len(name) > MAX_NAME_BYTES:
                raise ProtocolError("a resource name is too long")

    def _await(self, type_url: str, name: str, there: bool, sequence: int) -> None:
        """A client that is sent a new cluster (listener) will ask for its endpoints (routes)."""
        if there:
            self._awaited[type_url].setdefault(name, sequence)
        else:
            self._awaited[type_url].pop(name, None)

    def _hold(self, now: float) -> None:
        """Start to wait; a wait that goes on is not made longer, or churn would never let go."""
        if now >= self._hold_until:
            self._hold_until = now + HOLD_S

    def _changed_content(self, type_url: str, name: str, resource: Resource | None) -> None:
        self.blocked.pop((type_url, name), None)
        own = self._own.get((type_url, name))
        if own is not None and (resource is None or own.resource.version != resource.version):
            del self._own[(type_url, name)]

    def _refuse(self, state: _Type, resource: Resource, message: str, since: int) -> Refusal:
        type_url, name = resource.type_url, resource.name
        refusal = Refusal(resource, message, self.proxy, since, state.before.get(name))
        self.refusals.refuse(refusal)
        self._own[(type_url, name)] = refusal
        if type_url == CDS:
            self._awaited[EDS].pop(name, None)
        return refusal

    def _desired(self, type_url: str, state: _Type, name: str, since: int) -> Resource | None:
        """What the client should have of a name. None: nothing.

        Raises:
            _KeepError: What it has (or has not) is to stay.
        """
        resource = self._wanted.get(type_url, {}).get(name)
        if resource is None:
            return None
        own = self._own.get((type_url, name))
        refusal = self.refusals.of(resource)
        if own is not None and own.resource.version == resource.version:
            refusal = own
        if refusal is None:
            return resource
        self.blocked[(type_url, name)] = Blocked(max(since, refusal.sequence), refusal)
        if refusal.fallback is None or state.known.get(name):
            raise _KeepError
        if own is not None and own.resource.version == refusal.fallback.version:
            raise _KeepError
        return refusal.fallback

    def _sendable(self, type_url: str, state: _Type, now: float) -> list[str]:
        """Names to send now; forgets pending ones that need nothing."""
        while state.parts:
            part = [n for n in state.parts.popleft() if n in state.pending]
            names = [n for n in part if self._settle(type_url, state, n) is not None]
            if names:
                return names
        updates: list[str] = []
        removals: list[str] = []
        for name in list(state.pending):
            kind = self._settle(type_url, state, name)
            if kind == "update":
                updates.append(name)
            elif kind == "removal":
                removals.append(name)
        if not updates and not removals:
            return []
        if type_url == LDS:
            # A listener that takes over the port of another must come with its removal.
            held = any(state.known.values()) and self._building(now)
            return [] if held else updates + removals
        if type_url in _GATED and self._building(now):
            updates = [n for n in updates if not state.known.get(n)]
        absent = [n for n in removals if not state.known.get(n)]
        if updates or absent:
            return updates + absent
        return removals if self._may_remove(type_url, now) else []

    def _settle(self, type_url: str, state: _Type, name: str) -> str | None:
        """`update` or `removal`: what a pending name needs; None: nothing (now)."""
        try:
            desired = self._desired(type_url, state, name, state.pending[name])
        except _KeepError:
            state.pending.pop(name, None)
            state.forced.discard(name)
            return None
        if desired is None:
            if name in self._wanted.get(type_url, ()):
                return None  # it will come
            if state.known.get(name) == _ABSENT and name not in state.forced:
                self._settled(state, name)
                return None
            if name not in state.known and name not in state.names:
                self._settled(state, name)
                return None
            return "removal"
        if state.known.get(name) == desired.version and name not in state.forced:
            self._settled(state, name)
            return None
        return "update"

    def _settled(self, state: _Type, name: str) -> None:
        state.pending.pop(name, None)
        state.before.pop(name, None)
        state.forced.discard(name)

    def _building(self, now: float) -> bool:
        """Clusters or endpoints are on their way, and it is not too late to wait for them."""
        if now >= self._hold_until:
            return False
        return bool(self._awaited[EDS]) or self._busy(CDS) or self._busy(EDS)

    def _busy(self, type_url: str) -> bool:
        """It has a response to be acknowledged, or one to be sent that is no removal."""
        state = self._types.get(type_url)
        if state is None:
            return False
        if state.flight is not None or state.parts:
            return True
        wanted = self._wanted.get(type_url, {})
        return any(wanted.get(name) is not None for name in state.pending)

    def _may_remove(self, type_url: str, now: float) -> bool:
        if now >= self._hold_until:
            return True
        if self._awaited[EDS] or any(self._busy(t) for t in (CDS, EDS, LDS, RDS) if t != type_url):
            return False
        clusters = self._types.get(CDS)
        return type_url == CDS or clusters is None or not clusters.pending

    def _send(self, type_url: str, state: _Type, names: list[str], now: float) -> Push:
        self._nonce += 1
        state.nonce = str(self._nonce)
        flight = _Flight(state.nonce, {}, {})
        for name in names:
            since = flight.since[name] = state.pending.pop(name)
            state.forced.discard(name)
            flight.sent[name] = self._desired(type_url, state, name, since)
        if type_url == CDS:
            self._offer_endpoints(flight)
        if not state.answered:
            self._await_dependents(type_url, now)
        state.flight = flight
        state.answered = True
        return Push(
            type_url,
            flight.nonce,
            tuple(r for r in flight.sent.values() if r is not None),
            tuple(n for n, r in flight.sent.items() if r is None),
        )

    def _offer_endpoints(self, flight: _Flight) -> None:
        """Endpoints of clusters that are sent again, see the module's text."""
        state = self._types.get(EDS)
        for name, resource in flight.sent.items():
            if resource is None:
                self._awaited[EDS].pop(name, None)
            elif state is not None and state.wants(name) and state.known.get(name):
                state.forced.add(name)
                state.pending.setdefault(name, flight.since[name])

    def _await_dependents(self, type_url: str, now: float) -> None:
        """With its first clusters (listeners) a client starts to ask for endpoints (routes)."""
        dependent = EDS if type_url == CDS else RDS
        state = self._types.get(dependent)
        for name in self._wanted.get(dependent, ()):
            if state is None or not state.wants(name):
                self._await(dependent, name, True, self._reached + 1)
        self._hold(now)


class _KeepError(Exception):
    """What the client has is to stay."""


def _parts_of(names: tuple[str, ...], message: str) -> list[tuple[str, ...]]:
    """Smaller responses that show which resource of a refused one is at fault: those that the
    message names apart, or else halves."""
    named: list[tuple[str, ...]] = [(name,) for name in names if name and name in message]
    if named and len(named) <= max(2, len(names) // 4):
        apart = {name for part in named for name in part}
        rest = tuple(n for n in names if n not in apart)
        return [rest, *named] if rest else named
    middle = len(names) // 2
    return [names[:middle], names[middle:]]
