"""gRPC servers that proxies call: mutual TLS, a certificate of the mesh on both sides.

Where the server is reached is a row of `mesh.addresses`, from which compile makes the cluster
`meshbus-<service>`.
"""

import asyncio
import contextlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from cryptography import x509

from meshbus.bus.interface import BusError
from meshbus.bus.mirror import WorldMirror
from meshbus.bus.writer import ModelWriter
from meshbus.model.keys import Key, escape_token
from meshbus.model.rows import ServiceAddress, Trust
from meshbus.runtime.identity import ServingIdentity
from meshbus.runtime.service import Context
from meshbus.runtime.settings import SettingsError

MAX_MESSAGE_BYTES = 4 << 20
STOP_S = 2.0
LOOK_S = 5.0
"""How often the own row is looked at, besides each time it changes."""
RETRY_S = 0.5
_WORKLOAD = re.compile(r"spiffe://([^/]+)/ns/([^/]+)/sa/([^/]+)")


def host_and_port(text: str, setting: str) -> tuple[str, int]:
    """The parts of `HOST:PORT`.

    Raises:
        SettingsError: It is not so; `setting` names it.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise SettingsError(f"{setting}: HOST:PORT is needed, not {text!r}")
    return host.strip("[]"), int(port)


async def require_workload(call: Any, trust_domain: str, trust: Trust | None = None) -> str:
    """The SPIFFE id of who calls; ends the call unless it is a workload of the mesh whose
    certificate is not revoked.

    TLS has already proved that a root of the mesh vouches for the certificate.
    """
    if trust is not None and trust.revoked and _serial(call) in {c.serial for c in trust.revoked}:
        await call.abort(grpc.StatusCode.PERMISSION_DENIED, "the certificate is revoked")
    for name in call.auth_context().get("x509_subject_alternative_name", ()):
        found = _WORKLOAD.fullmatch(name.decode(errors="replace"))
        if found and found[1] == trust_domain:
            return found[0]
    await call.abort(
        grpc.StatusCode.PERMISSION_DENIED, f"no workload of the trust domain {trust_domain}"
    )
    raise AssertionError("abort raises")


def _serial(call: Any) -> str:
    """Of the certificate that a caller shows, hex."""
    for pem in call.auth_context().get("x509_pem_cert", ()):
        return f"{x509.load_pem_x509_certificate(bytes(pem)).serial_number:x}"
    return ""


class ProxyServer:
    """Serves until cancelled, and says where in `mesh.addresses`.

    It begins when the mirror has a whole world and the ca has signed a certificate; from then on it
    goes on from the last world when the bus is away.
    """

    def __init__(
        self,
        context: Context[Any],
        mirror: WorldMirror,
        *,
        reads: Sequence[str],
        listen: str,
        advertise: str,
        register: Callable[[Any], None],
    ) -> None:
        """
        Args:
            mirror: Follows `mesh`, `sec` and what `reads` names: `reg`, `reg.workloads`, ...
            listen: HOST:PORT; port 0: any.
            advertise: HOST:PORT that proxies call; empty: what was bound.
            register: Adds the services to the gRPC server.
        Raises:
            SettingsError: Not HOST:PORT.
        """
        prefix = f"MESHBUS_{context.name.upper()}"
        cluster = escape_token(context.cluster)
        self._subjects = [f"m.{cluster}.{part}.>" for part in ("mesh", "sec", *reads)]
        self._context = context
        self._mirror = mirror
        self._listen = host_and_port(listen, f"{prefix}_LISTEN")
        self._advertise = host_and_port(advertise, f"{prefix}_ADVERTISE") if advertise else None
        self._register = register
        self._key = Key(context.cluster, "mesh", "addresses", "", context.name)
        self._moved = asyncio.Event()
        self.port = 0
        """What was bound; 0 before."""
        self.writer = context.model_writer()
        """Of the service's rows; runs while this does."""
        self._synced = asyncio.Event()
        mirror.subscribe(lambda _world, _touched: self._moved.set())

    @property
    def trust(self) -> Trust | None:
        """What callers are checked with."""
        context = self._context
        row = self._mirror.world.get(Key(context.cluster, "sec", "trust", "", context.trust_domain))
        return row if isinstance(row, Trust) else None

    def not_ready(self) -> str | None:
        """Why proxies cannot reach it yet."""
        if self.port == 0:
            return "it does not listen yet: it waits for the bus and for a certificate"
        if self._mirror.world.get(self._key) is None:
            return "its address is not in the model yet"
        return None

    async def wait_synced(self) -> None:
        """Until the mirror has a whole world."""
        await self._synced.wait()

    async def run(self) -> None:
        """Until cancelled."""
        context = self._context
        identity = ServingIdentity(
            context,
            f"spiffe://{context.trust_domain}/ns/{context.root_namespace}/sa/meshbus-{context.name}",
            [f"{context.name}.{context.root_namespace}.svc"],
        )
        follower = self._mirror.follow(context.bus, self._subjects, name=context.pod)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(follower.run())
            tasks.create_task(identity.run())
            tasks.create_task(self.writer.run())
            await follower.wait_synced()
            self._synced.set()
            await identity.ready()
            server = self._made(identity)
            await server.start()
            context.log.info("listening", address=f"{self._listen[0]}:{self.port}")
            try:
                await self._keep_address(self.writer)
            finally:
                await server.stop(STOP_S)

    def _made(self, identity: ServingIdentity) -> Any:
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_concurrent_streams", 1000),
                ("grpc.so_reuseport", 0),
            ]
        )
        self._register(server)
        host, port = self._listen
        bracketed = f"[{host}]" if ":" in host else host
        credentials = identity.grpc_credentials(require_client=True)
        try:
            self.port = server.add_secure_port(f"{bracketed}:{port}", credentials)
        except RuntimeError as error:
            raise SettingsError(f"cannot listen on {host}:{port}: {error}") from error
        return server

    async def _keep_address(self, writer: ModelWriter) -> None:
        host, port = self._advertise or (self._listen[0], self.port)
        row = ServiceAddress(self._context.name, host, port or self.port)
        while True:
            self._moved.clear()
            await writer.wait_leading()
            if self._mirror.world.get(self._key) != row:
                try:
                    sequence = await writer.commit([(self._key, row)])
                except BusError as error:
                    self._context.log.warning("address not written", error=str(error))
                    await self._context.clock.sleep(RETRY_S)
                    continue
                await self._mirror.reached(sequence, LOOK_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._moved.wait()
