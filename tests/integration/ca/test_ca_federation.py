"""Two meshes with roots of their own trust each other: traffic between them over mutual TLS, and no
further than their trust domains."""

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from ca_mesh import CaMesh
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from gateway_mesh import (
    CLUSTER,
    IDENTITIES,
    LOOPBACK,
    application,
    config,
    endpoints,
    envoy_binary,
    free_port,
    host,
    mesh_on,
    service,
    workload,
)
from meshbus_ca.bundle_client import fetch
from meshbus_ca.bundles import Bundle, BundleError
from meshbus_ca.issue import make_root
from sidecar_pair import Pair

from meshbus.local.network import host_port
from meshbus.model.keys import Key
from meshbus.model.rows import MeshConfigRow
from meshbus.runtime.settings import ProcessSettings

pytestmark = [pytest.mark.real, pytest.mark.slow]


class DomainMesh(CaMesh):
    """A mesh of a trust domain of its own."""

    domain: str

    @property
    def trust(self) -> Any:
        return self.of(self.domain)

    def of(self, name: str) -> Any:
        return self.mirror.world.get(Key(CLUSTER, "sec", "trust", "", name))

    def settings(self, **spec: Any) -> Any:
        key = Key(CLUSTER, "mesh", "config", "", "mesh")
        return {key: MeshConfigRow({"trustDomain": self.domain, **spec})}


async def make(folder: Path, bus_for: Any, domain: str) -> DomainMesh:
    folder.mkdir()
    buses = {identity: await bus_for(identity) for identity in IDENTITIES}
    mesh = DomainMesh(folder, buses, bus_for)
    mesh.domain = domain
    mesh.process = ProcessSettings(
        state=str(folder / "state"), cluster=CLUSTER, trust_domain=domain
    )
    mesh.ca_settings = {
        "require_proof": True,
        "bundle_listen": host_port(LOOPBACK.own, 0),
        "bundle_refresh_s": 1,
    }
    await mesh.start()
    await mesh.until(lambda: mesh.ca.bundle_port is not None, "the bundle endpoint listens")
    return mesh


@pytest_asyncio.fixture
async def meshes(family, bus_for, second_bus_for, tmp_path):
    envoy_binary()
    async with contextlib.AsyncExitStack() as stack:
        made = []
        for name, buses in (("a", bus_for), ("b", second_bus_for)):
            mesh = await make(tmp_path / name, buses, f"{name}.example")
            stack.push_async_callback(mesh.close)
            made.append(mesh)
        yield made


async def got(*question: str) -> Bundle:
    return await asyncio.to_thread(fetch, *question)


def endpoint(mesh: DomainMesh) -> str:
    return f"https://{host_port(LOOPBACK.own, mesh.ca.bundle_port)}/"


def entries(mesh: DomainMesh, pem: str) -> list[dict[str, Any]]:
    """How another mesh trusts this one: roots to begin with, and where the next ones are."""
    return [
        {"pem": pem, "trustDomains": [mesh.domain]},
        {"spiffeBundleUrl": endpoint(mesh), "trustDomains": [mesh.domain]},
    ]


