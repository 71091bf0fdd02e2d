"""What STATUS says: how far discovery and the gateways have come, and what proxies refuse."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

import msgspec
import structlog

from meshbus.bus.interface import Message
from meshbus.model.keys import unescape_token
from meshbus.model.status import GatewayReport, Progress

log = structlog.get_logger("status")

_REMEMBERED = 512


class StatusBoard:
    """An Applier of STATUS: the last report of each gateway replica and of discovery."""

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self._aside: dict[str, GatewayReport] | None = None
        self._progress: deque[Progress] = deque(maxlen=_REMEMBERED)
        self._moved = asyncio.Event()
        self._callbacks: list[Callable[[], None]] = []
        self.version = 0
        """Grows with every report."""
        self.gateways: dict[str, GatewayReport] = {}
        """By replica. One that died stays until its report expires: ask it before counting it."""

    def begin(self) -> None:
        """A snapshot begins."""
        self._aside = {}

    def apply(self, messages: Sequence[Message]) -> None:
        """Reports."""
        target = self.gateways if self._aside is None else self._aside
        for message in messages:
            self._take(message, target)
        self._wake()

    def end(self, sequence: int) -> None:
        """The snapshot is whole."""
        self.gateways = self._aside or {}
        self._aside = None
        self._wake()

    def _take(self, message: Message, gateways: dict[str, GatewayReport]) -> None:
        tokens = [unescape_token(token) for token in message.subject.split(".")]
        if len(tokens) != 5 or tokens[1] != self._cluster:
            return
        _, _, service, pod, what = tokens
        try:
            if (service, what) == ("xds-gateway", "report"):
                if message.data:
                    gateways[pod] = msgspec.json.decode(message.data, type=GatewayReport)
                else:
                    gateways.pop(pod, None)
            elif (service, what) == ("discovery", "progress") and message.data:
                self._progress.append(msgspec.json.decode(message.data, type=Progress))
        except msgspec.MsgspecError as error:
            log.warning("a report cannot be read", subject=message.subject, error=str(error))

    def _wake(self) -> None:
        self.version += 1
        self._moved.set()
        self._moved = asyncio.Event()
        for callback in self._callbacks:
            callback()

    def on_report(self, callback: Callable[[], None]) -> None:
        """Call after each report. Must not wait."""
        self._callbacks.append(callback)

    async def moved(self, seen: int, timeout: float) -> None:
        """Until there are reports after version `seen`, or `timeout` seconds have gone."""
        moved = self._moved
        if self.version != seen:
            return
        try:
            async with asyncio.timeout(timeout):
                await moved.wait()
        except TimeoutError:
            return

    def derived_at(self, change: int) -> int | None:
        """The version by which discovery has written everything that follows from a change; None:
        it has not read it yet."""
        for progress in self._progress:
            if progress.read >= change:
                return progress.wrote
        return None
