"""SDS resources of PEM, and what Kubernetes Secrets hold. Pure.

Source: envoy/extensions/transport_sockets/tls/v3/secret.proto; keys of Secrets as Istio reads them:
`tls.crt`, `tls.key`, `ca.crt`, or `cert`, `key`, `cacert`.
"""

from collections.abc import Iterable, Mapping

from envoy.config.core.v3 import base_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, secret_pb2

from meshbus.compile.resources import SDS, Resource
from meshbus.model.keys import Key


class UnusableSecretError(Exception):
    """The Secret does not hold what is needed; the message says what is missing."""


def certificate_secret(
    name: str, chain_pem: bytes, key_pem: bytes, origins: Iterable[Key] = ()
) -> Resource:
    """A certificate with its private key."""
    return _resource(
        secret_pb2.Secret(
            name=name,
            tls_certificate=common_pb2.TlsCertificate(
                certificate_chain=_inline(chain_pem), private_key=_inline(key_pem)
            ),
        ),
        origins,
    )


def roots_secret(name: str, roots_pem: bytes, origins: Iterable[Key] = ()) -> Resource:
    """What peers are checked with."""
    return _resource(
        secret_pb2.Secret(
            name=name,
            validation_context=common_pb2.CertificateValidationContext(
                trusted_ca=_inline(roots_pem)
            ),
        ),
        origins,
    )


def credential_secret(
    name: str, part: str, data: Mapping[str, bytes], origins: Iterable[Key] = ()
) -> Resource:
    """The part (`certificate` or `ca`) of a Kubernetes Secret that a proxy needs.

    Args:
        origins: Objects that name the Secret.

    Raises:
        UnusableSecretError: It is not in there.
    """
    if part == "ca":
        roots = data.get("ca.crt") or data.get("cacert")
        if not roots:
            raise UnusableSecretError("it has neither ca.crt nor cacert")
        return roots_secret(name, roots, origins)
    chain = data.get("tls.crt") or data.get("cert")
    key = data.get("tls.key") or data.get("key")
    if not chain or not key:
        raise UnusableSecretError("it has neither tls.crt and tls.key nor cert and key")
    return certificate_secret(name, chain, key, origins)


def _inline(data: bytes) -> base_pb2.DataSource:
    return base_pb2.DataSource(inline_bytes=data)


def _resource(secret: secret_pb2.Secret, origins: Iterable[Key]) -> Resource:
    # Not interned: keys are held by those who deliver them and by nothing else.
    return Resource(
        SDS, secret.name, secret.SerializeToString(deterministic=True), frozenset(origins)
    )
