"""What config does for a cluster: follow its objects, write their statuses, answer its webhooks."""

import asyncio
import gc
import ssl
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from meshbus.api.addresses import is_ip
from meshbus.kube.lease import KubeLease
from meshbus.kube.reviews import Reviews
from meshbus.model.keys import Key
from meshbus.model.requests import CredentialReply, CredentialRequest
from meshbus.model.rows import ConfigObject, Trust, edition
from meshbus.model.world import Query, World
from meshbus.runtime.calls import CallError
from meshbus.runtime.events import publish_event
from meshbus.runtime.http import bind, bound_address, serve_http
from meshbus.runtime.identity import ServingIdentity
from meshbus.runtime.kubernetes import Kubernetes
from meshbus.runtime.process import write_json
from meshbus.runtime.sealed import seal
from meshbus.runtime.service import Context
from meshbus_config.kubernetes.api_users import ReviewedUsers
from meshbus_config.kubernetes.ca_bundles import CaBundles
from meshbus_config.kubernetes.following import Following
from meshbus_config.kubernetes.ingress_statuses import IngressStatuses
from meshbus_config.kubernetes.injecting import Injecting, patches_bootstrap
from meshbus_config.kubernetes.machine_entries import ClusterEntries
from meshbus_config.kubernetes.machine_presence import SharedPresence
from meshbus_config.kubernetes.proxy_files import ProxyFiles
from meshbus_config.kubernetes.statuses import StatusWriting
from meshbus_config.kubernetes.tenants import Tenants
from meshbus_config.kubernetes.validating import Validating
from meshbus_config.kubernetes.webhooks import AdmissionRequest, Handler, tls_of, webhook_app
from meshbus_config.kubernetes.writing import Authors, Writing
from meshbus_config.references import References
from meshbus_config.status_board import StatusBoard
from meshbus_config.store import Store

VALIDATE = "/validate"
INJECT = ("/inject", "/inject/{settings:path}")
_NO_MESH_CONFIG: Mapping[str, object] = {}


