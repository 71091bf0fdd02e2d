"""`istio.v1.auth.IstioCertificateService`: certificates for those who keep their own keys.

Over TLS, on a port of the ca. The caller proves who it is with a join token or with a certificate
of the mesh; the certificate has the caller's name, whatever its CSR says.
"""

import asyncio
import contextlib
import ipaddress
import random
import re
from collections.abc import Callable
from typing import Any

import grpc
from cryptography import x509

from meshbus.bus.interface import BusError
from meshbus.model.rows import Trust
from meshbus.model.world import Query, World
from meshbus.runtime.first_uses import FirstUses
from meshbus.runtime.proxy_server import host_and_port
from meshbus.runtime.service import Context
from meshbus.runtime.settings import SettingsError
from meshbus.runtime.workload_tokens import TokenError, WorkloadToken, check_token
from meshbus_ca.certificate_messages import (
    METHOD,
    METHOD_SERVICE,
    CertificateRequest,
    CertificateResponse,
)
from meshbus_ca.external import SignerError
from meshbus_ca.grants import SERVICES, ForbiddenError, own_dns_names
from meshbus_ca.issue import InvalidCsrError, Names, dns_names_of, public_key_of
from meshbus_ca.ledger import Ledger, LedgerError
from meshbus_ca.proofs import ProofError
from meshbus_ca.signing import OWN_TTL_S, BlockedError, Signing, UntrustedError, key_hash
from meshbus_ca.token_reviews import TokenReviews
from meshbus_ca.tokens import MAX_TTL_S

MAX_REQUEST_BYTES = 64 * 1024
MAX_CALLS = 64
PER_MINUTE, BURST = 6, 20
"""Certificates for one identity."""
DEFAULT_TTL_S = 86_400
_UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
_IMPERSONATED = "ImpersonatedIdentity"
_PEM_END = "-----END CERTIFICATE-----\n"
_STOP_S = 0.5
_WORKLOAD = re.compile(r"spiffe://([^/]+)/ns/([^/]+)/sa/([^/]+)")


