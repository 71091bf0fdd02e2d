"""Watches: what a watcher sees of the changes of the world."""

import asyncio
import contextlib

import pytest
from meshbus_config.history import Expired, History
from meshbus_config.watching import WatchOptions, watch

from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject, ObjectStatus
from meshbus.model.world import Put, World


def key(name, plane="cfg"):
    return Key("k", plane, "virtualservices", "default", name)


def row(name, uid="u", **labels):
    return ConfigObject("networking.istio.io/v1", "VirtualService", "default", name, uid, 1, 0.0,
                        labels=labels)  # fmt: skip


class Model:
    """A world that steps, and a history that follows it."""

    def __init__(self, capacity=8192):
        self.history = History(capacity)
        self.world = World()
        self.sequence = 10
        self.step([])

    def step(self, puts):
        made = []
        for where, value in puts:
            self.sequence += 1
            made.append(Put(where, self.sequence, 0.0, value))
        self.world, touched = self.world.apply(made)
        self.world.sequence = max(self.world.sequence, self.sequence)
        self.history.record(self.world, touched)
        return self.sequence

    def put(self, name, uid="u", **labels):
        return self.step([(key(name), row(name, uid, **labels))])

    def drop(self, name):
        return self.step([(key(name), None)])

    def objects(self):
        from meshbus_config.documents import Stored, status_key

        return [
            Stored(entry, self.world.entry(status_key(entry.key)))
            for entry in self.world.all("cfg.virtualservices")
        ]

    def watch(self, start, selected=lambda stored: True, *, bookmarks=False, timeout_s=60.0):
        return watch(
            self.history,
            self.objects,
            selected,
            lambda stored, version: {"name": stored.row.name, "version": version},
            lambda version: {"metadata": {"version": version}},
            WatchOptions(start, bookmarks, bookmarks and start is None, timeout_s),
            asyncio.get_running_loop().time,
        )


async def take(events, count):
    found = []
    async with contextlib.aclosing(events):
        async for event in events:
            found.append((event["type"], event["object"].get("name", event["object"])))
            if len(found) == count:
                return found
    return found


async def test_a_watch_goes_on_from_where_a_list_ended():
    model = Model()
    start = model.put("a")
    model.put("b")
    model.step([(key("a", "st"), ObjectStatus("u", 1, {"x": 1}))])
    model.drop("b")
    assert await take(model.watch(start), 3) == [
        ("ADDED", "b"),
        ("MODIFIED", "a"),
        ("DELETED", "b"),
    ]


async def test_a_watch_without_version_begins_with_what_is_there():
    model = Model()
    model.put("a")
    found = await take(model.watch(None, bookmarks=True), 2)
    assert found[0] == ("ADDED", "a")
    assert found[1][0] == "BOOKMARK"
    assert found[1][1]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


async def test_a_watch_waits_for_what_comes():
    model = Model()
    task = asyncio.create_task(take(model.watch(model.sequence), 1))
    await asyncio.sleep(0)
    model.put("late")
    assert await asyncio.wait_for(task, 5) == [("ADDED", "late")]


async def test_an_object_that_leaves_the_selection_is_deleted_for_the_watcher():
    model = Model()
    start = model.sequence
    model.put("a", version="v1")
    model.put("a", version="v2")
    model.put("a", version="v1")

    def v1(stored):
        return stored.row.labels.get("version") == "v1"

    found = await take(model.watch(start, v1), 3)
    assert [kind for kind, _ in found] == ["ADDED", "DELETED", "ADDED"]


async def test_an_object_made_again_within_one_step_is_another_object():
    model = Model()
    start = model.put("a", uid="1")
    model.step([(key("a"), None), (key("a"), row("a", "2"))])
    assert await take(model.watch(start), 2) == [("DELETED", "a"), ("ADDED", "a")]


async def test_a_watcher_that_is_too_old_is_told_to_list_again():
    model = Model(capacity=2)
    start = model.sequence
    for name in "abc":
        model.put(name)
    with pytest.raises(Expired):
        model.history.since(start)
    [(kind, status)] = await take(model.watch(start), 1)
    assert kind == "ERROR"
    assert (status["code"], status["reason"]) == (410, "Expired")


async def test_a_stream_that_began_again_forgets_everything():
    model = Model()
    start = model.put("a")
    model.world, model.sequence = World(), 1
    model.put("b")
    with pytest.raises(Expired):
        model.history.since(0)
    assert model.history.since(start)[0] == []


async def test_a_watch_ends_in_time_and_with_the_service():
    model = Model()
    assert await take(model.watch(model.sequence, timeout_s=0.01), 1) == []
    task = asyncio.create_task(take(model.watch(model.sequence), 1))
    await asyncio.sleep(0)
    model.history.close()
    assert await asyncio.wait_for(task, 5) == []
