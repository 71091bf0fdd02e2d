"""Follows the objects of the mesh in a cluster: which kinds it has, their objects, the mesh config,
the Secrets and ConfigMaps that they name.

Every replica follows everything; who leads writes it to MODEL.
"""

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import msgspec
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from meshbus.api.kinds import KindInfo, all_kinds
from meshbus.api.selectors import matches_selector
from meshbus.compile.credential_names import SECRETS
from meshbus.kube.client import KubeClient, object_path
from meshbus.kube.platform import NAMESPACES, SERVICES
from meshbus.kube.reflector import Name, Reflector, Source
from meshbus.model.keys import Key
from meshbus.model.revisions import DEFAULT_REVISION, REVISION_LABEL, mesh_row_name
from meshbus.model.rows import ConfigObject
from meshbus.runtime.kubernetes import Kubernetes
from meshbus.schema.crds import followed_kinds
from meshbus_config.kubernetes.held_objects import HeldObjects, Inbox
from meshbus_config.kubernetes.named_credentials import NamedCredentials
from meshbus_config.kubernetes.objects import (
    CredentialName,
    HeldCredential,
    Judged,
    JudgedMesh,
    read_authorities,
    read_mesh_config,
    read_object,
    read_secret,
)
from meshbus_config.kubernetes.revisions import (
    WEBHOOK_CONFIGURATIONS,
    Revisions,
    read_webhook_labels,
)

PLATFORM_GROUP = "networking.k8s.io"
"""Ingress and IngressClass: kinds of Kubernetes itself that are config of the mesh."""
_DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
MESH_NETWORKS = "meshnetworks"
"""Kind of the row that key `meshNetworks` of the ConfigMap becomes."""
log = structlog.get_logger("kubernetes")
MAX_CREDENTIALS = 2000
"""Names of Secrets and ConfigMaps that are followed at once."""


class _DefinitionVersion(msgspec.Struct):
    name: str
    served: bool = False


class _DefinitionNames(msgspec.Struct):
    plural: str


class _DefinitionSpec(msgspec.Struct):
    group: str
    names: _DefinitionNames
    versions: list[_DefinitionVersion]


class _Definition(msgspec.Struct):
    spec: _DefinitionSpec


_definitions = msgspec.json.Decoder(_Definition)


class _To(NamedTuple):
    """A sink of functions."""

    put: Callable[[Name, Any], None]
    delete: Callable[[Name], None]
    malformed: Callable[[Name, str], None]


class _Kind:
    """One kind that the cluster has, being followed."""

    def __init__(self, info: KindInfo, version: str, reflectors: list[Reflector[Judged]]) -> None:
        self.info = info
        self.version = version
        self.reflectors = reflectors
        self.task: asyncio.Task[None] | None = None


