"""The limits of docs/security.md: what a bus user, a workload, a gateway and a token cannot do."""

import asyncio
import base64
import contextlib
import json
import time
from types import SimpleNamespace
from typing import Any

import grpc
import jwt
import msgspec
import pytest
import pytest_asyncio
from ca_mesh import CaMesh
from cryptography.hazmat.primitives.asymmetric import ec
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from gateway_mesh import (
    CLUSTER,
    envoy_binary,
    mesh_on,
    replica_subject,
    workload,
)
from meshbus_xds_gateway.service import XdsGatewayService, XdsGatewaySettings
from nats.aio.client import Client
from nats.errors import Error
from security_mesh import serving
from test_gateway_faults import CDS, SDS, Ads, server_rows

from meshbus.bus.interface import STATUS
from meshbus.bus.nkeys import UserKey
from meshbus.bus.permissions import IDENTITIES, inbox_prefix
from meshbus.model.keys import Key
from meshbus.model.requests import (
    CREDENTIAL,
    JOIN_TOKEN,
    PROXY_CONFIG,
    CredentialReply,
    CredentialRequest,
    ProxyConfigReply,
    ProxyConfigRequest,
)
from meshbus.model.rows import ConfigObject
from meshbus.runtime.calls import answer, call
from meshbus.runtime.process import make_context
from meshbus.runtime.sealed import seal

pytestmark = pytest.mark.real


@pytest_asyncio.fixture
async def mesh(bus_for, tmp_path):
    async with mesh_on(bus_for, tmp_path, CaMesh, "policy") as running:
        running.ca_settings = {"require_proof": True}
        await running.start()
        yield running


# --------------------------------------------------------------------------- users of the bus


class Raw:
    """A user of the bus without our library."""

    def __init__(self, connection: Any, errors: list[str]) -> None:
        self.connection, self.errors = connection, errors

    async def refused(self, act: Any) -> bool:
        """The server denies it."""
        before = len(self.errors)
        await act
        # The first PING may overtake what waits to be sent, the second one does not.
        await self.connection.flush()
        await self.connection.flush()
        for _ in range(10):
            await asyncio.sleep(0)  # what the server said before its PONG is told by a task
        return any("permissions violation" in e.lower() for e in self.errors[before:])


@contextlib.asynccontextmanager
async def connected(server: Any, identity: str):
    errors: list[str] = []

    async def said(error: Exception) -> None:
        errors.append(str(error))

    connection = Client()
    key = UserKey.from_seed((server.seeds / f"{identity}.seed").read_text())
    connection._public_nkey = key.public
    await connection.connect(
        server.url,
        error_cb=said,
        allow_reconnect=False,
        connect_timeout=2,
        signature_cb=key.sign,
        inbox_prefix=inbox_prefix(identity).encode(),
    )
    try:
        yield Raw(connection, errors)
    finally:
        await connection.close()


async def test_nobody_uses_the_bus_without_a_key_of_the_mesh(mesh, nats_server):
    for key in (None, UserKey.generate()):
        connection = Client()
        if key is not None:
            connection._public_nkey = key.public
        with pytest.raises(Error, match=r"(?i)authorization"):
            await connection.connect(
                nats_server.url,
                allow_reconnect=False,
                connect_timeout=2,
                signature_cb=key.sign if key else None,
            )


ROWS = {
    "config": ("cfg.virtualservices.default.x", "st.virtualservices.default.x", "mesh.config.-.m"),
    "discovery": ("reg.services.default.x", "reg.endpoints.default.x"),
    "ca": ("sec.trust.-.x",),
}
"""Subjects of rows, by who alone may write them."""
QUESTIONS = {
    "x.config.credential": {"xds-gateway", "config"},
    "x.ca.join-token": {"local", "config"},
    "x.config.pull-secret": {"policy", "config"},
    "x.ca.revoke": {"config"},
    "x.ca.rotation": {"config"},
    "x.ca.certificates": {"config"},
    **{f"x.ca.sign.{i}": {i} for i in ("config", "xds-gateway", "policy", "telemetry")},
}
"""Who alone may ask."""


