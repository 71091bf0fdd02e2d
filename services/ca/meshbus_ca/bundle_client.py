"""Gets the bundle of another trust domain from its endpoint. Blocking: for a thread.

Two profiles: where roots of the trust domain are known, the endpoint must show one of its
identities (`https_spiffe`); else a certificate of the web for its host (`https_web`).

Source: https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Federation.md#52-endpoint-profiles
"""

import http.client
import ssl
from urllib.parse import urlsplit

from cryptography import x509

from meshbus_ca.bundles import MAX_BYTES, Bundle, BundleError, read_bundle

TIMEOUT_S = 10.0


def fetch(url: str, trust_domain: str, known_pem: str, web_roots: str = "") -> Bundle:
    """The bundle at a URL.

    Args:
        known_pem: Roots of the trust domain: the endpoint must prove to be of it. Empty: it must
            prove its host name.
        web_roots: File with roots of the web; empty: those of this machine.
    Raises:
        BundleError: It cannot be had, or is none. Redirects are not followed.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or parts.username or parts.fragment:
        raise BundleError("the URL must be https://HOST[:PORT]/PATH")
    if known_pem:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(cadata=known_pem)
    else:
        context = ssl.create_default_context(cafile=web_roots or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    connection = http.client.HTTPSConnection(
        parts.hostname, parts.port or 443, timeout=TIMEOUT_S, context=context
    )
    try:
        connection.connect()
        if known_pem:
            _check_identity(connection, trust_domain)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"Accept": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise BundleError(f"it answers {response.status}")
        return read_bundle(response.read(MAX_BYTES + 1))
    except (OSError, ValueError, http.client.HTTPException, x509.ExtensionNotFound) as error:
        raise BundleError(f"{type(error).__name__}: {error}") from error
    finally:
        connection.close()


def _check_identity(connection: http.client.HTTPSConnection, trust_domain: str) -> None:
    shown = connection.sock.getpeercert(binary_form=True)
    if not isinstance(shown, bytes):
        raise BundleError("who answers shows no certificate")
    certificate = x509.load_der_x509_certificate(shown)
    sans = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    ids = sans.get_values_for_type(x509.UniformResourceIdentifier)
    if len(ids) != 1 or not ids[0].startswith(f"spiffe://{trust_domain}/"):
        raise BundleError(f"who answers is not of {trust_domain}")
