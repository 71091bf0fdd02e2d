"""Policies of Istio 1.4 on real Envoys."""

import pytest
from gateway_mesh import config, host
from test_security_envoys import ISSUER, Issuer

from meshbus.local.network import host_port

pytestmark = [pytest.mark.real, pytest.mark.slow]


def legacy(kind, plural, name, spec, namespace="default"):
    return config(kind, plural, name, spec, namespace)


def policy(spec):
    return legacy("Policy", "policies", "default", spec)


MTLS = {"peers": [{"mtls": {}}]}


async def test_origins_and_trigger_rules(served):
    pair, issuer, stranger = served.pair, Issuer(), Issuer()
    triggers = [{"includedPaths": [{"prefix": "/a"}], "excludedPaths": [{"suffix": ".css"}]}]
    jwt = {"issuer": ISSUER, "jwks": issuer.jwks, "triggerRules": triggers}
    await served.applied(policy({**MTLS, "origins": [{"jwt": jwt}]}))
    assert await pair.status("/other") == 200
    assert await pair.status("/a/x.css") == 200
    assert await pair.status("/a") == 401, "an origin is needed, unlike with RequestAuthentication"
    assert await pair.status("/a?x.css") == 401, "a query is not part of the path"
    assert await pair.status("/a", **issuer.bearer()) == 200
    assert "authorization" in served.got[-1], "the token goes on to the application"
    assert await pair.status("/a", **stranger.bearer()) == 401

    optional = {**MTLS, "origins": [{"jwt": jwt}], "originIsOptional": True}
    await served.applied(policy(optional))
    assert await pair.status("/a") == 200
    assert await pair.status("/a", **stranger.bearer()) == 200

    other = {"issuer": "https://other.example", "jwks": stranger.jwks}
    first = {"issuer": ISSUER, "jwks": issuer.jwks}
    await served.applied(policy({**MTLS, "origins": [{"jwt": first}, {"jwt": other}]}))
    assert await pair.status() == 401
    assert await pair.status(**issuer.bearer()) == 200
    assert await pair.status(**stranger.bearer(iss="https://other.example")) == 200
    assert await pair.status(**stranger.bearer()) == 401


async def test_roles(served):
    pair, issuer = served.pair, Issuer()
    on = legacy("ClusterRbacConfig", "clusterrbacconfigs", "default", {"mode": "ON"}, "")
    await served.applied(on)
    assert await pair.status() == 403
    role = {"rules": [{"services": [host("server")], "methods": ["GET"], "paths": ["/r/*"]}]}
    await served.applied(
        legacy("ServiceRole", "serviceroles", "reader", role),
        legacy(
            "ServiceRoleBinding",
            "servicerolebindings",
            "readers",
            {
                "subjects": [{"user": "cluster.local/ns/default/sa/client"}],
                "roleRef": {"kind": "ServiceRole", "name": "reader"},
            },
        ),
    )
    assert (await pair.status("/r/1"), await pair.status("/w/1")) == (200, 403)

    # By the token, where the principal is the origin's.
    jwt = {"issuer": ISSUER, "jwks": issuer.jwks}
    bound = {**MTLS, "origins": [{"jwt": jwt}], "principalBinding": "USE_ORIGIN"}
    ann = {"properties": {"request.auth.principal": f"{ISSUER}/ann"}}
    await served.applied(
        policy(bound),
        legacy(
            "ServiceRoleBinding",
            "servicerolebindings",
            "readers",
            {"subjects": [ann], "roleRef": {"kind": "ServiceRole", "name": "reader"}},
        ),
    )
    assert await pair.status("/r/1", **issuer.bearer()) == 200
    assert await pair.status("/r/1", **issuer.bearer(sub="bob")) == 403
    assert await pair.status("/r/1") == 401

    permissive = {"mode": "ON", "enforcementMode": "PERMISSIVE"}
    await served.applied(
        legacy("ClusterRbacConfig", "clusterrbacconfigs", "default", permissive, "")
    )
    assert await pair.status("/w/1", **issuer.bearer(sub="bob")) == 200
    stats = await served.server.admin("/stats?filter=istio_dry_run_allow_")
    denied = [line for line in stats.splitlines() if "shadow_denied: " in line]
    assert any(not line.endswith(": 0") for line in denied), stats


async def test_mutual_tls_by_policy(served):
    pair = served.pair
    plain = f"http://{host_port(pair.server, pair.port)}/"
    import httpx

    async with httpx.AsyncClient() as outside:

        async def taken() -> bool:
            try:
                return (await outside.get(plain)).status_code == 200
            except httpx.TransportError:
                return False

        async def refused() -> bool:
            return not await taken()

        await served.mesh.until(taken, "plain text is taken: nobody says otherwise")
        strict = legacy("MeshPolicy", "meshpolicies", "default", MTLS, "")
        await served.applied(strict)
        await served.mesh.until(refused, "the mesh asks for mutual TLS")
        assert await pair.status() == 200
        exception = {
            "targets": [{"name": "server", "ports": [{"number": pair.port}]}],
            "peers": [],
        }
        await served.applied(legacy("Policy", "policies", "server", exception))
        await served.mesh.until(taken, "but not at this port of this service")

        async def still() -> bool:
            return await pair.status() == 200

        await served.mesh.until(still, "who is in the mesh follows")
