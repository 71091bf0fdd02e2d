"""The ca: signs certificates and join tokens over request/reply, publishes what they are checked
with. It needs the bus to be asked; without it it keeps its keys and waits."""

import asyncio
import json
import random
import uuid
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec
from prometheus_client import Counter, Gauge

from meshbus.bus.interface import CERTS, STATUS, BusError
from meshbus.bus.mirror import WorldMirror
from meshbus.bus.writer import ModelWriter
from meshbus.model.keys import Key, escape_token
from meshbus.model.requests import (
    BUNDLE,
    CERTIFICATES,
    JOIN_TOKEN,
    REVOKE,
    ROTATION,
    BundleReply,
    BundleRequest,
    CertificatesReply,
    CertificatesRequest,
    JoinTokenReply,
    JoinTokenRequest,
    RevokeReply,
    RevokeRequest,
    RotationReply,
    RotationRequest,
    SignReply,
    SignRequest,
    sign_subject,
)
from meshbus.model.revisions import view_of
from meshbus.model.rows import MeshConfigRow, Trust
from meshbus.runtime.calls import CallError, answer
from meshbus.runtime.clock import happens_within
from meshbus.runtime.events import publish_event
from meshbus.runtime.sealed import Recipient, SealError, seal
from meshbus.runtime.service import Context
from meshbus.runtime.settings import SettingsError
from meshbus.runtime.workload_tokens import TokenError, check_token
from meshbus_ca.authorities import Authorities
from meshbus_ca.bundle_server import BundleServer
from meshbus_ca.bundles import bundle_document
from meshbus_ca.certificate_service import CertificateServer
from meshbus_ca.cluster_keys import ClusterKeys
from meshbus_ca.external import SignerError
from meshbus_ca.external_choice import external_roots, external_signer
from meshbus_ca.federation import Federation
from meshbus_ca.fleet_view import FleetView
from meshbus_ca.grants import SERVICES, ForbiddenError, granted_names, own_dns_names
from meshbus_ca.in_use import InUse
from meshbus_ca.issue import BACKDATE_S, InvalidCsrError
from meshbus_ca.issued_events import IssuedEvents
from meshbus_ca.keystore import Keystore
from meshbus_ca.ledger import Ledger, LedgerError
from meshbus_ca.proofs import ProofError
from meshbus_ca.revoker import Revoker
from meshbus_ca.rotation import STEADY
from meshbus_ca.signing import OWN_TTL_S, BlockedError, Signing, UntrustedError
from meshbus_ca.succeed import RefusedError, Successor
from meshbus_ca.token_reviews import TokenReviews
from meshbus_ca.tokens import InvalidTokenRequestError, issuer_of, join_token
from meshbus_ca.trust import trust_row

CHECK_S = 5.0
"""How often the plugged-in files, the intermediate's age and the trust row are looked at,"""
MOVING_S = 0.5
"""and while a rotation is under way."""
RETRY_S = 0.5
WARN_AGAIN_S = 86_400.0


def _about(text: str, **limits: Any) -> msgspec.Meta:
    return msgspec.Meta(description=text, **limits)


class CaSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of the ca."""

    leaf_ttl_s: Annotated[int, _about("longest life of a certificate in seconds", ge=60)] = 86400
    plugged: Annotated[
        str,
        _about("directory with ca-cert.pem, ca-key.pem, root-cert.pem, cert-chain.pem, ca-crl.pem"),
    ] = ""
    clock_skew_s: Annotated[
        int, _about("certificates begin so many seconds before now", ge=0, le=3600)
    ] = BACKDATE_S
    signer: Annotated[
        str,
        _about(
            "who signs for workloads elsewhere: vault+URL, kubernetes:SIGNER or cert-manager:ISSUER"
        ),
    ] = ""
    signer_roots: Annotated[
        str,
        _about(
            "roots above that signer (PEM file); of one of Kubernetes also by caCertificates with "
            "certSigners of the mesh config"
        ),
    ] = ""
    signer_token: Annotated[str, _about("file with the token for a vault")] = ""
    signer_tls_roots: Annotated[
        str, _about("roots of the vault's own certificate (PEM file); empty: this machine's")
    ] = ""
    require_proof: Annotated[
        bool, _about("sign for a workload only with the token that proves it")
    ] = False
    token_review: Annotated[
        bool,
        _about("ask the API server about tokens of pods as well, for each certificate"),
    ] = False
    ledger_wait_s: Annotated[
        float, _about("how long a certificate waits for its record, in seconds", ge=0, le=2)
    ] = 0.2
    dns_names: Annotated[
        str,
        _about(
            "DNS names that a CSR may ask for by CreateCertificate, separated by commas; "
            "{account} and {namespace} stand for the caller's"
        ),
    ] = ""
    impersonators: Annotated[
        str,
        _about(
            "NAMESPACE/ACCOUNT, separated by commas, of node agents that may ask by "
            "CreateCertificate for workloads on their own node"
        ),
    ] = ""
    csr_listen: Annotated[
        str, _about("HOST:PORT of IstioCertificateService over TLS, by token; empty: none")
    ] = ""
    bundle_listen: Annotated[
        str, _about("HOST:PORT of the SPIFFE bundle endpoint over TLS; empty: none")
    ] = ""
    bundle_certificate: Annotated[
        str, _about("certificate of the web for that (PEM file); empty: an identity of the mesh")
    ] = ""
    bundle_key: Annotated[str, _about("its key (PEM file)")] = ""
    bundle_refresh_s: Annotated[
        int, _about("at most so long between two looks at the bundle of a peer", ge=1)
    ] = 300
    bundle_roots: Annotated[
        str, _about("roots of the web for bundle endpoints (PEM file); empty: this machine's")
    ] = ""
    csr_mutual_listen: Annotated[
        str, _about("the same for clients that show a certificate of the mesh; empty: none")
    ] = ""


class CaService:
    """Serves `x.ca.sign`, `x.ca.join-token`, `x.ca.certificates` and `x.ca.rotation`; the leader
    writes `sec.trust`."""

    name: ClassVar[str] = "ca"
    settings_type: ClassVar[type[msgspec.Struct]] = CaSettings

    def __init__(self, context: Context[CaSettings]) -> None:
        settings = context.settings
        self._context = context
        self._keystore = Keystore(context.state, context.trust_domain)
        self._issuer = issuer_of(context.trust_domain, context.root_namespace)
        self._trust_key = Key(context.cluster, "sec", "trust", "", context.trust_domain)
        self._signer_key = self._trust_key._replace(name="signer+")
        """Of the roots of a signer elsewhere."""
        self._mirror = WorldMirror(view=view_of(context.revision))
        self._moved = asyncio.Event()
        self._ledger = Ledger(context.bus, context.cluster, context.metrics)
        self._in_use = InUse(context.clock.now(), settings.leaf_ttl_s)
        self._fleet = FleetView(context.cluster, context.clock.monotonic)
        self._successor = Successor(
            Authorities(context.state, context.trust_domain),
            Path(settings.plugged) if settings.plugged else None,
            self._in_use,
            self._fleet,
            2 * settings.bundle_refresh_s if settings.bundle_listen else 0,
        )
        self._external_roots = external_roots(settings) if settings.signer else None
        self._issued = IssuedEvents(context)
        self._signing = Signing(
            context,
            self._successor,
            self._ledger,
            self._in_use,
            self._trust_now,
            external_signer(context) if settings.signer else None,
            self._external_roots,
            self._announced,
            self._issued.note,
        )
        self._revoker = Revoker(
            context,
            self._successor,
            self._ledger,
            self._in_use,
            self._moved.set,
            lambda: bool(self._federation.rows()),
        )
        self._federation = Federation(
            context.clock,
            context.trust_domain,
            context.metrics,
            self._moved.set,
            refresh_s=settings.bundle_refresh_s,
            web_roots=settings.bundle_roots,
        )
        kubernetes = context.kubernetes
        self._cluster_keys = (
            ClusterKeys(kubernetes, context.clock, context.log) if kubernetes is not None else None
        )
        self._reviews: TokenReviews | None = None
        if settings.token_review:
            if kubernetes is None:
                raise SettingsError("MESHBUS_CA_TOKEN_REVIEW: needs MESHBUS_KUBERNETES")
            self._reviews = TokenReviews(kubernetes, context.clock.monotonic)
        self._warned = float("-inf")
        self._phase = ""
        self.bundle_port: int | None = None
        """Of the bundle endpoint, once it listens."""
        self.csr_port: int | None = None
        """Of IstioCertificateService, once it listens."""
        self.csr_mutual_port: int | None = None
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
        self._signer_ends = Gauge(
            "meshbus_ca_signer_not_after_seconds",
            "When the certificate that signs ends, seconds since the epoch.",
            registry=context.metrics,
        )
        self._rotating = Gauge(
            "meshbus_ca_rotating", "1: a change of roots is under way.", registry=context.metrics
        )

    async def run(self) -> None:
        """Until cancelled.

        Raises:
            KeystoreError: A key on disk cannot be used.
        """
        context = self._context
        self._successor.open(context.clock.now())
        self._revoker.open()
        self._token_key = self._keystore.token_key()
        self._recipient = Recipient(self._keystore.proof_key())
        context.admin.add_ready("trust", self._not_ready)
        self._mirror.subscribe(lambda _world, _touched: self._moved.set())
        writer = context.model_writer()
        bus = context.bus
        follower = self._mirror.follow(
            bus,
            (
                f"m.{escape_token(context.cluster)}.sec.>",
                f"m.{escape_token(context.cluster)}.mesh.config.>",
                # Who runs where: needed for node agents alone.
                *(
                    (f"m.{escape_token(context.cluster)}.reg.workloads.>",)
                    if context.settings.impersonators
                    else ()
                ),
            ),
            name=context.pod,
        )
        reports = bus.follower(STATUS, self._fleet.subjects, self._fleet, name=context.pod)
        revocations = bus.follower(
            CERTS, [self._revoker.subject], self._revoker, name=f"{context.pod}-revocations"
        )
        queue = self.name
        for service in sorted(SERVICES):
            await answer(
                bus, sign_subject(service), SignRequest, partial(self._sign, service), queue=queue
            )
        await answer(bus, JOIN_TOKEN, JoinTokenRequest, self._join_token, queue=queue)
        await answer(bus, CERTIFICATES, CertificatesRequest, self._certificates, queue=queue)
        await answer(bus, ROTATION, RotationRequest, self._rotation, queue=queue)
        await answer(bus, REVOKE, RevokeRequest, self._revoke, queue=queue)
        await answer(bus, BUNDLE, BundleRequest, self._trust_bundle, queue=queue)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(follower.run())
            tasks.create_task(reports.run())
            tasks.create_task(revocations.run())
            tasks.create_task(writer.run())
            tasks.create_task(self._ledger.run())
            tasks.create_task(self._issued.run())
            tasks.create_task(self._remember())
            tasks.create_task(self._federation.run())
            if self._cluster_keys is not None:
                tasks.create_task(self._cluster_keys.run(self._moved.set))
            await follower.wait_synced()
            await revocations.wait_synced()
            if context.settings.csr_listen or context.settings.csr_mutual_listen:
                tasks.create_task(self._serve_csr())
            if context.settings.bundle_listen:
                tasks.create_task(self._serve_bundle())
            await self._keep_trust(writer)

    async def _serve_csr(self) -> None:
        server = CertificateServer(
            self._context,
            self._signing,
            self._trust_now,
            self._ledger,
            lambda: self._mirror.world,
            self._reviews,
        )
        settings = self._context.settings
        self.csr_port, self.csr_mutual_port = await server.start(
            settings.csr_listen, settings.csr_mutual_listen
        )
        self._context.log.info("listening", csr=self.csr_port, csr_mutual=self.csr_mutual_port)
        try:
            await server.run()
        finally:
            await server.stop()

    async def _serve_bundle(self) -> None:
        context = self._context
        server = BundleServer(self._bundle)
        await self._show(server)
        self.bundle_port = await server.start(context.settings.bundle_listen)
        context.log.info("listening", bundle=self.bundle_port)
        try:
            while True:
                await context.clock.sleep(OWN_TTL_S * random.uniform(0.35, 0.5))  # noqa: S311
                await self._show(server)
        finally:
            await server.stop()

    async def _show(self, server: BundleServer) -> None:
        settings = self._context.settings
        if settings.bundle_certificate:
            server.show_files(Path(settings.bundle_certificate), Path(settings.bundle_key))
            return
        names = own_dns_names(self.name, self._context.root_namespace)
        own = await self._signing.own_identity(tuple(sorted(names)))
        server.show(own.chain_pem.encode(), own.key_pem)

    def _bundle(self) -> bytes | None:
        """This trust domain's roots, as others take them."""
        entry = self._mirror.world.entry(self._trust_key)
        trust = self._trust_now()
        if entry is None or trust is None or not trust.roots_pem:
            return None
        hint_s = self._context.settings.bundle_refresh_s
        return bundle_document(trust.roots_pem, entry.sequence, hint_s)

    async def _remember(self) -> None:
        """Learn from the ledger what was issued before this process began."""
        clock = self._context.clock
        began = clock.now()
        while True:
            try:
                longest_s = self._context.settings.leaf_ttl_s
                self._in_use.complete(await self._ledger.since(began - longest_s, began))
                return
            except LedgerError as error:
                self._context.log.info("the ledger is not read yet", error=str(error))
                await clock.sleep(CHECK_S)

    def _not_ready(self) -> str | None:
        return None if self._signing.vouched else "its root is not in sec.trust yet"

    def _announced(self, roots_pem: str) -> bool:
        """The mesh has the roots of the signer elsewhere."""
        row = self._mirror.world.get(self._signer_key)
        return isinstance(row, Trust) and row.roots_pem == roots_pem

    def _trust_now(self) -> Trust | None:
        row = self._mirror.world.get(self._trust_key)
        return row if isinstance(row, Trust) else None

    async def _keep_trust(self, writer: ModelWriter) -> None:
        context = self._context
        while True:
            self._moved.clear()
            now = context.clock.now()
            entry = self._mirror.world.entry(self._trust_key)
            held = self._trust_now()
            self._revoker.look(now)
            row = self._wanted_row(held, now)
            written = entry.sequence if entry is not None and row == held else 0
            if self._successor.look(now, written):
                continue
            await self._warn(now)
            writes = self._writes(row, held)
            if writes:
                await writer.wait_leading()
                if self._moved.is_set():
                    continue  # what another replica wrote meanwhile is to be kept
                try:
                    sequence = await writer.commit(writes)
                    context.log.info("trust written", trust_domain=context.trust_domain)
                    await self._mirror.reached(sequence, CHECK_S)
                except BusError as error:
                    context.log.warning("trust not written", error=str(error))
                    await context.clock.sleep(RETRY_S)
                continue
            pause_s = MOVING_S if self._successor.moving else CHECK_S
            await happens_within(context.clock, self._moved, pause_s)

    def _writes(self, row: Trust, held: Trust | None) -> list[tuple[Key, Trust | None]]:
        """What is to be written: the own row, and those of other trust domains."""
        world, own = self._mirror.world, self._trust_key
        others = {
            e.key: e.row
            for e in world.all("sec.trust")
            if e.key.cluster == own.cluster and e.key != own
        }
        config = world.get(Key(own.cluster, "mesh", "config", "", "mesh"))
        self._federation.follow(
            config if isinstance(config, MeshConfigRow) else None,
            {key.name: other for key, other in others.items()},
        )
        wanted = {own._replace(name=name): r for name, r in self._federation.rows().items()}
        if self._external_roots is not None:
            self._external_roots.look(config.spec if isinstance(config, MeshConfigRow) else None)
            if self._external_roots.pem:
                made = Trust(self._context.trust_domain, self._external_roots.pem)
                wanted[self._signer_key] = made
        writes: list[tuple[Key, Trust | None]] = [(own, row)] if row != held else []
        return writes + [
            (key, wanted.get(key))
            for key in sorted({*wanted, *others})
            if wanted.get(key) != others.get(key)
        ]

    def _wanted_row(self, held: Trust | None, now: float) -> Trust:
        row = trust_row(
            self._context.trust_domain,
            self._issuer,
            self._successor.roots,
            self._token_key,
            held,
            now,
            retired=self._successor.retired,
            proof_key=self._recipient.public_key,
        )
        issuers = self._cluster_keys.issuers if self._cluster_keys is not None else ()
        if not issuers and held is not None:
            issuers = held.issuers
        return self._revoker.on(msgspec.structs.replace(row, issuers=issuers), held, now)

    async def _warn(self, now: float) -> None:
        status = self._status(now)
        if status.phase != self._phase:
            if self._phase:
                await self._tell(
                    "rotated" if status.phase == STEADY else "rotating",
                    {"phase": status.phase, "root": status.root, "next": status.next_root},
                )
            self._phase = status.phase
        self._ends.set(status.root_ends)
        self._signer_ends.set(status.signer_ends)
        self._rotating.set(self._successor.moving)
        if status.warnings and now - self._warned >= WARN_AGAIN_S:
            self._warned = now
            for warning in status.warnings:
                self._context.log.warning("certificates of the ca", warning=warning)
            ends = {"rootEnds": status.root_ends, "signerEnds": status.signer_ends}
            await self._tell("expiring", {"warnings": status.warnings, **ends})

    async def _tell(self, verb: str, data: dict[str, Any]) -> None:
        """An event about what this trust domain is signed with."""
        context = self._context
        await publish_event(
            context.bus, context.cluster, "trust", "", context.trust_domain, verb, data
        )

    async def _sign(self, asker: str, request: SignRequest) -> SignReply:
        """`asker`: whose subject the question came on, which the bus lets nobody else use."""
        if request.service != asker:
            raise CallError("forbidden", f"{asker} may not ask as {request.service!r}")
        try:
            reply = await self._issue(request)
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

    async def _issue(self, request: SignRequest) -> SignReply:
        context = self._context
        try:
            names = granted_names(
                request,
                trust_domain=context.trust_domain,
                root_namespace=context.root_namespace,
            )
            proof = await self._proof(request)
            return await self._signing.issue(
                request.csr_pem,
                names,
                request.ttl_s,
                asker=request.service,
                pod=request.pod,
                proof=proof,
            )
        except (ForbiddenError, ProofError, BlockedError) as error:
            raise CallError("forbidden", str(error)) from error
        except (UntrustedError, SignerError) as error:
            raise CallError("unavailable", str(error)) from error
        except InvalidCsrError as error:
            raise CallError("invalid", str(error)) from error

    async def _proof(self, request: SignRequest) -> str:
        """What proves the identity that is asked for, as the ledger has it.

        Raises:
            ProofError: Nothing does.
        """
        own = f"/ns/{self._context.root_namespace}/sa/meshbus-{request.service}"
        if request.spiffe_id.endswith(own):
            return "bus"
        if not request.proof:
            if self._context.settings.require_proof:
                raise ProofError("no token that proves the identity came with the question")
            return "gateway"
        try:
            token = self._recipient.open(request.proof).decode()
        except (SealError, UnicodeDecodeError) as error:
            raise CallError("unavailable", "the proof is sealed to another key") from error
        try:
            proof = check_token(token, self._trust_now(), self._context.clock.now())
            if self._reviews is not None:
                await self._reviews.confirm(token, proof)
        except TokenError as error:
            code = "unavailable" if error.unavailable else "forbidden"
            raise CallError(code, str(error)) from error
        if proof.spiffe_id(self._context.trust_domain) != request.spiffe_id:
            raise ProofError("the token proves another identity than the one asked for")
        return f"token {proof.token_id} of {proof.instance}"

    async def _certificates(self, question: CertificatesRequest) -> CertificatesReply:
        try:
            reply = await self._ledger.find(question, self._context.clock.now())
        except LedgerError as error:
            raise CallError("unavailable", str(error)) from error
        trust = self._trust_now()
        revoked = {c.serial: c.at for c in (trust.revoked if trust else ())}
        return CertificatesReply(
            [
                msgspec.structs.replace(record, revoked=revoked[record.serial])
                if record.serial in revoked
                else record
                for record in reply.certificates
            ],
            reply.complete,
        )

    async def _trust_bundle(self, _: BundleRequest) -> BundleReply:
        document, trust = self._bundle(), self._trust_now()
        if document is None or trust is None:
            raise CallError("unavailable", "there is no bundle yet: try again")
        return BundleReply(
            self._context.trust_domain,
            trust.roots_pem,
            json.loads(document),
            self._federation.status(),
        )

    async def _revoke(self, request: RevokeRequest) -> RevokeReply:
        return await self._revoker.answer(request, self._trust_now)

    async def _rotation(self, request: RotationRequest) -> RotationReply:
        now = self._context.clock.now()
        if request.start:
            try:
                self._successor.start(now)
            except RefusedError as error:
                raise CallError("invalid", str(error)) from error
            self._moved.set()
        return self._status(now)

    def _status(self, now: float) -> RotationReply:
        status = self._successor.status(now)
        warnings = [*status.warnings, *self._revoker.warnings(now)]
        if self._external_roots is not None and self._external_roots.problem:
            warnings.append(self._external_roots.problem)
        return msgspec.structs.replace(status, warnings=warnings)

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
