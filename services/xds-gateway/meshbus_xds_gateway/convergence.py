"""When did a change arrive everywhere? Pure bookkeeping of changes and of when they settled."""

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass

from meshbus.model.keys import Key
from meshbus.model.world import Query, World

MAX_CHANGES = 1024
"""Changes remembered; of older ones no latency is known."""


@dataclass(slots=True)
class Change:
    """One step of the world."""

    sequence: int
    ts: float
    """When its writer wrote it, seconds since the epoch."""
    settled: float | None = None
    """When the last proxy had acknowledged all of it, by this replica's clock."""


def time_of_change(world: World, touched: frozenset[Query], now: float) -> float:
    """When the rows of a step were written. A deletion does not say: `now` then."""
    stamps = [
        entry.ts
        for _, index, value in touched
        if index == "key" and isinstance(value, Key) and (entry := world.entry(value)) is not None
    ]
    return max(stamps, default=now)


class Convergence:
    """The last changes, in order of sequence."""

    def __init__(self) -> None:
        self._changes: deque[Change] = deque(maxlen=MAX_CHANGES)

    def arrived(self, sequence: int, ts: float) -> None:
        """The replica has seen a change."""
        if self._changes and self._changes[-1].sequence >= sequence:
            self._changes.clear()  # the stream began again
        self._changes.append(Change(sequence, ts))

    def settled(self, sequence: int, now: float) -> list[Change]:
        """Every proxy has converged at `sequence`; gives the changes that this completes."""
        out = []
        for change in reversed(self._changes):
            if change.sequence > sequence:
                continue
            if change.settled is not None:
                break
            change.settled = now
            out.append(change)
        return out

    def latency_s(self, sequence: int) -> float | None:
        """From when a change was written to the last acknowledgement; None: not settled, or no
        longer (or never) known."""
        sequences = [change.sequence for change in self._changes]
        at = bisect_left(sequences, sequence)
        if at == len(sequences):
            return None
        change = self._changes[at]
        if change.settled is None or (at == 0 and change.sequence != sequence):
            return None
        return max(change.settled - change.ts, 0.0)
