"""What a session keeps of each resource type, and small questions about it.

A type is *settled* or *on its way* as long as the client has a shared content, or all of it but
what a shared change brings: then two references are all there is to keep. Where a client is unlike
others (it refused something, it subscribes to names one by one while responses are on their way)
the state is kept name by name, in `Detail`, until they are alike again.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from meshbus.compile.layers import Layer
from meshbus.compile.resources import Resource
from meshbus_xds_gateway.content import (
    NO_NAMES,
    NOTHING,
    Change,
    Content,
    NameSet,
    content_of,
    next_nonce,
)

ABSENT = ""
"""Instead of a version: the client has been told that there is no such resource."""

UNSURE = "?"
"""Instead of a version: what the client has it may not know itself; the next content is sent, even
the one that it should have."""

Names = Mapping[str, Resource | None]
"""Resources of a type by name. None: it will come (a certificate being signed), say nothing yet."""
Wanted = Mapping[str, "Names | Content"]
"""By type URL."""


class ProtocolError(Exception):
    """The client breaks the protocol or a limit; its stream ends with INVALID_ARGUMENT."""


class Joined:
    """One response of several changes; of one, the change is the response."""

    __slots__ = ("changes", "nonce", "type_url")

    def __init__(self, type_url: str, changes: tuple[Change, ...]) -> None:
        self.type_url = type_url
        self.changes = changes
        self.nonce = next_nonce()

    @property
    def resources(self) -> tuple[Resource, ...]:
        """What is sent."""
        return tuple(r for change in self.changes for r in change.updates)

    @property
    def removed(self) -> tuple[str, ...]:
        """Names of what there is no longer."""
        return tuple(name for change in self.changes for name in change.removed)


Push = Change | Joined
"""One response. That of one change is the same for all who get it, nonce and all."""


def push_of(type_url: str, changes: tuple[Change, ...]) -> Push:
    """The response that brings these."""
    return changes[0] if len(changes) == 1 else Joined(type_url, changes)


@dataclass(slots=True)
class Flight:
    """The response that waits for its acknowledgement."""

    push: Push
    target: Content = NOTHING
    """What the client has then; not used name by name."""
    covered: NameSet = NO_NAMES
    """For which names."""
    since: int = 0
    """Model version since when the client lacked it."""

    @property
    def nonce(self) -> str:
        """Of the response."""
        return self.push.nonce


@dataclass(slots=True)
class Detail:
    """One type of one client, name by name."""

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
    sent: dict[str, Resource | None] = field(default_factory=dict)
    """Of the response on its way. None: removed."""
    sent_since: dict[str, int] = field(default_factory=dict)

    def look_at(self, name: str, since: int) -> None:
        """The client may differ in a name since a model version."""
        self.pending.setdefault(name, since)

    def forget(self, name: str) -> None:
        """The client no longer has, nor wants, a name."""
        self.known.pop(name, None)
        self.before.pop(name, None)
        self.settle(name)

    def settle(self, name: str) -> None:
        """There is nothing to say about a name."""
        self.pending.pop(name, None)
        self.forced.discard(name)

    @property
    def quiet(self) -> bool:
        """There is nothing to say about any."""
        return not self.pending and not self.forced and not self.parts


@dataclass(slots=True)
class TypeState:
    """One resource type of the stream."""

    wildcard: bool = False
    answered: bool = False
    """The first answer that a wildcard client needs, even an empty one, has been given."""
    names: NameSet = NO_NAMES
    """Subscribed by name."""
    have: Content = NOTHING
    """What the client has acknowledged"""
    covered: NameSet = NO_NAMES
    """for these names; with a wildcard, whole."""
    since: int = 0
    """Model version since when it may lack something; 0: it lacks nothing."""
    detail: Detail | None = None
    """Instead of `have`, `covered` and `since`."""
    flight: Flight | None = None
    error: str = ""
    """Of the last refusal."""
    nonce: str = ""
    """Of the last response."""

    def wants(self, name: str) -> bool:
        """The client has subscribed to a name."""
        return self.wildcard or name in self.names

    def lacks_since(self, since: int) -> None:
        """It may lack something since a model version."""
        self.since = self.since or since

    def open_since(self, first: int) -> int:
        """The model version since when something is on its way, or about to be; `first` if that
        is less, or nothing is."""
        if 0 < self.since < first:
            first = self.since
        detail, flight = self.detail, self.flight
        if detail is not None:
            if detail.pending:
                first = min(first, *detail.pending.values())
            if flight is not None:
                first = min(first, *detail.sent_since.values(), first)
        elif flight is not None and flight.since < first:
            first = flight.since
        return first

    @property
    def is_open(self) -> bool:
        """Something is to be said."""
        return bool(self.since or (self.detail is not None and self.detail.pending))


def content_from(wanted: "Names | Content | None") -> Content:
    """A mapping as a content."""
    if isinstance(wanted, Content):
        return wanted
    if not wanted:
        return NOTHING
    return content_of((Layer((n, r) for n, r in wanted.items() if r is not None),))


def changed_names(old: "Names | Content", new: "Names | Content") -> Iterable[str]:
    """Names whose resource is another one, there or gone."""
    if isinstance(old, Content) or isinstance(new, Content):
        return content_from(old).differing(content_from(new))
    out = [
        name
        for name, resource in new.items()
        if old.get(name) is not resource or (resource is None and name not in old)
    ]
    out.extend(name for name in old if name not in new)
    return out


def smaller_parts(names: tuple[str, ...], message: str) -> list[tuple[str, ...]]:
    """Smaller responses that show which resource of a refused one is at fault: those that the
    message names apart, or else halves. A hint only: who refuses alone is at fault."""
    named: list[tuple[str, ...]] = [(name,) for name in names if name and name in message]
    if named and len(named) <= max(2, len(names) // 4):
        apart = {name for part in named for name in part}
        rest = tuple(n for n in names if n not in apart)
        return [rest, *named] if rest else named
    middle = len(names) // 2
    return [names[:middle], names[middle:]]
