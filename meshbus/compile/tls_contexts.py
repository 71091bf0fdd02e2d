"""TLS: mutual TLS of the mesh, TLS of destination rules, TLS of gateways.

Certificates come by SDS over ADS: `default` (the workload's own), `ROOTCA` (what it trusts), and
`kubernetes://NAME` (a Secret; `-cacert` at the end: its CA).
"""

from collections.abc import Iterable, Mapping
from typing import Any

from envoy.config.core.v3 import base_pb2
from envoy.extensions.transport_sockets.quic.v3 import quic_transport_pb2
from envoy.extensions.transport_sockets.raw_buffer.v3 import raw_buffer_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, secret_pb2, tls_pb2
from envoy.type.matcher.v3 import string_pb2

from meshbus.api.addresses import is_ip
from meshbus.compile.credential_names import certificate_name, roots_name
from meshbus.compile.findings import NotCompiledError
from meshbus.compile.names import is_http
from meshbus.compile.settings import MeshSettings
from meshbus.compile.tls_limits import (
    NO_LIMITS,
    TLS_1_3,
    TlsLimits,
    limit_client,
    limit_mesh_server,
    limit_server,
)
from meshbus.compile.values import ads, any_of, boolean, data_source, seconds

QUIC_SOCKET = "envoy.transport_sockets.quic"
TLS_SOCKET = "envoy.transport_sockets.tls"
RAW_SOCKET = "envoy.transport_sockets.raw_buffer"
OWN_CERTIFICATE = "default"
TRUSTED_ROOTS = "ROOTCA"
SYSTEM_ROOTS = "/etc/ssl/certs/ca-certificates.crt"
"""Roots of the proxy's machine, for TLS origination that names no CA."""
SECRET_WAIT_S = 5
"""How long a cluster waits for a Secret that a destination rule names."""

ALPN_HTTP1 = ("istio-http/1.1", "istio", "http/1.1")
ALPN_HTTP2 = ("istio-h2", "istio", "h2")
ALPN_TCP = ("istio-peer-exchange", "istio")
ALPN_MESH_HTTP = ("istio-http/1.0", "istio-http/1.1", "istio-h2")
ALPN_MESH = ("istio-peer-exchange", "istio", *ALPN_MESH_HTTP)
"""Every name by which a mesh proxy says that it is one."""
_SERVER_ALPN = ("istio-peer-exchange", "h2", "http/1.1")


def sds(name: str) -> secret_pb2.SdsSecretConfig:
    """A secret by name over ADS."""
    return secret_pb2.SdsSecretConfig(name=name, sds_config=ads())


def secret_source(name: str) -> secret_pb2.SdsSecretConfig:
    """A secret that somebody else keeps: it may be missing, and what else there is must not wait
    for it for ever. Connections that need it fail until it comes."""
    source = sds(name)
    source.sds_config.initial_fetch_timeout.CopyFrom(seconds(SECRET_WAIT_S))
    return source


def _names(names: Iterable[str]) -> list[string_pb2.StringMatcher]:
    return [string_pb2.StringMatcher(exact=name) for name in names]


def _uri_sans(names: Iterable[str], kind: int) -> list[common_pb2.SubjectAltNameMatcher]:
    return [
        common_pb2.SubjectAltNameMatcher(san_type=kind, matcher=matcher)
        for matcher in _names(names)
    ]


def _combined(
    roots: str, sans: list[common_pb2.SubjectAltNameMatcher]
) -> tls_pb2.CommonTlsContext.CombinedCertificateValidationContext:
    return tls_pb2.CommonTlsContext.CombinedCertificateValidationContext(
        default_validation_context=common_pb2.CertificateValidationContext(
            match_typed_subject_alt_names=sans
        ),
        validation_context_sds_secret_config=sds(roots),
    )


def mesh_client(sni: str, identities: Iterable[str], alpn: Iterable[str]) -> Any:
    """Client side of mutual TLS between proxies. `identities`: SPIFFE ids the server may have;
    empty: any that the roots vouch for."""
    context = tls_pb2.UpstreamTlsContext(
        common_tls_context=tls_pb2.CommonTlsContext(
            alpn_protocols=list(alpn),
            tls_certificate_sds_secret_configs=[sds(OWN_CERTIFICATE)],
            combined_validation_context=_combined(
                TRUSTED_ROOTS,
                _uri_sans(sorted(set(identities)), common_pb2.SubjectAltNameMatcher.URI),
            ),
        ),
        sni=sni,
    )
    limit_client(context.common_tls_context.tls_params, NO_LIMITS)
    return context


def control_plane_client(identity: str) -> base_pb2.TransportSocket:
    """Mutual TLS 1.3 to a service of the control plane, pinned to its SPIFFE id."""
    context = mesh_client("", [identity], ["h2"])
    context.common_tls_context.tls_params.tls_minimum_protocol_version = TLS_1_3
    return base_pb2.TransportSocket(name=TLS_SOCKET, typed_config=any_of(context))