async def test_traffic_between_two_meshes(meshes):
    a, b = meshes
    first = b.trust.roots_pem
    stranger = make_root("b.example", time.time()).pem
    await a.write(a.settings(caCertificates=entries(b, first)))
    await b.write(b.settings(caCertificates=entries(a, a.trust.roots_pem)))
    await a.until(lambda: a.of("b.example") and a.of("b.example").sequence, "a has b's bundle")
    await b.until(lambda: b.of("a.example") and b.of("a.example").sequence, "b has a's bundle")
    await a.start_gateway()
    await b.start_gateway()
    pair = Pair()
    names = ["spiffe://b.example/ns/default/sa/server"]
    once = {"http": {"maxRequestsPerConnection": 1}}
    rule = {
        "host": host("server"),
        "trafficPolicy": {
            "connectionPool": once,
            "tls": {"mode": "ISTIO_MUTUAL", "subjectAltNames": names},
        },
    }
    await b.write(
        service("server", pair.port),
        endpoints("server", {"server-0": pair.server}, pair.port),
        workload("server", pair.server, app=pair.app, port=pair.port),
        config("PeerAuthentication", "peerauthentications", "all", {"mtls": {"mode": "STRICT"}}),
    )
    await a.write(
        service("server", pair.port),
        endpoints("server", {"server-0": pair.server}, pair.port),
        workload("client", pair.client, http_proxy=pair.proxy_port),
        config("DestinationRule", "destinationrules", "server", rule),
    )

    async def status() -> int:
        return (await pair.get()).status_code

    async def answered() -> bool:
        return await status() == 200

    async def refused() -> bool:
        return await status() == 503

    async with (
        application(pair.app, pair.port, "hello") as requests,
        b.envoy("server", pair.server) as server,
        a.envoy("client", pair.client) as client,
    ):
        await b.until(server.ready, "b's Envoy is ready")
        await a.until(client.ready, "a's Envoy is ready")
        await a.until(answered, "a request goes from a to b")
        shown = requests[-1]["x-forwarded-client-cert"]
        assert "uri=spiffe://a.example/ns/default/sa/client" in shown

        # The roots of b change; a learns of it while requests go on.
        await b.rotation(start=True)
        await a.until(
            lambda: a.of("b.example").roots_pem.count("BEGIN") == 2, "a has b's next root"
        )
        assert await status() == 200

        # b is gone: what a knows of it stays.
        await b.stop("ca")
        reached = a.of("b.example")
        problem = "b.example"

        async def said() -> bool:
            return any(one["problem"] for one in a.ca._federation.status())

        await a.until(said, f"a says that {problem} does not answer")
        await a.stop("ca")
        a.start_ca()
        await a.until(lambda: a.ca.bundle_port is not None, "a's ca is back")
        assert a.of("b.example") == reached
        assert await status() == 200

        # Another root for the same trust domain in place of b's: b is nobody any more.
        await a.write(a.settings(caCertificates=[{"pem": stranger, "trustDomains": ["b.example"]}]))
        await a.until(refused, "b is not trusted")
        # b's roots vouch for b alone: for c.example they are worth nothing.
        await a.write(
            a.settings(
                caCertificates=[
                    {"pem": reached.roots_pem, "trustDomains": ["c.example"]},
                    {"pem": stranger, "trustDomains": ["b.example"]},
                ]
            )
        )
        await a.until(lambda: a.of("c.example") is not None, "c is trusted")
        assert await status() == 503
        await a.write(
            a.settings(caCertificates=[{"pem": reached.roots_pem, "trustDomains": ["b.example"]}])
        )
        await a.until(answered, "b is trusted again")


async def test_the_endpoint_proves_who_it_is(meshes, tmp_path):
    a, b = meshes
    url, roots = endpoint(b), b.trust.roots_pem
    known = await got(url, "b.example", roots)
    assert known.roots_pem == roots
    assert known.refresh_hint_s == 1
    for domain, pem, message in (
        ("c.example", roots, "is not of c.example"),
        ("b.example", a.trust.roots_pem, "certificate verify failed"),
        ("b.example", "", "certificate verify failed"),
    ):
        with pytest.raises(BundleError, match=message):
            await got(url, domain, pem)
    for bad in (url.replace("https", "http"), "https:///", "file:///etc/passwd", "https://u:p@h/"):
        with pytest.raises(BundleError, match="must be https"):
            await got(bad, "b.example", roots)
    nobody = host_port(LOOPBACK.own, free_port(LOOPBACK.own))
    with pytest.raises(BundleError):
        await got(f"https://{nobody}/", "b.example", roots)


async def test_a_bundle_endpoint_of_the_web(bus_for, tmp_path):
    from certificates import Authority

    web = Authority("web")
    cert, key = web.issue("localhost").files(tmp_path, "web")
    (tmp_path / "web-root.pem").write_bytes(web.root)
    async with mesh_on(bus_for, tmp_path, DomainMesh) as mesh:
        mesh.domain = "cluster.local"
        mesh.ca_settings = {
            "bundle_listen": "127.0.0.1:0",
            "bundle_certificate": cert,
            "bundle_key": key,
        }
        await mesh.start()
        await mesh.until(lambda: mesh.ca.bundle_port is not None, "it listens")
        url = f"https://localhost:{mesh.ca.bundle_port}/any/path"
        found = await got(url, "cluster.local", "", str(tmp_path / "web-root.pem"))
        assert found.roots_pem == mesh.trust.roots_pem
        root = x509.load_pem_x509_certificate(found.roots_pem.encode())
        assert isinstance(root.public_key(), ec.EllipticCurvePublicKey)
