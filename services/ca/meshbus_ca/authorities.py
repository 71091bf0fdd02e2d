"""The authorities of a ca on disk, and which of them is in force.

`succession.json` points at them: it is written whole, so that a crash leaves either the state
before a step or the one after it. The first self-signed authority lies in the state directory
itself, each other one in `authorities/<name>`.
"""

import shutil
import uuid
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from meshbus_ca.authority import PLUGGED, SELF_SIGNED, Authority
from meshbus_ca.issue import Signer, cross_sign, pem_of
from meshbus_ca.keystore import Keystore, KeystoreError, read_key, write_private
from meshbus_ca.rotation import Rotation

MAX_RETIRED = 32
_PLUGGED_KEY, _PLUGGED_CHAIN, _PLUGGED_ROOTS = "key.pem", "chain.pem", "roots.pem"


class Succession(msgspec.Struct, frozen=True):
    """What signs now, what will, and how far the change is."""

    current: str = ""
    """Name of an authority; empty: the first one."""
    next: str | None = None
    rotation: Rotation | None = None
    retired: tuple[str, ...] = ()
    """Fingerprints of roots that were taken away."""


class Authorities:
    """Below the state directory of one replica."""

    def __init__(self, folder: Path, trust_domain: str) -> None:
        self._folder = folder
        self._trust_domain = trust_domain
        self._file = folder / "succession.json"

    def succession(self) -> Succession | None:
        """The state; None: this ca has never signed.

        Raises:
            KeystoreError: It cannot be read.
        """
        if not self._file.exists():
            return Succession() if (self._folder / "root.pem").exists() else None
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Succession)
        except msgspec.MsgspecError as error:
            raise KeystoreError(f"{self._file} cannot be read: {error}") from error

    def save(self, state: Succession) -> None:
        """Make a state the one in force; authorities that it does not name are removed."""
        write_private(self._file, msgspec.json.encode(state))
        names = {state.current, state.next}
        for path in (self._folder / "authorities").glob("*"):
            if path.name not in names:
                shutil.rmtree(path, ignore_errors=True)
        if "" not in names:
            for name in ("root.pem", "intermediate.pem"):
                (self._folder / name).unlink(missing_ok=True)

    def authority(self, name: str, now: float) -> Authority:
        """One of them; its intermediate is made anew when half of its life is over.

        Raises:
            KeystoreError: It cannot be used.
        """
        path = self._path(name)
        if (path / _PLUGGED_KEY).exists():
            return _load_plugged(path)
        store = Keystore(path, self._trust_domain)
        root = store.root(now)
        signer = store.intermediate(root, now)
        chain: tuple[x509.Certificate, ...] = (signer.certificate,)
        cross = path / "cross.pem"
        if cross.exists():
            certificate = x509.load_pem_x509_certificate(cross.read_bytes())
            if certificate.not_valid_after_utc.timestamp() > now:
                chain = (*chain, certificate)
        return Authority(SELF_SIGNED, signer, chain, (root.certificate,))

    def root_signer(self, name: str) -> Signer | None:
        """The root of an authority with its key; None: that is elsewhere (plugged in)."""
        path = self._path(name)
        if not (path / "root.pem").exists():
            return None
        return Keystore(path, self._trust_domain).signer("root")

    def add_self_signed(self, old: str, now: float) -> str:
        """A new root, vouched for by the old one where its key is here. Gives its name."""
        name = uuid.uuid4().hex
        path = self._path(name)
        root = Keystore(path, self._trust_domain).root(now)
        before = self._path(old)
        if (before / "root.pem").exists():
            signer = Keystore(before, self._trust_domain).root(now)
            cross = cross_sign(signer, root, now)
            write_private(path / "cross.pem", pem_of(cross).encode())
        return name

    def add_plugged(self, authority: Authority) -> str:
        """Keep a copy of a plugged-in authority: what it signed must stay valid while its files
        are already others. Gives its name."""
        name = uuid.uuid4().hex
        path = self._path(name)
        key = authority.signer.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        write_private(path / _PLUGGED_ROOTS, "".join(authority.roots_pem).encode())
        write_private(path / _PLUGGED_CHAIN, authority.chain_pem.encode())
        write_private(path / _PLUGGED_KEY, key)
        return name

    def _path(self, name: str) -> Path:
        return self._folder / "authorities" / name if name else self._folder


def _load_plugged(path: Path) -> Authority:
    key = read_key(path / _PLUGGED_KEY)
    try:
        chain = x509.load_pem_x509_certificates((path / _PLUGGED_CHAIN).read_bytes())
        roots = x509.load_pem_x509_certificates((path / _PLUGGED_ROOTS).read_bytes())
    except (OSError, ValueError) as error:
        raise KeystoreError(f"{path}: the copy of a plugged-in CA is damaged: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise KeystoreError(f"{path}: no EC or RSA key")
    return Authority(PLUGGED, Signer(chain[0], key), tuple(chain), tuple(roots))
