"""What signs, what is trusted, and the way from one root to the next."""

from pathlib import Path

import msgspec
import structlog

from meshbus.model.requests import RotationReply
from meshbus_ca.authorities import MAX_RETIRED, Authorities, Succession
from meshbus_ca.authority import PLUGGED, SELF_SIGNED, Authority, fingerprint
from meshbus_ca.fleet_view import FleetView
from meshbus_ca.in_use import InUse
from meshbus_ca.issue import Signer
from meshbus_ca.keystore import KeystoreError
from meshbus_ca.plugged import PluggedError, check_plugged, read_files
from meshbus_ca.rotation import (
    ANNOUNCE,
    DROP,
    SIGN,
    STEADY,
    Facts,
    Rotation,
    begin,
    step,
    waits_for,
    warnings,
)

log = structlog.get_logger("ca")


class RefusedError(Exception):
    """A rotation cannot be started now; the message says why."""


class Successor:
    """The authorities of a ca through time. `open` it first; `look` moves it on."""

    def __init__(
        self,
        authorities: Authorities,
        plugged: Path | None,
        in_use: InUse,
        fleet: FleetView,
        peers_s: float = 0.0,
    ) -> None:
        """`peers_s`: how long other meshes may take to learn of a new root."""
        self._store = authorities
        self._plugged = plugged
        self._in_use = in_use
        self._fleet = fleet
        self._peers_s = peers_s
        self._files: dict[str, bytes] = {}
        self._problem = ""
        self._state = Succession()
        self._current: Authority
        self._next: Authority | None = None
        self._bundle = 0

    def open(self, now: float) -> None:
        """Read what is there; a ca that has never signed gets its first authority.

        Raises:
            KeystoreError: A key on disk cannot be used, or the first plugged-in CA cannot.
        """
        state = self._store.succession()
        if state is None:
            state = Succession()
            if self._plugged is not None:
                try:
                    self._files = read_files(self._plugged)
                    authority = check_plugged(self._files, now)
                except PluggedError as error:
                    raise KeystoreError(f"MESHBUS_CA_PLUGGED: {error}") from error
                state = Succession(current=self._store.add_plugged(authority))
        self._current = self._store.authority(state.current, now)
        self._adopt(state, now)

    @property
    def signing(self) -> Authority:
        """What leaves are signed with now."""
        rotation = self._state.rotation
        if rotation is not None and rotation.phase in (SIGN, DROP) and self._next is not None:
            return self._next
        return self._current

    @property
    def signers(self) -> tuple[Signer, ...]:
        """What signs leaves now, or will next."""
        following = (self._next.signer,) if self._next is not None else ()
        return (self._current.signer, *following)

    @property
    def authorities(self) -> tuple[Authority, ...]:
        """What signs leaves now, or will next."""
        return (self._current, self._next) if self._next is not None else (self._current,)

    @property
    def root_signers(self) -> tuple[Signer, ...]:
        """Trusted roots whose key is here."""
        names = dict.fromkeys((self._state.current, self._state.next))
        held = (self._store.root_signer(name) for name in names if name is not None)
        return tuple(signer for signer in held if signer is not None)

    @property
    def roots(self) -> list[str]:
        """PEM of each root that must be trusted now, newest first."""
        rotation = self._state.rotation
        coming = self._next.roots_pem if self._next is not None else ()
        staying = () if rotation is not None and rotation.phase == DROP else self._current.roots_pem
        return list(dict.fromkeys([*coming, *staying]))

    @property
    def retired(self) -> frozenset[str]:
        """Fingerprints of the roots that must not be trusted any more."""
        return frozenset(self._state.retired)

    @property
    def moving(self) -> bool:
        """A rotation is under way."""
        return self._state.rotation is not None

    @property
    def problem(self) -> str:
        """What is wrong with the plugged-in files; empty: nothing."""
        return self._problem

    def look(self, now: float, bundle: int) -> bool:
        """Take up what has changed on disk, make the next step if it may be made.

        Args:
            bundle: MODEL sequence of the trust row that `roots` and `retired` ask for; 0: it is
                not written yet.
        Returns:
            Something has moved: look at `roots` and `signing` again.
        """
        before = self._state
        self._bundle = bundle
        self._in_use.forget(now)
        self._current = self._store.authority(self._state.current, now)
        if self._state.next is not None:
            self._next = self._store.authority(self._state.next, now)
        self._take_up(now, bundle)
        if self._state is before and before.rotation is not None:
            self._advance(before.rotation, now)
        return self._state is not before

    def start(self, now: float) -> None:
        """Begin a rotation to a new self-signed root.

        Raises:
            RefusedError: One is under way, or the CA is a plugged-in one.
        """
        if self._state.rotation is not None:
            raise RefusedError("a rotation is under way")
        if self._plugged is not None:
            raise RefusedError(
                f"the CA is plugged in: put the files of the next one into {self._plugged}"
            )
        self._begin(self._store.add_self_signed(self._state.current, now), now)

    def status(self, now: float) -> RotationReply:
        """How far it is."""
        rotation, signing = self._state.rotation, self.signing
        signer_ends = signing.signer.not_after
        root_ends = signing.root.not_valid_after_utc.timestamp()
        said = warnings("root", root_ends, now)
        if signing.kind == PLUGGED:
            said += warnings("plugged-in CA certificate", signing.ends, now)
        if self._problem:
            said.append(self._problem)
        return RotationReply(
            phase=rotation.phase if rotation else STEADY,
            waiting=waits_for(rotation, self._facts(rotation, now)) if rotation else "",
            kind=signing.kind,
            signer=signing.id,
            signer_ends=signer_ends,
            root=signing.root_id,
            root_ends=root_ends,
            next_root=rotation.new if rotation else "",
            started=rotation.started if rotation else 0.0,
            since=rotation.since if rotation else 0.0,
            warnings=said,
        )

    # ------------------------------------------------------------------ inside

    def _adopt(self, state: Succession, now: float) -> None:
        self._store.save(state)
        self._state = state
        self._bundle = 0
        self._current = self._store.authority(state.current, now)
        self._next = self._store.authority(state.next, now) if state.next is not None else None

    def _take_up(self, now: float, bundle: int) -> None:
        """Follow the setting: the files of the directory, or a root of our own."""
        if self._plugged is None:
            if self._current.kind == PLUGGED and not self.moving:
                self._begin(self._store.add_self_signed(self._state.current, now), now)
            return
        try:
            files = read_files(self._plugged)
            if files == self._files and not self._problem:
                return
            wanted = check_plugged(files, now)
        except PluggedError as error:
            if str(error) != self._problem:
                log.error(
                    "the plugged-in CA cannot be used; the one before signs on", error=str(error)
                )
            self._problem = str(error)
            return
        self._problem = ""
        rotation = self._state.rotation
        if rotation is not None:
            target = self._next
            if rotation.phase == ANNOUNCE and _same(wanted, self._current):
                log.info("rotation given up: the files are those in force again")
                gone = _gone(target, self._current) if target else ()
                self._retire(
                    msgspec.structs.replace(self._state, next=None, rotation=None), gone, now
                )
            elif target is None or not _same(wanted, target):
                self._problem = "the files have changed again: that waits for the rotation's end"
                return
            self._files = files
            return
        self._files = files
        if _same(wanted, self._current):
            return
        name = self._store.add_plugged(wanted)
        gone = _gone(self._current, wanted)
        known = wanted.root in self._current.roots and bundle and not self._behind(bundle)
        if known and not self._leaves_below(gone, now):
            log.info("another signing certificate below a trusted root", signer=wanted.id)
            self._retire(msgspec.structs.replace(self._state, current=name), gone, now)
            return
        self._begin(name, now)

    def _leaves_below(self, roots: tuple[str, ...], now: float) -> int:
        return sum(self._in_use.below(root, now) for root in roots)

    def _behind(self, bundle: int) -> bool:
        return any(converged < bundle for converged in self._fleet.reporting.values())

    def _begin(self, name: str, now: float) -> None:
        following = self._store.authority(name, now)
        rotation = begin(self._current.root_id, following.root_id, now)
        returning = frozenset(fingerprint(root) for root in following.roots)
        retired = tuple(root for root in self._state.retired if root not in returning)
        state = msgspec.structs.replace(self._state, next=name, rotation=rotation, retired=retired)
        log.info("rotation begins", old=rotation.old, new=rotation.new)
        self._adopt(state, now)

    def _advance(self, rotation: Rotation, now: float) -> None:
        moved = step(rotation, self._facts(rotation, now))
        if moved is rotation:
            return
        if moved is None:
            state = Succession(self._state.next or "", None, None, self._state.retired)
            log.info("rotation is over", root=rotation.new)
            self._adopt(state, now)
            return
        log.info("rotation goes on", phase=moved.phase, old=moved.old, new=moved.new)
        state = msgspec.structs.replace(self._state, rotation=moved)
        gone: tuple[str, ...] = ()
        if moved.phase == DROP and self._next is not None:
            gone = _gone(self._current, self._next)
        self._retire(state, gone, now)

    def _retire(self, state: Succession, gone: tuple[str, ...], now: float) -> None:
        retired = tuple(dict.fromkeys([*state.retired, *gone]))[-MAX_RETIRED:]
        self._adopt(msgspec.structs.replace(state, retired=retired), now)

    def _facts(self, rotation: Rotation, now: float) -> Facts:
        in_use, fleet = self._in_use, self._fleet
        vouched = (
            self._next is not None
            and self._next.kind == SELF_SIGNED
            and (len(self._next.chain) > 1)
        )
        return Facts(
            now=now,
            bundle=self._bundle,
            gateways=fleet.reporting,
            silent=tuple(p for p in fleet.silent if in_use.gateway_until(p, now) > now),
            expected=in_use.workloads(now),
            old_leaves=self._leaves_below(_gone(self._current, self._next), now)
            if self._next is not None
            else 0,
            peers_s=self._peers_s,
            # Who knows the old root alone accepts the new one's leaves when the old one vouches.
            stale_servers=() if vouched else in_use.services_before(rotation.since, now),
        )


def _same(one: Authority, other: Authority) -> bool:
    return one.chain == other.chain and one.roots == other.roots


def _gone(old: Authority, new: Authority) -> tuple[str, ...]:
    """Fingerprints of the roots of one that are not of the other."""
    return tuple(fingerprint(root) for root in old.roots if root not in new.roots)
