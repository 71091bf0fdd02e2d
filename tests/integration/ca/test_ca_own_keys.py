"""Keys at home: a real Envoy with a key that its own machine has made, and renews."""

import asyncio
import contextlib

import msgspec
import pytest
import pytest_asyncio
from ca_mesh import CaMesh
from gateway_mesh import envoy_binary, mesh_on
from sidecar_pair import Pair, serving

from meshbus.cli.own_key import OwnKeyError, request_certificate
from meshbus.local.network import host_port
from meshbus.model.rows import KEYS_ANNOTATION, WorkloadInstance

pytestmark = [pytest.mark.real, pytest.mark.slow]
SERVER = "spiffe://cluster.local/ns/default/sa/server"


@pytest_asyncio.fixture
async def mesh(family, bus_for, tmp_path):
    envoy_binary()
    everywhere = "::" if family == 6 else "0.0.0.0"
    async with mesh_on(bus_for, tmp_path, CaMesh) as running:
        running.ca_settings = {
            "require_proof": True,
            # The name that is called, localhost, is of IPv4 on many machines.
            "csr_listen": host_port(everywhere, 0),
            "csr_mutual_listen": host_port(everywhere, 0),
        }
        await running.start()
        yield running


async def test_a_key_stays_at_home_and_is_renewed_without_a_listener_change(mesh, tmp_path):
    await mesh.start_gateway()
    await mesh.until(lambda: mesh.ca.csr_mutual_port is not None, "CreateCertificate is served")
    home = tmp_path / "keys"
    (tmp_path / "roots.pem").write_text(mesh.trust.roots_pem)
    (tmp_path / "join").write_text(await mesh.token("server"))

    async def request(port: int, token: str = "") -> None:
        where = tmp_path / token if token else None
        ca = f"localhost:{port}"
        await asyncio.to_thread(request_certificate, ca, tmp_path / "roots.pem", home, where, 600)

    await request(mesh.ca.csr_port, "join")
    assert (home / "key.pem").stat().st_mode & 0o077 == 0
    pair = Pair()
    parts = [dict(part) for part in pair.rows()]
    for part in parts:
        for key, row in part.items():
            if isinstance(row, WorkloadInstance) and row.name == "server-0":
                notes = {KEYS_ANNOTATION: str(home)}
                part[key] = msgspec.structs.replace(row, annotations=notes)
    await mesh.write(*parts)
    async with serving(mesh, pair) as (server, _, _):
        assert (await pair.get()).status_code == 200
        records = (await mesh.certificates(identity=SERVER)).certificates
        assert [r.asker for r in records] == ["csr"], "the gateway has asked for none"
        assert records[0].serial in await server.admin("/certs")
        modified = await server.stat("listener_manager.listener_modified")

        await request(mesh.ca.csr_mutual_port)
        renewed = (await mesh.certificates(identity=SERVER)).certificates[0]
        assert renewed.proof == f"certificate {records[0].serial}"

        async def shown() -> bool:
            return renewed.serial in await server.admin("/certs")

        await mesh.until(shown, "the Envoy has the next certificate")
        assert (await pair.get()).status_code == 200
        assert await server.stat("listener_manager.listener_modified") == modified
    with pytest.raises(OwnKeyError, match="UNAUTHENTICATED"):
        await request(mesh.ca.csr_port, "join")  # it has brought in its key
    with contextlib.suppress(FileNotFoundError):
        (home / "key.pem").unlink()
    with pytest.raises(OwnKeyError, match=r"key\.pem"):
        await request(mesh.ca.csr_mutual_port)
