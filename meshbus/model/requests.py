"""Questions between services: request/reply over the bus, subject `x.<service>.<verb>`.

Messages are JSON of these structs. What is secret in a reply is sealed to a key of the asker
(`meshbus.runtime.sealed`), so that the bus never carries it in the clear.
A failed request answers `RequestError` instead of its reply: every reply is `{"ok": ...}` or
`{"error": {...}}` (`meshbus.runtime.calls`).
"""

from typing import Any

import msgspec

from meshbus.model.status import ConfigLoss

SIGN = "x.ca.sign"
"""Asked on a subject of one's own, which proves who asks: see `sign_subject`."""
JOIN_TOKEN = "x.ca.join-token"  # noqa: S105 - a subject
CERTIFICATES = "x.ca.certificates"
ROTATION = "x.ca.rotation"
REVOKE = "x.ca.revoke"
BUNDLE = "x.ca.bundle"
CREDENTIAL = "x.config.credential"
PULL_SECRET = "x.config.pull-secret"  # noqa: S105 - a subject
"""As CREDENTIAL, for the policy service and the logins of registries alone."""
CONVERGED = "x.xds-gateway.converged"
"""Asked of one replica: `x.xds-gateway.<pod>.converged`; see `replica_subject`."""
OBSERVED = "x.telemetry.observed"
PROXIES = "x.xds-gateway.proxies"
PROXY_CONFIG = "x.xds-gateway.proxy-config"


def sign_subject(identity: str) -> str:
    """Where this bus identity asks for certificates; nobody else may publish there."""
    return f"{SIGN}.{identity}"


def replica_subject(subject: str, pod: str) -> str:
    """A question to one replica: `x.<service>.<verb>` becomes `x.<service>.<pod>.<verb>`."""
    prefix, service, verb = subject.split(".", 2)
    return f"{prefix}.{service}.{pod.replace('.', '=2E')}.{verb}"


class RequestError(msgspec.Struct, frozen=True):
    """Why a request was refused."""

    code: str
    """`invalid`, `forbidden`, `not-found`, `unavailable`, `internal`."""
    message: str


class SignRequest(msgspec.Struct, frozen=True):
    """A certificate for the key of a CSR. The ca ignores what the CSR asks for but its key.

    `spiffe_path`/`dns_names` are granted by who asks: the xds-gateway may ask for any workload
    identity it has authenticated; a service only for its own.
    """

    csr_pem: str
    service: str
    """Bus identity of the asker: `xds-gateway`, `policy`, ..."""
    spiffe_id: str
    dns_names: list[str] = []
    ip_addresses: list[str] = []
    ttl_s: int = 3600
    subject: str = ""
    """Workload, for the certificate's CN."""
    proof: str = ""
    """For a workload: the token that it proved itself with, sealed to `Trust.proof_key`."""
    pod: str = ""
    """Replica that holds the key: a later certificate of it takes this one's place."""


class SignReply(msgspec.Struct, frozen=True):
    """Leaf first, then the intermediate; the roots apart."""

    chain_pem: str
    roots_pem: str
    not_before: float
    not_after: float


class JoinTokenRequest(msgspec.Struct, frozen=True):
    """A token with which one workload instance joins. Only the supervisor (`local`) may ask, and
    config for machines that operators let in."""

    namespace: str
    service_account: str
    instance: str
    workload: str
    public_key: str
    """Base64 of the X25519 public key that the reply is sealed to."""
    ttl_s: int = 3600
    gateway: bool = False
    group: str = ""
    """WorkloadGroup that lets a machine in: it is in the token."""


class JoinTokenReply(msgspec.Struct, frozen=True):
    sealed: str
    """The JWT, sealed. Claims: iss, aud [`istio-ca`], exp, iat, jti, sub
    `system:serviceaccount:NS:SA`, `kubernetes.io` {namespace, serviceaccount {name}, pod {name}};
    of a machine also workloadgroup {name}.
    """
    expires: float


class Issued(msgspec.Struct, frozen=True):
    """One certificate that was issued: a record of CERTS, never changed."""

    identity: str
    """SPIFFE id."""
    serial: str
    """Hex."""
    issued: float
    not_before: float
    not_after: float
    asker: str
    """Bus identity that asked, or `csr` for CreateCertificate."""
    pod: str
    """Replica that asked, or address of the peer."""
    proof: str
    """What proved the identity: `bus`, `token JTI of INSTANCE`, `certificate SERIAL`, `gateway`
    (its word)."""
    signer: str
    """SHA-256 of the signing certificate, hex."""
    root: str
    """SHA-256 of its root, hex."""
    key: str
    """SHA-256 of the public key (SubjectPublicKeyInfo), hex."""
    names: list[str] = []
    """DNS names and addresses beside the identity."""
    subject: str = ""
    """Workload, the certificate's CN."""
    revoked: float = 0.0
    """When it was revoked, seconds since the epoch; 0: it was not. No part of the record."""


class CertificatesRequest(msgspec.Struct, frozen=True):
    """Which certificates were issued? Newest first."""

    identity: str = ""
    """SPIFFE id; empty: all."""
    at: float = 0.0
    """Only those valid at this time, seconds since the epoch; 0: all."""
    serial: str = ""
    limit: int = 100


class CertificatesReply(msgspec.Struct, frozen=True):
    certificates: list[Issued] = []
    complete: bool = True
    """False: there may be older ones that were not looked at."""


class RevokeRequest(msgspec.Struct, frozen=True):
    """Take back one certificate (`serial`), or all of an identity, which gets none any more until
    it is allowed again (`allow`). Neither: only say what is revoked."""

    serial: str = ""
    identity: str = ""
    allow: bool = False
    reason: str = ""
    by: str = ""
    """Who wants it."""
    force: bool = False
    """Also when proxies would refuse certificates that are in use and not meant."""


