"""What a session keeps of each resource type, and small questions about it."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from meshbus.compile.resources import Resource

ABSENT = ""
"""Instead of a version: the client has been told that there is no such resource."""

Names = Mapping[str, Resource | None]
"""Resources of a type by name. None: it will come (a certificate being signed), say nothing yet."""
Wanted = Mapping[str, Names]
"""By type URL."""
Changed = Callable[[Names, Names], Iterable[str]]


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
class Flight:
    """The response that waits for its acknowledgement."""

    nonce: str
    sent: dict[str, Resource | None]
    """None: removed."""
    since: dict[str, int]
    """Model version since when the client lacked it."""


@dataclass(slots=True)
class TypeState:
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
    flight: Flight | None = None
    error: str = ""
    """Of the last refusal."""
    nonce: str = ""
    """Of the last response."""

    def wants(self, name: str) -> bool:
        """The client has subscribed to a name."""
        return self.wildcard or name in self.names

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


def changed_names(old: Names, new: Names) -> list[str]:
    """Names whose resource is another one, there or gone."""
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
