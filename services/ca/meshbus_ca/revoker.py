"""Takes certificates back: what people say is recorded, and the trust row follows.

Every replica follows the record; the one that writes the row makes the lists.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog

from meshbus.bus.interface import CERTS, BusError, Message
from meshbus.model.keys import escape_token
from meshbus.model.requests import CertificatesRequest, Issued, RevokeReply, RevokeRequest
from meshbus.model.rows import RevokedCertificate, Trust
from meshbus.runtime.calls import CallError
from meshbus.runtime.events import publish_event
from meshbus.runtime.service import Context
from meshbus_ca.in_use import InUse
from meshbus_ca.issue import Signer
from meshbus_ca.ledger import Ledger, LedgerError
from meshbus_ca.past_signers import PastSigners
from meshbus_ca.plugged_lists import LISTS, PluggedLists
from meshbus_ca.revocation import (
    ALLOW,
    BLOCK,
    MAX_REVOKED,
    REVOKE,
    Said,
    are_covered,
    in_force,
    revocation_lists,
    signers_of,
)
from meshbus_ca.succeed import Successor

MAX_REASON = 200

log = structlog.get_logger("ca")


class Revoker:
    """`subject` is what its applier follows (stream CERTS)."""

    def __init__(
        self,
        context: Context[Any],
        successor: Successor,
        ledger: Ledger,
        in_use: InUse,
        changed: Callable[[], None],
        federated: Callable[[], bool],
    ) -> None:
        """`changed`: the trust row may have to be another one; `federated`: other trust domains are
        trusted as well."""
        self._context = context
        self._successor = successor
        self._ledger = ledger
        self._in_use = in_use
        self._changed = changed
        self._federated = federated
        self._past = PastSigners(context.state, context.settings.leaf_ttl_s)
        plugged = context.settings.plugged
        self._lists = PluggedLists(Path(plugged) if plugged else None)
        self._said: list[Said] = []
        self._read = False
        self.subject = f"certs.{escape_token(context.cluster)}.revocations.>"
        self._prefix = self.subject.removesuffix(".>")

    # ------------------------------------------------------------------ the record

    def begin(self) -> None:
        """The record is read from its beginning."""
        self._said = []

    def apply(self, messages: Sequence[Message]) -> None:
        """Records."""
        for message in messages:
            try:
                self._said.append(msgspec.json.decode(message.data, type=Said))
            except msgspec.MsgspecError as error:
                log.warning("a revocation cannot be read", error=str(error))
        self._changed()

    def end(self, sequence: int) -> None:
        """The record is whole."""
        self._read = True
        self._changed()

    # ------------------------------------------------------------------ the row

    def open(self) -> None:
        """Read what has signed before."""
        self._past.open()

    def look(self, now: float) -> None:
        """Keep what signs now, and read the lists that are plugged in."""
        successor = self._successor
        self._past.signs(successor.signing.signer, now)
        authorities = [c for a in successor.authorities for c in (*a.chain, *a.roots)]
        authorities += [signer.certificate for signer in self._past.all]
        if self._lists.look(authorities, successor.signing.chain):
            log.info("revocation lists are plugged in")
            self._changed()

    def warnings(self, now: float) -> list[str]:
        """What is to be done about the lists that are plugged in."""
        said = self._lists.warnings(self._signers(), now)
        if self._lists.above(self._signers(), now) and not self._whole(now):
            said.append(
                f"{LISTS} has no list for each CA up to the root: proxies do not check signing "
                "certificates with it"
            )
        return said

    def on(self, row: Trust, held: Trust | None, now: float) -> Trust:
        """The trust row with what is revoked."""
        signers = self._signers()
        revoked, blocked = in_force(self._said, held, now, self._lists.revoked(signers))
        above = self._lists.above(signers, now)
        if not revoked and not above:
            return msgspec.structs.replace(row, blocked=blocked)
        lists = revocation_lists(
            revoked,
            signers,
            signers_of(self._successor.root_signers),
            held.crl_pem if held else "",
            now,
            [crl for crl, _ in above],
        )
        whole = self._whole(now)
        return msgspec.structs.replace(
            row,
            revoked=revoked,
            blocked=blocked,
            crl_pem=lists,
            crl_whole=whole,
            crl_deep=whole and bool(above),
        )

    def _whole(self, now: float) -> bool:
        """There is a list of every CA on the way from a leaf to a root."""
        signers = self._signers()
        listed = [
            *(s.certificate for s in signers.values()),
            *(s.certificate for s in signers_of(self._successor.root_signers).values()),
            *(issuer for _, issuer in self._lists.above(signers, now)),
        ]
        every = [c for a in self._successor.authorities for c in (*a.chain, *a.roots)]
        return are_covered(every, listed)

    def _signers(self) -> dict[str, Signer]:
        return signers_of((*self._past.all, *self._successor.signers))

    # ------------------------------------------------------------------ questions

    async def answer(
        self, request: RevokeRequest, trust: Callable[[], Trust | None]
    ) -> RevokeReply:
        """Revoke what is asked for, and say what is revoked.

        Raises:
            CallError: It cannot be, or would cut off others.
        """
        now = self._context.clock.now()
        if not self._read or trust() is None:
            raise CallError("unavailable", "the record is not read yet: try again")
        added: tuple[RevokedCertificate, ...] = ()
        if request.serial or request.identity:
            added = await self._revoke(request, trust(), now)
        revoked, blocked = in_force(self._said, trust(), now)
        shown = [
            {"serial": c.serial, "identity": c.identity, "at": c.at, "ends": c.ends}
            for c in (*revoked, *(c for c in added if c not in revoked))
        ]
        said = set(blocked)
        if request.identity and not request.serial:
            (said.discard if request.allow else said.add)(request.identity)
        return RevokeReply(shown, sorted(said), len(added))

    async def _revoke(
        self, request: RevokeRequest, trust: Trust | None, now: float
    ) -> tuple[RevokedCertificate, ...]:
        if request.serial and (request.identity or request.allow):
            raise CallError("invalid", "a serial or an identity; a serial cannot be allowed again")
        action = REVOKE if request.serial else ALLOW if request.allow else BLOCK
        found: tuple[RevokedCertificate, ...] = ()
        if action != ALLOW:
            found = await self._wanted(request, trust, now)
        if action == BLOCK:
            self._check_identity(request.identity)
        if found and not request.force:
            self._check_others(now)
        if found and self._federated() and not self._whole(now):
            raise CallError(
                "invalid",
                "with roots of other trust domains Envoy asks for a list of every CA up to the "
                f"root, whose key is not here: put its list into {LISTS} beside the CA that is "
                "plugged in",
            )
        said = Said(
            action,
            now,
            request.identity,
            found,
            request.reason[:MAX_REASON],
            request.by[:MAX_REASON],
        )
        name = escape_token(request.serial.lower() or request.identity)
        try:
            await self._context.bus.publish(
                CERTS, f"{self._prefix}.{name}", msgspec.json.encode(said)
            )
        except BusError as error:
            raise CallError("unavailable", f"it cannot be recorded now: {error}") from error
        log.warning(
            "certificates revoked" if action != ALLOW else "identity allowed again",
            identity=request.identity,
            serials=[c.serial for c in found][:10],
            by=request.by,
            reason=request.reason,
        )
        await publish_event(
            self._context.bus,
            self._context.cluster,
            "certificate",
            "",
            request.serial or request.identity.removeprefix("spiffe://"),
            {REVOKE: "revoked", BLOCK: "revoked", ALLOW: "allowed"}[action],
            {"certificates": [c.serial for c in found], "reason": said.reason, "by": said.by},
        )
        return found

    async def _wanted(
        self, request: RevokeRequest, trust: Trust | None, now: float
    ) -> tuple[RevokedCertificate, ...]:
        question = CertificatesRequest(
            identity=request.identity, serial=request.serial.lower(), limit=1000
        )
        try:
            reply = await self._ledger.find(question, now)
        except LedgerError as error:
            raise CallError("unavailable", str(error)) from error
        if request.serial and not reply.certificates:
            raise CallError("not-found", f"no certificate {request.serial} is in the ledger")
        known = {c.serial for c in (trust.revoked if trust else ())}
        alive = [c for c in reply.certificates if c.not_after > now and c.serial not in known]
        if request.serial and not alive:
            raise CallError("invalid", f"certificate {request.serial} is over or revoked already")
        if not reply.complete or len(known) + len(alive) > MAX_REVOKED:
            raise CallError("invalid", "too many certificates to list: change the root instead")
        return tuple(_revoked(record, now) for record in alive)

    def _check_identity(self, identity: str) -> None:
        context = self._context
        if not identity.startswith(f"spiffe://{context.trust_domain}/ns/"):
            raise CallError("invalid", f"{identity!r} is no identity of {context.trust_domain}")
        if identity.startswith(
            f"spiffe://{context.trust_domain}/ns/{context.root_namespace}/sa/meshbus-"
        ):
            raise CallError("invalid", f"{identity} is a service of the control plane")

    def _check_others(self, now: float) -> None:
        """A proxy that has a list refuses leaves of signers that have none.

        Raises:
            CallError: There are such leaves.
        """
        using = self._in_use.signers(now)
        if using is None:
            raise CallError("unavailable", "the ledger is not read yet: try again")
        gone = using - self._signers().keys()
        if gone:
            raise CallError(
                "invalid",
                f"certificates of {len(gone)} signers whose key is not here are in use, and would "
                "be refused as well: wait until they have ended, or insist (force)",
            )


def _revoked(record: Issued, now: float) -> RevokedCertificate:
    return RevokedCertificate(record.serial, record.identity, record.signer, now, record.not_after)
