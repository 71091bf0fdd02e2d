"""The identity of a server of the control plane: a key in memory, its certificate from the ca."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from meshbus.model.requests import SignReply, SignRequest, sign_subject
from meshbus.runtime.calls import CallError, call
from meshbus.runtime.service import Context

TTL_S = 24 * 3600


class ServingIdentity:
    """Keeps a certificate for gRPC servers. `run` it in the service's task group.

    The key never leaves the process; each renewal makes a new one. Renewal begins between 35 and
    50 percent of the certificate's life.
    """

    def __init__(
        self,
        context: Context[Any],
        spiffe_id: str,
        dns_names: list[str] | None = None,
        ip_addresses: list[str] | None = None,
    ) -> None:
        self._context = context
        self._spiffe_id = spiffe_id
        self._dns_names = dns_names or []
        self._ip_addresses = ip_addresses or []
        self._ready = asyncio.Event()
        self._roots_pem = ""
        self._pair: tuple[bytes, bytes] | None = None
        self._renewed: list[Callable[[bytes, bytes], None]] = []

    @property
    def roots_pem(self) -> str:
        """The roots that peers are checked with."""
        return self._roots_pem

    @property
    def key_and_chain_pem(self) -> tuple[bytes, bytes]:
        """For servers that are no gRPC servers. Call after `ready`."""
        assert self._pair is not None, "no certificate yet: await ready()"
        return self._pair

    def on_renewal(self, callback: Callable[[bytes, bytes], None]) -> None:
        """Call with each newer key and chain."""
        self._renewed.append(callback)

    async def ready(self) -> None:
        """Until there is a certificate."""
        await self._ready.wait()

    async def run(self) -> None:
        """Get certificates and renew them, until cancelled."""
        clock, log = self._context.clock, self._context.log
        wait_s = 0.05
        while True:
            try:
                reply = await self._renew()
            except CallError as error:
                log.warning("no certificate", spiffe_id=self._spiffe_id, error=error.message)
                await clock.sleep(wait_s * random.uniform(0.5, 1))  # noqa: S311
                wait_s = min(wait_s * 2, 5.0)
                continue
            wait_s = 0.05
            life = max(reply.not_after - clock.now(), 1.0)
            await clock.sleep(life * random.uniform(0.35, 0.5))  # noqa: S311

    async def _renew(self) -> SignReply:
        key = ec.generate_private_key(ec.SECP256R1())
        csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        request = SignRequest(
            csr_pem=csr.sign(key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
            .decode(),
            service=self._context.name,
            spiffe_id=self._spiffe_id,
            dns_names=self._dns_names,
            ip_addresses=self._ip_addresses,
            ttl_s=TTL_S,
            subject=self._context.name,
            pod=self._context.pod,
        )
        subject = sign_subject(self._context.name)
        reply = await call(self._context.bus, subject, request, SignReply, timeout=3)
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        self._roots_pem = reply.roots_pem
        self._pair = (pem, reply.chain_pem.encode())
        self._ready.set()
        for callback in self._renewed:
            callback(*self._pair)
        return reply

    def grpc_credentials(self, *, require_client: bool = False) -> grpc.ServerCredentials:
        """Credentials of a gRPC server, which follow the renewals. Call after `ready`."""
        assert self._pair is not None, "no certificate yet: await ready()"
        given = self._pair

        def newer() -> grpc.ServerCertificateConfiguration | None:
            """gRPC asks at each handshake and frees what it is given: the same one again would end
            the process."""
            nonlocal given
            newest = self._pair
            if newest is None or newest is given:
                return None
            given = newest
            return self._configuration(given)

        return grpc.dynamic_ssl_server_credentials(
            self._configuration(given), newer, require_client_authentication=require_client
        )

    def _configuration(self, pair: tuple[bytes, bytes]) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [pair], root_certificates=self._roots_pem.encode()
        )
