"""Policies on real Envoys: decided as written, and at once, also on connections that are open."""

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from gateway_mesh import (
    CLUSTER,
    application,
    config,
    endpoints,
    free_port,
    host,
    loopback,
    service,
    workload,
)
from security_mesh import serving

from meshbus.model.keys import Key
from meshbus.model.rows import MeshConfigRow, WorkloadPort

pytestmark = [pytest.mark.real, pytest.mark.slow]
ISSUER = "https://issuer.example"


def policy(name: str, spec: dict[str, Any]) -> Any:
    return config("AuthorizationPolicy", "authorizationpolicies", name, spec)


def gone(rows: Any) -> Any:
    return dict.fromkeys(rows)


async def test_a_policy_holds_on_the_next_request_of_an_open_connection(served):
    pair = served.pair
    before = await served.connections()
    deny = {"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/secret*"]}}]}]}
    await served.applied(policy("deny", deny))
    assert (await pair.status("/secret"), await pair.status("/open")) == (403, 200)

    caller = {"principals": ["cluster.local/ns/default/sa/client"]}
    await served.applied(policy("allow", {"rules": [{"from": [{"source": caller}]}]}))
    assert (await pair.status("/secret"), await pair.status("/open")) == (403, 200)

    await served.applied(gone(policy("deny", {})))
    assert await pair.status("/secret") == 200

    other = {"notNamespaces": ["default"]}
    await served.applied(policy("allow", {"rules": [{"from": [{"source": other}]}]}))
    assert await pair.status("/open") == 403

    await served.applied(policy("allow", {}))  # allows nothing
    assert await pair.status("/open") == 403

    await served.applied(gone(policy("allow", {})))
    assert await pair.status("/open") == 200
    assert await served.connections() == before, "one connection was open all the time"


