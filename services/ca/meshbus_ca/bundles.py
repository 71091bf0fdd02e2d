"""Bundles of trust domains as SPIFFE writes them: pure.

Source: https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Trust_Domain_and_Bundle.md
(JWK set; `use: x509-svid` with one certificate in `x5c`; `spiffe_sequence`, `spiffe_refresh_hint`).
"""

import base64
import binascii
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from meshbus_ca.issue import pem_of

MAX_BYTES = 1024 * 1024
MAX_ROOTS = 64
X509 = "x509-svid"
_CURVES = {"secp256r1": ("P-256", 32), "secp384r1": ("P-384", 48), "secp521r1": ("P-521", 66)}


class BundleError(Exception):
    """It is no bundle; the message says why."""


class Bundle(NamedTuple):
    """What a trust domain's X.509 identities are checked with."""

    roots_pem: str
    sequence: int = 0
    refresh_hint_s: int = 0
    """0: it says none."""


def bundle_document(roots_pem: str, sequence: int, refresh_hint_s: int) -> bytes:
    """A bundle as JSON."""
    roots = x509.load_pem_x509_certificates(roots_pem.encode())
    document = {
        "keys": [_jwk(root) for root in roots],
        "spiffe_sequence": sequence,
        "spiffe_refresh_hint": refresh_hint_s,
    }
    return json.dumps(document, sort_keys=True).encode()


def read_bundle(data: bytes) -> Bundle:
    """The X.509 part of a bundle.

    Raises:
        BundleError: It is not one, or holds no root.
    """
    if len(data) > MAX_BYTES:
        raise BundleError(f"more than {MAX_BYTES} bytes")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError("no JSON") from error
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list):
        raise BundleError("`keys` is missing")
    roots = [_root(key) for key in keys if isinstance(key, dict) and key.get("use") == X509]
    if not roots:
        raise BundleError(f"no key with `use: {X509}`")
    if len(roots) > MAX_ROOTS:
        raise BundleError(f"more than {MAX_ROOTS} roots")
    return Bundle(
        "".join(dict.fromkeys(pem_of(root) for root in roots)),
        _number(document.get("spiffe_sequence")),
        _number(document.get("spiffe_refresh_hint")),
    )


def read_roots(pem: str) -> str:
    """Roots in PEM, each once.

    Raises:
        BundleError: None is in there.
    """
    if len(pem) > MAX_BYTES:
        raise BundleError(f"more than {MAX_BYTES} bytes")
    try:
        roots = x509.load_pem_x509_certificates(pem.encode())
    except ValueError as error:
        raise BundleError("no PEM certificate") from error
    if len(roots) > MAX_ROOTS:
        raise BundleError(f"more than {MAX_ROOTS} roots")
    return joined(pem_of(root) for root in roots)


def joined(pems: Iterable[str]) -> str:
    """Several as one, each certificate once."""
    return "".join(dict.fromkeys(pems))


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _root(key: dict[str, Any]) -> x509.Certificate:
    chain = key.get("x5c")
    if not isinstance(chain, list) or len(chain) != 1 or not isinstance(chain[0], str):
        raise BundleError("`x5c` must hold one certificate")
    try:
        return x509.load_der_x509_certificate(base64.b64decode(chain[0], validate=True))
    except (ValueError, binascii.Error) as error:
        raise BundleError("`x5c` holds no certificate") from error


def _jwk(root: x509.Certificate) -> dict[str, Any]:
    der = base64.b64encode(root.public_bytes(serialization.Encoding.DER)).decode()
    key = root.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        curve, size = _CURVES[key.curve.name]
        point = key.public_numbers()
        parameters = {"kty": "EC", "crv": curve, "x": _b64(point.x, size), "y": _b64(point.y, size)}
    else:
        assert isinstance(key, rsa.RSAPublicKey)
        numbers = key.public_numbers()
        parameters = {
            "kty": "RSA",
            "n": _b64(numbers.n, (numbers.n.bit_length() + 7) // 8),
            "e": _b64(numbers.e, (numbers.e.bit_length() + 7) // 8),
        }
    return {"use": X509, **parameters, "x5c": [der]}


def _b64(value: int, size: int) -> str:
    return base64.urlsafe_b64encode(value.to_bytes(size, "big")).rstrip(b"=").decode()
