"""External authorizers over gRPC, for requests and for connections, and routes by claims."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import msgspec
import pytest
from envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc
from envoy.type.v3 import http_status_pb2
from gateway_mesh import CLUSTER, config, endpoints, free_port, host, loopback, service, workload
from google.rpc import status_pb2
from security_mesh import serving
from test_security_envoys import ISSUER, Issuer, policy, speaks

from meshbus.local.network import host_port
from meshbus.model.keys import Key
from meshbus.model.rows import MeshConfigRow, WorkloadPort

pytestmark = [pytest.mark.real, pytest.mark.slow]


class Authorizer(external_auth_pb2_grpc.AuthorizationServicer):
    """Lets in who says `x-pass: yes`, and connections while `open`."""

    def __init__(self) -> None:
        self.open = True
        self.stop: Any = None
        self.asked: list[Any] = []

    async def Check(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        http = request.attributes.request.http
        good = http.headers.get("x-pass") == "yes" if http.method else self.open
        if good:
            return external_auth_pb2.CheckResponse(status=status_pb2.Status(code=0))
        reply = external_auth_pb2.CheckResponse(status=status_pb2.Status(code=7))
        reply.denied_response.status.CopyFrom(http_status_pb2.HttpStatus(code=402))
        return reply


@contextlib.asynccontextmanager
async def authorizer(address: str) -> AsyncIterator[tuple[Authorizer, int]]:
    guard, server = Authorizer(), grpc.aio.server()
    external_auth_pb2_grpc.add_AuthorizationServicer_to_server(guard, server)
    port = server.add_insecure_port(host_port(address, 0))
    await server.start()
    guard.stop = lambda: server.stop(0)
    try:
        yield guard, port
    finally:
        await server.stop(0)


def provider(port: int, **options: Any) -> Any:
    spec = {"service": host("guard"), "port": port, "timeout": "1s", **options}
    row = MeshConfigRow({"extensionProviders": [{"name": "guard", "envoyExtAuthzGrpc": spec}]})
    return {Key(CLUSTER, "mesh", "config", "", "mesh"): row}


def custom(*rules: dict[str, Any]) -> Any:
    spec = {"action": "CUSTOM", "provider": {"name": "guard"}, "rules": list(rules)}
    return policy("ask", spec)


@contextlib.asynccontextmanager
async def guarded(mesh: Any) -> AsyncIterator[tuple[Any, Authorizer, int, int]]:
    """A client and a server in a mesh that gets an authorizer once their connection is open."""
    address = loopback()
    async with authorizer(address) as (guard, port):
        body = {"maxRequestBytes": 16, "allowPartialMessage": True}
        async with serving(mesh) as served:
            before = await served.connections()
            await served.applied(
                service("guard", port, "GRPC"),
                endpoints("guard", {"g": address}, port, "disabled"),
                provider(port, includeRequestBodyInCheck=body),
            )
            yield served, guard, port, before


async def test_requests_are_decided_over_grpc(mesh):
    async with guarded(mesh) as (served, guard, port, before):
        pair = served.pair
        await served.applied(custom({"to": [{"operation": {"paths": ["/guarded*"]}}]}))
        assert await pair.status("/guarded") == 402, "the authorizer's own status comes back"
        assert await served.connections() == before, "on the connection that was open"
        assert await pair.status("/guarded", **{"x-pass": "yes"}) == 200
        assert await pair.status("/open") == 200
        sent = await pair.connection.post(
            "/guarded", headers={"x-pass": "yes"}, content=b"0123456789abcdefXYZ"
        )
        assert sent.status_code == 200
        assert guard.asked[-1].attributes.request.http.body == "0123456789abcdef"
        assert guard.asked[-1].attributes.source.principal.endswith("/ns/default/sa/client")

        # DENY counts besides: both must let the request in.
        deny = {"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/guarded/no"]}}]}]}
        await served.applied(policy("no", deny))
        assert await pair.status("/guarded/no", **{"x-pass": "yes"}) == 403
        assert await pair.status("/guarded/yes", **{"x-pass": "yes"}) == 200

        # It is gone: requests are refused with the status of the settings.
        await guard.stop()
        await served.applied(provider(port, statusOnError="503"))

        async def refused() -> bool:
            return await pair.status("/guarded", **{"x-pass": "yes"}) == 503

        await mesh.until(refused, "an authorizer that is away lets nobody in")
        assert await pair.status("/open") == 200
        await served.applied(provider(port, failOpen=True))

        async def let_in() -> bool:
            return await pair.status("/guarded") == 200

        await mesh.until(let_in, "unless it is said to fail open")


async def test_connections_are_decided_over_grpc(mesh):
    async with guarded(mesh) as (served, guard, _, _):
        pair = served.pair
        ((key, row),) = workload("server", pair.server, app=pair.app, port=pair.port).items()
        tcp = msgspec.structs.replace(row, ports=[WorkloadPort("tcp", pair.port, "TCP")])
        await served.applied(
            service("server", pair.port, "TCP"),
            {key: tcp},
        )

        async def answers() -> bool:
            return await speaks(pair.server, pair.port)

        async def refuses() -> bool:
            return not await answers()

        await mesh.until(answers, "the port takes TCP")
        guard.open = False
        assert await answers(), "nobody is asked yet"
        await served.applied(custom({"to": [{"operation": {"ports": [str(pair.port)]}}]}))
        await mesh.until(refuses, "the authorizer refuses the connection")
        guard.open = True
        await mesh.until(answers, "it lets the next one in")
        # A rule that only HTTP could decide asks about every connection.
        guard.open = False
        await served.applied(custom({"to": [{"operation": {"methods": ["GET"]}}]}))
        await mesh.until(refuses, "it fails safe")


async def test_claims_choose_routes_at_a_gateway(served):
    """`@request.auth.claims`, nested ones and lists too; an invalid token chooses none."""
    pair, mesh, issuer, address = served.pair, served.mesh, Issuer(), loopback()
    port = free_port(address)
    ((key, row),) = workload("edge", address).items()
    edge = msgspec.structs.replace(row, gateway=True)
    server = {"number": port, "name": "http", "protocol": "HTTP"}
    where = {"destination": {"host": host("server"), "port": {"number": pair.port}}}

    def by(claim: str, matcher: dict[str, str], header: str) -> dict[str, Any]:
        return {
            "match": [{"headers": {claim: matcher}}],
            "route": [where],
            "headers": {"request": {"set": {"x-route": header}}},
        }

    http = [
        by("@request.auth.claims.org.team", {"exact": "red"}, "team"),
        by("@request.auth.claims[org][roles]", {"exact": "ops"}, "role"),
        by("@request.auth.claims.sub", {"prefix": "an"}, "sub"),
        {"directResponse": {"status": 418}},
    ]
    await served.applied(
        {key: edge},
        config(
            "Gateway",
            "gateways",
            "edge",
            {"selector": {"app": "edge"}, "servers": [{"port": server, "hosts": ["*"]}]},
        ),
        config(
            "VirtualService",
            "virtualservices",
            "v",
            {"hosts": ["*"], "gateways": ["edge"], "http": http},
        ),
        config(
            "RequestAuthentication",
            "requestauthentications",
            "jwt",
            {
                "selector": {"matchLabels": {"app": "edge"}},
                "jwtRules": [{"issuer": ISSUER, "jwks": issuer.jwks}],
            },
        ),
    )
    async with mesh.envoy("edge", address, kind="router") as gateway, httpx.AsyncClient() as client:
        await mesh.until(gateway.ready, "the gateway's Envoy is ready")

        async def route(**headers: str) -> str | int:
            answer = await client.get(f"http://{host_port(address, port)}/", headers=headers)
            return (
                served.got[-1].get("x-route", "")
                if answer.status_code == 200
                else answer.status_code
            )

        async def reached() -> bool:
            return await route() == 418

        await mesh.until(reached, "without a token no claim matches")
        assert await route(**issuer.bearer(org={"team": "red"})) == "team"
        assert await route(**issuer.bearer(org={"roles": ["dev", "ops"]})) == "role"
        assert await route(**issuer.bearer(org={"team": "blue"})) == "sub"
        assert await route(**issuer.bearer(sub="bob", org={"team": ["blue"]})) == 418
        assert await route(**Issuer().bearer(org={"team": "red"})) == 401
