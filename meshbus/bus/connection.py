"""The bus on NATS: one connection, one identity. Speaks JetStream's API directly.

Why not nats-py's JetStream layer: its ordered consumers can lose messages silently, `publish_async`
never resolves on an error, and it knows no atomic batches.
"""

import asyncio
import base64
import contextlib
import json
import secrets
import ssl
from collections.abc import Callable, Sequence
from typing import Any

import nats.errors
import structlog
from nats.aio.msg import Msg

from meshbus.bus.backoff import Backoff
from meshbus.bus.client import RawClient
from meshbus.bus.follower import Follower
from meshbus.bus.interface import (
    MODEL,
    Applier,
    BusError,
    BusUnavailable,
    Change,
    Fence,
    FollowerHandle,
    Handler,
    Message,
    NoResponders,
    TooLarge,
    WriteConflict,
)
from meshbus.bus.nkeys import UserKey
from meshbus.bus.permissions import inbox_prefix
from meshbus.bus.streams import TOMBSTONE_TTL_S, stream_configs

BATCH_LIMIT = 1000
"""Messages in one atomic batch, by the server's limit."""
_HEADER_RESERVE_BYTES = 4096
_REQUESTS_AT_ONCE = 256
_WRONG_SEQUENCE = frozenset({10071, 10164})
_NOT_FOUND = 10037
_STREAM_EXISTS = 10058

log = structlog.get_logger("bus")


