"""Classes of proxies: those of one plan hold the same parts and get the same changes.

Only here the engine is asked. What changed is found by the part: part -> classes -> members.
"""

import gc
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from meshbus.api.kinds import all_kinds
from meshbus.compile.credentials import SecretNeed
from meshbus.compile.engine import Engine
from meshbus.compile.envoy_filter import patched_part
from meshbus.compile.few import Few, each, with_item, without
from meshbus.compile.findings import Finding
from meshbus.compile.proxy import MESH_SECRETS, Ask, Plan, Snapshot, plan_proxy, snapshot_of
from meshbus.compile.proxy_keys import ProxyKeys
from meshbus.model.keys import Key
from meshbus.model.world import Query, World
from meshbus_xds_gateway.asked import Asked
from meshbus_xds_gateway.content import NOTHING, Content, content_of

if TYPE_CHECKING:
    from meshbus_xds_gateway.fleet import Client


def collect_rarely() -> None:
    """Let Python look for cycles of garbage less often.

    Compiled state is millions of objects that stay, with few cycles; at the default thresholds
    half of the time of a cold compile of 5,000 services went into walking over them.
    """
    gc.set_threshold(200_000, 20, 100)


NOT_COMPILED = frozenset(
    {
        *(f"cfg.{k}" for k in ("endpointslices", "nodes", "pods", "serviceaccounts", "services")),
        *(f"st.{info.table}" for info in all_kinds()),
        "src.instances",
    }
)
"""Tables that a gateway does not keep: what discovery has derived services and workloads from, and
what is said of objects. They are most of a large mesh."""


class Cell:
    """One type of the plans that put it together from the same parts."""

    __slots__ = ("asks", "content", "findings", "holders", "type_url")

    def __init__(self, type_url: str, asks: tuple[Ask, ...], content: Content) -> None:
        self.type_url = type_url
        self.asks = asks
        self.content = content
        self.findings: tuple[Finding, ...] = ()
        """What of the objects behind it has no effect."""
        self.holders: Few[ProxyClass] = ()


class ProxyClass:
    """Proxies of one plan."""

    __slots__ = ("_members", "cells", "late", "plan", "secrets")

    def __init__(self, plan: Plan, cells: tuple[Cell, ...], late: tuple[Cell, ...]) -> None:
        self.plan = plan
        self.cells = cells
        self.late = late
        """Of which is sent what a member asks for by name."""
        self._members: Few[Client] = ()
        self.secrets: tuple[SecretNeed, ...] = MESH_SECRETS

    @property
    def members(self) -> Collection["Client"]:
        """Who is in it."""
        return each(self._members)

    def enter(self, client: "Client") -> None:
        """One more member."""
        self._members = with_item(self._members, client)

    def leave(self, client: "Client") -> None:
        """One less."""
        self._members = without(self._members, client)

    def follows(self, filter_key: Key) -> bool:
        """Patches of an EnvoyFilter are part of the plan."""
        return any(
            any(key == filter_key for key, _ in ask.args[3])
            for _, asks in self.plan.layers
            for ask in asks
            if ask.node is patched_part
        )

    @property
    def contents(self) -> dict[str, Content]:
        """What there is for them, by type URL."""
        return {cell.type_url: cell.content for cell in self.cells}