async def test_a_dry_run_is_seen_and_not_felt(served):
    rows = policy("try", {"action": "DENY", "rules": [{}]})
    ((key, row),) = rows.items()
    dry = msgspec.structs.replace(row, annotations={"istio.io/dry-run": "true"})
    before = await served.connections()
    await served.applied({key: dry})
    assert await served.pair.status() == 200
    assert await served.connections() == before, "seen on the connection that was open"
    stats = await served.server.admin("/stats?filter=istio_dry_run_deny_")
    denied = [line for line in stats.splitlines() if "shadow_denied: " in line]
    assert any(not line.endswith(": 0") for line in denied), stats


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Issuer:
    """Somebody who signs tokens (ES256)."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        numbers = self.key.public_key().public_numbers()
        point = {n: base64url(getattr(numbers, n).to_bytes(32)) for n in ("x", "y")}
        self.jwks = json.dumps({"keys": [{"kty": "EC", "crv": "P-256", "kid": "one", **point}]})

    def token(self, **claims: Any) -> str:
        body = {"iss": ISSUER, "sub": "ann", "exp": int(time.time()) + 600, **claims}
        head = {"alg": "ES256", "kid": "one", "typ": "JWT"}
        text = ".".join(base64url(json.dumps(part).encode()) for part in (head, body))
        r, s = decode_dss_signature(self.key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{text}.{base64url(r.to_bytes(32) + s.to_bytes(32))}"

    def bearer(self, **claims: Any) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token(**claims)}"}


def authentication(issuer: Issuer, **rule: Any) -> Any:
    rules = [{"issuer": ISSUER, "jwks": issuer.jwks, **rule}]
    return config("RequestAuthentication", "requestauthentications", "jwt", {"jwtRules": rules})


async def test_tokens(served):
    pair, issuer, stranger = served.pair, Issuer(), Issuer()
    claims = [{"header": "x-team", "claim": "org.team"}]
    before = await served.connections()
    assert await pair.status(**stranger.bearer()) == 200, "nobody looks at tokens yet"
    await served.applied(
        authentication(
            issuer,
            audiences=["books"],
            fromHeaders=[{"name": "authorization", "prefix": "Bearer "}],
            fromParams=["token"],
            fromCookies=["session"],
            outputClaimToHeaders=claims,
            outputPayloadToHeader="x-payload",
        )
    )
    good: dict[str, Any] = {"aud": "books", "org": {"team": "red"}}
    assert await pair.status() == 200, "a missing token passes"
    assert await pair.status(**issuer.bearer(**good)) == 200
    assert served.got[-1]["x-team"] == "red"
    assert "x-payload" in served.got[-1]
    assert "authorization" not in served.got[-1], "the token stays here unless it is forwarded"
    assert await pair.status(f"/?token={issuer.token(**good)}") == 200
    assert await pair.status(cookie=f"session={issuer.token(**good)}") == 200
    assert await pair.status(**issuer.bearer(aud="films")) == 403
    assert await pair.status(**stranger.bearer(**good)) == 401
    assert await pair.status(**issuer.bearer(**good, exp=1)) == 401
    assert await pair.status(authorization="Bearer nonsense") == 401

    await served.applied(authentication(issuer, forwardOriginalToken=True))
    assert await pair.status(**issuer.bearer()) == 200
    assert "authorization" in served.got[-1]
    await served.applied(gone(authentication(issuer)))
    assert await pair.status(**stranger.bearer()) == 200
    assert await served.connections() == before, "one connection was open all the time"


async def test_policies_read_tokens(served):
    pair, issuer = served.pair, Issuer()
    source = {"requestPrincipals": [f"{ISSUER}/ann"]}
    team = {"key": "request.auth.claims[org][team]", "values": ["red", "blue"]}
    scope = {"key": "request.auth.claims[scope]", "values": ["write"]}
    await served.applied(
        authentication(issuer),
        policy("people", {"rules": [{"from": [{"source": source}], "when": [team, scope]}]}),
    )
    good: dict[str, Any] = {"org": {"team": ["red"]}, "scope": "read write"}
    assert await pair.status() == 403
    assert await pair.status(**issuer.bearer(**good)) == 200
    assert await pair.status(**issuer.bearer(**good, sub="bob")) == 403
    assert await pair.status(**issuer.bearer(**{**good, "org": {"team": "green"}})) == 403
    assert await pair.status(**issuer.bearer(**{**good, "scope": "read"})) == 403


async def test_a_provider_is_asked(mesh):
    address = loopback()
    port = free_port(address)
    provider = {
        "name": "guard",
        "envoyExtAuthzHttp": {
            "service": host("guard"),
            "port": port,
            "includeRequestHeadersInCheck": ["x-pass"],
            "headersToUpstreamOnAllow": ["x-seen-by"],
            "timeout": "2s",
        },
    }
    settings = {
        Key(CLUSTER, "mesh", "config", "", "mesh"): MeshConfigRow(
            {"extensionProviders": [provider]}
        )
    }
    rules = [{"to": [{"operation": {"paths": ["/guarded*"]}}]}]
    custom = {"action": "CUSTOM", "provider": {"name": "guard"}, "rules": rules}
    async with guard(address, port), serving(mesh) as served:
        pair = served.pair
        before = await served.connections()
        assert await pair.status("/guarded") == 200
        # The mesh's first provider and its first policy hold on the connection that is open.
        guards = (service("guard", port), endpoints("guard", {"g": address}, port, "disabled"))
        await served.applied(*guards, settings, policy("ask", custom))
        assert await pair.status("/guarded") == 403
        assert await served.connections() == before, "it is the connection from before"
        assert await pair.status("/open") == 200, "nobody is asked about other paths"
        assert await pair.status("/guarded", **{"x-pass": "yes"}) == 200
        assert served.got[-1]["x-seen-by"] == "guard"


@contextlib.asynccontextmanager
async def guard(address: str, port: int) -> AsyncIterator[None]:
    """Lets pass who says so in `x-pass`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                status = b"200 OK" if b"x-pass: yes" in head else b"403 Forbidden"
                seen = b"x-seen-by: guard\r\ncontent-length: 0\r\n\r\n"
                writer.write(b"HTTP/1.1 " + status + b"\r\n" + seen)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, address, port)
    try:
        yield
    finally:
        server.close()