class KubernetesControl:
    """The parts, put together. `run` it in the service's task group."""

    def __init__(
        self,
        context: Context[Any],
        kubernetes: Kubernetes,
        store: Store,
        board: StatusBoard,
        references: References,
        *,
        webhooks: str,
        names: list[str],
        injection: str = "",
        machines: Sequence[str] | None = None,
    ) -> None:
        """
        Args:
            webhooks: Address of the webhooks; empty: none are served.
            names: DNS names and addresses that the API server calls them by.
            injection: File with the chart's values for injection; empty: pods are not injected.
            machines: Machines outside join, and reach the API at these addresses, or at others by
                the name of its Service; None: they do not.
        """
        self._context = context
        self._kubernetes = kubernetes
        self._store = store
        clock = context.clock
        authors = Authors()
        self._following = Following(kubernetes, context.cluster, self._changed, context.metrics)
        self._tenants = Tenants(self._following)
        self._writing = Writing(
            store,
            self._following,
            authors=authors,
            now=clock.now,
            tenants=self._tenants,
        )
        suffix = "" if kubernetes.revision == "default" else f"-{kubernetes.revision}"
        self._lease = KubeLease(
            kubernetes.client,
            namespace=kubernetes.namespace,
            name=f"meshbus-config{suffix}",
            holder=context.pod,
            now=clock.now,
            monotonic=clock.monotonic,
        )
        self._ingresses = IngressStatuses(kubernetes.client, self._following, context.cluster)
        self._statuses = StatusWriting(
            kubernetes.client,
            self._lease,
            self._following,
            store,
            board,
            references,
            self._ingresses,
            cluster=context.cluster,
            now=clock.now,
            tenants=self._tenants,
        )
        board.on_report(self._statuses.wake)
        self.users = ReviewedUsers(Reviews(kubernetes.client, clock.monotonic))
        validating = Validating(
            self._following.revisions, authors, self._tenants.refusal_of_new, self._rejected
        )
        self.handlers: dict[str, Handler] = {VALIDATE: validating.answer}
        """Webhooks by path; those added before `run` are served too."""
        self._world: World | None = None
        self._files: ProxyFiles | None = None
        if injection:
            injecting = Injecting(
                injection,
                root_namespace=context.root_namespace,
                mesh=self._mesh_config,
                proxy_configs=lambda: self._in_force("proxyconfigs"),
                bootstrap_filters=self._bootstrap_filters,
                notes_of=self._following.annotations_of,
            )
            self.handlers |= dict.fromkeys(INJECT, injecting.answer)
            self._files = ProxyFiles(
                kubernetes,
                namespaces=self._following.namespaces,
                roots=self._roots,
                leads=lambda: self._lease.held,
                log=context.log,
            )
            context.admin.add_ready("injection", injecting.why_not_ready)
        self._webhooks = webhooks
        self._webhook_names = names
        self._api: ServingIdentity | None = None
        if machines is not None:
            self._api = self._identity([self.api_name, "localhost", *filter(is_ip, machines)])
        self._rejections: asyncio.Queue[tuple[AdmissionRequest, str]] = asyncio.Queue(1000)
        self._url = ""
        admin = context.admin
        admin.add_ready("kubernetes", self._following.why_not_ready)
        if webhooks:
            admin.add_ready("webhooks", lambda: None if self._url else "no certificate yet")
        admin.add_debug("kubernetes", self._following.state)
        admin.add_debug(
            "statuses",
            lambda: {
                "leading": self._lease.held,
                "written": self._statuses.written,
                "looks": self._statuses.looks,
            },
        )

    @property
    def following(self) -> Following:
        """What the cluster has."""
        return self._following

    def machines(self) -> tuple[ClusterEntries, SharedPresence]:
        """Where entries of machines are kept, and who knows of whom."""
        context = self._context
        entries = ClusterEntries(
            self._kubernetes.client,
            self._following,
            self._lease,
            lambda: self._store.space.world,
            cluster=context.cluster,
            revision=self._kubernetes.revision,
            now=context.clock.now,
        )
        presence = SharedPresence(
            context.bus,
            cluster=context.cluster,
            pod=context.pod,
            monotonic=context.clock.monotonic,
        )
        return entries, presence

    @property
    def api_name(self) -> str:
        """The DNS name that the API's certificate proves, where machines outside join."""
        return f"config.{self._context.root_namespace}.svc"

    async def api_tls(self) -> ssl.SSLContext | None:
        """What the API shows, once there is a certificate of the mesh; None: one of its own."""
        if self._api is None:
            return None
        await self._api.ready()
        return tls_of(self._api)

    def world_changed(self, world: World, touched: frozenset[Query]) -> None:
        """The next world: a subscriber of the mirror."""
        self._world = world
        self._ingresses.changed(world, touched)
        self._statuses.world_changed(touched)
        if self._files is not None:
            self._files.wake()

    def _mesh_config(self) -> Mapping[str, object]:
        mesh = self._following.mesh
        return mesh.spec if mesh is not None else _NO_MESH_CONFIG

    def _in_force(self, plural: str) -> list[ConfigObject]:
        return [
            judged.row
            for judged in self._following.objects.of_table(f"cfg.{plural}").values()
            if not judged.problems and self._following.revisions.is_ours(judged.row.labels)
        ]

    def _bootstrap_filters(self) -> list[ConfigObject]:
        return [row for row in self._in_force("envoyfilters") if patches_bootstrap(row)]

    def _roots(self) -> str:
        """Certificates that prove the gateway; empty: not known yet."""
        if self._world is None:
            return ""
        key = Key(self._context.cluster, "sec", "trust", "", self._context.trust_domain)
        row = self._world.get(key)
        return row.roots_pem if isinstance(row, Trust) else ""

    def _changed(self) -> None:
        self._writing.wake()
        self._statuses.wake()
        if self._files is not None:
            self._files.wake()

    def _rejected(self, request: AdmissionRequest, message: str) -> None:
        if not self._rejections.full():
            self._rejections.put_nowait((request, message))

    async def credential(self, request: CredentialRequest) -> CredentialReply:
        """The data of a Secret that an object of the mesh names, sealed to a key of the asker.

        Raises:
            CallError: There is no such Secret, or nobody names it; the key cannot be used.
        """
        key = Key(self._context.cluster, "cfg", "secrets", request.namespace, request.name)
        secret = self._following.credentials.get(key)
        if secret is None:
            raise CallError(
                "not-found", f"no Secret {request.namespace}/{request.name} is followed"
            )
        try:
            sealed = seal(request.public_key, msgspec.json.encode(secret.data))
            return CredentialReply(sealed, edition(secret.row))
        except ValueError as error:
            raise CallError("invalid", f"public_key: {error}") from error

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._following.run())
            group.create_task(self._writing.run())
            group.create_task(self._lease.run())
            group.create_task(self._statuses.run())
            group.create_task(self._tell_rejections())
            if self._api is not None:
                group.create_task(self._api.run())
            if self._files is not None:
                group.create_task(self._files.run())
            if self._webhooks:
                group.create_task(self._serve_webhooks(group))

    def _identity(self, names: list[str]) -> ServingIdentity:
        context = self._context
        account = f"ns/{context.root_namespace}/sa/meshbus-config"
        spiffe_id = f"spiffe://{context.trust_domain}/{account}"
        return ServingIdentity(context, spiffe_id, *_names_and_addresses(names))

    async def _serve_webhooks(self, group: asyncio.TaskGroup) -> None:
        context = self._context
        identity = self._identity(self._webhook_names)
        bundles = CaBundles(self._kubernetes, lambda: identity.roots_pem, context.log)
        identity.on_renewal(lambda key, chain: bundles.wake())
        group.create_task(identity.run())
        sock = bind(self._webhooks, "config.webhooks")
        await identity.ready()
        group.create_task(bundles.run())
        address = bound_address(sock)
        self._url = f"https://{address}"
        context.log.info("listening", what="webhooks", address=address)
        write_json(context.state / "webhooks.json", {"url": self._url, "ca": identity.roots_pem})
        # What is there now stays: walking it took tens of milliseconds of single admissions.
        gc.collect()
        gc.freeze()
        await serve_http(webhook_app(self.handlers, context.metrics), sock, tls=tls_of(identity))

    async def _tell_rejections(self) -> None:
        while True:
            request, message = await self._rejections.get()
            data: Mapping[str, object] = {
                "user": request.user.username,
                "message": message[:2000],
                "operation": request.operation,
            }
            await publish_event(
                self._context.bus,
                self._context.cluster,
                request.kind.kind,
                request.namespace,
                request.name or "-",
                "rejected",
                dict(data),
            )


def _names_and_addresses(names: list[str]) -> tuple[list[str], list[str]]:
    """DNS names, and addresses."""
    addresses = [name for name in names if is_ip(name)]
    return [name for name in names if name not in addresses], addresses