class Classes:
    """All classes that have members. `failed` is told of what cannot be compiled."""

    def __init__(self, failed: Callable[[str], None]) -> None:
        self.engine = Engine(World(), NOT_COMPILED)
        self._failed = failed
        self._by_plan: dict[Plan, ProxyClass] = {}
        self._cells: dict[tuple[str, tuple[Ask, ...]], Cell] = {}
        self._by_ask: dict[Ask, Few[Cell]] = {}
        self._by_secrets: dict[Ask, Few[ProxyClass]] = {}
        self._by_keys: dict[ProxyKeys, Few[Client]] = {}
        self.asked = Asked(self.engine, failed)
        self._of: dict[Client, ProxyClass] = {}
        self.version = 0
        """Grows when members or findings change."""

    def update(self, world: World, touched: Iterable[Query]) -> None:
        """Move to the next world."""
        self.engine.update(world, touched)

    # ------------------------------------------------------------------ members

    def join(self, client: "Client") -> ProxyClass | None:
        """Put a client into the class of its keys; None: it cannot be compiled.

        Its class has its contents as of now; those who were in it before are to be given them when
        `changed` says so.
        """
        plan = self._plan(client.keys)
        if plan is None:
            return None
        _add(self._by_keys, client.keys, client)
        found = self._enter(client, plan)
        if found is None:
            self._drop_keys(client, client.keys)
        return found

    def leave(self, client: "Client") -> None:
        """It is gone."""
        self.asked.leave(client)
        self._exit(client)
        self._drop_keys(client, client.keys)

    def move(self, client: "Client", keys: ProxyKeys) -> ProxyClass | None:
        """A client is described by other keys now; None: it stays what it was."""
        plan = self._plan(keys)
        if plan is None:
            return None
        self._drop_keys(client, client.keys)
        client.keys = keys
        _add(self._by_keys, keys, client)
        return self._enter(client, plan)

    def class_of(self, client: "Client") -> ProxyClass | None:
        """The class of a client that is in one."""
        return self._of.get(client)

    def snapshot(self, client: "Client") -> Snapshot | None:
        """Everything that a client should have, put together."""
        found = self._of.get(client)
        if found is None:
            return None
        made = snapshot_of(found.plan, self._value)
        asked = self.contents_for(client, found, {})
        resources = {
            type_url: {name: r for layer in content.layers for name, r in layer.items()}
            for type_url, content in asked.items()
        }
        return replace(made, resources={**made.resources, **resources})

    def contents_for(
        self, client: "Client", proxies: ProxyClass, contents: dict[str, Content]
    ) -> dict[str, Content]:
        """What one member has, of what its class has: with that what it has asked for."""
        if not proxies.late and proxies.plan.tables is None:
            return contents
        return {**contents, **self.asked.contents(client, proxies)}

    # ------------------------------------------------------------------ what changed

    def changed(
        self,
    ) -> tuple[dict[ProxyClass, dict[str, Content]], set["Client"], set[ProxyClass]]:
        """Classes with what is another content since the last call, clients whose class is another
        one, and classes that need other secrets. Call when the engine is up to date."""
        classes: dict[ProxyClass, dict[str, Content]] = {}
        clients: set[Client] = set()
        needy: set[ProxyClass] = set()
        cells: dict[Cell, None] = {}
        for node, args in self.engine.take_changed():
            if node is plan_proxy:
                clients |= self._planned_anew(args[0])  # type: ignore[arg-type]
                continue
            ask = Ask(node, args)
            clients |= self.asked.askers(ask)
            cells.update(dict.fromkeys(each(self._by_ask.get(ask, ()))))
            for holder in each(self._by_secrets.get(ask, ())):
                holder.secrets = self._secrets(holder.plan)
                needy.add(holder)
        for cell in cells:
            self._refresh(cell)
            for holder in each(cell.holders):
                contents = classes.setdefault(holder, {})
                if cell not in holder.late:
                    contents[cell.type_url] = cell.content
        return classes, clients, needy

    def _planned_anew(self, keys: ProxyKeys) -> set["Client"]:
        plan = self._plan(keys)
        moved: set[Client] = set()
        for client in tuple(each(self._by_keys.get(keys, ()))):
            if plan is not None and plan != self._of[client].plan and self._enter(client, plan):
                moved.add(client)
        return moved

    def findings(self) -> Iterator[tuple[ProxyClass, Finding]]:
        """What has no effect, by class."""
        for held in self._by_plan.values():
            every = (finding for cell in held.cells for finding in cell.findings)
            for finding in dict.fromkeys(every):
                yield held, finding

    def followers(self, filter_key: Key) -> int:
        """Proxies that follow the patches of an EnvoyFilter."""
        return sum(len(held.members) for held in self._by_plan.values() if held.follows(filter_key))

    def given(self, client: "Client", type_url: str) -> Content:
        """What the class of a client has of a type; nothing when it is in none."""
        held = self._of.get(client)
        cells = () if held is None else held.cells
        return next((cell.content for cell in cells if cell.type_url == type_url), NOTHING)

    @property
    def clients(self) -> Collection["Client"]:
        """Who is in a class."""
        return self._of.keys()

    # ------------------------------------------------------------------ inside

    def _plan(self, keys: ProxyKeys) -> Plan | None:
        try:
            return self.engine.get(plan_proxy, keys)
        except Exception:  # noqa: BLE001 - told by `failed`
            # One proxy that cannot be compiled must not stop the others: it keeps what it has.
            self._failed(keys.name)
            if keys not in self._by_keys:
                self.engine.release(plan_proxy, keys)
            return None

    def _value(self, ask: Ask) -> Any:
        return self.engine.get(ask.node, *ask.args)

    def _enter(self, client: "Client", plan: Plan) -> ProxyClass | None:
        entered = self._by_plan.get(plan)
        if entered is None:
            entered = self._made(plan)
            if entered is None:
                return None
        else:
            # Others of the class are given the same as soon as `changed` is asked.
            for cell in (*entered.cells, *entered.late):
                self._refresh(cell)
        if self._of.get(client) is not entered:
            self._exit(client)
            entered.enter(client)
            self._of[client] = entered
            self.version += 1
        return entered

    def _made(self, plan: Plan) -> ProxyClass | None:
        """A new class; None: some part of it cannot be compiled."""
        try:
            cells = tuple(self._cell(type_url, asks) for type_url, asks in plan.layers)
            late = tuple(self._cell(type_url, (ask,)) for type_url, ask in plan.late)
            secrets = self._secrets(plan)
        except Exception:  # noqa: BLE001 - told by `failed`
            self._failed(f"{plan.layers[0][1][0].args!r:.200}")
            self._release(plan)
            return None
        made = self._by_plan[plan] = ProxyClass(plan, cells, late)
        made.secrets = secrets
        for cell in (*cells, *late):
            cell.holders = with_item(cell.holders, made)
            self._cells[cell.type_url, cell.asks] = cell
            for ask in cell.asks:
                _add(self._by_ask, ask, cell)
        if plan.secrets is not None:
            _add(self._by_secrets, plan.secrets, made)
        return made

    def _cell(self, type_url: str, asks: tuple[Ask, ...]) -> Cell:
        found = self._cells.get((type_url, asks))
        if found is not None:
            self._refresh(found)
            return found
        made = Cell(type_url, asks, self._content(asks))
        made.findings = self._findings(asks)
        return made

    def _content(self, asks: tuple[Ask, ...]) -> Content:
        return content_of(tuple(self._value(ask).resources for ask in asks))

    def _findings(self, asks: tuple[Ask, ...]) -> tuple[Finding, ...]:
        every = (self._value(ask).findings for ask in asks)
        return tuple(dict.fromkeys(finding for found in every for finding in found))

    def _refresh(self, cell: Cell) -> None:
        """The present content of a cell; where it cannot be compiled it keeps what it has."""
        try:
            cell.content = self._content(cell.asks)
            found = self._findings(cell.asks)
            if found != cell.findings:
                cell.findings = found
                self.version += 1
        except Exception:  # noqa: BLE001 - told by `failed`
            self._failed(f"{cell.type_url} {cell.asks[0].args!r:.200}")

    def _secrets(self, plan: Plan) -> tuple[SecretNeed, ...]:
        needed = () if plan.secrets is None else self._value(plan.secrets)
        return (*MESH_SECRETS, *needed)

    def _exit(self, client: "Client") -> None:
        left = self._of.pop(client, None)
        if left is None:
            return
        left.leave(client)
        self.version += 1
        if left.members:
            return
        del self._by_plan[left.plan]
        for cell in (*left.cells, *left.late):
            cell.holders = without(cell.holders, left)
            if not cell.holders:
                del self._cells[cell.type_url, cell.asks]
                for ask in cell.asks:
                    _discard(self._by_ask, ask, cell)
        if left.plan.secrets is not None:
            _discard(self._by_secrets, left.plan.secrets, left)
        self._release(left.plan)

    def _release(self, plan: Plan) -> None:
        """Let go of nodes that no class holds."""
        for ask in plan.asks():
            if ask not in self._by_ask and ask not in self._by_secrets:
                self.engine.release(ask.node, *ask.args)

    def _drop_keys(self, client: "Client", keys: ProxyKeys) -> None:
        if keys in self._by_keys and _discard(self._by_keys, keys, client):
            self.engine.release(plan_proxy, keys)


def _add(index: dict[Any, Few[Any]], key: Any, holder: Any) -> None:
    index[key] = with_item(index.get(key, ()), holder)


def _discard(index: dict[Any, Few[Any]], key: Any, holder: Any) -> bool:
    """True: nobody is left."""
    holders = index[key] = without(index[key], holder)
    if not holders:
        del index[key]
    return not holders
