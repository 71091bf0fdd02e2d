"""Which signer elsewhere a setting means."""

from typing import Any

from meshbus.runtime.service import Context
from meshbus.runtime.settings import SettingsError
from meshbus_ca.external import LeafSigner, Roots

KUBERNETES = "kubernetes:"
_HELP = "MESHBUS_CA_SIGNER: vault+URL, kubernetes:DOMAIN/NAME or cert-manager:[GROUP/]KIND/NAME"


def external_roots(settings: Any) -> Roots:
    """Roots above the signer of `MESHBUS_CA_SIGNER`."""
    named = settings.signer.startswith(KUBERNETES)
    return Roots(settings.signer_roots, settings.signer.removeprefix(KUBERNETES) if named else "")


def external_signer(context: Context[Any]) -> LeafSigner:
    """The signer of `MESHBUS_CA_SIGNER`.

    Raises:
        SettingsError: It cannot be used.
    """
    settings = context.settings
    if not settings.signer_roots and not settings.signer.startswith(KUBERNETES):
        raise SettingsError("MESHBUS_CA_SIGNER_ROOTS: what its certificates are checked with?")
    # Each imported here: a ca with keys of its own pays for none of them.
    if settings.signer.startswith("vault+"):
        from meshbus_ca.signer_vault import VaultSigner

        url = settings.signer.removeprefix("vault+")
        return VaultSigner(url, settings.signer_token, settings.signer_tls_roots)
    kind, _, name = settings.signer.partition(":")
    if kind not in ("kubernetes", "cert-manager") or "/" not in name:
        raise SettingsError(_HELP)
    if context.kubernetes is None:
        raise SettingsError(f"MESHBUS_CA_SIGNER: {kind} needs MESHBUS_KUBERNETES")
    from meshbus_ca.signer_kubernetes import CertManagerSigner, KubernetesSigner

    client = context.kubernetes.client
    if kind == "kubernetes":
        return KubernetesSigner(client, name)
    return CertManagerSigner(client, context.kubernetes.namespace, name)
