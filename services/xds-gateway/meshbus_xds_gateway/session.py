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
  that was refused alone is not sent again, the others are. Only a listener whose address was in use
  is offered again after a while;
- what nobody has accepted yet is tried by one client first: `verdicts.py`.

Source: https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol
"""

from collections.abc import Iterable, Mapping

from meshbus.compile.resources import CDS, ECDS, EDS, LDS, RDS, SDS, Resource
from meshbus_xds_gateway.client_refusals import Blocked, ClientRefusals, KeepError, Named
from meshbus_xds_gateway.session_state import (
    ABSENT,
    Changed,
    Flight,
    Names,
    ProtocolError,
    Push,
    TypeState,
    Wanted,
    changed_names,
    smaller_parts,
)
from meshbus_xds_gateway.verdicts import TRIAL_S, Refusal, Verdicts

HOLD_S = 2.0
"""How long changed listeners and routes, and removals, wait for clusters to be acknowledged."""
MAX_TYPES = 32
MAX_NAMES = 200_000
"""Names that one stream may subscribe to, over all types."""
MAX_NAME_BYTES = 4096

_ORDER = (CDS, EDS, SDS, ECDS, LDS, RDS)
_WILDCARD_TYPES = frozenset({CDS, LDS})
_GATED = frozenset({LDS, RDS})


class Session:
    """One stream. `proxy` names the client in refusals."""

    def __init__(self, proxy: str, verdicts: Verdicts) -> None:
        self.proxy = proxy
        self.verdicts = verdicts
        self._refusals = ClientRefusals(proxy, verdicts)
        self._wanted: dict[str, Names] = {}
        self._reached = 0
        self._types: dict[str, TypeState] = {}
        self._awaited: dict[str, dict[str, int]] = {EDS: {}, RDS: {}}
        self._hold_until = 0.0
        self._nonce = 0
        self._trial_until = 0.0

    @property
    def blocked(self) -> dict[Named, Blocked]:
        """What the client does not get, by type and name."""
        return self._refusals.blocked

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
                self._refusals.forget(type_url, name, new.get(name))
                if state is not None and state.wants(name):
                    held = (old or {}).get(name)
                    if held is not None and state.known.get(name) == held.version:
                        state.before.setdefault(name, held)
                    state.look_at(name, sequence)
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
                state.look_at(name, self._reached + 1)
        wanted = list(names)
        self._check_names(state, wanted, known or {})
        for name in wanted:
            state.names.add(name)
            awaited = self._awaited.get(type_url, {}).pop(name, None)
            state.look_at(name, awaited or self._reached + 1)
            if state.flight is None or name not in state.flight.sent:
                state.forced.add(name)
        for name, version in (known or {}).items():
            if state.wants(name):
                state.known[name] = version
                state.forced.discard(name)
                state.look_at(name, self._reached + 1)

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
                state.look_at(name, self._reached + 1)
            else:
                state.forget(name)
                self._refusals.forget(type_url, name, None)

    def ack(self, type_url: str, nonce: str) -> bool:
        """The client has taken a response. False: not the one that is waited for."""
        state = self._types.get(type_url)
        if state is None or state.flight is None or state.flight.nonce != nonce:
            return False
        flight, state.flight = state.flight, None
        for name, resource in flight.sent.items():
            if resource is not None:
                self.verdicts.accept(resource)
            if state.wants(name):
                state.known[name] = ABSENT if resource is None else resource.version
                if resource is None or self._wanted.get(type_url, {}).get(name) is resource:
                    state.before.pop(name, None)
                    self._refusals.forget(type_url, name, None)
                else:
                    state.before[name] = resource
        if not state.parts:
            state.error = ""
        return True

    def nack(self, type_url: str, nonce: str, message: str, now: float) -> Refusal | None:
        """The client has refused a response.

        Returns:
            The refusal, once it is known which resource is at fault; once for each content.
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
            state.parts.extendleft(reversed(smaller_parts(tuple(flight.sent), message)))
            state.forced.update(n for n in flight.sent if state.wants(n))
            return None
        for name, resource in flight.sent.items():
            state.forced.discard(name)
            if resource is not None:
                if type_url == CDS:
                    self._awaited[EDS].pop(name, None)
                since, before = flight.since[name], state.before.get(name)
                return self._refusals.refuse(resource, message, since, before, now)
            state.pending.pop(name, None)
            state.known[name] = ABSENT
        return None

    # ------------------------------------------------------------------ what to send

    def poll(self, now: float) -> Push | None:
        """The next response, None when there is nothing to say now. Ask again until None."""
        if now >= self._hold_until:
            for names in self._awaited.values():
                names.clear()
        self._trial_until = 0.0
        for type_url, name in self._refusals.take_due(now):
            self._types[type_url].look_at(name, self._reached + 1)
            self._types[type_url].forced.add(name)
        for type_url in (*_ORDER, *(t for t in self._types if t not in _ORDER)):
            state = self._types.get(type_url)
            if state is None or state.flight is not None:
                continue
            sendable = self._sendable(type_url, state, now)
            # A client that starts is told that there is nothing only when there is nothing.
            if sendable or (state.wildcard and not state.answered and not state.pending):
                return self._send(type_url, state, sendable, now)
        return None

    def wake_at(self, now: float) -> float | None:
        """When to poll again though nothing has happened; None: no need."""
        moments = self._refusals.next_due()
        if self._trial_until > now:
            moments.append(self._trial_until)
        if now < self._hold_until and (
            any(self._awaited.values()) or any(s.pending for s in self._types.values())
        ):
            moments.append(self._hold_until)
        return min(moments, default=None)

    def close(self) -> None:
        """The stream has ended."""
        self.verdicts.abandon(self)

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

    def _state(self, type_url: str) -> TypeState:
        state = self._types.get(type_url)
        if state is None:
            if len(self._types) >= MAX_TYPES:
                raise ProtocolError(f"more than {MAX_TYPES} resource types on one stream")
            state = self._types[type_url] = TypeState()
            # A type without wildcard is answered when a name is: nothing is owed at first.
            state.answered = type_url not in _WILDCARD_TYPES
        return state

    def _check_names(self, state: TypeState, names: list[str], known: Mapping[str, str]) -> None:
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

    def _desired(self, type_url: str, state: TypeState, name: str, since: int) -> Resource | None:
        """What the client should have of a name. None: nothing.

        Raises:
            KeepError: What it has (or has not) is to stay.
        """
        resource = self._wanted.get(type_url, {}).get(name)
        if resource is None:
            return None
        return self._refusals.admit(resource, state.known.get(name), since)

    def _sendable(self, type_url: str, state: TypeState, now: float) -> list[str]:
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
        if type_url == LDS or not state.answered:
            # All or nothing: a listener that takes over the port of another must come with its
            # removal, and a client that starts goes on with what the first answer holds.
            if any(state.known.values()) and type_url in _GATED and self._building(now):
                return []
            offered = self._offerable(type_url, state, updates, now)
            return updates + removals if len(offered) == len(updates) else []
        if type_url in _GATED and self._building(now):
            updates = [n for n in updates if not state.known.get(n)]
        absent = [n for n in removals if not state.known.get(n)]
        offered = self._offerable(type_url, state, updates, now)
        if updates or absent:
            return offered + absent
        return removals if self._may_remove(type_url, now) else []

    def _offerable(
        self, type_url: str, state: TypeState, names: list[str], now: float
    ) -> list[str]:
        """Those that no other session is trying."""
        out = []
        for name in names:
            resource = self._desired(type_url, state, name, state.pending[name])
            assert resource is not None
            if self.verdicts.held(resource, self, now):
                self._trial_until = now + TRIAL_S
            else:
                out.append(name)
        return out

    def _settle(self, type_url: str, state: TypeState, name: str) -> str | None:
        """`update` or `removal`: what a pending name needs; None: nothing (now)."""
        try:
            desired = self._desired(type_url, state, name, state.pending[name])
        except KeepError:
            state.settle(name)
            return None
        known = state.known.get(name)
        if desired is None:
            if name in self._wanted.get(type_url, ()):
                return None  # it will come
            told = known == ABSENT and name not in state.forced
            if told or (known is None and name not in state.names):
                state.settle(name)
                state.before.pop(name, None)
                return None
            return "removal"
        if known == desired.version and name not in state.forced:
            state.settle(name)
            if desired is self._wanted[type_url].get(name):
                state.before.pop(name, None)
            return None
        return "update"

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

    def _send(self, type_url: str, state: TypeState, names: list[str], now: float) -> Push:
        self._nonce += 1
        state.nonce = str(self._nonce)
        flight = Flight(state.nonce, {}, {})
        for name in names:
            since = flight.since[name] = state.pending.pop(name)
            state.forced.discard(name)
            resource = self._desired(type_url, state, name, since)
            flight.sent[name] = resource
            if resource is not None:
                self.verdicts.offer(resource, self, now)
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

    def _offer_endpoints(self, flight: Flight) -> None:
        """Endpoints of clusters that are sent again, see the module's text."""
        state = self._types.get(EDS)
        for name, resource in flight.sent.items():
            if resource is None:
                self._awaited[EDS].pop(name, None)
            elif state is not None and state.wants(name) and state.known.get(name):
                state.forced.add(name)
                state.look_at(name, flight.since[name])

    def _await_dependents(self, type_url: str, now: float) -> None:
        """With its first clusters (listeners) a client starts to ask for endpoints (routes)."""
        dependent = EDS if type_url == CDS else RDS
        state = self._types.get(dependent)
        for name in self._wanted.get(dependent, ()):
            if state is None or not state.wants(name):
                self._await(dependent, name, True, self._reached + 1)
        self._hold(now)
