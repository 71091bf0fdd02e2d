"""What real Envoys refuse, as events; what they let in, as suggested policies."""

import asyncio
import contextlib
import json
import socket

import msgspec
import pytest
from gateway_mesh import CLUSTER, config
from test_telemetry_envoys import Observed, mesh, observed, telemetry_service

from meshbus.bus.interface import EVENTS
from meshbus.compile.authorization_suggest import suggest
from meshbus.model.requests import OBSERVED, ObservedReply, ObservedRequest
from meshbus.runtime.calls import call
from meshbus.validate import validate_object

__all__ = ["mesh"]  # the fixture
pytestmark = [pytest.mark.real, pytest.mark.slow]


class Told:
    """Events of the mesh."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict]] = []

    def begin(self) -> None: ...
    def end(self, sequence: int) -> None: ...

    def apply(self, messages) -> None:
        for message in messages:
            self.events.append((message.subject, json.loads(message.data)["data"]))

    def of(self, kind: str, name: str, verb: str = "denied", *, dry: bool = False) -> list[dict]:
        end = f".{kind}.default.{name}.{verb}"
        return [d for s, d in self.events if s.endswith(end) and d["dryRun"] is dry]


@contextlib.asynccontextmanager
async def told(mesh):
    events = Told()
    bus = mesh.buses["config"]
    follower = bus.follower(EVENTS, [f"events.v1.{CLUSTER}.>"], events, name="test")
    task = asyncio.create_task(follower.run())
    try:
        yield events
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def policy(name, spec, **annotations):
    rows = config("AuthorizationPolicy", "authorizationpolicies", name, spec)
    return {k: msgspec.structs.replace(r, annotations=annotations) for k, r in rows.items()}


async def converged(mesh, *parts) -> None:
    assert not (await mesh.converged(await mesh.write(*parts))).rejected


async def test_refusals_are_events_with_policy_and_rule(mesh):
    deny = {
        "action": "DENY",
        "rules": [
            {"to": [{"operation": {"paths": ["/never"]}}]},
            {"to": [{"operation": {"paths": ["/secret*"]}}]},
        ],
    }
    dry = {"action": "DENY", "rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]}
    async with telemetry_service(mesh, denials_s=0.2), told(mesh) as events, observed(mesh) as pair:
        await converged(
            mesh, policy("no", deny), policy("try", dry, **{"istio.io/dry-run": "true"})
        )
        for _ in range(20):
            assert (await pair.get("/secret/1?token=abc")).status_code == 403
        for _ in range(5):
            assert (await pair.get("/open")).status_code == 200

        def counted(found) -> int:
            return sum(data["count"] for data in found)

        await mesh.until(
            lambda: counted(events.of("AuthorizationPolicy", "no")) == 20, "all are told"
        )
        refused = events.of("AuthorizationPolicy", "no")
        assert len(refused) < 20, "never one for each request"
        assert refused[0]["ruleIndex"] == 1
        assert refused[0]["source"]["principal"] == "cluster.local/ns/default/sa/client"
        assert refused[0]["workload"] == "default/server"
        (sample,) = refused[0]["samples"]
        assert (sample["method"], sample["path"], sample["status"]) == ("GET", "/secret/1", 403)

        def dry_runs() -> list[dict]:
            return events.of("AuthorizationPolicy", "try", dry=True)

        await mesh.until(lambda: counted(dry_runs()) >= 5, "what runs dry is told too")
        assert dry_runs()[0]["action"] == "DENY"

        audit = {"action": "AUDIT", "rules": [{"to": [{"operation": {"paths": ["/audit"]}}]}]}
        await converged(mesh, policy("log", audit))
        assert (await pair.get("/audit")).status_code == 200
        assert (await pair.get("/open")).status_code == 200
        await mesh.until(lambda: events.of("Workload", "server", "audited"), "it is told")
        (audited,) = events.of("Workload", "server", "audited")
        assert (audited["action"], audited["count"]) == ("AUDIT", 1)
        assert audited["samples"][0]["path"] == "/audit"

        # That no rule allows it is told of the workload.
        nobody = {"rules": [{"to": [{"operation": {"paths": ["/nothing"]}}]}]}
        await converged(mesh, policy("only", nobody))
        assert (await pair.get("/open")).status_code == 403
        await mesh.until(lambda: events.of("Workload", "server"), "the workload is named")
        assert events.of("Workload", "server")[0]["action"] == "ALLOW"


async def test_refused_connections_are_events(mesh):
    async with (
        telemetry_service(mesh, denials_s=0.2),
        told(mesh) as events,
        observed(mesh, "TCP") as pair,
    ):
        rules = [{"to": [{"operation": {"ports": [str(pair.port)]}}]}]
        await converged(mesh, policy("tcp", {"action": "DENY", "rules": rules}))
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(pair.server, pair.port)
            writer.write(b"hello")
            await reader.read()
            writer.close()
        await mesh.until(lambda: events.of("AuthorizationPolicy", "tcp"), "the connection is told")
        (refused,) = events.of("AuthorizationPolicy", "tcp")
        assert (refused["protocol"], refused["count"], refused["port"]) == ("tcp", 1, pair.port)


async def test_policies_are_suggested_from_what_was_let_in(mesh):
    async with telemetry_service(mesh), observed(mesh) as pair:
        for path in ("/orders/1", "/orders/22", "/orders/333?x=1", "/health"):
            assert (await pair.get(path)).status_code == 200
        # Somebody without a sidecar.
        await asyncio.to_thread(plain, pair)

        async def calls() -> list:
            question = ObservedRequest(3600)
            reply = await call(mesh.buses["config"], OBSERVED, question, ObservedReply, timeout=5)
            return reply.calls

        async def all_of_them() -> bool:
            return sum(c.count for c in await calls() if c.method == "GET") >= 5

        await mesh.until(all_of_them, "the calls are known")
        found = suggest(mesh.mirror.world, CLUSTER, await calls())
        (document,) = found.policies
        assert validate_object(document).valid, validate_object(document).errors
        assert document["metadata"]["annotations"] == {"istio.io/dry-run": "true"}
        (rule,) = document["spec"]["rules"]
        assert rule["from"] == [{"source": {"principals": ["cluster.local/ns/default/sa/client"]}}]
        (operation,) = (to["operation"] for to in rule["to"])
        assert operation["paths"][-2:] == ["/health", "/orders/{*}"]
        assert [d["principal"] for d in found.would_deny] == [""], "the caller in plain text"

        # Enforced, it allows what was done and nothing else.
        ((key, row),) = policy("suggested", document["spec"]).items()
        await converged(mesh, {key: row})
        assert (await pair.get("/orders/4444")).status_code == 200
        assert (await pair.get("/other")).status_code == 403


def plain(pair: Observed) -> None:
    with socket.create_connection((pair.server, pair.port), 5) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n")
        assert b" 200 " in connection.recv(4096)
