"""discovery: from what people and platforms say to what can be called."""

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from prometheus_client import Counter, Gauge, Histogram

from meshbus.bus.backoff import Backoff
from meshbus.bus.interface import STATUS, BusError
from meshbus.bus.mirror import WorldMirror
from meshbus.bus.writer import BATCH_ROWS, Write
from meshbus.compile.engine import Engine
from meshbus.compile.networks import networks
from meshbus.compile.registry import Registry, instance_of_report
from meshbus.compile.registry.derive import SOURCES
from meshbus.model.keys import Key, escape_token
from meshbus.model.revisions import view_of
from meshbus.model.rows import ConfigObject, ResolvedName, Row, WorkloadInstance
from meshbus.model.status import InstanceReport, Progress, status_subject
from meshbus.model.world import Query, World
from meshbus.runtime.events import publish_event
from meshbus.runtime.service import Context
from meshbus_discovery.dns_names import Names
from meshbus_discovery.dns_server import MeshDns, addresses
from meshbus_discovery.dns_upstream import RESOLVER_FILE, Upstream, resolvers_of
from meshbus_discovery.files import FilesAdapter
from meshbus_discovery.gateway_names import GatewayNames
from meshbus_discovery.kubernetes import PLATFORM_TABLES, KubernetesAdapter
from meshbus_discovery.reports import ReportBoard

TABLES = ("reg.services", "reg.endpoints", "reg.workloads", "reg.namespaces", "reg.names")
PROGRESS_REPEAT_S = 5.0
_EVENTS_WAITING = 1000


class DiscoverySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of discovery."""

    files: Annotated[
        str, msgspec.Meta(description="directory of manifests that is watched; empty: none")
    ] = ""
    dns: Annotated[
        str,
        msgspec.Meta(description="HOST:PORT, ... that mesh DNS listens on; empty: none"),
    ] = ""
    dns_proxies: Annotated[
        str,
        msgspec.Meta(description="the same for Envoys and others that reach no virtual addresses"),
    ] = ""
    dns_upstream: Annotated[
        str,
        msgspec.Meta(
            description="HOST:PORT, ... of resolvers for other names; empty: those of the machine"
        ),
    ] = ""
    ip_families: Annotated[
        Literal["IPv4,IPv6", "IPv6,IPv4", "IPv4", "IPv6"],
        msgspec.Meta(
            description="families of the mesh, the preferred one first: services and hosts that "
            "nobody gave an address get one of these"
        ),
    ] = "IPv4,IPv6"


def kubernetes_adapter(
    context: Context[DiscoverySettings], changed: Callable[[], None]
) -> KubernetesAdapter | None:
    """The adapter of the cluster that this process runs for."""
    if context.kubernetes is None:
        return None
    return KubernetesAdapter(
        context.kubernetes.client,
        context.cluster,
        changed,
        context.metrics,
        context.kubernetes.namespaces,
    )


def _discovery_selectors(world: World) -> list[dict[str, Any]]:
    """`discoverySelectors` of the mesh config in force."""
    rows = [entry.row for entry in world.all("mesh.config")]
    found = rows[0].spec.get("discoverySelectors") if rows else None
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


class DiscoveryService:
    """Derives `reg.*` rows. All replicas derive, the leader writes."""

    name: ClassVar[str] = "discovery"
    settings_type: ClassVar[type[msgspec.Struct]] = DiscoverySettings

    def __init__(self, context: Context[DiscoverySettings]) -> None:
        self._context = context
        self._log = context.log
        self._bus = context.bus
        everything = view_of(context.revision, objects=False)
        self._mirror = WorldMirror(view=everything)
        self._writer = context.model_writer()
        families = tuple(context.settings.ip_families.split(","))
        self._registry = Registry(context.cluster, families=families)
        self._engine = Engine(World())
        """Over the model: what proxies need to have looked up."""
        self._meanings = Names(World(), everything)
        self._names: GatewayNames | None = None
        self._wake = asyncio.Event()
        self._board = ReportBoard(self._wake.set)
        self._files = (
            FilesAdapter(Path(context.settings.files), context.cluster, self._wake.set)
            if context.settings.files
            else None
        )
        self._from_files: dict[Key, ConfigObject] = {}
        self._kubernetes = kubernetes_adapter(context, self._wake.set)
        self._touched: set[Key] = set()
        self._events: asyncio.Queue[tuple[str, WorkloadInstance]] = asyncio.Queue(_EVENTS_WAITING)
        self._dns_addresses = (
            addresses(context.settings.dns, "dns"),
            addresses(context.settings.dns_proxies, "dns_proxies"),
        )
        self._dns_upstream = addresses(context.settings.dns_upstream, "dns_upstream")
        self._reconciled = False
        self._progress = Progress(self.name, 0, 0)
        metrics = context.metrics
        self._rows_gauge = Gauge(
            "meshbus_discovery_rows", "Rows that discovery derives.", ["table"], registry=metrics
        )
        for table in TABLES:
            self._rows_gauge.labels(table).set_function(
                partial(lambda name: float(len(self._mirror.world.all(name))), table)
            )
        self._written = Counter(
            "meshbus_discovery_rows_written",
            "Rows written because they differed.",
            registry=metrics,
        )
        self._derive_seconds = Histogram(
            "meshbus_discovery_step_seconds",
            "From a change of sources to its rows being written.",
            registry=metrics,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5),
        )
        context.admin.add_ready("model", self._why_not_ready)
        context.admin.add_debug("registry", self._debug)
        if self._kubernetes is not None:
            kubernetes = self._kubernetes
            context.admin.add_ready("kubernetes", lambda: kubernetes.why_not_ready)
            context.admin.add_debug("kubernetes", kubernetes.state)

    def _why_not_ready(self) -> str | None:
        if not self._mirror_follower_synced:
            return "the model has not been read yet"
        if self._writer.leading and not self._reconciled:
            return "rows are being brought up to date"
        return None

    _mirror_follower_synced = False

    def _debug(self) -> dict[str, Any]:
        world = self._mirror.world
        return {
            "sequence": world.sequence,
            "leading": self._writer.leading,
            "progress": {"read": self._progress.read, "wrote": self._progress.wrote},
            "rows": {table: len(world.all(table)) for table in TABLES},
            "files": self._files.problems if self._files else {},
            "poisoned": self._mirror.poisoned,
            "underivable": self._registry.problems,
        }

    async def run(self) -> None:
        """Until cancelled."""
        self._mirror.subscribe(self._model_changed)
        model = self._mirror.follow(self._bus, name="discovery")
        filters = [f"s.{escape_token(self._context.cluster)}.local.>"]
        reports = self._bus.follower(STATUS, filters, self._board, name="discovery-reports")
        async with asyncio.TaskGroup() as group:
            group.create_task(model.run())
            group.create_task(reports.run())
            group.create_task(self._writer.run())
            group.create_task(self._publish_events())
            group.create_task(self._repeat_progress())
            upstream = await self._resolvers()
            self._names = GatewayNames(upstream, self._context.clock.monotonic, self._wake.set)
            group.create_task(self._names.run())
            if any(self._dns_addresses):
                group.create_task(self._serve_names(upstream))
            if self._files is not None:
                await asyncio.to_thread(self._files.scan)
                group.create_task(self._files.run())
            if self._kubernetes is not None:
                group.create_task(self._kubernetes.run())
            await model.wait_synced()
            await reports.wait_synced()
            self._mirror_follower_synced = True
            self._log.info("model read", sequence=self._mirror.world.sequence)
            await self._follow_sources()

    async def _resolvers(self) -> Upstream:
        """Who knows names that are not the mesh's."""
        own = [host for group in self._dns_addresses for host, _ in group]
        upstream = self._dns_upstream
        if not upstream:
            with contextlib.suppress(OSError):
                upstream = resolvers_of(await asyncio.to_thread(RESOLVER_FILE.read_text), own)
        return Upstream(upstream, self._context.clock.monotonic)

    async def _serve_names(self, upstream: Upstream) -> None:
        """Mesh DNS: it listens before the model is read, and says so until then."""
        dns = MeshDns(
            *self._dns_addresses,
            upstream,
            lambda: self._meanings if self._mirror_follower_synced else None,
            self._context.metrics,
        )
        await dns.run()

    def _model_changed(self, world: World, touched: frozenset[Query]) -> None:
        self._engine.update(world, touched)
        self._meanings.update(world, touched)
        for query in touched:
            if query.by == "key" and query.table in SOURCES:
                self._touched.add(query.value)  # type: ignore[arg-type]
        self._wake.set()

    # ------------------------------------------------------------------ the loop

    async def _follow_sources(self) -> None:
        """Derive and write, each time that something has changed."""
        backoff = Backoff(0.05, 2.0)
        whole = True
        while True:
            try:
                await self._writer.wait_leading()
                self._wake.clear()
                if self._kubernetes is not None and not self._kubernetes.synced:
                    # Without the cluster's word nothing is known, and nothing is withdrawn.
                    await self._wake.wait()
                    continue
                started = self._context.clock.monotonic()
                read = self._mirror.world.sequence
                self._take_sources()
                if whole:
                    self._keep_unreported()
                    writes = self._everything()
                else:
                    writes = [*self._registry.changes(), *self._name_writes()]
                wrote = await self._write(writes)
                whole = False
                self._reconciled = True
                backoff.reset()
                if writes:
                    self._derive_seconds.observe(self._context.clock.monotonic() - started)
                await self._report_progress(read, max(wrote, read))
            except BusError as error:
                whole = True
                self._log.info("rows not written yet", error=str(error))
                await asyncio.sleep(backoff.next_s())
                continue
            await self._wake.wait()

    def _take_sources(self) -> None:
        world = self._mirror.world
        touched, self._touched = self._touched, set()
        if self._kubernetes is None:
            self._registry.select(_discovery_selectors(world))
        else:
            self._kubernetes.select(_discovery_selectors(world))
            self._registry.put(sorted(self._kubernetes.take().items()))
            touched = {key for key in touched if key.kind not in PLATFORM_TABLES}
        if self._files is not None and self._files.objects is not self._from_files:
            before, self._from_files = self._from_files, self._files.objects
            touched |= before.keys() | self._from_files.keys()
        self._registry.put(
            (key, row if (row := world.get(key)) is not None else self._from_files.get(key))
            for key in sorted(touched)
        )
        workloads = {(k.namespace, k.name) for k in touched if k.table == "cfg.workloads"}
        self._take_reports(self._board.take() + self._board.of_workloads(workloads))

    def _take_reports(self, reports: list[InstanceReport]) -> None:
        """Fresh reports, and those whose Workload has changed: an instance is made of both."""
        present, gone = [], []
        for report in reports:
            name = (report.namespace, report.workload, report.name)
            if report.gone:
                gone.append(name)
            else:
                present.append(self._instance(report))
        self._registry.report(present, gone)

    def _instance(self, report: InstanceReport) -> WorkloadInstance:
        workload = self._registry.workload(report.namespace, report.workload)
        instance: WorkloadInstance = instance_of_report(report, self._context.cluster, workload)
        return instance

    def _keep_unreported(self) -> None:
        """Instances that nobody reports, because STATUS was lost with the bus: they stay as long
        as their Workload wants so many."""
        kept = []
        for entry in self._mirror.world.all("reg.workloads"):
            row: WorkloadInstance = entry.row
            if row.origin != "workload":
                continue
            if (row.namespace, row.workload, row.name) in self._board.known:
                continue
            workload = self._registry.workload(row.namespace, row.workload)
            index = row.name.removeprefix(f"{row.workload}-")
            wanted = workload.spec.get("replicas", 1) if workload is not None else 0
            if index.isdigit() and int(index) < wanted:
                kept.append(row)
        self._registry.report(kept)

    def _everything(self) -> list[Write]:
        """All differences to what is in MODEL."""
        self._registry.changes()
        desired = {**self._registry.rows(), **self._name_rows()}
        held: dict[Key, Row] = {
            entry.key: entry.row for table in TABLES for entry in self._mirror.world.all(table)
        }
        writes: list[Write] = [
            (key, row) for key, row in sorted(desired.items()) if held.get(key) != row
        ]
        writes += [(key, None) for key in sorted(held) if key not in desired]
        return writes

    def _name_rows(self) -> dict[Key, Row]:
        """Names of gateways of other networks, as far as they are known."""
        assert self._names is not None
        held = {e.row.name: list(e.row.addresses) for e in self._mirror.world.all("reg.names")}
        self._names.want(self._engine.get(networks).names, held)
        return {
            Key(self._context.cluster, "reg", "names", "", name): ResolvedName(name, addresses)
            for name, addresses in self._names.addresses.items()
        }

    def _name_writes(self) -> list[Write]:
        """What of them differs from the model."""
        desired = self._name_rows()
        held = {entry.key: entry.row for entry in self._mirror.world.all("reg.names")}
        writes: list[Write] = [(key, r) for key, r in desired.items() if held.get(key) != r]
        return [*writes, *((key, None) for key in held if key not in desired)]

    async def _write(self, writes: list[Write]) -> int:
        """Write, and wait until the mirror has it: the next step compares with what is there."""
        wrote = 0
        for start in range(0, len(writes), BATCH_ROWS):
            batch = writes[start : start + BATCH_ROWS]
            former = {key: self._mirror.world.get(key) for key, _ in batch}
            wrote = await self._writer.commit(batch)
            self._written.inc(len(batch))
            await self._mirror.reached(wrote, 10)
            self._note_events(batch, former)
        return wrote

    # ------------------------------------------------------------------ what others learn

    async def _report_progress(self, read: int, wrote: int) -> None:
        progress = Progress(self.name, read, wrote)
        if progress == self._progress:
            return
        self._progress = progress
        await self._publish_progress()

    async def _publish_progress(self) -> None:
        subject = status_subject(self._context.cluster, self.name, self._context.pod, "progress")
        await self._bus.publish(STATUS, subject, msgspec.json.encode(self._progress))

    async def _repeat_progress(self) -> None:
        """STATUS is in memory: what a restart of the bus forgot is said again."""
        while True:
            await asyncio.sleep(PROGRESS_REPEAT_S)
            if self._writer.leading and self._progress.read:
                with contextlib.suppress(BusError):
                    await self._publish_progress()

    def _note_events(self, batch: list[Write], former: dict[Key, Any]) -> None:
        for key, row in batch:
            if key.table != "reg.workloads":
                continue
            verb = "registered" if former[key] is None else "gone" if row is None else ""
            instance = row if row is not None else former[key]
            if verb and isinstance(instance, WorkloadInstance):
                with contextlib.suppress(asyncio.QueueFull):
                    self._events.put_nowait((verb, instance))

    async def _publish_events(self) -> None:
        while True:
            verb, instance = await self._events.get()
            await publish_event(
                self._bus,
                self._context.cluster,
                "Workload",
                instance.namespace,
                instance.name,
                verb,
                {"workload": instance.workload, "addresses": list(instance.addresses)},
            )
