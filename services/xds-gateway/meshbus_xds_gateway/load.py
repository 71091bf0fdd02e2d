"""How busy this replica is, how busy the others say they are, and what follows: whether a new
stream had better go elsewhere, and how many of the streams here should."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from meshbus.bus.gateway_reports import GatewayReports
from meshbus.model.status import GatewayReport

SILENT_S = 25.0
"""Replicas report at least each 10 s; one that does not is not counted on."""
FULL = 0.9
"""Share of the memory that may be used: no more streams above it."""
SLACK = 1.05
"""Above its fair share by so much, a replica sheds."""
SHED_SHARE = 0.02
"""Of its streams, at most, in a second."""
_TAU_S = 5.0
"""Over about which time the use of the processor is averaged."""
_MEMORY_S = 0.25
"""Between two looks at the memory."""
_CGROUPS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)
_UNLIMITED = 1 << 60


@dataclass(frozen=True)
class LoadLimits:
    """When a replica is overloaded."""

    cpu: float
    """Share of the time that its thread of Python is at work."""
    memory_bytes: int
    """Of the process; 0: no limit."""


class Load(GatewayReports):
    """The load of this process, and what the other replicas report of theirs."""

    def __init__(
        self, cluster: str, pod: str, limits: LoadLimits, monotonic: Callable[[], float]
    ) -> None:
        super().__init__(cluster, monotonic, but=pod)
        self._limits = limits
        self._looked = monotonic()
        self._used = time.thread_time()
        self.cpu = 0.0
        """Share of the time that the thread of Python was at work, lately."""
        self.memory = 0.0
        """Share of the memory that the process may use."""
        self._memory_at = -math.inf

    # ------------------------------------------------------------------ this replica

    def look(self) -> None:
        """Measure; called on the thread of Python, about each second."""
        now, used = self._monotonic(), time.thread_time()
        passed = max(now - self._looked, 1e-3)
        share = (used - self._used) / passed
        self.cpu += (1 - math.exp(-passed / _TAU_S)) * (share - self.cpu)
        self._looked, self._used = now, used

    def memory_is_full(self) -> bool:
        """No stream more fits into memory."""
        limit = self._limits.memory_bytes
        now = self._monotonic()
        if limit and now - self._memory_at > _MEMORY_S:
            self._memory_at = now
            self.memory = resident_bytes() / limit
        return self.memory > FULL

    @property
    def overloaded(self) -> bool:
        """It has more to do than it can do well."""
        return self.memory_is_full() or self.cpu > self._limits.cpu

    # ------------------------------------------------------------------ the others

    def with_room(self) -> list[GatewayReport]:
        """Other replicas that are heard and are not overloaded themselves."""
        return [
            report
            for report in self.heard_within(SILENT_S).values()
            if report.sequence
            and report.cpu <= max(self._limits.cpu, 0.5)
            and report.memory <= FULL
        ]

    def excess(self, proxies: int) -> int:
        """How many streams more than its fair share this replica has, of those that it and the
        replicas with room have together."""
        others = with_room = self.with_room()
        if not with_room:
            return 0
        total = proxies + sum(report.proxies for report in others)
        fair = math.ceil(total / (len(others) + 1) * SLACK)
        return max(0, proxies - fair)

    def prefers_others(self, proxies: int) -> bool:
        """A new stream had better go to another replica."""
        return self.overloaded and self.excess(proxies) > 0

    def to_shed(self, proxies: int) -> int:
        """Streams that should end now, to open elsewhere; asked each second."""
        if not self.overloaded:
            return 0
        return min(self.excess(proxies), max(1, math.ceil(proxies * SHED_SHARE)))


def resident_bytes() -> int:
    """What the process has in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def memory_limit(configured_mb: int, processes: int) -> int:
    """Bytes that this process may use.

    Args:
        configured_mb: 0: what the container may use, shared evenly by the workers in it.
        processes: Workers in this container.
    """
    if configured_mb:
        return configured_mb << 20
    for path in _CGROUPS:
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < _UNLIMITED:
            return int(text) // max(processes, 1)
    return 0
