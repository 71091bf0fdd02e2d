"""Which of several objects spoil a content that Envoys refuse: a search by leaving some out.

A state machine without IO. `left_out` says what to leave out next, `answer` takes what Envoy said
to it. Suspects are ordered, the most trusted first, and blamed from the end: what is left out is
the last ones, twice as many each time, until Envoy takes the rest; then the one that turns good
into bad is found by halving. That one stays out, and the search goes on with those behind it.

What it ends with, Envoy has taken: never a guess. n suspects of which k are at fault take at most
k * (2 + 2 log2 n) + 1 answers.
"""

from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)


class Culprits(Generic[S]):
    """One search."""

    __slots__ = ("_bad", "_good", "_kept", "_rest", "_step", "innocent", "partners")

    def __init__(self, suspects: Sequence[S], presumed: frozenset[S] = frozenset()) -> None:
        """
        Args:
            suspects: The most trusted first. With all of them the content was refused.
            presumed: To be left out first, all together.
        """
        first = [s for s in suspects if s not in presumed]
        self._rest = [*first, *(s for s in suspects if s in presumed)]
        self._good = -1
        """So many of the rest, from the beginning, are taken (with `blamed` left out); -1: it is
        not known that even without any it is taken."""
        self._bad = len(self._rest)
        """So many are refused."""
        self._step = max(len(self._rest) - len(first), 1)
        self._kept = max(len(self._rest) - self._step, 0)
        self.partners: dict[S, tuple[S, ...]] = {}
        """By who is at fault, as far as is known: those beside which it was refused."""
        self.innocent = not self._rest
        """Without any of them Envoy refuses it as well."""

    @property
    def blamed(self) -> tuple[S, ...]:
        """Those that are at fault, as far as is known."""
        return tuple(self.partners)

    @property
    def done(self) -> bool:
        """There is nothing more to ask."""
        return self.innocent or self._good == len(self._rest)

    @property
    def left_out(self) -> frozenset[S]:
        """What to leave out now; once it is done, for good."""
        if self.innocent:
            return frozenset()
        return frozenset((*self.blamed, *self._rest[self._kept :]))

    def answer(self, taken: bool) -> None:
        """What Envoy says to the content without `left_out`."""
        assert not self.done
        if taken:
            self._good = self._kept
        else:
            self._bad = self._kept
        if self._good < 0:
            if self._bad == 0:
                self.innocent = True
                return
            self._step *= 2
            self._kept = max(len(self._rest) - self._step, 0)
            return
        if self._good == len(self._rest):
            return
        if self._bad == self._good + 1:
            # Without it, what was taken is all there is up to here.
            self.partners[self._rest.pop(self._good)] = tuple(self._rest[: self._good])
            self._kept, self._bad = len(self._rest), len(self._rest) + 1
        else:
            self._kept = (self._good + self._bad) // 2
