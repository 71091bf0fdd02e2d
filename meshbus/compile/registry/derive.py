"""`reg.*` rows of a world: all of them, and after a change those that differ."""

from collections.abc import Iterable, Mapping
from typing import Any

from meshbus.compile.engine import Engine
from meshbus.compile.registry.instances import (
    instance_of_entry,
    instance_of_pod,
    instances_of_workload,
)
from meshbus.compile.registry.services import Rows, entry_rows, service_rows
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject, Namespace, Row, WorkloadInstance
from meshbus.model.world import Put, World

SOURCES = frozenset(
    {
        "cfg.services",
        "cfg.endpointslices",
        "cfg.serviceentries",
        "cfg.workloadentries",
        "cfg.workloads",
        "cfg.pods",
        "cfg.nodes",
        "cfg.namespaces",
        "st.pods",
    }
)
"""Tables that the registry derives from."""


class Registry:
    """Keeps a world of sources, and derives from it. Pure: give it rows, take rows.

    `put` takes changed source rows and reported instances, `changes` gives the derived rows that
    differ since it was asked last, `rows` gives them all.
    """

    def __init__(self, cluster: str, *, offline: bool = False) -> None:
        self._cluster = cluster
        self._offline = offline
        self._world = World()
        self._engine = Engine(self._world)
        self._reported: dict[tuple[str, str], dict[str, WorkloadInstance]] = {}
        self._instances: dict[Key, dict[Key, WorkloadInstance]] = {}
        self._services: set[tuple[str, str]] = set()
        self._hosts: dict[Key, frozenset[tuple[str, str]]] = {}
        self._derived: dict[tuple[str, str, str], Rows] = {}
        self._direct: dict[Key, Row] = {}
        self._given: dict[Key, Row] = {}
        self._sequence = 0

    # ------------------------------------------------------------------ in

    def put(self, writes: Iterable[tuple[Key, Row | None]]) -> None:
        """Source rows that were written; None: deleted. Other tables are ignored."""
        puts: list[Put] = []
        touched: list[Key] = []
        for key, row in writes:
            if key.table not in SOURCES:
                continue
            self._sequence += 1
            puts.append(Put(key, self._sequence, 0.0, row))
            touched.append(key)
        self._step(puts)
        again: dict[Key, None] = {}
        for key in touched:
            again.update(dict.fromkeys(self._concerned(key)))
        for key in again:
            self._take(key)

    def report(
        self, instances: Iterable[WorkloadInstance], gone: Iterable[tuple[str, str, str]] = ()
    ) -> None:
        """Instances that a supervisor reports, and (namespace, workload, name) of those that it
        removed."""
        touched = set()
        for instance in instances:
            group = (instance.namespace, instance.workload)
            self._reported.setdefault(group, {})[instance.name] = instance
            touched.add(group)
        for namespace, workload, name in gone:
            held = self._reported.get((namespace, workload), {})
            if held.pop(name, None) is not None:
                touched.add((namespace, workload))
        for namespace, workload in touched:
            self._take(Key(self._cluster, "cfg", "workloads", namespace, workload))

    def workload_spec(self, namespace: str, name: str) -> Mapping[str, Any]:
        """The spec of a Workload object; empty when there is none."""
        row = self._world.get(Key(self._cluster, "cfg", "workloads", namespace, name))
        return row.spec if isinstance(row, ConfigObject) else {}

    # ------------------------------------------------------------------ out

    def rows(self) -> dict[Key, Row]:
        """All derived rows."""
        self._derive()
        out = dict(self._direct)
        for rows in self._derived.values():
            out.update(rows)
        return out

    def changes(self) -> list[tuple[Key, Row | None]]:
        """Derived rows that differ from those that were given before: puts, then deletions."""
        rows = self.rows()
        writes: list[tuple[Key, Row | None]] = [
            (key, row)
            for key, row in sorted(rows.items())
            if (given := self._given.get(key)) is not row and given != row
        ]
        writes += [(key, None) for key in sorted(self._given) if key not in rows]
        self._given = rows
        return writes

    # ------------------------------------------------------------------ inside

    def _step(self, puts: list[Put]) -> None:
        self._world, queries = self._world.apply(puts)
        self._engine.update(self._world, queries)

    def _concerned(self, key: Key) -> list[Key]:
        """Objects whose instances depend on this row."""
        if key.table == "st.pods":
            return [key._replace(plane="cfg")]
        if key.table == "cfg.nodes":
            return [
                entry.key
                for entry in self._world.all("cfg.pods")
                if entry.row.spec.get("nodeName") == key.name
            ]
        if key.table == "cfg.namespaces":
            concerned = [key]
            for table in ("cfg.pods", "cfg.workloadentries"):
                concerned += [e.key for e in self._world.all(table) if e.key.namespace == key.name]
            return concerned
        return [key]

    def _take(self, key: Key) -> None:
        """Bring what is derived one to one from an object up to date."""
        table = key.table
        row: Any = self._world.get(key)
        if table == "cfg.services":
            if row is None:
                self._services.discard((key.namespace, key.name))
            else:
                self._services.add((key.namespace, key.name))
        elif table == "cfg.serviceentries":
            hosts = row.spec.get("hosts") if row is not None else None
            named = frozenset(
                (key.namespace, host) for host in hosts or () if isinstance(host, str)
            )
            if named:
                self._hosts[key] = named
            else:
                self._hosts.pop(key, None)
        elif table == "cfg.namespaces":
            derived = Key(self._cluster, "reg", "namespaces", "", key.name)
            if row is None:
                self._direct.pop(derived, None)
            else:
                self._direct[derived] = Namespace(key.name, dict(row.labels), dict(row.annotations))
        elif table in {"cfg.pods", "cfg.workloadentries", "cfg.workloads"}:
            self._take_instances(key, row)

    def _take_instances(self, source: Key, row: Any) -> None:
        fresh = {
            Key(self._cluster, "src", "instances", i.namespace, f"{i.origin}.{i.name}"): i
            for i in self._instances_of(source, row)
        }
        before = self._instances.pop(source, {})
        if fresh:
            self._instances[source] = fresh
        puts = []
        for key in {**before, **fresh}:
            instance = fresh.get(key)
            if before.get(key) == instance:
                continue
            self._sequence += 1
            puts.append(Put(key, self._sequence, 0.0, instance))
            derived = Key(
                self._cluster, "reg", "workloads", key.namespace, key.name.split(".", 1)[1]
            )
            if instance is None:
                self._direct.pop(derived, None)
            else:
                self._direct[derived] = instance
        if puts:
            self._step(puts)

    def _instances_of(self, key: Key, row: Any) -> list[WorkloadInstance]:
        if key.table == "cfg.workloads":
            reported = self._reported.get((key.namespace, key.name), {})
            found = [instance for _, instance in sorted(reported.items())]
            if found or row is None:
                return found
            return instances_of_workload(row, self._cluster, offline=self._offline)
        if row is None:
            return []
        namespace = self._direct.get(Key(self._cluster, "reg", "namespaces", "", key.namespace))
        assert namespace is None or isinstance(namespace, Namespace)
        if key.table == "cfg.workloadentries":
            entry = instance_of_entry(row, self._cluster, namespace)
            return [entry] if entry is not None else []
        status: Any = row.spec.get("status")
        if not isinstance(status, dict):
            held = self._world.get(key._replace(plane="st"))
            status = held.status if held is not None else {}
        node = str(row.spec.get("nodeName") or "")
        labels = self._world.get(Key(self._cluster, "cfg", "nodes", "", node)) if node else None
        pod = instance_of_pod(
            row, status, labels.labels if labels is not None else {}, namespace, self._cluster
        )
        return [pod] if pod is not None else []

    def _derive(self) -> None:
        wanted = {("service", *name) for name in self._services}
        wanted |= {("entry", *host) for hosts in self._hosts.values() for host in hosts}
        for node in self._derived.keys() - wanted:
            kind, namespace, name = node
            self._engine.release(_NODES[kind], self._cluster, namespace, name)
            del self._derived[node]
        for node in sorted(wanted):
            kind, namespace, name = node
            self._derived[node] = self._engine.get(_NODES[kind], self._cluster, namespace, name)


_NODES = {"service": service_rows, "entry": entry_rows}


def rows_of_objects(objects: Mapping[Key, ConfigObject]) -> dict[Key, Row]:
    """The `reg.*` rows of these objects alone, without a server."""
    if not objects:
        return {}
    registry = Registry(next(iter(objects)).cluster, offline=True)
    registry.put(sorted(objects.items()))
    return registry.rows()
