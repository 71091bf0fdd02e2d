"""Quotas of Istio 1.4 enforced by a real Envoy that asks the policy service over mutual TLS."""

import asyncio
import contextlib

import grpc
import pytest
import pytest_asyncio
from envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc
from envoy.service.ratelimit.v3 import rls_pb2, rls_pb2_grpc
from gateway_mesh import (
    CLUSTER,
    LOOPBACK,
    Mesh,
    config,
    envoy_binary,
    mesh_on,
    workload,
)
from meshbus_policy.service import PolicyService, PolicySettings
from sidecar_pair import Pair, serving
from workload_identity import identity_of

from meshbus.local.network import host_port
from meshbus.model.keys import Key
from meshbus.model.requests import REVOKE, RevokeReply, RevokeRequest
from meshbus.runtime.calls import call
from meshbus.runtime.process import make_context

pytestmark = pytest.mark.real
ROOT = "istio-system"


def quota_objects(rule=None):
    """Anybody: 2 calls; jason: 4; all from `client`, which mutual TLS proves."""
    return (
        config(
            "memquota",
            "memquotas",
            "handler",
            {
                "quotas": [
                    {
                        "name": "requestcount.quota.istio-system",
                        "maxAmount": 500,
                        "validDuration": "60s",
                        "overrides": [
                            {
                                "dimensions": {"user": "jason", "caller": "client"},
                                "maxAmount": 4,
                                "validDuration": "60s",
                            },
                            {
                                "dimensions": {"destination": "server", "caller": "client"},
                                "maxAmount": 2,
                                "validDuration": "60s",
                            },
                        ],
                    }
                ]
            },
            ROOT,
        ),
        config(
            "quota",
            "quotas",
            "requestcount",
            {
                "dimensions": {
                    "user": 'request.headers["end-user"] | "unknown"',
                    "caller": 'source.labels["app"] | "unknown"',
                    "destination": 'destination.labels["app"] | destination.service.name',
                }
            },
            ROOT,
        ),
        config(
            "QuotaSpec",
            "quotaspecs",
            "request-count",
            {"rules": [{"quotas": [{"charge": 1, "quota": "requestcount"}]}]},
            ROOT,
        ),
        config(
            "QuotaSpecBinding",
            "quotaspecbindings",
            "request-count",
            {
                "quotaSpecs": [{"name": "request-count", "namespace": ROOT}],
                "services": [{"name": "server", "namespace": "default"}],
            },
            ROOT,
        ),
        config("rule", "rules", "quota", rule or quota_rule(), ROOT),
    )


def quota_rule(match=""):
    return {
        "match": match,
        "actions": [{"handler": "handler.memquota", "instances": ["requestcount.quota"]}],
    }


class Policed(Pair):
    """A mesh of a client and a server with their sidecars, and a policy service."""

    def __init__(self, mesh: Mesh) -> None:
        super().__init__()
        self.mesh = mesh

    async def codes(self, count: int, **headers: str) -> list[int]:
        return [(await self.get(**headers)).status_code for _ in range(count)]

    async def apply(self, *rows) -> None:
        change = await self.mesh.write(*rows)

        async def live() -> bool:
            reply = await self.mesh.converged(change)
            return reply.total == reply.converged == 2

        await self.mesh.until(live, "both proxies have converged")


@pytest_asyncio.fixture
async def mesh(family, bus_for, tmp_path):
    envoy_binary()
    async with mesh_on(bus_for, tmp_path, Mesh, "policy") as running:
        await running.start()
        yield running


@contextlib.asynccontextmanager
async def policy_service(mesh: Mesh):
    settings = PolicySettings(listen=host_port(LOOPBACK.own, 0))
    context = make_context(PolicyService, settings, mesh.process, mesh.buses["policy"])
    task = asyncio.create_task(PolicyService(context).run())
    try:
        await mesh.until(
            lambda: task.done() or not context.admin.reasons(), "the policy service is ready"
        )
        if task.done():
            await task
        yield context
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def policed(mesh: Mesh):
    pair = Policed(mesh)
    await mesh.start_gateway()
    await mesh.write(*pair.rows())
    async with serving(mesh, pair):
        yield pair


async def test_calls_over_the_quota_get_429(mesh):
    async with policy_service(mesh), policed(mesh) as pair:
        assert await pair.codes(5) == [200] * 5
        await pair.apply(*quota_objects())
        assert await pair.codes(4) == [200, 200, 429, 429]
        refused = await pair.get()
        assert refused.text == "RESOURCE_EXHAUSTED:Quota is exhausted for: requestcount"
        assert refused.headers["x-envoy-ratelimited"] == "true"
        jason = {"end-user": "jason"}
        assert await pair.codes(6, **jason) == [200, 200, 200, 200, 429, 429]
        other = {"end-user": "x"}
        assert await pair.codes(3, **other) == [200, 200, 429]

        exempt = quota_rule('match(request.headers["cookie"], "user=*") == false')
        await pair.apply(config("rule", "rules", "quota", exempt, ROOT))
        assert await pair.codes(3, cookie="user=jason") == [200] * 3
        assert await pair.codes(1) == [429]

        key = Key(CLUSTER, "cfg", "quotaspecbindings", ROOT, "request-count")
        await pair.apply({key: None})
        assert await pair.codes(3) == [200] * 3


