"""The writer of a service: leader only, fenced, one batch in flight, differences only."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog

from meshbus.bus.interface import MODEL, Bus, BusError, BusUnavailable, Change, Fence, WriteConflict
from meshbus.bus.lease import RENEW_S, Lease
from meshbus.model.envelope import seal
from meshbus.model.keys import Key, fence_subject, subject_of
from meshbus.model.rows import Row, encode_row

BATCH_ROWS = 1000
_READ_BACK_S = 5.0

log = structlog.get_logger("writer")

Write = tuple[Key, Row | None]


class NotLeading(BusError):
    """Another replica writes, or this one has just lost the lease: ask the leader, or wait."""


class ModelWriter:
    """Writes the rows of one service. `run` it in the service's task group.

    A write whose acknowledgement was lost is never left in doubt: the writer takes a new fence,
    which voids whatever is still on its way, and reads back what is there.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        cluster: str,
        service: str,
        pod: str,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cluster = cluster
        self._bus = bus
        self._service = service
        self._pod = pod
        self._now = now
        self._lease = Lease(bus, service, pod, monotonic)
        self._fence: Fence | None = None
        self._lock = asyncio.Lock()
        self._leading = asyncio.Event()
        self._doubt = asyncio.Event()

    @property
    def leading(self) -> bool:
        """This replica may write now."""
        return self._fence is not None and self._lease.held

    @property
    def fenced_at(self) -> int:
        """Sequence of the fence held, 0 without one. A world that has reached it shows everything
        that writers before this one wrote."""
        return self._fence.sequence if self._fence is not None else 0

    @property
    def led_elsewhere(self) -> bool:
        """Another replica leads: waiting here is of no use."""
        return self._lease.held_elsewhere and not self.leading

    async def wait_leading(self) -> None:
        """Until this replica may write."""
        while not self.leading:
            await self._leading.wait()
            if not self.leading:
                await asyncio.sleep(0.05)

    async def run(self) -> None:
        """Hold the lease whenever it can be had, until cancelled."""
        try:
            while True:
                await self._lease.acquire()
                try:
                    self._fence = await self._take_fence()
                except BusError as error:
                    log.info("no fence yet", service=self._service, error=str(error))
                    await asyncio.sleep(0.2)
                    continue
                log.info("leading", service=self._service, pod=self._pod)
                self._leading.set()
                while True:
                    self._doubt.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(RENEW_S):
                            await self._doubt.wait()
                    if self._fence is None or not await self._lease.renew():
                        break
                self._fence = None
                self._leading.clear()
                log.info("no longer leading", service=self._service, pod=self._pod)
        finally:
            self._fence = None
            self._leading.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._lease.release()

    async def _take_fence(self) -> Fence:
        return await self._bus.take_fence(fence_subject(self._service), self._pod)

    async def commit(self, writes: Sequence[Write], source: tuple[str, str] = ("", "")) -> int:
        """Write rows as one change; a row of None deletes.

        Args:
            writes: 1 to 1000 rows, each key once.
            source: Where they came from, for the envelope.
        Returns:
            The id of the change: the sequence of its last row.
        Raises:
            NotLeading: Nothing was written.
            TooLarge: A row is over the limit; nothing was written.
            BusUnavailable: The bus is away; nothing was written, or it cannot be known.
        """
        ts = self._now()
        changes = [
            Change(
                subject_of(key),
                None
                if row is None
                else seal(key, encode_row(row), ts=ts, writer=self._pod, source=source),
            )
            for key, row in writes
        ]
        async with self._lock:
            fence = self._fence
            if fence is None or not self.leading:
                raise NotLeading(f"{self._service}: this replica is not the leader")
            try:
                return await self._bus.commit(changes, fence)
            except WriteConflict as error:
                self._fence = None
                self._doubt.set()
                raise NotLeading(f"{self._service}: another replica has taken over") from error
            except BusUnavailable:
                return await self._read_back(changes[-1])

    async def _read_back(self, change: Change) -> int:
        """Was it written? Void what is under way, then look."""
        deadline = time.monotonic() + _READ_BACK_S
        while True:
            try:
                self._fence = await self._take_fence()
                last = await self._bus.last(MODEL, change.subject)
                break
            except BusError as error:
                if time.monotonic() > deadline:
                    self._fence = None
                    self._doubt.set()
                    raise BusUnavailable(
                        "the bus is away; whether the change was written is not known: "
                        "read it back before writing it again"
                    ) from error
                await asyncio.sleep(0.1)
        if last is not None and last.data == (change.data or b"") and change.data is not None:
            return last.sequence
        if change.data is None and (last is None or not last.data):
            return last.sequence if last else self._fence.sequence
        raise BusUnavailable("the bus was away; the change was not written: try again")

    async def reconcile(
        self,
        desired: Mapping[Key, Row],
        held: Iterable[tuple[Key, Row]],
        source: tuple[str, str] = ("", ""),
    ) -> int | None:
        """Make the rows of a key range what they should be, writing differences only.

        Args:
            desired: All rows that should be there.
            held: All rows of the range that are there.
        Returns:
            The id of the last change, None when there was nothing to write.
        """
        writes = differences(desired, held)
        last = None
        for start in range(0, len(writes), BATCH_ROWS):
            last = await self.commit(writes[start : start + BATCH_ROWS], source)
        return last


def differences(desired: Mapping[Key, Row], held: Iterable[tuple[Key, Row]]) -> list[Write]:
    """The writes that turn `held` into `desired`: puts in key order, then deletions."""
    before = dict(held)
    writes: list[Write] = [
        (key, desired[key]) for key in sorted(desired) if before.get(key) != desired[key]
    ]
    writes += [(key, None) for key in sorted(before) if key not in desired]
    return writes
