"""What clients have asked for by name: virtual hosts and clusters that are sent to nobody else.

A virtual host that somebody asks for is a node of its own, kept as long as one client has asked for
it; clusters that are asked for are those of the class by these names. Clients that have asked for
the same hold the same content.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from meshbus.compile.asked_hosts import Tables, asked_host
from meshbus.compile.engine import Engine
from meshbus.compile.layers import NO_RESOURCES, Layer, layer_of
from meshbus.compile.proxy import Ask
from meshbus.compile.resources import CDS, VHDS, Resource
from meshbus_xds_gateway.content import Content, content_of

if TYPE_CHECKING:
    from meshbus_xds_gateway.classes import ProxyClass
    from meshbus_xds_gateway.fleet import Client

ASKED_TYPES = frozenset({CDS, VHDS})


class _Questions:
    """Of one client."""

    __slots__ = ("hosts", "names", "tables")

    def __init__(self) -> None:
        self.names: dict[str, dict[str, None]] = {type_url: {} for type_url in ASKED_TYPES}
        self.hosts: Layer | None = None
        """Its virtual hosts; None: they are to be looked up."""
        self.tables: Tables | None = None
        """By which its virtual hosts were looked up."""


class Asked:
    """Questions of all clients."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._questions: dict[Client, _Questions] = {}
        self._askers: dict[Ask, set[Client]] = {}

    def ask(
        self, client: "Client", type_url: str, names: Iterable[str], no_longer: Iterable[str]
    ) -> None:
        """A client asks for these names, and no longer for others."""
        questions = self._questions.setdefault(client, _Questions())
        held = questions.names[type_url]
        if type_url == VHDS:
            questions.hosts = None
        for name in no_longer:
            if name in held:
                del held[name]
                if type_url == VHDS and questions.tables is not None:
                    self._let_go(client, Ask(asked_host, (questions.tables, name)))
        held.update(dict.fromkeys(names))

    def contents(self, client: "Client", proxies: "ProxyClass") -> dict[str, Content]:
        """What a client has of the types that it may ask for."""
        out = {}
        questions = self._questions.get(client)
        clusters = () if questions is None else questions.names[CDS]
        for cell in proxies.late:
            every = {name: cell.content.get(name) for name in clusters}
            asked = layer_of({n: r for n, r in sorted(every.items()) if r is not None})
            out[cell.type_url] = _joined(proxies, cell.type_url, asked)
        if proxies.plan.tables is not None:
            out[VHDS] = _joined(proxies, VHDS, self._hosts(client, proxies.plan.tables))
        return out

    def askers(self, ask: Ask) -> frozenset["Client"]:
        """Clients that have asked for what a node gives, which is something else now."""
        found = frozenset(self._askers.get(ask, ()))
        for client in found:
            self._questions[client].hosts = None
        return found

    def leave(self, client: "Client") -> None:
        """Forget its questions."""
        questions = self._questions.pop(client, None)
        if questions is not None:
            self._forget_hosts(client, questions)

    def _hosts(self, client: "Client", tables: Tables) -> Layer:
        questions = self._questions.get(client)
        if questions is None:
            return NO_RESOURCES
        if questions.tables is not tables and questions.tables != tables:
            self._forget_hosts(client, questions)
            questions.tables = tables
        if questions.hosts is not None:
            return questions.hosts
        found: dict[str, Resource] = {}
        for name in sorted(questions.names[VHDS]):
            ask = Ask(asked_host, (tables, name))
            self._askers.setdefault(ask, set()).add(client)
            resource = self._engine.get(asked_host, tables, name)
            if resource is not None:
                found[name] = resource
        questions.hosts = layer_of(found)
        return questions.hosts

    def _forget_hosts(self, client: "Client", questions: _Questions) -> None:
        questions.hosts = None
        if questions.tables is not None:
            for name in questions.names[VHDS]:
                self._let_go(client, Ask(asked_host, (questions.tables, name)))
        questions.tables = None

    def _let_go(self, client: "Client", ask: Ask) -> None:
        askers = self._askers.get(ask)
        if askers is None:
            return
        askers.discard(client)
        if not askers:
            del self._askers[ask]
            self._engine.release(asked_host, *ask.args)


def _joined(proxies: "ProxyClass", type_url: str, asked: Layer) -> Content:
    (cell,) = (cell for cell in proxies.cells if cell.type_url == type_url)
    return content_of((*cell.content.layers, asked))
