"""The rows of MODEL, by table.

Every row is a frozen struct encoded as a msgpack array: append fields with defaults, never reorder.
`TABLES` is the one registry of tables and of the struct that each holds.

| table | written by | one row is |
|---|---|---|
| `cfg.<plural>` | config | one API object, without its status |
| `st.<plural>` | config | the status of one API object |
| `reg.services` | discovery | one host that the mesh can call |
| `reg.endpoints` | discovery | endpoints of one service in one shard (EndpointSlice, instances) |
| `reg.workloads` | discovery | one workload instance: what a proxy is, connected or not |
| `reg.namespaces` | discovery | labels of a namespace |
| `reg.names` | discovery | addresses of a name outside the mesh that proxies cannot look up |
| `sec.trust` | ca | roots and token keys of one trust domain |
| `mesh.config` | config | the mesh config in force |
| `mesh.addresses` | each service, its own | where proxies reach a service of the control plane |
| `wasm.modules`, `wasm.chunks` | policy | modules of extensions, as last fetched |
| `jwks.keys` | policy | keys of an issuer of tokens, as last fetched |
"""

from typing import Any

import msgspec

# --------------------------------------------------------------------------- cfg, st


class ConfigObject(msgspec.Struct, array_like=True, frozen=True):
    """An object as people wrote it. `kind` is its Kubernetes kind."""

    api_version: str
    """Group and the storage version of the kind, e.g. `networking.istio.io/v1`."""
    kind: str
    namespace: str
    name: str
    uid: str
    generation: int
    created: float
    """Seconds since the epoch: of two objects in conflict the older wins."""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    spec: dict[str, Any] = {}
    """The object's own content: `spec`, or for kinds without one (Service has one, Secret and
    ConfigMap do not) every top-level field but apiVersion, kind, metadata and status."""
    managed_fields: list[dict[str, Any]] = []
    owner_references: list[dict[str, Any]] = []
    finalizers: list[str] = []
    deletion: float | None = None
    """When deletion was asked for, while finalizers hold it."""


def edition(secret: ConfigObject) -> str:
    """Tells contents of one Secret apart, whose rows may be without them."""
    return f"{secret.uid}/{secret.generation}/{secret.spec.get('version', '')}"


class ObjectStatus(msgspec.Struct, array_like=True, frozen=True):
    """The status of one object: conditions as Kubernetes has them, and other status fields."""

    uid: str
    observed_generation: int
    status: dict[str, Any] = {}


# --------------------------------------------------------------------------- reg


class ServicePort(msgspec.Struct, array_like=True, frozen=True):
    """One port of a service."""

    name: str
    number: int
    protocol: str
    """`HTTP`, `HTTP2`, `GRPC`, `GRPC-WEB`, `HTTPS`, `TLS`, `TCP`, `MONGO`, `REDIS`, `MYSQL`,
    `UDP`, or empty: not declared, to be detected."""
    target_port: int = 0
    """Port of the endpoints, when the endpoint itself does not say (DNS hosts); 0: `number`."""


class Service(msgspec.Struct, array_like=True, frozen=True):
    """One host that the mesh can call. Key: (namespace, host)."""

    host: str
    """Fully qualified: `reviews.default.svc.cluster.local`, or a host of a ServiceEntry."""
    namespace: str
    name: str
    """Name of the Kubernetes Service or ServiceEntry it came from."""
    origin: str
    """`kubernetes` or `external` (ServiceEntry)."""
    ports: list[ServicePort]
    addresses: list[str] = []
    """Virtual addresses, IPv4 and IPv6; CIDRs for a ServiceEntry; empty: none."""
    resolution: str = "STATIC"
    """`STATIC`: endpoints are rows. `DNS`, `DNS_ROUND_ROBIN`: Envoy resolves. `NONE`: the original
    destination."""
    headless: bool = False
    external: bool = False
    """MESH_EXTERNAL: no mutual TLS by default."""
    external_name: str = ""
    """Of a Kubernetes ExternalName service."""
    export_to: list[str] = []
    """Namespaces that see it; empty or `*`: all; `.`: its own; `~`: none."""
    selector: dict[str, str] = {}
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    subject_alt_names: list[str] = []
    created: float = 0.0
    source: str = ""
    """Table/namespace/name of the object it came from: `cfg.services/default/reviews`."""
    session_affinity: bool = False
    dns_endpoints: list["Endpoint"] = []
    """For DNS resolutions: names or addresses to resolve; empty: the host itself."""
    auto_addresses: list[str] = []
    """Of a ServiceEntry without addresses: what mesh DNS may answer for its host, so that callers
    of it can be told apart. Nobody else routes to them."""
    outside: list[str] = []
    """Addresses and names at which a Kubernetes Service is reached from elsewhere: its externalIPs,
    its load balancer, or nodes."""
    outside_ports: list[tuple[int, int]] = []
    """(port of the service, port there) where they differ: of nodes."""


