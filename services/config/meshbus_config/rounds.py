"""When to look again: soon after something has changed, not too often, and once in a while."""

import asyncio
from collections.abc import Awaitable, Callable

PAUSE_S = 0.5
"""Between two looks at least."""
RETRY_S = 5.0
"""Between two looks at most: nobody tells who has become the leader."""


class Rounds:
    """Looks at what is to be done, at most twice a second each."""

    def __init__(self) -> None:
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Something has changed: look soon."""
        self._wake.set()

    async def run(self, look: Callable[[], Awaitable[None]]) -> None:
        """Look, until cancelled. What changes meanwhile is looked at in the next round."""
        while True:
            try:
                async with asyncio.timeout(RETRY_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            await look()
            await asyncio.sleep(PAUSE_S)
