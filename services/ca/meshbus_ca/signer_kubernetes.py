"""Signers behind Kubernetes' API: its CertificateSigningRequests, and cert-manager's
CertificateRequests.

An object is made for each certificate and removed when it has been answered. CSRs are approved here
where the ca may (`approve` on the signer); otherwise somebody else has to.

Source: https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/,
https://cert-manager.io/docs/usage/certificaterequest/.
"""

import asyncio
import base64
import contextlib
import uuid
from typing import TYPE_CHECKING, Any

import msgspec

from meshbus_ca.external import Chain, SignerError, certificates_of, check_csr
from meshbus_ca.issue import Names

if TYPE_CHECKING:
    from meshbus.kube.client import KubeClient

WAIT_S = 4.0
LEAST_S = 600
"""Kubernetes signs for no shorter time."""
_LOOK_S = 0.1
_CSRS = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
_USAGES = ["digital signature", "key encipherment", "server auth", "client auth"]


class KubernetesSigner:
    """`signer_name`: `DOMAIN/NAME` of a signer of CertificateSigningRequests."""

    def __init__(self, client: "KubeClient", signer_name: str) -> None:
        self._client = client
        self._signer = signer_name

    async def sign(self, csr_pem: str, names: Names, ttl_s: float) -> Chain:
        """See `LeafSigner`."""
        check_csr(csr_pem, names)
        name = f"meshbus-{uuid.uuid4().hex}"
        path = f"{_CSRS}/{name}"
        body = {
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "meshbus"}},
            "spec": {
                "request": base64.b64encode(csr_pem.encode()).decode(),
                "signerName": self._signer,
                "expirationSeconds": max(int(ttl_s), LEAST_S),
                "usages": _USAGES,
            },
        }
        async with _made(self._client, _CSRS, path, body) as made:
            condition = {
                "type": "Approved",
                "status": "True",
                "reason": "MeshbusIdentity",
                "message": f"the ca has checked the proof of {names.spiffe_id}",
            }
            approved = {**made, "status": {"conditions": [condition]}}
            with _as_signer_error("approve"):
                await self._client.send("PUT", f"{path}/approval", approved)
            status = await _answered(self._client, path, "certificate")
        return Chain(certificates_of(base64.b64decode(status["certificate"]).decode()))


class CertManagerSigner:
    """`issuer`: `[GROUP/]KIND/NAME` of an issuer; the objects are made in one namespace."""

    def __init__(self, client: "KubeClient", namespace: str, issuer: str) -> None:
        self._client = client
        self._path = f"/apis/cert-manager.io/v1/namespaces/{namespace}/certificaterequests"
        parts = issuer.split("/")
        group = parts[0] if len(parts) == 3 else "cert-manager.io"
        self._issuer = {"group": group, "kind": parts[-2], "name": parts[-1]}

    async def sign(self, csr_pem: str, names: Names, ttl_s: float) -> Chain:
        """See `LeafSigner`."""
        check_csr(csr_pem, names)
        name = f"meshbus-{uuid.uuid4().hex}"
        body = {
            "apiVersion": "cert-manager.io/v1",
            "kind": "CertificateRequest",
            "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "meshbus"}},
            "spec": {
                "request": base64.b64encode(csr_pem.encode()).decode(),
                "issuerRef": self._issuer,
                "duration": f"{int(ttl_s)}s",
                "isCA": False,
                "usages": _USAGES,
            },
        }
        path = f"{self._path}/{name}"
        async with _made(self._client, self._path, path, body):
            status = await _answered(self._client, path, "certificate")
        more = base64.b64decode(status.get("ca") or "").decode()
        return Chain(certificates_of(base64.b64decode(status["certificate"]).decode(), more))


@contextlib.asynccontextmanager
async def _made(client: "KubeClient", collection: str, path: str, body: Any) -> Any:
    with _as_signer_error("create"):
        made = msgspec.json.decode(await client.send("POST", collection, body))
    try:
        yield made
    finally:
        with contextlib.suppress(SignerError), _as_signer_error("delete"):
            await client.send("DELETE", path)


async def _answered(client: "KubeClient", path: str, field: str) -> dict[str, Any]:
    """The status of an object, once it has a field.

    Raises:
        SignerError: It was denied, has failed, or nobody answers.
    """
    try:
        async with asyncio.timeout(WAIT_S):
            while True:
                with _as_signer_error("read"):
                    status = msgspec.json.decode(await client.get(path)).get("status") or {}
                for condition in status.get("conditions") or ():
                    if _is_refusal(condition):
                        said = str(condition.get("message", ""))[:200]
                        raise SignerError(f"the signer says no: {said}")
                if status.get(field):
                    found: dict[str, Any] = status
                    return found
                await asyncio.sleep(_LOOK_S)
    except TimeoutError:
        raise SignerError("the signer has not answered in time") from None


def _is_refusal(condition: dict[str, Any]) -> bool:
    if condition.get("type") == "Ready":
        return condition.get("reason") in ("Failed", "Denied")
    final = condition.get("type") in ("Denied", "Failed", "InvalidRequest")
    return final and condition.get("status") == "True"


@contextlib.contextmanager
def _as_signer_error(verb: str) -> Any:
    from meshbus.kube.client import KubeError

    try:
        yield
    except KubeError as error:
        raise SignerError(f"{verb}: {error}") from error
