"""NKeys: how services prove to NATS who they are. A user is an Ed25519 key; the server knows the
public half, the service signs the server's nonce.

Source: https://github.com/nats-io/nkeys (encoding: prefix bytes, key, CRC-16/XMODEM, base32).
"""

import base64
import binascii
import os

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_SEED = 18 << 3
_USER = 20 << 3


class UserKey:
    """The key pair of one bus identity."""

    __slots__ = ("_private", "_raw")

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._private = Ed25519PrivateKey.from_private_bytes(raw)

    @classmethod
    def generate(cls) -> "UserKey":
        """A new one."""
        return cls(os.urandom(32))

    @classmethod
    def from_seed(cls, seed: str) -> "UserKey":
        """The key of a seed (`SU...`).

        Raises:
            ValueError: Not the seed of a user.
        """
        text = seed.strip()
        try:
            raw = base64.b32decode(text + "=" * (-len(text) % 8))
        except binascii.Error:
            raise ValueError("not an NKey seed: not base32") from None
        if len(raw) != 36 or _crc16(raw[:-2]) != int.from_bytes(raw[-2:], "little"):
            raise ValueError("not an NKey seed: wrong length or checksum")
        prefix = bytes([_SEED | (_USER >> 5), (_USER & 31) << 3])
        if raw[:2] != prefix:
            raise ValueError("not the seed of a user (SU...)")
        return cls(raw[2:34])

    @property
    def public(self) -> str:
        """The public key, `U...`, as the server's configuration names the user."""
        raw = self._private.public_key().public_bytes(
            serialization.Encoding.Raw, serialization.PublicFormat.Raw
        )
        return _encode(bytes([_USER]) + raw)

    @property
    def seed(self) -> str:
        """The secret, `SU...`."""
        return _encode(bytes([_SEED | (_USER >> 5), (_USER & 31) << 3]) + self._raw)

    def sign(self, nonce: str) -> bytes:
        """The signature of a nonce, base64, as CONNECT wants it."""
        return base64.b64encode(self._private.sign(nonce.encode()))


def _encode(data: bytes) -> str:
    return base64.b32encode(data + _crc16(data).to_bytes(2, "little")).rstrip(b"=").decode()


def _crc16(data: bytes) -> int:
    return binascii.crc_hqx(data, 0)
