"""The config service: the API, its store, and what follows from STATUS."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal
from uuid import uuid4

import msgspec

from meshbus.bus.interface import EVENTS, STATUS, BusError
from meshbus.bus.mirror import WorldMirror
from meshbus.model.requests import CREDENTIAL, PULL_SECRET, CredentialRequest
from meshbus.model.revisions import DEFAULT_REVISION
from meshbus.runtime.calls import answer
from meshbus.runtime.http import bind, bound_address, serve_http, split_address
from meshbus.runtime.service import Context
from meshbus.runtime.settings import SettingsError
from meshbus_config import operations
from meshbus_config.admission import PERMANENT_NAMESPACES, namespace_kind
from meshbus_config.announcements import Announcer
from meshbus_config.app import Metrics, Users, make_app
from meshbus_config.authorization_api import AuthorizationApi
from meshbus_config.bulk import Bulk
from meshbus_config.credentials import Credentials
from meshbus_config.documents import Space
from meshbus_config.errors import ApiError
from meshbus_config.events_feed import EventsFeed
from meshbus_config.history import History
from meshbus_config.machine_entries import Entries
from meshbus_config.machine_presence import Presence
from meshbus_config.machine_store import StoredEntries
from meshbus_config.machine_users import MachineUsers
from meshbus_config.machines import Machines
from meshbus_config.mesh_api import MeshApi
from meshbus_config.object_status import StatusWriter
from meshbus_config.outcomes import Intent, Plan
from meshbus_config.receipts import Receipts
from meshbus_config.references import References
from meshbus_config.resources import Resources
from meshbus_config.secret_box import load_box
from meshbus_config.serving_certificate import ensure_certificate, write_file
from meshbus_config.status_board import StatusBoard
from meshbus_config.store import Store
from meshbus_config.tokens import Tokens

if TYPE_CHECKING:
    from meshbus_config.kubernetes.control import KubernetesControl

_RETRY_S = 0.1


class ConfigSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of config."""

    api: Annotated[
        str, msgspec.Meta(description="address of the API, HTTPS; port 0: any free one")
    ] = "127.0.0.1:15020"
    tokens: Annotated[
        str,
        msgspec.Meta(description="file of lines token,user,group|group (mode 0600); needed"),
    ] = ""
    webhooks: Annotated[
        str, msgspec.Meta(description="address of the admission webhooks on Kubernetes, HTTPS")
    ] = ""
    injection: Annotated[
        str,
        msgspec.Meta(description="file with the chart's values for injection; empty: no injection"),
    ] = ""
    webhook_names: Annotated[
        str,
        msgspec.Meta(
            description="names and addresses that the API server calls them by, comma between"
        ),
    ] = ""
    names: Annotated[
        str,
        msgspec.Meta(
            description="more DNS names and addresses of the API's certificate, comma between"
        ),
    ] = ""
    ip_families: Annotated[
        Literal["IPv4,IPv6", "IPv6,IPv4", "IPv4", "IPv6"],
        msgspec.Meta(description="families of the mesh: Services may ask for these"),
    ] = "IPv4,IPv6"
    machines_gateway: Annotated[
        str,
        msgspec.Meta(
            description="HOST:PORT at which machines that join reach the xds-gateway; empty: where "
            "it says, and on Kubernetes no machine joins"
        ),
    ] = ""


