"""Leaf certificates of workloads: keys made in memory, signed by the ca, renewed in time.

One certificate per identity (namespace, service account) and workload, for all its proxies at this
replica.
Keys are never written, logged or sent anywhere but to the proxies of the identity.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from meshbus.compile.names import spiffe
from meshbus.compile.resources import Resource
from meshbus.compile.tls_contexts import OWN_CERTIFICATE
from meshbus.model.requests import SignReply, SignRequest, sign_subject
from meshbus.runtime.calls import CallError, call
from meshbus.runtime.clock import happens_within
from meshbus.runtime.sealed import seal
from meshbus.runtime.service import Context
from meshbus_xds_gateway.node import Token
from meshbus_xds_gateway.secret_resources import certificate_secret
from meshbus_xds_gateway.wiping import wipe

Account = tuple[str, str]
"""Namespace, service account."""
Holder = tuple[str, str, str]
"""Namespace, service account, workload: workloads that share an account have certificates of their
own, whose subject tells a server which of them calls."""
RENEW_FROM, RENEW_TO = 0.35, 0.5
"""Renewal begins between these parts of a certificate's life."""
_SIGN_AT_ONCE = 8
_RETRY_S, _MAX_RETRY_S = 0.1, 10.0


@dataclass
class _Leaf:
    users: int = 0
    resource: Resource | None = None
    not_after: float = 0.0
    task: asyncio.Task[None] | None = None
    token: Token | None = None
    """The newest one that a proxy of it came with."""
    serial: str = ""
    """Hex."""
    taken_back: asyncio.Event = field(default_factory=asyncio.Event)


class Leaves:
    """Certificates of the identities that are connected. `changed` is called with an identity
    whose certificate is another one now."""

    def __init__(
        self,
        context: Context[Any],
        tasks: asyncio.TaskGroup,
        ttl_s: int,
        changed: Callable[[Holder], None],
        proof_key: Callable[[], str] = str,
    ) -> None:
        """`proof_key`: what tokens are sealed to on their way to the ca; empty: none is sent."""
        self._context = context
        self._tasks = tasks
        self._ttl_s = ttl_s
        self._changed = changed
        self._proof_key = proof_key
        self._leaves: dict[Holder, _Leaf] = {}
        self._revoked: frozenset[str] = frozenset()
        self._slots = asyncio.Semaphore(_SIGN_AT_ONCE)

    def hold(self, holder: Holder, token: Token | None = None) -> None:
        """A proxy of this identity is connected, which its token proved; `release` undoes it."""
        leaf = self._leaves.setdefault(holder, _Leaf())
        leaf.users += 1
        leaf.token = token or leaf.token
        if leaf.task is None:
            leaf.task = self._tasks.create_task(self._keep(holder, leaf))

    def release(self, holder: Holder) -> None:
        """A proxy of this identity has gone. Its key is dropped with the last one."""
        leaf = self._leaves[holder]
        leaf.users -= 1
        if leaf.users == 0:
            del self._leaves[holder]
            if leaf.task is not None:
                leaf.task.cancel()

    def resource(self, holder: Holder) -> Resource | None:
        """The secret `default` of an identity; None while it is being signed."""
        leaf = self._leaves.get(holder)
        if leaf is None or leaf.not_after <= self._context.clock.now():
            return None
        return leaf.resource

    def revoked(self, serials: frozenset[str]) -> None:
        """These, and no others, are not accepted any more: who has one, or is just being given
        it, gets another, with another key."""
        self._revoked = serials
        for leaf in self._leaves.values():
            if leaf.serial in serials:
                leaf.taken_back.set()

    def __len__(self) -> int:
        return len(self._leaves)

    async def _keep(self, holder: Holder, leaf: _Leaf) -> None:
        clock, log = self._context.clock, self._context.log
        retry_s = _RETRY_S
        while True:
            try:
                async with self._slots:
                    reply, key_pem = await self._sign(holder, leaf.token)
            except CallError as error:
                log.warning(
                    "no certificate for a workload",
                    namespace=holder[0],
                    service_account=holder[1],
                    error=error.message,
                )
                await clock.sleep(retry_s * random.uniform(0.5, 1))  # noqa: S311
                retry_s = min(retry_s * 2, _MAX_RETRY_S)
                continue
            retry_s = _RETRY_S
            chain = reply.chain_pem.encode()
            leaf.resource = certificate_secret(OWN_CERTIFICATE, chain, key_pem)
            wipe(key_pem)
            leaf.not_after = reply.not_after
            leaf.serial = _serial_of(chain)
            leaf.taken_back.clear()
            if leaf.serial in self._revoked:
                leaf.taken_back.set()
            self._changed(holder)
            life_s = max(reply.not_after - clock.now(), 1.0)
            renew_in_s = life_s * random.uniform(RENEW_FROM, RENEW_TO)  # noqa: S311
            await happens_within(clock, leaf.taken_back, renew_in_s)

    async def _sign(self, holder: Holder, token: Token | None) -> tuple[SignReply, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        name = spiffe(self._context.trust_domain, *holder[:2])
        # The ca takes the name from the proof; a signer elsewhere may want it in the CSR.
        san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name)])
        csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        signed = csr.add_extension(san, critical=True).sign(key, hashes.SHA256())
        proof_key = self._proof_key()
        request = SignRequest(
            csr_pem=signed.public_bytes(serialization.Encoding.PEM).decode(),
            service=self._context.name,
            spiffe_id=name,
            subject=holder[2],
            ttl_s=self._ttl_s,
            proof=seal(proof_key, token.value.encode()) if token and proof_key else "",
            pod=self._context.pod,
        )
        reply = await call(
            self._context.bus, sign_subject("xds-gateway"), request, SignReply, timeout=5
        )
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return reply, pem


def _serial_of(chain_pem: bytes) -> str:
    return f"{x509.load_pem_x509_certificate(chain_pem).serial_number:x}"
