"""Whose patch is it that Envoy refuses, and where it is left out until it is mended.

A refused content that EnvoyFilters had a part in is looked into, one at a time: a proxy that
refused it is asked about the same resource without some of them (`culprits.py`), and nobody else is
sent anything of it meanwhile. Those at fault are left out from then on, in rows of this replica's
own world that compile reads (`meshbus.compile.quarantine`); everything else of the resource goes
on. If Envoy refuses it without any patch as well, everybody keeps the last good content, as ever.

What is left out is left out at the workload whose proxies refused it, so that no workload can take
a patch from another. An object is left out of the resource that it spoils and of no other as long
as the proxies have some of its patches of that type. If they have none it counts as not there, for
a filter without its cluster is worse than neither. A newer revision of it is tried anew,
everywhere. One that is annotated to hold (`meshbus.api.when_refused`) is never left out.

Replicas do not share what they know: each finds out for itself, and after a restart once more. That
takes two refusals and no delivery, since the proxies have the content without the patch already.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshbus.api.when_refused import holds
from meshbus.compile.quarantine import EVERYTHING, place_of, quarantine_key, revision_of
from meshbus.compile.resources import CDS, ECDS, LDS, RDS, Resource
from meshbus.compile.settings import settings_of
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject, Place, Quarantine
from meshbus.model.world import Put, Query, World
from meshbus_xds_gateway.classes import Classes
from meshbus_xds_gateway.client_refusals import cannot_bind
from meshbus_xds_gateway.culprits import Culprits
from meshbus_xds_gateway.verdicts import Content, Refusal, Verdicts, content_of
from meshbus_xds_gateway.whereabouts import Whereabouts

if TYPE_CHECKING:
    from meshbus_xds_gateway.fleet import Client

PATCHES = "envoyfilters"
DOUBT_S = 2.0
"""How long a second proxy has to say the same, where there is one."""
ANSWER_S = 5.0
"""How long a proxy has to answer: longer than listeners wait for clusters."""
MAX_ASKED = 3
"""Proxies that are asked, one after the other, when they do not answer."""
MAX_OPEN = 1024
"""Refused contents that are remembered here."""
_SINGLY = 3
"""Resources of one type that an object is left out of one by one; then it is left out of all that
nobody has taken with it. And contents of which a proxy finds out one by one that it refuses them;
then what it has found out is enough to begin."""
_LED_TO = {
    CDS: (CDS, ECDS, RDS, LDS),
    ECDS: (ECDS, RDS, LDS),
    RDS: (RDS, LDS),
    LDS: (LDS,),
}
"""What may lead to resources of a type, and has to go with them."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """One object that is left out at one place."""

    object: Key
    revision: str
    place: Place
    names: frozenset[str]
    """Of resources; `*`: everything."""
    refusal: Refusal
    sequence: int
    """Model version that it concerns, and all before."""
    partners: tuple[Key, ...] = ()
    """It is refused beside these: when one of them changes, it is tried again."""


@dataclass(slots=True)
class _Open:
    """A refused content that is, or was, looked into."""

    refusal: Refusal
    suspects: tuple[Key, ...]
    """The most trusted first."""
    since: float
    innocent: set[Place] = field(default_factory=set)
    """Where none of them is at fault, or nobody answers."""
    guilty: frozenset[Key] = frozenset()
    told: bool = False
    old: bool = False
    """It is of earlier revisions, until it is found to be of present ones as well."""


@dataclass(slots=True)
class _Case:
    """The content that is looked into now."""

    open: _Open
    place: Place
    search: Culprits[Key]
    proxy: "Client"
    """Who is asked."""
    deadline: float
    asked: "set[Client]"

    @property
    def resource(self) -> Resource:
        """What was refused."""
        return self.open.refusal.resource


class Quarantines:
    """What one replica leaves out, and what it is looking into."""

    def __init__(
        self,
        classes: Classes,
        verdicts: Verdicts,
        monotonic: Callable[[], float],
        changed: Callable[[frozenset[Query]], None],
    ) -> None:
        """`changed` is called with what compile has to look at again."""
        self._classes = classes
        self._verdicts = verdicts
        self._monotonic = monotonic
        self._changed = changed
        self._announce: Callable[[Refusal, frozenset[Key]], None] = lambda _refusal, _objects: None
        self._open: OrderedDict[Content, _Open] = OrderedDict()
        self._case: _Case | None = None
        self._revisions: dict[Key, str] = {}
        """Of the objects that are, or may be, left out somewhere."""
        self._left: dict[Place, dict[tuple[Key, str, str], LeftOut]] = {}
        """By place, then object, type and name of what was refused."""
        self._times: Counter[Key] = Counter()
        """How often an object is left out."""
        self._rows = World()
        """What compile reads of it."""
        self._where = Whereabouts(classes)
        self._overflown = False
        """There are refused contents of which nothing is held here."""
        self.most_open = MAX_OPEN
        """Refused contents that are held here at once; the others wait."""
        self._sequences: dict[tuple[Key, str, Place], int] = {}
        """Which version it concerned that an object was left out at a place, before it was tried
        again because of another."""
        self._classes_version = 0
        self._dirty = False
        """There may be contents to look into."""

    def on_verdict(self, announce: Callable[[Refusal, frozenset[Key]], None]) -> None:
        """Call once for each refusal that was looked into, with the objects at fault."""
        self._announce = announce

    # ------------------------------------------------------------------ rows

    def world(self, world: World) -> World:
        """A world of the model with the rows of this replica."""
        return world.beside(self._rows) if self._revisions else world

    def _write(self, pairs: Iterable[tuple[Key, Place]]) -> frozenset[Query]:
        """Bring the rows of these objects and places up to date; gives what differs."""
        puts = []
        for key, place in pairs:
            by_type = self._by_type(key, place)
            row = Quarantine(self._revisions[key], by_type) if by_type else None
            puts.append(Put(quarantine_key(key, place), 0, 0.0, row))
        self._rows, touched = self._rows.apply(puts)
        return touched

    def _by_type(self, key: Key, place: Place) -> dict[str, frozenset[str]]:
        found: dict[str, frozenset[str]] = {}
        for (object_key, refused, _), left in self._left.get(place, {}).items():
            if object_key == key:
                for type_url in _LED_TO[refused] if EVERYTHING in left.names else (refused,):
                    found[type_url] = found.get(type_url, frozenset()) | left.names
        case = self._case
        if case is not None and case.place == place and key in case.search.left_out:
            kind = case.resource.type_url
            found[kind] = found.get(kind, frozenset()) | {case.resource.name}
        return found

    def stepped(self, world: World, touched: Iterable[Query]) -> frozenset[Query]:
        """Objects have changed: what was known of earlier revisions is forgotten. Gives what has to
        be compiled anew besides."""
        self._dirty = True
        self._where.forget()
        changed = frozenset(
            key
            for _, index, key in touched
            if index == "key" and isinstance(key, Key) and key.plane == "cfg"
            if key.kind == PATCHES and self._revisions.get(key) != _revision(world, key)
        )
        if not changed:
            return frozenset()
        for held in self._open.values():
            if not changed.isdisjoint(held.suspects):
                held.innocent, held.guilty, held.told, held.old = set(), frozenset(), False, True
        pairs = self._take_back(lambda left: not changed.isdisjoint((left.object, *left.partners)))
        case = self._case
        if case is not None and not changed.isdisjoint(case.open.suspects):
            pairs += [(key, case.place) for key in case.open.suspects]
            self._close()
        for memory in [m for m in self._sequences if m[1] != _revision(world, m[0])]:
            del self._sequences[memory]
        moved = self._write(pairs)
        self._forget_revisions([*changed, *(key for key, _ in pairs)])
        return moved

    def _forget_revisions(self, keys: Iterable[Key]) -> None:
        """Of objects that are left out nowhere, and about which nobody is asked."""
        asked = () if self._case is None else self._case.open.suspects
        for key in keys:
            if not self._times[key] and key not in asked:
                self._revisions.pop(key, None)
                del self._times[key]

    def _take_back(self, concerns: Callable[[LeftOut], bool]) -> list[tuple[Key, Place]]:
        """Try again what is left out, where that concerns it; gives the objects and places."""
        gone = []
        for place, held in list(self._left.items()):
            for where, left in list(held.items()):
                if concerns(left):
                    self._sequences[left.object, left.revision, place] = left.sequence
                    del held[where]
                    self._times[left.object] -= 1
                    gone.append((left.object, place))
            if not held:
                del self._left[place]
        return gone

    # ------------------------------------------------------------------ what proxies say

    def takes(self, refusal: Refusal) -> bool:
        """A proxy has refused a content. True: it is looked into, and `announce` called later."""
        resource = refusal.resource
        if resource.type_url not in _LED_TO or cannot_bind(resource.type_url, refusal.message):
            return False
        suspects = [key for key in resource.origins if key.kind == PATCHES]
        if all(map(self._must_stay, suspects)):
            return False
        if self._verdicts.is_probe(resource):
            return True
        content = content_of(resource)
        if content not in self._open:
            if len(self._open) >= self.most_open:
                # It is looked into once there is room: its proxy goes on refusing it.
                self._overflown = True
                return False
            self._open[content] = _Open(refusal, self._ordered(suspects), self._monotonic())
        self._dirty = True
        return not self._open[content].told

    def _make_room(self) -> None:
        """Let go of what nobody is given any more, and take up what there was no room for."""
        for content, held in list(self._open.items()):
            if held.told and not self._where.given(held.refusal.resource):
                del self._open[content]
        self._overflown = False
        for client in self._classes.clients:
            for blocked in client.session.blocked.values():
                if content_of(blocked.refusal.resource) not in self._open:
                    self.takes(blocked.refusal)

    def _must_stay(self, key: Key) -> bool:
        """Whoever wrote it wants nothing to be sent without it."""
        row = self._classes.engine.world.get(key)
        return isinstance(row, ConfigObject) and holds(row.annotations)

    def _ordered(self, suspects: Iterable[Key]) -> tuple[Key, ...]:
        """The most trusted first: of the root namespace, then what has changed longest ago."""
        world = self._classes.engine.world
        specs = [entry.row.spec for entry in world.all("mesh.config")]
        root = settings_of(specs[0] if specs else {}).root_namespace

        def trust(key: Key) -> tuple[bool, int, Key]:
            entry = world.entry(key)
            return (key.namespace != root, 0 if entry is None else entry.sequence, key)

        return tuple(sorted(suspects, key=trust))

    def step(self) -> None:
        """Something may have been answered, or time has passed. Call when what classes have is of
        the present world, and given."""
        if not self._open:
            return
        if self._case is not None:
            self._judge(self._case)
        elif self._dirty or self._classes_version != self._classes.version:
            self._classes_version = self._classes.version
            self._next()

    def aim(self) -> None:
        """Classes have new contents, which are about to be given: what is asked goes to one proxy
        alone."""
        self._where.forget()
        case = self._case
        if case is not None:
            self._verdicts.probe(self._probe(case), case.proxy.id)

    # ------------------------------------------------------------------ looking into one

    def _next(self) -> None:
        """Begin with the next content, if there is one that is ready."""
        self._dirty = False
        for content, held in list(self._open.items()):
            resource = held.refusal.resource
            if self._verdicts.is_accepted(resource):
                self._tell(held, resource.origins)
                del self._open[content]
                continue
            places = {place_of(client.keys) for client in self._where.given(resource)}
            places -= held.innocent
            if places:
                held.old = False
                held.suspects = self._ordered(held.suspects)
            elif not held.old:
                self._tell(held, self._at_fault(held))
            for place in sorted(places):
                if self._is_ready(held, place):
                    self._begin(held, place)
                    return
                self._dirty = True
        if self._overflown:
            self._make_room()

    def _is_ready(self, held: _Open, place: Place) -> bool:
        """Enough proxies have refused it, and they have found out what else they refuse."""
        resource = held.refusal.resource
        refuser = self._refuser(held, place)
        waited = self._monotonic() - held.since
        untold = sum(not other.told for other in self._open.values())
        own = refuser.id == held.refusal.proxy and refuser.session.is_searching(resource.type_url)
        if own and untold <= _SINGLY and waited < ANSWER_S:
            return False
        if self._verdicts.is_blocked(resource):
            return True
        others = {c.id for c in self._where.given(resource)} - {held.refusal.proxy}
        return not others or waited >= DOUBT_S

    def _refuser(self, held: _Open, place: Place) -> "Client":
        """Who is asked first: who refused it, or another one of its place."""
        having = [c for c in self._where.given(held.refusal.resource) if place_of(c.keys) == place]
        return min(having, key=lambda c: (c.id != held.refusal.proxy, c.id, c.connected))

    def _begin(self, held: _Open, place: Place) -> None:
        candidates = [key for key in held.suspects if not self._must_stay(key)]
        if not candidates:
            held.innocent.add(place)
            self._dirty = True
            return
        refuser = self._refuser(held, place)
        deadline = self._monotonic() + ANSWER_S
        search = Culprits(candidates, held.guilty)
        self._case = _Case(held, place, search, refuser, deadline, {refuser})
        world = self._classes.engine.world
        for key in held.suspects:
            self._revisions.setdefault(key, _revision(world, key))
        self._changed(self._write((key, place) for key in held.suspects))

    def _probe(self, case: _Case) -> Resource | None:
        return self._classes.given(case.proxy, case.resource.type_url).get(case.resource.name)

    def _judge(self, case: _Case) -> None:
        if case.proxy.gone:
            self._ask_another(case)
            return
        probe = self._probe(case)
        if probe is None or self._is_taken(case, probe):
            self._answer(case, True)
        elif self._verdicts.is_refused(probe):
            self._answer(case, False)
        elif self._monotonic() >= case.deadline:
            self._ask_another(case)

    def _is_taken(self, case: _Case, resource: Resource) -> bool:
        return self._verdicts.is_accepted(resource) or case.proxy.session.holds(resource)

    def _ask_another(self, case: _Case) -> None:
        others = [c for c in self._where.at(case.place) if c not in case.asked]
        if not others or len(case.asked) >= MAX_ASKED:
            case.open.innocent.add(case.place)
            self._end(case)
            return
        case.proxy = min(others, key=lambda client: client.id)
        case.asked.add(case.proxy)
        case.deadline = self._monotonic() + ANSWER_S
        self.aim()
        case.proxy.wake.set()

    def _answer(self, case: _Case, taken: bool) -> None:
        freed: list[tuple[Key, Place]] = []
        case.search.answer(taken)
        case.deadline = self._monotonic() + ANSWER_S
        if not case.search.done:
            self._changed(self._write((key, case.place) for key in case.open.suspects))
            return
        if case.search.innocent:
            case.open.innocent.add(case.place)
        else:
            blamed = [self._leave_out(case, key) for key in case.search.blamed]
            case.open.guilty |= frozenset(case.search.blamed)
            self._tell(case.open, case.open.guilty)
            # Beside what is left out now, nothing is refused any more.
            freed = self._take_back(lambda left: any(_spares(one, left) for one in blamed))
        self._end(case, freed)

    def _leave_out(self, case: _Case, key: Key) -> LeftOut:
        refusal, resource = case.open.refusal, case.resource
        kind, name = resource.type_url, resource.name
        left = self._left.setdefault(case.place, {})
        content = self._classes.given(case.proxy, kind)
        others = [
            r
            for layer in content.layers
            for r in layer.values()
            if key in r.origins and r.name != name
        ]
        taken = {r.name for r in others if self._is_taken(case, r)}
        names = frozenset({name})
        if not taken or kind == ECDS:
            names = frozenset({EVERYTHING})
        elif sum(o == key and k == kind for o, k, _ in left) >= _SINGLY:
            names |= {r.name for r in others} - taken
        entry = self._classes.engine.world.entry(key)
        revision = self._revisions[key]
        sequence = self._sequences.pop((key, revision, case.place), 0)
        if not sequence:
            sequence = max(refusal.sequence, 0 if entry is None else entry.sequence)
        partners = case.search.partners[key]
        made = LeftOut(key, revision, case.place, names, refusal, sequence, partners)
        self._times[key] += (key, kind, name) not in left
        left[key, kind, name] = made
        return made

    def _end(self, case: _Case, freed: Sequence[tuple[Key, Place]] = ()) -> None:
        """It has been looked into; what is left out for good stays so. `freed`: what is not left
        out any more because of it."""
        self._close()
        self._dirty = True
        pairs = [*((key, case.place) for key in case.open.suspects), *freed]
        moved = self._write(pairs)
        self._forget_revisions(key for key, _ in pairs)
        self._changed(moved)

    def _close(self) -> None:
        self._case = None
        self._verdicts.probe(None)

    def _at_fault(self, held: _Open) -> frozenset[Key]:
        """Also when it has gone because somebody is left out for another content."""
        known = held.guilty or frozenset(key for key in held.suspects if self._times[key])
        return known or held.refusal.resource.origins

    def _tell(self, held: _Open, objects: frozenset[Key]) -> None:
        if not held.told:
            held.told = True
            self._announce(held.refusal, objects)

    # ------------------------------------------------------------------ for people

    def objects_of(self, refusal: Refusal) -> frozenset[Key]:
        """The objects that a refusal is told of: those at fault, or suspected; all that the content
        came from where none is."""
        held = self._open.get(content_of(refusal.resource))
        if held is None:
            return refusal.resource.origins
        return self._at_fault(held) if held.told else frozenset(held.suspects)

    def left_out(self) -> list[LeftOut]:
        """Everything that is left out, in order of object and place."""
        found = [left for held in self._left.values() for left in held.values()]
        return sorted(found, key=lambda o: (o.object, o.place, o.refusal.resource.name))

    def at(self, client: "Client") -> list[LeftOut]:
        """What is left out at one proxy."""
        if not self._left:
            return []
        held = self._left.get(place_of(client.keys), {}).values()
        return sorted(held, key=lambda o: (o.object, o.refusal.resource.name))

    def is_undecided(self, refusal: Refusal) -> bool:
        """It is not known yet whose fault a refusal is."""
        if self._verdicts.is_probe(refusal.resource):
            return True
        held = self._open.get(content_of(refusal.resource))
        return held is not None and not held.told

    def concerns(self, client: "Client") -> bool:
        """What a proxy is to get is being looked into."""
        return self._case is not None and self._case.place == place_of(client.keys)

    def proxies(self) -> set["Client"]:
        """All proxies at which something is left out, or is about to be."""
        places = set(self._left)
        if self._case is not None:
            places.add(self._case.place)
        return {client for place in places for client in self._where.at(place)}

    def count(self, left: LeftOut) -> int:
        """How many proxies something is left out at."""
        return len(self._where.at(left.place))


def _spares(blamed: LeftOut, left: LeftOut) -> bool:
    """What an object was refused beside is gone from there by what is blamed now."""
    if blamed.object not in left.partners or blamed.place != left.place:
        return False
    kind, name = left.refusal.resource.type_url, left.refusal.resource.name
    refused = blamed.refusal.resource.type_url
    if EVERYTHING in blamed.names:
        return kind in _LED_TO[refused]
    return kind == refused and name in blamed.names


def _revision(world: World, key: Key) -> str:
    row = world.get(key)
    return revision_of(row) if isinstance(row, ConfigObject) else ""
