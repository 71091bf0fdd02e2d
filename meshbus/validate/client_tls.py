"""Rules of the TLS settings of clients.

Source: https://istio.io/latest/docs/reference/config/networking/destination-rule/#ClientTLSSettings
"""

from msgspec import UnsetType

from meshbus.api.credentials import CONFIG_MAP
from meshbus.api.networking.destination_rule import ClientTLSSettings
from meshbus.validate.malformed import independent
from meshbus.validate.report import Findings


@independent
def check_client_tls(
    tls: ClientTLSSettings | UnsetType, path: str, out: Findings, *, namespace: str = ""
) -> None:
    """TLS of connections to a host; `namespace` is that of the object, if it has one."""
    if isinstance(tls, UnsetType):
        return
    if tls.credential_name.startswith(CONFIG_MAP):
        owner, _, name = tls.credential_name.removeprefix(CONFIG_MAP).partition("/")
        if not owner or not name or owner != namespace:
            message = f"must be {CONFIG_MAP}NAMESPACE/NAME, of the object's own namespace"
            out.error(f"{path}.credentialName", message)
    if tls.insecure_skip_verify:
        unused = {"caCertificates": tls.ca_certificates, "subjectAltNames": tls.subject_alt_names}
        if tls.mode == "SIMPLE":
            unused["credentialName"] = tls.credential_name
        if tls.mode in ("SIMPLE", "MUTUAL"):
            for field, value in unused.items():
                if value:
                    out.error(
                        f"{path}.{field}", "cannot be set with insecureSkipVerify", "Conflict"
                    )
    if tls.mode in ("SIMPLE", "MUTUAL") and tls.credential_name:
        files = {
            "clientCertificate": tls.client_certificate,
            "privateKey": tls.private_key,
            "caCertificates": tls.ca_certificates,
            "caCrl": tls.ca_crl,
        }
        for field, value in files.items():
            if value:
                out.error(f"{path}.{field}", "cannot be set with credentialName", "Conflict")
        return
    if tls.mode == "MUTUAL":
        if not tls.client_certificate:
            out.required(f"{path}.clientCertificate", "client certificate required for mutual tls")
        if not tls.private_key:
            out.required(f"{path}.privateKey", "private key required for mutual tls")
