"""The ca's keys on disk: one PEM file each, mode 0600, written whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from meshbus_ca.issue import PrivateKey, Signer, make_intermediate, make_root
from meshbus_ca.tokens import TokenKey


class KeystoreError(Exception):
    """A file of the keystore cannot be used; the message says which and what to do."""


class Keystore:
    """Keys of one ca replica, below its state directory."""

    def __init__(self, folder: Path, trust_domain: str) -> None:
        self._folder = folder
        self._trust_domain = trust_domain

    def root(self, now: float) -> Signer:
        """The root, made when there is none.

        Raises:
            KeystoreError: It is there and cannot be used. It is never replaced by itself: all
                that it has signed would lose its trust.
        """
        root = self._signer("root", lambda: make_root(self._trust_domain, now))
        if root.not_after <= now:
            raise KeystoreError(f"{self._folder / 'root.pem'}: the root has expired: move it away")
        return root

    def intermediate(self, root: Signer, now: float) -> Signer:
        """The certificate that signs, made anew when half of its life is over, or it belongs to
        another root."""
        signer = self._signer(
            "intermediate", lambda: make_intermediate(root, self._trust_domain, now)
        )
        try:
            signer.certificate.verify_directly_issued_by(root.certificate)
            stale = signer.half_spent(now)
        except (ValueError, TypeError, InvalidSignature):
            stale = True
        if stale:
            signer = make_intermediate(root, self._trust_domain, now)
            write_private(self._folder / "intermediate.pem", _pem(signer))
        return signer

    def token_key(self) -> TokenKey:
        """The key that signs join tokens, made when there is none."""
        path = self._folder / "tokens.pem"
        if not path.exists():
            write_private(path, _key_pem(ec.generate_private_key(ec.SECP256R1())))
        return TokenKey(_load_key(path))

    def proof_key(self) -> X25519PrivateKey:
        """The key that proofs are sealed to, made when there is none."""
        path = self._folder / "proofs.pem"
        if not path.exists():
            write_private(path, _key_pem(X25519PrivateKey.generate()))
        key = read_key(path)
        if not isinstance(key, X25519PrivateKey):
            raise KeystoreError(f"{path}: not an X25519 key")
        return key

    def _signer(self, name: str, make: Callable[[], Signer]) -> Signer:
        path = self._folder / f"{name}.pem"
        if not path.exists():
            signer = make()
            write_private(path, _pem(signer))
            return signer
        return self.signer(name)

    def signer(self, name: str) -> Signer:
        """One that is there.

        Raises:
            KeystoreError: It cannot be used.
        """
        path = self._folder / f"{name}.pem"
        key = _load_key(path)
        try:
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
        except ValueError as error:
            raise KeystoreError(f"{path}: no certificate in it: {error}") from error
        if certificate.public_key() != key.public_key():
            raise KeystoreError(f"{path}: key and certificate do not belong together")
        return Signer(certificate, key)


def read_key(path: Path) -> object:
    """The private key of a file.

    Raises:
        KeystoreError: Others can read it, or it is none.
    """
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise KeystoreError(f"{path}: mode {mode:o} lets others read a key: chmod 600 {path}")
    try:
        return serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise KeystoreError(f"{path}: no private key in it") from error


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = read_key(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise KeystoreError(f"{path}: not an EC key")
    return key


def _key_pem(key: PrivateKey | X25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _pem(signer: Signer) -> bytes:
    return _key_pem(signer.key) + signer.pem.encode()


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
