"""Roots and intermediates change under live traffic of real Envoys, and no request is lost."""

import asyncio
import contextlib
import time

import httpx
import pytest
import pytest_asyncio
from ca_mesh import CaMesh, made, plug
from cryptography import x509
from gateway_mesh import by, envoy_binary, mesh_on
from meshbus_ca.authority import fingerprint
from meshbus_ca.issue import make_intermediate
from sidecar_pair import Pair, serving

pytestmark = [pytest.mark.real, pytest.mark.slow]
LEAF_S = 60


@pytest_asyncio.fixture
async def mesh(family, bus_for, tmp_path):
    envoy_binary()
    async with mesh_on(bus_for, tmp_path, CaMesh) as running:
        running.ca_settings = {"leaf_ttl_s": LEAF_S, "require_proof": True}
        yield running


class Traffic:
    """Requests without a pause, and what became of them."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self.answered = 0
        self.failed: list[str] = []

    async def run(self) -> None:
        while True:
            try:
                reply = await self._pair.get()
            except httpx.HTTPError as error:
                self.failed.append(repr(error))
            else:
                if reply.status_code == 200:
                    self.answered += 1
                else:
                    self.failed.append(f"{reply.status_code} {reply.text}")
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def under_traffic(mesh: CaMesh):
    await mesh.start_gateway(leaf_ttl_s=LEAF_S)
    pair = Pair()
    await mesh.write(*pair.rows())
    async with serving(mesh, pair) as (server, client, _):
        traffic = Traffic(pair)
        running = asyncio.create_task(traffic.run())
        try:
            yield server, client, traffic
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def issuers(envoy) -> str:
    return await envoy.admin("/certs")


def roots_of(mesh: CaMesh) -> set[str]:
    loaded = x509.load_pem_x509_certificates(mesh.trust.roots_pem.encode())
    return {fingerprint(certificate) for certificate in loaded}


@by(6)
async def test_self_signed_root_changes_under_traffic_also_when_the_ca_dies(mesh):
    await mesh.start()
    async with under_traffic(mesh) as (_, client, traffic):
        before = await mesh.rotation()
        assert (before.phase, before.waiting, before.warnings) == ("steady", "", [])
        (old,) = roots_of(mesh)

        started = await mesh.rotation(start=True)
        assert started.phase == "announce"
        new = started.next_root

        async def another_process() -> None:
            """A crash between two steps: it goes on where this one was."""
            await mesh.stop("ca")
            mesh.start_ca()

        async def signs_with_the_new() -> bool:
            return (await mesh.rotation()).phase == "sign"

        async def drops_the_old() -> bool:
            return (await mesh.rotation()).phase in ("drop", "steady")

        async def over() -> bool:
            return (await mesh.rotation()).phase == "steady"

        await another_process()
        await mesh.until(signs_with_the_new, "the fleet has both roots")
        assert roots_of(mesh) == {old, new}
        await another_process()
        await mesh.until(drops_the_old, "nobody uses the old root", timeout_s=2 * LEAF_S)
        await another_process()
        await mesh.until(over, "the old root is gone")
        assert roots_of(mesh) == {new}
        assert (await mesh.rotation()).root == new
        seen = traffic.answered
        await mesh.until(lambda: traffic.answered > seen + 50, "requests go on")
        assert traffic.failed == []
        assert await client.stat("cluster.xds-gateway.upstream_cx_connect_fail") <= 0


@by(4)
async def test_plugged_in_intermediate_and_root_change_under_traffic(mesh, tmp_path):
    folder = tmp_path / "cacerts"
    root, intermediate = made(time.time())
    plug(folder, root, intermediate)
    mesh.ca_settings |= {"plugged": str(folder)}
    await mesh.start()
    old = fingerprint(root.certificate)
    async with under_traffic(mesh) as (_, _, traffic):
        assert roots_of(mesh) == {old}
        second = make_intermediate(root, "cluster.local", time.time())
        plug(folder, root, second)

        async def second_signs() -> bool:
            return (await mesh.rotation()).signer == fingerprint(second.certificate)

        await mesh.until(second_signs, "the next intermediate signs")
        assert (await mesh.rotation()).phase == "steady", "nothing to announce"

        # Half a swap is no swap: the key is not that of the certificate.
        other_root, other = made(time.time())
        (folder / "ca-cert.pem").write_text(other.pem)

        async def said() -> bool:
            return any("ca-key.pem" in w for w in (await mesh.rotation()).warnings)

        await mesh.until(said, "the ca says what is wrong")
        plug(folder, other_root, other)
        new = fingerprint(other_root.certificate)

        async def over() -> bool:
            now = await mesh.rotation()
            return now.phase == "steady" and now.root == new

        await mesh.until(over, "the old root is gone", timeout_s=2 * LEAF_S)
        assert roots_of(mesh) == {new}
        seen = traffic.answered
        await mesh.until(lambda: traffic.answered > seen + 50, "requests go on")
        assert traffic.failed == []
