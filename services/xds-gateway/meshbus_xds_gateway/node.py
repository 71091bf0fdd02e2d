"""Who a stream belongs to: what its Envoy says (node) and what it proves (token). Pure.

Identity comes from the token. What the node says beside it must agree, or the stream is refused:
a proxy with the wrong bootstrap is found at once, and not served the configuration of another.
"""

from sys import intern
from typing import Any, NamedTuple

from google.protobuf.json_format import MessageToDict

from meshbus.compile.bootstrap_patches import MARK, NO_PATCHES
from meshbus.compile.proxy_keys import NODE_LOCALITY, ProxyKeys, proxy_of_json
from meshbus.model.rows import Trust
from meshbus.runtime.workload_tokens import TokenError, check_token

_KINDS = frozenset({"sidecar", "router"})
_ID_PARTS = 4


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
    join: str = ""
    """Id of a join token."""


ASKS_SINCE = (1, 40)


class Node(NamedTuple):
    """What an Envoy says of itself."""

    kind: str
    address: str
    instance: str
    namespace: str
    version: str
    """Of Envoy."""
    metadata: dict[str, Any]
    locality: str = ""
    """`region/zone/subzone`, what its Envoy takes for its own."""


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
    where = (node.locality.region, node.locality.zone, node.locality.sub_zone)
    locality = "/".join(where).rstrip("/")
    return Node(kind, address, instance, namespace, version, metadata, locality)


def asks_safely(version: str) -> bool:
    """An Envoy of this version loses no request whose virtual host or cluster it asks for. Earlier
    ones wait for ever when they ask for the same again, and take no VHDS by ADS.

    Source: Envoy's release notes (vhds_answered_alias_cache, on_demand_vhds_require_route_match).
    """
    numbers = [int(part) for part in version.split(".") if part.isdigit()]
    return tuple(numbers[:2]) >= ASKS_SINCE


def identity_of_token(authorization: str, trust: Trust | None, now: float) -> Identity:
    """Whom the bearer token of a stream was given to.

    Raises:
        RefusedError: No token, or one that does not hold.
    """
    scheme, _, token = authorization.partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise RefusedError("UNAUTHENTICATED", "no bearer token in `authorization`")
    try:
        found = check_token(token, trust, now)
    except TokenError as error:
        code = "UNAVAILABLE" if error.unavailable else "UNAUTHENTICATED"
        raise RefusedError(code, str(error)) from None
    return Identity(
        found.namespace,
        found.service_account,
        found.instance,
        found.expires,
        Token(token),
        found.uid,
        found.token_id if found.joins else "",
    )


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


def metadata_of(node: Node) -> tuple[tuple[str, str], ...]:
    """What EnvoyFilters match of a proxy's metadata: texts; and where it says that it is. It is the
    proxy's own word, which decides over its own configuration alone."""
    # Thousands of proxies say the same words.
    texts = {
        intern(name): intern(value)
        for name, value in node.metadata.items()
        if isinstance(value, str)
    }
    if node.locality:
        texts[NODE_LOCALITY] = intern(node.locality)
    return tuple(sorted({MARK: NO_PATCHES, **texts}.items()))


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
        "locality": node.locality,
        "metadata": {
            **dict(metadata_of(node)),
            "WORKLOAD_NAME": metadata.get("WORKLOAD_NAME") or node.instance,
        },
    }
    try:
        return proxy_of_json(document)
    except ValueError as error:
        raise RefusedError("INVALID_ARGUMENT", f"node.metadata: {error}") from error
