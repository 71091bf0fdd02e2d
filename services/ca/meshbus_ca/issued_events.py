"""What was issued, as events: one for each trust domain and window, however many certificates.

The ledger has each of them; events inform those who watch, and must not grow with the mesh.
"""

from typing import Any

from meshbus.model.requests import Issued
from meshbus.runtime.events import publish_event
from meshbus.runtime.service import Context

WINDOW_S = 10.0
MAX_SAMPLES = 20


class IssuedEvents:
    """`note` each certificate, and `run`."""

    def __init__(self, context: Context[Any]) -> None:
        self._context = context
        self._count = 0
        self._identities: set[str] = set()
        self._samples: list[dict[str, Any]] = []

    def note(self, record: Issued) -> None:
        """A certificate was signed."""
        self._count += 1
        self._identities.add(record.identity)
        if len(self._samples) < MAX_SAMPLES:
            self._samples.append(
                {
                    "identity": record.identity,
                    "serial": record.serial,
                    "notAfter": record.not_after,
                    "asker": record.asker,
                    "proof": record.proof,
                }
            )

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._context.clock.sleep(WINDOW_S)
            if self._count:
                await self._tell()

    async def _tell(self) -> None:
        context = self._context
        data = {
            "count": self._count,
            "identities": len(self._identities),
            "seconds": WINDOW_S,
            "certificates": self._samples,
        }
        self._count, self._identities, self._samples = 0, set(), []
        await publish_event(
            context.bus, context.cluster, "certificate", "", context.trust_domain, "issued", data
        )
