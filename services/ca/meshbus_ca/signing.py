"""One certificate: signed with what is in force, recorded, remembered."""

from collections.abc import Callable
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256, Hash

from meshbus.model.requests import Issued, SignReply
from meshbus.model.rows import Trust
from meshbus.runtime.service import Context
from meshbus_ca.external import LeafSigner, Roots, Signed, checked
from meshbus_ca.grants import GATEWAY
from meshbus_ca.in_use import InUse
from meshbus_ca.issue import MIN_TTL_S, Names, PublicKey, issue_leaf, pem_of, public_key_of
from meshbus_ca.ledger import Ledger
from meshbus_ca.succeed import Successor


class UntrustedError(Exception):
    """The mesh does not trust this replica's root (yet)."""


class BlockedError(Exception):
    """The identity gets no certificate any more."""


CSR = "csr"
"""Who asks by CreateCertificate."""
OWN_TTL_S = 3600.0
"""How long certificates of the ca's own servers live."""
_RETRY_S = 0.2


class OwnIdentity(NamedTuple):
    """What a server of the ca shows."""

    chain_pem: str
    key_pem: bytes
    roots_pem: str


class Signing:
    """Who asks has been checked before."""

    def __init__(
        self,
        context: Context[Any],
        successor: Successor,
        ledger: Ledger,
        in_use: InUse,
        trust: Callable[[], Trust | None],
        external: LeafSigner | None = None,
        roots: Roots | None = None,
        announced: Callable[[str], bool] = bool,
        told: Callable[[Issued], None] = lambda record: None,
    ) -> None:
        """`external`: signs for workloads, with these roots above it; `announced`: the mesh has
        them; `told`: of each certificate."""
        self._context = context
        self._successor = successor
        self._ledger = ledger
        self._in_use = in_use
        self._trust = trust
        self._external = external
        self._roots = roots
        self._announced = announced
        self._told = told

    @property
    def vouched(self) -> bool:
        """The mesh trusts the root that leaves are signed below now."""
        trust = self._trust()
        return trust is not None and self._successor.signing.roots_pem[0] in trust.roots_pem

    async def issue(
        self, csr_pem: str, names: Names, ttl_s: float, *, asker: str, pod: str, proof: str
    ) -> SignReply:
        """A certificate for the key of a CSR.

        Raises:
            UntrustedError: Nobody would accept it now.
            BlockedError: The identity is blocked.
            InvalidCsrError: The CSR cannot be used.
            SignerError: The signer elsewhere did not sign.
        """
        trust = self._trust()
        if trust is None or not self.vouched:
            raise UntrustedError("the ca is not trusted by the mesh yet: try again")
        if names.spiffe_id in trust.blocked:
            raise BlockedError(f"{names.spiffe_id} is blocked: its certificates were revoked")
        settings, now = self._context.settings, self._context.clock.now()
        key = public_key_of(csr_pem)
        lives_s = min(max(ttl_s, MIN_TTL_S), settings.leaf_ttl_s)
        if self._external is not None and asker in (GATEWAY, CSR) and proof != "bus":
            made = await self._elsewhere(csr_pem, key, names, lives_s)
        else:
            made = self._here(key, names, lives_s, now)
        leaf = made.leaf
        record = Issued(
            identity=names.spiffe_id,
            serial=f"{leaf.serial_number:x}",
            issued=now,
            not_before=leaf.not_valid_before_utc.timestamp(),
            not_after=leaf.not_valid_after_utc.timestamp(),
            asker=asker,
            pod=pod,
            proof=proof,
            signer=made.signer,
            root=made.root,
            key=key_hash(key),
            names=[*names.dns_names, *names.ip_addresses],
            subject=names.common_name,
        )
        self._in_use.note(record)
        self._told(record)
        await self._ledger.record(record, settings.ledger_wait_s)
        self._context.log.info(
            "certificate signed", spiffe_id=names.spiffe_id, serial=record.serial
        )
        return SignReply(
            chain_pem=made.chain_pem,
            roots_pem=trust.roots_pem + (self._roots.pem if self._roots is not None else ""),
            not_before=record.not_before,
            not_after=record.not_after,
        )

    def _here(self, key: PublicKey, names: Names, lives_s: float, now: float) -> Signed:
        authority = self._successor.signing
        skew_s = self._context.settings.clock_skew_s
        leaf = issue_leaf(authority.signer, key, names, lives_s, now, skew_s)
        return Signed(leaf, pem_of(leaf) + authority.chain_pem, authority.id, authority.root_id)

    async def _elsewhere(
        self, csr_pem: str, key: PublicKey, names: Names, lives_s: float
    ) -> Signed:
        assert self._external is not None
        assert self._roots is not None
        if not self._roots.pem or not self._announced(self._roots.pem):
            raise UntrustedError("the roots of the signer are not in the mesh yet: try again")
        chain = await self._external.sign(csr_pem, names, lives_s)
        now = self._context.clock.now()
        return checked(chain, key, names, self._roots.certificates, now)

    async def own_identity(
        self, dns_names: tuple[str, ...], ip_addresses: tuple[str, ...] = ()
    ) -> OwnIdentity:
        """A new key and its certificate for the ca itself; waits until the mesh trusts it."""
        context = self._context
        key = ec.generate_private_key(ec.SECP256R1())
        csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        pem = csr.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
        names = Names(
            f"spiffe://{context.trust_domain}/ns/{context.root_namespace}/sa/meshbus-ca",
            dns_names,
            ip_addresses,
        )
        while True:
            try:
                reply = await self.issue(
                    pem, names, OWN_TTL_S, asker="ca", pod=context.pod, proof="bus"
                )
                break
            except UntrustedError:
                await context.clock.sleep(_RETRY_S)
        key_pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return OwnIdentity(reply.chain_pem, key_pem, reply.roots_pem)


def key_hash(key: PublicKey) -> str:
    """SHA-256 of a public key (SubjectPublicKeyInfo), hex."""
    digest = Hash(SHA256())
    digest.update(
        key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return digest.finalize().hex()
