"""Secrets that objects name (`credentialName`): which one is meant, and what it is called in SDS.

Source: networking ServerTLSSettings and ClientTLSSettings references; Istio's resource names
(pkg/model/credentials): `NAME`, `kubernetes://[NAMESPACE/]NAME`, `kubernetes-gateway://NAMESPACE/NAME`.
"""

from typing import NamedTuple

from meshbus.compile.findings import NotCompiledError

KUBERNETES = "kubernetes://"
_FOR_GATEWAYS = "kubernetes-gateway://"
_ROOTS = "-cacert"


class Credential(NamedTuple):
    """A Secret that is meant."""

    namespace: str
    """Empty: that of the proxy."""
    name: str


def credential_of(written: str, path: str) -> Credential:
    """The Secret that a `credentialName` means.

    Raises:
        NotCompiledError: It names something else than a Secret.
    """
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
