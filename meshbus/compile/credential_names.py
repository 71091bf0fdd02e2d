"""Secrets that objects name (`credentialName`), and ConfigMaps with authorities: which one is
meant, and what it is called in SDS.

Source: networking ServerTLSSettings and ClientTLSSettings references; Istio's resource names
(pkg/model/credentials): `NAME`, `kubernetes://[NAMESPACE/]NAME`, `kubernetes-gateway://NAMESPACE/NAME`,
`configmap://NAMESPACE/NAME`.
"""

from typing import NamedTuple

from meshbus.api.credentials import CONFIG_MAP
from meshbus.compile.findings import NotCompiledError

KUBERNETES = "kubernetes://"
SECRETS, CONFIG_MAPS = "secrets", "configmaps"
_FOR_GATEWAYS = "kubernetes-gateway://"
_ROOTS = "-cacert"
AUTHORITY_KEYS = ("ca.crt", "cacert", "ca.crl", "crl")
"""Keys of authorities and of what they have revoked, in a Secret or ConfigMap."""


class Credential(NamedTuple):
    """What is meant."""

    namespace: str
    """Empty: that of the proxy."""
    name: str
    table: str = SECRETS
    """`secrets` or `configmaps`."""


def is_config_map(written: str) -> bool:
    """A `credentialName` names a ConfigMap."""
    return written.startswith(CONFIG_MAP)


def credential_of(written: str, path: str) -> Credential:
    """The Secret or ConfigMap that a `credentialName` means.

    Raises:
        NotCompiledError: It names something else.
    """
    if is_config_map(written):
        namespace, _, name = written.removeprefix(CONFIG_MAP).partition("/")
        if not namespace or not name or "/" in name:
            raise NotCompiledError(path, f"{written!r} is not {CONFIG_MAP}NAMESPACE/NAME")
        return Credential(namespace, name, CONFIG_MAPS)
    text = written
    for scheme in (KUBERNETES, _FOR_GATEWAYS):
        text = text.removeprefix(scheme)
    namespace, slash, name = text.rpartition("/")
    if "://" in text or "/" in namespace or not name or (slash and not namespace):
        raise NotCompiledError(path, f"{written!r} is not [NAMESPACE/]NAME of a Secret")
    return Credential(namespace, name)


def certificate_name(written: str) -> str:
    """The resource of its certificate and key, or, for a Secret with roots alone, of those."""
    return written if "://" in written else KUBERNETES + written


def roots_name(written: str) -> str:
    """The resource of the roots that come with it."""
    return certificate_name(written) + _ROOTS


def roots_secret_of(credential: Credential) -> Credential:
    """The Secret that holds them, where they stand in one of their own."""
    return credential._replace(name=credential.name + _ROOTS)


def without_suffix(credential: Credential) -> Credential:
    """The Secret that holds roots under a name that ends as if they stood in one of their own."""
    return credential._replace(name=credential.name.removesuffix(_ROOTS))
