"""Who is given a content, and who is where: asked while something that was refused is looked into.

Put together when it is asked for and kept until it may be another, so that it costs nothing while
nothing is refused, and looking into a thousand contents does not go through all classes for each.
"""

from typing import TYPE_CHECKING

from meshbus.compile.quarantine import place_of
from meshbus.compile.resources import Resource
from meshbus.model.rows import Place
from meshbus_xds_gateway.classes import Classes

if TYPE_CHECKING:
    from meshbus_xds_gateway.fleet import Client


class Whereabouts:
    """An index over the classes of now. Clients that are gone are left out."""

    def __init__(self, classes: Classes) -> None:
        self._classes = classes
        self._version = -1
        self._places: dict[Place, list[Client]] = {}
        self._givers: dict[tuple[str, str], dict[Resource, list[Client]]] = {}
        """By type and name."""

    def forget(self) -> None:
        """Contents may be others."""
        self._version = -1

    def at(self, place: Place) -> "list[Client]":
        """The clients of a place."""
        self._settle()
        if not self._places:
            for client in self._classes.clients:
                self._places.setdefault(place_of(client.keys), []).append(client)
        return [client for client in self._places.get(place, ()) if not client.gone]

    def given(self, resource: Resource) -> "list[Client]":
        """The clients whose class has this very resource."""
        self._settle()
        kind, name = resource.type_url, resource.name
        found = self._givers.get((kind, name))
        if found is None:
            found = self._givers[kind, name] = {}
            for client in self._classes.clients:
                given = self._classes.given(client, kind).get(name)
                if given is not None:
                    found.setdefault(given, []).append(client)
        return [client for client in found.get(resource, ()) if not client.gone]

    def _settle(self) -> None:
        if self._version != self._classes.version:
            self._version = self._classes.version
            self._places, self._givers = {}, {}