class RevokeReply(msgspec.Struct, frozen=True):
    """What is revoked now."""

    certificates: list[dict[str, Any]] = []
    """{"serial", "identity", "at", "ends"}."""
    blocked: list[str] = []
    """Identities that get no certificate."""
    added: int = 0
    """Certificates that this question has revoked."""


class BundleRequest(msgspec.Struct, frozen=True):
    """What is this trust domain checked with, and which others are trusted?"""


class BundleReply(msgspec.Struct, frozen=True):
    trust_domain: str
    roots_pem: str
    spiffe: dict[str, Any]
    """The same as a SPIFFE bundle."""
    others: list[dict[str, Any]] = []
    """{"trustDomain", "roots", "sequence", "fetched", "problem"}."""


class RotationRequest(msgspec.Struct, frozen=True):
    """How far is the rotation of the root, or (`start`) begin one."""

    start: bool = False


class RotationReply(msgspec.Struct, frozen=True):
    phase: str
    """`steady`, `announce`, `sign` or `drop`."""
    waiting: str = ""
    """For what; empty: for nothing."""
    kind: str = ""
    """`self-signed` or `plugged`: what signs now."""
    signer: str = ""
    signer_ends: float = 0.0
    root: str = ""
    """SHA-256 of the root of what signs now, hex."""
    root_ends: float = 0.0
    next_root: str = ""
    started: float = 0.0
    since: float = 0.0
    """When the phase began."""
    warnings: list[str] = []


class CredentialRequest(msgspec.Struct, frozen=True):
    """The content of a Secret that a `credentialName` names; for the xds-gateway alone."""

    namespace: str
    name: str
    public_key: str


class CredentialReply(msgspec.Struct, frozen=True):
    sealed: str
    """JSON of the Secret's decoded data: {key: base64}."""
    edition: str = ""
    """Which edition of the Secret it is (`rows.edition`): who answers may be behind who asks."""


class ConvergedRequest(msgspec.Struct, frozen=True):
    """Wait until this replica's proxies have converged at `sequence`, at most `timeout_s`."""

    sequence: int
    timeout_s: float = 1.0
    change: int = 0
    """Refusals of this version or a later one concern it: a change may have been refused before
    the rows derived from it were written. 0: `sequence`."""
    objects: list[str] = []
    """Row keys (`cfg.virtualservices/default/reviews`) of the change's objects, a few hundred at
    most: what of them has no effect is told."""


class ConvergedReply(msgspec.Struct, frozen=True):
    pod: str
    sequence: int
    """Version that the replica's snapshots are made of; may still be below the one asked for."""
    total: int
    converged: int
    """Connected proxies that have converged at the version asked for."""
    waiting: list[str] = []
    """Names (at most 10) of those that have not."""
    rejected: list[dict[str, str]] = []
    """{"proxy", "resource", "object", "message"} of refusals that concern it."""
    latency_s: float | None = None
    """From the change's time stamp to the last ACK, once all have converged."""
    losses: list[ConfigLoss] = []
    """What of `objects` has no effect, once all have converged."""


class ProxyInfo(msgspec.Struct, frozen=True):
    """One connected proxy, as `proxy-status` shows it."""

    id: str
    """`INSTANCE.NAMESPACE`."""
    namespace: str
    workload: str
    type: str
    address: str
    version: str
    """Envoy's version."""
    gateway: str
    """Replica that serves it."""
    connected: float
    sequence: int
    """Converged at."""
    types: dict[str, dict[str, str]]
    """By short type (`cds`, `lds`, `eds`, `rds`, `sds`, `ecds`): {"status": SYNCED | STALE |
    NOT SENT | REJECTED, "nonce", "error"}."""
    problems: list["ProxyProblemInfo"] = []


class ProxyProblemInfo(msgspec.Struct, frozen=True):
    resource: str
    object: str
    message: str


class ObservedCall(msgspec.Struct, frozen=True):
    """One kind of request that was let in."""

    namespace: str
    workload: str
    port: int
    protocol: str
    """`http` or `tcp`."""
    principal: str
    """`TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT`; empty: nobody knows."""
    method: str
    path: str
    """With `{*}` for segments that change, or `/*` at its end."""
    count: int = 0
    first: float = 0.0
    last: float = 0.0
    sample: str = ""
    """A path as it was."""
    host: str = ""


class ObservedRequest(msgspec.Struct, frozen=True):
    """Which calls were let in?"""

    since_s: float
    namespace: str = ""
    """Of who was called; empty: every one."""


class ObservedReply(msgspec.Struct, frozen=True):
    calls: list[ObservedCall] = []
    overflowed: int = 0
    """Requests of kinds that there was no room for."""


class ProxiesRequest(msgspec.Struct, frozen=True):
    """Who is connected? Asked of each replica (`replica_subject(PROXIES, pod)`)."""

    namespace: str = ""
    """Only those of this namespace; empty: all."""


class ProxiesReply(msgspec.Struct, frozen=True):
    pod: str
    proxies: list[ProxyInfo] = []


class ProxyConfigRequest(msgspec.Struct, frozen=True):
    """What does one proxy get? The replica that serves it answers, the others say `not-found`."""

    proxy: str
    """`INSTANCE.NAMESPACE`."""


class ProxyConfigReply(msgspec.Struct, frozen=True):
    proxy: str
    sequence: int
    document: dict[str, Any]
    """As `meshbus.compile.render.render_snapshot` has it; private keys are redacted."""