class Endpoint(msgspec.Struct, array_like=True, frozen=True):
    """One instance behind a service."""

    addresses: list[str]
    """First the preferred one; IPv4 and IPv6 of one instance stand together."""
    ports: dict[str, int]
    """Service port name (empty for the unnamed) to the port at the endpoint."""
    labels: dict[str, str] = {}
    service_account: str = ""
    workload: str = ""
    """Name of the workload (the deployment-like owner), for telemetry."""
    instance: str = ""
    """Name of the pod or instance."""
    namespace: str = ""
    network: str = ""
    cluster: str = ""
    locality: str = ""
    """`region/zone/subzone`."""
    weight: int = 0
    """0: not set, counts as 1."""
    ready: bool = True
    draining: bool = False
    tls_mode: str = "disabled"
    """`istio`: a mesh proxy is in front and takes mutual TLS. `disabled`: plaintext only."""


class EndpointShard(msgspec.Struct, array_like=True, frozen=True):
    """Endpoints of one service in one shard. Key: (namespace, host, shard)."""

    host: str
    namespace: str
    """Namespace of the service."""
    shard: str
    endpoints: list[Endpoint]
    source: str = ""


class WorkloadPort(msgspec.Struct, array_like=True, frozen=True):
    """A port that a workload listens on."""

    name: str
    port: int
    protocol: str = ""
    """As `ServicePort.protocol`; empty: taken from the services that select it, else detected."""


KEYS_ANNOTATION = "security.meshbus.io/keys"
"""A directory on the proxy's machine with its own certificate: `cert-chain.pem` and `key.pem`."""


class WorkloadInstance(msgspec.Struct, array_like=True, frozen=True):
    """One instance of a workload: everything about a proxy that compile may depend on.

    Key: (namespace, instance name).
    """

    name: str
    """Instance (pod) name."""
    namespace: str
    workload: str
    """Name of its owner (deployment-like), for telemetry."""
    service_account: str
    labels: dict[str, str] = {}
    addresses: list[str] = []
    """Addresses that others reach it at: its inbound Envoy, or itself without a sidecar."""
    app_address: str = ""
    """Where the application listens, when not at `addresses` (capture mode `proxy`)."""
    ports: list[WorkloadPort] = []
    sidecar: bool = True
    gateway: bool = False
    """An Envoy of type router without application."""
    capture: str = "redirect"
    """`redirect`: traffic is captured by iptables (15001, 15006). `proxy`: the application uses
    an HTTP proxy at `http_proxy_port` on 127.0.0.1... of its own address; inbound listeners bind
    `addresses`. `none`: nothing is redirected, and listeners bind the ports of services on this
    machine, and those that a Sidecar says."""
    http_proxy_port: int = 0
    http_proxy_address: str = ""
    network: str = ""
    cluster: str = ""
    locality: str = ""
    node: str = ""
    ready: bool = True
    annotations: dict[str, str] = {}
    dual_stack: bool = False
    """It has an IPv6 stack: listeners bind [::] too."""
    created: float = 0.0
    weight: int = 0
    """As an endpoint; 0: not set, counts as 1."""
    origin: str = ""
    """What it is: `pod`, `entry` (WorkloadEntry), `workload` (a process of standalone mode)."""
    target_ports: dict[str, int] = {}
    """Ports by name, for services whose `targetPort` is a name."""
    tls_mode: str = "disabled"
    """As `Endpoint.tls_mode`."""
    draining: bool = False
    dns: bool = False
    """Its application asks mesh DNS: allocated addresses are called."""
    uid: str = ""
    """Of a pod: tells it apart from one of the same name before or after it."""


