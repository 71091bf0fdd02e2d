"""What sessions share: sets of names, contents of a type, and the changes between two contents.

All of it is immutable and made once: a thousand sessions that go from one content to the next hold
the same `Change`, with the same bytes of the response.
"""

import itertools
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator

from meshbus.compile.layers import Layer, remembered
from meshbus.compile.one_set import one_set
from meshbus.compile.resources import ECDS, Resource, field

NameSet = frozenset[str]


def names_of(names: Iterable[str]) -> NameSet:
    """The one set of these names: equal ones are one object."""
    return one_set(names)


NO_NAMES = names_of(())
_nonces = itertools.count(1)


def next_nonce() -> str:
    """A nonce that no other response of this process has."""
    return str(next(_nonces))


class Change:
    """Part of a response: what is sent of one layer, and what is removed."""

    __slots__ = (
        "__weakref__",
        "_data",
        "accepted_by",
        "epoch",
        "gone",
        "held",
        "nonce",
        "removed",
        "type_url",
        "updates",
    )

    def __init__(
        self,
        type_url: str,
        updates: tuple[Resource, ...],
        removed: tuple[str, ...],
        held: int = 0,
        gone: bool = False,
    ) -> None:
        self.type_url = type_url
        self.updates = updates
        self.removed = removed
        self.held = held
        """Of how many updates the client has another content."""
        self.gone = gone
        """Some that are removed the client has; of others it is told that there are none."""
        self.nonce = next_nonce()
        self.accepted_by: object = None
        """The `Verdicts` that know all updates to be acceptable."""
        self.epoch: object = None
        """When none of the updates was refused, as `Verdicts` count it."""
        self._data: bytes | None = None

    @property
    def changes(self) -> tuple["Change", ...]:
        """What a response of this change alone brings."""
        return (self,)

    @property
    def resources(self) -> tuple[Resource, ...]:
        """What is sent."""
        return self.updates

    @property
    def data(self) -> bytes:
        """The delta response of this change alone: joined once, sent many times.

        Source: envoy/service/discovery/v3/discovery.proto: DeltaDiscoveryResponse: resources=2,
        type_url=4, nonce=5, removed_resources=6; fields may come in any order.
        """
        data = self._data
        if data is not None:
            _recent.used = True
            return data
        parts = [resource.framed for resource in self.updates]
        parts.extend(field(6, name.encode()) for name in self.removed)
        parts.append(field(4, self.type_url.encode()))
        parts.append(field(5, self.nonce.encode()))
        data = self._data = b"".join(parts)
        _recent.keep(self, len(data))
        return data

    def forget(self) -> None:
        """Let go of the bytes; they are joined again for who comes later."""
        self._data = None


class _Recent:
    """Whose responses are at hand: for the others of a class that are about to get them. All that
    were ever sent are many times the model."""

    def __init__(self) -> None:
        self._held: OrderedDict[Change, int] = OrderedDict()
        self._bytes = 0
        self.used = False
        """One was made or asked for since `rest`."""

    def rest(self) -> bool:
        """Let go of all of them when none was made or asked for since the last time. True: there
        were some."""
        idle = not self.used and bool(self._held)
        if idle:
            for change in self._held:
                change.forget()
            self._held.clear()
            self._bytes = 0
        self.used = False
        return idle

    def keep(self, change: Change, size: int) -> None:
        """The bytes of a change, so many, have been made."""
        self.used = True
        self._held[change] = size
        self._bytes += size
        while self._bytes > _RECENT_BYTES and len(self._held) > 1:
            oldest, size = self._held.popitem(last=False)
            oldest.forget()
            self._bytes -= size


_RECENT_BYTES = 32 * 1024 * 1024
_recent = _Recent()


def forget_responses() -> bool:
    """Call now and then: responses that nobody asks for any more are let go of. True: some
    were."""
    return _recent.rest()


class Content:
    """What there is of one type for the clients of a class: layers whose names are disjoint."""

    __slots__ = ("__weakref__", "derived", "layers")

    def __init__(self, layers: tuple[Layer, ...]) -> None:
        self.layers = layers
        self.derived: dict[object, object] = {}

    def get(self, name: str) -> Resource | None:
        """One resource."""
        for layer in self.layers:
            found = layer.get(name)
            if found is not None:
                return found
        return None

    def __contains__(self, name: str) -> bool:
        return any(name in layer for layer in self.layers)

    def __iter__(self) -> Iterator[str]:
        return itertools.chain.from_iterable(self.layers)

    def __len__(self) -> int:
        return sum(map(len, self.layers))

    def names(self) -> NameSet:
        """All names."""
        return remembered(self.derived, "names", (), lambda: names_of(self))

    def lacking(self, names: NameSet) -> NameSet:
        """Names of this content that are not among these."""
        return remembered(self.derived, "lacking", (names,), lambda: names_of(self.names() - names))

    def differing(self, new: "Content") -> NameSet:
        """Names whose resource is another one in `new`, there or gone."""
        return remembered(
            self.derived, "differing", (new,), lambda: names_of(_differing(self, new))
        )

    def appearing(self, new: "Content") -> NameSet:
        """Names of `new` that this has not."""
        return remembered(
            self.derived,
            "appearing",
            (new,),
            lambda: names_of(name for name in self.differing(new) if name not in self),
        )