def socket(context: Any) -> base_pb2.TransportSocket:
    """A TLS transport socket."""
    return base_pb2.TransportSocket(name=TLS_SOCKET, typed_config=any_of(context))


def quic_socket(context: tls_pb2.DownstreamTlsContext) -> base_pb2.TransportSocket:
    """The same of QUIC, whose TLS is 1.3 and whose protocol is HTTP/3."""
    context.common_tls_context.ClearField("tls_params")
    del context.common_tls_context.alpn_protocols[:]
    context.common_tls_context.alpn_protocols.append("h3")
    own = quic_transport_pb2.QuicDownstreamTransport(downstream_tls_context=context)
    return base_pb2.TransportSocket(name=QUIC_SOCKET, typed_config=any_of(own))


def plaintext() -> base_pb2.TransportSocket:
    """No TLS."""
    return base_pb2.TransportSocket(
        name=RAW_SOCKET, typed_config=any_of(raw_buffer_pb2.RawBuffer())
    )


def mesh_alpn(protocol: str, http2: bool) -> tuple[str, ...]:
    """What a proxy offers for traffic of a protocol, so that Istio's and our servers choose the
    right filter chain.

    Upstream Envoy has no `istio.alpn` filter, so the name is fixed per cluster: what is not
    declared to be HTTP goes as TCP.
    """
    if http2:
        return ALPN_HTTP2
    if is_http(protocol):
        return ALPN_HTTP1
    return ALPN_TCP


def mesh_server(settings: MeshSettings) -> Any:
    """Server side of mutual TLS between proxies: a client certificate of a trust domain that this
    mesh accepts is required."""
    context = _mutual_server(settings)
    sans = context.common_tls_context.combined_validation_context.default_validation_context
    sans.match_typed_subject_alt_names.extend(
        common_pb2.SubjectAltNameMatcher(
            san_type=common_pb2.SubjectAltNameMatcher.URI,
            matcher=string_pb2.StringMatcher(prefix=f"spiffe://{domain}/"),
        )
        for domain in settings.accepted_trust_domains
    )
    return context


def _mutual_server(settings: MeshSettings) -> Any:
    context = tls_pb2.DownstreamTlsContext(
        common_tls_context=tls_pb2.CommonTlsContext(
            alpn_protocols=list(_SERVER_ALPN),
            tls_certificate_sds_secret_configs=[sds(OWN_CERTIFICATE)],
            combined_validation_context=_combined(TRUSTED_ROOTS, []),
        ),
        require_client_certificate=boolean(True),
    )
    limit_mesh_server(context.common_tls_context.tls_params, settings.mesh_tls)
    return context


def originated(
    tls: dict[str, Any], http2: bool, limits: TlsLimits = NO_LIMITS
) -> tls_pb2.UpstreamTlsContext:
    """TLS that a destination rule asks for: SIMPLE or MUTUAL, from files or `credentialName`.
    `limits`: `tlsDefaults`.

    Raises:
        NotCompiledError: MUTUAL without a certificate.
    """
    mode = tls.get("mode")
    context = tls_pb2.UpstreamTlsContext(sni=str(tls.get("sni") or ""))
    common = context.common_tls_context
    limit_client(common.tls_params, limits)
    credential = str(tls.get("credentialName") or "")
    if mode == "MUTUAL":
        if credential:
            named = secret_source(certificate_name(credential))
            common.tls_certificate_sds_secret_configs.append(named)
        elif tls.get("clientCertificate") and tls.get("privateKey"):
            common.tls_certificates.append(
                common_pb2.TlsCertificate(
                    certificate_chain=data_source(tls["clientCertificate"]),
                    private_key=data_source(tls["privateKey"]),
                )
            )
        else:
            raise NotCompiledError(
                "trafficPolicy.tls", "MUTUAL needs a client certificate and a key"
            )
    sans = [matcher for name in tls.get("subjectAltNames") or () for matcher in any_san(str(name))]
    if credential and not tls.get("insecureSkipVerify"):
        common.combined_validation_context.CopyFrom(_combined(roots_name(credential), sans))
        common.combined_validation_context.validation_context_sds_secret_config.CopyFrom(
            secret_source(roots_name(credential))
        )
    elif not tls.get("insecureSkipVerify"):
        common.validation_context.CopyFrom(
            common_pb2.CertificateValidationContext(
                trusted_ca=data_source(str(tls.get("caCertificates") or SYSTEM_ROOTS)),
                match_typed_subject_alt_names=sans,
            )
        )
        if tls.get("caCrl"):
            common.validation_context.crl.CopyFrom(data_source(str(tls["caCrl"])))
    if http2:
        # Else Envoy offers what the request is sent as.
        common.alpn_protocols.append("h2")
    return context


