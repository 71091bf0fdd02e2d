"""Leaves of workloads signed elsewhere: by a stand-in for Vault."""

import time

import pytest
import pytest_asyncio
from ca_mesh import CaMesh, made
from cryptography import x509
from gateway_mesh import by, envoy_binary, mesh_on
from meshbus_ca.authority import fingerprint
from sidecar_pair import Pair, serving
from test_ca_ledger import REVIEWS, sign
from vault import TOKEN, vault

from meshbus.runtime.calls import CallError
from meshbus.runtime.settings import SettingsError

pytestmark = pytest.mark.real


@pytest_asyncio.fixture
async def elsewhere(family, bus_for, tmp_path):
    root, middle = made(time.time())
    async with vault(root, middle, time.time()) as running:
        (tmp_path / "token").write_text(TOKEN + "\n")
        (tmp_path / "roots.pem").write_text(root.pem)
        async with mesh_on(bus_for, tmp_path, CaMesh) as mesh:
            mesh.ca_settings = {
                "require_proof": True,
                "signer": f"vault+http://127.0.0.1:{running.port}/v1/pki_mesh/sign/workloads",
                "signer_roots": str(tmp_path / "roots.pem"),
                "signer_token": str(tmp_path / "token"),
            }
            await mesh.start()
            yield mesh, running


async def test_traffic_with_certificates_of_a_signer_elsewhere(elsewhere):
    envoy_binary()
    mesh, running = elsewhere
    await mesh.start_gateway()
    pair = Pair()
    await mesh.write(*pair.rows())
    async with serving(mesh, pair) as (_, client, _):
        assert (await pair.get()).status_code == 200
        held = await client.admin("/certs")
        issued = (await mesh.certificates(limit=100)).certificates
        workloads = [r for r in issued if "/ns/default/" in r.identity]
        assert len(workloads) == 2
        assert {r.signer for r in workloads} == {fingerprint(running.middle.certificate)}
        assert {r.root for r in workloads} == {fingerprint(running.root.certificate)}
        assert any(r.serial in held for r in workloads)
        # The control plane's own are the mesh's.
        own = [r for r in issued if r.identity.endswith("/meshbus-xds-gateway")]
        assert {r.signer for r in own}.isdisjoint({r.signer for r in workloads})
        assert {q["uri_sans"] for q in running.asked} == {r.identity for r in workloads}


@by(4)
async def test_what_a_signer_does_wrong_reaches_nobody(elsewhere, tmp_path):
    mesh, running = elsewhere
    token = await mesh.token("reviews")
    reply = await mesh.until(lambda: sign(mesh, REVIEWS, token), "the roots are announced")
    leaf = x509.load_pem_x509_certificate(reply.chain_pem.encode())
    assert f"{leaf.serial_number:x}" in {r.serial for r in (await mesh.certificates()).certificates}
    for wrong, message in (
        ("spiffe://cluster.local/ns/default/sa/admin", "is not for"),
        ("spiffe://other/ns/default/sa/reviews", "is not for"),
    ):
        running.wrong = wrong
        with pytest.raises(CallError, match=message):
            await sign(mesh, REVIEWS, token)
    running.wrong = ""
    (tmp_path / "token").write_text("wrong")
    with pytest.raises(CallError, match="403: permission denied") as refused:
        await sign(mesh, REVIEWS, token)
    assert refused.value.code == "unavailable"
    (tmp_path / "token").write_text(TOKEN)
    assert await sign(mesh, REVIEWS, token)


@pytest.mark.parametrize(
    "settings",
    [
        {"signer": "vault+https://h/v1/pki/sign/x"},
        {"signer": "vault+https://h/v1/pki/issue/x", "signer_roots": "r"},
        {"signer": "vault+http://vault.example/v1/pki/sign/x", "signer_roots": "r"},
        {"signer": "kubernetes:example.com/mesh", "signer_roots": "r"},
        {"signer": "acme:x", "signer_roots": "r"},
    ],
)
async def test_settings_that_cannot_work(bus_for, tmp_path, settings):
    async with mesh_on(bus_for, tmp_path, CaMesh) as mesh:
        mesh.ca_settings = settings
        with pytest.raises(SettingsError, match="MESHBUS_CA_SIGNER"):
            mesh.start_ca()
