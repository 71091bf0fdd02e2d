"""The Kubernetes adapter: services, pods and where they are, as a source of rows.

Every replica follows; what is taken is the latest of each object, however often it changed since.
Nothing is taken before everything was read once, and nothing is withdrawn but by the API server's
word.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge

from meshbus.api.selectors import matches_selector
from meshbus.kube.client import KubeClient
from meshbus.kube.platform import NAMESPACES, NODES, PODS, SERVICES, SLICES, PlatformKind
from meshbus.kube.reflector import Name, Reflector, Source
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject

PLATFORM_TABLES = frozenset({"services", "endpointslices", "pods", "nodes", "namespaces"})
"""What the API server says of the cluster; rows of these in MODEL do not count beside it."""
Objects = dict[Key, ConfigObject | None]
Selectors = Sequence[Mapping[str, Any]]


class _Sink:
    """The objects of one kind on their way to the adapter."""

    def __init__(self, adapter: "KubernetesAdapter", kind: PlatformKind) -> None:
        self._adapter = adapter
        self._table = kind.plural

    def put(self, name: Name, value: ConfigObject) -> None:
        self._adapter.take_object(self._table, name, value)

    def delete(self, name: Name) -> None:
        self._adapter.take_object(self._table, name, None)

    def malformed(self, name: Name, error: str) -> None:
        self._adapter.problems[f"{self._table}/{name[0]}/{name[1]}"] = error


class KubernetesAdapter:
    """Follows the kinds that services and endpoints are derived from."""

    def __init__(
        self,
        client: "KubeClient",
        cluster: str,
        changed: Callable[[], None],
        metrics: CollectorRegistry,
        namespaces: Sequence[str] = (),
    ) -> None:
        """
        Args:
            changed: Called when there is something to take.
            namespaces: Those that it is limited to; none: the whole cluster. Limited, it sees no
                nodes and no labels of namespaces.
        """
        self._cluster = cluster
        self._changed = changed
        self._client = client
        self._fresh: Objects = {}
        self._labels: dict[str, dict[str, str]] = {}
        self._selectors: Selectors = ()
        self._synced = False
        self.problems: dict[str, str] = {}
        """Objects that cannot be read, and why: what they said before stands."""
        wide = [] if namespaces else [NAMESPACES, NODES]
        self._wide = {kind.plural: self._follow(kind, "") for kind in wide}
        self._narrow = [
            (kind.plural, self._follow(kind, namespace))
            for kind in (SERVICES, SLICES, PODS)
            for namespace in namespaces or ("",)
        ]
        self._events = Counter(
            "meshbus_kube_events_total",
            "Objects that the API server sent.",
            ["kind"],
            registry=metrics,
        )
        Gauge(
            "meshbus_kube_malformed", "Objects that cannot be read.", registry=metrics
        ).set_function(lambda: float(len(self.problems)))
        Gauge(
            "meshbus_kube_synced",
            "1 when everything was read once.",
            registry=metrics,
        ).set_function(lambda: float(self._synced))

    def _follow(self, kind: PlatformKind, namespace: str) -> Reflector[ConfigObject]:
        source = Source(kind.collection(namespace), fields=kind.fields)
        return Reflector(self._client, source, kind.read, _Sink(self, kind))

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            for reflector in self._wide.values():
                group.create_task(reflector.run())
            for reflector in self._wide.values():
                await reflector.wait_synced()
            for _, reflector in self._narrow:
                group.create_task(reflector.run())
            for _, reflector in self._narrow:
                await reflector.wait_synced()
            self._synced = True
            self._changed()

    @property
    def why_not_ready(self) -> str | None:
        """What is missing until it may be relied on; None: nothing."""
        if self._synced:
            return None
        for plural, reflector in (*self._wide.items(), *self._narrow):
            if not reflector.synced:
                return f"{plural} of the cluster were not read yet {reflector.problem}".strip()
        return "the cluster was not read yet"

    @property
    def synced(self) -> bool:
        """Everything was read once."""
        return self._synced

    def state(self) -> dict[str, Any]:
        """For `/debug`."""
        return {
            "synced": self._synced,
            "problems": dict(self.problems),
            "kinds": [
                {
                    "path": reflector.source.path,
                    "synced": reflector.synced,
                    "events": reflector.counts.events,
                    "lists": dict(reflector.counts.lists),
                    "problem": reflector.problem,
                }
                for _, reflector in (*self._wide.items(), *self._narrow)
            ],
        }

    # ------------------------------------------------------------------ what goes out

    def take(self) -> Objects:
        """Objects that came since this was asked last; None: gone. Nothing before all was read."""
        if not self._synced:
            return {}
        fresh, self._fresh = self._fresh, {}
        return fresh

    # ------------------------------------------------------------------ which namespaces

    def select(self, selectors: Selectors) -> None:
        """`discoverySelectors` of the mesh config: only namespaces that one of them matches."""
        if list(selectors) == list(self._selectors):
            return
        before = {name for name in self._labels if self._selected(name)}
        self._selectors = [dict(selector) for selector in selectors]
        self._reselect(before)

    def _selected(self, namespace: str) -> bool:
        if not self._selectors or not namespace or "namespaces" not in self._wide:
            return True
        labels = self._labels.get(namespace)
        if labels is None:
            return False
        return any(matches_selector(selector, labels) for selector in self._selectors)

    def _reselect(self, before: set[str]) -> None:
        """Take objects of namespaces that are selected now, and withdraw those that are not."""
        after = {name for name in self._labels if self._selected(name)}
        out, into = before - after, after - before
        for plural, reflector in self._narrow:
            for namespace, name in list(reflector.names()):
                if namespace in out:
                    self._put(plural, namespace, name, None)
            if into and reflector.synced:
                reflector.refresh(lambda name: name[0] in into)

    # ------------------------------------------------------------------ what comes in

    def take_object(self, table: str, name: Name, value: ConfigObject | None) -> None:
        """An object as the API server has it; None: it is gone."""
        self._events.labels(table).inc()
        self.problems.pop(f"{table}/{name[0]}/{name[1]}", None)
        if table == "namespaces":
            self._take_namespace(name[1], value)
        elif value is not None and not self._selected(name[0]):
            return
        self._put(table, name[0], name[1], value)

    def _take_namespace(self, name: str, value: ConfigObject | None) -> None:
        before = {name} if name in self._labels and self._selected(name) else set()
        if value is None:
            self._labels.pop(name, None)
        else:
            self._labels[name] = value.labels
        if not self._selectors:
            return
        after = {name} if name in self._labels and self._selected(name) else set()
        if before != after:
            others = {n for n in self._labels if n != name and self._selected(n)}
            self._reselect(before | others)

    def _put(self, table: str, namespace: str, name: str, value: ConfigObject | None) -> None:
        self._fresh[Key(self._cluster, "cfg", table, namespace, name)] = value
        if self._synced:
            self._changed()
