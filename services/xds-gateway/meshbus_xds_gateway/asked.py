"""What clients have asked for by name: virtual hosts and clusters that are sent to nobody else.

A virtual host that somebody asks for is a node of its own, kept as long as one client has asked for
it; clusters that are asked for are those of the class by these names. Clients that have asked for
the same hold the same content.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from meshbus.compile.asked_hosts import Tables, asked_host
from meshbus.compile.engine import Engine
from meshbus.compile.layers import NO_RESOURCES, Layer, layer_of
from meshbus.compile.proxy import Ask
from meshbus.compile.resources import CDS, SHORT_NAMES, VHDS, Resource
from meshbus_xds_gateway.content import Content, content_of
from meshbus_xds_gateway.session_state import ProtocolError

if TYPE_CHECKING:
    from meshbus_xds_gateway.classes import ProxyClass
    from meshbus_xds_gateway.fleet import Client

ASKED_TYPES = frozenset({CDS, VHDS})
MAX_ASKED = 10_000
"""Names of a type that one stream may ask for: an Envoy keeps each for good, and so do we."""
MAX_ASKED_BYTES = 4 << 20
"""Of these names: they are what callers have written."""


class _Questions:
    """Of one client."""

    __slots__ = ("found", "hosts", "names", "sizes", "stale", "tables")

    def __init__(self) -> None:
        self.names: dict[str, dict[str, None]] = {type_url: {} for type_url in ASKED_TYPES}
        self.sizes = dict.fromkeys(ASKED_TYPES, 0)
        """Of these names together, in characters."""
        self.tables: Tables | None = None
        """By which its virtual hosts were looked up."""
        self.found: dict[str, Resource] = {}
        """Those virtual hosts, in order of name."""
        self.stale: set[str] = set()
        """Names that are to be looked up (again)."""
        self.hosts: Layer | None = NO_RESOURCES
        """What was found; None: it is to be put together again."""


class Asked:
    """Questions of all clients."""

    def __init__(self, engine: Engine, failed: Callable[[str], None]) -> None:
        """`failed` is told of what cannot be compiled."""
        self._engine = engine
        self._failed = failed
        self._questions: dict[Client, _Questions] = {}
        self._askers: dict[Ask, set[Client]] = {}

    def ask(
        self, client: "Client", type_url: str, names: Iterable[str], no_longer: Iterable[str]
    ) -> None:
        """A client asks for these names, and no longer for others.

        Raises:
            ProtocolError: It asks for too many.
        """
        questions = self._questions.setdefault(client, _Questions())
        held = questions.names[type_url]
        for name in no_longer:
            if name in held:
                del held[name]
                questions.sizes[type_url] -= len(name)
                if type_url == VHDS:
                    self._let_go(client, questions, name)
        new = [name for name in names if name not in held]
        if len(held) + len(new) > MAX_ASKED:
            raise ProtocolError(f"more than {MAX_ASKED} names of {SHORT_NAMES[type_url]} asked for")
        size = questions.sizes[type_url] + sum(map(len, new))
        if size > MAX_ASKED_BYTES:
            raise ProtocolError(f"the names of {SHORT_NAMES[type_url]} asked for are too long")
        questions.sizes[type_url] = size
        held.update(dict.fromkeys(new))
        if type_url == VHDS:
            questions.stale.update(new)

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
            self._questions[client].stale.add(ask.args[1])
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
            questions.stale.update(questions.names[VHDS])
        for name in questions.stale:
            self._look_up(client, questions, tables, name)
        questions.stale.clear()
        if questions.hosts is None:
            questions.found = dict(sorted(questions.found.items()))
            questions.hosts = layer_of(dict(questions.found))
        return questions.hosts

    def _look_up(self, client: "Client", questions: _Questions, tables: Tables, name: str) -> None:
        self._askers.setdefault(Ask(asked_host, (tables, name)), set()).add(client)
        try:
            resource = self._engine.get(asked_host, tables, name)
        except Exception:  # noqa: BLE001 - told by `failed`: it keeps what it has
            self._failed(f"virtual host {name:.200}")
            return
        questions.hosts = None
        if resource is not None:
            questions.found[name] = resource
        else:
            questions.found.pop(name, None)

    def _forget_hosts(self, client: "Client", questions: _Questions) -> None:
        for name in questions.names[VHDS]:
            self._let_go(client, questions, name)
        questions.tables = None

    def _let_go(self, client: "Client", questions: _Questions, name: str) -> None:
        questions.stale.discard(name)
        if questions.found.pop(name, None) is not None:
            questions.hosts = None
        ask = Ask(asked_host, (questions.tables, name))
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
