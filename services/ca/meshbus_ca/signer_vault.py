"""A signer that speaks the HTTP API of Vault's PKI secrets engine (also OpenBao's).

Source: https://developer.hashicorp.com/vault/api-docs/secret/pki#sign-certificate. The role must
allow the URI names of the trust domain (`allowed_uri_sans`) and no common name
(`require_cn=false`).
"""

import ssl
from pathlib import Path
from typing import Any

import httpx
import msgspec

from meshbus.runtime.settings import SettingsError
from meshbus_ca.external import Chain, SignerError, certificates_of
from meshbus_ca.issue import Names

TIMEOUT_S = 4.0
_MAX_BYTES = 256 * 1024


class _Data(msgspec.Struct):
    certificate: str
    issuing_ca: str = ""
    ca_chain: list[str] | None = None


class _Answer(msgspec.Struct):
    data: _Data


class VaultSigner:
    """`POST <address>/v1/<mount>/sign/<role>`."""

    def __init__(self, url: str, token_file: str, roots_file: str = "") -> None:
        """`url`: `https://HOST/v1/MOUNT/sign/ROLE`; the token is read anew for each call, so that
        an agent may renew it.

        Raises:
            SettingsError: The address or a file cannot be used.
        """
        parts = httpx.URL(url)
        if parts.scheme not in ("https", "http") or "/sign/" not in parts.path:
            raise SettingsError(
                "MESHBUS_CA_SIGNER: vault+https://HOST/v1/MOUNT/sign/ROLE is needed"
            )
        if parts.scheme == "http" and parts.host not in ("127.0.0.1", "::1", "localhost"):
            raise SettingsError(
                "MESHBUS_CA_SIGNER: a token goes over TLS, or to this machine alone"
            )
        self._url = url
        self._token_file = Path(token_file)
        try:
            verify = ssl.create_default_context(cafile=roots_file or None)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"MESHBUS_CA_SIGNER_TLS_ROOTS: {error}") from error
        self._client = httpx.AsyncClient(verify=verify, timeout=TIMEOUT_S, follow_redirects=False)

    async def sign(self, csr_pem: str, names: Names, ttl_s: float) -> Chain:
        """See `LeafSigner`."""
        body: dict[str, Any] = {
            "csr": csr_pem,
            "uri_sans": names.spiffe_id,
            "alt_names": ",".join(names.dns_names),
            "exclude_cn_from_sans": True,
            "ttl": f"{int(ttl_s)}s",
            "format": "pem",
        }
        try:
            token = self._token_file.read_text().strip()
            answer = await self._client.post(
                self._url, json=body, headers={"X-Vault-Token": token, "X-Vault-Request": "true"}
            )
        except OSError as error:
            raise SignerError(
                f"the token of the signer cannot be read: {error.strerror}"
            ) from error
        except httpx.HTTPError as error:
            raise SignerError(f"the signer does not answer: {type(error).__name__}") from error
        if answer.status_code != 200:
            raise SignerError(f"the signer answers {answer.status_code}: {_errors(answer)}")
        if len(answer.content) > _MAX_BYTES:
            raise SignerError("the signer answers too much")
        try:
            data = msgspec.json.decode(answer.content, type=_Answer).data
        except msgspec.MsgspecError as error:
            raise SignerError("the signer's answer cannot be read") from error
        return Chain(certificates_of(data.certificate, *(data.ca_chain or [data.issuing_ca])))


def _errors(answer: httpx.Response) -> str:
    try:
        said = msgspec.json.decode(answer.content, type=dict[str, Any]).get("errors")
    except msgspec.MsgspecError:
        return ""
    return "; ".join(str(one) for one in said)[:200] if isinstance(said, list) else ""
