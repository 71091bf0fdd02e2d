"""What has signed leaves that may still be in use: to revoke one of them takes the key that signed
it, also when another one signs by now.

A copy of each lies in the state directory from the moment it signs, mode 0600, and is removed when
the last certificate that it can have signed has ended.
"""

import os
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from meshbus_ca.authority import fingerprint
from meshbus_ca.issue import Signer
from meshbus_ca.keystore import KeystoreError, read_key, write_private

_MARK_S = 600.0

log = structlog.get_logger("ca")


class PastSigners:
    """Below the state directory of one replica."""

    def __init__(self, folder: Path, longest_s: float) -> None:
        """`longest_s`: no certificate lives longer."""
        self._folder = folder / "signers"
        self._longest_s = longest_s
        self._signers: dict[str, Signer] = {}
        self._used: dict[str, float] = {}

    def open(self) -> None:
        """Read what is there. A copy that cannot be read is passed over: nothing signs with it."""
        for path in sorted(self._folder.glob("*.pem")):
            try:
                key = read_key(path)
                certificate = x509.load_pem_x509_certificate(path.read_bytes())
            except (KeystoreError, ValueError, OSError) as error:
                log.warning("a past signer cannot be used", file=str(path), error=str(error))
                continue
            if isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
                self._signers[path.stem] = Signer(certificate, key)
                self._used[path.stem] = path.stat().st_mtime

    def signs(self, signer: Signer, now: float) -> None:
        """This one signs now; those whose leaves have all ended are forgotten."""
        name = fingerprint(signer.certificate)
        path = self._folder / f"{name}.pem"
        if name not in self._signers:
            key = signer.key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            write_private(path, key + signer.pem.encode())
            self._signers[name] = signer
        if now - self._used.get(name, 0.0) >= _MARK_S:
            os.utime(path, (now, now))
            self._used[name] = now
        for old in [n for n, used in self._used.items() if self._over(used, now) and n != name]:
            (self._folder / f"{old}.pem").unlink(missing_ok=True)
            del self._signers[old], self._used[old]

    def _over(self, used: float, now: float) -> bool:
        return now > used + _MARK_S + self._longest_s

    @property
    def all(self) -> tuple[Signer, ...]:
        """Every one that is not forgotten."""
        return tuple(self._signers.values())
