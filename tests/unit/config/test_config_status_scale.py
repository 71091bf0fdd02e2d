"""Statuses of a mesh without Kubernetes: looks follow what has changed."""

import asyncio
from types import SimpleNamespace
from typing import Any

from meshbus_config.documents import Space, status_key
from meshbus_config.object_status import StatusWriter
from meshbus_config.references import References
from meshbus_config.status_board import StatusBoard

from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject, Row, WorkloadInstance
from meshbus.model.world import Put, World

N = 700


def key_of(plural: str, name: str) -> Key:
    return Key("c", "cfg", plural, "default", name)


def naming(name: str, host: str) -> ConfigObject:
    spec = {"hosts": [name], "http": [{"route": [{"destination": {"host": host}}]}]}
    api = "networking.istio.io/v1"
    return ConfigObject(api, "VirtualService", "default", name, name, 1, 0.0, spec=spec)


class Store:
    """Rows that are there as soon as they are written."""

    def __init__(self) -> None:
        self.world = World()
        self.references = References()
        self.writer = StatusWriter(
            self,  # type: ignore[arg-type]
            StatusBoard("c"),
            self.references,
            "c",
            lambda: 0.0,
        )
        self.leading, self.fenced_at = True, 1
        self.changes: list[int] = []

    @property
    def space(self) -> Space:
        return Space(self.world, "c", SimpleNamespace())  # type: ignore[arg-type]

    def put(self, *rows: tuple[Key, Row | None]) -> None:
        sequence = self.world.sequence + 1
        self.world, touched = self.world.apply(Put(key, sequence, 0.0, row) for key, row in rows)
        self.references.changed(self.world, touched)
        self.writer.changed(self.world, touched)

    async def write(self, plan: Any, *, announce: bool) -> None:
        writes = [write for one in plan(self.space) for write in one.writes]
        self.changes.append(len(writes))
        await asyncio.sleep(0)
        self.put(*writes)

    async def settle(self) -> int:
        """Looks until nothing more is written."""
        before = self.writer.looks
        while True:
            count = len(self.changes)
            await self.writer.write()
            if len(self.changes) == count:
                return self.writer.looks - before

    def said(self, name: str, plural: str = "virtualservices") -> str | None:
        row: Any = self.world.get(status_key(key_of(plural, name)))
        return None if row is None else str(row.status["conditions"][0]["status"])


async def test_one_change_looks_at_one_object() -> None:
    store = Store()
    store.put(*((key_of("virtualservices", f"v{n}"), naming(f"v{n}", "gone")) for n in range(N)))
    assert await store.settle() >= N
    # What does not fit one change is said in the next.
    assert store.changes == [500, N - 500]
    assert await store.settle() == 0

    store.put((key_of("virtualservices", "v3"), naming("v3", "missing")))
    assert await store.settle() <= 3
    assert store.changes[2:] == [1]

    there = ConfigObject(
        "networking.istio.io/v1", "ServiceEntry", "default", "m", "m", 1, 0.0,
        spec={"hosts": ["missing.default.svc.cluster.local"]},
    )  # fmt: skip
    store.put((key_of("serviceentries", "m"), there))
    assert await store.settle() <= 5
    assert (store.said("v3"), store.said("v4")) == ("True", "False")


async def test_what_changes_while_statuses_are_written_is_looked_at_again() -> None:
    store = Store()
    store.put((key_of("virtualservices", "v"), naming("v", "gone")))
    writing = asyncio.create_task(store.writer.write())
    await asyncio.sleep(0)
    store.put((key_of("virtualservices", "w"), naming("w", "gone")))
    await writing
    await store.settle()
    assert (store.said("v"), store.said("w")) == ("False", "False")


async def test_who_begins_to_lead_looks_at_what_was_said() -> None:
    store = Store()
    store.put(*((key_of("virtualservices", f"v{n}"), naming(f"v{n}", "gone")) for n in range(9)))
    await store.settle()
    store.fenced_at = 2
    assert await store.settle() == 9


def gateway_of(name: str, label: str) -> tuple[Key, ConfigObject]:
    spec = {"selector": {"istio": label}}
    api = "networking.istio.io/v1"
    row = ConfigObject(api, "Gateway", "default", name, name, 1, 0.0, spec=spec)
    return key_of("gateways", name), row


def envoy(name: str, label: str, *, ready: bool = True) -> tuple[Key, WorkloadInstance]:
    row = WorkloadInstance(
        name, "default", name, name, {"istio": label}, ["10.0.0.1"], gateway=True, ready=ready
    )
    return Key("c", "reg", "workloads", "default", name), row


async def test_a_gateway_without_envoys_is_told_until_one_comes() -> None:
    store = Store()
    store.put(*(gateway_of(f"g{n}", "front") for n in range(N)), gateway_of("one", "back"))
    await store.settle()
    assert (store.said("g0", "gateways"), store.said("one", "gateways")) == ("False", "False")
    key, back = envoy("back-0", "back")
    store.put((key, back))
    assert await store.settle() <= 3
    assert (store.said("g0", "gateways"), store.said("one", "gateways")) == ("False", "True")

    store.put(envoy("front-0", "front"))
    await store.settle()
    assert store.said("g0", "gateways") == "True"
    # Another replica, and what becomes of one, is no news to those that have one.
    store.put(envoy("front-1", "front"), envoy("front-0", "front", ready=False))
    assert await store.settle() <= 2
    store.put((envoy("front-0", "front")[0], None))
    assert await store.settle() <= 1
    store.put((key, None))
    assert await store.settle() <= 3
    assert store.said("one", "gateways") == "False"
