"""The xds-gateway: compiles the model for the proxies that are connected to it and delivers it."""

import asyncio
import ipaddress
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from meshbus.api.addresses import is_ip
from meshbus.bus.interface import STATUS, BusError
from meshbus.bus.mirror import WorldMirror
from meshbus.model.keys import Key
from meshbus.model.revisions import view_of
from meshbus.model.rows import ServiceAddress
from meshbus.runtime.first_uses import FirstUses
from meshbus.runtime.http import AddressInUseError
from meshbus.runtime.identity import ServingIdentity
from meshbus.runtime.service import Context
from meshbus.runtime.settings import SettingsError
from meshbus_xds_gateway.carrier import CarrierError, Certificate, Tls
from meshbus_xds_gateway.carrier_choice import make_carrier, read_ticket_keys
from meshbus_xds_gateway.classes import NOT_COMPILED
from meshbus_xds_gateway.fleet import Fleet
from meshbus_xds_gateway.load import Load, LoadLimits, memory_limit
from meshbus_xds_gateway.metrics import GatewayMetrics
from meshbus_xds_gateway.nacks import announce
from meshbus_xds_gateway.questions import Questions
from meshbus_xds_gateway.reporting import report
from meshbus_xds_gateway.streams import StreamLimits, XdsServer
from meshbus_xds_gateway.verdicts import Refusal

_RETRY_S = 0.5
_UNPROVED = "a listener for load tests takes proxies for what they say they are, without tokens"
_EVENTS_QUEUED = 256


def _about(text: str, **limits: Any) -> msgspec.Meta:
    return msgspec.Meta(description=text, **limits)


class XdsGatewaySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of the xds-gateway."""

    listen: Annotated[str, _about("HOST:PORT of ADS over TLS; port 0: any")] = "127.0.0.1:15012"
    names: Annotated[str, _about("further DNS names that proxies call it by, comma between")] = ""
    plaintext: Annotated[
        str, _about("HOST:PORT on loopback of ADS without TLS and tokens; empty: none")
    ] = ""
    tls_without_tokens: Annotated[
        str, _about("HOST:PORT on loopback of ADS with TLS and without tokens; empty: none")
    ] = ""
    leaf_ttl_s: Annotated[
        int, _about("life of the certificates of workloads in seconds", ge=60)
    ] = 3600
    stream_age_s: Annotated[
        float, _about("about when a stream ends and is opened anew, in seconds", ge=10)
    ] = 2700.0
    max_streams: Annotated[int, _about("streams at one time", ge=1)] = 10_000
    shed_above: Annotated[
        float,
        _about("share of a core above which streams that others have room for go there", ge=0),
    ] = 0.8
    memory_limit_mb: Annotated[
        int, _about("memory of the process, no new streams above 90 %; 0: what it may have", ge=0)
    ] = 0
    transport: Annotated[
        Literal["auto", "grpc", "native"],
        _about("what moves bytes: native (the extension), grpc, or native where it is installed"),
    ] = "auto"
    ticket_keys: Annotated[
        str,
        _about("file of keys of TLS tickets that replicas share; see docs/adr/0011-transport.md"),
    ] = ""
    workers: Annotated[
        int, _about("processes that share the ports, one core's work each", ge=1, le=256)
    ] = 1
    reuse_port: Annotated[bool, _about("other processes listen on the same port too")] = False


class XdsGatewayService:
    """Delta and state-of-the-world ADS with SDS on the same stream."""

    name: ClassVar[str] = "xds-gateway"
    settings_type: ClassVar[type[msgspec.Struct]] = XdsGatewaySettings
    shared_ports: ClassVar[tuple[str, ...]] = ("listen", "plaintext", "tls_without_tokens")

    def __init__(self, context: Context[XdsGatewaySettings]) -> None:
        self._context = context
        self._metrics = GatewayMetrics(context.metrics)
        self._mirror = WorldMirror(NOT_COMPILED, view_of(context.revision))
        self._refused: asyncio.Queue[tuple[Refusal, frozenset[Key]]] = asyncio.Queue(_EVENTS_QUEUED)
        self.port: int | None = None
        """Of the TLS listener, once it listens."""
        self.plaintext_port: int | None = None
        """Of the plaintext listener."""
        self.tls_without_tokens_port: int | None = None
        """Of the listener with TLS that asks for no tokens."""

    async def run(self) -> None:
        """Until cancelled.

        Raises:
            SettingsError: An address is none, or may not be used.
            AddressInUseError: It cannot be listened on.
        """
        settings = self._context.settings
        host = _host_of(settings.listen, "LISTEN")
        for name, address in (
            ("PLAINTEXT", settings.plaintext),
            ("TLS_WITHOUT_TOKENS", settings.tls_without_tokens),
        ):
            if address and not _is_loopback(_host_of(address, name)):
                raise SettingsError(
                    f"MESHBUS_XDS_GATEWAY_{name}: only a loopback address may be without "
                    f"authentication, not {address}"
                )
        try:
            await self._serve(host)
        except BaseExceptionGroup as group:
            # Told as it is, not as a group of one.
            in_use = group.subgroup(AddressInUseError)
            if in_use is not None:
                raise in_use.exceptions[0] from None
            raise

    async def _serve(self, host: str) -> None:
        context, settings = self._context, self._context.settings
        async with asyncio.TaskGroup() as tasks:
            fleet = Fleet(context, self._metrics, tasks, settings.leaf_ttl_s)
            fleet.follow(self._mirror)
            questions = Questions(context, fleet)
            context.admin.add_ready(
                "model", lambda: None if fleet.synced else "the model has not been read yet"
            )
            context.admin.add_ready(
                "listener", lambda: None if self.port is not None else "not listening yet"
            )
            context.admin.add_debug("proxies", questions.debug_proxies)
            context.admin.add_debug("quarantine", questions.debug_quarantine)
            fleet.quarantines.on_verdict(self._note_refusal)
            follower = self._mirror.follow(context.bus, name=context.pod)
            tasks.create_task(follower.run())
            tasks.create_task(fleet.run())
            load = self._load()
            load_follower = context.bus.follower(STATUS, load.subjects, load, name=context.pod)
            tasks.create_task(load_follower.run())
            servers: list[XdsServer] = []
            tasks.create_task(report(context, fleet, load, servers))
            tasks.create_task(self._announce())
            await questions.serve()
            await follower.wait_synced()
            limits = StreamLimits(settings.stream_age_s, settings.max_streams)
            try:
                if settings.plaintext:
                    server = self._server(fleet, limits, load, None)
                    servers.append(server)
                    self.plaintext_port = await self._start(
                        server, settings.plaintext, None, "PLAINTEXT"
                    )
                    context.log.warning(f"{_UNPROVED}, without TLS", port=self.plaintext_port)
                first_uses = FirstUses(context.bus, context.cluster, self.name, context.clock)
                tasks.create_task(first_uses.run())
                identity = self._identity(host)
                tasks.create_task(identity.run())
                await identity.ready()
                tls = Tls(
                    Certificate(*identity.key_and_chain_pem),
                    ticket_keys=self._ticket_keys(),
                )
                if settings.tls_without_tokens:
                    server = self._server(fleet, limits, load, None)
                    servers.append(server)
                    self.tls_without_tokens_port = await self._start(
                        server, settings.tls_without_tokens, tls, "TLS_WITHOUT_TOKENS"
                    )
                    self._keep_current(server, identity)
                    context.log.warning(_UNPROVED, port=self.tls_without_tokens_port)
                server = self._server(fleet, limits, load, first_uses)
                servers.append(server)
                self.port = await self._start(server, settings.listen, tls, "LISTEN")
                self._keep_current(server, identity)
                context.log.info("listening", host=host, port=self.port)
                await self._advertise(tasks, host, self.port)
                await asyncio.get_running_loop().create_future()
            finally:
                for server in servers:
                    await server.stop()

    def _keep_current(self, server: XdsServer, identity: ServingIdentity) -> None:
        """Give a listener with TLS newer certificates and ticket keys as they come."""
        context = self._context
        if context.worker is not None and not context.settings.ticket_keys:
            context.worker.on_ticket_keys(server.rotate_tickets)
        identity.on_renewal(lambda *pair: server.renew(Certificate(*pair)))

    def _load(self) -> Load:
        context = self._context
        settings, worker = context.settings, context.worker
        memory = memory_limit(settings.memory_limit_mb, worker.workers if worker else 1)
        limits = LoadLimits(settings.shed_above, memory)
        return Load(context.cluster, context.pod, limits, context.clock.monotonic)

    def _server(
        self, fleet: Fleet, limits: StreamLimits, load: Load, first_uses: FirstUses | None
    ) -> XdsServer:
        return XdsServer(
            self._context,
            fleet,
            self._metrics,
            limits,
            make_carrier(self._context.settings.transport),
            load,
            first_uses=first_uses,
            refused=self._note_refusal,
        )

    async def _start(self, server: XdsServer, listen: str, tls: Tls | None, setting: str) -> int:
        try:
            return await server.start(listen, tls, reuse_port=self._context.settings.reuse_port)
        except CarrierError as error:
            raise AddressInUseError(
                f"MESHBUS_XDS_GATEWAY_{setting}: {listen} cannot be listened on; is the port in "
                f"use? ({error})"
            ) from error

    def _ticket_keys(self) -> tuple[bytes, ...]:
        """Those of the file; else those that the workers of this machine share."""
        keys = read_ticket_keys(self._context.settings.ticket_keys)
        worker = self._context.worker
        return keys if keys or worker is None else worker.ticket_keys

    def _further_names(self) -> list[str]:
        names = self._context.settings.names.split(",")
        return [name.strip() for name in names if name.strip()]

    def _identity(self, host: str) -> ServingIdentity:
        context = self._context
        base = f"{self.name}.{context.root_namespace}.svc"
        return ServingIdentity(
            context,
            f"spiffe://{context.trust_domain}/ns/{context.root_namespace}/sa/meshbus-{self.name}",
            [base, f"{base}.cluster.local", "localhost", *self._further_names()],
            [host] if is_ip(host) and not ipaddress.ip_address(host).is_unspecified else [],
        )

    def _note_refusal(self, refusal: Refusal, objects: frozenset[Key]) -> None:
        try:
            self._refused.put_nowait((refusal, objects))
        except asyncio.QueueFull:
            # The report still has it; only the event is lost.
            self._context.log.warning("event dropped", resource=refusal.resource.name)

    async def _announce(self) -> None:
        while True:
            await announce(self._context, *await self._refused.get())

    async def _advertise(self, tasks: asyncio.TaskGroup, host: str, port: int) -> None:
        """Write where proxies reach the gateway; the leader of the replicas does."""
        context = self._context
        writer = context.model_writer()
        tasks.create_task(writer.run())
        key = Key(context.cluster, "mesh", "addresses", "", self.name)
        row = ServiceAddress(self.name, host, port)

        async def keep() -> None:
            while True:
                await writer.wait_leading()
                try:
                    if self._mirror.world.get(key) != row:
                        await writer.commit([(key, row)])
                except BusError as error:
                    context.log.warning("address not written", error=str(error))
                    await context.clock.sleep(_RETRY_S)
                    continue
                await context.clock.sleep(10)

        tasks.create_task(keep())


def _host_of(listen: str, setting: str) -> str:
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdigit() or not host:
        raise SettingsError(f"MESHBUS_XDS_GATEWAY_{setting}: HOST:PORT is needed, not {listen!r}")
    return host.strip("[]")


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (is_ip(host) and ipaddress.ip_address(host).is_loopback)