@pytest.mark.parametrize("identity", IDENTITIES)
async def test_a_user_of_the_bus_does_its_own_and_no_more(mesh, nats_server, identity):
    async with connected(nats_server, identity) as user:
        connection = user.connection
        for owner, subjects in ROWS.items():
            for subject in subjects:
                wrote = not await user.refused(connection.publish(f"m.{CLUSTER}.{subject}", b""))
                assert wrote == (identity == owner), (identity, subject)
        for subject, askers in QUESTIONS.items():
            asked = not await user.refused(connection.publish(subject, b"{}"))
            assert asked == (identity in askers), (identity, subject)
        for stream in ("MODEL", "CERTS", "EVENTS", "LEASE", "STATUS", "MODEL_H"):
            for verb in ("PURGE", "DELETE", "MSG.DELETE", "SNAPSHOT", "RESTORE"):
                subject = f"$JS.API.STREAM.{verb}.{stream}"
                assert await user.refused(connection.publish(subject, b"")), (identity, subject)
        wrote = not await user.refused(connection.publish("certs.c.revocations.x", b"{}"))
        assert wrote == (identity == "ca")
        # Replies to others, rows as they pass, and everything at once.
        others = [f"{inbox_prefix(other)}.>" for other in IDENTITIES if other != identity]
        for subject in (*others, "m.>", "s.>", "certs.>", "events.>", ">", "_INBOX.>"):
            assert await user.refused(connection.subscribe(subject)), (identity, subject)
        assert await user.refused(connection.subscribe("x.ca.sign.xds-gateway")) == (
            identity != "ca"
        )


# --------------------------------------------------------------------------- workloads


async def test_a_workload_gets_its_own_identity_and_no_secret_of_others(mesh):
    async def credential(request: CredentialRequest) -> CredentialReply:
        data = {"tls.crt": base64.b64encode(b"c").decode(), "tls.key": ""}
        return CredentialReply(seal(request.public_key, json.dumps(data).encode()))

    await answer(mesh.buses["config"], CREDENTIAL, CredentialRequest, credential)
    await mesh.start_gateway()
    secret = ConfigObject("v1", "Secret", "default", "web", "u", 1, 0.0)
    await mesh.write(
        *server_rows(),
        workload("other", "127.0.0.11"),
        {Key(CLUSTER, "cfg", "secrets", "default", "web"): secret},
    )
    ads = Ads(mesh, await mesh.token("server"))
    await ads.ask(CDS)
    response = await ads.next(CDS)
    await ads.ask(CDS, response_nonce=response.nonce)
    wanted = ("default", "kubernetes://web", "spiffe://cluster.local/ns/default/sa/other")
    await ads.ask(SDS, *wanted)
    got: dict[str, Any] = {}
    absent: set[str] = set()
    while len(got) + len(absent) < len(wanted):
        response = await ads.next(SDS)
        got |= {r.name: r.resource.value for r in response.resources}
        absent |= set(response.removed_resources)
        await ads.ask(SDS, response_nonce=response.nonce)
    assert absent == {"kubernetes://web", "spiffe://cluster.local/ns/default/sa/other"}
    own = secret_pb2.Secret.FromString(got["default"])
    assert own.tls_certificate.private_key.inline_bytes
    records = (await mesh.certificates(limit=100)).certificates
    assert "spiffe://cluster.local/ns/default/sa/other" not in {r.identity for r in records}


ISSUER = "https://ca.istio-system.svc.cluster.local"


def claims(**more: Any) -> dict[str, Any]:
    now = int(time.time())
    return {
        "iss": ISSUER,
        "aud": ["istio-ca"],
        "iat": now,
        "exp": now + 600,
        "jti": "x",
        "sub": "system:serviceaccount:default:server",
        "kubernetes.io": {"namespace": "default", "pod": {"name": "server-0"}},
        **more,
    }


async def test_tokens_of_others_for_others_and_of_yesterday_are_refused(mesh):
    await mesh.start_gateway()
    await mesh.write(*server_rows())
    own = mesh.ca._token_key
    stranger = ec.generate_private_key(ec.SECP256R1())
    now = int(time.time())
    bad = {
        "another key": jwt.encode(claims(), stranger, "ES256", headers={"kid": own.key_id}),
        "an unknown key": jwt.encode(claims(), stranger, "ES256", headers={"kid": "k"}),
        "another audience": claims(aud=["vault"]),
        "no audience": claims(aud=None),
        "another issuer": claims(iss="https://elsewhere"),
        "expired": claims(iat=now - 7200, exp=now - 3600),
        "not valid yet": claims(nbf=now + 3600),
        "no end": claims(exp=None),
        "no workload": claims(sub="system:anonymous"),
        "no pod": claims(**{"kubernetes.io": {"namespace": "default"}}),
        "none": jwt.encode(claims(), None, "none", headers={"kid": own.key_id}),
        "shared key": jwt.encode(claims(), "x" * 64, "HS256", headers={"kid": own.key_id}),
    }
    for what, token in bad.items():
        if isinstance(token, dict):
            body = {name: value for name, value in token.items() if value is not None}
            token = jwt.encode(body, own.key, "ES256", headers={"kid": own.key_id})
        ads = Ads(mesh, token)
        code, details = await ads.refusal()
        assert code is grpc.StatusCode.UNAUTHENTICATED, (what, details)
        assert token[:40] not in details
    good = jwt.encode(claims(), own.key, "ES256", headers={"kid": own.key_id})
    ads = Ads(mesh, good)
    await ads.ask(CDS)
    await ads.next(CDS)


