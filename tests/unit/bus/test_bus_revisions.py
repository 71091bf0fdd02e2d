"""What a revision sees of a model that several share."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshbus.bus.interface import Message
from meshbus.bus.mirror import WorldMirror
from meshbus.model.envelope import seal
from meshbus.model.keys import Key, subject_of
from meshbus.model.revisions import RevisionView, WorldOfRevision, mesh_row_name
from meshbus.model.rows import ConfigObject, MeshConfigRow, Row, Service, encode_row
from meshbus.model.world import Query, World

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


def sidecar(label: str) -> ConfigObject:
    return msgspec.structs.replace(route(label), kind="Sidecar")


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["cfg.sidecars", "reg.services", "cfg.gateways", "mesh.config"]),
        st.sampled_from(["one", "two"]),
        st.sampled_from([None, "", "default", "blue"]),
    )
)


@pytest.mark.parametrize("whose", ["default", "blue"])
@pytest.mark.parametrize("asked", ["default", "blue"])
@given(steps=STEPS, begin=st.integers(0, 8))
def test_whoever_reads_everything_knows_what_each_sees(
    whose: str, asked: str, steps: list[tuple[str, str, str | None]], begin: int
) -> None:
    """As if the asked one had read the model itself, step by step."""
    everything = RevisionView(whose, objects=False)
    tables = ("cfg.sidecars", "reg.services", "cfg.gateways")
    mirror, alone = WorldMirror(view=everything), WorldMirror(view=RevisionView(asked))
    moved: list[frozenset[Query]] = []
    part: WorldOfRevision | None = None

    def step(world: World, touched: frozenset[Query]) -> None:
        if part is not None:
            moved.append(part.update(world, touched))

    mirror.subscribe(step)
    for one in (mirror, alone):
        one.begin()
        one.end(0)
    for number, (table, name, label) in enumerate(steps, 1):
        if number > begin and part is None:
            part = WorldOfRevision(asked, everything, tables, mirror.world)
        at, row = key(table, name), None
        if table == "mesh.config":
            at = MESH._replace(name=mesh_row_name("blue" if name == "two" else "default"))
            row = None if label is None else MeshConfigRow({"trustDomain": label})
        elif label is not None:
            row = entry(label) if table == "reg.services" else sidecar(label)
        data = b"" if row is None else seal(at, encode_row(row), ts=0.0, writer="w")
        message = Message(subject_of(at), data, sequence=number)
        before = part.world if part is not None else None
        mirror.apply([message])
        alone.apply([message])
        if part is None or before is None:
            continue
        for held in (*tables, "mesh.config"):
            found = [(e.key, e.row) for e in part.world.all(held)]
            assert found == [(e.key, e.row) for e in alone.world.all(held)]
            for query in (Query(held, "all", None), Query(held, "namespace", "n")):
                same = before.entries(query) == part.world.entries(query)
                assert same or query in moved[-1], "what has changed is told"


def test_each_has_its_own_mesh_config() -> None:
    blue = MESH._replace(name=mesh_row_name("blue"))
    ours, theirs = MeshConfigRow({"trustDomain": "a"}), MeshConfigRow({"trustDomain": "b"})
    rows: list[tuple[Key, Row | None]] = [(MESH, ours), (blue, theirs)]
    assert world_of(RevisionView("default"), rows).get(MESH) == ours
    assert world_of(RevisionView("blue"), rows).get(MESH) == theirs
    assert world_of(RevisionView("blue"), [*rows, (blue, None)]).get(MESH) is None
    assert world_of(RevisionView("blue"), [*rows, (MESH, None)]).get(MESH) == theirs