class Namespace(msgspec.Struct, array_like=True, frozen=True):
    """A namespace. Key: ("", name)."""

    name: str
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


# --------------------------------------------------------------------------- sec, mesh


class RevokedCertificate(msgspec.Struct, array_like=True, frozen=True):
    """A certificate that is not to be accepted any more, until it ends by itself."""

    serial: str
    """Hex."""
    identity: str
    """SPIFFE id."""
    signer: str
    """SHA-256 of the signing certificate, hex."""
    at: float
    """When it was revoked, seconds since the epoch."""
    ends: float
    """When the certificate ends."""


class TokenIssuer(msgspec.Struct, array_like=True, frozen=True):
    """Somebody else who gives tokens to workloads: a Kubernetes cluster."""

    issuer: str
    """`iss` of its tokens."""
    jwks: str
    """Its public keys, JWKS (JSON)."""


class Trust(msgspec.Struct, array_like=True, frozen=True):
    """What a trust domain's identities are checked with. Public material only.

    Key: ("", trust domain).
    """

    trust_domain: str
    roots_pem: str
    """Concatenated root certificates, newest first."""
    token_jwks: str = ""
    """JWKS (JSON) that verifies the join tokens of workloads."""
    issuer: str = ""
    proof_key: str = ""
    """Base64 of the X25519 key of the ca that proofs are sealed to."""
    revoked: tuple[RevokedCertificate, ...] = ()
    blocked: tuple[str, ...] = ()
    """Identities that get no certificate and no configuration any more."""
    crl_pem: str = ""
    """Revocation lists of those that sign leaves; empty: nothing is revoked."""
    crl_whole: bool = False
    """Roots have one as well."""
    sequence: int = 0
    """Of a bundle of another trust domain: its `spiffe_sequence`."""
    fetched: float = 0.0
    """Of a bundle of another trust domain: when it was last got, seconds since the epoch."""
    issuers: tuple[TokenIssuer, ...] = ()
    """Who else gives tokens to workloads of this trust domain."""
    crl_deep: bool = False
    """Lists say of signing certificates as well: each up to the root is to be checked."""

    def token_key(self, key_id: str) -> tuple[str, dict[str, Any]] | None:
        """(issuer, JWK) of the key that a token is signed with; None: nobody's whom we trust. A key
        is good for tokens of its own issuer alone."""
        for issuer, jwks in (
            (self.issuer, self.token_jwks),
            *((one.issuer, one.jwks) for one in self.issuers),
        ):
            for key in msgspec.json.decode(jwks)["keys"] if jwks else ():
                if key.get("kid") == key_id:
                    return issuer, key
        return None


class MeshConfigRow(msgspec.Struct, array_like=True, frozen=True):
    """The mesh config in force, fields of MeshConfig in JSON form. Key: ("", "mesh")."""

    spec: dict[str, Any] = {}


class ServiceAddress(msgspec.Struct, array_like=True, frozen=True):
    """Where proxies reach a gRPC server of the control plane. Key: ("", service name).

    Proxies use mutual TLS; the server proves `spiffe://<trust domain>/ns/<root>/sa/meshbus-<name>`.
    """

    service: str
    """`policy`, `telemetry`, `xds-gateway`."""
    host: str
    port: int


