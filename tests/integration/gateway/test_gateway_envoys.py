"""Real Envoys on a real gateway: TLS, tokens, SDS, requests between them, refusals, reconnects."""

import asyncio

import httpx
import pytest
import pytest_asyncio
from gateway_mesh import (
    LOOPBACK,
    config,
    endpoints,
    envoy_binary,
    host,
    mesh_on,
    service,
)
from sidecar_pair import Pair, serving

from meshbus.local.network import host_port

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest_asyncio.fixture
async def mesh(family, carrier, bus_for, tmp_path):
    envoy_binary()
    async with mesh_on(bus_for, tmp_path) as running:
        running.transport = carrier
        await running.start()
        yield running


@pytest.mark.parametrize("api", ["DELTA_GRPC", "GRPC"])
async def test_two_envoys_speak_mutual_tls(mesh, api):
    pair = Pair()
    await mesh.start_gateway()
    change = await mesh.write(*pair.rows())
    async with serving(mesh, pair, api) as (_server, _client, got):
        assert (await pair.get()).text == "hello"
        peer = got[-1].get("x-forwarded-client-cert", "")
        assert "uri=spiffe://cluster.local/ns/default/sa/client" in peer
        assert "by=spiffe://cluster.local/ns/default/sa/server" in peer
        reply = await mesh.converged(change)
        assert (reply.total, reply.converged, reply.waiting, reply.rejected) == (2, 2, [], [])
        proxies = await mesh.proxies()
        assert set(proxies) == {"client-0.default", "server-0.default"}
        assert proxies["client-0.default"].types["cds"]["status"] == "SYNCED"
        assert proxies["client-0.default"].types["sds"]["status"] == "SYNCED"
        assert proxies["client-0.default"].version.startswith("1.")

        route = {
            "hosts": ["server"],
            "http": [{"directResponse": {"status": 418, "body": {"string": "teapot"}}}],
        }
        change = await mesh.write(config("VirtualService", "virtualservices", "server", route))
        reply = await mesh.converged(change)
        assert reply.converged == 2
        assert reply.latency_s is not None
        assert reply.latency_s < 2
        assert (await pair.get()).status_code == 418, "converged means that requests see it"

        strict = {"mtls": {"mode": "STRICT"}}
        rows = config("PeerAuthentication", "peerauthentications", "default", strict)
        reply = await mesh.converged(await mesh.write(rows))
        assert not reply.rejected
        with pytest.raises(httpx.TransportError):
            async with httpx.AsyncClient() as plain:
                await plain.get(f"http://{host_port(pair.server, pair.port)}/", timeout=5)


async def test_changed_cluster_keeps_its_endpoints(mesh):
    pair = Pair()
    await mesh.start_gateway()
    await mesh.write(*pair.rows())
    async with serving(mesh, pair) as (_, client, _got):
        for limit in (7, 8, 9):
            policy = {
                "host": "server",
                "trafficPolicy": {"connectionPool": {"tcp": {"maxConnections": limit}}},
            }
            rows = config("DestinationRule", "destinationrules", "server", policy)
            reply = await mesh.converged(await mesh.write(rows))
            assert reply.converged == 2
            assert (await pair.get()).status_code == 200
        name = f"outbound|{pair.port}||{host('server')}"

        async def warmed() -> bool:
            # A cluster that warms for ever keeps serving with its old settings.
            return f"{name}::default_priority::max_connections::9" in await client.admin(
                "/clusters"
            )

        await mesh.until(warmed, "the new cluster has replaced the old one", 3)


async def test_gateway_that_restarts_sends_next_to_nothing(mesh):
    pair = Pair()
    first = await mesh.start_gateway()
    await mesh.write(*pair.rows())
    async with serving(mesh, pair):
        cold = pushed_resources(first)
        assert cold > 5
        port = first.port
        await mesh.stop("xds-gateway")
        assert (await pair.get()).status_code == 200, "Envoys go on without their gateway"
        second = await mesh.start_gateway(listen=host_port(LOOPBACK.own, port))

        async def both() -> bool:
            return len(await mesh.proxies()) == 2

        await mesh.until(both, "both Envoys are back")
        reply = await mesh.converged(mesh.mirror.world.sequence)
        assert reply.converged == 2
        assert pushed_resources(second) == 0, "certificates apart, they have everything"
        assert (await pair.get()).status_code == 200
        reply = await mesh.converged(
            await mesh.write(endpoints("server", {}, pair.port), service("other", 80))
        )
        assert reply.converged == 2
        assert (await pair.get()).status_code == 503


def pushed_resources(gateway) -> float:
    """Resources sent so far, certificates apart."""
    registry = gateway._context.metrics
    return sum(
        sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "meshbus_xds_pushed_resources_total" and sample.labels["type"] != "sds"
    )


async def test_no_request_fails_while_routes_move_to_new_subsets(mesh):
    """Make before break: no route leads to a cluster that is not there or has no endpoints."""
    pair = Pair()
    await mesh.start_gateway()
    await mesh.write(*pair.rows())
    async with serving(mesh, pair):
        outcomes: list[int] = []
        stop = asyncio.Event()

        async def traffic() -> None:
            proxy = f"http://{host_port(pair.client, pair.proxy_port)}"
            async with httpx.AsyncClient(proxy=proxy, timeout=5) as client:
                while not stop.is_set():
                    reply = await client.get(f"http://server:{pair.port}/")
                    outcomes.append(reply.status_code)

        running = asyncio.create_task(traffic())
        for turn in range(8):
            subset = {"name": f"v{turn}", "labels": {"app": "server"}}
            target = {"destination": {"host": "server", "subset": f"v{turn}"}}
            change = await mesh.write(
                config(
                    "DestinationRule",
                    "destinationrules",
                    "server",
                    {"host": "server", "subsets": [subset]},
                ),
                config(
                    "VirtualService",
                    "virtualservices",
                    "server",
                    {"hosts": ["server"], "http": [{"route": [target]}]},
                ),
            )
            reply = await mesh.converged(change)
            assert reply.converged == 2
        stop.set()
        await running
        assert len(outcomes) > 8
        assert set(outcomes) == {200}