async def test_tokens_of_others_verify_as_labelled(served, shared_data):
    folder = shared_data / "jwt"
    rule = {"issuer": "testing@secure.istio.io", "jwks": (folder / "jwks.json").read_text()}
    member = {"key": "request.auth.claims[groups]", "values": ["group1"]}
    authn = config("RequestAuthentication", "requestauthentications", "jwt", {"jwtRules": [rule]})
    await served.applied(authn)
    demo = (folder / "demo.jwt").read_text().strip()
    groups = (folder / "groups-scope.jwt").read_text().strip()
    pair = served.pair
    assert await pair.status(authorization=f"Bearer {demo}") == 200
    assert await pair.status(authorization=f"Bearer {demo[:-4]}AAAA") == 401
    await served.applied(policy("members", {"rules": [{"when": [member]}]}))
    assert await pair.status(authorization=f"Bearer {groups}") == 200
    assert await pair.status(authorization=f"Bearer {demo}") == 403


async def speaks(address: str, port: int) -> bool:
    """A TCP connection gets an answer."""
    reader, writer = await asyncio.open_connection(address, port)
    try:
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        return bool(await reader.read(1))
    except ConnectionError:
        return False
    finally:
        writer.close()


async def test_a_policy_ends_connections_that_it_would_not_let_in(mesh):
    """TCP connections that are open, after the drain time. Connections of HTTP go on, for their
    requests are decided one by one."""
    mesh.envoy_options = ("--drain-time-s", "1", "--drain-strategy", "immediate")
    async with serving(mesh) as served:
        pair = served.pair
        other = free_port(pair.server)
        ((key, row),) = workload("server", pair.server, app=pair.app, port=pair.port).items()
        ports = [WorkloadPort("http", pair.port, "HTTP"), WorkloadPort("tcp", other, "TCP")]
        rows = {key: msgspec.structs.replace(row, ports=ports)}
        async with application(pair.app, other, "tcp"):
            await served.applied(rows)
            assert await pair.status() == 200
            before = await served.connections()
            await mesh.until(lambda: speaks(pair.server, other), "the port takes TCP")
            reader, writer = await asyncio.open_connection(pair.server, other)
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")

            at = {"operation": {"ports": [str(other)]}}
            deny = policy("deny", {"action": "DENY", "rules": [{"to": [at]}]})
            await served.applied(deny)
            assert not await speaks(pair.server, other), "no new ones at once"
            async with asyncio.timeout(20):
                while await reader.read(1024):
                    pass  # what was on its way; then the end
            assert await pair.status() == 200
            assert await served.connections() == before, "HTTP stays"

            await served.applied(gone(deny))
            assert await speaks(pair.server, other)


async def test_tcp_fails_safe(served):
    pair = served.pair
    await served.applied(service("server", pair.port, "TCP"))
    ((key, row),) = workload("server", pair.server, app=pair.app, port=pair.port).items()
    tcp = msgspec.structs.replace(row, ports=[WorkloadPort("tcp", pair.port, "TCP")])
    await served.applied({key: tcp})

    async def answers() -> bool:
        return await speaks(pair.server, pair.port)

    async def refuses() -> bool:
        return not await answers()

    await served.mesh.until(answers, "the port takes TCP")
    # Only HTTP can tell a method: as ALLOW the rule matches nothing, as DENY it matches the port.
    http_only = {"to": [{"operation": {"methods": ["GET"], "ports": [str(pair.port)]}}]}
    await served.applied(policy("tcp", {"rules": [http_only]}))
    await served.mesh.until(refuses, "ALLOW of HTTP only refuses TCP")
    await served.applied(policy("tcp", {"action": "DENY", "rules": [http_only]}))
    await served.mesh.until(refuses, "DENY without the method refuses the port")
    other = {"to": [{"operation": {"methods": ["GET"], "ports": ["1"]}}]}
    await served.applied(policy("tcp", {"action": "DENY", "rules": [other]}))
    await served.mesh.until(answers, "another port is not this one's matter")
