"""The contents of Secrets are sealed before they reach MODEL, with a key only config holds."""

import base64
import json
import os
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE_BYTES = 12
_KEY_BYTES = 32


class SecretKeyError(Exception):
    """The key of Secrets is not what it should be; the message says what to do."""


class SecretBox:
    """AES-256-GCM; the row's key is authenticated with it, so that sealed content cannot be moved
    to another Secret."""

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)

    def seal(self, content: dict[str, Any], place: str) -> str:
        """Base64 of nonce and ciphertext of the content as JSON."""
        nonce = os.urandom(_NONCE_BYTES)
        plain = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
        return base64.b64encode(nonce + self._aead.encrypt(nonce, plain, place.encode())).decode()

    def open(self, sealed: str, place: str) -> dict[str, Any]:
        """What was sealed at this place.

        Raises:
            SecretKeyError: It was sealed with another key, or at another place.
        """
        raw = base64.b64decode(sealed)
        try:
            plain = self._aead.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], place.encode())
        except InvalidTag as error:
            raise SecretKeyError(
                f"the content of {place} was sealed with another key: restore secrets.key of the "
                "config service's state directory, or delete the Secret and apply it again"
            ) from error
        content: dict[str, Any] = json.loads(plain)
        return content


def load_box(path: Path) -> SecretBox:
    """The box whose key is in a file; the key is made, mode 0600, if there is none.

    Raises:
        SecretKeyError: The file is not a key, or others may read it.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return SecretBox(_read(path))
    with os.fdopen(descriptor, "wb") as file:
        file.write(base64.b64encode(os.urandom(_KEY_BYTES)) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return SecretBox(_read(path))


def _read(path: Path) -> bytes:
    if path.stat().st_mode & 0o077:
        raise SecretKeyError(f"{path} may be read by others: chmod 600 {path}")
    try:
        key = base64.b64decode(path.read_bytes().strip(), validate=True)
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise SecretKeyError(
            f"{path} is not a key of Secrets ({_KEY_BYTES} bytes in base64): restore it, or remove "
            "it and apply all Secrets again"
        )
    return key
