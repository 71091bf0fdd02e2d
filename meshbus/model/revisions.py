"""Several control planes on one bus: the rows that one of them, a revision, acts on. Pure.

The model holds the objects of all revisions, each labelled for one of them or for none in
particular, and the mesh config of each.

Source: Istio, canary upgrades, label `istio.io/rev`.
"""

from collections.abc import Collection, Iterable

from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject, Row, Service
from meshbus.model.world import Put, Query, World

REVISION_LABEL = "istio.io/rev"
DEFAULT_REVISION = "default"
_MESH = "mesh"
_OTHERS = "others"
"""Table of plane `mesh`: the mesh configs of other revisions, where all of them are seen."""
_ENTRIES = "cfg.serviceentries/"


def mesh_row_name(revision: str) -> str:
    """Name of the row that holds the mesh config of a revision."""
    return _MESH if revision == DEFAULT_REVISION else f"{_MESH}-{revision}"


def view_of(revision: str, *, objects: bool = True) -> "RevisionView | None":
    """The view of a revision; None where there is none: a control plane that is alone acts on every
    object, whoever it is labelled for."""
    return RevisionView(revision, objects=objects) if revision else None


class RevisionView:
    """What a service of a revision sees of the model: its own mesh config at the place of the
    default one, and no object that is for another revision."""

    def __init__(self, revision: str, *, objects: bool = True) -> None:
        """
        Args:
            revision: Its name; empty: the default one.
            objects: Whether objects of other revisions are left out; False: everything is there,
                the mesh configs of others in a table of their own.
        """
        self.revision = revision or DEFAULT_REVISION
        self._mesh = mesh_row_name(self.revision)
        self._objects = objects

    def key(self, key: Key) -> Key | None:
        """Where a row of the model is seen; None: nowhere."""
        if key.plane != "mesh" or key.kind != "config":
            return key
        if key.name == self._mesh:
            return key._replace(name=_MESH)
        return None if self._objects else key._replace(kind=_OTHERS)

    def row(self, row: Row | None) -> Row | None:
        """The row, or None where it is another revision's."""
        if not self._objects:
            return row
        if isinstance(row, ConfigObject) or (
            isinstance(row, Service) and row.source.startswith(_ENTRIES)
        ):
            wanted = row.labels.get(REVISION_LABEL)
            return row if not wanted or wanted == self.revision else None
        return row


class _ViewWithin(RevisionView):
    """The view of one revision on the rows that the view of another, of everything, has let
    through."""

    def __init__(self, revision: str, everything: RevisionView) -> None:
        super().__init__(revision)
        self._own = self.revision == everything.revision

    def key(self, key: Key) -> Key | None:
        if key.table == "mesh.config":
            return key if self._own else None
        if key.table == f"mesh.{_OTHERS}":
            return key._replace(kind="config", name=_MESH) if key.name == self._mesh else None
        return key


class WorldOfRevision:
    """A world of the rows of all revisions, as one of them sees it."""

    def __init__(
        self, revision: str, everything: RevisionView, tables: Collection[str], world: World
    ) -> None:
        """
        Args:
            revision: Whose it is.
            everything: What the rows have been read through.
            tables: Those that rows are left out of; the others are as they are.
            world: The rows of all.
        """
        self._view = _ViewWithin(revision, everything)
        self._tables = frozenset({*tables, "mesh.config", f"mesh.{_OTHERS}"})
        self._own = World()
        self.world = world
        """What the revision sees."""
        self.update(
            world, [Query(t, "key", e.key) for t in sorted(self._tables) for e in world.all(t)]
        )

    def update(self, world: World, touched: Iterable[Query]) -> frozenset[Query]:
        """Move to the next world of all; gives what of it moves for the revision."""
        puts, others = [], []
        for query in touched:
            if query.table not in self._tables:
                others.append(query)
            elif query.by == "key" and isinstance(query.value, Key):
                at = self._view.key(query.value)
                entry = world.entry(query.value)
                if at is not None and entry is not None:
                    row = self._view.row(entry.row)
                    puts.append(Put(at, entry.sequence, entry.ts, row))
                elif at is not None:
                    puts.append(Put(at, world.sequence, 0.0, None))
        self._own, moved = self._own.apply(puts)
        self.world = world.without(self._tables).beside(self._own)
        return moved.union(others)
