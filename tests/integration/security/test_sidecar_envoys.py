"""Sidecars on real Envoys: what is reached, and where an application is."""

import pytest
from gateway_mesh import application, config, free_port, host

pytestmark = [pytest.mark.real, pytest.mark.slow]


def sidecar(spec):
    return config("Sidecar", "sidecars", "default", spec)


async def test_what_a_sidecar_does_not_import_is_not_reached(served):
    pair = served.pair
    only = {"mode": "REGISTRY_ONLY"}
    await served.applied(sidecar({"egress": [{"hosts": ["~/*"]}], "outboundTrafficPolicy": only}))
    assert await pair.status() == 502
    hosts = [f"default/{host('server')}"]
    await served.applied(sidecar({"egress": [{"hosts": hosts}], "outboundTrafficPolicy": only}))
    assert await pair.status() == 200
    await served.applied(dict.fromkeys(sidecar({})))
    assert await pair.status() == 200


async def test_an_application_at_another_port(served):
    pair = served.pair
    other = free_port(pair.app)
    ingress = {
        "port": {"number": pair.port, "protocol": "HTTP"},
        "defaultEndpoint": f"127.0.0.1:{other}",
    }
    async with application(pair.app, other, "elsewhere"):
        await served.applied(sidecar({"ingress": [ingress]}))

        async def moved() -> bool:
            return (await pair.connection.get("/")).text == "elsewhere"

        await served.mesh.until(moved, "requests go to the other port")
