"""Several control planes on one bus: the rows that one of them, a revision, acts on. Pure.

The model holds the objects of all revisions, each labelled for one of them or for none in
particular, and the mesh config of each.

Source: Istio, canary upgrades, label `istio.io/rev`.
"""

from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject, Row, Service

REVISION_LABEL = "istio.io/rev"
DEFAULT_REVISION = "default"
_MESH = "mesh"
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
            objects: Whether objects of other revisions are left out.
        """
        self._revision = revision or DEFAULT_REVISION
        self._mesh = mesh_row_name(self._revision)
        self._objects = objects

    def key(self, key: Key) -> Key | None:
        """Where a row is seen; None: nowhere."""
        if key.plane != "mesh" or key.kind != "config":
            return key
        return key._replace(name=_MESH) if key.name == self._mesh else None

    def row(self, row: Row | None) -> Row | None:
        """The row, or None where it is another revision's."""
        if not self._objects:
            return row
        if isinstance(row, ConfigObject) or (
            isinstance(row, Service) and row.source.startswith(_ENTRIES)
        ):
            wanted = row.labels.get(REVISION_LABEL)
            return row if not wanted or wanted == self._revision else None
        return row
