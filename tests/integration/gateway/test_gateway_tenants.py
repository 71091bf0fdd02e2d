"""A tenant that changes without a pause: proxies of another get their own changes alone."""

import asyncio

import pytest
import pytest_asyncio
from gateway_mesh import CLUSTER, Mesh, free_port, mesh_on
from gateway_processes import Sidecar, gateway_process
from nats_process import NatsServer

from meshbus.compile.resources import CDS, LDS
from meshbus.model.keys import Key
from meshbus.model.rows import Row, Service, ServicePort

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest_asyncio.fixture
async def mesh(bus_for, tmp_path):
    async with mesh_on(bus_for, tmp_path) as running:
        running.transport = "grpc"
        await running.start()
        yield running


def service(namespace: str, name: str, protocol: str = "HTTP") -> dict[Key, Row]:
    """One that its own namespace sees alone."""
    host = f"{name}.{namespace}.svc.cluster.local"
    row = Service(
        host=host,
        namespace=namespace,
        name=name,
        origin="kubernetes",
        ports=[ServicePort("http", 80, protocol)],
        source=f"cfg.services/{namespace}/{name}",
        export_to=["."],
    )
    return {Key(CLUSTER, "reg", "services", namespace, host): row}


async def test_a_storm_of_one_tenant_is_nothing_to_another(
    mesh: Mesh, nats_server: NatsServer, tmp_path
) -> None:
    port = free_port("127.0.0.1")
    names = [f"f{index}" for index in range(300)]
    await mesh.write(*(service("busy", name) for name in names), service("calm", "first"))
    async with gateway_process(
        mesh, tmp_path / "g", nats_server.url, nats_server.seeds, plaintext=f"127.0.0.1:{port}"
    ) as gateway:
        await mesh.until(gateway.ready, "it is ready", 60)
        proxies = [
            Sidecar([port], f"{namespace}-{index}", {"NAMESPACE": namespace})
            for namespace in ("busy", "calm")
            for index in range(3)
        ]
        busy, calm = proxies[:3], proxies[3:]
        for proxy in proxies:
            proxy.start()
        ended = asyncio.Event()
        steps = 0

        async def storm() -> None:
            nonlocal steps
            while not ended.is_set():
                steps += 1
                protocol = "HTTP2" if steps % 2 else "HTTP"
                await mesh.write(*(service("busy", name, protocol) for name in names))

        task = asyncio.create_task(storm())
        try:
            await mesh.until(
                lambda: all(p.held[CDS] and p.held[LDS] for p in proxies), "all are served", 60
            )
            before = {kind: [p.received[kind] for p in calm] for kind in (CDS, LDS)}
            for number in range(5):
                at = steps
                await mesh.write(service("calm", f"new{number}"))
                wanted = f"outbound|80||new{number}.calm.svc.cluster.local"
                await mesh.until(
                    lambda wanted=wanted: all(wanted in p.held[CDS] for p in calm), wanted, 60
                )
                await mesh.until(lambda at=at: steps > at, "the storm goes on", 60)
            got = {
                kind: [p.received[kind] - b for p, b in zip(calm, before[kind], strict=True)]
                for kind in before
            }
            assert got[CDS] == [5, 5, 5], "each its own changes, and none of the storm"
            assert got[LDS] == [0, 0, 0]
            assert all(p.streams == 1 for p in proxies)
            assert all(p.received[CDS] > len(names) for p in busy), "it was one"
        finally:
            ended.set()
            await task
            await asyncio.gather(*(p.stop() for p in proxies))