class ConfigService:
    """The API of the mesh. Any replica reads, the leader writes."""

    name: ClassVar[str] = "config"
    settings_type: ClassVar[type[msgspec.Struct]] = ConfigSettings

    def __init__(self, context: Context[ConfigSettings]) -> None:
        self._context = context
        self._tokens = Tokens(Path(context.settings.tokens))
        self._mirror = WorldMirror()
        self._history = History()
        self._mirror.subscribe(self._history.record)
        self._writer = context.model_writer()
        self._board = StatusBoard(context.cluster)
        self._feed = EventsFeed(context.cluster)
        self._receipts = Receipts(
            context.bus,
            self._board,
            lambda: self._mirror.world,
            now=context.clock.now,
            monotonic=context.clock.monotonic,
        )
        self._mirror.subscribe(self._receipts.changed)
        self._announcer = Announcer(context.bus, context.cluster, self._receipts)
        self._url = ""

    async def run(self) -> None:
        """Serve until cancelled.

        Raises:
            TokenFileError, SecretKeyError, AddressInUseError: It cannot start; the message says
                what to do.
        """
        context = self._context
        self._machines: Machines | None = None
        self._references = References()
        self._mirror.subscribe(self._references.changed)
        if context.kubernetes is None:
            self._tokens.load()
        store = Store(
            context.bus,
            self._mirror,
            self._writer,
            load_box(context.state / "secrets.key"),
            cluster=context.cluster,
            root_namespace=context.root_namespace,
            references=self._references,
            families=tuple(context.settings.ip_families.split(",")),
        )
        store.on_commit(self._receipts.record)
        store.on_commit(self._announcer.committed)
        models = self._mirror.follow(context.bus, name="config-model")
        context.admin.add_ready("model", lambda: None if models.synced else "no snapshot yet")
        context.admin.add_ready("api", lambda: None if self._url else "not listening yet")
        context.admin.add_debug("store", store.state)
        context.admin.add_debug("events", lambda: {"dropped": self._announcer.dropped})
        await self._retry(context.bus.ensure_streams)
        status = context.bus.follower(
            STATUS,
            [
                f"s.{context.cluster}.xds-gateway.*.report",
                f"s.{context.cluster}.discovery.*.progress",
            ],
            self._board,
            name="config-status",
        )
        events = context.bus.follower(
            EVENTS, [f"events.v1.{context.cluster}.>"], self._feed, name="config-events"
        )
        control = self._control(store, self._references)
        mine: list[Callable[[], Awaitable[None]]] = []
        if control is None:
            statuses = StatusWriter(
                store, self._board, self._references, context.cluster, context.clock.now
            )
            self._mirror.subscribe(statuses.changed)
            self._board.on_report(statuses.wake)
            context.admin.add_ready(
                "namespaces", lambda: None if self._has_namespaces(store.space) else "not made yet"
            )
            self._machines = self._let_in(
                StoredEntries(store, context.cluster, context.clock.now),
                Presence(context.clock.monotonic),
            )
            mine = [statuses.run, lambda: self._make_namespaces(store), self._machines.run]
        else:
            self._mirror.subscribe(control.world_changed)
            mine = [control.run]
            if context.settings.machines_gateway:
                self._machines = self._let_in(*control.machines(), control.api_name)
                mine.append(self._machines.run)
        async with asyncio.TaskGroup() as group:
            for forever in (
                models.run,
                status.run,
                events.run,
                self._writer.run,
                self._announcer.run,
                self._end_streams,
            ):
                group.create_task(forever())
            await models.wait_synced()
            content = None if control is None else control.credential
            credentials = Credentials(lambda: store.space, content)
            for subject, handler in (
                (CREDENTIAL, credentials.answer),
                (PULL_SECRET, credentials.answer_pull),
            ):
                await answer(context.bus, subject, CredentialRequest, handler, queue="config")
            for own in mine:
                group.create_task(_run(own))
            group.create_task(self._serve(store, control))

    def _let_in(self, entries: Entries, presence: Presence, api_name: str = "") -> Machines:
        context = self._context
        where = context.settings.machines_gateway
        try:
            gateway = split_address(where) if where else None
        except ValueError as error:
            raise SettingsError(f"config.machines_gateway: {error}") from error
        revision = "" if context.revision == DEFAULT_REVISION else context.revision
        suffix = f"-{revision}" if revision else ""
        machines = Machines(
            entries,
            presence,
            self._mirror,
            context.bus,
            cluster=context.cluster,
            trust_domain=context.trust_domain,
            gateway_name=f"xds-gateway{suffix}.{context.root_namespace}.svc",
            gateway=gateway,
            api_name=api_name,
        )
        context.admin.add_debug("machines", machines.state)
        return machines

    def _control(self, store: Store, references: References) -> "KubernetesControl | None":
        """What it does for a cluster; None without one."""
        context, settings = self._context, self._context.settings
        if context.kubernetes is None:
            return None
        # Imported here: without Kubernetes nobody pays for its client.
        from meshbus_config.kubernetes.control import KubernetesControl

        return KubernetesControl(
            context,
            context.kubernetes,
            store,
            self._board,
            references,
            webhooks=settings.webhooks,
            machines=_parts(settings.names) if settings.machines_gateway else None,
            names=_parts(settings.webhook_names),
            injection=settings.injection,
        )

    async def _serve(self, store: Store, control: "KubernetesControl | None") -> None:
        context, settings = self._context, self._context.settings
        names = _parts(settings.names)
        host, _ = split_address(settings.api)
        names += [] if host in ("", "0.0.0.0", "::") else [host]  # noqa: S104 - compared, not bound
        # Machines outside know the roots of the mesh, and no certificate of a pod's own.
        tls = None if control is None else await control.api_tls()
        files = ensure_certificate(context.state, names, context.clock.now())
        sock = bind(settings.api, "config.api")
        address = bound_address(sock)
        resources = Resources(
            store, self._history, now=context.clock.now, monotonic=context.clock.monotonic
        )
        users: Users = self._tokens if control is None else control.users
        if self._machines is not None:
            users = MachineUsers(
                users,
                lambda: self._mirror.world,
                context.cluster,
                context.trust_domain,
                context.clock.now,
            )
        app = make_app(
            users=users,
            machines=self._machines,
            objects=control is None,
            resources=resources,
            bulk=Bulk(store, context.clock.now),
            mesh=MeshApi(context.bus, self._board, self._receipts, self._feed, context.clock.now),
            authorization=AuthorizationApi(
                context.bus, lambda: self._mirror.world, context.cluster, context.clock.now
            ),
            announcer=self._announcer,
            metrics=Metrics(context.metrics, resources),
            version=version("meshbus"),
            address=lambda: address,
        )
        url = f"https://{address}"
        write_file(
            context.state / "api.json",
            msgspec.json.encode({"url": url, "ca": "" if tls else str(files.ca)}) + b"\n",
            0o600,
        )
        self._url = url
        context.log.info("listening", what="api", address=address, url=url)
        if tls is not None:
            await serve_http(app, sock, tls=tls)
        await serve_http(app, sock, cert=files.certificate, key=files.key)

    async def _end_streams(self) -> None:
        """Let watchers go when the service stops: a server waits for open answers."""
        try:
            await asyncio.Event().wait()
        finally:
            self._history.close()
            self._feed.close()

    def _permanent(self) -> Sequence[str]:
        return list(dict.fromkeys([*PERMANENT_NAMESPACES, self._context.root_namespace]))

    def _has_namespaces(self, space: Space) -> bool:
        info = namespace_kind()
        return all(space.get(info, "", name) is not None for name in self._permanent())

    async def _make_namespaces(self, store: Store) -> None:
        """Make the namespaces that always exist, whenever this replica leads and one is missing."""
        clock, info = self._context.clock, namespace_kind()

        def plan(space: Space) -> list[Plan]:
            intent = Intent("meshbus", clock.now(), lambda: str(uuid4()))
            return [
                operations.create(space, info, "", {"metadata": {"name": name}}, intent)
                for name in self._permanent()
                if space.get(info, "", name) is None
            ]

        while True:
            await self._writer.wait_leading()
            if not self._has_namespaces(store.space):
                try:
                    await store.write(plan, user="system:meshbus")
                except ApiError as error:
                    self._context.log.info("namespaces not made yet", error=error.message)
            await clock.sleep(_RETRY_S if not self._has_namespaces(store.space) else 10.0)

    async def _retry(self, action: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await action()
            except BusError as error:
                self._context.log.info("the bus is not there yet", error=str(error))
                await self._context.clock.sleep(_RETRY_S)
            else:
                return


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


async def _run(action: Callable[[], Awaitable[None]]) -> None:
    await action()
