"""`reg.*` rows of a world: all of them, and after a change those that differ."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from meshbus.api.selectors import NAMESPACE_NAME, matches_selector
from meshbus.compile.engine import Engine
from meshbus.compile.registry.instances import (
    instance_of_entry,
    instance_of_pod,
    instances_of_workload,
)
from meshbus.compile.registry.services import Rows, entry_rows, service_rows
from meshbus.compile.registry.virtual_addresses import BOTH
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
        "st.nodes",
        "st.pods",
        "st.services",
        "st.workloadentries",
    }
)
"""Tables that the registry derives from."""


_NodeName = tuple[str, str, str]
"""(`service` or `entry`, namespace, name or host)."""


class Registry:
    """Keeps a world of sources, and derives from it. Pure: give it rows, take rows.

    `put` takes changed source rows and reported instances, `changes` gives the derived rows that
    differ since it was asked last, `rows` gives them all.

    Args:
        families: `IPv4`, `IPv6` or both, the preferred one first: of addresses that are allocated.
    """

    def __init__(
        self, cluster: str, *, offline: bool = False, families: tuple[str, ...] = BOTH
    ) -> None:
        self._cluster = cluster
        self._families = families
        self._offline = offline
        self._world = World()
        self._engine = Engine(self._world)
        self._reported: dict[tuple[str, str], dict[str, WorkloadInstance]] = {}
        self._instances: dict[Key, dict[Key, WorkloadInstance]] = {}
        self._hosts: dict[Key, frozenset[_NodeName]] = {}
        self._wanted: Counter[_NodeName] = Counter()
        self._moved: set[_NodeName] = set()
        self._derived: dict[_NodeName, Rows] = {}
        self._owners: dict[Key, _NodeName] = {}
        self._rows: dict[Key, Row] = {}
        self._dirty: set[Key] = set()
        self._given: dict[Key, Row] = {}
        self._offered: dict[Key, Row] = {}
        """Every source row, also of namespaces that are not looked at."""
        self._selectors: tuple[Mapping[str, Any], ...] = ()
        self.problems: dict[str, str] = {}
        """Objects that nothing can be derived from, and why: what they gave before stays."""
        self._sequence = 0

    # ------------------------------------------------------------------ in

    def put(self, writes: Iterable[tuple[Key, Row | None]]) -> None:
        """Source rows that were written; None: deleted. Other tables are ignored."""
        changed = {key: row for key, row in dict(writes).items() if key.table in SOURCES}
        moved = set()
        for key, row in changed.items():
            if row is None:
                self._offered.pop(key, None)
            else:
                self._offered[key] = row
            if key.table == "cfg.namespaces":
                moved.add(key.name)
        if self._selectors and moved:
            changed.update((k, r) for k, r in self._offered.items() if k.namespace in moved)
        self._take_in({k: r if self._looks_at(k) else None for k, r in changed.items()})

    def select(self, selectors: Sequence[Mapping[str, Any]]) -> None:
        """`discoverySelectors` of the mesh config: only objects of namespaces that one of them
        chooses count. None: all do."""
        if tuple(selectors) == self._selectors:
            return
        self._selectors = tuple(selectors)
        self._take_in({k: r if self._looks_at(k) else None for k, r in self._offered.items()})
        self._take_all(
            Key(self._cluster, "cfg", "workloads", namespace, workload)
            for namespace, workload in self._reported
        )

    def _looks_at(self, key: Key) -> bool:
        if not self._selectors or not key.namespace:
            return True
        row = self._offered.get(Key(self._cluster, "cfg", "namespaces", "", key.namespace))
        labels = row.labels if isinstance(row, ConfigObject) else {}
        labels = {**labels, NAMESPACE_NAME: key.namespace}
        return any(matches_selector(selector, labels) for selector in self._selectors)

    def _take_in(self, rows: Mapping[Key, Row | None]) -> None:
        puts: list[Put] = []
        touched: list[Key] = []
        for key, row in rows.items():
            if self._world.get(key) == row:
                continue
            self._sequence += 1
            puts.append(Put(key, self._sequence, 0.0, row))
            touched.append(key)
        self._step(puts)
        again: dict[Key, None] = {}
        for key in touched:
            again.update(dict.fromkeys(self._concerned(key)))
        self._take_all(again)

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
        self._take_all(
            Key(self._cluster, "cfg", "workloads", namespace, workload)
            for namespace, workload in touched
        )

    def workload(self, namespace: str, name: str) -> ConfigObject | None:
        """A Workload object; None when there is none."""
        row = self._world.get(Key(self._cluster, "cfg", "workloads", namespace, name))
        return row if isinstance(row, ConfigObject) else None

    # ------------------------------------------------------------------ out

    def rows(self) -> dict[Key, Row]:
        """All derived rows."""
        self._derive()
        return dict(self._rows)

    def changes(self) -> list[tuple[Key, Row | None]]:
        """Derived rows that differ from those that were given before: puts, then deletions."""
        self._derive()
        puts: list[tuple[Key, Row | None]] = []
        deletions: list[tuple[Key, Row | None]] = []
        for key in sorted(self._dirty):
            row, given = self._rows.get(key), self._given.get(key)
            if row is given or row == given:
                continue
            if row is None:
                del self._given[key]
                deletions.append((key, None))
            else:
                self._given[key] = row
                puts.append((key, row))
        self._dirty.clear()
        return puts + deletions

    # ------------------------------------------------------------------ inside

    def _step(self, puts: list[Put]) -> None:
        self._world, queries = self._world.apply(puts)
        self._engine.update(self._world, queries)

    def _concerned(self, key: Key) -> list[Key]:
        """Objects whose instances depend on this row."""
        if key.table in ("st.pods", "st.workloadentries"):
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

    def _take_all(self, keys: Iterable[Key]) -> None:
        """One step of the world for all instances: each step copies what it touches."""
        puts: dict[Key, Put] = {}
        for key in keys:
            for put in self._take(key):
                puts[put.key] = put
        if puts:
            self._step(list(puts.values()))

    def _take(self, key: Key) -> list[Put]:
        """Bring what is derived one to one from an object up to date; what that does to the
        instances."""
        table = key.table
        row: Any = self._world.get(key)
        if table == "cfg.services":
            node: _NodeName = ("service", key.namespace, key.name)
            self._want(key, frozenset() if row is None else frozenset({node}))
        elif table == "cfg.serviceentries":
            hosts = row.spec.get("hosts") if row is not None else None
            self._want(
                key,
                frozenset(
                    ("entry", key.namespace, host) for host in hosts or () if isinstance(host, str)
                ),
            )
        elif table == "cfg.namespaces":
            derived = Key(self._cluster, "reg", "namespaces", "", key.name)
            labels = None if row is None else (dict(row.labels), dict(row.annotations))
            self._set(derived, None if labels is None else Namespace(key.name, *labels))
        elif table in {"cfg.pods", "cfg.workloadentries", "cfg.workloads"}:
            return self._take_instances(key, row)
        return []

    def _take_instances(self, source: Key, row: Any) -> list[Put]:
        try:
            instances = self._instances_of(source, row)
        except Exception as error:  # noqa: BLE001 - one bad object must not take the others along
            self.problems[str(source)] = f"{type(error).__name__}: {error}"
            return []
        self.problems.pop(str(source), None)
        fresh = {
            Key(self._cluster, "src", "instances", i.namespace, f"{i.origin}.{i.name}"): i
            for i in instances
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
            self._set(derived, instance)
        return puts

    def _instances_of(self, key: Key, row: Any) -> list[WorkloadInstance]:
        if key.table == "cfg.workloads":
            if not self._looks_at(key):
                return []
            reported = self._reported.get((key.namespace, key.name), {})
            found = [instance for _, instance in sorted(reported.items())]
            if found or row is None:
                return found
            return instances_of_workload(row, self._cluster, offline=self._offline)
        if row is None:
            return []
        namespace = self._rows.get(Key(self._cluster, "reg", "namespaces", "", key.namespace))
        assert namespace is None or isinstance(namespace, Namespace)
        if key.table == "cfg.workloadentries":
            about = self._world.get(key._replace(plane="st"))
            told = about.status if about is not None else row.spec.get("status")
            entry = instance_of_entry(
                row, self._cluster, namespace, told if isinstance(told, dict) else None
            )
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

    def _want(self, key: Key, nodes: frozenset[_NodeName]) -> None:
        """The nodes that an object stands for."""
        before = self._hosts.pop(key, frozenset())
        if nodes:
            self._hosts[key] = nodes
        self._wanted.update(nodes - before)
        self._wanted.subtract(before - nodes)
        self._moved |= nodes ^ before

    def _set(self, key: Key, row: Row | None) -> None:
        if row is None:
            self._rows.pop(key, None)
        else:
            self._rows[key] = row
        self._dirty.add(key)

    def _derive(self) -> None:
        """Bring up to date what a change concerns, and nothing else."""
        moved, self._moved = self._moved, set()
        for node in sorted(moved):
            kind, namespace, name = node
            if self._wanted[node] > 0:
                self._take_rows(node)
            else:
                del self._wanted[node]
                self._engine.release(_NODES[kind], self._cluster, namespace, name, self._families)
                self.problems.pop("/".join(node), None)
                self._replace(node, ())
        self._engine.advance()
        for function, arguments in self._engine.take_changed():
            changed = (_KINDS[function], str(arguments[1]), str(arguments[2]))
            if self._wanted[changed] > 0:
                self._take_rows(changed)

    def _take_rows(self, node: _NodeName) -> None:
        kind, namespace, name = node
        subject = "/".join(node)
        try:
            rows = self._engine.get(_NODES[kind], self._cluster, namespace, name, self._families)
        except Exception as error:  # noqa: BLE001 - one bad object must not take the others along
            self.problems[subject] = f"{type(error).__name__}: {error}"
            return
        self.problems.pop(subject, None)
        self._replace(node, rows)

    def _replace(self, node: _NodeName, rows: Rows) -> None:
        before = self._derived.pop(node, ())
        if rows:
            self._derived[node] = rows
        held = dict(rows)
        for key, _ in before:
            # A host may have moved from one kind to another, and that one come first.
            if key not in held and self._owners.get(key) == node:
                del self._owners[key]
                self._set(key, None)
        for key, row in rows:
            self._owners[key] = node
            if self._rows.get(key) is not row:
                self._set(key, row)


_NODES = {"service": service_rows, "entry": entry_rows}
_KINDS: dict[Callable[..., Any], str] = {function: kind for kind, function in _NODES.items()}


def rows_of_objects(
    objects: Mapping[Key, ConfigObject], selectors: Sequence[Mapping[str, Any]] = ()
) -> dict[Key, Row]:
    """The `reg.*` rows of these objects alone, without a server. `selectors`: the mesh config's
    `discoverySelectors`."""
    if not objects:
        return {}
    registry = Registry(next(iter(objects)).cluster, offline=True)
    registry.select(selectors)
    registry.put(sorted(objects.items()))
    return registry.rows()
