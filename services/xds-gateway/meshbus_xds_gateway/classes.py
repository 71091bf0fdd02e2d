"""Classes of proxies: those of one plan hold the same parts and get the same changes.

Only here the engine is asked. What changed is found by the part: part -> classes -> members.
"""

from collections import Counter as Count
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from meshbus.compile.engine import Engine
from meshbus.compile.gateways import SecretNeed
from meshbus.compile.proxy import MESH_SECRETS, Ask, Plan, Snapshot, plan_proxy, snapshot_of
from meshbus.compile.proxy_keys import ProxyKeys
from meshbus.model.world import Query, World
from meshbus_xds_gateway.content import Content, content_of

if TYPE_CHECKING:
    from meshbus_xds_gateway.fleet import Client


class ProxyClass:
    """Proxies of one plan."""

    __slots__ = ("contents", "members", "plan", "secrets")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.members: set[Client] = set()
        self.contents: dict[str, Content] = {}
        """What there is for them, by type URL."""
        self.secrets: tuple[SecretNeed, ...] = MESH_SECRETS


class Classes:
    """All classes that have members. `failed` is told of what cannot be compiled."""

    def __init__(self, failed: Callable[[str], None]) -> None:
        self.engine = Engine(World())
        self._failed = failed
        self._by_plan: dict[Plan, ProxyClass] = {}
        self._by_ask: dict[Ask, set[ProxyClass]] = {}
        self._by_keys: dict[ProxyKeys, set[Client]] = {}
        self._of: dict[Client, ProxyClass] = {}

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
        self._by_keys.setdefault(client.keys, set()).add(client)
        found = self._enter(client, plan)
        if found is None:
            self._drop_keys(client, client.keys)
        return found

    def leave(self, client: "Client") -> None:
        """It is gone."""
        self._exit(client)
        self._drop_keys(client, client.keys)

    def move(self, client: "Client", keys: ProxyKeys) -> ProxyClass | None:
        """A client is described by other keys now; None: it stays what it was."""
        plan = self._plan(keys)
        if plan is None:
            return None
        self._drop_keys(client, client.keys)
        client.keys = keys
        self._by_keys.setdefault(keys, set()).add(client)
        return self._enter(client, plan)

    def class_of(self, client: "Client") -> ProxyClass | None:
        """The class of a client that is in one."""
        return self._of.get(client)

    def snapshot(self, client: "Client") -> Snapshot | None:
        """Everything that a client should have, put together."""
        found = self._of.get(client)
        return None if found is None else snapshot_of(found.plan, self._value)

    # ------------------------------------------------------------------ what changed

    def changed(self) -> tuple[set[ProxyClass], set["Client"]]:
        """Classes of which something is another one since the last call, and clients whose class
        is. Call when the engine is up to date."""
        classes: set[ProxyClass] = set()
        clients: set[Client] = set()
        for node, args in self.engine.take_changed():
            if node is plan_proxy:
                for client in tuple(self._by_keys.get(args[0], ())):  # type: ignore[call-overload]
                    plan = self._plan(client.keys)
                    if plan is not None and plan != self._of[client].plan:
                        self._enter(client, plan)
                        clients.add(client)
            else:
                classes |= self._by_ask.get(Ask(node, args), set())
        for changed in classes:
            self._refresh(changed)
        return classes, clients

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
        fresh = entered is None
        if entered is None:
            entered = ProxyClass(plan)
        if not self._refresh(entered) and fresh:
            self._release(plan.asks())
            return None
        if fresh:
            self._by_plan[plan] = entered
            for ask in plan.asks():
                self._by_ask.setdefault(ask, set()).add(entered)
        if self._of.get(client) is not entered:
            self._exit(client)
            entered.members.add(client)
            self._of[client] = entered
        return entered

    def _exit(self, client: "Client") -> None:
        left = self._of.pop(client, None)
        if left is None:
            return
        left.members.discard(client)
        if left.members:
            return
        del self._by_plan[left.plan]
        for ask in left.plan.asks():
            holders = self._by_ask[ask]
            holders.discard(left)
            if not holders:
                del self._by_ask[ask]
        self._release(left.plan.asks())

    def _release(self, asks: Iterable[Ask]) -> None:
        for ask in asks:
            if ask not in self._by_ask:
                self.engine.release(ask.node, *ask.args)

    def _refresh(self, proxies: ProxyClass) -> bool:
        """Give a class the present contents. False: it keeps what it has."""
        plan = proxies.plan
        try:
            contents = {
                type_url: content_of(tuple(self._value(ask).resources for ask in asks))
                for type_url, asks in plan.layers
            }
            needed = () if plan.secrets is None else self._value(plan.secrets)
        except Exception:  # noqa: BLE001 - told by `failed`
            self._failed(f"{plan.layers[0][1][0].args!r:.200}")
            return False
        proxies.contents = contents
        proxies.secrets = (*MESH_SECRETS, *needed)
        return True

    def _drop_keys(self, client: "Client", keys: ProxyKeys) -> None:
        holders = self._by_keys.get(keys)
        if holders is None:
            return
        holders.discard(client)
        if not holders:
            del self._by_keys[keys]
            self.engine.release(plan_proxy, keys)


def sizes(classes: Classes) -> Count[str]:
    """How much is held: classes, parts, nodes."""
    return Count(
        classes=len(classes._by_plan), parts=len(classes._by_ask), nodes=classes.engine.size()
    )
