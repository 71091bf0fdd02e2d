"""The proxies that are connected to this replica, and what each should have.

Rows come in (`follow`), snapshots go to sessions, acknowledgements come back (`progressed`).
Streams are served elsewhere: a stream is woken when its session may have something to say.
"""

import asyncio
import contextlib
import ctypes
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from meshbus.bus.mirror import WorldMirror
from meshbus.compile.proxy import Snapshot
from meshbus.compile.proxy_keys import ProxyKeys, proxy_of_instance, with_metadata
from meshbus.compile.resources import CDS, SDS, VHDS, Resource
from meshbus.compile.settings import settings_of
from meshbus.compile.tls_contexts import OWN_CERTIFICATE, TRUSTED_ROOTS
from meshbus.model.keys import Key
from meshbus.model.rows import KEYS_ANNOTATION, Trust, WorkloadInstance
from meshbus.model.world import Query, World
from meshbus.runtime.service import Context
from meshbus_xds_gateway.asked import ASKED_TYPES
from meshbus_xds_gateway.classes import Classes, ProxyClass, collect_rarely
from meshbus_xds_gateway.content import Content, forget_responses
from meshbus_xds_gateway.convergence import Convergence, time_of_change
from meshbus_xds_gateway.credentials import Credentials
from meshbus_xds_gateway.leaves import Account, Holder, Leaves
from meshbus_xds_gateway.losses import Losses
from meshbus_xds_gateway.metrics import GatewayMetrics
from meshbus_xds_gateway.node import Token
from meshbus_xds_gateway.quarantine import Quarantines
from meshbus_xds_gateway.secret_resources import certificate_at, trust_secret
from meshbus_xds_gateway.session import Session, Wake
from meshbus_xds_gateway.unsettled import Unsettled
from meshbus_xds_gateway.verdicts import Verdicts
from meshbus_xds_gateway.wire import forget_uploads

_LOOK_S = 0.02
"""Between two looks at everyone, at least;"""
_LOOK_SHARE = 0.05
"""and at most this share of the time goes into looking."""
_SLICE_S = 0.02
"""How long snapshots are made before other work of the process gets its turn."""

_GIVE_BACK_S = 30.0
"""Between two times that memory is given back: it walks over all of the heap."""
_GIVEN_AT_ONCE = 16
"""Clients between two looks at the clock."""
_LINGER_S = 60.0
"""How long what was compiled for a proxy is kept when it has gone: most come back at once;"""
_LINGERING = 10_000
"""for so many, and as many as are connected, at most."""

_Names = Mapping[str, Resource | None]


class CannotServeError(Exception):
    """There is no snapshot for a proxy now; it should come back."""


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
    secrets: _Names = field(default_factory=dict)
    credentials: frozenset[Key] = frozenset()
    holder: Holder | None = None
    """Of the certificate that it is given, from when it joined."""
    own_keys: Resource | None = None
    """Its certificate, where its machine keeps the key."""
    gone: bool = False
    """Its stream has ended."""
    token: Token | None = None
    """What proved its account."""