NOTHING = Content(())


def content_of(layers: tuple[Layer, ...]) -> Content:
    """The content of these layers: the same object as long as it and they live."""
    if not layers:
        return NOTHING
    identity = ("content", *map(id, layers))
    # Kept at the last layer, which is the one that fewest contents have.
    known = layers[-1].derived
    reference = known.get(identity)
    found = reference() if reference is not None else None
    if found is not None and all(a is b for a, b in zip(found.layers, layers, strict=True)):
        made: Content = found
        return made
    made = Content(layers)
    known[identity] = weakref.ref(made)
    return made


def _pairs(old: Content, new: Content) -> list[tuple[Layer, Layer]] | None:
    """Layers that differ, one by one; None: the contents are not made alike."""
    if len(old.layers) != len(new.layers):
        return None
    return [(a, b) for a, b in zip(old.layers, new.layers, strict=True) if a is not b]


def _differing(old: Content, new: Content) -> Iterator[str]:
    for a, b in _pairs(old, new) or _whole(old, new):
        yield from _differing_names(a, b)


def _whole(old: Content, new: Content) -> list[tuple[Layer, Layer]]:
    if len(old.layers) == len(new.layers):
        return []
    return [(_flat(old), _flat(new))]


def _flat(content: Content) -> Layer:
    return remembered(
        content.derived,
        "flat",
        (),
        lambda: Layer((n, r) for layer in content.layers for n, r in layer.items()),
    )


def _differing_names(old: Layer, new: Layer) -> NameSet:
    def compare() -> NameSet:
        out = [name for name, resource in new.items() if old.get(name) is not resource]
        out.extend(name for name in old if name not in new)
        return names_of(out)

    return remembered(old.derived, "differing", (new,), compare)


# --------------------------------------------------------------------------- changes


def changes_between(type_url: str, old: Content, new: Content) -> tuple[Change, ...]:
    """What brings a client that has all of `old` to all of `new`."""
    if old is NOTHING:
        found = [_all_of(type_url, layer) for layer in new.layers]
    else:
        pairs = _pairs(old, new)
        if pairs is None:
            pairs = [(_flat(old), _flat(new))]
        found = [_layer_change(type_url, a, b) for a, b in pairs]
    return tuple(change for change in found if change is not None)


def _all_of(type_url: str, layer: Layer) -> Change | None:
    if not layer:
        return None
    return remembered(layer.derived, "all", (), lambda: Change(type_url, tuple(layer.values()), ()))


def _layer_change(type_url: str, old: Layer, new: Layer) -> Change | None:
    return remembered(
        old.derived,
        "change",
        (new,),
        lambda: _made_change(type_url, _differing_names(old, new), old.get, new),
    )


def named_changes(
    type_url: str, old: Content, covered: NameSet, new: Content, names: NameSet
) -> tuple[Change, ...]:
    """What brings a client that has `old` of the names `covered` to `new` of `names`."""

    def make() -> Change | None:
        differing = old.differing(new) & covered & names if old is not new else NO_NAMES
        missing = names - covered if covered is not names else NO_NAMES
        if not differing and not missing:
            return None
        return _made_change(
            type_url,
            differing | missing,
            lambda name: old.get(name) if name in covered else None,
            new,
        )

    # Nothing is the same content for every type.
    change = remembered(new.derived, f"to {type_url}", (old, covered, names), make)
    return () if change is None else (change,)


_changes: "weakref.WeakValueDictionary[tuple[object, ...], Change]" = weakref.WeakValueDictionary()
"""By what they do: contents that differ in what a change does not touch share it."""


def _made_change(
    type_url: str,
    names: Iterable[str],
    before: Callable[[str], Resource | None],
    new: Layer | Content,
) -> Change | None:
    updates: list[Resource] = []
    removed: list[str] = []
    held, gone = 0, False
    for name in sorted(names):
        old, after = before(name), new.get(name)
        if after is None:
            if type_url == ECDS and old is not None:
                # A filter without configuration answers 500 to every request of the listeners that
                # are still drained. The client forgets it with the last of them.
                continue
            removed.append(name)
            gone = gone or old is not None
        elif old is None or old.version != after.version:
            updates.append(after)
            held += old is not None
    if not updates and not removed:
        return None
    identity = (type_url, tuple(updates), tuple(removed), held, gone)
    found = _changes.get(identity)
    if found is None:
        found = _changes[identity] = Change(*identity)
    return found


def before_removals(old: Content, new: Content) -> Content:
    """All of `new`, and what it lacks of `old` still there: where a client is taken first."""

    def make() -> Content:
        kept = ((name, old.get(name)) for name in old if name not in new)
        return Content((*new.layers, Layer((n, r) for n, r in kept if r is not None)))

    return remembered(new.derived, "before removals", (old,), make)
