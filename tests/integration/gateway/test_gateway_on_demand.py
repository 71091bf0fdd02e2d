"""Real Envoys that ask: for virtual hosts and for clusters, when a request needs them."""

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator

import httpx
import msgspec
import pytest
import pytest_asyncio
from gateway_mesh import (
    CLUSTER,
    LOOPBACK,
    Envoy,
    Mesh,
    Rows,
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

from meshbus.compile.proxy_keys import PROXY_CONFIG
from meshbus.local.network import host_port
from meshbus.model.keys import Key

pytestmark = [pytest.mark.real, pytest.mark.slow]

HOSTS = {"MESHBUS_VIRTUAL_HOSTS": "on-demand"}
CLUSTERS = {"MESHBUS_CLUSTERS": "on-demand"}


@pytest_asyncio.fixture
async def mesh(carrier, family, bus_for, tmp_path):
    envoy_binary()
    async with mesh_on(bus_for, tmp_path) as running:
        running.transport = carrier
        await running.start()
        yield running


class World:
    """Two clients, and services `s0`, `s1`, ... of one application outside the mesh."""

    def __init__(self, mesh: Mesh, asks: dict[str, str]) -> None:
        self.mesh = mesh
        self.asks = asks
        self.app = loopback()
        self.port = free_port(self.app)
        self.at: dict[str, str] = {}
        self.proxy: dict[str, int] = {}

    def client(self, name: str) -> Rows:
        self.at[name] = loopback()
        self.proxy[name] = free_port(self.at[name])
        rows = workload(name, self.at[name], http_proxy=self.proxy[name])
        told = msgspec.json.encode({"proxyMetadata": self.asks}).decode()
        return {
            key: msgspec.structs.replace(row, annotations={PROXY_CONFIG: told})  # type: ignore[type-var]
            for key, row in rows.items()
        }

    def service(self, name: str) -> Rows:
        return {
            **service(name, self.port),
            **endpoints(name, {f"{name}-0": self.app}, self.port, tls_mode=""),
        }

    async def get(
        self, name: str, client: str = "one", path: str = "/", content: bytes = b""
    ) -> httpx.Response:
        async with self.session(client) as session:
            return await self.call(session, name, path, content)

    def session(self, client: str) -> httpx.AsyncClient:
        proxy = f"http://{host_port(self.at[client], self.proxy[client])}"
        return httpx.AsyncClient(proxy=proxy, timeout=10, verify=False)

    async def call(
        self, session: httpx.AsyncClient, name: str, path: str = "/", content: bytes = b""
    ) -> httpx.Response:
        url = f"http://{name}:{self.port}{path}"
        return await session.request("POST" if content else "GET", url, content=content)


def answering(name: str, status: int, body: str) -> Rows:
    response = {"directResponse": {"status": status, "body": {"string": body}}}
    return config(
        "VirtualService", "virtualservices", name, {"hosts": [host(name)], "http": [response]}
    )


@contextlib.asynccontextmanager
async def running(
    mesh: Mesh, asks: dict[str, str], services: int = 5, api: str = "DELTA_GRPC"
) -> AsyncIterator[tuple[World, Envoy, Envoy]]:
    world = World(mesh, asks)
    await mesh.start_gateway()
    names = [f"s{number}" for number in range(services)]
    await mesh.write(
        world.client("one"), world.client("two"), *(world.service(name) for name in names)
    )
    async with (
        application(world.app, world.port, "hello"),
        mesh.envoy("one", world.at["one"], api) as one,
        mesh.envoy("two", world.at["two"], api) as two,
    ):
        for envoy in (one, two):
            await mesh.until(envoy.ready, "Envoy is ready")
        yield world, one, two


async def hosts_of(envoy: Envoy) -> set[str]:
    """Domains of the virtual hosts that an Envoy has for what its application calls."""
    dump = json.loads(await envoy.admin("/config_dump?resource=dynamic_route_configs"))
    return {
        domain
        for held in dump.get("configs", ())
        if held["route_config"]["name"] == "http_proxy"
        for shown in held["route_config"].get("virtual_hosts", ())
        for domain in shown["domains"]
        if not domain.endswith(".invalid")
    }


async def clusters_of(envoy: Envoy) -> set[str]:
    """Hosts of the services whose clusters an Envoy has."""
    dump = json.loads(await envoy.admin("/config_dump?resource=dynamic_active_clusters"))
    names = [held["cluster"]["name"] for held in dump.get("configs", ())]
    return {name.rpartition("|")[2].partition(".")[0] for name in names if name[:9] == "outbound|"}


async def test_a_virtual_host_comes_with_the_first_request_for_it(mesh):
    async with running(mesh, HOSTS) as (world, one, two):
        assert await hosts_of(one) == set()
        assert (await world.get("s1")).text == "hello"
        assert await hosts_of(one) == {f"s1:{world.port}"}
        assert await hosts_of(two) == set(), "nobody else is sent it"
        # Other names of it, and a request with a body that waits.
        assert (await world.get(host("s1"), content=b"x" * 50_000)).text == "hello"
        # A changed virtual host goes to those who have asked.
        change = await mesh.write(answering("s1", 418, "teapot"), answering("s2", 429, "enough"))
        reply = await mesh.converged(change)
        assert (reply.converged, reply.rejected) == (2, [])
        assert (await world.get("s1")).status_code == 418, "converged means that requests see it"
        assert (await world.get(host("s1"))).status_code == 418
        assert await hosts_of(two) == set()
        assert (await world.get("s2", "two")).status_code == 429
        assert await hosts_of(two) == {f"s2:{world.port}"}
        proxies = await mesh.proxies()
        assert proxies["one-0.default"].types["vhds"]["status"] == "SYNCED"


async def test_what_nobody_claims_goes_as_the_mesh_says(mesh):
    async with running(mesh, HOSTS) as (world, one, _):
        assert (await world.get("s1")).text == "hello"
        blocked = {"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}}
        narrow = config("Sidecar", "sidecars", "default", blocked)
        await mesh.converged(await mesh.write(narrow))
        assert (await world.get("s1")).text == "hello", "what it has asked for it keeps"
        assert (await world.get("nobody")).status_code == 502
        # Now it is a service: those who asked learn of it.
        await mesh.converged(await mesh.write(world.service("nobody")))
        assert (await world.get("nobody")).text == "hello"
        # And now it is not.
        gone = dict.fromkeys(world.service("nobody"))
        await mesh.converged(await mesh.write(gone))
        assert (await world.get("nobody")).status_code == 502
        assert f"nobody:{world.port}" in await hosts_of(one)


async def test_an_asking_envoy_survives_a_gateway_that_starts_again(mesh):
    async with running(mesh, {**HOSTS, **CLUSTERS}) as (world, one, _):
        assert (await world.get("s0")).text == "hello"
        port = mesh.gateway.port
        await mesh.stop("xds-gateway")
        assert (await world.get("s0")).text == "hello", "what it has it keeps"
        await mesh.start_gateway(listen=host_port(LOOPBACK.own, port))

        async def connected() -> bool:
            return "one-0.default" in await mesh.proxies()

        await mesh.until(connected, "the Envoy is back")
        assert (await world.get("s3")).text == "hello"
        change = await mesh.write(answering("s0", 418, "teapot"))
        assert not (await mesh.converged(change)).rejected
        assert (await world.get("s0")).status_code == 418
        assert {"s0", "s3"} <= await clusters_of(one)


async def test_a_cluster_comes_with_the_first_request_that_leads_to_it(mesh):
    async with running(mesh, CLUSTERS) as (world, one, two):
        assert await clusters_of(one) == set()
        assert f"s1:{world.port}" in await hosts_of(one), "virtual hosts are there"
        assert (await world.get("s1", content=b"x" * 50_000)).text == "hello"
        assert await clusters_of(one) == {"s1"}
        assert await clusters_of(two) == set()
        # Subsets of a route by weight are asked for as they are chosen.
        subsets = [{"name": v, "labels": {"app": "s2"}} for v in ("v1", "v2")]
        split = [{"destination": {"host": "s2", "subset": v}, "weight": 50} for v in ("v1", "v2")]
        await mesh.converged(
            await mesh.write(
                config(
                    "DestinationRule", "destinationrules", "s2", {"host": "s2", "subsets": subsets}
                ),
                config(
                    "VirtualService",
                    "virtualservices",
                    "s2",
                    {"hosts": ["s2"], "http": [{"route": split}]},
                ),
            )
        )
        answers = await asyncio.gather(*(world.get("s2") for _ in range(20)))
        assert {answer.text for answer in answers} == {"hello"}
        assert "s2" in await clusters_of(one)
        # What is gone answers at once, and comes back to who has used it.
        shard = Key(CLUSTER, "reg", "endpoints", "default", host("s1"), "1")
        await mesh.converged(await mesh.write({shard: None}))
        assert (await world.get("s1")).status_code == 503
        await mesh.converged(await mesh.write(world.service("s1")))
        assert (await world.get("s1")).text == "hello"


async def test_a_request_for_what_is_mirrored_finds_both_clusters(mesh):
    async with running(mesh, CLUSTERS) as (world, one, _):
        rule = {
            "route": [{"destination": {"host": "s1"}}],
            "mirror": {"host": "s4"},
        }
        shadow = config(
            "VirtualService", "virtualservices", "s1", {"hosts": ["s1"], "http": [rule]}
        )
        await mesh.converged(await mesh.write(shadow))
        assert "s4" in await clusters_of(one), "a mirrored request does not wait"
        assert (await world.get("s1")).text == "hello"


async def test_an_envoy_on_a_state_of_the_world_stream_is_sent_everything(mesh):
    async with running(mesh, {**HOSTS, **CLUSTERS}, api="GRPC") as (world, one, _):
        assert {f"s{number}:{world.port}" for number in range(5)} <= await hosts_of(one)
        assert await clusters_of(one) == {f"s{number}" for number in range(5)}
        assert (await world.get("s1")).text == "hello"


@pytest.mark.parametrize("asks", [HOSTS, CLUSTERS, {**HOSTS, **CLUSTERS}])
async def test_no_request_is_lost_while_services_and_routes_change(mesh, asks):
    """Every service is called for the first time while another changes, by several requests at
    once; whatever they meet, each state of the mesh answers with one of two answers."""
    async with running(mesh, asks, services=12) as (world, _one, _two):
        lost: list[tuple[str, int]] = []
        stop = asyncio.Event()

        async def calls(client: str, seed: int) -> int:
            random_, done = random.Random(seed), 0
            async with world.session(client) as session:
                while not stop.is_set():
                    name = f"s{random_.randrange(12)}"
                    called = random_.choice([name, host(name), f"{name}.default"])
                    body = random_.choice([b"", b"x" * 2000])
                    answer = await world.call(session, called, content=body)
                    if (answer.status_code, answer.text) not in {(200, "hello"), (418, name)}:
                        lost.append((called, answer.status_code))
                    done += 1
            return done

        callers = [
            asyncio.create_task(calls(client, seed))
            for client in ("one", "two")
            for seed in range(3)
        ]
        random_ = random.Random(7)
        try:
            for _ in range(30):
                name = f"s{random_.randrange(12)}"
                rows: Rows = answering(name, 418, name)
                if random_.random() < 0.5:
                    rows = dict.fromkeys(rows)
                reply = await mesh.converged(await mesh.write(rows))
                assert not reply.rejected
        finally:
            stop.set()
        done = sum(await asyncio.gather(*callers))
        assert done > 100
        assert lost == []
