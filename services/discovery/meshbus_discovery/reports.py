"""Reports of supervisors, as STATUS carries them."""

from collections.abc import Callable, Sequence, Set

import msgspec
import structlog

from meshbus.bus.interface import Message
from meshbus.model.status import InstanceReport

log = structlog.get_logger("discovery")


class ReportBoard:
    """The last report of each instance. What a lost stream forgets stays until a report says that
    it is gone: silence is not an answer."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._fresh: dict[tuple[str, str, str], InstanceReport] = {}
        self.known: dict[tuple[str, str, str], InstanceReport] = {}
        """By (namespace, workload, name)."""

    def take(self) -> list[InstanceReport]:
        """Reports that came since this was asked last."""
        fresh, self._fresh = self._fresh, {}
        return list(fresh.values())

    def of_workloads(self, names: Set[tuple[str, str]]) -> list[InstanceReport]:
        """Known reports of these workloads, (namespace, name)."""
        if not names:
            return []
        return [
            report for (ns, workload, _), report in self.known.items() if (ns, workload) in names
        ]

    def begin(self) -> None:
        """A snapshot begins; nothing is forgotten."""

    def apply(self, messages: Sequence[Message]) -> None:
        """Take reports."""
        for message in messages:
            if not message.data:
                continue
            try:
                report = msgspec.json.decode(message.data, type=InstanceReport)
            except msgspec.MsgspecError as error:
                log.warning("a report cannot be read", subject=message.subject, error=str(error))
                continue
            name = (report.namespace, report.workload, report.name)
            if self.known.get(name) == report:
                continue
            self.known[name] = report
            self._fresh[name] = report
        if self._fresh:
            self._changed()

    def end(self, sequence: int) -> None:
        """The snapshot is whole."""
        self._changed()
