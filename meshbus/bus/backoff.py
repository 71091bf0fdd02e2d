"""Waiting times between attempts: exponential, bounded, with full jitter."""

import random


class Backoff:
    """Seconds to wait before the next attempt; `reset` after a success."""

    def __init__(self, first_s: float = 0.1, most_s: float = 5.0) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._attempts = 0

    def reset(self) -> None:
        """The last attempt was good."""
        self._attempts = 0

    def next_s(self) -> float:
        """How long to wait now: between half of and the whole present bound."""
        bound = min(self._most_s, self._first_s * float(2**self._attempts))
        self._attempts = min(self._attempts + 1, 16)
        return bound * random.uniform(0.5, 1.0)  # noqa: S311 - spreads attempts, guards nothing
