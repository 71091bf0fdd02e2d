"""The streams of proxies: a thin shell of gRPC around sessions.

Bytes in, bytes out: the server has no serializers. One task reads, one writes; the writer asks the
session for one response at a time, so that a slow proxy holds nothing but its own stream.
"""

import asyncio
import contextlib
import random
from collections import Counter as Count
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from grpc import aio

from meshbus.compile.proxy_keys import proxy_of_instance
from meshbus.compile.resources import SHORT_NAMES
from meshbus.model.keys import Key
from meshbus.runtime.service import Context
from meshbus_xds_gateway.delta import DeltaProtocol
from meshbus_xds_gateway.fleet import CannotServeError, Client, Fleet
from meshbus_xds_gateway.metrics import GatewayMetrics
from meshbus_xds_gateway.node import (
    Identity,
    Node,
    RefusedError,
    check_node,
    identity_of_token,
    keys_of_node,
    node_of,
)
from meshbus_xds_gateway.session import Session
from meshbus_xds_gateway.session_state import ProtocolError
from meshbus_xds_gateway.sotw import SotwProtocol
from meshbus_xds_gateway.verdicts import Refusal

SERVICE = "/envoy.service.discovery.v3.AggregatedDiscoveryService/"
_PROTOCOLS: dict[str, type[DeltaProtocol] | type[SotwProtocol]] = {
    SERVICE + "DeltaAggregatedResources": DeltaProtocol,
    SERVICE + "StreamAggregatedResources": SotwProtocol,
}
MAX_REQUEST_BYTES = 16 * 1024 * 1024
"""A proxy that reconnects uploads a name and a version of everything it has."""
STREAMS_PER_IDENTITY = 4
"""More than one: an old stream may linger while the proxy has opened the next."""
FIRST_REQUEST_S = 15.0
WORKLOAD_S = 20.0
"""How long a proxy that is quicker than discovery waits for its row."""
REQUESTS_PER_S = 500
REQUESTS_BURST = 5000
_AGE_JITTER = 0.2
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", 32 * 1024),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Envoys ping each 30 s; a little sooner is no flood.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.so_reuseport", 0),
)


@dataclass(frozen=True)
class StreamLimits:
    """What a stream is allowed."""

    age_s: float
    """A stream ends at about this age and opens again: with its newest token, at any replica."""
    max_streams: int


