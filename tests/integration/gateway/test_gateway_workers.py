"""Several workers behind one port: shared load, shared tickets, and any of them may die."""

import asyncio
import os
import signal
import socket
import ssl
from collections import Counter

import pytest
import pytest_asyncio
from gateway_mesh import Mesh, endpoints, mesh_on, service
from gateway_processes import gateway_process, runs, sidecars
from meshbus_xds_gateway.carrier_choice import native_is_installed
from nats_process import NatsServer

from meshbus.compile.resources import CDS
from meshbus.model.requests import CONVERGED, ConvergedReply, ConvergedRequest, replica_subject
from meshbus.runtime.calls import call

pytestmark = [pytest.mark.real, pytest.mark.slow]
WORKERS = ("xds-gateway-0-w0", "xds-gateway-0-w1")
NATIVE = pytest.mark.skipif(not native_is_installed(), reason="meshbus_native is not installed")


@pytest_asyncio.fixture
async def mesh(carrier, bus_for, tmp_path):
    async with mesh_on(bus_for, tmp_path) as running:
        running.transport = carrier
        await running.start()
        await running.write(service("web", 80), endpoints("web", {"web-0": "10.1.0.1"}, 80))
        yield running


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def receipts(mesh: Mesh, sequence: int) -> dict[str, ConvergedReply]:
    request = ConvergedRequest(sequence, 10.0)
    return {
        pod: await call(
            mesh.buses["config"],
            replica_subject(CONVERGED, pod),
            request,
            ConvergedReply,
            timeout=15,
        )
        for pod in WORKERS
    }


async def test_workers_share_a_port_and_outlive_each_other(
    mesh: Mesh, nats_server: NatsServer, tmp_path
) -> None:
    port = free_port()
    plaintext = f"127.0.0.1:{port}"
    async with gateway_process(
        mesh,
        tmp_path / "g",
        nats_server.url,
        nats_server.seeds,
        "--workers",
        "2",
        plaintext=plaintext,
    ) as gateway:
        await mesh.until(gateway.all_ready, "both workers are ready", 60)
        async with sidecars(40, port) as proxies:
            await mesh.until(lambda: all(p.held[CDS] for p in proxies), "all are served", 60)
            first = await receipts(mesh, await mesh.write(service("other", 81)))
            assert sum(reply.converged for reply in first.values()) == 40
            assert all(reply.total for reply in first.values()), "each has some of them"

            before = await gateway.workers()
            streams = [proxy.streams for proxy in proxies]
            os.kill(before[0]["pid"], signal.SIGKILL)
            await mesh.until(
                lambda: sum(p.streams for p in proxies) == sum(streams) + first[WORKERS[0]].total,
                "those of the dead worker have come back, the others have stayed",
                30,
            )

            async def restarted() -> bool:
                now = await gateway.workers()
                return now[0]["ready"] and now[0]["pid"] not in (None, before[0]["pid"])

            await mesh.until(restarted, "the dead one is started again", 60)
            assert (await gateway.workers())[1]["pid"] == before[1]["pid"]
            got = Counter({p.name: p.received[CDS] for p in proxies})
            change = await mesh.write(service("third", 82))
            second = await receipts(mesh, change)
            assert sum(reply.converged for reply in second.values()) == 40
            # Those that came back were sent nothing again: one new cluster is all that came.
            assert all(p.received[CDS] - got[p.name] == 1 for p in proxies)
        metrics = (await gateway.get("/metrics")).text
        for worker in ("0", "1"):
            assert f'meshbus_xds_connected{{worker="{worker}"}}' in metrics
        pages = (await gateway.get("/debug/xds-gateway/proxies")).json()
        assert set(pages) == {"0", "1"}


async def test_workers_end_with_their_supervisor(
    mesh: Mesh, nats_server: NatsServer, tmp_path
) -> None:
    port = free_port()
    arguments = (nats_server.url, nats_server.seeds, "--workers", "2")
    plaintext = f"127.0.0.1:{port}"
    async with gateway_process(mesh, tmp_path / "a", *arguments, plaintext=plaintext) as gateway:
        await mesh.until(gateway.all_ready, "both workers are ready", 60)
        pids = [worker["pid"] for worker in await gateway.workers()]
        async with gateway_process(mesh, tmp_path / "b", *arguments, plaintext=plaintext) as second:
            assert await second.process.wait() != 0
            assert "is the port in use?" in second.log
        gateway.end(signal.SIGKILL)
        async with gateway_process(mesh, tmp_path / "c", *arguments, plaintext=plaintext) as next_:
            await mesh.until(next_.all_ready, "the next one has the port", 60)
            await mesh.until(lambda: not any(map(runs, pids)), "no worker is left behind", 30)
    # The fixture's end asserts that SIGTERM ends it in time.


def shake_hands(
    port: int, context: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[ssl.SSLSession | None, bool]:
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost", session=session) as tls,
    ):
        tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        tls.recv(100)
        return tls.session, bool(tls.session_reused)


@NATIVE
async def test_a_session_is_resumed_by_any_worker(
    mesh: Mesh, nats_server: NatsServer, tmp_path
) -> None:
    if mesh.transport != "native":
        pytest.skip("gRPC resumes no sessions")
    port = free_port()
    arguments = (nats_server.url, nats_server.seeds, "--workers", "2")
    listen = f"127.0.0.1:{port}"
    async with gateway_process(mesh, tmp_path / "g", *arguments, listen=listen) as gateway:
        await mesh.until(gateway.all_ready, "both workers are ready", 60)
        context = ssl.create_default_context(cadata=mesh.trust.roots_pem)
        context.set_alpn_protocols(["h2"])
        session, reused = await asyncio.to_thread(shake_hands, port, context, None)
        assert not reused
        # The kernel deals connections out by their ports: of 24, some reach either worker.
        for _ in range(24):
            session, reused = await asyncio.to_thread(shake_hands, port, context, session)
            assert reused
        accepted = [
            float(line.rsplit(" ", 1)[1])
            for line in (await gateway.get("/metrics")).text.splitlines()
            if line.startswith('meshbus_xds_carrier_tls{counter="handshakes_resumed"')
        ]
        assert len(accepted) == 2
        assert all(accepted)
        assert sum(accepted) == 24


async def test_wrong_use_is_told(mesh: Mesh, nats_server: NatsServer, tmp_path) -> None:
    arguments = (nats_server.url, nats_server.seeds, "discovery", "--workers", "2")
    async with gateway_process(mesh, tmp_path / "g", *arguments) as gateway:
        assert await gateway.process.wait() == 2
        assert "--workers is for one service" in gateway.log
