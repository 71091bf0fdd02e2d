"""The streams of proxies: a thin shell between a carrier and the sessions.

No task waits for a stream. A batch of messages goes to the sessions it is for; streams whose
sessions may have something to say are due, and what they say leaves in one batch. A slow proxy
holds nothing but its own stream: nothing is asked of its session while the carrier says that it is
blocked.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from meshbus.compile.resources import SHORT_NAMES
from meshbus.model.keys import Key
from meshbus.runtime.first_uses import FirstUses
from meshbus.runtime.service import Context
from meshbus_xds_gateway.admission import Admission
from meshbus_xds_gateway.carrier import (
    Batch,
    Carrier,
    Certificate,
    Closed,
    Event,
    Limits,
    Opened,
    Signal,
    Status,
    Tls,
)
from meshbus_xds_gateway.delta import DeltaProtocol, asked_names
from meshbus_xds_gateway.fleet import CannotServeError, Client, Fleet
from meshbus_xds_gateway.gate import Gate, GateLimits
from meshbus_xds_gateway.load import Load
from meshbus_xds_gateway.metrics import GatewayMetrics
from meshbus_xds_gateway.node import Identity, RefusedError, asks_safely, node_of
from meshbus_xds_gateway.outbox import Outbox
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
FIRST_REQUEST_S = 15.0
REQUESTS_PER_S = 500
REQUESTS_BURST = 5000
_PAUSE_S = 0.1
_READ_AT_ONCE = 4
"""First requests that are read when one has been let in."""
_AGE_JITTER = 0.2
_SLICE_S = 0.02
"""How long responses are made before other work of the process gets its turn."""
_OPENING_SHARE = 0.25
_REFUSALS_TOLD = 20
"""Refusals in the log in a second: a fleet that refuses everything is told in numbers."""
_ADMIT_SLICE_S = 0.01
_LONG_WAIT_S = 15.0
"""Longer than this nobody waits who could go elsewhere: Envoys give up their first fetch then."""
_STOP_S = 0.1


@dataclass(frozen=True)
class StreamLimits:
    """What a stream is allowed."""

    age_s: float
    """A stream ends at about this age and opens again: with its newest token, at any replica."""
    max_streams: int


class _Stream:
    """One call of one proxy. `set` is how the fleet wakes it."""

    __slots__ = (
        "admitting",
        "allowance",
        "blocked",
        "client",
        "ended",
        "identity",
        "make_protocol",
        "number",
        "peer",
        "protocol",
        "refilled",
        "sent",
        "server",
        "timers",
        "waiting",
    )

    def __init__(
        self, server: "XdsServer", number: int, peer: str, make_protocol: Any, now: float
    ) -> None:
        self.server = server
        self.number = number
        self.peer = peer
        self.make_protocol = make_protocol
        self.identity: Identity | None = None
        self.protocol: DeltaProtocol | SotwProtocol | None = None
        self.client: Client | None = None
        self.waiting: list[bytes] = []
        self.admitting: asyncio.Task[None] | None = None
        self.timers: dict[str, asyncio.TimerHandle] = {}
        self.sent: dict[str, float] = {}
        self.blocked = False
        self.allowance, self.refilled = float(REQUESTS_BURST), now
        self.ended = False
        """It is served no more."""

    def set(self) -> None:
        """Its session may have something to say."""
        self.server.due(self)

    def timer(self, name: str, delay_s: float, callback: Callable[..., None], *args: Any) -> None:
        """Call once after so long; one of a name at a time."""
        self.stop_timer(name)
        loop = asyncio.get_running_loop()
        self.timers[name] = loop.call_later(delay_s, callback, *args)

    def stop_timer(self, name: str) -> None:
        """Do not call any more."""
        handle = self.timers.pop(name, None)
        if handle is not None:
            handle.cancel()


class XdsServer:
    """Serves ADS on one listener of a carrier. `first_uses` of the tokens that proxies come with;
    None: a proxy is what its node says."""

    def __init__(
        self,
        context: Context[Any],
        fleet: Fleet,
        metrics: GatewayMetrics,
        limits: StreamLimits,
        carrier: Carrier,
        load: Load,
        *,
        first_uses: FirstUses | None,
        refused: Callable[[Refusal, frozenset[Key]], None],
    ) -> None:
        self._context = context
        self._fleet = fleet
        self._metrics = metrics
        self._limits = limits
        self._carrier = carrier
        self._authenticated = first_uses is not None
        self._admission = Admission(context, fleet, first_uses)
        self._refused = refused
        self._load = load
        self._streams: dict[int, _Stream] = {}
        self._unread: dict[_Stream, None] = {}
        """New streams whose first request is not read yet, in order."""
        self._gate: Gate[_Stream] = Gate(GateLimits(waiting=limits.max_streams))
        self._admitting: asyncio.TimerHandle | asyncio.Handle | None = None
        self._due: dict[_Stream, None] = {}
        self._due_opening: dict[_Stream, None] = {}
        """Those that are opening: what the others are due comes first."""
        self._draining = False
        self._refusals_since, self._refusals_told, self._refusals_untold = 0.0, 0, 0

    async def start(self, listen: str, tls: Tls | None, *, reuse_port: bool = False) -> int:
        """Listen; gives the port.

        Raises:
            CarrierError: The address or the certificate cannot be used.
        """
        limits = Limits(
            max_connections=2 * self._limits.max_streams,
            max_streams=self._limits.max_streams,
            max_message_bytes=MAX_REQUEST_BYTES,
            connection_age_s=self._limits.age_s,
            reuse_port=reuse_port,
        )
        port = await self._carrier.start(listen, self._handle, tls, limits)
        name = (
            "plaintext" if tls is None else "tls" if self._authenticated else "tls_without_tokens"
        )
        self._metrics.carried_by(name, self._carrier.counters)
        return port

    def renew(self, certificate: Certificate) -> None:
        """Use a newer certificate from now on.

        Raises:
            CarrierError: It cannot be used.
        """
        self._carrier.renew(certificate)

    def rotate_tickets(self, keys: tuple[bytes, ...]) -> None:
        """Use other keys of TLS tickets from now on.

        Raises:
            CarrierError: They cannot be used.
        """
        self._carrier.rotate_tickets(keys)

    async def stop(self) -> None:
        """End every stream; proxies keep what they have and look for another replica."""
        for stream in list(self._streams.values()):
            self._end(stream, "ended", Status.UNAVAILABLE, "the gateway stops", leave=True)
        await self._carrier.stop(_STOP_S)

    @property
    def waiting(self) -> int:
        """Streams that wait to be admitted."""
        return self._gate.waiting

    def shed(self, count: int) -> int:
        """End so many streams, any of them, so that they open elsewhere; how many there were."""
        served = [stream for stream in self._streams.values() if stream.client is not None]
        for stream in random.sample(served, min(count, len(served))):
            self._end(stream, "shed", Status.UNAVAILABLE, "another replica has room", leave=True)
        return min(count, len(served))

    def due(self, stream: _Stream) -> None:
        """Ask a stream's session soon."""
        if stream.ended:
            return
        due = self._due_opening if self._gate.is_opening(stream) else self._due
        due[stream] = None
        if not self._draining:
            self._draining = True
            asyncio.get_running_loop().call_soon(self._drain)

    # ------------------------------------------------------------------ what comes

    def _handle(self, batch: Batch) -> None:
        for number, event in batch:
            if isinstance(event, Opened):
                self._open(number, event)
                continue
            stream = self._streams.get(number)
            if stream is None:
                continue
            try:
                self._happened(stream, event)
            except Exception as error:  # noqa: BLE001  (one stream's fault ends no other)
                self._fail(stream, error)

    def _open(self, number: int, opened: Opened) -> None:
        protocol = _PROTOCOLS.get(opened.path)
        if protocol is None:
            text = f"there is no method {opened.path[:200]}"
            self._carrier.close(number, Status.UNIMPLEMENTED, text)
            return
        now = self._context.clock.monotonic()
        stream = self._streams[number] = _Stream(self, number, opened.peer, protocol, now)
        try:
            stream.identity = self._admission.identity(opened.metadata, opened.peer)
        except RefusedError as error:
            self._fail(stream, error)
        else:
            if self._gate.reads and not self._unread:
                self._expect(stream)
            else:
                # It waits in its socket: first requests in hand are memory.
                self._unread[stream] = None
                self._carrier.pause(number)

    def _expect(self, stream: _Stream) -> None:
        silent = ProtocolError("no request came")
        stream.timer("first", FIRST_REQUEST_S, self._fail, stream, silent)

    def _read_more(self) -> None:
        """Read first requests again, in order, as far as there is room for them."""
        for _ in range(_READ_AT_ONCE):
            if not self._unread or not self._gate.reads:
                return
            stream = next(iter(self._unread))
            del self._unread[stream]
            if stream.protocol is None and not stream.waiting:
                self._carrier.resume(stream.number)
                self._expect(stream)

    def _happened(self, stream: _Stream, event: Event) -> None:
        if isinstance(event, bytes):
            if stream.protocol is not None:
                self._receive(stream, stream.protocol.decode(event))
            elif not stream.ended:
                self._knock(stream, event)
        elif event is Signal.BLOCKED:
            stream.blocked = True
        elif event is Signal.WRITABLE:
            stream.blocked = False
            self.due(stream)
        elif event is Signal.HALF_CLOSED:
            self._end(stream, "ended", Status.OK)
        elif isinstance(event, Closed):
            self._leave(stream, "ended")
            del self._streams[stream.number]

    def _knock(self, stream: _Stream, data: bytes) -> None:
        """A request of a proxy that is not served yet."""
        stream.waiting.append(data)
        if len(stream.waiting) > 1:
            return
        stream.stop_timer("first")
        elsewhere = self._load.prefers_others(len(self._fleet.clients)) or (
            self._gate.wait_s > _LONG_WAIT_S and self._load.with_room()
        )
        full = self._load.memory_is_full() or not self._gate.offer(stream, len(data))
        if elsewhere or full:
            self._gate.drop(stream)
            text = "this replica is busy: try another one" if elsewhere else "this replica is full"
            self._end(stream, "turned away", Status.UNAVAILABLE, text, leave=True)
            return
        # What else it says is read when it is served.
        self._carrier.pause(stream.number)
        self._admit_soon()

    def _admit_soon(self, delay_s: float = 0.0) -> None:
        if self._admitting is None or delay_s == 0:
            if self._admitting is not None:
                self._admitting.cancel()
            loop = asyncio.get_running_loop()
            self._admitting = (
                loop.call_later(delay_s, self._admit) if delay_s else loop.call_soon(self._admit)
            )

    def _admit(self) -> None:
        """Let those in whose turn it is, for a slice of the time."""
        self._admitting = None
        clock = self._context.clock
        ends = clock.monotonic() + _ADMIT_SLICE_S
        while (now := clock.monotonic()) < ends:
            stream = self._gate.take(now)
            self._read_more()
            if stream is None:
                room_at = self._gate.room_at()
                if room_at is not None:
                    self._admit_soon(max(room_at - now, 0.001))
                return
            try:
                self._let_in(stream)
            except Exception as error:  # noqa: BLE001  (one stream's fault ends no other)
                self._fail(stream, error)
        self._admit_soon()

    def _let_in(self, stream: _Stream) -> None:
        request = stream.make_protocol.decode(stream.waiting[0])
        node = node_of(request.node)
        missing = self._admission.missing_row(node, stream.identity)
        if missing is not None or self._admission.is_new(stream.identity):
            self._gate.drop(stream)
            stream.admitting = asyncio.create_task(self._await_admission(stream, missing))
            return
        del stream.waiting[0]
        client = self._admission.client(node, stream.identity, stream)
        if stream.make_protocol is DeltaProtocol and asks_safely(node.version):
            client.keys = replace(client.keys, may_ask=True)
        self._serve(stream, client, request)

    async def _await_admission(self, stream: _Stream, key: Key | None) -> None:
        """It stands in line again once its row is there and its token is its own."""
        try:
            if key is not None:
                await self._admission.registered(key)
            if stream.identity is not None and self._admission.is_new(stream.identity):
                await self._admission.claim(stream.identity, stream.peer)
            if not self._gate.offer(stream, len(stream.waiting[0])):
                raise CannotServeError("this replica is full")
            self._admit_soon()
        except Exception as error:  # noqa: BLE001  (one stream's fault ends no other)
            self._fail(stream, error)

    def _serve(self, stream: _Stream, client: Client, request: Any) -> None:
        self._admission.enter(client)
        stream.client = client
        stream.protocol = stream.make_protocol(client.session)
        self._context.log.info("proxy connected", proxy=client.id, version=client.version)
        age_s = self._limits.age_s * random.uniform(1 - _AGE_JITTER, 1 + _AGE_JITTER)  # noqa: S311
        if stream.identity is not None:
            left_s = stream.identity.expires - self._context.clock.now()
            age_s = min(age_s, max(left_s, 1.0))
        stream.timer("age", age_s, self._too_old, stream)
        self._receive(stream, request)
        self._carrier.resume(stream.number)
        waiting, stream.waiting = stream.waiting, []
        for data in waiting:
            if stream.protocol is not None:
                self._receive(stream, stream.protocol.decode(data))

    def _receive(self, stream: _Stream, request: Any) -> None:
        assert stream.protocol is not None
        assert stream.client is not None
        now = self._context.clock.monotonic()
        if stream.client.keys.may_ask and (names := asked_names(request)):
            self._fleet.asked(stream.client, request.type_url, *names)
        refusal = stream.protocol.receive(request, now)
        if request.response_nonce:
            self._answered(stream, request, refusal, now)
        else:
            self.due(stream)
        filled = stream.allowance + (now - stream.refilled) * REQUESTS_PER_S
        stream.allowance = min(REQUESTS_BURST, filled) - 1
        stream.refilled = now
        if stream.allowance < 0 and "resume" not in stream.timers:
            # Not read any faster: HTTP/2's flow control stops the client.
            self._carrier.pause(stream.number)
            stream.timer("resume", _PAUSE_S, self._resume, stream)

    def _resume(self, stream: _Stream) -> None:
        stream.stop_timer("resume")
        self._carrier.resume(stream.number)

    def _answered(self, stream: _Stream, request: Any, refusal: Refusal | None, now: float) -> None:
        assert stream.client is not None
        sent = stream.sent.pop(request.type_url, None)
        if sent is not None:
            self._metrics.ack.observe(now - sent)
        if request.error_detail is not None:
            kind = SHORT_NAMES.get(request.type_url, "other")
            self._metrics.nacks.labels(kind).inc()
            self._tell_refusal(stream.client, kind, request.error_detail.message, refusal, now)
        if refusal is not None and not self._fleet.quarantines.takes(refusal):
            self._refused(refusal, self._fleet.quarantines.objects_of(refusal))
        if not self._fleet.rested(stream.client):
            self._fleet.progressed(stream.client)
            self.due(stream)
        if self._gate.is_opening(stream) and self._fleet.settled(stream.client):
            self._gate.settled(stream)
            if self._due_opening.pop(stream, stream) is None:
                self.due(stream)
            if self._gate.waiting:
                self._admit_soon()

    def _tell_refusal(
        self, client: Client, kind: str, message: str, refusal: Refusal | None, now: float
    ) -> None:
        """A line in the log; of a fleet that refuses the same only some, and how many more."""
        if now - self._refusals_since >= 1:
            if self._refusals_untold:
                self._context.log.warning("more refusals", count=self._refusals_untold)
            self._refusals_since, self._refusals_told, self._refusals_untold = now, 0, 0
        if self._refusals_told >= _REFUSALS_TOLD:
            self._refusals_untold += 1
            return
        self._refusals_told += 1
        self._context.log.warning(
            "a proxy refuses a response",
            proxy=client.id,
            type=kind,
            resource=refusal.resource.name if refusal else "being searched",
            message=message[:500],
        )

    # ------------------------------------------------------------------ what goes

    def _drain(self) -> None:
        clock = self._context.clock
        began = clock.monotonic()
        outbox = Outbox()
        # While both have something due, those that are opening get the smaller part of the time.
        first = _SLICE_S if not self._due_opening else _SLICE_S * (1 - _OPENING_SHARE)
        self._ask_due(self._due, began + first, outbox)
        self._ask_due(self._due_opening, began + _SLICE_S, outbox)
        if outbox.messages:
            self._carrier.send(outbox.messages)
            outbox.count(self._metrics)
        self._draining = bool(self._due or self._due_opening)
        if self._draining:
            asyncio.get_running_loop().call_soon(self._drain)

    def _ask_due(self, due: dict[_Stream, None], ends: float, outbox: Outbox) -> None:
        clock = self._context.clock
        while due and (now := clock.monotonic()) < ends:
            stream = next(iter(due))
            del due[stream]
            if stream.client is not None and not stream.blocked:
                try:
                    self._ask(stream, stream.client, outbox, now)
                except Exception as error:  # noqa: BLE001  (one stream's fault ends no other)
                    self._fail(stream, error)

    def _ask(self, stream: _Stream, client: Client, outbox: Outbox, now: float) -> None:
        """Everything that a stream's session has to say now."""
        assert stream.protocol is not None
        outbox.next_stream(stream.number)
        said = False
        while (push := client.session.poll(now)) is not None:
            data = stream.protocol.encode(push)
            if data is not None:
                said = True
                stream.sent[push.type_url] = now
                outbox.add(data, push)
                self._gate.sent(stream, len(data))
        if not said:
            self._fleet.progressed(client)
        wake_at = client.session.wake_at(now)
        if wake_at is None:
            if stream.timers:
                stream.stop_timer("wake")
        else:
            stream.timer("wake", max(wake_at - now, 0.001), self.due, stream)

    # ------------------------------------------------------------------ how it ends

    def _too_old(self, stream: _Stream) -> None:
        assert stream.client is not None
        self._context.log.info("stream ended at its age", proxy=stream.client.id)
        # On another connection, so that the proxy may come to another replica.
        self._end(stream, "ended", Status.OK, leave=True)

    def _fail(self, stream: _Stream, error: Exception) -> None:
        if stream.ended:
            return
        match error:
            case RefusedError():
                outcome, status = "refused", Status[error.code]
            case ProtocolError():
                outcome, status = "broken", Status.INVALID_ARGUMENT
            case CannotServeError():
                outcome, status = "unavailable", Status.UNAVAILABLE
            case _:
                self._context.log.error("a stream fails", peer=stream.peer, exc_info=error)
                self._end(stream, "failed", Status.INTERNAL, "the gateway failed; see its log")
                return
        self._context.log.warning(f"stream {outcome}", peer=stream.peer, reason=str(error))
        self._end(stream, outcome, status, str(error))

    def _end(
        self,
        stream: _Stream,
        outcome: str,
        status: Status,
        message: str = "",
        *,
        leave: bool = False,
    ) -> None:
        self._leave(stream, outcome)
        self._carrier.close(stream.number, status, message, leave=leave)

    def _leave(self, stream: _Stream, outcome: str) -> None:
        """The proxy is served no more, though its call may take a while to end."""
        if stream.ended:
            return
        stream.ended = True
        self._metrics.streams.labels(outcome).inc()
        self._due.pop(stream, None)
        self._due_opening.pop(stream, None)
        self._gate.drop(stream)
        self._unread.pop(stream, None)
        if self._gate.waiting or self._unread:
            self._admit_soon()
        for name in list(stream.timers):
            stream.stop_timer(name)
        if stream.admitting is not None and stream.client is None:
            stream.admitting.cancel()
        if stream.client is not None:
            self._admission.leave(stream.client)
            self._context.log.info("proxy gone", proxy=stream.client.id)
        stream.client = stream.protocol = None
