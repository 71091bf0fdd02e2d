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
- virtual hosts wait for the route configurations that are on their way, and those of one that is
  sent come after it: Envoy drops virtual hosts of one that it does not have, and says nothing when
  it has it;
- of a refused response the resource at fault is found by sending parts of it again; the content
  that was refused alone is not sent again, the others are. Only a listener whose address was in use
  is offered again after a while;
- what nobody has accepted yet is tried by one client first: `verdicts.py`;
- routes and extensions that nobody has accepted yet go one by one, unless they are many: Envoy
  remembers a content of these that it has refused as its last one, and takes it without effect when
  it comes again. So one that was refused is followed by the content before it, too.

Clients of a class go from one shared content to the next by shared changes (`content.py`): a
session then does a few comparisons and gives out bytes that are there. A client that is unlike
the others is followed name by name (`by_name.py`) until it is like them again.

Source: https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

from meshbus.compile.resources import CDS, ECDS, EDS, LDS, RDS, RTDS, SDS, VHDS, Resource
from meshbus_xds_gateway.by_name import GATED, ByName, collapse, expand
from meshbus_xds_gateway.client_refusals import Blocked, ClientRefusals, Named
from meshbus_xds_gateway.content import (
    NO_NAMES,
    NOTHING,
    Change,
    Content,
    NameSet,
    before_removals,
    changes_between,
    named_changes,
    names_of,
)
from meshbus_xds_gateway.held_before import covered_by, held_by
from meshbus_xds_gateway.session_state import (
    ABSENT,
    UNSURE,
    Detail,
    Flight,
    Names,
    ProtocolError,
    Push,
    TypeState,
    Wanted,
    changed_names,
    content_from,
    push_of,
    smaller_parts,
)
from meshbus_xds_gateway.verdicts import TRIAL_S, Refusal, Verdicts

HOLD_S = 2.0
"""How long changed listeners and routes, and removals, wait for clusters to be acknowledged."""
MAX_TYPES = 32
MAX_NAMES = 200_000
"""Names that one stream may subscribe to, over all types."""
MAX_NAME_BYTES = 4096
MAX_AUTHORITY_BYTES = 128 * 1024
"""Of a virtual host's name, which ends in what a caller has written: longer than headers of a
request are allowed to be, for it is not the caller who would be turned away."""

_ORDER = (RTDS, CDS, EDS, SDS, ECDS, RDS, VHDS, LDS)
"""Routes that a client already watches come before listeners: one that comes back finds its old
routes still there, held by the listener that is being drained, and would serve them."""
_SHARED = frozenset({CDS, EDS, ECDS, LDS, RDS, RTDS, VHDS})
"""Types whose contents clients share. Secrets are each client's own."""
_WILDCARD_TYPES = frozenset({CDS, LDS, VHDS})
_SINGLY = frozenset({RDS, ECDS})
_MOST_SINGLY = 16
"""Of so many contents at most each has a response of its own."""
_AWAITED = (EDS, RDS)
"""A client asks for these once it has the cluster (listener) that leads to them."""
_EMPTY = {type_url: (Change(type_url, (), ()),) for type_url in _WILDCARD_TYPES}


_NONE: Mapping[Named, Blocked] = {}


class Wake(Protocol):
    """How a stream is told that its session may have something to say."""

    def set(self) -> None:
        """Soon; as often as one likes."""


