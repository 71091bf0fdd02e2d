"""Clients that may lack something, and the least version that all clients have. Sans IO."""

import heapq
import itertools
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

C = TypeVar("C")


class Unsettled(Generic[C]):
    """A set that knows of each client a version that it has at least.

    Asking all of them for the least on every acknowledgement would cost the square of the fleet.
    Here only those are asked whose bound is below the answer.
    """

    def __init__(self) -> None:
        self._bounds: dict[C, int] = {}
        self._heap: list[tuple[int, int, C]] = []
        """(bound, order, client); those that are no longer true are left until they come up."""
        self._order = itertools.count()

    def __contains__(self, client: object) -> bool:
        return client in self._bounds

    def __iter__(self) -> Iterator[C]:
        return iter(self._bounds)

    def __len__(self) -> int:
        return len(self._bounds)

    def add(self, client: C, has: int) -> None:
        """It may lack something; it has everything of version `has`, or so it was known before."""
        if client not in self._bounds:
            self._put(client, has)

    def discard(self, client: C) -> None:
        """It has everything, or is gone."""
        self._bounds.pop(client, None)
        if not self._bounds:
            self._heap.clear()

    def least(self, converged: Callable[[C], int], at_most: int) -> int:
        """The least version that any of them has everything of; `at_most` when all have that.

        Args:
            converged: The version that a client has everything of now; never less than before.
        """
        while self._heap:
            bound, _, client = self._heap[0]
            if self._bounds.get(client) != bound:
                heapq.heappop(self._heap)
                continue
            if bound >= at_most:
                return at_most
            now = converged(client)
            if now <= bound:
                return min(now, at_most)
            heapq.heappop(self._heap)
            self._put(client, now)
        return at_most

    def _put(self, client: C, bound: int) -> None:
        self._bounds[client] = bound
        heapq.heappush(self._heap, (bound, next(self._order), client))
