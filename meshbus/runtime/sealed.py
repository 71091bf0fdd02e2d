"""Secrets in replies: sealed to a key that the asker made for this question.

X25519 between an ephemeral key and the asker's, HKDF-SHA256, AES-256-GCM. The bus sees ciphertext.
"""

import base64
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_INFO = b"meshbus sealed reply v1"
_KEY_BYTES = 32
_NONCE_BYTES = 12


class SealError(Exception):
    """Not a sealed message, or not for this key."""


class Recipient:
    """A key pair: for one answer, or of one to whom many seal."""

    def __init__(self, private: X25519PrivateKey | None = None) -> None:
        """`private`: one that is kept; None: a fresh one."""
        self._private = private or X25519PrivateKey.generate()

    @property
    def public_key(self) -> str:
        """Base64, for the question."""
        return base64.b64encode(self._private.public_key().public_bytes_raw()).decode()

    def open(self, sealed: str) -> bytes:
        """What was sealed.

        Raises:
            SealError: Not for this key, or changed on the way.
        """
        try:
            raw = base64.b64decode(sealed, validate=True)
            shared = self._private.exchange(X25519PublicKey.from_public_bytes(raw[:_KEY_BYTES]))
            nonce = raw[_KEY_BYTES : _KEY_BYTES + _NONCE_BYTES]
            return AESGCM(_derive(shared, raw[:_KEY_BYTES])).decrypt(
                nonce, raw[_KEY_BYTES + _NONCE_BYTES :], _INFO
            )
        except (ValueError, InvalidTag) as error:
            raise SealError("a sealed reply cannot be opened") from error


def recipient() -> Recipient:
    """A fresh one."""
    return Recipient()


def seal(public_key: str, data: bytes) -> str:
    """Seal to the public key of who asked.

    Raises:
        SealError: The key is not a key.
    """
    try:
        peer = X25519PublicKey.from_public_bytes(base64.b64decode(public_key, validate=True))
        ephemeral = X25519PrivateKey.generate()
        own = ephemeral.public_key().public_bytes_raw()
        nonce = os.urandom(_NONCE_BYTES)
        box = AESGCM(_derive(ephemeral.exchange(peer), own)).encrypt(nonce, data, _INFO)
    except ValueError as error:
        raise SealError("not an X25519 public key in base64") from error
    return base64.b64encode(own + nonce + box).decode()


def _derive(shared: bytes, salt: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=_INFO).derive(shared)