class CertificateServer:
    """`start` it, then `run` it."""

    def __init__(
        self,
        context: Context[Any],
        signing: Signing,
        trust: Callable[[], Trust | None],
        ledger: Ledger,
        world: Callable[[], World],
        reviews: TokenReviews | None = None,
    ) -> None:
        """`reviews`: the API server is asked about tokens of pods as well."""
        self._context = context
        self._signing = signing
        self._trust = trust
        self._ledger = ledger
        self._world = world
        self._reviews = reviews
        self._first_uses = FirstUses(context.bus, context.cluster, context.name, context.clock)
        self._first_uses_known = False
        self._server: Any = None
        self._configuration: Any = None
        self._host = ""
        self._allowances: dict[str, tuple[float, float]] = {}

    async def start(self, listen: str, mutual: str) -> tuple[int | None, int | None]:
        """Listen where tokens are asked for and where client certificates are; gives the ports.
        gRPC asks a client for its certificate always or never, so these are two; empty: none.

        Raises:
            SettingsError: An address cannot be used.
        """
        self._host = host_and_port(listen or mutual, "MESHBUS_CA_CSR_LISTEN")[0]
        await self._renew()
        with contextlib.suppress(TokenError):
            await self._load_first_uses(self._context.clock.now())
        self._server = grpc.aio.server(
            maximum_concurrent_rpcs=MAX_CALLS,
            options=[
                ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
                ("grpc.so_reuseport", 0),
            ],
        )
        handler = grpc.unary_unary_rpc_method_handler(
            self._create,
            request_deserializer=CertificateRequest.FromString,
            response_serializer=CertificateResponse.SerializeToString,
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(METHOD_SERVICE, {METHOD: handler}),)
        )
        ports = (
            self._bind(listen, "MESHBUS_CA_CSR_LISTEN", certificate=False),
            self._bind(mutual, "MESHBUS_CA_CSR_MUTUAL_LISTEN", certificate=True),
        )
        await self._server.start()
        return ports

    def _bind(self, listen: str, setting: str, *, certificate: bool) -> int | None:
        if not listen:
            return None
        host, port = host_and_port(listen, setting)
        credentials = grpc.dynamic_ssl_server_credentials(
            self._configuration,
            lambda: self._configuration,
            require_client_authentication=certificate,
        )
        bracketed = f"[{host}]" if ":" in host else host
        try:
            return int(self._server.add_secure_port(f"{bracketed}:{port}", credentials))
        except RuntimeError as error:
            raise SettingsError(f"{setting}: {listen} cannot be listened on: {error}") from error

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._first_uses.run())
            tasks.create_task(self._stay_trusted())

    async def _stay_trusted(self) -> None:
        """Renew its own certificate, also when the roots change: clients are checked with those."""
        clock, known, since = self._context.clock, self._roots(), self._context.clock.now()
        life_s = OWN_TTL_S * random.uniform(0.35, 0.5)  # noqa: S311
        while True:
            with contextlib.suppress(TokenError):
                await self._load_first_uses(clock.now())
            await clock.sleep(1.0)
            if self._roots() == known and clock.now() - since < life_s:
                continue
            await self._renew()
            known, since = self._roots(), clock.now()

    async def stop(self) -> None:
        """Take no more calls."""
        if self._server is not None:
            await self._server.stop(_STOP_S)

    def _roots(self) -> str:
        trust = self._trust()
        return trust.roots_pem if trust else ""

    async def _renew(self) -> None:
        root = self._context.root_namespace
        own = await self._signing.own_identity(
            (*sorted(own_dns_names("ca", root)), f"istiod.{root}.svc"),
            (self._host,) if _is_address(self._host) else (),
        )
        self._configuration = grpc.ssl_server_certificate_configuration(
            [(own.key_pem, own.chain_pem.encode())], root_certificates=own.roots_pem.encode()
        )

    async def _create(self, request: Any, call: Any) -> Any:
        try:
            spiffe_id, proof, node = await self._caller(call, request.csr)
        except TokenError as error:
            code = grpc.StatusCode.UNAVAILABLE
            await call.abort(code if error.unavailable else _UNAUTHENTICATED, str(error))
        except InvalidCsrError as error:
            await call.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except ProofError as error:
            await call.abort(_UNAUTHENTICATED, str(error))
        if _IMPERSONATED in request.metadata.fields:
            wanted = request.metadata.fields[_IMPERSONATED].string_value
            try:
                spiffe_id, proof = self._for_another(node, wanted, spiffe_id, proof)
            except ForbiddenError as error:
                await call.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        if not self._allows(spiffe_id):
            await call.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"more than {PER_MINUTE} certificates a minute for {spiffe_id}",
            )
        wanted_s = request.validity_duration or DEFAULT_TTL_S
        if wanted_s < 0:
            await call.abort(grpc.StatusCode.INVALID_ARGUMENT, "validity_duration is negative")
        try:
            reply = await self._signing.issue(
                request.csr,
                Names(spiffe_id, self._dns_names(spiffe_id, request.csr)),
                wanted_s,
                asker="csr",
                pod=call.peer(),
                proof=proof,
            )
        except InvalidCsrError as error:
            await call.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except BlockedError as error:
            await call.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        except (UntrustedError, SignerError) as error:
            await call.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        chain = _each(reply.chain_pem)
        # Istio's clients take the last one for the roots.
        return CertificateResponse(cert_chain=[*chain, reply.roots_pem])

    async def _caller(self, call: Any, csr_pem: str) -> tuple[str, str, str]:
        """(SPIFFE id, what proved it, the node that it runs on if that is proved).

        Raises:
            ProofError: Nothing did.
            TokenError: A token does not.
            InvalidCsrError: There is no key that a join token can be bound to.
        """
        context = self._context
        tokens = [v for k, v in call.invocation_metadata() if k == "authorization"]
        if tokens:
            scheme, _, token = str(tokens[0]).partition(" ")
            if scheme.lower() != "bearer" or len(tokens) > 1:
                raise ProofError("authorization: one `Bearer TOKEN` is needed")
            now = context.clock.now()
            proof = check_token(token.strip(), self._trust(), now)
            if self._reviews is not None:
                await self._reviews.confirm(token.strip(), proof)
            found = self._allowed(proof.spiffe_id(context.trust_domain))
            if proof.joins:
                await self._spend(proof, key_hash(public_key_of(csr_pem)), now)
            return found, f"token {proof.token_id} of {proof.instance}", proof.node
        peer = call.auth_context()
        certificates = peer.get("x509_pem_cert", ())
        for name in peer.get("x509_subject_alternative_name", ()):
            text = name.decode(errors="replace")
            if _WORKLOAD.fullmatch(text) and certificates:
                certificate = x509.load_pem_x509_certificate(bytes(certificates[0]))
                serial = f"{certificate.serial_number:x}"
                trust = self._trust()
                if trust is not None and serial in {c.serial for c in trust.revoked}:
                    raise ProofError("the certificate is revoked")
                return self._allowed(text), f"certificate {serial}", ""
        raise ProofError("a token (authorization: Bearer) or a certificate of the mesh is needed")

    def _for_another(self, node: str, wanted: str, caller: str, proof: str) -> tuple[str, str]:
        """(SPIFFE id, what proved it) of a workload that a node agent asks for.

        Raises:
            ForbiddenError: Not one of those that may, or no such workload runs on its node.
        """
        context = self._context
        found = _WORKLOAD.fullmatch(caller)
        agents = {a.strip() for a in context.settings.impersonators.split(",") if a.strip()}
        if found is None or f"{found[2]}/{found[3]}" not in agents:
            raise ForbiddenError(f"{caller} may not ask for others")
        target = _WORKLOAD.fullmatch(wanted)
        if target is None or target[1] != context.trust_domain:
            raise ForbiddenError(f"{wanted[:200]!r} is no workload of {context.trust_domain}")
        if not node:
            raise ForbiddenError("the token does not say on which node its pod runs")
        for entry in self._world().entries(Query("reg.workloads", "namespace", target[2])):
            row = entry.row
            if row.node == node and (row.service_account or "default") == target[3]:
                try:
                    return self._allowed(wanted), f"{proof} on {node} for {row.name}"
                except ProofError as error:
                    raise ForbiddenError(str(error)) from error
        raise ForbiddenError(f"no workload {wanted} runs on the caller's node")

    async def _load_first_uses(self, now: float) -> None:
        """Raises: TokenError: The ledger cannot be read now."""
        if self._first_uses_known:
            return
        try:
            issued = await self._ledger.since(now - MAX_TTL_S, now)
        except LedgerError as error:
            text = f"it is not known yet which tokens were used: {error}"
            raise TokenError(text, unavailable=True) from error
        for record in issued:
            if record.asker == "csr" and record.proof.startswith("token "):
                token_id = record.proof.split(" ", 2)[1]
                self._first_uses.note(token_id, record.key, now + MAX_TTL_S)
        self._first_uses_known = True

    async def _spend(self, token: WorkloadToken, key: str, now: float) -> None:
        """A join token brings in one key, at all replicas: whoever has found it later has another
        one.

        While the bus is away the ca signs on: what other replicas know is compared when it is back.

        Raises:
            TokenError: It has brought in another key.
        """
        await self._load_first_uses(now)
        try:
            first = await self._first_uses.claim(token.token_id, key, token.expires)
        except BusError:
            self._first_uses.note(token.token_id, key, token.expires)
            first = key
        if first != key:
            raise TokenError(
                "the token was used for another key: renew with the certificate, or get a new token"
            )

    def _dns_names(self, spiffe_id: str, csr_pem: str) -> tuple[str, ...]:
        """DNS names that a CSR asks for, as far as its caller may have them."""
        patterns = self._context.settings.dns_names
        caller = _WORKLOAD.fullmatch(spiffe_id)
        if not patterns or caller is None:
            return ()
        allowed = {
            pattern.strip().replace("{namespace}", caller[2]).replace("{account}", caller[3])
            for pattern in patterns.split(",")
        }
        return tuple(name for name in dns_names_of(csr_pem) if name in allowed)

    def _allows(self, spiffe_id: str) -> bool:
        now = self._context.clock.monotonic()
        left, since = self._allowances.get(spiffe_id, (float(BURST), now))
        left = min(float(BURST), left + (now - since) * PER_MINUTE / 60)
        self._allowances[spiffe_id] = (max(left - 1, left % 1), now)
        return left >= 1

    def _allowed(self, spiffe_id: str) -> str:
        match = _WORKLOAD.fullmatch(spiffe_id)
        if match is None or match[1] != self._context.trust_domain:
            raise ProofError(f"{spiffe_id} is not of the trust domain {self._context.trust_domain}")
        if match[2] == self._context.root_namespace and match[3] in {
            f"meshbus-{service}" for service in SERVICES
        }:
            raise ProofError("services of the control plane ask over the bus")
        return spiffe_id


def _each(pem: str) -> list[str]:
    return [part + _PEM_END for part in pem.split(_PEM_END) if part.strip()]


def _is_address(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return not ipaddress.ip_address(host).is_unspecified
    return False
