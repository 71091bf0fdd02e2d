"""Rows by reference, and which namespaces see what a namespace exports, with what precedence."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from meshbus.compile.engine import Reader
from meshbus.compile.headings import ISTIO_NETWORKING
from meshbus.compile.namespaces import is_discovered
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject, Service
from meshbus.model.world import Query


class Ref(NamedTuple):
    """A row with its key: equal when the row is, whenever it was written. Of virtual services in
    lists the row is their `Heading`."""

    key: Key
    row: Any


PRIVATE, NAMED, PUBLIC = range(3)
"""Precedence of what a namespace sees: its own that it keeps to itself, what names it, what is for
everybody. Source: Istio, PushContext.servicesExportedToNamespace and VirtualServicesForGateway."""

Ranked = tuple[int, Ref]
"""Something that is seen, after its precedence."""


class Visible(NamedTuple):
    """What one namespace exports: to everyone, and to some."""

    public: tuple[Ref, ...]
    restricted: tuple[tuple[Ref, frozenset[str]], ...]
    """With the namespaces that see each; `.` stands for its own."""

    def seen_from(self, namespace: str) -> Iterable[Ranked]:
        """Those that a namespace sees, with their precedence for it."""
        yield from ((PUBLIC, ref) for ref in self.public)
        for ref, targets in self.restricted:
            if ref.row.namespace == namespace and (namespace in targets or "." in targets):
                yield PRIVATE, ref
            elif namespace in targets:
                yield NAMED, ref


_NOBODY_SEES = frozenset({"~"})


def by_audience(refs: Iterable[tuple[Ref, Iterable[str]]]) -> Visible:
    """Rows with the namespaces that each is exported to, by who sees them."""
    public: list[Ref] = []
    restricted: list[tuple[Ref, frozenset[str]]] = []
    for ref, targets in refs:
        names = frozenset(targets)
        if "*" in names or not names:
            public.append(ref)
        else:
            restricted.append((ref, _NOBODY_SEES if "~" in names else names))
    return Visible(tuple(public), tuple(restricted))


def age(ref: Ref) -> tuple[float, str, str]:
    """Sort key: older first, of equal age by name, then namespace (DESIGN §5). The name of a
    ServiceEntry's service is its host.

    Source: Istio, SortServicesByCreationTime.
    """
    row = ref.row
    name = row.host if isinstance(row, Service) and row.origin == "external" else row.name
    return (row.created, name, row.namespace)


def istio_objects(reader: Reader, plural: str, namespace: str) -> tuple[Ref, ...]:
    """Objects of networking.istio.io of one kind in one namespace, older first; none of a namespace
    that is not looked at."""
    if not reader.node(is_discovered, namespace):
        return ()
    refs = [
        Ref(e.key, e.row)
        for e in reader.entries(Query(f"cfg.{plural}", "namespace", namespace))
        if e.row.api_version.startswith(ISTIO_NETWORKING) and e.row.deletion is None
    ]
    return tuple(sorted(refs, key=age))


def object_namespaces(reader: Reader, plural: str) -> tuple[str, ...]:
    """Node: namespaces that hold objects of a kind."""
    return tuple(
        sorted({e.key.namespace for e in reader.entries(Query(f"cfg.{plural}", "all", None))})
    )


def export_to(row: ConfigObject, default: tuple[str, ...]) -> tuple[str, ...]:
    """`spec.exportTo`, or the mesh's default."""
    value = row.spec.get("exportTo")
    return tuple(str(v) for v in value) if isinstance(value, list) and value else default
