"""Who a stream belongs to: what its Envoy says (node) and what it proves (token). Pure.

Identity comes from the token. What the node says beside it must agree, or the stream is refused:
a proxy with the wrong bootstrap is found at once, and not served the configuration of another.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jwt
from google.protobuf.json_format import MessageToDict

from meshbus.compile.proxy_keys import ProxyKeys, proxy_of_json
from meshbus.model.rows import Trust

AUDIENCE = "istio-ca"
ALGORITHMS = ("ES256", "RS256")
"""Of join tokens, and of Kubernetes service account tokens."""
MAX_TOKEN_BYTES = 8192
LEEWAY_S = 30
_KINDS = frozenset({"sidecar", "router"})
_ID_PARTS = 4
_SUBJECT_PARTS = 4


class RefusedError(Exception):
    """The stream is not served. `code` is `UNAUTHENTICATED`, `PERMISSION_DENIED` or
    `INVALID_ARGUMENT`; the message goes to the proxy and holds no part of its token."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Token:
    """A token of a workload, which no log or trace shows."""

    __slots__ = ("value",)

    def __init__(self, value: str) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "<token>"


class Identity(NamedTuple):
    """Whom a token was given to."""

    namespace: str
    service_account: str
    instance: str
    expires: float
    """Seconds since the epoch."""
    token: Token | None = None
    """What proved it: the ca looks at it too."""
    uid: str = ""
    """Of the pod that it is bound to, where it says so."""


class Node(NamedTuple):
    """What an Envoy says of itself."""

    kind: str
    address: str
    instance: str
    namespace: str
    version: str
    """Of Envoy."""
    metadata: dict[str, Any]


def node_of(node: Any) -> Node:
    """The node of a first request (`envoy.config.core.v3.Node`).

    Raises:
        RefusedError: Its id is not `sidecar~ADDRESS~INSTANCE.NAMESPACE~DOMAIN`.
    """
    parts = node.id.split("~")
    if len(parts) != _ID_PARTS or parts[0] not in _KINDS:
        raise RefusedError(
            "INVALID_ARGUMENT",
            f"node.id {node.id[:200]!r}: sidecar~ADDRESS~INSTANCE.NAMESPACE~DOMAIN is needed",
        )
    kind, address, name, _ = parts
    instance, dot, namespace = name.rpartition(".")
    if not dot or not instance or not namespace:
        raise RefusedError("INVALID_ARGUMENT", f"node.id names {name[:200]!r}, no NAME.NAMESPACE")
    built = node.user_agent_build_version.version
    version = f"{built.major_number}.{built.minor_number}.{built.patch}"
    metadata = MessageToDict(node.metadata)
    return Node(kind, address, instance, namespace, version, metadata)


def identity_of_token(authorization: str, trust: Trust | None, now: float) -> Identity:
    """Whom the bearer token of a stream was given to.

    Raises:
        RefusedError: No token, or one that does not hold.
    """
    scheme, _, token = authorization.partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise RefusedError("UNAUTHENTICATED", "no bearer token in `authorization`")
    if len(token) > MAX_TOKEN_BYTES:
        raise RefusedError("UNAUTHENTICATED", "the token is too long")
    if trust is None or not trust.token_jwks:
        raise RefusedError("UNAVAILABLE", "no keys to check tokens with yet: try again")
    try:
        header = jwt.get_unverified_header(token)
        found = trust.token_key(str(header.get("kid")))
        if found is None:
            raise RefusedError("UNAUTHENTICATED", "the token is signed with an unknown key")
        issuer, key = found
        claims = jwt.decode(
            token,
            jwt.PyJWK(key).key,
            algorithms=ALGORITHMS,
            audience=AUDIENCE,
            issuer=issuer,
            # Times are checked below, against the clock that the gateway was given.
            options={"require": ["exp", "sub"], "verify_exp": False, "verify_iat": False},
        )
        expires = float(claims["exp"])
    except (jwt.PyJWTError, KeyError, TypeError, ValueError) as error:
        raise RefusedError("UNAUTHENTICATED", f"the token does not hold: {error}") from None
    if expires + LEEWAY_S < now:
        raise RefusedError("UNAUTHENTICATED", "the token has expired")
    return _identity_of_claims(claims, expires)._replace(token=Token(token))


def _identity_of_claims(claims: Mapping[str, Any], expires: float) -> Identity:
    subject = str(claims["sub"]).split(":")
    bound = claims.get("kubernetes.io")
    pod = bound.get("pod") if isinstance(bound, dict) else None
    instance = pod.get("name") if isinstance(pod, dict) else None
    if len(subject) != _SUBJECT_PARTS or subject[:2] != ["system", "serviceaccount"]:
        raise RefusedError("UNAUTHENTICATED", "the token's subject is no service account")
    if not isinstance(instance, str) or not instance:
        raise RefusedError("UNAUTHENTICATED", "the token is not bound to an instance (pod)")
    uid = str(pod.get("uid") or "") if isinstance(pod, dict) else ""
    return Identity(subject[2], subject[3], instance, expires, uid=uid)


def check_node(node: Node, identity: Identity) -> None:
    """What the node says must be what the token proves.

    Raises:
        RefusedError: It says something else.
    """
    said = [
        ("node.id", f"{node.instance}.{node.namespace}"),
        ("metadata.NAMESPACE", node.metadata.get("NAMESPACE")),
        ("metadata.SERVICE_ACCOUNT", node.metadata.get("SERVICE_ACCOUNT")),
    ]
    proved = (
        f"{identity.instance}.{identity.namespace}",
        identity.namespace,
        identity.service_account,
    )
    for (field, value), expected in zip(said, proved, strict=True):
        if value is not None and value != expected:
            raise RefusedError(
                "PERMISSION_DENIED", f"{field} is {str(value)[:200]!r}, the token says {expected!r}"
            )


def keys_of_node(node: Node) -> ProxyKeys:
    """The proxy that a node says it is, for the plaintext listener (nothing is proved there).

    Source: Istio's node metadata: NAMESPACE, LABELS, SERVICE_ACCOUNT, CLUSTER_ID, INSTANCE_IPS.

    Raises:
        RefusedError: Something in the metadata is not what it should be.
    """
    metadata = node.metadata
    ips = metadata.get("INSTANCE_IPS")
    addresses = ips.split(",") if isinstance(ips, str) and ips else [node.address]
    document = {
        "type": node.kind,
        "name": node.instance,
        "namespace": metadata.get("NAMESPACE") or node.namespace,
        "labels": metadata.get("LABELS") or {},
        "serviceAccount": metadata.get("SERVICE_ACCOUNT") or "default",
        "ips": addresses,
        "cluster": metadata.get("CLUSTER_ID") or "",
        "network": metadata.get("NETWORK") or "",
        "metadata": {"WORKLOAD_NAME": metadata.get("WORKLOAD_NAME") or node.instance},
    }
    try:
        return proxy_of_json(document)
    except ValueError as error:
        raise RefusedError("INVALID_ARGUMENT", f"node.metadata: {error}") from error
