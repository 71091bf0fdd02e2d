"""An incremental engine: derived values that re-run only when something they read has changed.

A *node* is a pure function `fn(reader, *args)` together with its arguments. It asks for what it
needs through the reader it is given and for nothing else:

- `reader.entries(query)`, `reader.get(key)`: rows of the world; `reader.keys(query)`: which;
- `reader.node(fn, *args)`: the value of another node;
- `reader.before()`: its own value of before, to take over parts that would come out the same.

The engine writes down every question while the function runs, so nobody declares a dependency and
none can be forgotten. After `update(world, touched)` the nodes that read a touched query are out of
date; the next `get` brings them up to date from the bottom up, in order of height. A node whose new
value equals the old one keeps the old object, and the nodes above it do not run (*cutoff*): the
work follows the change, not the size of the world.

    engine = Engine(world)
    snapshot = engine.get(compile_proxy, keys)
    world, touched = world.apply(puts)
    engine.update(world, touched)
    snapshot = engine.get(compile_proxy, keys)     # only what changed ran again
    engine.release(compile_proxy, keys)            # and what only it needed is dropped

Rules for node functions:

- pure and deterministic: no IO, no clock, no state of their own; only what was read counts;
- arguments are hashable, values are compared with `==` and never mutated after they are returned;
- the function is the identity of the node: use module functions, not lambdas made on the fly;
- a node may run once more with arguments that no longer make sense (its service is gone, the node
  that asked for it has not run yet); what it raises then is kept and raised only to who asks.

An exception of a node is its value: it is raised to each reader, and the node runs again when what
it read changes. A node that needs itself raises `CycleError`.

Source of the design: early cutoff and recorded reads as in Adapton, salsa and Jane Street's
Incremental.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Container, Hashable, Iterable
from sys import intern
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from meshbus.compile.few import Few, each, settled, with_item, without
from meshbus.model.keys import Key
from meshbus.model.world import Entry, Query, World, membership

P = ParamSpec("P")
R = TypeVar("R")


class CycleError(Exception):
    """A node needs its own value."""


class Reader(Protocol):
    """What a node function may ask; every question is recorded."""

    def entries(self, query: Query) -> tuple[Entry, ...]:
        """Rows of the world, ordered by key."""

    def keys(self, query: Query) -> tuple[Key, ...]:
        """Keys of `entries`, for who does not care what is in them."""

    def get(self, key: Key) -> Any:
        """One row, or None."""

    def node(
        self, fn: Callable[Concatenate["Reader", P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """The value of another node. Arguments are positional only."""

    def before(self) -> Any:
        """The value that this node had when it ran last; None: it has none. A node may take over
        parts of it that would come out the same: its value must not depend on it."""

    def encoded(self, kind: str) -> None:
        """Count one encoding of a resource of this kind."""


class Counters:
    """What the engine did since it was made, by kind (name of the function, or of the encoding)."""

    __slots__ = ("cutoffs", "encodes", "recomputed")

    def __init__(self) -> None:
        self.recomputed: Counter[str] = Counter()
        """Runs of node functions."""
        self.cutoffs: Counter[str] = Counter()
        """Runs whose value equalled the one before."""
        self.encodes: Counter[str] = Counter()
        """Resources encoded to bytes."""

    def copy(self) -> "Counters":
        """The counts as of now."""
        out = Counters()
        out.recomputed = self.recomputed.copy()
        out.cutoffs = self.cutoffs.copy()
        out.encodes = self.encodes.copy()
        return out

    def since(self, before: "Counters") -> "Counters":
        """What was added after `before` was copied."""
        out = Counters()
        out.recomputed = self.recomputed - before.recomputed
        out.cutoffs = self.cutoffs - before.cutoffs
        out.encodes = self.encodes - before.encodes
        return out


class _Raised:
    """The value of a node whose function raised."""

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error


_UNSET: Any = object()
_ASKED_EVERY = 8
"""Nodes between two looks at the clock; few take a millisecond."""
_FEW_PARENTS = 16


class _Node:
    """One function with its arguments; also the reader that its function gets."""

    __slots__ = (
        "args",
        "deps",
        "engine",
        "fn",
        "height",
        "mark",
        "parents",
        "pinned",
        "queries",
        "running",
        "serial",
        "stale",
        "value",
    )

    def __init__(
        self, engine: "Engine", fn: Callable[..., Any], args: tuple[Hashable, ...]
    ) -> None:
        self.engine = engine
        self.fn = fn
        self.args = args
        self.value: Any = _UNSET
        self.queries: Few[Query] = ()
        self.deps: Few[_Node] | list[_Node] = ()
        """In the order in which they were asked; a list while the function runs."""
        self.parents: Few[_Node] = ()
        self.height = 0
        self.mark = 0
        """While a node above runs: the number of its run when this one has been asked in it, one
        less when it was in the run before. A run in between may take it away: see `link`."""
        self.serial = engine.next_serial()
        self.stale = True
        self.running = 0
        """The number of the run that is under way."""
        self.pinned = False

    def entries(self, query: Query) -> tuple[Entry, ...]:
        self._asks(query)
        return self.engine.world.entries(query)

    def keys(self, query: Query) -> tuple[Key, ...]:
        self._asks(membership(query))
        return self.engine.world.keys(query)

    def _asks(self, query: Query) -> None:
        if query not in each(self.queries):
            if query.table in self.engine.without:
                raise LookupError(f"rows of {query.table} are not kept in this process")
            self.queries = with_item(self.queries, query)
            self.engine.watch(query, self)

    def get(self, key: Key) -> Any:
        # One text for a table's name, not one for each of tens of thousands of queries.
        self._asks(Query(intern(key.table), "key", key))
        return self.engine.world.get(key)

    def node(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        assert not kwargs, "arguments of a node are positional"
        child = self.engine.node_of(fn, args)
        if child.running:
            raise CycleError(f"{fn.__name__}{args!r} needs itself")
        if child.stale and self.engine.run(child):
            self.engine.mark_parents(child)
        mark, run = child.mark, self.running
        if mark != run:
            child.mark = run
            self.deps.append(child)  # type: ignore[union-attr]
            if mark != run - 1:
                self.engine.link(self, child)
        value = child.value
        if type(value) is _Raised:
            raise value.error
        return value

    def before(self) -> Any:
        value = self.value
        return None if value is _UNSET or type(value) is _Raised else value

    def encoded(self, kind: str) -> None:
        self.engine.counters.encodes[kind] += 1


class Engine:
    """Derived values over one world at a time. Not thread-safe; one per process that compiles."""

    def __init__(self, world: World, without: Container[str] = ()) -> None:
        """`without`: tables that the world does not hold here. To ask for one is a mistake of the
        node's that would otherwise look like an empty table."""
        self.world = world
        self.without = without
        self.counters = Counters()
        self._nodes: dict[Callable[..., Any], dict[tuple[Hashable, ...], _Node]] = {}
        self._readers: dict[Query, Few[_Node]] = {}
        self._pending: list[tuple[int, int, _Node]] = []
        self._unused: dict[_Node, None] = {}
        self._changed: dict[_Node, None] = {}
        self._serial = 0
        self._runs = 0

    # ------------------------------------------------------------------ for callers

    def update(self, world: World, touched: Iterable[Query]) -> None:
        """Move to the next world. `touched` are the queries whose answers differ, as
        `World.apply` gives them; updates may be merged before the next `get`."""
        self.world = world
        for query in touched:
            for node in each(self._readers.get(query, ())):
                self._mark(node)

    def get(self, fn: Callable[Concatenate[Reader, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The value of a node in the present world. The node stays alive until `release`.

        Raises:
            What the function raised.
            CycleError: A node below needs its own value.
        """
        assert not kwargs, "arguments of a node are positional"
        self._settle()
        node = self.node_of(fn, args)
        node.pinned = True
        self._unused.pop(node, None)
        if node.stale:
            self.run(node)
            self._settle()
        self._collect()
        value = node.value
        if type(value) is _Raised:
            raise value.error
        result: R = value
        return result

    def advance(self, enough: Callable[[], bool] = lambda: False) -> bool:
        """Bring nodes up to date until all are (True), or `enough` says so: it is asked between
        every few of them."""
        done = self._settle(enough)
        self._collect()
        return done

    def take_changed(self) -> list[tuple[Callable[..., Any], tuple[Hashable, ...]]]:
        """Nodes (function, arguments) that `get` keeps alive and whose values are others since the
        last call. Complete once `advance` has said True."""
        changed, self._changed = self._changed, {}
        return [(node.fn, node.args) for node in changed if node.pinned]

    def release(
        self, fn: Callable[Concatenate[Reader, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Give up a node that `get` kept alive; what nobody else needs is dropped."""
        node = self._nodes.get(fn, {}).get(args)
        if node is None:
            return
        node.pinned = False
        if not node.parents:
            self._unused[node] = None
        self._collect()

    def askers(
        self, queries: Iterable[Query]
    ) -> list[tuple[Callable[..., Any], tuple[Hashable, ...]]]:
        """Nodes (function, arguments) that have asked one of these, oldest first: those that would
        run again if the answers changed."""
        found = {node for query in queries for node in each(self._readers.get(query, ()))}
        return [(node.fn, node.args) for node in sorted(found, key=lambda node: node.serial)]

    @property
    def stale(self) -> bool:
        """Something that was read has changed since the last `get`: values may differ."""
        return bool(self._pending)

    def size(self) -> int:
        """How many nodes are alive."""
        return sum(map(len, self._nodes.values()))

    # ------------------------------------------------------------------ for nodes

    def next_serial(self) -> int:
        """A number for a new node: breaks ties of height, so that runs have one order."""
        self._serial += 1
        return self._serial

    def watch(self, query: Query, node: _Node) -> None:
        """`node` has asked `query`."""
        held = self._readers.get(query, ())
        readers = with_item(held, node)
        if readers is not held:
            self._readers[query] = readers

    def link(self, node: _Node, child: _Node) -> None:
        """`node` has asked `child`, which it may have before."""
        child.parents = with_item(child.parents, node, _FEW_PARENTS)
        if child.height >= node.height:
            self.raise_height(node, child.height + 1)

    def node_of(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> _Node:
        """The node of a function and its arguments, made when there is none."""
        nodes = self._nodes.get(fn)
        if nodes is None:
            nodes = self._nodes[fn] = {}
        node = nodes.get(args)
        if node is None:
            node = nodes[args] = _Node(self, fn, args)
        return node

    def run(self, node: _Node) -> bool:
        """Run a node's function and record what it reads. True when the value is another one."""
        kind = node.fn.__name__
        old_deps, old_queries, old_value = each(node.deps), each(node.queries), node.value
        # Most runs ask what the run before has asked: a mark tells that without a look at a set.
        self._runs += 2
        run = self._runs
        for dep in old_deps:
            dep.mark = run - 1
        asked: list[_Node] = []
        node.deps, node.queries = asked, ()
        node.stale, node.running = False, run
        self.counters.recomputed[kind] += 1
        try:
            value = node.fn(node, *node.args)
        except CycleError as error:
            value = _Raised(error)
            node.stale = True  # the read that closed the cycle is not recorded: run when asked
        except Exception as error:  # noqa: BLE001 - kept as the node's value, raised to its readers
            value = _Raised(error)
        finally:
            node.running = 0
        deps = tuple(asked)
        if deps == old_deps:
            node.deps = settled(old_deps)
        else:
            node.deps = settled(tuple(dict.fromkeys(asked)))
            kept = set(asked)
            for dep in old_deps:
                if dep not in kept:
                    self._leave(dep, node)
        for query in old_queries:
            if query not in each(node.queries):
                self._unwatch(query, node)
        node.queries = settled(node.queries)
        if old_value is not _UNSET and type(value) is type(old_value) and value == old_value:
            self.counters.cutoffs[kind] += 1
            return False
        node.value = value
        if node.pinned and old_value is not _UNSET:
            self._changed[node] = None
        return True

    def mark_parents(self, node: _Node) -> None:
        """What has read `node` is out of date; one that runs right now reads the new value."""
        for parent in each(node.parents):
            if not parent.running:
                self._mark(parent)

    def raise_height(self, node: _Node, height: int) -> None:
        """Keep every node above what it reads."""
        work = [(node, height)]
        while work:
            current, at_least = work.pop()
            if current.height >= at_least:
                continue
            current.height = at_least
            work.extend((parent, at_least + 1) for parent in each(current.parents))

    # ------------------------------------------------------------------ inside

    def _mark(self, node: _Node) -> None:
        if not node.stale:
            node.stale = True
            heapq.heappush(self._pending, (node.height, node.serial, node))

    def _settle(self, enough: Callable[[], bool] = lambda: False) -> bool:
        """Run what is out of date, lowest first, and what reads a value that changed."""
        left = _ASKED_EVERY
        while self._pending:
            left -= 1
            if not left:
                left = _ASKED_EVERY
                if enough():
                    return False
            height, _, node = heapq.heappop(self._pending)
            if not node.stale or node.running:
                continue
            if node.height > height:
                heapq.heappush(self._pending, (node.height, node.serial, node))
                continue
            if not node.parents and not node.pinned:
                self._unused[node] = None
                continue
            if self.run(node):
                self.mark_parents(node)
        return True

    def _collect(self) -> None:
        """Drop nodes that nobody reads and nobody holds."""
        while self._unused:
            node, _ = self._unused.popitem()
            if node.parents or node.pinned:
                continue
            nodes = self._nodes[node.fn]
            if nodes.get(node.args) is not node:
                continue
            del nodes[node.args]
            node.stale = False
            for query in each(node.queries):
                self._unwatch(query, node)
            for dep in each(node.deps):
                self._leave(dep, node)

    def _leave(self, node: _Node, parent: _Node) -> None:
        """`parent` no longer reads `node`."""
        node.parents = without(node.parents, parent)
        if not node.parents and not node.pinned:
            self._unused[node] = None

    def _unwatch(self, query: Query, node: _Node) -> None:
        readers = without(self._readers.get(query, ()), node)
        if readers:
            self._readers[query] = readers
        else:
            self._readers.pop(query, None)


def the_one(reader: Reader, value: Any) -> Any:
    """Node: of equal values the one that was there first. `reader.node(the_one, value)` where many
    nodes find the same, so that it is kept once."""
    return value