async def test_without_the_policy_service_calls_are_granted_and_it_comes_back(mesh):
    async with contextlib.AsyncExitStack() as stack:
        async with policy_service(mesh):
            pair = await stack.enter_async_context(policed(mesh))
            await pair.apply(*quota_objects())
            assert await pair.codes(3) == [200, 200, 429]
        assert await pair.codes(3) == [200] * 3
        await mesh.buses["policy"].close()
        mesh.buses["policy"] = await mesh.bus_for("policy")
        async with policy_service(mesh):

            async def limited() -> bool:
                return (await pair.get()).status_code == 429

            await mesh.until(limited, "quotas hold again")


async def test_quotas_hold_while_the_bus_is_away(mesh, nats_server):
    async with policy_service(mesh), policed(mesh) as pair:
        await pair.apply(*quota_objects())
        assert await pair.codes(3) == [200, 200, 429]
        nats_server.kill()
        try:
            other = {"end-user": "other"}
            assert await pair.codes(3, **other) == [200, 200, 429]
            assert await pair.codes(1) == [429]
        finally:
            nats_server.start()
            for bus in mesh.buses.values():
                await bus.wait_connected()


async def test_only_workloads_of_the_mesh_may_ask(mesh):
    async with policy_service(mesh) as context:
        key = Key(CLUSTER, "mesh", "addresses", "", "policy")
        address = await mesh.until(lambda: mesh.mirror.world.get(key), "its address is known")
        assert address.host == LOOPBACK.own
        target = host_port(address.host, address.port)
        for credentials in (
            None,
            grpc.ssl_channel_credentials(mesh.trust.roots_pem.encode()),
        ):
            channel = (
                grpc.aio.insecure_channel(target)
                if credentials is None
                else grpc.aio.secure_channel(
                    target,
                    credentials,
                    [("grpc.ssl_target_name_override", "policy.istio-system.svc")],
                )
            )
            async with channel:
                stub = rls_pb2_grpc.RateLimitServiceStub(channel)
                with pytest.raises(grpc.aio.AioRpcError) as fault:
                    await stub.ShouldRateLimit(rls_pb2.RateLimitRequest(), timeout=2)
                assert fault.value.code() in {
                    grpc.StatusCode.UNAVAILABLE,
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                }
        assert context.metrics.get_sample_value(
            "meshbus_policy_answers_total", {"kind": "quota", "answer": "ok"}
        ) in {None, 0.0}


async def test_checks_of_rules_by_ext_authz(mesh):
    """Istio 1.4's "deny v3": a denier behind a rule on labels of both ends."""
    await mesh.write(
        workload("reviews", "127.9.9.1"),
        workload("ratings", "127.9.9.2"),
        config(
            "handler",
            "handlers",
            "deny",
            {
                "compiledAdapter": "denier",
                "params": {"status": {"code": 7, "message": "Not allowed"}},
            },
        ),
        config("instance", "instances", "request", {"compiledTemplate": "checknothing"}),
        config(
            "rule",
            "rules",
            "deny",
            {
                "match": 'destination.labels["app"] == "ratings" && '
                'source.labels["app"] == "reviews"',
                "actions": [{"handler": "deny", "instances": ["request"]}],
            },
        ),
    )
    async with policy_service(mesh):
        key = Key(CLUSTER, "mesh", "addresses", "", "policy")
        address = await mesh.until(lambda: mesh.mirror.world.get(key), "its address is known")
        async with grpc.aio.secure_channel(
            host_port(address.host, address.port),
            await identity_of(mesh, "ratings"),
            [("grpc.ssl_target_name_override", "policy.istio-system.svc")],
        ) as channel:
            stub = external_auth_pb2_grpc.AuthorizationStub(channel)
            request = external_auth_pb2.CheckRequest()
            source = request.attributes.source
            source.principal = "spiffe://cluster.local/ns/default/sa/reviews"
            source.address.socket_address.address = "127.9.9.1"
            denied = await stub.Check(request, timeout=5)
            assert denied.status.code == 7
            assert denied.denied_response.status.code == 403
            assert denied.denied_response.body == (
                "PERMISSION_DENIED:deny.handler.default:Not allowed"
            )
            source.principal = "spiffe://cluster.local/ns/default/sa/details"
            source.address.socket_address.address = "127.9.9.3"
            assert (await stub.Check(request, timeout=5)).status.code == 0
            limits = rls_pb2_grpc.RateLimitServiceStub(channel)
            many = rls_pb2.RateLimitRequest(descriptors=[{}] * 65)
            with pytest.raises(grpc.aio.AioRpcError, match="more than 64 descriptors"):
                await limits.ShouldRateLimit(many, timeout=5)

            # Who shows a certificate that was taken back is not answered any more.
            who = RevokeRequest(identity="spiffe://cluster.local/ns/default/sa/ratings")
            await call(mesh.buses["config"], REVOKE, who, RevokeReply, timeout=5)

            async def refused() -> bool:
                try:
                    await stub.Check(request, timeout=5)
                except grpc.aio.AioRpcError as fault:
                    return "revoked" in (fault.details() or "")
                return False

            await mesh.until(refused, "the certificate is refused")
