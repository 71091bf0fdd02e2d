"""What a view reaches: services with the destination rules that its proxies follow for them.

A `Reach` is one namespace's share of that. Views that reach the same hold the same object, whatever
their own namespace, and so share every node that is made of it.
"""

import weakref
from typing import NamedTuple

from meshbus.compile.engine import Reader
from meshbus.compile.findings import Part
from meshbus.compile.names import most_specific
from meshbus.compile.one_set import one_set
from meshbus.compile.rules_in_force import find_rules, rule_hosts, rules_are_public
from meshbus.compile.scope import public_services, reachable_services
from meshbus.compile.viewers import NOBODY, Viewer
from meshbus.compile.virtual_hosts import View
from meshbus.model.keys import Key
from meshbus.model.rows import Service


class Reached(NamedTuple):
    """A service that is reached."""

    host: str
    service: Key
    ports: frozenset[int]
    """Of the service, those that are reached."""
    rules: tuple[Key, ...] = ()
    """Destination rules that are followed for it, older first."""

    def limited(self, part: Part) -> Part:
        """Resources of these ports; the name of each begins with `outbound|PORT|`."""
        kept = [r for r in part.resources if int(r.name.split("|", 2)[1]) in self.ports]
        return part if len(kept) == len(part.resources) else Part(tuple(kept), part.findings)


class Reach:
    """Services of one namespace that are reached. Equal ones are one object: see `reach_of`."""

    __slots__ = ("__weakref__", "members")

    def __init__(self, members: tuple[Reached, ...]) -> None:
        self.members = members

    def __repr__(self) -> str:
        return f"<reach {', '.join(m.host for m in self.members)}>"


_interned: "weakref.WeakValueDictionary[tuple[Reached, ...], Reach]" = weakref.WeakValueDictionary()


def reach_of(members: tuple[Reached, ...]) -> Reach:
    """The one Reach of these members."""
    found = _interned.get(members)
    if found is None:
        found = _interned[members] = Reach(members)
    return found


def reached_services(reader: Reader, viewer: Viewer) -> dict[str, tuple[Reached, ...]]:
    """Node: services that a viewer reaches by their namespace, without rules."""
    services = reader.node(reachable_services, viewer)
    if not viewer.egress and viewer.namespace != NOBODY:
        public = reader.node(public_services)
        if services is public:
            return reader.node(reached_services, Viewer(NOBODY))
    out: dict[str, list[Reached]] = {}
    for host, ref in services.items():
        row: Service = ref.row
        ports = one_set(port.number for port in row.ports)
        out.setdefault(row.namespace, []).append(Reached(host, ref.key, ports))
    return {owner: tuple(members) for owner, members in sorted(out.items())}


def reached_in(reader: Reader, viewer: Viewer, owner: str) -> tuple[Reached, ...]:
    """Node: one namespace of `reached_services`."""
    return reader.node(reached_services, viewer).get(owner, ())


def reach(reader: Reader, view: View, owner: str) -> Reach:
    """Node: one namespace's services as a view reaches them."""
    members = reader.node(reached_in, view.viewer, owner)
    viewer = view.namespace
    if viewer != owner and not _has_rules(reader, viewer, members):
        common = reader.node(common_reach, owner, members)
        if common is not None:
            return common
    return reach_of(
        tuple(
            m._replace(rules=find_rules(reader, viewer, owner, m.host, view.rules)) for m in members
        )
    )


def _has_rules(reader: Reader, viewer: str, members: tuple[Reached, ...]) -> bool:
    own = reader.node(rule_hosts, viewer)
    if not own.exact and not own.wildcards:
        return False
    return any(
        m.host in own.exact or most_specific(own.wildcards, m.host) is not None for m in members
    )


def common_reach(reader: Reader, owner: str, members: tuple[Reached, ...]) -> Reach | None:
    """Node: the reach of those whose own namespace has no rules for these services; None: it is
    not the same for all of them, for some rules are not exported to everybody."""
    if not reader.node(rules_are_public, owner):
        return None
    return reach_of(
        tuple(
            m._replace(rules=find_rules(reader, NOBODY, owner, m.host, frozenset()))
            for m in members
        )
    )


def reaches(reader: Reader, view: View) -> tuple[Reach, ...]:
    """Node: everything that a view reaches, by namespace."""
    owners = reader.node(reached_services, view.viewer)
    return tuple(reader.node(reach, view, owner) for owner in owners)
