"""Counting: cells that hold at most so much in a rolling window.

Kept in the memory of one process, as Mixer's memquota does: replicas of the policy service count
each for itself, and a restart begins anew. Pure: time comes in as `now_ns`.

Source: Mixer 1.4, memquota: ten ticks a second, windows of whole seconds, all or nothing.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence

from meshbus.mixer.quota import Charge, Limit

TICKS_PER_S = 10
_SECOND_NS = 1_000_000_000
_TICK_NS = _SECOND_NS // TICKS_PER_S


class Window:
    """One cell."""

    __slots__ = ("_limit", "_slots", "_ticks", "used")

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self._ticks = -(-limit.valid_ns // _SECOND_NS) * TICKS_PER_S
        self._slots: deque[list[int]] = deque()
        self.used = 0
        """Amount taken within the window."""

    @property
    def limit(self) -> Limit:
        """What it was made for."""
        return self._limit

    def roll(self, tick: int) -> None:
        """Give back what was taken before the window that ends at `tick`."""
        if self._ticks == 0:
            return
        while self._slots and self._slots[0][0] + self._ticks <= tick:
            self.used -= self._slots.popleft()[1]

    def take(self, amount: int, tick: int) -> bool:
        """Take all of `amount`, or nothing."""
        self.roll(tick)
        if amount > self._limit.amount - self.used:
            return False
        self.used += amount
        if self._ticks == 0:
            return True
        if self._slots and self._slots[-1][0] == tick:
            self._slots[-1][1] += amount
        else:
            self._slots.append([tick, amount])
        return True


class Cells:
    """All cells of a process, at most `capacity`: the one that was asked for longest ago goes."""

    def __init__(self, capacity: int = 100_000) -> None:
        self._capacity = capacity
        self._windows: OrderedDict[str, Window] = OrderedDict()
        self.evicted = 0
        """Cells that had to go while they still counted."""

    def __len__(self) -> int:
        return len(self._windows)

    def take(self, charges: Sequence[Charge], now_ns: int) -> Charge | None:
        """Take each charge in turn, until one does not fit.

        Returns:
            The charge that did not fit, None if all did. Those before it stay taken, as Mixer's.
        """
        tick = now_ns // _TICK_NS
        for charge in charges:
            if not self._window(charge, tick).take(charge.amount, tick):
                return charge
        return None

    def _window(self, charge: Charge, tick: int) -> Window:
        window = self._windows.get(charge.cell)
        if window is None or window.limit != charge.limit:
            window = self._windows[charge.cell] = Window(charge.limit)
        self._windows.move_to_end(charge.cell)
        if len(self._windows) > self._capacity:
            _, oldest = self._windows.popitem(last=False)
            oldest.roll(tick)
            self.evicted += oldest.used > 0
        return window
