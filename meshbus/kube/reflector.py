"""Keeps a sink equal to a collection of an API server: list, then watch, and again from there.

What a lost connection cannot say is never inferred: an object is withdrawn when the server says
that it is deleted, or when a complete list does not have it.
"""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import msgspec
import structlog

from meshbus.bus.backoff import Backoff
from meshbus.kube.client import (
    Gone,
    KubeClient,
    KubeError,
    KubeRefused,
    KubeUnavailable,
    NotFound,
    refusal,
)

PAGE = 500
_TURN = 200
"""Objects that are taken before other tasks get their turn."""
_INITIAL_END = "k8s.io/initial-events-end"
_ABSENT_S = 5.0
"""How often it is asked whether a kind that was not there has come."""

log = structlog.get_logger("kube")


class Meta(msgspec.Struct, gc=False):
    """What every object has, as far as all readers need it."""

    name: str = ""
    namespace: str = ""
    version: str = msgspec.field(name="resourceVersion", default="")


class Named(msgspec.Struct):
    """Any object, to see whose it is."""

    metadata: Meta


class _ListMeta(msgspec.Struct):
    version: str = msgspec.field(name="resourceVersion", default="")
    more: str = msgspec.field(name="continue", default="")


class _List(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _MarkMeta(msgspec.Struct):
    version: str = msgspec.field(name="resourceVersion", default="")
    annotations: dict[str, str] = {}


class _Mark(msgspec.Struct):
    metadata: _MarkMeta


_named = msgspec.json.Decoder(Named)
_list = msgspec.json.Decoder(_List)
_event = msgspec.json.Decoder(_Event)
_mark = msgspec.json.Decoder(_Mark)

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
Name = tuple[str, str]
"""(namespace, name)."""


class Sink(Protocol[T_contra]):
    """Where objects go. Nothing here waits or raises."""

    def put(self, name: Name, value: T_contra) -> None:
        """An object is there, or is different."""

    def delete(self, name: Name) -> None:
        """It is gone."""

    def malformed(self, name: Name, error: str) -> None:
        """It cannot be read: what it was before stands."""


class Source(NamedTuple):
    """A collection."""

    path: str
    """`/api/v1/pods`, or that of one namespace."""
    labels: str = ""
    fields: str = ""

    def query(self, **more: str | int) -> dict[str, str | int]:
        """The parameters of a request to it."""
        said: dict[str, str | int] = dict(more)
        if self.labels:
            said["labelSelector"] = self.labels
        if self.fields:
            said["fieldSelector"] = self.fields
        return said


class Counts:
    """What a reflector has done, for metrics."""

    def __init__(self) -> None:
        self.events = 0
        self.lists: dict[str, int] = {}
        """Complete reads, by why: `start`, `gone`, `absent`, `refresh`."""
        self.failures = 0
        self.malformed: dict[Name, str] = {}
        """Objects that cannot be read now, and why."""


class Reflector(Generic[T]):
    """One collection, read as values of type T."""

    def __init__(
        self,
        client: KubeClient,
        source: Source,
        decode: Callable[[bytes], T],
        sink: Sink[T],
        *,
        defined: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        """
        Args:
            decode: The value of an object's JSON; raises msgspec.MsgspecError or ValueError.
            defined: Asked when the server says that there is no such kind: whether it is defined
                all the same, and the server only not ready. None: it always is.
        """
        self.source = source
        self.counts = Counts()
        self.problem = ""
        """Why it is not up to date, if so; for people."""
        self._client = client
        self._decode = decode
        self._sink = sink
        self._defined = defined
        self._versions: dict[Name, str] = {}
        self._version = ""
        self._why = "start"
        self._streams_lists = True
        self._synced = asyncio.Event()
        self._backoff = Backoff(0.1, 10.0)
        self._refresh = asyncio.Event()

    @property
    def synced(self) -> bool:
        """The whole collection was read once."""
        return self._synced.is_set()

    async def wait_synced(self) -> None:
        """Until the whole collection was read once."""
        await self._synced.wait()

    def names(self) -> Iterable[Name]:
        """Objects that are there."""
        return self._versions.keys()

    def refresh(self, forget: Callable[[Name], bool]) -> None:
        """Read everything again, and give the sink those that `forget` picks even if unchanged."""
        for name in [name for name in self._versions if forget(name)]:
            self._versions[name] = ""
        self._refresh.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._refresh.clear()
            step = asyncio.ensure_future(self._step())
            wanted = asyncio.ensure_future(self._refresh.wait())
            try:
                await asyncio.wait({step, wanted}, return_when=asyncio.FIRST_COMPLETED)
                if not step.done():
                    self._list_again("refresh")
                    continue
                pause = step.result()
            finally:
                for task in (step, wanted):
                    task.cancel()
                await asyncio.gather(step, wanted, return_exceptions=True)
            if pause:
                await asyncio.sleep(pause)

    def _list_again(self, why: str) -> None:
        self._version, self._why = "", why

    async def _step(self) -> float:
        """List if need be, and watch until that ends. How long to wait before the next."""
        try:
            if not self._version and not self._streams_lists:
                await self._read_pages()
            await self._watch()
        except Gone as error:
            log.info("listing again", path=self.source.path, reason=str(error))
            self._list_again("gone")
            return self._backoff.next_s() if self.counts.failures else 0.0
        except NotFound:
            return await self._absent()
        except KubeUnavailable as error:
            return self._failed(error, max(error.retry_after_s, self._backoff.next_s()))
        except KubeRefused as error:
            if error.code in (400, 422) and not self._version and self._streams_lists:
                self._streams_lists = False
                return 0.0
            return self._failed(error, self._backoff.next_s())
        except (msgspec.MsgspecError, KubeError) as error:
            return self._failed(error, self._backoff.next_s())
        return 0.0

    def _failed(self, error: Exception, pause: float) -> float:
        self.counts.failures += 1
        if self.problem != str(error):
            log.warning("not followed now", path=self.source.path, error=str(error))
        self.problem = str(error)
        return pause

    async def _absent(self) -> float:
        """The server says that there is no such kind."""
        if self._defined is not None:
            try:
                if await self._defined():
                    return self._failed(KubeError("not served yet"), self._backoff.next_s())
            except KubeError as error:
                return self._failed(error, self._backoff.next_s())
            self._finish(set(), "")
            self._list_again("absent")
            return _ABSENT_S
        return self._failed(KubeError("not served"), self._backoff.next_s())

    # ------------------------------------------------------------------ lists

    async def _read_pages(self) -> None:
        seen: set[Name] = set()
        token = ""
        while True:
            query = self.source.query(limit=PAGE)
            if token:
                query["continue"] = token
            page = _list.decode(await self._client.get(self.source.path, **query))
            for index, raw in enumerate(page.items or ()):
                self._put(bytes(raw), seen)
                if index % _TURN == _TURN - 1:
                    await asyncio.sleep(0)
            token = page.metadata.more
            if not token:
                break
        self._finish(seen, page.metadata.version)

    def _finish(self, seen: set[Name], version: str) -> None:
        """A complete list ends: what it did not have is gone."""
        for name in [name for name in self._versions if name not in seen]:
            self._delete(name)
        self.counts.lists[self._why] = self.counts.lists.get(self._why, 0) + 1
        self._version = version
        self._good()
        self._synced.set()

    def _good(self) -> None:
        self.problem = ""
        self.counts.failures = 0
        self._backoff.reset()

    # ------------------------------------------------------------------ watches

    async def _watch(self) -> None:
        query = self.source.query(
            watch="true",
            allowWatchBookmarks="true",
            timeoutSeconds=random.randint(290, 350),  # noqa: S311 - spreads reconnects
        )
        seen: set[Name] | None = None
        if self._version:
            query["resourceVersion"] = self._version
        else:
            query |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
            seen = set()
        taken = 0
        async with contextlib.aclosing(self._client.watch(self.source.path, query)) as stream:
            async for lines in stream:
                if seen is None:
                    self._good()
                for line in lines:
                    if not line:
                        continue
                    seen = self._take(_event.decode(line), seen)
                    taken += 1
                    if taken % _TURN == 0:
                        await asyncio.sleep(0)
        if seen is not None:
            raise KubeUnavailable(f"{self.source.path}: the list ended before it was complete")

    def _take(self, event: _Event, seen: set[Name] | None) -> set[Name] | None:
        """One event. `seen`: names of the list that is being read, None after it."""
        body = bytes(event.object)
        if event.type in ("ADDED", "MODIFIED"):
            self.counts.events += 1
            version = self._put(body, seen)
            if seen is None and version:
                self._version = version
        elif event.type == "DELETED":
            self.counts.events += 1
            meta = _named.decode(body).metadata
            self._delete((meta.namespace, meta.name))
            if seen is not None:
                seen.discard((meta.namespace, meta.name))
            else:
                self._version = meta.version
        elif event.type == "BOOKMARK":
            mark = _mark.decode(body).metadata
            if seen is not None and mark.annotations.get(_INITIAL_END) == "true":
                self._finish(seen, mark.version)
                return None
            if seen is None:
                self._version = mark.version
        elif event.type == "ERROR":
            error = refusal(_code(body), body)
            if error.code == 429 or error.code >= 500:
                raise KubeUnavailable(f"watch {self.source.path}: {error}")
            raise error
        return seen

    # ------------------------------------------------------------------ objects

    def _put(self, body: bytes, seen: set[Name] | None) -> str:
        """Take an object; its version."""
        meta = _named.decode(body).metadata
        name = (meta.namespace, meta.name)
        if seen is not None:
            seen.add(name)
        if self._versions.get(name) == meta.version:
            return meta.version
        self._versions[name] = meta.version
        try:
            value = self._decode(body)
        except (msgspec.MsgspecError, ValueError) as error:
            self.counts.malformed[name] = str(error)
            self._sink.malformed(name, str(error))
            return meta.version
        self.counts.malformed.pop(name, None)
        self._sink.put(name, value)
        return meta.version

    def _delete(self, name: Name) -> None:
        self.counts.malformed.pop(name, None)
        if self._versions.pop(name, None) is not None:
            self._sink.delete(name)


def _code(body: bytes) -> int:
    try:
        code: Any = msgspec.json.decode(body).get("code")
    except (msgspec.MsgspecError, AttributeError):
        return 0
    return code if isinstance(code, int) else 0
