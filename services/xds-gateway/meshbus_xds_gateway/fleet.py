"""The proxies that are connected to this replica, and what each should have.

Rows come in (`world_changed`), snapshots go to sessions, acknowledgements come back (`progressed`).
Streams are served elsewhere: a stream is woken when its session may have something to say.
"""

import asyncio
from collections import Counter as Count
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from meshbus.compile.engine import Engine
from meshbus.compile.proxy import Snapshot, compile_proxy
from meshbus.compile.proxy_keys import ProxyKeys, proxy_of_instance
from meshbus.compile.resources import SDS, Resource
from meshbus.compile.tls_contexts import TRUSTED_ROOTS
from meshbus.model.keys import Key
from meshbus.model.rows import Trust, WorkloadInstance
from meshbus.model.world import Query, World
from meshbus.runtime.service import Context
from meshbus_xds_gateway.convergence import Convergence, time_of_change
from meshbus_xds_gateway.credentials import Credentials
from meshbus_xds_gateway.leaves import Account, Leaves
from meshbus_xds_gateway.metrics import GatewayMetrics
from meshbus_xds_gateway.secret_resources import roots_secret
from meshbus_xds_gateway.session import Session
from meshbus_xds_gateway.session_state import changed_names
from meshbus_xds_gateway.verdicts import Verdicts

_LOOK_S = 0.02
"""Between two looks at everyone."""
_SLICE_S = 0.02
"""How long snapshots are made before other work of the process gets its turn."""

_Names = Mapping[str, Resource | None]


class CannotServeError(Exception):
    """There is no snapshot for a proxy now; it should come back."""


class Wake(Protocol):
    """How a stream is told that its session may have something to say."""

    def set(self) -> None:
        """Soon; as often as one likes."""


@dataclass(eq=False, slots=True)
class Client:
    """One stream of one proxy."""

    id: str
    """`INSTANCE.NAMESPACE`."""
    keys: ProxyKeys
    session: Session
    version: str
    address: str
    connected: float
    """Seconds since the epoch."""
    account: Account | None
    """Whose certificate it may have; None: it has proved nothing and gets none."""
    workload: Key | None
    """Row that says what it is; None: it has said so itself."""
    wake: Wake = field(default_factory=asyncio.Event)
    snapshot: Snapshot | None = None
    secrets: _Names = field(default_factory=dict)
    credentials: frozenset[Key] = frozenset()


