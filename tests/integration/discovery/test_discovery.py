"""discovery on a real bus: objects and reports in, rows out; nothing lost when things die."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from dns_client import Zone
from meshbus_discovery.service import DiscoveryService, DiscoverySettings
from nats_process import BusFor, NatsServer

from meshbus.bus.connection import NatsBus
from meshbus.bus.interface import STATUS, BusError
from meshbus.bus.mirror import WorldMirror
from meshbus.bus.writer import ModelWriter
from meshbus.compile.offline import object_of_document
from meshbus.model.keys import Key
from meshbus.model.rows import EndpointShard, ResolvedName, Row
from meshbus.model.status import InstanceReport, status_subject
from meshbus.runtime.process import make_context
from meshbus.runtime.settings import ProcessSettings

pytestmark = pytest.mark.real
C = "Kubernetes"
HOST = "reviews.default.svc.cluster.local"
SHARD = Key(C, "reg", "endpoints", "default", HOST, "selected")
INSTANCE = Key(C, "reg", "workloads", "default", "reviews-v1-0")


def _object(kind: str, plural: str, name: str, spec: dict[str, object]) -> tuple[Key, Row]:
    document = {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, "spec": spec}
    return Key(C, "cfg", plural, "default", name), object_of_document(document)


SERVICE = _object(
    "Service",
    "services",
    "reviews",
    {"selector": {"app": "reviews"}, "ports": [{"name": "http", "port": 9080}]},
)
WORKLOAD = _object("Workload", "workloads", "reviews-v1", {"command": ["x"], "replicas": 1})


def _report(ready: bool = True, gone: bool = False) -> InstanceReport:
    return InstanceReport(
        namespace="default",
        name="reviews-v1-0",
        workload="reviews-v1",
        service_account="reviews",
        labels={"app": "reviews"},
        addresses=["127.9.0.1"],
        app_address="127.9.0.2",
        ports=[("http", 9080)],
        sidecar=True,
        gateway=False,
        capture="proxy",
        http_proxy_port=1,
        http_proxy_address="127.0.0.1",
        dual_stack=False,
        locality="",
        ready=ready,
        gone=gone,
    )


async def _send(bus: NatsBus, report: InstanceReport) -> None:
    subject = status_subject(C, "local", "node", "i-default~reviews-v1-0")
    await bus.publish(STATUS, subject, msgspec.json.encode(report))


@asynccontextmanager
async def running(
    bus: NatsBus, state: Path, files: str = "", resolver: str = ""
) -> AsyncIterator[DiscoveryService]:
    settings = DiscoverySettings(files, dns_upstream=resolver)
    context = make_context(DiscoveryService, settings, ProcessSettings(state=str(state)), bus)
    service = DiscoveryService(context)
    task = asyncio.create_task(service.run())
    try:
        yield service
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Watch:
    """A mirror to wait on."""

    def __init__(self, bus: NatsBus) -> None:
        self.mirror = WorldMirror()
        self.changed = asyncio.Event()
        self.shards: list[int] = []
        self.mirror.subscribe(self._note)
        self.task = asyncio.create_task(self.mirror.follow(bus).run())

    def _note(self, world: object, touched: object) -> None:
        shard = self.mirror.world.get(SHARD)
        if isinstance(shard, EndpointShard):
            self.shards.append(sum(e.ready for e in shard.endpoints))
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async def wait() -> None:
            while not condition():
                self.changed.clear()
                await self.changed.wait()

        await asyncio.wait_for(wait(), 20)

    def ready(self) -> int:
        shard = self.mirror.world.get(SHARD)
        return sum(e.ready for e in shard.endpoints) if isinstance(shard, EndpointShard) else -1


@asynccontextmanager
async def config_writer(bus: NatsBus) -> AsyncIterator[ModelWriter]:
    writer = ModelWriter(bus, cluster=C, service="config", pod="config-0")
    task = asyncio.create_task(writer.run())
    await asyncio.wait_for(writer.wait_leading(), 10)
    yield writer
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _weight(watch: Watch) -> int:
    shard = watch.mirror.world.get(SHARD)
    return shard.endpoints[0].weight if isinstance(shard, EndpointShard) and shard.endpoints else -1


async def test_reports_become_endpoints(bus_for: BusFor, tmp_path: Path) -> None:
    local = await bus_for("local")
    watch = Watch(await bus_for("config"))
    async with (
        config_writer(await bus_for("config")) as config,
        running(await bus_for("discovery"), tmp_path),
    ):
        await config.commit([SERVICE, WORKLOAD])
        await watch.until(lambda: watch.ready() == 0)
        await _send(local, _report())
        await watch.until(lambda: watch.ready() == 1)
        await config.commit(
            [_object("Workload", "workloads", "reviews-v1", {"command": ["x"], "weight": 7})]
        )
        await watch.until(lambda: _weight(watch) == 7)
        await _send(local, _report(ready=False))
        await watch.until(lambda: watch.ready() == 0)
        assert watch.mirror.world.get(INSTANCE) is not None
        await _send(local, _report(gone=True))
        await watch.until(lambda: watch.mirror.world.get(INSTANCE) is None)


async def test_endpoints_survive_the_loss_of_the_bus_and_of_discovery(
    nats_server: NatsServer, bus_for: BusFor, tmp_path: Path
) -> None:
    local = await bus_for("local")
    watch = Watch(await bus_for("config"))
    discovery = await bus_for("discovery")
    async with config_writer(await bus_for("config")) as config:
        async with running(discovery, tmp_path):
            await config.commit([SERVICE, WORKLOAD])
            await _send(local, _report())
            await watch.until(lambda: watch.ready() == 1)
            watch.shards.clear()
            nats_server.kill()  # STATUS, in memory, is lost with it
            nats_server.start()

            async def write() -> None:
                while True:
                    try:
                        await config.commit([_object("Service", "services", "a", {"ports": []})])
                        return
                    except BusError:
                        await asyncio.sleep(0.05)

            await asyncio.wait_for(write(), 20)
            other = Key(C, "reg", "services", "default", "a.default.svc.cluster.local")
            await watch.until(lambda: watch.mirror.world.get(other) is not None)
        nats_server.kill()
        nats_server.start()
        async with running(discovery, tmp_path) as again:
            while again._why_not_ready() is not None or not again._reconciled:
                await asyncio.sleep(0.02)
            assert watch.ready() == 1
    assert set(watch.shards) <= {1}, "the endpoint was gone for a while"


async def test_files_are_a_source_and_a_lost_one_empties_nothing(
    bus_for: BusFor, tmp_path: Path
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    manifest = folder / "a.yaml"
    manifest.write_text(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n"
    )
    key = Key(C, "reg", "services", "default", "a.default.svc.cluster.local")
    watch = Watch(await bus_for("config"))
    async with running(await bus_for("discovery"), tmp_path, str(folder)) as service:
        await watch.until(lambda: watch.mirror.world.get(key) is not None)
        assert service._files is not None
        manifest.write_text("{broken: [")
        service._files.scan()
        assert str(manifest) in service._files.problems
        folder.rename(tmp_path / "gone")
        service._files.scan()
        assert watch.mirror.world.get(key) is not None
        folder.mkdir()
        manifest.write_text(
            "apiVersion: v1\nkind: Service\nmetadata: {name: b}\nspec: {ports: [{port: 80}]}\n"
        )
        await watch.until(lambda: watch.mirror.world.get(key) is None)


async def test_names_of_other_networks_gateways_are_looked_up(
    bus_for: BusFor, tmp_path: Path
) -> None:
    zone = Zone({"gw.example.com": ["192.0.2.9", "2001:db8::9"], "lb.example.com": ["192.0.2.1"]})
    await zone.start()
    key = Key(C, "cfg", "meshnetworks", "", "mesh")

    def networks(*gateways: str) -> Row:
        held = {"east": {"gateways": [{"address": a, "port": 443} for a in gateways]}}
        document = {
            "apiVersion": "mesh.istio.io/v1alpha1",
            "kind": "MeshNetworks",
            "metadata": {"name": "mesh"},
            "spec": {"networks": held},
        }
        return object_of_document(document)

    config = await bus_for("config")
    await config.ensure_streams()
    watch = Watch(config)

    def found(name: str) -> list[str] | None:
        row = watch.mirror.world.get(Key(C, "reg", "names", "", name))
        return list(row.addresses) if isinstance(row, ResolvedName) else None

    resolver = "{}:{}".format(*zone.address)
    async with config_writer(config) as writer:
        async with running(await bus_for("discovery"), tmp_path / "a", resolver=resolver):
            await writer.commit([(key, networks("gw.example.com", "nowhere.example.com"))])
            await watch.until(lambda: found("gw.example.com") == ["192.0.2.9", "2001:db8::9"])
            await watch.until(lambda: found("nowhere.example.com") == [])
            # Names that no question can hold are nobody's fault but their own.
            await writer.commit([(key, networks(f"{'a' * 64}.com", "a..b", "lb.example.com"))])
            await watch.until(lambda: found("lb.example.com") == ["192.0.2.1"])
            await watch.until(lambda: found("gw.example.com") is None)
        zone.close()
        # Nobody answers any more: what was known stands.
        async with running(await bus_for("discovery"), tmp_path / "b", resolver=resolver):
            await writer.commit([SERVICE])
            service = Key(C, "reg", "services", "default", HOST)
            await watch.until(lambda: watch.mirror.world.get(service) is not None)
            assert found("lb.example.com") == ["192.0.2.1"]
    watch.task.cancel()
    await asyncio.gather(watch.task, return_exceptions=True)
