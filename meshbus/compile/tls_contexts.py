"""TLS: mutual TLS of the mesh, TLS of destination rules, TLS of gateways.

Certificates come by SDS over ADS: `default` (the workload's own), `ROOTCA` (what it trusts), and
`kubernetes://NAME` (a Secret; `-cacert` at the end: its CA).
"""

from collections.abc import Iterable
from typing import Any

from envoy.config.core.v3 import base_pb2
from envoy.extensions.transport_sockets.raw_buffer.v3 import raw_buffer_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, secret_pb2, tls_pb2
from envoy.type.matcher.v3 import string_pb2

from meshbus.compile.findings import NotCompiledError
from meshbus.compile.names import HTTP2, is_http
from meshbus.compile.values import ads, any_of, boolean, data_source

TLS_SOCKET = "envoy.transport_sockets.tls"
RAW_SOCKET = "envoy.transport_sockets.raw_buffer"
OWN_CERTIFICATE = "default"
TRUSTED_ROOTS = "ROOTCA"
SYSTEM_ROOTS = "/etc/ssl/certs/ca-certificates.crt"
"""Roots of the proxy's machine, for TLS origination that names no CA."""

ALPN_HTTP1 = ("istio-http/1.1", "istio", "http/1.1")
ALPN_HTTP2 = ("istio-h2", "istio", "h2")
ALPN_TCP = ("istio-peer-exchange", "istio")
ALPN_MESH_HTTP = ("istio-http/1.0", "istio-http/1.1", "istio-h2")
ALPN_MESH = ("istio-peer-exchange", "istio", *ALPN_MESH_HTTP)
"""Every name by which a mesh proxy says that it is one."""
_SERVER_ALPN = ("istio-peer-exchange", "h2", "http/1.1")

_VERSIONS = {
    "": common_pb2.TlsParameters.TLS_AUTO,
    "TLS_AUTO": common_pb2.TlsParameters.TLS_AUTO,
    "TLSV1_0": common_pb2.TlsParameters.TLSv1_0,
    "TLSV1_1": common_pb2.TlsParameters.TLSv1_1,
    "TLSV1_2": common_pb2.TlsParameters.TLSv1_2,
    "TLSV1_3": common_pb2.TlsParameters.TLSv1_3,
}


def sds(name: str) -> secret_pb2.SdsSecretConfig:
    """A secret by name over ADS."""
    return secret_pb2.SdsSecretConfig(name=name, sds_config=ads())


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
    return tls_pb2.UpstreamTlsContext(
        common_tls_context=tls_pb2.CommonTlsContext(
            alpn_protocols=list(alpn),
            tls_certificate_sds_secret_configs=[sds(OWN_CERTIFICATE)],
            combined_validation_context=_combined(
                TRUSTED_ROOTS,
                _uri_sans(sorted(set(identities)), common_pb2.SubjectAltNameMatcher.URI),
            ),
            tls_params=common_pb2.TlsParameters(
                tls_minimum_protocol_version=common_pb2.TlsParameters.TLSv1_2,
                tls_maximum_protocol_version=common_pb2.TlsParameters.TLSv1_3,
            ),
        ),
        sni=sni,
    )


def control_plane_client(identity: str) -> base_pb2.TransportSocket:
    """Mutual TLS 1.3 to a service of the control plane, pinned to its SPIFFE id."""
    context = mesh_client("", [identity], ["h2"])
    context.common_tls_context.tls_params.tls_minimum_protocol_version = (
        common_pb2.TlsParameters.TLSv1_3
    )
    return base_pb2.TransportSocket(name=TLS_SOCKET, typed_config=any_of(context))


def socket(context: Any) -> base_pb2.TransportSocket:
    """A TLS transport socket."""
    return base_pb2.TransportSocket(name=TLS_SOCKET, typed_config=any_of(context))


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


def mesh_server() -> Any:
    """Server side of mutual TLS between proxies: a client certificate is required."""
    return tls_pb2.DownstreamTlsContext(
        common_tls_context=tls_pb2.CommonTlsContext(
            alpn_protocols=list(_SERVER_ALPN),
            tls_certificate_sds_secret_configs=[sds(OWN_CERTIFICATE)],
            combined_validation_context=_combined(TRUSTED_ROOTS, []),
            tls_params=common_pb2.TlsParameters(
                tls_minimum_protocol_version=common_pb2.TlsParameters.TLSv1_2,
                tls_maximum_protocol_version=common_pb2.TlsParameters.TLSv1_3,
            ),
        ),
        require_client_certificate=boolean(True),
    )