@contextlib.asynccontextmanager
async def second_gateway(mesh, bus):
    """Another replica; it listens on the other loopback address, so that who calls it has another
    address as well. Gives what `Ads` needs to know."""
    process = msgspec.structs.replace(mesh.process, pod="xds-gateway-1")
    settings = XdsGatewaySettings(listen="[::1]:0", transport=mesh.transport)
    gateway = XdsGatewayService(make_context(XdsGatewayService, settings, process, bus))
    task = asyncio.create_task(gateway.run())
    try:
        await mesh.until(lambda: task.done() or gateway.port is not None, "it listens")
        yield SimpleNamespace(gateway=gateway, trust=mesh.trust, host="[::1]")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await bus.close()


async def answered(mesh, token: str) -> bool:
    """A stream with a token is served; ends it."""
    ads = Ads(mesh, token)
    await ads.ask(CDS)
    try:
        await ads.next(CDS)
    except (AssertionError, grpc.aio.AioRpcError):
        # Asked without a message: a client whose message comes after the end loses the status.
        silent = Ads(mesh, token)
        code, details = await silent.refusal()
        await silent.channel.close()
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert "another address" in details
        return False
    finally:
        await ads.channel.close()
    return True


async def test_a_join_token_is_for_the_machine_that_used_it_first(mesh, bus_for):
    await mesh.start_gateway()
    await mesh.write(*server_rows())
    async with second_gateway(mesh, await bus_for("xds-gateway")) as other:
        token = await mesh.token("server")
        assert await answered(mesh, token)
        assert await answered(mesh, token), "its Envoy shows it with each stream"
        assert not await answered(other, token), "it is known at every replica"
        assert not await answered(other, token)
        assert await answered(mesh, token), "the first one goes on"

        fresh = await mesh.token("server")
        assert await answered(other, fresh)
        assert not await answered(mesh, fresh)

        # Both at once: one of them is first.
        for _ in range(8):
            raced = await mesh.token("server")
            got = await asyncio.gather(answered(mesh, raced), answered(other, raced))
            assert sorted(got) == [False, True]


async def test_first_uses_outlive_a_restart_of_the_bus(mesh, bus_for, nats_server):
    """STATUS is in memory: replicas say again what they know."""
    await mesh.start_gateway()
    await mesh.write(*server_rows())
    token = await mesh.token("server")
    assert await answered(mesh, token)
    subject = f"s.{CLUSTER}.xds-gateway.tokens.>"
    bus = mesh.buses["config"]
    nats_server.kill()
    await mesh.until(lambda: not bus.connected, "the bus is away")
    nats_server.start()
    await mesh.until(lambda: bus.connected, "the bus is back")
    await bus.ensure_streams()

    class Heard:
        def __init__(self) -> None:
            self.users: list[bytes] = []

        def begin(self) -> None:
            self.users = []

        def end(self, sequence: int) -> None: ...

        def apply(self, messages) -> None:
            self.users += [message.data for message in messages]

    heard = Heard()
    task = asyncio.create_task(
        mesh.buses["ca"].follower(STATUS, [subject], heard, name="test").run()
    )
    await mesh.until(lambda: heard.users, "the replica has said it again")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    async with second_gateway(mesh, await bus_for("xds-gateway")) as other:
        assert not await answered(other, token)


async def test_only_who_lets_workloads_in_gets_join_tokens(mesh):
    for name in ("xds-gateway", "discovery", "policy"):
        with pytest.raises(Exception, match=r"(?i)permission|time|respond|unavailable"):
            await call(mesh.buses[name], JOIN_TOKEN, {}, dict, timeout=0.5)


# --------------------------------------------------------------------------- what is shown


@pytest.mark.slow
async def test_nothing_that_is_shown_holds_a_key_or_a_token(mesh, capfd):
    envoy_binary()
    await mesh.start_gateway()
    async with serving(mesh) as served:
        dump = await served.server.admin("/config_dump?include_eds")
        assert "[redacted]" in dump
        shown = [dump, await served.server.admin("/certs"), await served.server.admin("/clusters")]
        reply = await call(
            mesh.buses["config"],
            replica_subject(PROXY_CONFIG, "xds-gateway-0"),
            ProxyConfigRequest("server-0.default"),
            ProxyConfigReply,
        )
        shown.append(json.dumps(reply.document))
        token = (served.server.folder / "token").read_text()
        for admin in (mesh.ca._context.admin, mesh.gateway._context.admin):
            for handler in admin.debug.values():
                value = handler()
                shown.append(repr(await value if asyncio.iscoroutine(value) else value))
        rows = repr([e.row for t in mesh.mirror.world.tables() for e in mesh.mirror.world.all(t)])
        shown.append(rows)
        out, err = capfd.readouterr()
        shown += [out, err, served.server.log]
        for text in shown:
            assert "PRIVATE KEY" not in text
            assert token not in text
            assert token.rsplit(".", 1)[1] not in text
