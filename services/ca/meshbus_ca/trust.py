"""The row `sec.trust`: this ca's root and token key, beside those of its predecessors.

A ca whose state was lost makes a new root; what the old one signed stays trusted until it ends, so
that proxies go on while they get new certificates.
"""

import json
from collections.abc import Container, Sequence
from typing import Any

from cryptography import x509

from meshbus.model.rows import Trust
from meshbus_ca.authority import fingerprint
from meshbus_ca.issue import pem_of
from meshbus_ca.tokens import TokenKey

MAX_ROOTS = 8
MAX_TOKEN_KEYS = 4


def trust_row(
    trust_domain: str,
    issuer: str,
    roots: Sequence[str],
    token_key: TokenKey,
    held: Trust | None,
    now: float,
    *,
    retired: Container[str] = (),
    proof_key: str = "",
) -> Trust:
    """The row as it should be; equal to `held` when nothing is to be written.

    Args:
        roots: PEM of each root that must be there, newest first.
        retired: Fingerprints of roots that must not be there any more.
    """
    wanted = list(dict.fromkeys(roots))
    keys: list[dict[str, Any]] = [dict(token_key.jwk)]
    if held is not None:
        wanted += [
            pem for pem in _kept(held.roots_pem, retired, now) if pem not in frozenset(wanted)
        ]
        keys += [k for k in _keys(held.token_jwks) if k.get("kid") != token_key.key_id]
    return Trust(
        trust_domain=trust_domain,
        roots_pem="".join(wanted[: max(MAX_ROOTS, len(roots))]),
        token_jwks=json.dumps({"keys": keys[:MAX_TOKEN_KEYS]}, sort_keys=True),
        issuer=issuer,
        proof_key=proof_key,
    )


def _kept(roots_pem: str, retired: Container[str], now: float) -> list[str]:
    if not roots_pem:
        return []
    return [
        pem_of(certificate)
        for certificate in x509.load_pem_x509_certificates(roots_pem.encode())
        if certificate.not_valid_after_utc.timestamp() > now
        and fingerprint(certificate) not in retired
    ]


def _keys(jwks: str) -> list[dict[str, Any]]:
    return list(json.loads(jwks).get("keys", [])) if jwks else []
