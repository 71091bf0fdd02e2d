"""When each machine was heard of last: in memory, never written anywhere that lasts."""

import asyncio
from collections.abc import Callable, Collection

from meshbus.model.keys import Key


class Presence:
    """What this replica alone has heard: for one that gets every beat while it leads."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._heard: dict[Key, float] = {}

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.Event().wait()

    def heard(self, key: Key) -> None:
        """A machine spoke."""
        self._heard[key] = self._monotonic()

    def forget(self, key: Key) -> None:
        """It has said goodbye."""
        self._heard.pop(key, None)

    def others_hear(self) -> None:
        """Another replica hears the machines: what this one knows is old."""
        self._heard.clear()

    def silences(self) -> dict[Key, float]:
        """Seconds since each machine was heard of."""
        now = self._monotonic()
        return {key: now - at for key, at in self._heard.items()}

    def silent(self, present: Collection[Key], grace_s: float) -> set[Key]:
        """Machines of `present` that have said nothing for `grace_s` seconds. One that was never
        heard of here has all of it from now on: entries go late, never early."""
        now = self._monotonic()
        for key in self._heard.keys() - set(present):
            del self._heard[key]
        return {key for key in present if now - self._heard.setdefault(key, now) > grace_s}