def any_san(name: str) -> list[common_pb2.SubjectAltNameMatcher]:
    """A name of a certificate, whatever kind it is of."""
    kinds = common_pb2.SubjectAltNameMatcher
    if "://" in name:
        kind = kinds.URI
    elif is_ip(name):
        kind = kinds.IP_ADDRESS
    elif "@" in name:
        kind = kinds.EMAIL
    else:
        kind = kinds.DNS
    return _uri_sans([name], kind)


def gateway_server(
    tls: dict[str, Any], http: bool, path: str, settings: MeshSettings
) -> tls_pb2.DownstreamTlsContext:
    """Server side of a gateway: SIMPLE, MUTUAL, OPTIONAL_MUTUAL or ISTIO_MUTUAL.

    Raises:
        NotCompiledError: No certificate is named, or the mode is unknown.
    """
    mode = str(tls.get("mode") or "PASSTHROUGH")
    if mode == "ISTIO_MUTUAL":
        return _mutual_gateway(tls, path, settings)
    if mode not in {"SIMPLE", "MUTUAL", "OPTIONAL_MUTUAL"}:
        raise NotCompiledError(f"{path}.mode", f"mode {mode} does not end TLS here")
    context = tls_pb2.DownstreamTlsContext(
        require_client_certificate=boolean(mode == "MUTUAL"),
    )
    common = context.common_tls_context
    common.alpn_protocols.extend(["h2", "http/1.1"] if http else [])
    names = credential_names(tls)
    if names:
        common.tls_certificate_sds_secret_configs.extend(sds(certificate_name(n)) for n in names)
    else:
        files = [tls, *(tls.get("tlsCertificates") or ())]
        pairs = [f for f in files if f.get("serverCertificate") and f.get("privateKey")]
        if not pairs:
            raise NotCompiledError(
                path, "credentialName, or serverCertificate and privateKey are needed"
            )
        common.tls_certificates.extend(
            common_pb2.TlsCertificate(
                certificate_chain=data_source(pair["serverCertificate"]),
                private_key=data_source(pair["privateKey"]),
            )
            for pair in pairs
        )
    if mode in {"MUTUAL", "OPTIONAL_MUTUAL"}:
        _client_validation(common, tls, names)
    limit_server(common.tls_params, tls, settings.tls_defaults, path)
    return context


def _mutual_gateway(
    tls: dict[str, Any], path: str, settings: MeshSettings
) -> tls_pb2.DownstreamTlsContext:
    """Mutual TLS of the mesh, at a gateway: whoever the mesh trusts may come, unless the server
    names who may."""
    context: tls_pb2.DownstreamTlsContext = _mutual_server(settings)
    common = context.common_tls_context
    validation = common.combined_validation_context.default_validation_context
    for name in tls.get("subjectAltNames") or ():
        validation.match_typed_subject_alt_names.extend(any_san(str(name)))
    if tls.get("caCrl"):
        validation.crl.CopyFrom(data_source(str(tls["caCrl"])))
    if tls.keys() & {"minProtocolVersion", "maxProtocolVersion", "cipherSuites"}:
        common.ClearField("tls_params")
        limit_server(common.tls_params, tls, settings.mesh_tls, path)
    return context


def credential_names(tls: Mapping[str, Any]) -> list[str]:
    """Secrets that a server takes its certificates from, as written."""
    several = [str(name) for name in tls.get("credentialNames") or ()]
    return several or ([str(tls["credentialName"])] if tls.get("credentialName") else [])


def _client_validation(
    common: tls_pb2.CommonTlsContext, tls: dict[str, Any], names: list[str]
) -> None:
    sans = [m for name in tls.get("subjectAltNames") or () for m in any_san(str(name))]
    if names:
        own = str(tls.get("caCertCredentialName") or "")
        roots = certificate_name(own) if own else roots_name(names[0])
        common.combined_validation_context.CopyFrom(_combined(roots, sans))
        context = common.combined_validation_context.default_validation_context
    else:
        common.validation_context.CopyFrom(
            common_pb2.CertificateValidationContext(
                trusted_ca=data_source(str(tls.get("caCertificates") or SYSTEM_ROOTS)),
                match_typed_subject_alt_names=sans,
            )
        )
        context = common.validation_context
    if tls.get("caCrl"):
        context.crl.CopyFrom(data_source(str(tls["caCrl"])))
    context.verify_certificate_spki.extend(tls.get("verifyCertificateSpki") or ())
    context.verify_certificate_hash.extend(tls.get("verifyCertificateHash") or ())
    if tls.get("insecureSkipVerify"):
        context.trust_chain_verification = common_pb2.CertificateValidationContext.ACCEPT_UNTRUSTED
