"""Real gRPC clients that speak xDS themselves (`xds:///`), without a proxy."""

import asyncio
import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from gateway_mesh import CLUSTER, LOOPBACK, Mesh, Rows, by, config, free_port, host, mesh_on

from meshbus.local.network import host_port
from meshbus.model.keys import Key
from meshbus.model.rows import Endpoint, EndpointShard, Service, ServicePort

pytestmark = [pytest.mark.real, pytest.mark.slow]
CLIENT = str(Path(__file__).parent / "grpc_client.py")


@pytest_asyncio.fixture
async def mesh(carrier, family, bus_for, tmp_path):
    async with mesh_on(bus_for, tmp_path) as running:
        running.transport = carrier
        await running.start()
        await running.start_gateway(plaintext=host_port(LOOPBACK.own, 0))
        yield running


class Server:
    """A gRPC server that answers its name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = free_port(LOOPBACK.own)
        self._server = grpc.aio.server()

    async def __aenter__(self) -> "Server":
        async def say(request: bytes, context: Any) -> bytes:
            return self.name.encode()

        method = grpc.unary_unary_rpc_method_handler(say)
        handler = grpc.method_handlers_generic_handler("test.Echo", {"Say": method})
        self._server.add_generic_rpc_handlers((handler,))
        self._server.add_insecure_port(host_port(LOOPBACK.own, self.port))
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(0)


def echo(*servers: Server, name: str = "echo") -> Rows:
    """A service at port 7070 of these, the name of each its version."""
    row = Service(
        host=host(name),
        namespace="default",
        name=name,
        origin="kubernetes",
        ports=[ServicePort("grpc", 7070, "GRPC")],
        selector={"app": name},
        source=f"cfg.services/default/{name}",
    )
    members = [
        Endpoint(
            addresses=[LOOPBACK.own],
            ports={"grpc": server.port},
            labels={"app": name, "version": server.name},
            workload=f"{name}-{server.name}",
            instance=f"{name}-{server.name}-0",
            namespace="default",
        )
        for server in servers
    ]
    return {
        Key(CLUSTER, "reg", "services", "default", row.host): row,
        Key(CLUSTER, "reg", "endpoints", "default", row.host, "1"): EndpointShard(
            row.host, "default", "1", members
        ),
    }


class Client:
    """The client's process."""

    def __init__(self, process: Any) -> None:
        self._process = process

    async def call(self, target: str = "echo:7070", *headers: str) -> str:
        self._process.stdin.write(" ".join((f"xds:///{target}", *headers)).encode() + b"\n")
        return (await self._process.stdout.readline()).decode().strip()

    async def calls(self, count: int, *headers: str) -> Counter[str]:
        return Counter([await self.call("echo:7070", *headers) for _ in range(count)])


