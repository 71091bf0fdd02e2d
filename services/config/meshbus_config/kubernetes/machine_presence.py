"""Machines that any replica hears: each tells the others on STATUS, once a second, of whom it has
heard. Whoever removes entries knows of all."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence

import msgspec
import structlog

from meshbus.bus.interface import STATUS, Bus, BusError, Message
from meshbus.model.keys import Key, escape_token
from meshbus.model.status import status_subject
from meshbus_config.machine_presence import Presence

TELL_S = 1.0
log = structlog.get_logger("config")


class SharedPresence(Presence):
    """An Applier of STATUS too: what other replicas have heard."""

    def __init__(self, bus: Bus, *, cluster: str, pod: str, monotonic: Callable[[], float]) -> None:
        super().__init__(monotonic)
        self._bus = bus
        self._cluster = cluster
        self._subject = status_subject(cluster, "config", pod, "machines")
        self._fresh: set[Key] = set()
        everybody = f"s.{escape_token(cluster)}.config.*.machines"
        self._follower = bus.follower(STATUS, [everybody], self, name="config-machines")

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follower.run())
            tasks.create_task(self._tell())

    def heard(self, key: Key) -> None:
        """A machine spoke to this replica."""
        super().heard(key)
        self._fresh.add(key)

    def others_hear(self) -> None:
        """What they hear is told here."""

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(TELL_S)
            if not self._fresh:
                continue
            fresh, self._fresh = self._fresh, set()
            names = sorted((key.namespace, key.name) for key in fresh)
            with contextlib.suppress(BusError):  # what is not told now is told by the next beat
                await self._bus.publish(STATUS, self._subject, msgspec.json.encode(names))

    # ------------------------------------------------------------------ Applier

    def begin(self) -> None:
        """A snapshot begins."""

    def apply(self, messages: Sequence[Message]) -> None:
        """What replicas have heard. An old word, of before this process began, lets an entry stay a
        little longer."""
        for message in messages:
            if not message.data or message.subject == self._subject:
                continue
            try:
                names = msgspec.json.decode(message.data, type=list[tuple[str, str]])
            except msgspec.MsgspecError as error:
                log.warning("a report cannot be read", subject=message.subject, error=str(error))
                continue
            for namespace, name in names:
                super().heard(Key(self._cluster, "cfg", "workloadentries", namespace, name))

    def end(self, sequence: int) -> None:
        """The snapshot is whole."""