class XdsServer(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Serves ADS on one listener. `authenticated` False: a proxy is what its node says."""

    def __init__(
        self,
        context: Context[Any],
        fleet: Fleet,
        metrics: GatewayMetrics,
        limits: StreamLimits,
        *,
        authenticated: bool,
        refused: Callable[[Refusal], None],
    ) -> None:
        self._context = context
        self._fleet = fleet
        self._metrics = metrics
        self._limits = limits
        self._authenticated = authenticated
        self._refused = refused
        self._open: Count[str] = Count()
        self._server: Any = None

    async def start(self, listen: str, credentials: grpc.ServerCredentials | None) -> int:
        """Listen; gives the port.

        Raises:
            RuntimeError: The address cannot be bound.
        """
        self._server = aio.server(
            handlers=[self], options=_OPTIONS, maximum_concurrent_rpcs=self._limits.max_streams
        )
        if credentials is None:
            port = self._server.add_insecure_port(listen)
        else:
            port = self._server.add_secure_port(listen, credentials)
        await self._server.start()
        return int(port)

    async def stop(self) -> None:
        """End every stream; proxies keep what they have and look for another replica."""
        if self._server is not None:
            await self._server.stop(0.1)

    def service(self, handler_call_details: Any) -> Any:
        """How gRPC finds the handler of a method."""
        protocol = _PROTOCOLS.get(handler_call_details.method)
        if protocol is None:
            return None

        async def serve(_: Any, call: Any) -> None:
            await self._serve(call, protocol)

        return grpc.stream_stream_rpc_method_handler(serve)

    async def _serve(self, call: Any, protocol: type[DeltaProtocol] | type[SotwProtocol]) -> None:
        outcome = "ended"
        try:
            await self._stream(call, protocol)
        except RefusedError as error:
            outcome = "refused"
            self._context.log.warning("stream refused", peer=call.peer(), reason=str(error))
            await call.abort(grpc.StatusCode[error.code], str(error))
        except ProtocolError as error:
            outcome = "broken"
            self._context.log.warning("stream broken", peer=call.peer(), reason=str(error))
            await call.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except CannotServeError as error:
            outcome = "unavailable"
            self._context.log.warning("stream not served", peer=call.peer(), reason=str(error))
            await call.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        finally:
            self._metrics.streams.labels(outcome).inc()

    async def _stream(self, call: Any, protocol: type[DeltaProtocol] | type[SotwProtocol]) -> None:
        now = self._context.clock.now()
        identity = None
        if self._authenticated:
            metadata = {key.lower(): value for key, value in call.invocation_metadata() or ()}
            authorization = str(metadata.get("authorization", ""))
            identity = identity_of_token(authorization, self._fleet.trust, now)
        try:
            async with asyncio.timeout(FIRST_REQUEST_S):
                data = await call.read()
        except TimeoutError:
            raise ProtocolError("no request came") from None
        if data is aio.EOF:
            return
        request = protocol.decode(data)
        node = node_of(request.node)
        client = await self._client(node, identity)
        if self._open[client.id] >= STREAMS_PER_IDENTITY:
            raise RefusedError(
                "RESOURCE_EXHAUSTED", f"{client.id} has {STREAMS_PER_IDENTITY} streams already"
            )
        self._open[client.id] += 1
        try:
            self._fleet.join(client)
            try:
                ends = self._ends_in(identity, now)
                await self._talk(call, client, protocol(client.session), request, ends)
            finally:
                self._fleet.leave(client)
        finally:
            self._open[client.id] -= 1
            if not self._open[client.id]:
                del self._open[client.id]

    async def _client(self, node: Node, identity: Identity | None) -> Client:
        context = self._context
        if identity is None:
            keys = keys_of_node(node)
            account = workload = None
        else:
            check_node(node, identity)
            workload = Key(
                context.cluster, "reg", "workloads", identity.namespace, identity.instance
            )
            row = await self._fleet.workload(workload, WORKLOAD_S)
            if (row.service_account or "default") != identity.service_account:
                raise RefusedError(
                    "PERMISSION_DENIED",
                    f"the token is of service account {identity.service_account}, "
                    f"{row.name} runs as {row.service_account or 'default'}",
                )
            keys = proxy_of_instance(row)
            account = (identity.namespace, identity.service_account)
        if keys.type != node.kind:
            raise RefusedError(
                "PERMISSION_DENIED", f"node.id says {node.kind}, {keys.name} is a {keys.type}"
            )
        name = f"{keys.name}.{keys.namespace}"
        return Client(
            id=name,
            keys=keys,
            session=Session(name, self._fleet.verdicts),
            version=node.version,
            address=node.address,
            connected=context.clock.now(),
            account=account,
            workload=workload,
        )

    def _ends_in(self, identity: Identity | None, now: float) -> float:
        age = self._limits.age_s * random.uniform(1 - _AGE_JITTER, 1 + _AGE_JITTER)  # noqa: S311
        if identity is not None:
            age = min(age, max(identity.expires - now, 1.0))
        return self._context.clock.monotonic() + age

    async def _talk(
        self,
        call: Any,
        client: Client,
        protocol: DeltaProtocol | SotwProtocol,
        request: Any,
        ends: float,
    ) -> None:
        clock = self._context.clock
        self._context.log.info("proxy connected", proxy=client.id, version=client.version)
        sent: dict[str, float] = {}
        reader = asyncio.create_task(self._read(call, client, protocol, request, sent))
        reader.add_done_callback(lambda _: client.wake.set())
        try:
            while True:
                client.wake.clear()
                await self._write(call, client, protocol, sent)
                self._fleet.progressed(client)
                if reader.done():
                    await reader
                    return
                now = clock.monotonic()
                wake_at = min(ends, client.session.wake_at(now) or ends)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(wake_at - now, 0.001)):
                        await client.wake.wait()
                if clock.monotonic() >= ends:
                    self._context.log.info("stream ended at its age", proxy=client.id)
                    return
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            self._context.log.info("proxy gone", proxy=client.id)

    async def _write(
        self, call: Any, client: Client, protocol: Any, sent: dict[str, float]
    ) -> None:
        while (push := client.session.poll(self._context.clock.monotonic())) is not None:
            data = protocol.encode(push)
            if data is None:
                continue
            kind = SHORT_NAMES.get(push.type_url, "other")
            self._metrics.pushes.labels(kind).inc()
            self._metrics.resources.labels(kind).inc(len(push.resources))
            self._metrics.bytes.labels(kind).inc(len(data))
            sent[push.type_url] = self._context.clock.monotonic()
            await call.write(data)

    async def _read(
        self,
        call: Any,
        client: Client,
        protocol: DeltaProtocol | SotwProtocol,
        request: Any,
        sent: dict[str, float],
    ) -> None:
        clock = self._context.clock
        allowance, refilled = float(REQUESTS_BURST), clock.monotonic()
        while True:
            now = clock.monotonic()
            refusal = protocol.receive(request, now)
            if request.response_nonce:
                self._answered(client, request, refusal, sent, now)
            client.wake.set()
            allowance = min(REQUESTS_BURST, allowance + (now - refilled) * REQUESTS_PER_S) - 1
            refilled = now
            if allowance < 0:
                # Not read any faster: gRPC's flow control stops the client.
                await clock.sleep(1 / REQUESTS_PER_S)
            data = await call.read()
            if data is aio.EOF:
                return
            request = protocol.decode(data)

    def _answered(
        self,
        client: Client,
        request: Any,
        refusal: Refusal | None,
        sent: dict[str, float],
        now: float,
    ) -> None:
        kind = SHORT_NAMES.get(request.type_url, "other")
        if request.type_url in sent:
            self._metrics.ack.observe(now - sent.pop(request.type_url))
        if request.HasField("error_detail"):
            self._metrics.nacks.labels(kind).inc()
            self._context.log.warning(
                "a proxy refuses a response",
                proxy=client.id,
                type=kind,
                resource=refusal.resource.name if refusal else "being searched",
                message=request.error_detail.message[:500],
            )
        if refusal is not None:
            self._refused(refusal)
        self._fleet.progressed(client)
