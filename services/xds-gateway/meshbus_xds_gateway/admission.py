"""Who may have a stream: a proxy's token, its node and its row, before it is served."""

from collections import Counter as Count
from collections.abc import Iterable
from typing import Any

from meshbus.bus.interface import BusError
from meshbus.compile.names import spiffe
from meshbus.compile.proxy_keys import proxy_of_instance, with_metadata
from meshbus.model.keys import Key
from meshbus.runtime.first_uses import FirstUses
from meshbus.runtime.service import Context
from meshbus_xds_gateway.fleet import CannotServeError, Client, Fleet
from meshbus_xds_gateway.node import (
    Identity,
    Node,
    RefusedError,
    check_node,
    identity_of_token,
    keys_of_node,
    metadata_of,
)
from meshbus_xds_gateway.session import Session, Wake

STREAMS_PER_PROXY = 4
"""More than one: an old stream may linger while the proxy has opened the next."""
STREAMS_PER_APPLICATION = 256
"""Of one that speaks xDS through gRPC, which has a stream for each service that it calls."""
WORKLOAD_S = 20.0
"""How long a proxy that is quicker than discovery waits for its row."""


class Admission:
    """For one listener. `first_uses` None: a proxy is what its node says."""

    def __init__(self, context: Context[Any], fleet: Fleet, first_uses: FirstUses | None) -> None:
        self._context = context
        self._fleet = fleet
        self._first_uses = first_uses
        self._open: Count[str] = Count()

    def identity(
        self, metadata: Iterable[tuple[str, str | bytes]], peer: str = ""
    ) -> Identity | None:
        """Whom a call's token was given to; None: this listener asks for no token.

        Args:
            peer: `ADDRESS:PORT` of who calls.

        Raises:
            RefusedError: There is none, or it does not hold.
        """
        if self._first_uses is None:
            return None
        trust = self._fleet.trust
        authorization = str(dict(metadata).get("authorization", ""))
        identity = identity_of_token(authorization, trust, self._context.clock.now())
        name = spiffe(self._context.trust_domain, identity.namespace, identity.service_account)
        if trust is not None and name in trust.blocked:
            raise RefusedError("PERMISSION_DENIED", f"{name} is blocked")
        first = self._first_uses.first(identity.join) if identity.join else ""
        if first:
            self._compare(identity, first, _address(peer))
        return identity

    def is_new(self, identity: Identity | None) -> bool:
        """The proxy came with a join token that nobody has used before, as far as is known here:
        `claim` it first."""
        return (
            identity is not None
            and self._first_uses is not None
            and bool(identity.join)
            and not self._first_uses.first(identity.join)
        )

    async def claim(self, identity: Identity, peer: str) -> None:
        """A join token is for the machine that it was used at first, at any replica.

        Raises:
            RefusedError: This is another one.
            CannotServeError: It cannot be told now.
        """
        assert self._first_uses is not None
        address = _address(peer)
        try:
            first = await self._first_uses.claim(identity.join, address, identity.expires)
        except BusError as error:
            text = "it cannot be told who used the token first: try again"
            raise CannotServeError(text) from error
        self._compare(identity, first, address)

    def _compare(self, identity: Identity, first: str, address: str) -> None:
        if first == address:
            return
        self._context.log.warning(
            "a join token is used from a second address",
            instance=f"{identity.instance}.{identity.namespace}",
            first=first,
            address=address,
        )
        raise RefusedError("UNAUTHENTICATED", "the token was used from another address")

    def missing_row(self, node: Node, identity: Identity | None) -> Key | None:
        """Key of the row that a proxy cannot be served without yet; None: nothing is missing.

        Raises:
            RefusedError: Node and token do not agree.
        """
        if identity is None:
            return None
        check_node(node, identity)
        key = self._workload_key(identity)
        return key if self._fleet.workload_now(key) is None else None

    async def registered(self, key: Key) -> None:
        """Until the row of a proxy that is quicker than discovery is there.

        Raises:
            CannotServeError: It does not come.
        """
        await self._fleet.workload(key, WORKLOAD_S)

    def _workload_key(self, identity: Identity) -> Key:
        return Key(self._context.cluster, "reg", "workloads", identity.namespace, identity.instance)

    def client(self, node: Node, identity: Identity | None, wake: Wake) -> Client:
        """What a proxy is served as; nothing is missing. `enter` with it follows.

        Raises:
            RefusedError: Node, token and row do not agree.
            CannotServeError: Its row has gone.
        """
        context = self._context
        if identity is None:
            keys = keys_of_node(node)
            account = workload = None
        else:
            workload = self._workload_key(identity)
            row = self._fleet.workload_now(workload)
            if row is None:
                raise CannotServeError(f"instance {workload.name} is not registered any more")
            if (row.service_account or "default") != identity.service_account:
                raise RefusedError(
                    "PERMISSION_DENIED",
                    f"the token is of service account {identity.service_account}, "
                    f"{row.name} runs as {row.service_account or 'default'}",
                )
            if identity.uid and row.uid and row.uid != identity.uid:
                raise RefusedError(
                    "PERMISSION_DENIED", f"the token is of a pod {row.name} that is no more"
                )
            keys = with_metadata(proxy_of_instance(row), metadata_of(node))
            account = (identity.namespace, identity.service_account)
        if keys.type != node.kind:
            raise RefusedError(
                "PERMISSION_DENIED", f"node.id says {node.kind}, {keys.name} is a {keys.type}"
            )
        name = f"{keys.name}.{keys.namespace}"
        return Client(
            id=name,
            keys=keys,
            session=Session(name, self._fleet.verdicts, wake),
            version=node.version,
            address=node.address,
            connected=context.clock.now(),
            account=account,
            token=identity.token if identity else None,
            workload=workload,
            wake=wake,
        )

    def enter(self, client: Client) -> None:
        """Serve a client from now on; `leave` undoes it.

        Raises:
            RefusedError: It has too many streams.
            CannotServeError: There is nothing for it now.
        """
        most = STREAMS_PER_APPLICATION if client.keys.speaks_grpc else STREAMS_PER_PROXY
        if self._open[client.id] >= most:
            raise RefusedError("RESOURCE_EXHAUSTED", f"{client.id} has {most} streams already")
        self._fleet.join(client)
        self._open[client.id] += 1

    def leave(self, client: Client) -> None:
        """Its stream has ended."""
        self._fleet.leave(client)
        self._open[client.id] -= 1
        if not self._open[client.id]:
            del self._open[client.id]


def _address(peer: str) -> str:
    """The address of `ADDRESS:PORT`."""
    return peer.rpartition(":")[0]