class KeySet(msgspec.Struct, array_like=True, frozen=True):
    """Public keys that tokens are checked with, as fetched. Key: ("", hash of the source); see
    `meshbus.model.key_sources`."""

    source: str
    """The URL of the keys, or of the OpenID configuration that names it."""
    jwks: str = ""
    """The last good JSON Web Key Set, its public parts alone; empty: there never was one."""
    fetched: float = 0.0
    """When that was, epoch seconds."""
    error: str = ""
    """Why the last attempt failed; empty: it did not."""
    failing_since: float = 0.0


class WasmModule(msgspec.Struct, array_like=True, frozen=True):
    """The WebAssembly module that an object has. Key: (namespace, `KIND.NAME` of the
    object), shard: its uid."""

    url: str
    sha256: str = ""
    """Of its bytes, which are the rows `wasm.chunks` of this name; empty: it was never had."""
    chunks: int = 0
    asked: str = ""
    """What the object said when it was fetched: where it is, and whether to fetch it anew."""
    fetched: float = 0.0
    error: str = ""
    """Why the last attempt failed; what was fetched before stands."""
    elsewhere: bool = False
    """Nobody fetches it: the proxy is told where it is (offline)."""


class WasmChunk(msgspec.Struct, array_like=True, frozen=True):
    """A piece of a module. Key: ("", SHA-256 of the module), shard: its number."""

    data: bytes


class ResolvedName(msgspec.Struct, array_like=True, frozen=True):
    """A name outside the mesh, looked up for proxies. Key: ("", name)."""

    name: str
    addresses: list[str]
    """IPv4 and IPv6, sorted; the last ones that were known."""


Place = tuple[str, str]
"""Namespace and workload of proxies."""


class Quarantine(msgspec.Struct, frozen=True):
    """What an object is left out of at one place because Envoys refuse what it makes: a row of one
    gateway's own world, beside those of MODEL and never on the bus. Its key is that of the object
    in the plane `quarantine`, with the place as shard."""

    revision: str
    """Of the object, as `meshbus.compile.quarantine.revision_of` has it: no other is left out."""
    by_type: dict[str, frozenset[str]]
    """By type URL: names of resources, `*` for all. Never changed after it was made."""


Row = (
    ConfigObject
    | ObjectStatus
    | Service
    | EndpointShard
    | WorkloadInstance
    | Namespace
    | Trust
    | MeshConfigRow
    | ServiceAddress
    | KeySet
    | WasmModule
    | WasmChunk
    | ResolvedName
    | Quarantine
)

TABLES: dict[str, type[Row]] = {
    "reg.services": Service,
    "reg.endpoints": EndpointShard,
    "reg.workloads": WorkloadInstance,
    "reg.namespaces": Namespace,
    "reg.names": ResolvedName,
    "sec.trust": Trust,
    "mesh.config": MeshConfigRow,
    "mesh.addresses": ServiceAddress,
    "jwks.keys": KeySet,
    "wasm.modules": WasmModule,
    "wasm.chunks": WasmChunk,
}
"""Tables whose struct their plane does not give: `cfg.*` hold ConfigObject, `st.*` ObjectStatus."""

_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoders: dict[type[Row], msgspec.msgpack.Decoder[Any]] = {}


def row_type(table: str) -> type[Row] | None:
    """The struct of a table, None for a table that this version does not know."""
    if table.startswith("cfg."):
        return ConfigObject
    if table.startswith("st."):
        return ObjectStatus
    return TABLES.get(table)


def encode_row(row: Row) -> bytes:
    """The body of a row: equal rows give equal bytes."""
    return _encoder.encode(row)


def decode_row(table: str, body: bytes) -> Row:
    """The row of a body.

    Raises:
        KeyError: The table is not known here.
        msgspec.ValidationError, msgspec.DecodeError: The body is not a row of the table.
    """
    struct = row_type(table)
    if struct is None:
        raise KeyError(table)
    decoder = _decoders.get(struct)
    if decoder is None:
        decoder = _decoders[struct] = msgspec.msgpack.Decoder(struct)
    row: Row = decoder.decode(body)
    return row
