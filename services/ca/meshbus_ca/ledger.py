"""The issuance ledger: one record for each certificate, in a stream that nobody can change.

Subjects: `certs.<cluster>.<day>.<identity>.<serial>` (day: whole days since the epoch), so that a
question about an identity or a day reads no more than that.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence

import msgspec
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from meshbus.bus.interface import CERTS, Bus, BusError, Message
from meshbus.model.keys import escape_token
from meshbus.model.requests import CertificatesReply, CertificatesRequest, Issued

MAX_WAITING = 10_000
"""Records kept while the bus is away; the oldest is lost first, and counted."""
MAX_LIMIT = 1000
MAX_DAYS = 90
MAX_SINCE = 200_000
_AT_ONCE = 64
_RETRY_S = 0.5
_READ_S = 4.0
_READERS = 2
_DAY_S = 86_400

log = structlog.get_logger("ledger")


class LedgerError(Exception):
    """A question cannot be answered now."""


class Ledger:
    """Writes records behind the answers, and reads them."""

    def __init__(self, bus: Bus, cluster: str, metrics: CollectorRegistry) -> None:
        self._bus = bus
        self._prefix = f"certs.{escape_token(cluster)}"
        self._waiting: deque[tuple[Issued, asyncio.Event]] = deque()
        self._more = asyncio.Event()
        self._readers = asyncio.Semaphore(_READERS)
        self._written = Counter(
            "meshbus_ca_ledger_records", "Records of certificates written.", registry=metrics
        )
        self._lost = Counter(
            "meshbus_ca_ledger_lost",
            "Records lost, because too many waited for the bus.",
            registry=metrics,
        )
        Gauge(
            "meshbus_ca_ledger_waiting", "Records that wait for the bus.", registry=metrics
        ).set_function(lambda: float(len(self._waiting)))

    async def record(self, record: Issued, within_s: float) -> bool:
        """Keep a record; waits until it is stored, at most so long. True: it is."""
        stored = asyncio.Event()
        if len(self._waiting) >= MAX_WAITING:
            lost, _ = self._waiting.popleft()
            self._lost.inc()
            log.error("a record of the ledger is lost", identity=lost.identity, serial=lost.serial)
        self._waiting.append((record, stored))
        self._more.set()
        if not self._bus.connected:
            return False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await stored.wait()
        return stored.is_set()

    async def run(self) -> None:
        """Write what waits, until cancelled."""
        while True:
            await self._more.wait()
            self._more.clear()
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(_AT_ONCE, len(self._waiting)))]
                try:
                    await self._write(batch)
                except BaseException:
                    self._waiting.extendleft(reversed(batch))
                    raise
                failed = [item for item in batch if not item[1].is_set()]
                if failed:
                    self._waiting.extendleft(reversed(failed))
                    await asyncio.sleep(_RETRY_S)

    async def _write(self, batch: list[tuple[Issued, asyncio.Event]]) -> None:
        async def one(record: Issued, stored: asyncio.Event) -> None:
            try:
                await self._bus.publish(CERTS, self._subject(record), msgspec.json.encode(record))
            except BusError as error:
                log.debug("a record waits", serial=record.serial, error=str(error))
                return
            self._written.inc()
            stored.set()

        await asyncio.gather(*(one(*item) for item in batch))

    def _subject(self, record: Issued) -> str:
        identity, serial = escape_token(record.identity), escape_token(record.serial)
        return f"{self._prefix}.{_day(record.issued)}.{identity}.{serial}"

    async def find(self, question: CertificatesRequest, now: float) -> CertificatesReply:
        """Records, newest first.

        Raises:
            LedgerError: The stream cannot be read now.
        """
        limit = min(max(question.limit, 1), MAX_LIMIT)
        if self._readers.locked():
            raise LedgerError("too many questions at once: try again")
        async with self._readers:
            if question.identity or question.serial:
                found = await self._read(["*"], question, limit + 1)
                return CertificatesReply(found[:limit], complete=len(found) <= limit)
            found = []
            last = int(question.at) // _DAY_S if question.at else _day(now)
            for day in range(last, last - MAX_DAYS, -1):
                found += await self._read([str(day)], question, limit + 1 - len(found))
                if len(found) > limit or (question.at and day < last - 1):
                    break
            return CertificatesReply(found[:limit], complete=len(found) <= limit)

    async def since(self, moment: float, now: float) -> list[Issued]:
        """All records from the day of a moment on, oldest first.

        Raises:
            LedgerError: It cannot be read now, or there are more than `MAX_SINCE`.
        """
        days = [str(day) for day in range(_day(moment), _day(now) + 1)]
        found = await self._read(days, CertificatesRequest(), MAX_SINCE + 1)
        if len(found) > MAX_SINCE:
            raise LedgerError(f"more than {MAX_SINCE} records")
        return found[::-1]

    async def _read(
        self, days: Sequence[str], question: CertificatesRequest, limit: int
    ) -> list[Issued]:
        identity = escape_token(question.identity) if question.identity else "*"
        serial = escape_token(question.serial.lower()) if question.serial else "*"
        filters = [f"{self._prefix}.{day}.{identity}.{serial}" for day in days]
        reading = _Reading(question, limit)
        follower = self._bus.follower(CERTS, filters, reading, name="certificates")
        task = asyncio.create_task(follower.run())
        try:
            async with asyncio.timeout(_READ_S):
                await follower.wait_synced()
        except TimeoutError:
            raise LedgerError("the ledger cannot be read now: is the bus there?") from None
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return list(reading.found)[::-1]


class _Reading:
    """Takes the records that are asked for; keeps the newest."""

    def __init__(self, question: CertificatesRequest, limit: int) -> None:
        self._at = question.at
        self.found: deque[Issued] = deque(maxlen=limit)
        self._done = False

    def begin(self) -> None:
        self.found.clear()

    def apply(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if self._done:
                return
            try:
                record = msgspec.json.decode(message.data, type=Issued)
            except msgspec.MsgspecError as error:
                log.warning("a record cannot be read", subject=message.subject, error=str(error))
                continue
            if not self._at or record.not_before <= self._at < record.not_after:
                self.found.append(record)

    def end(self, sequence: int) -> None:
        self._done = True


def _day(seconds: float) -> int:
    return int(seconds) // _DAY_S
