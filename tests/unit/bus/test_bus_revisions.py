"""What a revision sees of a model that several share."""

import pytest

from meshbus.bus.interface import Message
from meshbus.bus.mirror import WorldMirror
from meshbus.model.envelope import seal
from meshbus.model.keys import Key, subject_of
from meshbus.model.revisions import RevisionView, mesh_row_name
from meshbus.model.rows import ConfigObject, MeshConfigRow, Row, Service, encode_row
from meshbus.model.world import World

MESH = Key("c", "mesh", "config", "", "mesh")


def route(label: str) -> ConfigObject:
    labels = {"istio.io/rev": label} if label else {}
    return ConfigObject(
        "networking.istio.io/v1", "VirtualService", "n", "r", "u", 1, 0.0, labels=labels
    )


def entry(label: str) -> Service:
    source = "cfg.serviceentries/n/e"
    return Service("e.example.com", "n", "e", "external", [], labels=route(label).labels,
                   source=source)  # fmt: skip


def key(table: str, name: str) -> Key:
    plane, _, kind = table.partition(".")
    return Key("c", plane, kind, "n", name)


def world_of(view: RevisionView | None, rows: list[tuple[Key, Row | None]]) -> World:
    mirror = WorldMirror(view=view)
    mirror.begin()
    mirror.end(0)
    for number, (at, row) in enumerate(rows, 1):
        data = seal(at, encode_row(row), ts=0.0, writer="w") if row is not None else b""
        mirror.apply([Message(subject_of(at), data, sequence=number)])
    return mirror.world


@pytest.mark.parametrize("table", ["cfg.virtualservices", "cfg.gateways.gateway.networking.k8s.io"])
def test_objects_of_another_revision_are_not_there(table: str) -> None:
    at = key(table, "r")
    for label, seen in (("", True), ("blue", True), ("default", False)):
        world = world_of(RevisionView("blue"), [(at, route(label))])
        assert (world.get(at) is not None) is seen
        assert world_of(None, [(at, route(label))]).get(at) is not None
        assert world_of(RevisionView("blue", objects=False), [(at, route(label))]).get(at)


def test_an_object_that_is_labelled_for_another_goes() -> None:
    at = key("cfg.virtualservices", "r")
    rows: list[tuple[Key, Row | None]] = [(at, route("")), (at, route("blue"))]
    assert world_of(RevisionView(""), rows).get(at) is None
    assert world_of(RevisionView("blue"), rows).get(at) == route("blue")
    assert world_of(RevisionView(""), [*rows, (at, route("default"))]).get(at) is not None


def test_hosts_of_an_entry_are_those_of_its_revision() -> None:
    at = key("reg.services", "e.example.com")
    assert world_of(RevisionView(""), [(at, entry("blue"))]).get(at) is None
    assert world_of(RevisionView("blue"), [(at, entry("blue"))]).get(at) is not None


def test_each_has_its_own_mesh_config() -> None:
    blue = MESH._replace(name=mesh_row_name("blue"))
    ours, theirs = MeshConfigRow({"trustDomain": "a"}), MeshConfigRow({"trustDomain": "b"})
    rows: list[tuple[Key, Row | None]] = [(MESH, ours), (blue, theirs)]
    assert world_of(RevisionView("default"), rows).get(MESH) == ours
    assert world_of(RevisionView("blue"), rows).get(MESH) == theirs
    assert world_of(RevisionView("blue"), [*rows, (blue, None)]).get(MESH) is None
    assert world_of(RevisionView("blue"), [*rows, (MESH, None)]).get(MESH) == theirs