class _Differ:
    """Compares mappings once for all sessions that share them."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[_Names, _Names, list[str]]] = {}

    def __call__(self, old: _Names, new: _Names) -> list[str]:
        key = (id(old), id(new))
        found = self._known.get(key)
        if found is None:
            # The mappings are kept with the answer: their ids are theirs as long as it lives.
            found = self._known[key] = (old, new, changed_names(old, new))
        return found[2]


class Fleet:
    """All connected proxies of one replica."""

    def __init__(
        self, context: Context[Any], metrics: GatewayMetrics, tasks: asyncio.TaskGroup, ttl_s: int
    ) -> None:
        self.clients: set[Client] = set()
        self.sequence = 0
        """Model version that every snapshot is made of."""
        self.verdicts = Verdicts(self._decided)
        self.convergence = Convergence()
        self.synced = False
        """The model has been read whole once; before, nobody is served."""
        self._context = context
        self._metrics = metrics
        self._engine = Engine(World())
        self._leaves = Leaves(context, tasks, ttl_s, self._leaf_changed)
        self._credentials = Credentials(context, tasks, self._credential_changed)
        self._trust_key = Key(context.cluster, "sec", "trust", "", context.trust_domain)
        self._roots: tuple[str, Resource] | None = None
        self._unsettled: set[Client] = set()
        self._users: Count[ProxyKeys] = Count()
        self._stale = asyncio.Event()
        self._all_stale = False
        self._moved_rows: set[Key] = set()
        self._pulse = asyncio.Event()
        self._looked = 0.0

    # ------------------------------------------------------------------ rows in

    @property
    def world(self) -> World:
        """The rows as of the last step."""
        return self._engine.world

    @property
    def trust(self) -> Trust | None:
        """What identities and tokens are checked with."""
        row = self.world.get(self._trust_key)
        return row if isinstance(row, Trust) else None

    def world_changed(self, world: World, touched: frozenset[Query]) -> None:
        """The mirror has made a step."""
        self._engine.update(world, touched)
        # Noted now: a proxy that joins before the push brings the engine up to date.
        self._all_stale = self._all_stale or self._engine.stale
        self.synced = True
        if touched:
            now = self._context.clock.now()
            self.convergence.arrived(world.sequence, time_of_change(world, touched, now))
        for _, index, key in touched:
            if index != "key" or not isinstance(key, Key):
                continue
            if key.table == "reg.workloads":
                self._moved_rows.add(key)
            elif key.table == "cfg.secrets":
                self._credentials.row_changed(key)
            elif key == self._trust_key:
                self._roots = None
                self._all_stale = True
        self._stale.set()
        self._beat()

    async def run(self) -> None:
        """Bring snapshots up to date whenever rows have changed, until cancelled."""
        clock = self._context.clock
        while True:
            await self._stale.wait()
            self._stale.clear()
            began = clock.monotonic()
            await self._push()
            self._metrics.recompute.observe(clock.monotonic() - began)

    async def _push(self) -> None:
        clock = self._context.clock
        sequence = self.world.sequence
        moved_rows, self._moved_rows = self._moved_rows, set()
        everyone, self._all_stale = self._all_stale, False
        differ = _Differ()
        turn = clock.monotonic()
        for client in list(self.clients):
            if not everyone and client.workload not in moved_rows:
                continue
            if client in self.clients:
                self._refresh(client, sequence, differ)
            if clock.monotonic() - turn > _SLICE_S:
                await asyncio.sleep(0)
                turn = clock.monotonic()
        self.sequence = sequence
        self._settle(list(self._unsettled))

    # ------------------------------------------------------------------ proxies

    async def workload(self, key: Key, timeout_s: float) -> WorkloadInstance:
        """The row of a workload instance; waits for a proxy that is quicker than discovery.

        Raises:
            CannotServeError: It did not come.
        """
        deadline = self._context.clock.monotonic() + timeout_s
        while True:
            row = self.world.get(key) if self.synced else None
            if isinstance(row, WorkloadInstance):
                return row
            pulse, left = self._pulse, deadline - self._context.clock.monotonic()
            try:
                async with asyncio.timeout(left):
                    await pulse.wait()
            except TimeoutError:
                raise CannotServeError(
                    f"instance {key.name} is not registered in namespace {key.namespace}"
                ) from None

    def join(self, client: Client) -> None:
        """Serve a proxy from now on; `leave` undoes it.

        Raises:
            CannotServeError: Nothing can be given to it now.
        """
        if not self.synced:
            raise CannotServeError("the model has not been read yet")
        snapshot = self._compile(client.keys)
        if snapshot is None:
            raise CannotServeError("its configuration cannot be compiled; see the gateway's log")
        self._users[client.keys] += 1
        self.clients.add(client)
        if client.account is not None:
            self._leaves.hold(client.account)
        self._give(client, snapshot, self.world.sequence, _Differ())
        self._unsettled.add(client)
        self._metrics.connected.set(len(self.clients))

    def leave(self, client: Client) -> None:
        """Its stream has ended."""
        client.session.close()
        self.clients.discard(client)
        self._unsettled.discard(client)
        self._drop_keys(client.keys)
        if client.account is not None:
            self._leaves.release(client.account)
        for key in client.credentials:
            self._credentials.release(key)
        self._metrics.connected.set(len(self.clients))
        self._settle([])

    def look(self) -> None:
        """Time may have passed for sessions that waited for their clients."""
        if self._unsettled:
            self._settle(list(self._unsettled))

    def progressed(self, client: Client) -> None:
        """Its session has heard or said something."""
        if client in self._unsettled:
            self._settle([client])

    # ------------------------------------------------------------------ how far they are

    def converged_at(self, client: Client) -> int:
        """The model version at which a client has everything."""
        if client not in self._unsettled:
            return self.sequence
        return client.session.converged(self.sequence, self._context.clock.monotonic())

    def converged(self) -> int:
        """The smallest of all clients."""
        return min((self.converged_at(c) for c in self._unsettled), default=self.sequence)

    async def changed(self, timeout_s: float) -> None:
        """Until something has moved, at most so long."""
        pulse = self._pulse
        try:
            async with asyncio.timeout(timeout_s):
                await pulse.wait()
        except TimeoutError:
            return

    # ------------------------------------------------------------------ inside

    def _beat(self) -> None:
        self._pulse.set()
        self._pulse = asyncio.Event()

    def _settle(self, candidates: Iterable[Client]) -> None:
        for client in candidates:
            if self.converged_at(client) >= self.sequence:
                self._unsettled.discard(client)
        now = self._context.clock.monotonic()
        if self._unsettled and now - self._looked < _LOOK_S:
            return
        # Asking everyone on every acknowledgement would cost the square of the fleet: the last one
        # is seen at once, those between (of changes that overlap) a moment later.
        self._looked = now
        for change in self.convergence.settled(self.converged(), self._context.clock.now()):
            if self.clients and change.settled is not None:
                self._metrics.convergence.observe(max(change.settled - change.ts, 0.0))
        self._beat()

    def _decided(self) -> None:
        """A content that sessions wait for has been accepted or refused."""
        for client in self._unsettled:
            client.wake.set()

    def _compile(self, keys: ProxyKeys) -> Snapshot | None:
        try:
            return self._engine.get(compile_proxy, keys)
        except Exception:
            # One proxy that cannot be compiled must not stop the others: it keeps what it has.
            self._metrics.compile_errors.inc()
            self._context.log.exception("a proxy cannot be compiled", proxy=keys.name)
            return None

    def _refresh(self, client: Client, sequence: int, differ: _Differ) -> None:
        if client.workload is not None:
            row = self.world.get(client.workload)
            # The row of an instance that was stopped goes first, its Envoy a moment later.
            if isinstance(row, WorkloadInstance):
                keys = proxy_of_instance(row)
                if keys != client.keys:
                    self._users[keys] += 1
                    self._drop_keys(client.keys)
                    client.keys = keys
        snapshot = self._compile(client.keys)
        if snapshot is not None:
            self._give(client, snapshot, sequence, differ)

    def _give(self, client: Client, snapshot: Snapshot, sequence: int, differ: _Differ) -> None:
        now = self._context.clock.monotonic()
        moved = False
        if snapshot is not client.snapshot:
            client.snapshot = snapshot
            needed = frozenset(need.key for need in snapshot.secrets if need.key is not None)
            for key in needed - client.credentials:
                self._credentials.hold(key)
            for key in client.credentials - needed:
                self._credentials.release(key)
            client.credentials = needed
            moved = client.session.update(snapshot.resources, sequence, now, differ)
        if self._give_secrets(client, sequence) or moved:
            self._unsettled.add(client)
            client.wake.set()

    def _give_secrets(self, client: Client, sequence: int) -> bool:
        secrets: dict[str, Resource | None] = {}
        for need in client.snapshot.secrets if client.snapshot else ():
            made: Resource | None = None
            if need.name == TRUSTED_ROOTS and need.key is None:
                made = self._roots_resource()
            elif client.account is None:
                continue  # it has proved nothing: no private keys
            elif need.key is None:
                made = self._leaves.resource(client.account)
            else:
                made = self._credentials.resource(need)
            # What it has serves until there is another.
            made = made or client.secrets.get(need.name)
            if made is None and need.key is not None and self._credentials.failed(need):
                continue  # there is no such secret now: said, not waited for
            secrets[need.name] = made
        if secrets == client.secrets:
            return False
        client.secrets = secrets
        return client.session.update({SDS: secrets}, sequence, self._context.clock.monotonic())

    def _roots_resource(self) -> Resource | None:
        trust = self.trust
        if trust is None or not trust.roots_pem:
            return None
        if self._roots is None or self._roots[0] != trust.roots_pem:
            secret = roots_secret(TRUSTED_ROOTS, trust.roots_pem.encode())
            self._roots = (trust.roots_pem, secret)
        return self._roots[1]

    def _leaf_changed(self, account: Account) -> None:
        self._secrets_changed(c for c in self.clients if c.account == account)

    def _credential_changed(self, key: Key) -> None:
        self._secrets_changed(c for c in self.clients if key in c.credentials)

    def _secrets_changed(self, clients: Iterable[Client]) -> None:
        for client in clients:
            # No part of a change: what has converged stays so while a certificate is renewed.
            if self._give_secrets(client, self.sequence + 1):
                self._unsettled.add(client)
                client.wake.set()

    def _drop_keys(self, keys: ProxyKeys) -> None:
        self._users[keys] -= 1
        if self._users[keys] <= 0:
            del self._users[keys]
            self._engine.release(compile_proxy, keys)