def give_back_memory() -> None:
    """Hand what a burst has left free in the heap back to the system, where the C library can
    (glibc): it keeps the peak for ever otherwise."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


class Fleet:
    """All connected proxies of one replica."""

    def __init__(
        self, context: Context[Any], metrics: GatewayMetrics, tasks: asyncio.TaskGroup, ttl_s: int
    ) -> None:
        self.clients: set[Client] = set()
        self.sequence = 0
        """Model version that every snapshot is made of."""
        self.verdicts = Verdicts()
        self.convergence = Convergence()
        self.synced = False
        """The model has been read whole once; before, nobody is served."""
        self._context = context
        self._metrics = metrics
        self._classes = Classes(self._not_compiled)
        self.losses = Losses(self._classes)
        self.quarantines = Quarantines(
            self._classes, self.verdicts, context.clock.monotonic, self._move
        )
        self._model = World()
        """The model as of the last step, or of the one that is to come."""
        self._leaves = Leaves(context, tasks, ttl_s, self._leaf_changed, self._proof_key)
        self._credentials = Credentials(
            context, tasks, self._credential_changed, lambda key: self.world.get(key)
        )
        self._trust_key = Key(context.cluster, "sec", "trust", "", context.trust_domain)
        self._roots: Resource | None = None
        self._unsettled: Unsettled[Client] = Unsettled()
        self._departed: deque[tuple[float, Client]] = deque()
        self._by_workload: dict[Key, set[Client]] = {}
        self._by_holder: dict[Holder, set[Client]] = {}
        self._stale = asyncio.Event()
        self._trust_changed = False
        self._moved_rows: set[Key] = set()
        self._giving = 0
        """Version that clients are being given."""
        self._mirror: WorldMirror | None = None
        self._pushing = False
        self._next_world: World | None = None
        self._next_touched: set[Query] = set()
        self._pulse = asyncio.Event()
        self._next_look = 0.0
        self._let_go = False
        """Of memory, which has not been given back yet."""
        self._next_giving_back = 0.0
        metrics.compiled_by(self._classes.engine)

    # ------------------------------------------------------------------ rows in

    @property
    def world(self) -> World:
        """The rows as of the last step."""
        return self._classes.engine.world

    @property
    def trust(self) -> Trust | None:
        """What identities and tokens are checked with."""
        row = self.world.get(self._trust_key)
        return row if isinstance(row, Trust) else None

    def follow(self, mirror: WorldMirror) -> None:
        """Take the rows of a mirror, from its next step on."""
        self._mirror = mirror
        mirror.subscribe(self.world_changed)

    def world_changed(self, world: World, touched: frozenset[Query]) -> None:
        """The mirror has made a step."""
        if touched:
            now = self._context.clock.now()
            self.convergence.arrived(world.sequence, time_of_change(world, touched, now))
        self._model = world
        self._move(touched)

    def _move(self, touched: frozenset[Query]) -> None:
        """Go to the newest model, and what is left out of it."""
        if self._pushing:
            # A resync while a version is compiled: it is compiled to its end and sent, and this
            # step is part of the next one.
            self._next_world = self._model
            self._next_touched |= touched
        else:
            self._step(self._model, touched)
        self._stale.set()

    def _step(self, world: World, touched: Iterable[Query]) -> None:
        """Move to a newer world."""
        touched = frozenset(touched) | self.quarantines.stepped(world, touched)
        self._classes.update(self.quarantines.world(world), touched)
        self.synced = True
        for _, index, key in touched:
            if index != "key" or not isinstance(key, Key):
                continue
            if key.table == "reg.workloads":
                self._moved_rows.add(key)
            elif key.table in ("cfg.secrets", "cfg.configmaps"):
                self._credentials.row_changed(key)
            elif key.table == "mesh.config":
                self._roots = None
                self._trust_changed = True
            elif key.table == "sec.trust" and key.cluster == self._trust_key.cluster:
                self._roots = None
                self._trust_changed = True
                if self.trust is not None and self.trust.revoked:
                    self._leaves.revoked(frozenset(c.serial for c in self.trust.revoked))
        self._beat()

    async def run(self) -> None:
        """Bring snapshots up to date whenever rows have changed, until cancelled."""
        clock = self._context.clock
        collect_rarely()
        while True:
            await self._stale.wait()
            self._stale.clear()
            began = clock.monotonic()
            self._pushing = True
            # What is being compiled is compiled to its end and sent; what comes meanwhile is the
            # next step. Else a stream of changes would put off every push.
            if self._mirror is not None:
                self._mirror.hold()
            await self._push()
            self._pushing = False
            if self._next_world is not None:
                world, touched = self._next_world, self._next_touched
                self._next_world, self._next_touched = None, set()
                self._step(world, touched)
            if self._mirror is not None:
                self._mirror.release()
            # What this push has to say leaves before the next one is compiled.
            await asyncio.sleep(0)
            self._judge()
            self._metrics.recompute.observe(clock.monotonic() - began)

    async def _push(self) -> None:
        clock = self._context.clock
        engine = self._classes.engine
        turn = clock.monotonic()

        def enough() -> bool:
            return clock.monotonic() - turn > _SLICE_S

        while not engine.advance(enough):
            await asyncio.sleep(0)
            turn = clock.monotonic()
        # Without a pause: what is given is of this version.
        sequence = self._giving = self.world.sequence
        trust_changed, self._trust_changed = self._trust_changed, False
        moved_rows, self._moved_rows = self._moved_rows, set()
        classes, clients, needy = self._classes.changed()
        self.quarantines.aim()
        for key in moved_rows:
            clients.update(c for c in self._by_workload.get(key, ()) if self._moved(c))
        if trust_changed:
            clients = set(self.clients)
        for held in needy:
            clients.update(held.members)
        given: list[tuple[Client, ProxyClass, dict[str, Content] | None]] = [
            (c, p, contents) for p, contents in classes.items() for c in p.members
        ]
        for client in clients:
            held_in = self._classes.class_of(client)
            if held_in is not None:
                given.append((client, held_in, None))
        for at in range(0, len(given), _GIVEN_AT_ONCE):
            now = clock.monotonic()
            for client, proxies, contents in given[at : at + _GIVEN_AT_ONCE]:
                if client not in self.clients or self._classes.class_of(client) is not proxies:
                    continue
                if contents is None:
                    self._give(client, proxies, sequence)
                elif client.session.update(
                    self._classes.contents_for(client, proxies, contents), sequence, now
                ):
                    self._unsettled.add(client, sequence - 1)
                    client.wake.set()
            if enough():
                await asyncio.sleep(0)
                turn = clock.monotonic()
        self.sequence = sequence
        self._settle(list(self._unsettled))

    def _forget_departed(self) -> bool:
        """Let go of what was compiled for proxies that have not come back. True: some were."""
        now = self._context.clock.monotonic()
        most = _LINGERING + len(self.clients)
        before = len(self._departed)
        while self._departed and (
            now - self._departed[0][0] > _LINGER_S or len(self._departed) > most
        ):
            self._classes.leave(self._departed.popleft()[1])
        return len(self._departed) < before

    def _moved(self, client: Client) -> bool:
        """Follow the row of a proxy's workload. True: it is of another class now."""
        row = self.world.get(client.workload) if client.workload is not None else None
        # The row of an instance that was stopped goes first, its Envoy a moment later.
        if not isinstance(row, WorkloadInstance):
            return False
        told = client.keys
        keys = with_metadata(proxy_of_instance(row), told.metadata)
        keys = replace(keys, may_ask=told.may_ask)
        return keys != client.keys and self._classes.move(client, keys) is not None

    # ------------------------------------------------------------------ proxies

    def workload_now(self, key: Key) -> WorkloadInstance | None:
        """The row of a workload instance, if it is there."""
        row = self.world.get(key) if self.synced else None
        return row if isinstance(row, WorkloadInstance) else None

    async def workload(self, key: Key, timeout_s: float) -> WorkloadInstance:
        """The row of a workload instance; waits for a proxy that is quicker than discovery.

        Raises:
            CannotServeError: It did not come.
        """
        deadline = self._context.clock.monotonic() + timeout_s
        while True:
            row = self.workload_now(key)
            if row is not None:
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
        proxies = self._classes.join(client)
        if proxies is None:
            raise CannotServeError("its configuration cannot be compiled; see the gateway's log")
        self.clients.add(client)
        if client.workload is not None:
            self._by_workload.setdefault(client.workload, set()).add(client)
        if client.account is not None:
            client.holder = (*client.account, client.keys.workload)
            self._by_holder.setdefault(client.holder, set()).add(client)
            client.own_keys = self._keys_at_home(client)
            if client.own_keys is None:
                self._leaves.hold(client.holder, client.token)
        self._give(client, proxies, self.world.sequence)
        self._unsettled.add(client, 0)
        self._judge()
        self._metrics.connected.set(len(self.clients))

    def asked(
        self, client: Client, type_url: str, names: Iterable[str], no_longer: Iterable[str]
    ) -> None:
        """A proxy asks for these names, and no longer for others: call before its session hears of
        it, which would find that there are none."""
        proxies = self._classes.class_of(client)
        if proxies is None or type_url not in ASKED_TYPES:
            return
        if type_url == CDS and not proxies.late:
            return
        if type_url == VHDS and proxies.plan.tables is None:
            return
        self._classes.asked.ask(client, type_url, names, no_longer)
        # No part of a change: what has converged stays so while a proxy asks for more.
        self._give(client, proxies, self.sequence + 1)

    def leave(self, client: Client) -> None:
        """Its stream has ended."""
        client.gone = True
        client.session.close()
        self.clients.discard(client)
        self._unsettled.discard(client)
        self._departed.append((self._context.clock.monotonic(), client))
        self._forget_departed()
        if client.workload is not None:
            _discard(self._by_workload, client.workload, client)
        if client.holder is not None:
            _discard(self._by_holder, client.holder, client)
            if client.own_keys is None:
                self._leaves.release(client.holder)
        for key in client.credentials:
            self._credentials.release(key)
        self._metrics.connected.set(len(self.clients))
        self._judge()
        self._settle([])

    def snapshot(self, client: Client) -> Snapshot | None:
        """Everything that a connected proxy should have; without the content of secrets."""
        return self._classes.snapshot(client)

    def look(self) -> None:
        """Time may have passed for sessions that waited for their clients."""
        let_go = (self._forget_departed(), forget_responses(), forget_uploads())
        self._judge()
        self._let_go = self._let_go or any(let_go)
        now = self._context.clock.monotonic()
        if self._let_go and now >= self._next_giving_back:
            self._let_go, self._next_giving_back = False, now + _GIVE_BACK_S
            give_back_memory()
        if self._unsettled:
            self._settle(list(self._unsettled))

    def progressed(self, client: Client) -> None:
        """Its session has heard or said something."""
        self._judge()
        if client in self._unsettled:
            self._settle([client])

    def rested(self, client: Client) -> bool:
        """Its session has heard something. True: it has everything and nothing to say."""
        self._judge()
        if not client.session.rests(max(self.sequence, self._giving)):
            return False
        if client in self._unsettled:
            self._unsettled.discard(client)
            self._settle([])
        return True

    # ------------------------------------------------------------------ how far they are

    def converged_at(self, client: Client) -> int:
        """The model version at which a client has everything."""
        if client not in self._unsettled:
            return self.sequence
        return client.session.converged(self.sequence, self._context.clock.monotonic())

    def settled(self, client: Client) -> bool:
        """Whether a client has everything."""
        return client not in self._unsettled

    def behind(self, sequence: int) -> Iterator[Client]:
        """Clients that have not all of a version; `sequence` of the fleet is at least that."""
        return (c for c in self._unsettled if self.converged_at(c) < sequence)

    def refusing(self) -> set[Client]:
        """Clients that do not get something because it was refused."""
        return {c for c in self.clients if c.session.blocked} | self.quarantines.proxies()

    def converged(self) -> int:
        """The smallest of all clients."""
        return self._unsettled.least(self.converged_at, self.sequence)

    async def changed(self, timeout_s: float) -> None:
        """Until something has moved, at most so long."""
        pulse = self._pulse
        try:
            async with asyncio.timeout(timeout_s):
                await pulse.wait()
        except TimeoutError:
            return

    # ------------------------------------------------------------------ inside

    def _judge(self) -> None:
        """Go on with finding out what is to be left out, unless a push is due: until then classes
        have contents of an earlier version, which nobody was asked about."""
        if not self._pushing and not self._stale.is_set():
            self.quarantines.step()

    def _beat(self) -> None:
        self._pulse.set()
        self._pulse = asyncio.Event()

    def _settle(self, candidates: Iterable[Client]) -> None:
        now = self._context.clock.monotonic()
        # While a version is being given, who has been given it has settled when it has that one:
        # by the version before, all of them would have, and be taken for converged at its end.
        upto = max(self.sequence, self._giving)
        for client in candidates:
            if client.session.converged(upto, now) >= upto:
                self._unsettled.discard(client)
        if self._unsettled and now < self._next_look:
            return
        # The last one is seen at once, those between (of changes that overlap) a moment later.
        converged = self.converged()
        took = self._context.clock.monotonic() - now
        self._next_look = now + max(_LOOK_S, took / _LOOK_SHARE)
        for change in self.convergence.settled(converged, self._context.clock.now()):
            if self.clients and change.settled is not None:
                self._metrics.convergence.observe(max(change.settled - change.ts, 0.0))
        self._beat()

    def _not_compiled(self, what: str) -> None:
        self._metrics.compile_errors.inc()
        self._context.log.exception("a proxy cannot be compiled", proxy=what)

    def _give(self, client: Client, proxies: ProxyClass, sequence: int) -> None:
        """All that a client should have: contents of its class and secrets."""
        now = self._context.clock.monotonic()
        needed = frozenset(need.key for need in proxies.secrets if need.key is not None)
        if needed != client.credentials:
            for key in needed - client.credentials:
                self._credentials.hold(key)
            for key in client.credentials - needed:
                self._credentials.release(key)
            client.credentials = needed
        contents = self._classes.contents_for(client, proxies, proxies.contents)
        moved = client.session.update(contents, sequence, now)
        if self._give_secrets(client, proxies, sequence) or moved:
            self._unsettled.add(client, sequence - 1)
            client.wake.set()

    def _give_secrets(self, client: Client, proxies: ProxyClass, sequence: int) -> bool:
        secrets: dict[str, Resource | None] = {}
        for need in proxies.secrets:
            made: Resource | None = None
            if need.name == TRUSTED_ROOTS and need.key is None:
                made = self._roots_resource()
            elif client.holder is None:
                continue  # it has proved nothing: no private keys
            elif need.key is None:
                made = client.own_keys or self._leaves.resource(client.holder)
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
        if self._roots is None:
            others = [
                entry.row
                for entry in self.world.all("sec.trust")
                if entry.key.cluster == self._trust_key.cluster
                and entry.key != self._trust_key
                and entry.row.roots_pem
            ]
            self._roots = trust_secret(TRUSTED_ROOTS, trust, others, self._aliases())
        return self._roots

    def _aliases(self) -> tuple[str, ...]:
        for entry in self.world.all("mesh.config"):
            return settings_of(entry.row.spec).trust_domain_aliases
        return ()

    def _proof_key(self) -> str:
        return self.trust.proof_key if self.trust else ""

    def _keys_at_home(self, client: Client) -> Resource | None:
        """Where a proxy's machine keeps its certificate; None: it is made here."""
        row = self.workload_now(client.workload) if client.workload is not None else None
        folder = row.annotations.get(KEYS_ANNOTATION, "") if row is not None else ""
        return certificate_at(OWN_CERTIFICATE, folder.rstrip("/")) if folder[:1] == "/" else None

    def _leaf_changed(self, holder: Holder) -> None:
        self._secrets_changed(self._by_holder.get(holder, ()))

    def _credential_changed(self, key: Key) -> None:
        self._secrets_changed(c for c in self.clients if key in c.credentials)

    def _secrets_changed(self, clients: Iterable[Client]) -> None:
        for client in tuple(clients):
            proxies = self._classes.class_of(client)
            # No part of a change: what has converged stays so while a certificate is renewed.
            if proxies is not None and self._give_secrets(client, proxies, self.sequence + 1):
                self._unsettled.add(client, self.sequence)
                client.wake.set()


def _discard(index: dict[Any, set[Client]], key: Any, client: Client) -> None:
    held = index[key]
    held.discard(client)
    if not held:
        del index[key]
