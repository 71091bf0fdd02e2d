"""SDS resources of PEM, and what Kubernetes Secrets hold. Pure.

Source: envoy/extensions/transport_sockets/tls/v3/secret.proto; keys of Secrets as Istio reads them:
`tls.crt`, `tls.key`, `tls.ocsp-staple`, `ca.crt`, `ca.crl`, or `cert`, `key`, `cacert`, `crl`.
"""

from collections.abc import Iterable, Mapping, Sequence

from envoy.config.core.v3 import base_pb2
from envoy.extensions.transport_sockets.tls.v3 import (
    common_pb2,
    secret_pb2,
    tls_spiffe_validator_config_pb2,
)

from meshbus.compile.resources import SDS, Resource
from meshbus.compile.values import any_of
from meshbus.model.keys import Key
from meshbus.model.rows import Trust
from meshbus_xds_gateway.wiping import KeyResource, wipe

SPIFFE_VALIDATOR = "envoy.tls.cert_validator.spiffe"


class UnusableSecretError(Exception):
    """The Secret does not hold what is needed; the message says what is missing."""


def certificate_secret(
    name: str,
    chain_pem: bytes,
    key_pem: bytes,
    origins: Iterable[Key] = (),
    ocsp: bytes = b"",
) -> Resource:
    """A certificate with its private key. `ocsp`: a response of its issuer (DER) to staple."""
    certificate = common_pb2.TlsCertificate(
        certificate_chain=_inline(chain_pem), private_key=_inline(key_pem)
    )
    if ocsp:
        certificate.ocsp_staple.CopyFrom(_inline(ocsp))
    secret = secret_pb2.Secret(name=name, tls_certificate=certificate)
    body = secret.SerializeToString(deterministic=True)
    resource = KeyResource(SDS, name, body, origins)
    wipe(body)
    return resource


def certificate_at(name: str, folder: str) -> Resource:
    """A certificate that the proxy's machine keeps, with its key, in a directory that is watched:
    we never see the key.

    Source: envoy.extensions.transport_sockets.tls.v3.TlsCertificate.watched_directory.
    """
    certificate = common_pb2.TlsCertificate(
        certificate_chain=base_pb2.DataSource(filename=f"{folder}/cert-chain.pem"),
        private_key=base_pb2.DataSource(filename=f"{folder}/key.pem"),
        watched_directory=base_pb2.WatchedDirectory(path=folder),
    )
    return _resource(secret_pb2.Secret(name=name, tls_certificate=certificate), ())


def roots_message(name: str, roots_pem: bytes) -> secret_pb2.Secret:
    """What peers are checked with."""
    return secret_pb2.Secret(
        name=name,
        validation_context=common_pb2.CertificateValidationContext(trusted_ca=_inline(roots_pem)),
    )


def trust_secret(
    name: str, own: Trust, others: Sequence[Trust] = (), aliases: Sequence[str] = ()
) -> Resource:
    """What peers of the mesh are checked with: the roots of its trust domain, without what is
    revoked; where there are others, each vouches for its own identities alone.

    Args:
        own: Of the mesh itself.
        others: Of other trust domains, and further roots of its own.
        aliases: Other names of its own trust domain.

    Source: envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig. It takes no list
    but those among the roots, and then asks for one of every CA on the way.
    """
    roots = {own.trust_domain: own.roots_pem}
    for trust in others:
        roots[trust.trust_domain] = roots.get(trust.trust_domain, "") + trust.roots_pem
    if len(roots) == 1:
        secret = roots_message(name, roots[own.trust_domain].encode())
        if own.crl_pem:
            secret.validation_context.crl.CopyFrom(_inline(own.crl_pem.encode()))
            secret.validation_context.only_verify_leaf_cert_crl = not own.crl_deep
        return _resource(secret, ())
    if own.crl_whole:
        roots[own.trust_domain] += own.crl_pem
    for alias in aliases:
        roots.setdefault(alias, roots[own.trust_domain])
    config = tls_spiffe_validator_config_pb2.SPIFFECertValidatorConfig()
    for domain in sorted(roots):
        config.trust_domains.add(name=domain, trust_bundle=_inline(roots[domain].encode()))
    context = common_pb2.CertificateValidationContext()
    context.custom_validator_config.name = SPIFFE_VALIDATOR
    context.custom_validator_config.typed_config.CopyFrom(any_of(config))
    return _resource(secret_pb2.Secret(name=name, validation_context=context), ())


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
        return _roots(name, data, origins)
    chain = data.get("tls.crt") or data.get("cert")
    key = data.get("tls.key") or data.get("key")
    if not chain or not key:
        raise UnusableSecretError("it has neither tls.crt and tls.key nor cert and key")
    # Whether they belong together the proxy says: its refusal is told to who names the Secret.
    return certificate_secret(name, chain, key, origins, data.get("tls.ocsp-staple", b""))


def _roots(name: str, data: Mapping[str, bytes], origins: Iterable[Key]) -> Resource:
    roots, crl = data.get("ca.crt"), data.get("ca.crl")
    if not roots:
        roots, crl = data.get("cacert"), data.get("crl")
    if not roots:
        raise UnusableSecretError("it has neither ca.crt nor cacert")
    secret = roots_message(name, roots)
    if crl:
        secret.validation_context.crl.CopyFrom(_inline(crl))
    return _resource(secret, origins)


def _inline(data: bytes) -> base_pb2.DataSource:
    return base_pb2.DataSource(inline_bytes=data)


def _resource(secret: secret_pb2.Secret, origins: Iterable[Key]) -> Resource:
    # Not interned: keys are held by those who deliver them and by nothing else.
    return Resource(
        SDS, secret.name, secret.SerializeToString(deterministic=True), frozenset(origins)
    )
