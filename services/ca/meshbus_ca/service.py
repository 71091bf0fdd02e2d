"""The ca: signs certificates and join tokens over request/reply, publishes what they are checked
with. It needs the bus to be asked; without it it keeps its keys and waits."""

import asyncio
import uuid
from functools import partial
from typing import Annotated, Any, ClassVar

import msgspec
from cryptography import x509
from prometheus_client import Counter, Gauge

from meshbus.bus.interface import BusError
from meshbus.bus.mirror import WorldMirror
from meshbus.bus.writer import ModelWriter
from meshbus.model.keys import Key, escape_token
from meshbus.model.requests import (
    JOIN_TOKEN,
    JoinTokenReply,
    JoinTokenRequest,
    SignReply,
    SignRequest,
    sign_subject,
)
from meshbus.model.rows import Trust
from meshbus.runtime.calls import CallError, answer
from meshbus.runtime.sealed import SealError, seal
from meshbus.runtime.service import Context
from meshbus_ca.grants import SERVICES, ForbiddenError, granted_names
from meshbus_ca.issue import MIN_TTL_S, InvalidCsrError, Signer, issue_leaf, pem_of, public_key_of
from meshbus_ca.keystore import Keystore
from meshbus_ca.tokens import InvalidTokenRequestError, issuer_of, join_token
from meshbus_ca.trust import trust_row

CHECK_S = 60.0
"""How often the intermediate's age and the trust row are looked at."""
RETRY_S = 0.5


class CaSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of the ca."""

    leaf_ttl_s: Annotated[
        int, msgspec.Meta(description="longest life of a certificate in seconds", ge=60)
    ] = 86400


class CaService:
    """Serves `x.ca.sign` and `x.ca.join-token`; the leader writes `sec.trust`."""

    name: ClassVar[str] = "ca"
    settings_type: ClassVar[type[msgspec.Struct]] = CaSettings

    def __init__(self, context: Context[CaSettings]) -> None:
        self._context = context
        self._keystore = Keystore(context.state, context.trust_domain)
        self._issuer = issuer_of(context.trust_domain, context.root_namespace)
        self._trust_key = Key(context.cluster, "sec", "trust", "", context.trust_domain)
        self._mirror = WorldMirror()
        self._moved = asyncio.Event()
        self._intermediate: Signer | None = None
        self._signed = Counter(
            "meshbus_ca_certificates",
            "Certificates asked for, by asker and outcome.",
            ["service", "outcome"],
            registry=context.metrics,
        )
        self._tokens = Counter(
            "meshbus_ca_join_tokens",
            "Join tokens asked for.",
            ["outcome"],
            registry=context.metrics,
        )
        self._ends = Gauge(
            "meshbus_ca_root_not_after_seconds",
            "When the root ends, seconds since the epoch.",
            registry=context.metrics,
        )

    async def run(self) -> None:
        """Until cancelled.

        Raises:
            KeystoreError: A key on disk cannot be used.
        """
        context = self._context
        now = context.clock.now()
        self._root = self._keystore.root(now)
        self._intermediate = self._keystore.intermediate(self._root, now)
        self._token_key = self._keystore.token_key()
        self._ends.set(self._root.not_after)
        context.admin.add_ready("trust", self._not_ready)
        self._mirror.subscribe(lambda _world, _touched: self._moved.set())
        writer = ModelWriter(
            context.bus,
            cluster=context.cluster,
            service=self.name,
            pod=context.pod,
            now=context.clock.now,
            monotonic=context.clock.monotonic,
        )
        follower = self._mirror.follow(
            context.bus, (f"m.{escape_token(context.cluster)}.sec.>",), name=context.pod
        )
        for service in sorted(SERVICES):
            await answer(
                context.bus,
                sign_subject(service),
                SignRequest,
                partial(self._sign, service),
                queue=self.name,
            )
        await answer(context.bus, JOIN_TOKEN, JoinTokenRequest, self._join_token, queue=self.name)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(follower.run())
            tasks.create_task(writer.run())
            await follower.wait_synced()
            await self._keep_trust(writer)

    def _not_ready(self) -> str | None:
        return None if self._vouched() else "its root is not in sec.trust yet"

    def _vouched(self) -> bool:
        """The mesh trusts this replica's root."""
        row = self._mirror.world.get(self._trust_key)
        return isinstance(row, Trust) and self._root.pem in row.roots_pem

    async def _keep_trust(self, writer: ModelWriter) -> None:
        context = self._context
        while True:
            self._moved.clear()
            now = context.clock.now()
            self._intermediate = self._keystore.intermediate(self._root, now)
            held = self._mirror.world.get(self._trust_key)
            row = trust_row(
                context.trust_domain, self._issuer, self._root, self._token_key, held, now
            )
            if row != held:
                await writer.wait_leading()
                if self._moved.is_set():
                    continue  # what another replica wrote meanwhile is to be kept
                try:
                    await writer.commit([(self._trust_key, row)])
                    context.log.info("trust written", trust_domain=context.trust_domain)
                except BusError as error:
                    context.log.warning("trust not written", error=str(error))
                    await context.clock.sleep(RETRY_S)
                    continue
            waits = [
                asyncio.create_task(self._moved.wait()),
                asyncio.create_task(context.clock.sleep(CHECK_S)),
            ]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in waits:
                    task.cancel()

    async def _sign(self, asker: str, request: SignRequest) -> SignReply:
        """`asker`: whose subject the question came on, which the bus lets nobody else use."""
        if request.service != asker:
            raise CallError("forbidden", f"{asker} may not ask as {request.service!r}")
        try:
            reply = self._issue(request)
        except CallError as error:
            service = request.service if error.code != "forbidden" else "other"
            self._signed.labels(service, error.code).inc()
            # Whoever comes before the trust row comes back: that is no refusal to worry about.
            log = self._context.log
            tell = log.debug if error.code == "unavailable" else log.warning
            tell("certificate refused", spiffe_id=request.spiffe_id, reason=error.message)
            raise
        self._signed.labels(request.service, "signed").inc()
        return reply

    def _issue(self, request: SignRequest) -> SignReply:
        context = self._context
        signer, now = self._intermediate, context.clock.now()
        try:
            names = granted_names(
                request,
                trust_domain=context.trust_domain,
                root_namespace=context.root_namespace,
            )
        except ForbiddenError as error:
            raise CallError("forbidden", str(error)) from error
        if signer is None or not self._vouched():
            raise CallError("unavailable", "the ca is not trusted by the mesh yet: try again")
        try:
            key = public_key_of(request.csr_pem)
        except InvalidCsrError as error:
            raise CallError("invalid", str(error)) from error
        ttl_s = min(max(request.ttl_s, MIN_TTL_S), context.settings.leaf_ttl_s)
        leaf = issue_leaf(signer, key, names, ttl_s, now)
        context.log.info(
            "certificate signed", spiffe_id=names.spiffe_id, serial=f"{leaf.serial_number:x}"
        )
        trust: Any = self._mirror.world.get(self._trust_key)
        return SignReply(
            chain_pem=pem_of(leaf) + signer.pem,
            roots_pem=trust.roots_pem,
            not_before=_seconds(leaf, begin=True),
            not_after=_seconds(leaf, begin=False),
        )

    async def _join_token(self, request: JoinTokenRequest) -> JoinTokenReply:
        try:
            token, expires = join_token(
                request,
                key=self._token_key,
                issuer=self._issuer,
                token_id=str(uuid.uuid4()),
                now=self._context.clock.now(),
            )
            sealed = seal(request.public_key, token.encode())
        except (InvalidTokenRequestError, SealError) as error:
            self._tokens.labels("invalid").inc()
            raise CallError("invalid", str(error)) from error
        self._tokens.labels("issued").inc()
        self._context.log.info(
            "join token issued",
            namespace=request.namespace,
            instance=request.instance,
            workload=request.workload,
        )
        return JoinTokenReply(sealed=sealed, expires=expires)


def _seconds(leaf: x509.Certificate, *, begin: bool) -> float:
    moment = leaf.not_valid_before_utc if begin else leaf.not_valid_after_utc
    return moment.timestamp()
