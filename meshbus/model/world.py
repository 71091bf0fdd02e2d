"""The world that compile reads: all rows at one version, immutable, with indexes.

A question to the world is a `Query`: one row by key, or all rows that an index files under a
value. `World.apply` gives the next world and the queries whose answers changed, which is all that
an incremental reader needs to know.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from meshbus.api.credentials import CONFIG_MAP
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject, EndpointShard, KeySet, Row, Service, WorkloadInstance


class Query(NamedTuple):
    """A question to the world: rows of `table` filed by `by` under `value`.

    `by` is `key` (value: the Key; at most one row), `all` (value: None), `namespace` (value: a
    namespace), or an index named in `INDEXES`.
    """

    table: str
    by: str
    value: Hashable


def membership(query: Query) -> Query:
    """The question which rows answer a query: its answer is another one when rows come to them or
    go, not when one of them changes."""
    return Query(query.table, f"{query.by} keys", query.value)


class Entry(NamedTuple):
    """A row as stored: its key, the sequence and time of the change that wrote it, and itself."""

    key: Key
    sequence: int
    ts: float
    row: Any


def _by_host(key: Key, row: Row) -> Iterable[Hashable]:
    assert isinstance(row, Service)
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


def _by_source(key: Key, row: Row) -> Iterable[Hashable]:
    assert isinstance(row, KeySet)
    return (row.source,)


def _by_ranking(key: Key, row: Row) -> Iterable[Hashable]:
    """True for rules and services that rank endpoints by where the caller is."""
    if isinstance(row, Service):
        return (True,) if row.annotations.get(TRAFFIC_DISTRIBUTION) else ()
    for policy in _traffic_policies(row):
        balancer = policy.get("loadBalancer") or {}
        if policy.get("outlierDetection") is not None or _BY_PLACE & balancer.keys():
            return (True,)
    return ()


_BY_PLACE = frozenset({"localityLbSetting", "zoneAwareLbSetting"})


def _by_zones(key: Key, row: Row) -> Iterable[Hashable]:
    """True for rules that say whether zones decide which endpoints are called."""
    zones = any(
        "zoneAwareLbSetting" in (policy.get("loadBalancer") or {})
        for policy in _traffic_policies(row)
    )
    return (True,) if zones else ()


def _by_config_maps(key: Key, row: Row) -> Iterable[Hashable]:
    """True for rules that name a ConfigMap with authorities."""
    named = any(
        str(tls.get("credentialName") or "").startswith(CONFIG_MAP)
        for policy in _traffic_policies(row)
        for tls in _records([policy.get("tls")])
    )
    return (True,) if named else ()


def _traffic_policies(row: Row) -> Iterator[dict[str, Any]]:
    """Those of a DestinationRule, its subsets and its ports."""
    assert isinstance(row, ConfigObject)
    for holder in (row.spec, *_records(row.spec.get("subsets"))):
        for policy in _records([holder.get("trafficPolicy")]):
            yield policy
            yield from _records(policy.get("portLevelSettings"))


def _by_network(key: Key, row: Row) -> Iterable[Hashable]:
    """True for services that lead into a network."""
    assert isinstance(row, Service)
    return (True,) if row.labels.get(NETWORK_LABEL) else ()


def _by_gateway(key: Key, row: Row) -> Iterable[Hashable]:
    """Labels (name, value) of a gateway's Envoy, and `ANY_GATEWAY`: of an instance, or of the
    Workload that has some."""
    if isinstance(row, WorkloadInstance):
        gateway = row.gateway
    else:
        assert isinstance(row, ConfigObject)
        gateway = row.spec.get("gateway") is True
    return (*row.labels.items(), ANY_GATEWAY) if gateway else ()


ANY_GATEWAY = ("", "")


def _records(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


NETWORK_LABEL = "topology.istio.io/network"
NODE_SELECTOR = "traffic.istio.io/nodeSelector"
"""Annotation of a Service of type NodePort: it is reached at nodes of these labels."""
"""Label of what is in a network, and of the services of its gateways."""
TRAFFIC_DISTRIBUTION = "networking.istio.io/traffic-distribution"
"""Annotation of a service; its `spec.trafficDistribution` counts the same."""

INDEXES: dict[str, dict[str, Callable[[Key, Row], Iterable[Hashable]]]] = {
    "reg.services": {"host": _by_host, "ranking": _by_ranking, "network": _by_network},
    "reg.endpoints": {"service": _by_service},
    "reg.workloads": {"account": _by_account, "address": _by_address, "gateway": _by_gateway},
    "cfg.workloads": {"gateway": _by_gateway},
    "src.instances": {"label": _by_label, "address": _by_address},
    "jwks.keys": {"source": _by_source},
    "cfg.endpointslices": {"service": _by_service_name},
    "cfg.virtualservices": {"host": _hosts_of},
    "cfg.destinationrules": {
        "host": _hosts_of,
        "ranking": _by_ranking,
        "zones": _by_zones,
        "config maps": _by_config_maps,
    },
    "cfg.serviceentries": {"host": _hosts_of},
}
"""Indexes by table and name, besides `key`, `all` and `namespace`, which every table has."""


class Put(NamedTuple):
    """A row written. `row` None is a deletion."""

    key: Key
    sequence: int
    ts: float
    row: Row | None


class _Bucket:
    """The rows that answer one query, and their order once somebody has asked for it."""

    __slots__ = ("answer", "order", "rows")

    def __init__(self, rows: dict[Key, Entry], order: list[Key] | None) -> None:
        self.rows = rows
        self.order = order
        self.answer: tuple[Entry, ...] | None = None

    def copy(self) -> "_Bucket":
        return _Bucket(dict(self.rows), None if self.order is None else list(self.order))

    def put(self, entry: Entry) -> None:
        if self.order is not None and entry.key not in self.rows:
            insort(self.order, entry.key)
        self.rows[entry.key] = entry

    def drop(self, key: Key) -> None:
        if self.rows.pop(key, None) is not None and self.order is not None:
            del self.order[bisect_left(self.order, key)]

    def entries(self) -> tuple[Entry, ...]:
        if self.answer is None:
            if self.order is None:
                self.order = sorted(self.rows)
            self.answer = tuple([self.rows[key] for key in self.order])
        return self.answer


_Index = dict[Hashable, _Bucket]
_Indexes = dict[tuple[str, str], _Index]
"""By table and name of the index: what a step of the world touches is copied, the rest shared."""


class World:
    """Rows and indexes at one version. Never mutated after it is handed out."""

    __slots__ = ("_indexes", "_rows", "sequence")

    def __init__(
        self,
        rows: dict[str, dict[Key, Entry]] | None = None,
        indexes: _Indexes | None = None,
        sequence: int = 0,
    ) -> None:
        self._rows: dict[str, dict[Key, Entry]] = {} if rows is None else rows
        self._indexes: _Indexes = {} if indexes is None else indexes
        self.sequence = sequence
        """MODEL sequence of the last change applied."""

    def entries(self, query: Query) -> tuple[Entry, ...]:
        """The answer to a query, ordered by key (so that order of arrival never shows)."""
        table, by, value = query
        if by == "key":
            assert isinstance(value, Key)
            found = self.entry(value)
            return () if found is None else (found,)
        bucket = self._indexes.get((table, by), _EMPTY).get(value)
        return () if bucket is None else bucket.entries()

    def keys(self, query: Query) -> tuple[Key, ...]:
        """Keys of the rows that answer a query of an index, in order."""
        return tuple([entry.key for entry in self.entries(query)])

    def entry(self, key: Key) -> Entry | None:
        """One row by key."""
        rows = self._rows.get(key.table)
        return None if rows is None else rows.get(key)

    def get(self, key: Key) -> Any:
        """The row itself, or None."""
        entry = self.entry(key)
        return None if entry is None else entry.row

    def all(self, table: str) -> tuple[Entry, ...]:
        """Every row of a table, ordered by key."""
        return self.entries(Query(table, "all", None))

    def tables(self) -> tuple[str, ...]:
        """Names of the tables that hold rows."""
        return tuple(sorted(table for table, rows in self._rows.items() if rows))

    def beside(self, other: "World") -> "World":
        """These rows, and those of the tables of another world, which this one does not have. Costs
        by the number of tables."""
        return World(
            {**self._rows, **other._rows}, {**self._indexes, **other._indexes}, self.sequence
        )

    def without(self, tables: Container[str]) -> "World":
        """The rows of all other tables. Costs by the number of tables."""
        return World(
            {table: rows for table, rows in self._rows.items() if table not in tables},
            {place: index for place, index in self._indexes.items() if place[0] not in tables},
            self.sequence,
        )

    def begun_again(self) -> "World":
        """The same rows where the stream, and its sequence, has begun again."""
        return World(self._rows, self._indexes, 0)

    def apply(self, puts: Iterable[Put]) -> tuple["World", frozenset[Query]]:
        """The next world, and the queries whose answers differ from this one's.

        A put whose row equals the one stored moves only the version: no query is touched.
        """
        changes = list(puts)
        sequence = max([self.sequence, *(put.sequence for put in changes)])
        step = _Step(dict(self._rows), dict(self._indexes))
        for put in changes:
            step.put(put)
        return World(step.rows, step.indexes, sequence), frozenset(step.touched)


_EMPTY: _Index = {}


class _Step:
    """A world in the making: copies what it is about to change, once."""

    def __init__(self, rows: dict[str, dict[Key, Entry]], indexes: _Indexes) -> None:
        self.rows = rows
        self.indexes = indexes
        self.touched: set[Query] = set()
        self._own_tables: set[str] = set()
        self._own_indexes: set[tuple[str, str]] = set()
        self._own_buckets: dict[Query, _Bucket] = {}
        self._common: dict[tuple[str, str], list[Query]] = {}

    def put(self, put: Put) -> None:
        key = put.key
        table = key.table
        rows = self.rows.get(table)
        before = None if rows is None else rows.get(key)
        if before is not None and put.row == before.row:
            return
        if before is None and put.row is None:
            return
        if rows is None or table not in self._own_tables:
            self._own_tables.add(table)
            rows = self.rows[table] = dict(rows or ())
        self.touched.add(Query(table, "key", key))
        new = [] if put.row is None else self._queries(table, key, put.row)
        if before is None or not _filed_alike(table, key, before.row, put.row):
            old = [] if before is None else self._queries(table, key, before.row)
            for query in old:
                if query not in new:
                    self.touched.add(membership(query))
                    self._drop(query, key)
            for query in new:
                if query not in old:
                    self.touched.add(membership(query))
        if put.row is None:
            del rows[key]
            return
        after = rows[key] = Entry(key, put.sequence, put.ts, put.row)
        for query in new:
            self._bucket(query).put(after)

    def _drop(self, query: Query, key: Key) -> None:
        bucket = self._bucket(query)
        bucket.drop(key)
        if not bucket.rows:
            del self.indexes[query.table, query.by][query.value]
            del self._own_buckets[query]

    def _bucket(self, query: Query) -> _Bucket:
        bucket = self._own_buckets.get(query)
        if bucket is not None:
            return bucket
        self.touched.add(query)
        place = (query.table, query.by)
        if place not in self._own_indexes:
            self._own_indexes.add(place)
            self.indexes[place] = dict(self.indexes.get(place, ()))
        index = self.indexes[place]
        held = index.get(query.value)
        bucket = _Bucket({}, None) if held is None else held.copy()
        index[query.value] = self._own_buckets[query] = bucket
        return bucket

    def _queries(self, table: str, key: Key, row: Row) -> list[Query]:
        """Questions besides that for its key that a row is part of the answer to."""
        common = self._common.get((table, key.namespace))
        if common is None:
            common = [Query(table, "all", None), Query(table, "namespace", key.namespace)]
            self._common[table, key.namespace] = common
        indexes = INDEXES.get(table)
        if indexes is None:
            return common
        queries = list(common)
        for name, values in indexes.items():
            queries += [Query(table, name, value) for value in values(key, row)]
        return queries


def _filed_alike(table: str, key: Key, one: Row, other: Row | None) -> bool:
    """Two rows of a key answer the same queries."""
    return other is not None and all(
        values(key, one) == values(key, other) for values in INDEXES.get(table, {}).values()
    )


def world_of(rows: Mapping[Key, Row], *, sequence: int = 1, ts: float = 0.0) -> World:
    """A world of these rows alone, for offline use and tests."""
    world, _ = World().apply(Put(key, sequence, ts, row) for key, row in rows.items())
    return world