@contextlib.asynccontextmanager
async def client_of(mesh: Mesh, folder: Path) -> AsyncIterator[Client]:
    assert mesh.gateway is not None
    bootstrap = {
        "xds_servers": [
            {
                "server_uri": host_port(LOOPBACK.own, mesh.gateway.plaintext_port),
                "channel_creds": [{"type": "insecure"}],
                "server_features": ["xds_v3"],
            }
        ],
        "node": {
            "id": f"sidecar~{LOOPBACK.own}~client-0.default~default.svc.cluster.local",
            "metadata": {"GENERATOR": "grpc", "NAMESPACE": "default", "LABELS": {"app": "client"}},
        },
    }
    path = folder / "bootstrap.json"
    path.write_text(json.dumps(bootstrap))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        CLIENT,
        env={**os.environ, "GRPC_XDS_BOOTSTRAP": str(path), "GRPC_VERBOSITY": "ERROR"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Client(process)
    finally:
        process.kill()
        await process.wait()


def by_version(*versions: str) -> Rows:
    subsets = [{"name": v, "labels": {"version": v}} for v in versions]
    spec = {"host": "echo", "subsets": subsets}
    return config("DestinationRule", "destinationrules", "echo", spec)


def routed(*rules: dict[str, Any]) -> Rows:
    spec = {"hosts": ["echo"], "http": list(rules)}
    return config("VirtualService", "virtualservices", "echo", spec)


def to(subset: str, **more: Any) -> dict[str, Any]:
    return {"route": [{"destination": {"host": "echo", "subset": subset}}], **more}


async def test_a_grpc_client_follows_services_endpoints_and_routes(mesh, tmp_path):
    async with Server("v1") as one, Server("v2") as two, client_of(mesh, tmp_path) as client:
        await mesh.write(echo(one))
        for name in (host("echo"), "echo", "echo.default", "echo.default.svc"):
            assert await client.call(f"{name}:7070") == "v1"
        # gRPC has a stream for each target: more of them than an Envoy ever has.
        await mesh.write(echo(two, name="other"))
        for name in (host("other"), "other", "other.default"):
            assert await client.call(f"{name}:7070") == "v2"
        # Another endpoint.
        await mesh.converged(await mesh.write(echo(one, two)))

        async def both() -> bool:
            return set(await client.calls(4)) == {"v1", "v2"}

        await mesh.until(both, "both endpoints are called")
        # A route by header, another by weight.
        chosen = to("v2", match=[{"headers": {"end-user": {"exact": "jason"}}}])
        reply = await mesh.converged(
            await mesh.write(by_version("v1", "v2"), routed(chosen, to("v1")))
        )
        assert not reply.rejected
        assert not reply.waiting

        async def only_one() -> bool:
            return set(await client.calls(4)) == {"v1"}

        await mesh.until(only_one, "the route is followed")
        assert set(await client.calls(5, "end-user=jason")) == {"v2"}
        split = {
            "route": [
                {"destination": {"host": "echo", "subset": v}, "weight": w}
                for v, w in (("v1", 50), ("v2", 50))
            ]
        }
        await mesh.converged(await mesh.write(routed(split)))
        await mesh.until(both, "requests are divided")
        # An endpoint goes.
        await mesh.converged(await mesh.write(routed(to("v2")), echo(two)))

        async def only_two() -> bool:
            return set(await client.calls(4)) == {"v2"}

        await mesh.until(only_two, "what is left is called")


@by(6)
async def test_what_a_grpc_client_cannot_do_is_an_error_of_that_alone(mesh, tmp_path):
    async with (
        Server("v1") as one,
        client_of(mesh, tmp_path) as client,
        client_of(mesh, tmp_path) as other,
    ):
        plain = {"host": "secure", "trafficPolicy": {"tls": {"mode": "ISTIO_MUTUAL"}}}
        change = await mesh.write(
            echo(one),
            echo(one, name="secure"),
            config("DestinationRule", "destinationrules", "secure", plain),
            routed(
                {"match": [{"uri": {"prefix": "/never"}}], "redirect": {"uri": "/other"}},
                to("", corsPolicy={"allowOrigins": [{"exact": "a"}]}, retries={"attempts": 3}),
            ),
        )
        assert await client.call() == "v1"
        # gRPC takes for missing what has not come in 15 s.
        answers = await asyncio.gather(client.call("nobody:7070"), other.call("secure:7070"))
        assert [answer.split()[0] for answer in answers] == ["UNAVAILABLE", "UNAVAILABLE"]
        assert await client.call() == "v1"
        reply = await mesh.converged(change)
        assert (reply.waiting, reply.rejected) == ([], [])


async def test_faults_and_timeouts_of_routes_are_grpc_s(mesh, tmp_path):
    async with Server("v1") as one, client_of(mesh, tmp_path) as client:
        abort = {"abort": {"grpcStatus": "RESOURCE_EXHAUSTED", "percentage": {"value": 100}}}
        await mesh.write(echo(one), routed(to("", fault=abort)))
        assert (await client.call()).startswith("RESOURCE_EXHAUSTED")
        delay = {"delay": {"fixedDelay": "3s", "percentage": {"value": 100}}}
        await mesh.converged(await mesh.write(routed(to("", fault=delay, timeout="0.2s"))))

        async def late() -> bool:
            return (await client.call()).startswith("DEADLINE_EXCEEDED")

        await mesh.until(late, "the route's timeout holds")


async def test_a_grpc_client_survives_a_gateway_that_starts_again(mesh, tmp_path):
    async with Server("v1") as one, Server("v2") as two, client_of(mesh, tmp_path) as client:
        await mesh.write(echo(one))
        assert await client.call() == "v1"
        port = mesh.gateway.plaintext_port
        await mesh.stop("xds-gateway")
        assert await client.call() == "v1"
        await mesh.start_gateway(plaintext=host_port(LOOPBACK.own, port))
        await mesh.write(echo(two))

        async def moved() -> bool:
            return await client.call() == "v2"

        await mesh.until(moved, "it follows the new gateway", timeout_s=60)
