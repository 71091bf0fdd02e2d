"""The small mesh with a ca whose settings a test chooses, and CAs to plug in."""

import asyncio
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from gateway_mesh import Mesh
from meshbus_ca.issue import Signer, make_intermediate, make_root, pem_of
from meshbus_ca.service import CaService, CaSettings

from meshbus.model.requests import (
    CERTIFICATES,
    ROTATION,
    CertificatesReply,
    CertificatesRequest,
    RotationReply,
    RotationRequest,
)
from meshbus.runtime.calls import call
from meshbus.runtime.process import make_context


class CaMesh(Mesh):
    """`ca_settings` are those of the next ca that is started."""

    ca_settings: dict[str, Any]
    ca: CaService

    def start_ca(self) -> None:
        context = make_context(
            CaService, CaSettings(**self.ca_settings), self.process, self.buses["ca"]
        )
        self.ca = CaService(context)
        self._running["ca"] = asyncio.create_task(self.ca.run())

    @property
    def ca_task(self) -> asyncio.Task[None]:
        return self._running["ca"]

    async def rotation(self, *, start: bool = False) -> RotationReply:
        return await call(self.buses["config"], ROTATION, RotationRequest(start), RotationReply)

    async def certificates(self, **question: Any) -> CertificatesReply:
        return await call(
            self.buses["config"],
            CERTIFICATES,
            CertificatesRequest(**question),
            CertificatesReply,
            timeout=6,
        )


def plug(folder: Path, root: Signer, intermediate: Signer) -> None:
    """Write the four files, each whole."""
    key = intermediate.key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    folder.mkdir(exist_ok=True)
    for name, data in (
        ("ca-cert.pem", intermediate.pem.encode()),
        ("ca-key.pem", key),
        ("root-cert.pem", root.pem.encode()),
        ("cert-chain.pem", (intermediate.pem + pem_of(root.certificate)).encode()),
    ):
        aside = folder / f".{name}"
        aside.write_bytes(data)
        aside.replace(folder / name)


def made(now: float) -> tuple[Signer, Signer]:
    """(a root, an intermediate below it)."""
    root = make_root("cluster.local", now)
    return root, make_intermediate(root, "cluster.local", now)