def originated(tls: dict[str, Any], protocol: str, http2: bool) -> tls_pb2.UpstreamTlsContext:
    """TLS that a destination rule asks for: SIMPLE or MUTUAL, from files or `credentialName`.

    Raises:
        NotCompiledError: MUTUAL without a certificate.
    """
    mode = tls.get("mode")
    context = tls_pb2.UpstreamTlsContext(sni=str(tls.get("sni") or ""))
    common = context.common_tls_context
    credential = str(tls.get("credentialName") or "")
    if mode == "MUTUAL":
        if credential:
            common.tls_certificate_sds_secret_configs.append(sds(f"kubernetes://{credential}"))
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
    sans = [matcher for name in tls.get("subjectAltNames") or () for matcher in _any_san(str(name))]
    if credential and not tls.get("insecureSkipVerify"):
        common.combined_validation_context.CopyFrom(
            _combined(f"kubernetes://{credential}-cacert", sans)
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
    if http2 or protocol in HTTP2:
        common.alpn_protocols.append("h2")
    elif protocol == "":
        common.alpn_protocols.extend(["h2", "http/1.1"])
    return context


def _any_san(name: str) -> list[common_pb2.SubjectAltNameMatcher]:
    kinds = (
        [common_pb2.SubjectAltNameMatcher.URI]
        if "://" in name
        else [common_pb2.SubjectAltNameMatcher.DNS]
    )
    return [matcher for kind in kinds for matcher in _uri_sans([name], kind)]


def gateway_server(tls: dict[str, Any], http: bool, path: str) -> tls_pb2.DownstreamTlsContext:
    """Server side of a gateway: SIMPLE, MUTUAL, OPTIONAL_MUTUAL or ISTIO_MUTUAL.

    Raises:
        NotCompiledError: No certificate is named, or the mode is unknown.
    """
    mode = str(tls.get("mode") or "PASSTHROUGH")
    if mode == "ISTIO_MUTUAL":
        context = mesh_server()
        _limits(context.common_tls_context, tls, path)
        result: tls_pb2.DownstreamTlsContext = context
        return result
    if mode not in {"SIMPLE", "MUTUAL", "OPTIONAL_MUTUAL"}:
        raise NotCompiledError(f"{path}.mode", f"mode {mode} does not end TLS here")
    context = tls_pb2.DownstreamTlsContext(
        require_client_certificate=boolean(mode == "MUTUAL"),
    )
    common = context.common_tls_context
    common.alpn_protocols.extend(["h2", "http/1.1"] if http else [])
    names = [str(n) for n in tls.get("credentialNames") or ()] or (
        [str(tls["credentialName"])] if tls.get("credentialName") else []
    )
    if names:
        common.tls_certificate_sds_secret_configs.extend(sds(f"kubernetes://{n}") for n in names)
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
    _limits(common, tls, path)
    return context


def _client_validation(
    common: tls_pb2.CommonTlsContext, tls: dict[str, Any], names: list[str]
) -> None:
    sans = [m for name in tls.get("subjectAltNames") or () for m in _any_san(str(name))]
    if names:
        roots = str(tls.get("caCertCredentialName") or f"{names[0]}-cacert")
        common.combined_validation_context.CopyFrom(_combined(f"kubernetes://{roots}", sans))
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


def _limits(common: tls_pb2.CommonTlsContext, tls: dict[str, Any], path: str) -> None:
    least = str(tls.get("minProtocolVersion") or "")
    most = str(tls.get("maxProtocolVersion") or "")
    if least not in _VERSIONS or most not in _VERSIONS:
        raise NotCompiledError(path, f"unknown TLS version {least or most}")
    common.tls_params.tls_minimum_protocol_version = (
        _VERSIONS[least] or common_pb2.TlsParameters.TLSv1_2
    )
    if most:
        common.tls_params.tls_maximum_protocol_version = _VERSIONS[most]
    common.tls_params.cipher_suites.extend(str(c) for c in tls.get("cipherSuites") or ())