class Following:
    """What a cluster has of the mesh."""

    def __init__(
        self,
        kubernetes: Kubernetes,
        cluster: str,
        changed: Callable[[], None],
        metrics: CollectorRegistry,
    ) -> None:
        self._kubernetes = kubernetes
        self._client: KubeClient = kubernetes.client
        self._cluster = cluster
        self._changed = changed
        self._infos = {f"{info.plural}.{info.group}": info for info in followed_kinds()}
        self._platform = [info for info in all_kinds() if info.group == PLATFORM_GROUP]
        self._by_table = {info.table: info for info in (*self._infos.values(), *self._platform)}
        self._kinds: dict[str, _Kind] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._named_credentials = NamedCredentials()
        self._credential_tasks: dict[CredentialName, list[asyncio.Task[None]]] = {}
        self._labels: dict[str, dict[str, str]] = {}
        self._annotations: dict[str, dict[str, str]] = {}
        self._selectors: list[dict[str, Any]] = []
        self.synced = False
        """Everything was read once."""
        self.objects = HeldObjects()
        """Objects of kinds of the mesh, whoever's they are."""
        self.credentials: dict[Key, HeldCredential] = {}
        self.services: dict[str, ConfigObject] = {}
        """Services beside the control plane, by name: one of them may lead to its gateways."""
        self.meshes: dict[str, JudgedMesh] = {}
        """The mesh config of each revision that has one. The last good one, while the present is
        bad."""
        self.mesh_problems: dict[str, str] = {}
        """What is wrong with the present one."""
        self.meshes_read: set[str] = set()
        """Revisions of which we know whether they have one: nothing is withdrawn before."""
        self._mesh_tasks: dict[str, asyncio.Task[None]] = {}
        self.revisions = Revisions(kubernetes.revision, self._revisions_moved)
        """The control planes of this model."""
        self.mesh_warnings: list[str] = []
        """What of our mesh config has no effect."""
        self.networks_problem = ""
        """Why its networks may not have an effect: those before stand."""
        self.malformed: dict[Key, str] = {}
        """Objects that cannot be read, and why."""
        self._inboxes: list[Inbox] = []
        self.labels_moved = False
        """Labels of namespaces have changed; for who sets it back."""
        self._events = Counter(
            "meshbus_kube_events_total",
            "Objects that the API server sent.",
            ["kind"],
            registry=metrics,
        )
        for name, about, count in (
            ("objects", "Objects that are followed.", lambda: len(self.objects)),
            ("malformed", "Objects that cannot be read.", lambda: len(self.malformed)),
            (
                "credentials",
                "Secrets and ConfigMaps with authorities that are followed.",
                lambda: len(self.credentials),
            ),
            ("invalid", "Objects that may not have an effect.", self._invalid),
        ):
            gauge = Gauge(f"meshbus_kube_{name}", about, registry=metrics)
            gauge.set_function(lambda count=count: float(count()))  # type: ignore[misc]

    def _invalid(self) -> int:
        return sum(1 for judged in self.objects.values() if judged.problems)

    # ------------------------------------------------------------------ running

    async def run(self) -> None:
        """Until cancelled."""
        definitions = Reflector(
            self._client,
            Source(_DEFINITIONS),
            _definitions.decode,
            _To(self._defined, self._undefined, lambda name, error: None),
        )
        balancers = Reflector(
            self._client,
            Source(SERVICES.collection(self._kubernetes.namespace)),
            SERVICES.read,
            _To(self._take_service, self._drop_service, lambda name, error: None),
        )
        own = self._kubernetes.revision
        mesh = self._mesh_reflector(own)
        revisions = Reflector(
            self._client, WEBHOOK_CONFIGURATIONS, read_webhook_labels, self.revisions
        )
        async with asyncio.TaskGroup() as group:
            self._tasks = group
            self._mesh_tasks[own] = group.create_task(self._follow_mesh(own, mesh))
            first: list[Reflector[Any]] = [mesh, balancers, revisions]
            group.create_task(balancers.run())
            group.create_task(revisions.run())
            if not self._kubernetes.namespaces:
                namespaces = Reflector(
                    self._client,
                    Source(NAMESPACES.collection()),
                    NAMESPACES.read,
                    _To(self._take_namespace, self._drop_namespace, lambda name, error: None),
                )
                group.create_task(namespaces.run())
                first.append(namespaces)
            for reflector in first:
                await reflector.wait_synced()
            for info in self._platform:
                self._start(f"{info.plural}.{info.group}", info, info.version)
            group.create_task(definitions.run())
            await definitions.wait_synced()
            for kind in list(self._kinds.values()):
                for one in kind.reflectors:
                    await one.wait_synced()
            self.synced = True
            self._changed()

    def why_not_ready(self) -> str | None:
        """What is missing until it may be relied on; None: nothing."""
        if self.synced:
            return None
        waiting = [
            one.source.path
            for kind in self._kinds.values()
            for one in kind.reflectors
            if not one.synced
        ]
        return f"not read yet: {', '.join(waiting[:3]) or 'which kinds the cluster has'}"

    def state(self) -> dict[str, Any]:
        """For `/debug`."""
        return {
            "synced": self.synced,
            "kinds": {
                name: {
                    "version": kind.version,
                    "problem": "; ".join(r.problem for r in kind.reflectors if r.problem),
                    "lists": [dict(r.counts.lists) for r in kind.reflectors],
                }
                for name, kind in sorted(self._kinds.items())
            },
            "objects": len(self.objects),
            "credentials": ["/".join(one) for one in sorted(self._credential_tasks)],
            "malformed": {str(key): error for key, error in self.malformed.items()},
            "mesh": self.mesh_problems.get(self._kubernetes.revision, ""),
            "revisions": sorted(self.revisions.known),
            "tags": dict(self.revisions.tags),
            "mesh_warnings": self.mesh_warnings,
            "networks": self.networks_problem,
        }

    def namespaces(self) -> tuple[str, ...]:
        """Names of the namespaces that we are for: those that we are limited to, or that
        `discoverySelectors` choose."""
        limited = self._kubernetes.namespaces
        return limited or tuple(name for name in self._labels if self.selected(name))

    def inbox(self) -> Inbox:
        """A new one: from now on it gets the keys of what changes."""
        self._inboxes.append(Inbox())
        return self._inboxes[-1]

    def touch(self, key: Key) -> None:
        """An object has changed, or what is to be thought of it."""
        for inbox in self._inboxes:
            inbox.put(key)
        if self.synced:
            self._changed()

    def kind_of(self, key: Key) -> KindInfo | None:
        """The kind of an object's row."""
        return self._by_table.get(key.kind)

    def version_of(self, key: Key) -> str:
        """The version in which the cluster serves it to us."""
        info = self._by_table.get(key.kind)
        held = self._kinds.get(f"{info.plural}.{info.group}") if info is not None else None
        return held.version if held is not None else ""

    @property
    def mesh(self) -> JudgedMesh | None:
        """The mesh config of our revision; None: there is none."""
        return self.meshes.get(self._kubernetes.revision)

    def mesh_key(self, revision: str) -> Key:
        """The row of a revision's mesh config."""
        return Key(self._cluster, "mesh", "config", "", mesh_row_name(revision))

    def mesh_keys(self) -> dict[Key, str]:
        """Rows of mesh configs, and whose they are."""
        return {self.mesh_key(revision): revision for revision in self.revisions.known}

    # ------------------------------------------------------------------ kinds

    def _defined(self, name: Name, definition: _Definition) -> None:
        """The cluster has a kind, or has it in other versions."""
        info = self._infos.get(name[1])
        if info is None:
            return
        served = {version.name for version in definition.spec.versions if version.served}
        version = next((one for one in info.versions if one in served), "")
        held = self._kinds.get(name[1])
        if held is not None and held.version == version:
            return
        if held is not None:
            self._stop(held)
        if not version:
            self._forget(info)
            self._kinds.pop(name[1], None)
            return
        self._start(name[1], info, version)

    def _undefined(self, name: Name) -> None:
        """The definition is deleted, and with it all objects of the kind."""
        kind = self._kinds.pop(name[1], None)
        if kind is not None:
            self._stop(kind)
            self._forget(kind.info)

    def _start(self, name: str, info: KindInfo, version: str) -> None:
        assert self._tasks is not None
        sink = _To(
            lambda name, judged: self._take(info, name, judged),
            lambda name: self._drop(info, name),
            lambda name, error: self._bad(info, name, error),
        )
        places = self._kubernetes.namespaces if info.namespaced else ()
        kind = _Kind(
            info,
            version,
            [
                Reflector(
                    self._client,
                    Source(object_path(info.group, version, info.plural, place)),
                    lambda body: read_object(info, body),
                    sink,
                )
                for place in places or ("",)
            ],
        )
        kind.task = self._tasks.create_task(_together(kind.reflectors))
        self._kinds[name] = kind

    def _stop(self, kind: _Kind) -> None:
        if kind.task is not None:
            kind.task.cancel()

    def _forget(self, info: KindInfo) -> None:
        table = f"cfg.{info.table}"
        malformed = [key for key in self.malformed if key.table == table]
        for key in [*self.objects.of_table(table), *malformed]:
            self.objects.remove(key)
            self._named_credentials.put(key, None)
            self.malformed.pop(key, None)
            self.touch(key)

    # ------------------------------------------------------------------ objects

    def _key(self, table: str, name: Name) -> Key:
        return Key(self._cluster, "cfg", table, *name)

    def _take(self, info: KindInfo, name: Name, judged: Judged) -> None:
        self._events.labels(info.plural).inc()
        key = self._key(info.table, name)
        self.objects.put(key, judged)
        self.malformed.pop(key, None)
        self._named_credentials.put(key, self.revisions.in_model(judged.row))
        self.touch(key)

    def _drop(self, info: KindInfo, name: Name) -> None:
        self._events.labels(info.plural).inc()
        key = self._key(info.table, name)
        self.malformed.pop(key, None)
        if self.objects.remove(key):
            self._named_credentials.put(key, None)
            self.touch(key)

    def _bad(self, info: KindInfo, name: Name, error: str) -> None:
        key = self._key(info.table, name)
        self.malformed[key] = error
        self.touch(key)

    # ------------------------------------------------------------------ mesh config

    def _mesh_reflector(self, revision: str) -> Reflector[JudgedMesh]:
        """ConfigMap `istio`, or `istio-REVISION`."""
        name = "istio" if revision == DEFAULT_REVISION else f"istio-{revision}"
        source = Source(
            object_path("", "v1", "configmaps", self._kubernetes.namespace),
            fields=f"metadata.name={name}",
        )
        sink = _To(
            lambda name, mesh: self._take_mesh(revision, mesh),
            lambda name: self._drop_mesh(revision),
            lambda name, error: self._bad_mesh(revision, error),
        )
        return Reflector(self._client, source, read_mesh_config, sink)

    async def _follow_mesh(self, revision: str, reflector: Reflector[JudgedMesh]) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(reflector.run())
            await reflector.wait_synced()
            self.meshes_read.add(revision)
            self.touch(self.mesh_key(revision))

    def _take_mesh(self, revision: str, mesh: JudgedMesh) -> None:
        if mesh.problems:
            first = mesh.problems[0]
            self._bad_mesh(revision, f"{first.path}: {first.message}")
        else:
            self.meshes[revision] = mesh
            self.mesh_problems.pop(revision, None)
            self._mesh_moved(revision)
        if revision == self._kubernetes.revision:
            self._tell_lost(mesh)
            self._take_networks(mesh.networks)

    def _tell_lost(self, mesh: JudgedMesh) -> None:
        lost = [f"{one.path}: {one.message}" for one in mesh.warnings]
        if lost and lost != self.mesh_warnings:
            log.warning("the mesh config is carried out in part", lost=lost)
        self.mesh_warnings = lost

    def _take_networks(self, networks: Judged | None) -> None:
        key = self._key(MESH_NETWORKS, ("", "mesh"))
        if networks is None:
            self.objects.remove(key)
            self.networks_problem = ""
        else:
            self.objects.put(key, networks)
            first = networks.problems[0] if networks.problems else None
            self.networks_problem = f"{first.path}: {first.message}" if first else ""
        self.touch(key)

    def _drop_mesh(self, revision: str) -> None:
        self.meshes.pop(revision, None)
        self.mesh_problems.pop(revision, None)
        self._mesh_moved(revision)
        if revision == self._kubernetes.revision:
            self.mesh_warnings = []
            self._take_networks(None)

    def _bad_mesh(self, revision: str, error: str) -> None:
        self.mesh_problems[revision] = error
        self.touch(self.mesh_key(revision))

    def _mesh_moved(self, revision: str) -> None:
        if revision == self._kubernetes.revision:
            self._select(self.mesh.spec.get("discoverySelectors") if self.mesh else None)
        self.touch(self.mesh_key(revision))

    # ------------------------------------------------------------------ revisions

    def _revisions_moved(self) -> None:
        """Other control planes have come or gone, or a tag names another one."""
        known = self.revisions.known
        # Limited to namespaces we may read our own mesh config alone.
        others = frozenset[str]() if self._kubernetes.namespaces else known
        assert self._tasks is not None
        for revision in self._mesh_tasks.keys() - others - {self._kubernetes.revision}:
            self._mesh_tasks.pop(revision).cancel()
            self.meshes_read.discard(revision)
            self._drop_mesh(revision)
        for revision in sorted(others - self._mesh_tasks.keys()):
            self._mesh_tasks[revision] = self._tasks.create_task(
                self._follow_mesh(revision, self._mesh_reflector(revision))
            )
        for key, judged in self.objects.items():
            if judged.row.labels.get(REVISION_LABEL):
                self._named_credentials.put(key, self.revisions.in_model(judged.row))
                self.touch(key)
        if self.synced:
            self._changed()

    # ------------------------------------------------------------------ namespaces

    def selected(self, namespace: str) -> bool:
        """Whether `discoverySelectors` of the mesh config choose a namespace."""
        if not self._selectors or not namespace or self._kubernetes.namespaces:
            return True
        labels = self._labels.get(namespace)
        return labels is not None and any(matches_selector(s, labels) for s in self._selectors)

    def _select(self, selectors: Any) -> None:
        found = [dict(one) for one in selectors or () if isinstance(one, dict)]
        if found != self._selectors:
            self._selectors = found
            for key in self.objects:
                self.touch(key)

    def annotations_of(self, namespace: str) -> dict[str, str]:
        """Annotations of a namespace that concern the mesh; none if it is not seen."""
        return self._annotations.get(namespace, {})

    def labels_of(self, namespace: str) -> dict[str, str]:
        """Labels of a namespace; none if it is not seen."""
        return self._labels.get(namespace, {})

    def _take_namespace(self, name: Name, row: ConfigObject) -> None:
        before = self._labels.get(name[1])
        self._labels[name[1]] = row.labels
        self._annotations[name[1]] = row.annotations
        if before != row.labels:
            self._namespace_moved(name[1])
        if before is None and self.synced:
            self._changed()

    def _drop_namespace(self, name: Name) -> None:
        self._annotations.pop(name[1], None)
        if self._labels.pop(name[1], None) is not None:
            self._namespace_moved(name[1])

    def _namespace_moved(self, namespace: str) -> None:
        self.labels_moved = True
        if self._selectors:
            for key in self.objects.of_namespace(namespace):
                self.touch(key)
        if self.synced:
            self._changed()

    # ------------------------------------------------------------------ services

    def _take_service(self, name: Name, row: ConfigObject) -> None:
        self.services[name[1]] = row
        if self.synced:
            self._changed()

    def _drop_service(self, name: Name) -> None:
        self.services.pop(name[1], None)
        if self.synced:
            self._changed()

    # ------------------------------------------------------------------ credentials

    def follow_credentials(self) -> None:
        """Follow the Secrets and ConfigMaps that objects name, each by its name; forget the
        others."""
        wanted = self._named_credentials.take_moved() if self._tasks is not None else None
        if self._tasks is None or wanted is None:
            return
        chosen = set(wanted[:MAX_CREDENTIALS])
        for gone in self._credential_tasks.keys() - chosen:
            for task in self._credential_tasks.pop(gone):
                task.cancel()
            for key in [k for k in self.credentials if (k.kind, k.name) == gone]:
                del self.credentials[key]
                self.touch(key)
        for wish in sorted(chosen - self._credential_tasks.keys()):
            sink = _To(
                partial(self._take_credential, wish.table),
                partial(self._drop_credential, wish.table),
                lambda name, error: None,
            )
            self._credential_tasks[wish] = [
                self._tasks.create_task(
                    _together(
                        [
                            Reflector(
                                self._client,
                                Source(
                                    object_path("", "v1", wish.table, place),
                                    fields=f"metadata.name={wish.name}",
                                ),
                                read_secret if wish.table == SECRETS else read_authorities,
                                sink,
                            )
                        ]
                    )
                )
                for place in self._kubernetes.namespaces or ("",)
            ]

    def _take_credential(self, table: str, name: Name, credential: HeldCredential) -> None:
        key = self._key(table, name)
        self.credentials[key] = credential
        self.touch(key)

    def _drop_credential(self, table: str, name: Name) -> None:
        key = self._key(table, name)
        if self.credentials.pop(key, None) is not None:
            self.touch(key)


async def _together(reflectors: Iterable[Reflector[Any]]) -> None:
    """Run them until cancelled."""
    async with asyncio.TaskGroup() as group:
        for reflector in reflectors:
            group.create_task(reflector.run())