class Session:
    """One stream. `proxy` names the client in refusals."""

    __slots__ = (
        "_awaits",
        "_begun",
        "_hold_until",
        "_reached",
        "_refusals",
        "_trial_until",
        "_types",
        "_waived",
        "_wake",
        "_wanted",
        "proxy",
        "verdicts",
    )

    def __init__(self, proxy: str, verdicts: Verdicts, wake: Wake | None = None) -> None:
        self.proxy = proxy
        self.verdicts = verdicts
        self._wake = wake
        self._refusals: ClientRefusals | None = None
        """What it has refused; made when a type is first looked at name by name."""
        self._wanted: dict[str, Names | Content] = {}
        self._reached = 0
        self._begun = False
        """It has been given clusters and listeners once."""
        self._types: dict[str, TypeState] = {}
        """In the order in which they are asked."""
        self._awaits: dict[str, int] = {}
        """Types of which the client is to ask for more, and the model version since when."""
        self._waived: dict[str, NameSet] = {}
        """Names that it has not asked for in time, or no longer wants."""
        self._hold_until = 0.0
        self._trial_until = 0.0

    @property
    def blocked(self) -> Mapping[Named, Blocked]:
        """What the client does not get, by type and name."""
        return _NONE if self._refusals is None else self._refusals.blocked

    def wake(self) -> None:
        """It is to be asked again."""
        if self._wake is not None:
            self._wake.set()

    # ------------------------------------------------------------------ what it should have

    def update(self, wanted: Wanted, sequence: int, now: float) -> bool:
        """The client should have this from now on. True when something differs.

        `wanted` may leave out types that are as they were; callers with many sessions of one class
        give all of them the same `Content`.
        """
        moved = False
        for type_url, given in wanted.items():
            shared = type_url in _SHARED
            new = content_from(given) if shared else given
            old = self._wanted.get(type_url, NOTHING if shared else {})
            if new is old:
                continue
            self._wanted[type_url] = new
            state = self._types.get(type_url)
            if old is NOTHING and state is None:
                # A stream begins: everything differs, and nothing is kept of it name by name.
                moved = moved or len(new) > 0
                if type_url in _AWAITED and len(new):
                    self._await(type_url, sequence)
                continue
            names = changed_names(old, new)
            if names:
                moved = True
                self._note(type_url, state, old, new, names, sequence)
            elif (
                state is not None
                and state.detail is None
                and state.flight is None
                and not state.since
            ):
                state.have = content_from(new)
        if moved:
            self._hold(now)
        return moved

    def _note(
        self,
        type_url: str,
        state: TypeState | None,
        old: Names | Content,
        new: Names | Content,
        names: Iterable[str],
        sequence: int,
    ) -> None:
        if self._refusals is not None and self._refusals.concern(type_url):
            for name in names:
                self._refusals.forget(type_url, name, new.get(name))
        if state is not None:
            self._note_difference(state, old, new, names, sequence)
        if type_url in _AWAITED:
            asked = NO_NAMES if state is None else state.names
            waived = self._waived.get(type_url)
            if waived:
                gone = [name for name in names if name in waived and name not in new]
                if gone:
                    self._waived[type_url] = names_of(waived.difference(gone))
            if not content_from(old).appearing(content_from(new)) <= asked:
                self._await(type_url, sequence)

    @staticmethod
    def _note_difference(
        state: TypeState,
        old: Names | Content,
        new: Names | Content,
        names: Iterable[str],
        sequence: int,
    ) -> None:
        detail = state.detail
        if detail is None:
            if state.wildcard or not state.names.isdisjoint(names):
                state.lacks_since(sequence)
            elif state.flight is None and not state.since:
                state.have = content_from(new)
            return
        for name in names:
            if state.wants(name):
                held = old.get(name)
                if held is not None and detail.known.get(name) == held.version:
                    detail.before.setdefault(name, held)
                detail.look_at(name, sequence)

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
        if wildcard and type_url not in _WILDCARD_TYPES:
            raise ProtocolError(f"{type_url} cannot be subscribed to by wildcard")
        state = self._state(type_url)
        asked = names_of(names)
        limit = MAX_NAME_BYTES
        if type_url == VHDS and type_url in self._wanted:
            limit = MAX_AUTHORITY_BYTES
        self._check_names(asked, known or {}, limit)
        since = self._awaits.get(type_url) or self._reached + 1
        starts = wildcard and not state.wildcard
        again = asked and state.flight is not None and not asked.isdisjoint(state.flight.covered)
        mixed = bool(asked or state.names) and (wildcard or state.wildcard)
        if state.detail is None and (again or mixed):
            self._detail(type_url, state)
        if state.detail is not None:
            self._subscribe_by_name(type_url, state, asked, starts, known or {}, since)
            return
        if starts:
            state.wildcard = True
        if asked:
            both = names_of(state.names | asked) if state.names else asked
            # Asked for once more: to be sent once more.
            covered = state.covered if both is not state.names else state.covered - asked
            state.names, state.covered = both, names_of(covered - asked)
            self._no_longer_await(type_url)
        if starts or asked or known:
            state.lacks_since(since)
        if known:
            self._recognise(type_url, state, known)

    def _recognise(self, type_url: str, state: TypeState, known: Mapping[str, str]) -> None:
        """The client has these from an earlier stream."""
        wanted = self._content(type_url)
        if state.wildcard:
            state.have = held_by(type_url, wanted, known)
        else:
            state.have, state.covered = wanted, covered_by(wanted, known, state.names)

    def _subscribe_by_name(
        self,
        type_url: str,
        state: TypeState,
        names: NameSet,
        starts: bool,
        known: Mapping[str, str],
        since: int,
    ) -> None:
        detail = state.detail
        assert detail is not None
        if starts:
            state.wildcard = True
            for name in self._wanted.get(type_url, ()):
                detail.look_at(name, since)
        state.names = names_of(state.names | names)
        self._no_longer_await(type_url)
        for name in sorted(names):
            detail.look_at(name, since)
            if state.flight is None or name not in detail.sent:
                detail.forced.add(name)
        for name, version in known.items():
            if state.wants(name):
                detail.known[name] = version
                detail.forced.discard(name)
                detail.look_at(name, since)

    def unsubscribe(self, type_url: str, names: Iterable[str], *, wildcard: bool = False) -> None:
        """The client no longer wants these."""
        state = self._state(type_url)
        gone = names_of(names)
        if type_url in _AWAITED and gone:
            self._waive(type_url, gone)
        if state.detail is None and not state.wildcard:
            state.names = names_of(state.names - gone)
            state.covered = names_of(state.covered - gone)
            return
        detail = self._detail(type_url, state)
        state.names = names_of(state.names - gone)
        leaving = list(gone)
        if wildcard and state.wildcard:
            state.wildcard = False
            leaving += [n for n in {**detail.known, **detail.pending} if n not in state.names]
        for name in leaving:
            if state.wildcard:
                detail.forced.add(name)
                detail.look_at(name, self._reached + 1)
            else:
                detail.forget(name)
                if self._refusals is not None:
                    self._refusals.forget(type_url, name, None)

    def ack(self, type_url: str, nonce: str) -> bool:
        """The client has taken a response. False: not the one that is waited for."""
        state = self._types.get(type_url)
        if state is None or state.flight is None or state.flight.nonce != nonce:
            return False
        flight, state.flight = state.flight, None
        for change in flight.push.changes:
            self.verdicts.accept_all(change)
        if state.detail is None:
            state.have = flight.target
            covered = flight.covered
            if covered is not state.names:
                covered = names_of(covered & state.names)
            state.covered = covered
            state.error = ""
            return True
        self._ack_by_name(type_url, state, state.detail)
        return True

    def _ack_by_name(self, type_url: str, state: TypeState, detail: Detail) -> None:
        sent, detail.sent = detail.sent, {}
        wanted = self._wanted.get(type_url, {})
        for name, resource in sent.items():
            if state.wants(name):
                detail.known[name] = ABSENT if resource is None else resource.version
                if resource is None or wanted.get(name) is resource:
                    detail.before.pop(name, None)
                    if self._refusals is not None:
                        self._refusals.forget(type_url, name, None)
                else:
                    detail.before[name] = resource
        if not detail.parts:
            state.error = ""

    def nack(self, type_url: str, nonce: str, message: str, now: float) -> Refusal | None:
        """The client has refused a response.

        Returns:
            The refusal, once it is known which resource is at fault; once for each content.
        """
        state = self._types.get(type_url)
        if state is None or state.flight is None or state.flight.nonce != nonce:
            return None
        detail = self._detail(type_url, state)
        state.flight, state.error = None, message
        sent, detail.sent = detail.sent, {}
        for name, since in detail.sent_since.items():
            if state.wants(name):
                detail.pending[name] = min(since, detail.pending.get(name, since))
        updates: dict[str, Resource | None] = {n: r for n, r in sent.items() if r is not None}
        if len(updates) == 1:
            # It is at fault, whatever went with it goes again: sent alone, Envoy might take it
            # without effect (ADR 0061).
            detail.forced.update(n for n in sent if n not in updates and state.wants(n))
            sent = updates
        if len(sent) > 1:
            detail.parts.extendleft(reversed(smaller_parts(tuple(sent), message)))
            detail.forced.update(n for n in sent if state.wants(n))
            return None
        for name, resource in sent.items():
            detail.forced.discard(name)
            if resource is not None:
                if type_url == CDS:
                    self._waive(EDS, (name,))
                since, before = detail.sent_since[name], detail.before.get(name)
                if type_url in _SINGLY and detail.known.get(name):
                    detail.known[name] = UNSURE
                return self._refused().refuse(resource, message, since, before, now)
            detail.pending.pop(name, None)
            detail.known[name] = ABSENT
        return None

    # ------------------------------------------------------------------ what to send

    def poll(self, now: float) -> Push | None:
        """The next response, None when there is nothing to say now. Ask again until None."""
        if self._awaits and now >= self._hold_until:
            for type_url in list(self._awaits):
                self._waive(type_url, self._awaited(type_url))
        self._trial_until = 0.0
        for type_url, name in self._refusals.take_due(now) if self._refusals is not None else ():
            detail = self._detail(type_url, self._types[type_url])
            detail.look_at(name, self._reached + 1)
            detail.forced.add(name)
        for type_url, state in self._types.items():
            if state.flight is not None or (type_url == VHDS and self._busy(RDS)):
                continue
            if state.detail is not None:
                push = self._poll_by_name(type_url, state, state.detail, now)
            elif state.since or not state.answered:
                push = self._poll_shared(type_url, state, now)
            else:
                continue
            if push is not None:
                return push
        return None

    def wake_at(self, now: float) -> float | None:
        """When to poll again though nothing has happened; None: no need."""
        moments = [] if self._refusals is None else self._refusals.next_due()
        if self._trial_until > now:
            moments.append(self._trial_until)
        if now < self._hold_until and self._holds():
            moments.append(self._hold_until)
        return min(moments) if moments else None

    def _holds(self) -> bool:
        """Something may have to wait, for clusters to be acknowledged or names to be asked for."""
        if self._awaits and any(self._awaited(t) for t in self._awaits):
            return True
        for state in self._types.values():
            if state.since or (state.detail is not None and state.detail.pending):
                return True
        return False

    def rests(self, sequence: int) -> bool:
        """It has all that there is in a model version: there is nothing to say until something
        happens. What `converged` would find in a longer way."""
        if not self._begun or self._awaits:
            return False
        if self._refusals is not None and self._refusals.waits:
            return False
        for state in self._types.values():
            if state.since or state.flight is not None:
                return False
            if state.detail is not None and not state.detail.quiet:
                return False
        self._reached = sequence
        return True

    def close(self) -> None:
        """The stream has ended."""
        self.verdicts.abandon(self)

    # ------------------------------------------------------------------ how far it is

    def converged(self, sequence: int, now: float) -> int:
        """The model version at which the client has all that it is to have; at most `sequence`,
        the version that its snapshot is made of. 0: it has never had all.

        What is blocked does not count: see `blocked`.
        """
        if not self._begun:
            return 0
        first = sequence + 1
        for state in self._types.values():
            if state.since or state.flight is not None or state.detail is not None:
                first = state.open_since(first)
        if self._awaits and now < self._hold_until:
            for type_url, since in self._awaits.items():
                if since < first and self._awaited(type_url):
                    first = since
        self._reached = first - 1
        return self._reached

    def holds(self, resource: Resource) -> bool:
        """The client has this content, so far as it has said."""
        state = self._types.get(resource.type_url)
        if state is None:
            return False
        name = resource.name
        if state.detail is not None:
            return state.detail.known.get(name) == resource.version
        held = state.have.get(name) if state.wildcard or name in state.covered else None
        return held is not None and held.version == resource.version

    def is_searching(self, type_url: str) -> bool:
        """It is not known yet what the client says to everything of a type."""
        state = self._types.get(type_url)
        return state is not None and (state.flight is not None or state.is_open)

    def status(self, type_url: str) -> tuple[str, str, str]:
        """(status, nonce, error) of a type as `proxy-status` shows it."""
        state = self._types.get(type_url)
        if state is None:
            return ("NOT SENT", "", "")
        nonce = state.nonce
        refused = [b.refusal.message for (t, _), b in self.blocked.items() if t == type_url]
        if refused:
            return ("REJECTED", nonce, refused[0])
        if state.flight is not None or state.is_open:
            return ("STALE", nonce, state.error)
        return ("SYNCED", nonce, "")

    # ------------------------------------------------------------------ inside

    def _refused(self) -> ClientRefusals:
        if self._refusals is None:
            self._refusals = ClientRefusals(self.proxy, self.verdicts)
        return self._refusals

    def _content(self, type_url: str) -> Content:
        wanted = self._wanted.get(type_url)
        return wanted if isinstance(wanted, Content) else content_from(wanted)

    def _state(self, type_url: str) -> TypeState:
        state = self._types.get(type_url)
        if state is None:
            if len(self._types) >= MAX_TYPES:
                raise ProtocolError(f"more than {MAX_TYPES} resource types on one stream")
            state = self._types[type_url] = TypeState()
            # A type without wildcard is answered when a name is: nothing is owed at first.
            state.answered = type_url not in _WILDCARD_TYPES
            if type_url not in _SHARED:
                state.detail = Detail()
            ordered = [t for t in _ORDER if t in self._types]
            ordered.extend(t for t in self._types if t not in _ORDER)
            self._types = {t: self._types[t] for t in ordered}
        return state

    def _detail(self, type_url: str, state: TypeState) -> Detail:
        """The type name by name."""
        if state.detail is not None:
            return state.detail
        return expand(state, self._content(type_url), self._reached + 1)

    def _check_names(self, names: NameSet, known: Mapping[str, str], limit: int) -> None:
        held = sum(len(s.names) for s in self._types.values())
        if held + len(names) > MAX_NAMES or len(known) > MAX_NAMES:
            raise ProtocolError(f"more than {MAX_NAMES} resources subscribed to on one stream")
        if names and len(max(names, key=len)) > limit:
            raise ProtocolError("a resource name is too long")

    def _awaited(self, type_url: str) -> frozenset[str]:
        """Names that the client is expected to ask for."""
        if type_url not in self._awaits:
            return NO_NAMES
        state = self._types.get(type_url)
        lacking = self._content(type_url).lacking(NO_NAMES if state is None else state.names)
        leads = self._types.get(CDS if type_url == EDS else LDS)
        if leads is not None and not leads.wildcard:
            # It asks for some by name, and so for what those lead to.
            lacking &= leads.names
        waived = self._waived.get(type_url)
        return lacking - waived if waived and lacking else lacking

    def _await(self, type_url: str, since: int) -> None:
        """Expect the client to ask for what it has not asked for."""
        self._awaits.setdefault(type_url, since)
        self._no_longer_await(type_url)

    def _no_longer_await(self, type_url: str) -> None:
        if type_url in self._awaits and not self._awaited(type_url):
            del self._awaits[type_url]

    def _waive(self, type_url: str, names: Iterable[str]) -> None:
        """Expect these no longer."""
        waived = self._waived.get(type_url, NO_NAMES).union(names)
        if waived:
            self._waived[type_url] = names_of(waived)
        self._no_longer_await(type_url)

    def _hold(self, now: float) -> None:
        """Start to wait; a wait that goes on is not made longer, or churn would never let go."""
        if now >= self._hold_until:
            self._hold_until = now + HOLD_S

    # ------------------------------------------------------------------ by shared changes

    def _changes(self, type_url: str, state: TypeState, target: Content) -> tuple[Change, ...]:
        if state.wildcard:
            return changes_between(type_url, state.have, target)
        return named_changes(type_url, state.have, state.covered, target, state.names)

    def _poll_shared(self, type_url: str, state: TypeState, now: float) -> Push | None:
        target = self._content(type_url)
        changes = self._changes(type_url, state, target)
        if not changes:
            # What differs does not concern this client.
            state.have, state.covered, state.since = target, state.names, 0
            if state.answered or not state.wildcard:
                return None
            return self._send_shared(type_url, state, _EMPTY[type_url], target, now)
        verdicts = self.verdicts
        updates = gone = False
        for change in changes:
            if verdicts.refuses(change):
                detail = self._detail(type_url, state)
                return self._poll_by_name(type_url, state, detail, now)
            updates = updates or bool(change.updates)
            gone = gone or change.gone
        if (
            gone
            and type_url != LDS
            and state.answered
            and (updates or not self._may_remove(type_url, now))
        ):
            target = before_removals(state.have, target)
            changes = self._changes(type_url, state, target)
            if not changes:
                return None
        if type_url in GATED and updates and len(state.have) and self._building(now):
            if type_url == LDS or all(c.held == len(c.updates) for c in changes):
                return None
            if any(c.held for c in changes):
                return self._poll_by_name(type_url, state, self._detail(type_url, state), now)
        for change in changes:
            if verdicts.held_any(change, self, now):
                self._trial_until = now + TRIAL_S
                return None
        if type_url in _SINGLY and 1 < sum(map(verdicts.fresh_in, changes)) <= _MOST_SINGLY:
            return self._poll_by_name(type_url, state, self._detail(type_url, state), now)
        return self._send_shared(type_url, state, changes, target, now)

    def _send_shared(
        self,
        type_url: str,
        state: TypeState,
        changes: tuple[Change, ...],
        target: Content,
        now: float,
    ) -> Push:
        push = push_of(type_url, changes)
        since = state.since or self._reached + 1
        state.flight = Flight(push, target, state.names, since)
        state.nonce = push.nonce
        if target is self._wanted.get(type_url, NOTHING):
            state.since = 0
        for change in changes:
            self.verdicts.offer_all(change, self, now)
        self._sent(type_url, state, push, since, now)
        return push

    # ------------------------------------------------------------------ by name

    def _poll_by_name(
        self, type_url: str, state: TypeState, detail: Detail, now: float
    ) -> Push | None:
        wanted = self._wanted.get(type_url, {})
        by_name = ByName(type_url, state, detail, wanted, self._refused())

        def is_tried(resource: Resource) -> bool:
            if self.verdicts.held(resource, self, now):
                self._trial_until = now + TRIAL_S
                return True
            return False

        names = by_name.sendable(
            lambda: self._building(now), lambda: self._may_remove(type_url, now), is_tried
        )
        # A client that starts is told that there is nothing only when there is nothing.
        if not names and not (state.wildcard and not state.answered and not detail.pending):
            if type_url in _SHARED and not self._refused().concern(type_url):
                collapse(state, self._content(type_url))
            return None
        if type_url in _SINGLY and len(names) > 1:
            names = self._singly(names, detail, by_name, now)
        flight = state.flight = by_name.take(names)
        state.nonce = flight.nonce
        for resource in flight.push.resources:
            self.verdicts.offer(resource, self, now)
        since = min(detail.sent_since.values(), default=self._reached + 1)
        self._sent(type_url, state, flight.push, since, now)
        return flight.push

    def _singly(self, names: list[str], detail: Detail, by_name: ByName, now: float) -> list[str]:
        """Those that go first: what somebody has accepted, or else one."""
        fresh = []
        for name in names:
            resource = by_name.desired(name, detail.pending[name])
            if resource is not None and not self.verdicts.is_accepted(resource):
                fresh.append(resource)
        if not fresh or len(fresh) > _MOST_SINGLY:
            return names
        for resource in fresh:
            self.verdicts.offer(resource, self, now)
        apart = {resource.name for resource in fresh}
        return [name for name in names if name not in apart] or [fresh[0].name]

    # ------------------------------------------------------------------ order between types

    def _building(self, now: float) -> bool:
        """Clusters or endpoints are on their way, and it is not too late to wait for them."""
        if now >= self._hold_until:
            return False
        return bool(self._awaited(EDS)) or self._busy(CDS) or self._busy(EDS)

    def _busy(self, type_url: str) -> bool:
        """It has a response to be acknowledged, or one to be sent that is no removal."""
        state = self._types.get(type_url)
        if state is None:
            return False
        if state.flight is not None:
            return True
        if state.detail is None:
            if not state.since:
                return False
            target = self._content(type_url)
            return any(change.updates for change in self._changes(type_url, state, target))
        wanted = self._wanted.get(type_url, {})
        return bool(state.detail.parts) or any(
            wanted.get(name) is not None for name in state.detail.pending
        )

    def _may_remove(self, type_url: str, now: float) -> bool:
        if now >= self._hold_until:
            return True
        if self._awaited(EDS) or any(self._busy(t) for t in (CDS, EDS, LDS, RDS) if t != type_url):
            return False
        clusters = self._types.get(CDS)
        if type_url == CDS or clusters is None:
            return True
        if clusters.detail is not None:
            return not clusters.detail.pending
        return not clusters.since or not self._changes(CDS, clusters, self._content(CDS))

    def _sent(self, type_url: str, state: TypeState, push: Push, since: int, now: float) -> None:
        if type_url == CDS:
            self._offer_again(EDS, [r.name for r in push.resources], since)
        elif type_url == RDS and VHDS in self._types:
            tables = {r.name for r in push.resources}
            hosts = [n for n in self._content(VHDS) if n.rpartition("/")[0] in tables]
            self._offer_again(VHDS, hosts, since)
        if state.answered:
            return
        self._await_dependents(type_url, now)
        state.answered = True
        self._begun = self._has_begun()

    def _has_begun(self) -> bool:
        """It has been given clusters and listeners; who asks for listeners by name (gRPC) asks for
        no clusters when there is no such listener."""
        listeners, clusters = self._types.get(LDS), self._types.get(CDS)
        if listeners is None or not listeners.answered:
            return False
        return not listeners.wildcard if clusters is None else clusters.answered

    def _offer_again(self, type_url: str, names: list[str], since: int) -> None:
        """What depends on resources that are sent again, see the module's text."""
        state = self._types.get(type_url)
        if state is None or not names:
            return
        if state.wildcard and state.detail is None:
            self._detail(type_url, state)
        if state.detail is not None:
            for name in names:
                if state.wants(name) and (
                    state.detail.known.get(name) or state.detail.sent.get(name)
                ):
                    state.detail.forced.add(name)
                    state.detail.look_at(name, since)
            return
        held = state.covered if state.flight is None else state.flight.covered
        have = state.have if state.flight is None else state.flight.target
        again = [name for name in names if name in held and name in have]
        if not again:
            return
        state.covered = names_of(state.covered.difference(again))
        if state.flight is not None:
            state.flight.covered = names_of(state.flight.covered.difference(again))
        state.lacks_since(since)

    def _await_dependents(self, type_url: str, now: float) -> None:
        """With its first clusters (listeners) a client starts to ask for endpoints (routes)."""
        if type_url in (CDS, LDS):
            self._await(EDS if type_url == CDS else RDS, self._reached + 1)
        self._hold(now)
