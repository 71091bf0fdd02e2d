"""Signers behind a real API server. Those who sign are stand-ins: a controller of this test that
answers CertificateSigningRequests, and one that answers objects of cert-manager's kind."""

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from meshbus_ca.external import SignerError, checked
from meshbus_ca.issue import Names, issue_leaf, make_root, public_key_of
from meshbus_ca.signer_kubernetes import CertManagerSigner, KubernetesSigner

from meshbus.kube.access import from_kubeconfig
from meshbus.kube.client import KubeClient, KubeError

pytestmark = [pytest.mark.real, pytest.mark.slow]
WEB = "spiffe://cluster.local/ns/default/sa/web"
SIGNER = "meshbus.example/workloads"
CSRS = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
CERT_MANAGER = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "certificaterequests.cert-manager.io"},
    "spec": {
        "group": "cert-manager.io",
        "scope": "Namespaced",
        "names": {
            "kind": "CertificateRequest",
            "plural": "certificaterequests",
            "singular": "certificaterequest",
            "listKind": "CertificateRequestList",
        },
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "x-kubernetes-preserve-unknown-fields": True,
                    }
                },
            }
        ],
    },
}
KEY = ec.generate_private_key(ec.SECP256R1())
ROOT = make_root("elsewhere", time.time())


def csr(name: str = WEB) -> str:
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    signed = builder.add_extension(san, critical=True).sign(KEY, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode()


def signed(request: str) -> str:
    """As a signer does: the names of the CSR."""
    pem = base64.b64decode(request).decode()
    asked = x509.load_pem_x509_csr(pem.encode())
    sans = asked.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    (name,) = sans.get_values_for_type(x509.UniformResourceIdentifier)
    leaf = issue_leaf(ROOT, public_key_of(pem), Names(name), 3600, time.time())
    return base64.b64encode(leaf.public_bytes(serialization.Encoding.PEM)).decode()


@contextlib.asynccontextmanager
async def controller(client: KubeClient, collection: str, answer: Callable[[Any], Any]) -> Any:
    """Answers objects that have no answer yet."""

    async def run() -> None:
        while True:
            for item in json.loads(await client.get(collection))["items"]:
                status = answer(item)
                if status and not (item.get("status") or {}).get("certificate"):
                    path = f"{collection}/{item['metadata']['name']}/status"
                    full = {**item, "status": {**(item.get("status") or {}), **status}}
                    kind = collection.rsplit("/", 1)[1]
                    full |= {
                        "apiVersion": "certificates.k8s.io/v1"
                        if kind.startswith("certificates")
                        else "cert-manager.io/v1",
                        "kind": "CertificateSigningRequest"
                        if kind.startswith("certificates")
                        else "CertificateRequest",
                    }
                    with contextlib.suppress(KubeError):
                        await client.send("PUT", path, full)
            await asyncio.sleep(0.05)

    task = asyncio.create_task(run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def client_of(cluster: Any) -> Any:
    client = KubeClient(await from_kubeconfig(str(cluster.kubeconfig)))
    try:
        yield client
    finally:
        await client.close()


def usable(chain: Any) -> Any:
    return checked(chain, KEY.public_key(), Names(WEB), [ROOT.certificate], time.time())


async def test_certificate_signing_requests(cluster):
    def answer(item: Any) -> Any:
        conditions = (item.get("status") or {}).get("conditions") or ()
        approved = any(c["type"] == "Approved" for c in conditions)
        if item["spec"]["signerName"] == SIGNER and approved:
            return {"certificate": signed(item["spec"]["request"])}
        return None

    async with client_of(cluster) as client:
        signer = KubernetesSigner(client, SIGNER)
        async with controller(client, CSRS, answer):
            made = usable(await signer.sign(csr(), Names(WEB), 3600))
            assert made.leaf.not_valid_after_utc.timestamp() > time.time() + 3000
        with pytest.raises(SignerError, match="not answered in time"):
            await signer.sign(csr(), Names(WEB), 3600)
        left = json.loads(await client.get(CSRS))["items"]
        assert [i for i in left if i["spec"]["signerName"] == SIGNER] == [], "nothing is left over"


async def test_certificate_requests_of_cert_manager(cluster, namespace):
    cluster.apply(CERT_MANAGER)
    refused = []

    def answer(item: Any) -> Any:
        if item["spec"]["issuerRef"] != {
            "group": "cert-manager.io",
            "kind": "ClusterIssuer",
            "name": "mesh",
        }:
            refused.append(item)
            condition = {"type": "Ready", "status": "False", "reason": "Failed", "message": "no"}
            return {"conditions": [condition]}
        return {
            "certificate": signed(item["spec"]["request"]),
            "ca": base64.b64encode(ROOT.pem.encode()).decode(),
        }

    async with client_of(cluster) as client:
        collection = f"/apis/cert-manager.io/v1/namespaces/{namespace}/certificaterequests"
        deadline = asyncio.get_running_loop().time() + 20
        while True:
            try:
                await client.get(collection)
                break
            except KubeError:
                assert asyncio.get_running_loop().time() < deadline
                await asyncio.sleep(0.1)
        async with controller(client, collection, answer):
            signer = CertManagerSigner(client, namespace, "ClusterIssuer/mesh")
            usable(await signer.sign(csr(), Names(WEB), 3600))
            other = CertManagerSigner(client, namespace, "example.com/Issuer/other")
            with pytest.raises(SignerError, match="the signer says no: no"):
                await other.sign(csr(), Names(WEB), 3600)
        assert json.loads(await client.get(collection))["items"] == []
