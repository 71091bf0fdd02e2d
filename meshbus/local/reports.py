"""Tells discovery about instances: one message of STATUS each, the last one counts.

STATUS is in the memory of the bus: everything is told again after a reconnect, and on a slow timer.
"""

import asyncio

import msgspec
import structlog

from meshbus.bus.interface import STATUS, Bus, BusError
from meshbus.model.status import InstanceReport, status_subject

REPEAT_S = 15.0
RETRY_S = 0.2

log = structlog.get_logger("local")


class Reporter:
    """The reports of one supervisor."""

    def __init__(self, bus: Bus, cluster: str, node: str) -> None:
        self._bus = bus
        self._cluster = cluster
        self._node = node
        self._reports: dict[str, InstanceReport] = {}
        self._untold: set[str] = set()
        self._wake = asyncio.Event()
        bus.on_reconnect(self.tell_all)

    def put(self, report: InstanceReport) -> None:
        """What holds now of an instance; sent as soon as the bus takes it."""
        subject_part = f"i-{report.namespace}~{report.name}"
        if self._reports.get(subject_part) == report and subject_part not in self._untold:
            return
        self._reports[subject_part] = report
        self._untold.add(subject_part)
        self._wake.set()

    def tell_all(self) -> None:
        """Everything has to be told again."""
        self._untold |= set(self._reports)
        self._wake.set()

    async def told(self) -> None:
        """Until nothing is left to tell."""
        while self._untold:  # noqa: ASYNC110 - asked once, when the supervisor ends
            await asyncio.sleep(0.02)

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            try:
                async with asyncio.timeout(REPEAT_S):
                    await self._wake.wait()
            except TimeoutError:
                self.tell_all()
            self._wake.clear()
            while self._untold:
                part = next(iter(self._untold))
                report = self._reports[part]
                if not await self._send(part, report):
                    await asyncio.sleep(RETRY_S)
                    continue
                if self._reports.get(part) is report:
                    self._untold.discard(part)
                    if report.gone:
                        del self._reports[part]

    async def _send(self, part: str, report: InstanceReport) -> bool:
        subject = status_subject(self._cluster, "local", self._node, part)
        try:
            await self._bus.publish(STATUS, subject, msgspec.json.encode(report))
        except BusError as error:
            log.debug("report not sent", instance=part, error=str(error))
            return False
        return True
