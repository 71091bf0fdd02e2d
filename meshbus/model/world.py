"""The world that compile reads: all rows at one version, immutable, with indexes.

A question to the world is a `Query`: one row by key, or all rows that an index files under a
value. `World.apply` gives the next world and the queries whose answers changed, which is all that
an incremental reader needs to know.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, NamedTuple

from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject, EndpointShard, Row, Service, WorkloadInstance


class Query(NamedTuple):
    """A question to the world: rows of `table` filed by `by` under `value`.

    `by` is `key` (value: the Key; at most one row), `all` (value: None), `namespace` (value: a
    namespace), or an index named in `INDEXES`.
    """

    table: str
    by: str
    value: Hashable


class Entry(NamedTuple):
    """A row as stored: its key, the sequence and time of the change that wrote it, and itself."""

    key: Key
    sequence: int
    ts: float
    row: Any


def _by_host(key: Key, row: Row) -> Iterable[Hashable]:
    assert isinstance(row, Service | EndpointShard)
    return (row.host,)


def _by_service(key: Key, row: Row) -> Iterable[Hashable]:
    assert isinstance(row, EndpointShard)
    return ((row.namespace, row.host),)


def _by_address(key: Key, row: Row) -> Iterable[Hashable]:
    assert isinstance(row, WorkloadInstance)
    return tuple(row.addresses)


def _by_label(key: Key, row: Row) -> Iterable[Hashable]:
    assert isinstance(row, WorkloadInstance)
    return tuple((row.namespace, name, value) for name, value in row.labels.items())


def _by_service_name(key: Key, row: Row) -> Iterable[Hashable]:
    assert isinstance(row, ConfigObject)
    name = row.labels.get("kubernetes.io/service-name")
    return ((row.namespace, name),) if name else ()


def _by_account(key: Key, row: Row) -> Iterable[Hashable]:
    assert isinstance(row, WorkloadInstance)
    return ((row.namespace, row.service_account or "default"),)


def _hosts_of(key: Key, row: Row) -> Iterable[Hashable]:
    assert isinstance(row, ConfigObject)
    hosts = row.spec.get("hosts")
    if isinstance(hosts, list):
        return tuple(host for host in hosts if isinstance(host, str))
    host = row.spec.get("host")
    return (host,) if isinstance(host, str) else ()


def _by_ranking(key: Key, row: Row) -> Iterable[Hashable]:
    """True for rules and services that rank endpoints by where the caller is."""
    if isinstance(row, Service):
        return (True,) if row.annotations.get(TRAFFIC_DISTRIBUTION) else ()
    assert isinstance(row, ConfigObject)
    for holder in (row.spec, *_records(row.spec.get("subsets"))):
        policy = holder.get("trafficPolicy")
        for part in (*_records([policy]), *_records((policy or {}).get("portLevelSettings"))):
            balancer = part.get("loadBalancer") or {}
            if part.get("outlierDetection") is not None or "localityLbSetting" in balancer:
                return (True,)
    return ()


def _records(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


TRAFFIC_DISTRIBUTION = "networking.istio.io/traffic-distribution"
"""Annotation of a service; its `spec.trafficDistribution` counts the same."""

INDEXES: dict[str, dict[str, Callable[[Key, Row], Iterable[Hashable]]]] = {
    "reg.services": {"host": _by_host, "ranking": _by_ranking},
    "reg.endpoints": {"host": _by_host, "service": _by_service},
    "reg.workloads": {"account": _by_account, "address": _by_address},
    "src.instances": {"label": _by_label, "address": _by_address},
    "cfg.endpointslices": {"service": _by_service_name},
    "cfg.virtualservices": {"host": _hosts_of},
    "cfg.destinationrules": {"host": _hosts_of, "ranking": _by_ranking},
    "cfg.serviceentries": {"host": _hosts_of},
}
"""Indexes by table and name, besides `key`, `all` and `namespace`, which every table has."""


class Put(NamedTuple):
    """A row written. `row` None is a deletion."""

    key: Key
    sequence: int
    ts: float
    row: Row | None


_Buckets = dict[Query, dict[Key, Entry]]


class World:
    """Rows and indexes at one version. Never mutated after it is handed out."""

    __slots__ = ("_buckets", "sequence")

    def __init__(self, buckets: _Buckets | None = None, sequence: int = 0) -> None:
        self._buckets: _Buckets = {} if buckets is None else buckets
        self.sequence = sequence
        """MODEL sequence of the last change applied."""

    def entries(self, query: Query) -> tuple[Entry, ...]:
        """The answer to a query, ordered by key (so that order of arrival never shows)."""
        bucket = self._buckets.get(query)
        if not bucket:
            return ()
        return tuple(bucket[key] for key in sorted(bucket))

    def entry(self, key: Key) -> Entry | None:
        """One row by key."""
        bucket = self._buckets.get(Query(key.table, "key", key))
        return bucket[key] if bucket else None

    def get(self, key: Key) -> Any:
        """The row itself, or None."""
        entry = self.entry(key)
        return None if entry is None else entry.row

    def all(self, table: str) -> tuple[Entry, ...]:
        """Every row of a table, ordered by key."""
        return self.entries(Query(table, "all", None))

    def tables(self) -> tuple[str, ...]:
        """Names of the tables that hold rows."""
        return tuple(
            sorted(q.table for q, bucket in self._buckets.items() if q.by == "all" and bucket)
        )

    def apply(self, puts: Iterable[Put]) -> tuple["World", frozenset[Query]]:
        """The next world, and the queries whose answers differ from this one's.

        A put whose row equals the one stored moves only the version: no query is touched.
        """
        changes = list(puts)
        sequence = max([self.sequence, *(put.sequence for put in changes)])
        buckets = dict(self._buckets)
        fresh: set[Query] = set()

        def bucket_of(query: Query) -> dict[Key, Entry]:
            if query not in fresh:
                buckets[query] = dict(buckets.get(query, ()))
                fresh.add(query)
            return buckets[query]

        touched: set[Query] = set()
        for put in changes:
            by_key = Query(put.key.table, "key", put.key)
            held = buckets.get(by_key)
            before = held.get(put.key) if held else None
            if before is not None and put.row == before.row:
                continue
            if before is None and put.row is None:
                continue
            if before is not None:
                for query in _queries(put.key, before.row):
                    bucket = bucket_of(query)
                    bucket.pop(put.key, None)
                    touched.add(query)
            if put.row is not None:
                entry = Entry(put.key, put.sequence, put.ts, put.row)
                for query in _queries(put.key, put.row):
                    bucket_of(query)[put.key] = entry
                    touched.add(query)
        for query in fresh:
            if not buckets[query]:
                del buckets[query]
        return World(buckets, sequence), frozenset(touched)


def _queries(key: Key, row: Row) -> list[Query]:
    table = key.table
    queries = [
        Query(table, "key", key),
        Query(table, "all", None),
        Query(table, "namespace", key.namespace),
    ]
    for name, values in INDEXES.get(table, {}).items():
        queries.extend(Query(table, name, value) for value in values(key, row))
    return queries


def world_of(rows: Mapping[Key, Row], *, sequence: int = 1, ts: float = 0.0) -> World:
    """A world of these rows alone, for offline use and tests."""
    world, _ = World().apply(Put(key, sequence, ts, row) for key, row in rows.items())
    return world