class NatsBus:
    """`meshbus.bus.interface.Bus` on a nats-server. `start` it before use, `close` it after."""

    def __init__(
        self,
        url: str,
        identity: str,
        key: UserKey | None,
        *,
        tls: ssl.SSLContext | None = None,
        replicas: int = 1,
    ) -> None:
        """
        Args:
            key: None: the server asks for none (tests of the server itself).
            tls: What proves the server of a `tls://` address.
            replicas: Servers that keep each stream, where this connection makes them.
        """
        self._url = url
        self._tls = tls
        self._replicas = replicas
        self._identity = identity
        self._key = key
        self._client: RawClient | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._served: list[tuple[str, Handler, str]] = []
        self._reconnect_callbacks: list[Callable[[], None]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._asked: set[asyncio.Task[Msg]] = set()
        self._slots = asyncio.Semaphore(_REQUESTS_AT_ONCE)
        self._lost = asyncio.Event()
        self._ready = asyncio.Event()
        self._commit_lock = asyncio.Lock()
        self._keeps_streams = False
        self.max_message_bytes = 1024 * 1024 - _HEADER_RESERVE_BYTES

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Begin to connect; returns at once. Connecting goes on until `close`."""
        if self._supervisor is None:
            self._supervisor = asyncio.create_task(self._supervise(), name="bus-connection")

    async def wait_connected(self) -> None:
        """Until there is a connection."""
        await self._ready.wait()

    @property
    def connected(self) -> bool:
        """There is a connection now."""
        return self._client is not None and self._client.is_connected

    async def close(self) -> None:
        """Give up the connection and everything that runs on it."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
            self._supervisor = None
        for task in list(self._tasks):
            task.cancel()
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(2):
                    await client.close()

    async def _supervise(self) -> None:
        """Keep a connection. nats-py reconnects by itself, but closes for good on most errors that
        the server sends: then a new client takes over."""
        backoff = Backoff(0.05, 2.0)
        while True:
            client = RawClient()
            self._lost.clear()
            try:
                await self._connect(client)
            except asyncio.CancelledError:
                with contextlib.suppress(Exception):
                    await client.close()
                raise
            except Exception as error:  # noqa: BLE001 - whatever hinders the connection: try again
                log.debug("cannot connect", url=self._url, error=repr(error))
                with contextlib.suppress(Exception):
                    await client.close()
                await asyncio.sleep(backoff.next_s())
                continue
            backoff.reset()
            log.info("connected", url=self._url, identity=self._identity)
            await self._lost.wait()
            log.warning("connection closed by the server; starting over", url=self._url)
            self._client = None
            self._ready.clear()
            await asyncio.sleep(backoff.next_s())

    async def _connect(self, client: RawClient) -> None:
        async def closed() -> None:
            self._lost.set()

        async def disconnected() -> None:
            log.warning("disconnected", identity=self._identity)
            for task in list(self._asked):
                task.cancel()

        async def reconnected() -> None:
            log.info("reconnected", identity=self._identity)
            self._notify_reconnect()

        async def error(cause: Exception) -> None:
            log.warning("bus error", identity=self._identity, error=str(cause) or repr(cause))

        if self._key is not None:
            client._public_nkey = self._key.public
        await client.connect(
            self._url,
            name=f"meshbus-{self._identity}",
            signature_cb=self._key.sign if self._key is not None else None,
            inbox_prefix=inbox_prefix(self._identity).encode(),
            allow_reconnect=True,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.2,
            connect_timeout=3,
            ping_interval=10,
            max_outstanding_pings=2,
            # Nothing is kept for later while the server is away: a write that its author took
            # for failed would appear after all.
            pending_size=0,
            tls=self._tls,
            closed_cb=closed,
            disconnected_cb=disconnected,
            reconnected_cb=reconnected,
            error_cb=error,
        )
        self._client = client
        self.max_message_bytes = client.max_payload - _HEADER_RESERVE_BYTES
        for subject, handler, queue in self._served:
            await self._subscribe(client, subject, handler, queue)
        await client.flush(timeout=5)
        self._ready.set()
        self._notify_reconnect()

    def _notify_reconnect(self) -> None:
        if self._keeps_streams:
            task = asyncio.create_task(self._restore_streams())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        for callback in self._reconnect_callbacks:
            callback()

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Call after each connection that follows a lost one (and after the first)."""
        self._reconnect_callbacks.append(callback)

    # ------------------------------------------------------------------ streams

    async def ensure_streams(self) -> None:
        """Create or update the streams; from now on after each reconnect again, because a
        server that restarts has forgotten those in memory."""
        self._keeps_streams = True
        for config in stream_configs(self._replicas):
            name = config["name"]
            answer = await self.api(f"STREAM.CREATE.{name}", config, checked=False)
            error = answer.get("error")
            if error and error.get("err_code") == _STREAM_EXISTS:
                answer = await self.api(f"STREAM.UPDATE.{name}", config, checked=False)
                error = answer.get("error")
            if error:
                raise BusUnavailable(f"stream {name}: {error.get('description')}")

    async def _restore_streams(self) -> None:
        backoff = Backoff(0.05, 2.0)
        while self.connected:
            try:
                await self.ensure_streams()
                return
            except BusError as error:
                log.info("streams are not there yet", error=str(error))
            await asyncio.sleep(backoff.next_s())

    async def api(
        self, operation: str, body: object = None, *, timeout: float = 5.0, checked: bool = True
    ) -> dict[str, Any]:
        """One call of JetStream's API.

        Raises:
            BusUnavailable: No answer, or (`checked`) an answer that is an error.
        """
        data = b"" if body is None else json.dumps(body).encode()
        try:
            reply = await self.request(f"$JS.API.{operation}", data, timeout=timeout)
        except NoResponders:
            raise BusUnavailable("JetStream does not answer") from None
        answer: dict[str, Any] = json.loads(reply)
        if checked and "error" in answer:
            raise BusUnavailable(f"{operation}: {answer['error'].get('description')}")
        return answer

    def follower(
        self, stream: str, filters: Sequence[str], applier: Applier, *, name: str = ""
    ) -> FollowerHandle:
        """Snapshot of the last message of each subject, then everything newer."""
        follower = Follower(self, stream, filters, applier, name=name or self._identity)
        self.on_reconnect(follower.kick)
        return follower

    async def last(self, stream: str, subject: str) -> Message | None:
        """The last message of a subject or of all that a wildcard matches, from the stream's
        leader; None: there is none."""
        answer = await self.api(
            f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject}, checked=False
        )
        error = answer.get("error")
        if error:
            if error.get("err_code") == _NOT_FOUND:
                return None
            raise BusUnavailable(f"{stream} {subject}: {error.get('description')}")
        message = answer["message"]
        return Message(
            message["subject"], base64.b64decode(message.get("data", "")), int(message["seq"])
        )

    # ------------------------------------------------------------------ writing

    async def publish(
        self,
        stream: str,
        subject: str,
        data: bytes,
        *,
        expect: int | None = None,
        ttl_s: float | None = None,
    ) -> int:
        """Store one message; the sequence that it got."""
        headers: dict[str, str] = {"Nats-Expected-Stream": stream}
        if expect is not None:
            headers["Nats-Expected-Last-Subject-Sequence"] = str(expect)
        if ttl_s is not None:
            headers["Nats-TTL"] = f"{max(1, round(ttl_s))}s"
        return await self._store(subject, data, headers, timeout=5.0)

    async def take_fence(self, subject: str, holder: str) -> Fence:
        """Become the writer: all fences taken before are void from now on."""
        held = await self.last(MODEL, subject)
        sequence = await self.publish(
            MODEL, subject, holder.encode(), expect=held.sequence if held else 0
        )
        return Fence(subject, sequence)

    async def commit(
        self, changes: Sequence[Change], fence: Fence, *, timeout: float = 10.0
    ) -> int:
        """Write changes as one atomic batch under a fence; see the interface."""
        if not 0 < len(changes) <= BATCH_LIMIT:
            raise ValueError(f"a batch holds 1 to {BATCH_LIMIT} changes, not {len(changes)}")
        for change in changes:
            self._check_size(change.subject, change.data or b"")
        # The server takes one batch under a fence at a time; a second one would be refused.
        async with self._commit_lock:
            return await self._commit(changes, fence, timeout)

    async def _commit(self, changes: Sequence[Change], fence: Fence, timeout: float) -> int:
        client = self._connected_client()
        batch = secrets.token_hex(8)
        count = len(changes)
        for index, change in enumerate(changes, 1):
            headers: dict[str, str] = {}
            if change.data is None:
                headers["Nats-Rollup"] = "sub"
                headers["Nats-TTL"] = f"{TOMBSTONE_TTL_S}s"
            if index == 1:
                headers["Nats-Expected-Last-Subject-Sequence"] = str(fence.sequence)
                headers["Nats-Expected-Last-Subject-Sequence-Subject"] = fence.subject
            if count > 1:
                headers["Nats-Batch-Id"] = batch
                headers["Nats-Batch-Sequence"] = str(index)
            if index == count:
                if count > 1:
                    headers["Nats-Batch-Commit"] = "1"
                return await self._store(
                    change.subject, change.data or b"", headers, timeout=timeout
                )
            try:
                await client.publish(change.subject, change.data or b"", headers=headers)
            except nats.errors.Error as error:
                raise BusUnavailable(f"write interrupted: {error!r}") from error
        raise AssertionError("unreachable")

    async def _store(
        self, subject: str, data: bytes, headers: dict[str, str], *, timeout: float
    ) -> int:
        self._check_size(subject, data)
        client = self._connected_client()
        try:
            reply = await self._ask(client, subject, data, timeout, headers)
        except NoResponders:
            raise BusUnavailable(f"no stream takes {subject}") from None
        answer = json.loads(reply.data)
        refusal = answer.get("error")
        if refusal is None:
            return int(answer["seq"])
        if refusal.get("err_code") in _WRONG_SEQUENCE:
            raise WriteConflict(f"{subject}: {refusal.get('description')}")
        raise BusUnavailable(f"{subject}: {refusal.get('description')}")

    def _check_size(self, subject: str, data: bytes) -> None:
        if len(data) > self.max_message_bytes:
            raise TooLarge(
                f"{subject}: {len(data)} bytes are more than the {self.max_message_bytes} "
                "that the bus takes"
            )

    # ------------------------------------------------------------------ asking

    async def request(self, subject: str, data: bytes, *, timeout: float = 2.0) -> bytes:
        """Ask one of those that serve a subject."""
        self._check_size(subject, data)
        client = self._connected_client()
        reply = await self._ask(client, subject, data, timeout, None)
        return bytes(reply.data)

    async def _ask(
        self,
        client: RawClient,
        subject: str,
        data: bytes,
        timeout: float,
        headers: dict[str, str] | None,
    ) -> Msg:
        """One request. It fails at once when the connection is lost: no answer will come."""
        task = asyncio.create_task(client.request(subject, data, timeout=timeout, headers=headers))
        self._asked.add(task)
        try:
            # Shielded: the client's wait_for may swallow a cancellation that comes with the answer.
            return await asyncio.shield(task)
        except nats.errors.NoRespondersError:
            raise NoResponders(f"nobody serves {subject}") from None
        except (nats.errors.Error, TimeoutError, OSError) as error:
            raise BusUnavailable(f"{subject}: {error!r}") from error
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            raise BusUnavailable(f"{subject}: the connection was lost") from None
        finally:
            task.cancel()
            self._asked.discard(task)

    async def serve(self, subject: str, handler: Handler, *, queue: str = "") -> None:
        """Answer requests; also on the connections that follow this one."""
        self._served.append((subject, handler, queue))
        if self._client is not None and self._ready.is_set():
            await self._subscribe(self._client, subject, handler, queue)
            await self._client.flush(timeout=5)

    async def _subscribe(
        self, client: RawClient, subject: str, handler: Handler, queue: str
    ) -> None:
        async def answer(message: Msg) -> None:
            async with self._slots:
                try:
                    await message.respond(await handler(message.data))
                except nats.errors.Error as error:
                    log.warning("answer lost", subject=subject, error=repr(error))

        async def received(message: Msg) -> None:
            if message.reply:
                task = asyncio.create_task(answer(message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

        await client.subscribe(subject, queue=queue, cb=received)

    # ------------------------------------------------------------------ for the follower

    def _connected_client(self) -> RawClient:
        client = self._client
        if client is None or not client.is_connected:
            raise BusUnavailable("not connected to the bus")
        return client

    @property
    def client(self) -> RawClient:
        """The connected client.

        Raises:
            BusUnavailable: There is none.
        """
        return self._connected_client()
