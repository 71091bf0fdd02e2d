"""Which new streams wait, and how many may be opening at one time. Sans IO.

A stream *waits* from its first request until it is its turn, and is *opening* from then until it
has acknowledged what it was given first. As many may be opening as their unacknowledged bytes
allow; the rest wait in order, and those for which there is no place to wait are turned away. How
fast they are let in follows from what each costs; there is no rate.
"""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)

_SMALLEST = 4096.0
_FIRST_GUESS = 256.0 * 1024
_UPLOADS = 4
"""To the first request, of a stream that comes back: it says of four types what it has."""
_WEIGHT = 0.05
"""Of the newest in a running mean."""


@dataclass(frozen=True)
class GateLimits:
    """What is kept for streams that are not served yet."""

    waiting: int = 10_000
    waiting_bytes: int = 64 << 20
    """Of first requests: names and versions of all that a proxy comes back with. Above it no more
    are read, as far as the carrier can wait; above four times as much streams are turned away."""
    opening_bytes: int = 64 << 20
    """Of what they upload, and of first responses which are not acknowledged; decides how many may
    be opening."""
    opening_least: int = 16
    opening_most: int = 1024
    opening_s: float = 5.0
    """A proxy that acknowledges nothing stands in nobody's way for longer."""


@dataclass(slots=True)
class _Opening:
    until: float
    moved: int
    """Bytes of what it uploads and is sent."""


class Gate(Generic[S]):
    """Of one listener."""

    def __init__(self, limits: GateLimits | None = None) -> None:
        self._limits = limits or GateLimits()
        self._waiting: OrderedDict[S, int] = OrderedDict()
        self._waiting_bytes = 0
        self._opening: OrderedDict[S, _Opening] = OrderedDict()
        self._mean_bytes = _FIRST_GUESS
        self._mean_s = 0.0
        self._taken_at: float | None = None

    @property
    def waiting(self) -> int:
        """Streams that wait."""
        return len(self._waiting)

    @property
    def opening(self) -> int:
        """Streams that are being opened."""
        return len(self._opening)

    def is_opening(self, stream: S) -> bool:
        """Whether a stream has been let in and has not settled yet."""
        return stream in self._opening

    @property
    def may_open(self) -> int:
        """How many may be opening at one time, by what those before were given."""
        fit = int(self._limits.opening_bytes / self._mean_bytes)
        return min(max(fit, self._limits.opening_least), self._limits.opening_most)

    @property
    def wait_s(self) -> float:
        """How long one that comes now would wait, by how it went for those before."""
        return len(self._waiting) * self._mean_s

    @property
    def reads(self) -> bool:
        """There is room for more first requests."""
        return self._waiting_bytes < self._limits.waiting_bytes

    def offer(self, stream: S, size: int) -> bool:
        """A stream has said what it wants, in so many bytes. False: there is no place for it."""
        limits = self._limits
        if (
            len(self._waiting) >= limits.waiting
            or self._waiting_bytes + size > 4 * limits.waiting_bytes
        ) and self._waiting:
            return False
        self._waiting[stream] = size
        self._waiting_bytes += size
        return True

    def take(self, now: float) -> S | None:
        """The stream whose turn it is; None: nobody waits, or there is no room yet."""
        while self._opening:
            stream, opening = next(iter(self._opening.items()))
            if opening.until > now:
                break
            self.settled(stream)
        if not self._waiting:
            self._taken_at = None
            return None
        if len(self._opening) >= self.may_open:
            return None
        stream, size = self._waiting.popitem(last=False)
        self._waiting_bytes -= size
        self._opening[stream] = _Opening(now + self._limits.opening_s, _UPLOADS * size)
        if self._taken_at is not None:
            self._mean_s += _WEIGHT * (now - self._taken_at - self._mean_s)
        self._taken_at = now
        return stream

    def room_at(self) -> float | None:
        """When there is room at the latest, if nobody settles; None: there is, or nobody waits."""
        if not self._waiting or len(self._opening) < self.may_open:
            return None
        return next(iter(self._opening.values())).until

    def sent(self, stream: S, size: int) -> None:
        """So many bytes more are on their way to it."""
        opening = self._opening.get(stream)
        if opening is not None:
            opening.moved += size

    def settled(self, stream: S) -> bool:
        """It has all that it was given first; True: it was opening until now."""
        opening = self._opening.pop(stream, None)
        if opening is None:
            return False
        self._mean_bytes += _WEIGHT * (max(opening.moved, _SMALLEST) - self._mean_bytes)
        return True

    def drop(self, stream: S) -> None:
        """It has ended, wherever it was."""
        size = self._waiting.pop(stream, None)
        if size is not None:
            self._waiting_bytes -= size
        self._opening.pop(stream, None)
