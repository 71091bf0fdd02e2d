"""Real Envoys on a real gateway: TLS, tokens, SDS, requests between them, refusals, reconnects."""

import asyncio
import contextlib

import httpx
import pytest
import pytest_asyncio
from gateway_mesh import (
    LOOPBACK,
    Mesh,
    application,
    config,
    endpoints,
    envoy_binary,
    free_port,
    host,
    loopback,
    mesh_on,
    service,
    workload,
)

from meshbus.local.network import host_port

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest_asyncio.fixture
async def mesh(family, carrier, bus_for, tmp_path):
    envoy_binary()
    async with mesh_on(bus_for, tmp_path) as running:
        running.transport = carrier
        await running.start()
        yield running


class Pair:
    """A client and a server, each with its sidecar."""

    def __init__(self) -> None:
        self.client, self.server, self.app = loopback(), loopback(), loopback()
        self.proxy_port = free_port(self.client)
        self.port = free_port(self.server)

    def rows(self):
        return (
            service("server", self.port),
            endpoints("server", {"server-0": self.server}, self.port),
            workload("server", self.server, app=self.app, port=self.port),
            workload("client", self.client, http_proxy=self.proxy_port),
        )

    async def get(self, path: str = "/", name: str = "server") -> httpx.Response:
        proxy = f"http://{host_port(self.client, self.proxy_port)}"
        async with httpx.AsyncClient(proxy=proxy, timeout=5) as client:
            return await client.get(f"http://{name}:{self.port}{path}")


@contextlib.asynccontextmanager
async def serving(mesh: Mesh, pair: Pair, api: str = "DELTA_GRPC"):
    """Both Envoys are up and a request has gone through them."""
    async with (
        application(pair.app, pair.port, "hello") as got,
        mesh.envoy("server", pair.server, api) as server,
        mesh.envoy("client", pair.client, api) as client,
    ):
        await mesh.until(server.ready, "the server's Envoy is ready")
        await mesh.until(client.ready, "the client's Envoy is ready")

        async def answered() -> bool:
            return (await pair.get()).status_code == 200

        await mesh.until(answered, "a request is answered")
        yield server, client, got


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
