"""Load is shared: replicas that learn of each other on STATUS, streams that wait their turn."""

import contextlib

import pytest
import pytest_asyncio
from gateway_mesh import Mesh, endpoints, free_port, mesh_on, service
from gateway_processes import gateway_process, sidecars
from nats_process import NatsServer

from meshbus.compile.resources import CDS

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest_asyncio.fixture
async def mesh(carrier, bus_for, tmp_path):
    async with mesh_on(bus_for, tmp_path) as running:
        running.transport = carrier
        await running.start()
        await running.write(service("web", 80), endpoints("web", {"web-0": "10.1.0.1"}, 80))
        yield running


async def test_an_overloaded_replica_sheds_to_its_fair_share(
    mesh: Mesh, nats_server: NatsServer, tmp_path
) -> None:
    ports = [free_port("127.0.0.1") for _ in range(2)]
    async with contextlib.AsyncExitStack() as stack:
        replicas = []

        async def begin(index: int) -> None:
            started = gateway_process(
                mesh,
                tmp_path / f"g{index}",
                nats_server.url,
                nats_server.seeds,
                pod=f"gw-{index}",
                plaintext=f"127.0.0.1:{ports[index]}",
                # Whatever it does is too much for the first, nothing is for the second.
                shed_above=index * 100,
            )
            replicas.append(await stack.enter_async_context(started))
            await mesh.until(replicas[index].ready, "it is ready", 60)

        await begin(0)
        async with sidecars(40, *ports) as proxies:
            await mesh.until(lambda: all(p.held[CDS] for p in proxies), "all are served", 60)
            assert all(p.streams == 1 for p in proxies), "there is nobody who has room"
            await begin(1)

            async def connected(replica) -> int:
                for line in (await replica.get("/metrics")).text.splitlines():
                    if line.startswith("meshbus_xds_connected "):
                        return int(float(line.split()[1]))
                return 0

            async def shared() -> bool:
                counts = [await connected(replica) for replica in replicas]
                return sum(counts) == 40 and 19 <= counts[0] <= 22

            await mesh.until(shared, "the first has its fair share", 60)
            moved = [p for p in proxies if p.streams > 1]
            assert all("another replica has room" in p.ends[0] for p in moved)
            assert all(p.received[CDS] == len(p.held[CDS]) for p in moved), "nothing came twice"


async def test_a_replica_whose_memory_is_full_takes_no_more(
    mesh: Mesh, nats_server: NatsServer, tmp_path
) -> None:
    port = free_port("127.0.0.1")
    settings = {"plaintext": f"127.0.0.1:{port}", "memory_limit_mb": 1}
    async with gateway_process(
        mesh, tmp_path / "g", nats_server.url, nats_server.seeds, **settings
    ) as gateway:
        await mesh.until(gateway.ready, "it is ready", 60)
        async with sidecars(1, port) as [proxy]:
            # A stream may also end for it while it writes, before it has read why.
            said = "UNAVAILABLE: this replica is full"
            await mesh.until(lambda: said in proxy.ends, "it is turned away", 20)
            assert not proxy.held[CDS]


async def test_a_crowd_waits_its_turn_and_those_connected_do_not(
    mesh: Mesh, nats_server: NatsServer, tmp_path
) -> None:
    """Changes reach proxies that are connected while a crowd is let in."""
    port = free_port("127.0.0.1")
    plaintext = f"127.0.0.1:{port}"
    for index in range(4):
        await mesh.write(*(service(f"s{index}-{i}", 80) for i in range(100)))
    async with gateway_process(
        mesh, tmp_path / "g", nats_server.url, nats_server.seeds, plaintext=plaintext
    ) as gateway:
        await mesh.until(gateway.ready, "it is ready", 60)
        async with sidecars(1, port) as [first]:
            await mesh.until(lambda: first.held[CDS], "it is served", 60)
            async with sidecars(150, port) as crowd:
                changes = 0
                while not all(p.held[CDS] for p in crowd):
                    changes += 1
                    await mesh.write(service(f"new{changes}", 81))
                    name = f"outbound|81||new{changes}.default.svc.cluster.local"
                    await mesh.until(lambda name=name: name in first.held[CDS], name, 20)
                assert changes > 0
                last = len(first.held[CDS])
                await mesh.until(
                    lambda: all(len(p.held[CDS]) == last for p in crowd), "all have everything", 60
                )
                assert all(p.streams == 1 for p in crowd), "nobody was turned away"
                assert first.streams == 1


async def test_a_storm_of_changes_is_conflated_and_puts_off_no_push(
    mesh: Mesh, nats_server: NatsServer, tmp_path
) -> None:
    """Changes that come faster than they can be compiled: proxies still get some on the way."""
    port = free_port("127.0.0.1")
    names = [f"f{index}" for index in range(300)]
    await mesh.write(*(service(name, 80) for name in names))
    async with gateway_process(
        mesh, tmp_path / "g", nats_server.url, nats_server.seeds, plaintext=f"127.0.0.1:{port}"
    ) as gateway:
        await mesh.until(gateway.ready, "it is ready", 60)
        async with sidecars(5, port) as proxies:
            await mesh.until(lambda: all(p.held[CDS] for p in proxies), "all are served", 60)
            before = [p.received[CDS] for p in proxies]
            steps = 0
            while min(p.received[CDS] - b for p, b in zip(proxies, before, strict=True)) < 900:
                # Each is another protocol: every cluster is another one.
                steps += 1
                protocol = "HTTP2" if steps % 2 else "HTTP"
                await mesh.write(*(service(name, 80, protocol) for name in names))
            protocol = "GRPC"
            last = await mesh.write(*(service(name, 80, protocol) for name in names))
            reply = await mesh.converged(last, 30)
            assert (reply.total, reply.converged) == (5, 5)
            versions = {tuple(sorted(p.held[CDS].items())) for p in proxies}
            assert len(versions) == 1, "all have the same"
            sent = max(p.received[CDS] - b for p, b in zip(proxies, before, strict=True))
            assert sent <= (steps + 1) * len(names), "no state was sent twice"
