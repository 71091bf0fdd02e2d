"""Rules of the TLS settings of servers.

Source: https://istio.io/latest/docs/reference/config/networking/gateway/#ServerTLSSettings
"""

from meshbus.api.networking.gateway import ServerTLSSettings
from meshbus.api.tls import CIPHER_SUITES
from meshbus.validate.malformed import independent
from meshbus.validate.report import Findings


@independent
def check_server_tls(tls: ServerTLSSettings, path: str, out: Findings) -> None:
    """TLS of connections that are accepted."""
    _check_versions(tls, path, out)
    _check_sources(tls, path, out)
    files = {
        "serverCertificate": tls.server_certificate,
        "privateKey": tls.private_key,
        "caCertificates": tls.ca_certificates,
        "credentialName": tls.credential_name,
        "credentialNames": tls.credential_names,
        "tlsCertificates": tls.tls_certificates,
    }
    if tls.mode == "ISTIO_MUTUAL":
        for field, value in files.items():
            if value:
                message = f"ISTIO_MUTUAL TLS cannot have associated {field}"
                out.error(f"{path}.{field}", message, "Conflict")
        return
    if tls.mode in ("PASSTHROUGH", "AUTO_PASSTHROUGH"):
        if tls.ca_crl or any(files.values()):
            out.warn(path, f"{tls.mode} mode does not use certificates, they will be ignored")
        if tls.ca_crl and tls.credential_name:
            message = "cannot be set with credentialName: a revocation list is in the credential"
            out.error(f"{path}.caCrl", message, "Conflict")
        return
    mutual = tls.mode in ("MUTUAL", "OPTIONAL_MUTUAL")
    if not (tls.credential_name or tls.credential_names):
        if tls.tls_certificates:
            _check_certificates(tls, path, out)
        else:
            if not tls.server_certificate:
                out.required(
                    f"{path}.serverCertificate", f"{tls.mode} TLS requires a server certificate"
                )
            if not tls.private_key:
                out.required(f"{path}.privateKey", f"{tls.mode} TLS requires a private key")
        if mutual and not (tls.ca_certificates or tls.ca_cert_credential_name):
            out.required(f"{path}.caCertificates", f"{tls.mode} TLS requires a client CA bundle")
        if tls.ca_crl and tls.mode == "SIMPLE":
            out.error(f"{path}.caCrl", "is not supported with SIMPLE TLS", "Conflict")


@independent
def _check_versions(tls: ServerTLSSettings, path: str, out: Findings) -> None:
    if tls.min_protocol_version in ("TLSV1_0", "TLSV1_1") and not tls.cipher_suites:
        message = "TLS below 1.2 needs cipherSuites, as the default ones are not compatible"
        out.warn(f"{path}.minProtocolVersion", message)
    seen: set[str] = set()
    for index, suite in enumerate(tls.cipher_suites):
        at = f"{path}.cipherSuites[{index}]"
        if suite not in CIPHER_SUITES:
            out.warn(at, f"ignoring invalid cipher suite {suite}")
        elif suite in seen:
            out.warn(at, f"ignoring duplicate cipher suite {suite}")
        seen.add(suite)


@independent
def _check_sources(tls: ServerTLSSettings, path: str, out: Findings) -> None:
    sources = {
        "credentialName": tls.credential_name,
        "credentialNames": tls.credential_names,
        "tlsCertificates": tls.tls_certificates,
        "serverCertificate and privateKey": tls.server_certificate and tls.private_key,
    }
    set_ = [name for name, value in sources.items() if value]
    if len(set_) > 1 and tls.mode != "ISTIO_MUTUAL":
        out.error(path, f"only one of {', '.join(set_)} can be set", "Conflict")


@independent
def _check_certificates(tls: ServerTLSSettings, path: str, out: Findings) -> None:
    for index, certificate in enumerate(tls.tls_certificates):
        at = f"{path}.tlsCertificates[{index}]"
        if not certificate.server_certificate:
            out.required(f"{at}.serverCertificate", f"{tls.mode} TLS requires a server certificate")
        if not certificate.private_key:
            out.required(f"{at}.privateKey", f"{tls.mode} TLS requires a private key")
