"""Gateway: ports that proxies at the edge of the mesh open.

Source: https://istio.io/latest/docs/reference/config/networking/gateway/
"""

from typing import Annotated, Literal

from msgspec import UNSET, Meta

from meshbus.api.shape import Maybe, Shape, UInt32

SERVICES_ANNOTATION = "internal.istio.io/gateway-service"
"""Annotation of a Gateway: hosts of the services in front of it, in place of its selector."""


class Port(Shape, frozen=True, kw_only=True):
    """A port that is opened."""

    number: UInt32
    """Port number; 0 only with a Unix socket."""
    protocol: str
    """HTTP, HTTPS, HTTP2, GRPC, GRPC-WEB, MONGO, REDIS, MYSQL, TCP or TLS."""
    name: str
    """A name, unique in the Gateway."""
    target_port: UInt32 = 0
    """Has no effect here."""


class TLSCertificate(Shape, frozen=True, kw_only=True):
    """One of several certificates."""

    server_certificate: str = ""
    """File of the certificate."""
    private_key: str = ""
    """File of its key."""
    ca_certificates: str = ""
    """File of the authorities of clients."""


class ServerTLSSettings(Shape, frozen=True, kw_only=True):
    """TLS of connections that are accepted."""

    one_of = (("credentialNames", "tlsCertificates"), ("credentialName", "credentialNames"))

    https_redirect: bool = False
    """Answers every HTTP request with a redirect to HTTPS."""
    mode: Literal[
        "PASSTHROUGH", "SIMPLE", "MUTUAL", "AUTO_PASSTHROUGH", "ISTIO_MUTUAL", "OPTIONAL_MUTUAL"
    ] = "PASSTHROUGH"
    """Who ends TLS, and whether clients show a certificate."""
    server_certificate: str = ""
    """File of the certificate."""
    private_key: str = ""
    """File of its key."""
    ca_certificates: str = ""
    """File of the authorities of clients."""
    ca_crl: str = ""
    """File of revoked certificates of clients."""
    credential_name: str = ""
    """Secret with certificate, key and authorities."""
    credential_names: Annotated[list[str], Meta(min_length=1, max_length=2)] = []
    """Several Secrets, for certificates with keys of different kinds."""
    tls_certificates: Annotated[list[TLSCertificate], Meta(min_length=1, max_length=2)] = []
    """Several certificates, as files."""
    ca_cert_credential_name: str = ""
    """Secret, or `configmap://NAMESPACE/NAME`, with the authorities of clients alone."""
    subject_alt_names: list[str] = []
    """Names of which a client's certificate must hold one."""
    verify_certificate_spki: list[str] = []
    """Base64 SHA-256 of keys of which a client's certificate must have one."""
    verify_certificate_hash: list[str] = []
    """Hex SHA-256 of certificates of which a client's must be one."""
    min_protocol_version: Literal["TLS_AUTO", "TLSV1_0", "TLSV1_1", "TLSV1_2", "TLSV1_3"] = (
        "TLS_AUTO"
    )
    """Lowest version of TLS."""
    max_protocol_version: Literal["TLS_AUTO", "TLSV1_0", "TLSV1_1", "TLSV1_2", "TLSV1_3"] = (
        "TLS_AUTO"
    )
    """Highest version of TLS."""
    cipher_suites: list[str] = []
    """Cipher suites, as BoringSSL names them."""
    insecure_skip_verify: bool | None = None
    """Whether clients are let in whose certificate cannot be verified; the application is told."""


class Server(Shape, frozen=True, kw_only=True):
    """One port and the hosts on it."""

    port: Port
    """The port."""
    bind: str = ""
    """Address, or `unix://` path, to listen on."""
    hosts: list[str]
    """Hosts, `NAMESPACE/HOST` or a host alone; `*` may stand first."""
    tls: Maybe[ServerTLSSettings] = UNSET
    """TLS; needed for HTTPS and TLS."""
    default_endpoint: str = ""
    """Not carried out by any release of Istio."""
    name: str = ""
    """A name, unique among all servers; begins the statistics of an HTTPS server."""


class Gateway(Shape, frozen=True, kw_only=True):
    """Ports that proxies at the edge open, and for which hosts."""

    servers: list[Server] = []
    """What is opened."""
    selector: dict[str, str] = {}
    """Labels of the proxies that open it; none means all."""
