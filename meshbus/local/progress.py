"""What `up` shows while a mesh starts: a live table on a terminal, plain lines elsewhere."""

import sys
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from meshbus.local.status import SupervisorStatus


class Progress:
    """Use as a context manager; `show` each status that is read. Writes to stderr."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._live: Live | None = None
        self._said: set[str] = set()

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            self._live = Live(
                console=self._console, refresh_per_second=12, transient=True, auto_refresh=False
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, status: SupervisorStatus) -> None:
        """Bring the display up to date."""
        if self._live is not None:
            self._live.update(_table(status), refresh=True)
            return
        for name, problem in status.services.items():
            if not problem:
                self.say(f"{name} is ready")
        for name, instance in status.instances.items():
            if instance.ready:
                self.say(f"{name} is ready at {instance.addresses[0]}")

    def say(self, line: str) -> None:
        """A line that stays, once."""
        if line not in self._said:
            self._said.add(line)
            self._console.print(line, highlight=False, soft_wrap=True)


def _table(status: SupervisorStatus) -> Group:
    lines = [Text("control plane", style="bold")]
    lines += [_line(name, problem) for name, problem in status.services.items()]
    if status.instances:
        lines.append(Text("workloads", style="bold"))
        lines += [
            _line(name, "" if instance.ready else instance.problem or "starting")
            for name, instance in status.instances.items()
        ]
    return Group(*lines)


def _line(name: str, problem: str) -> Text:
    mark, style = ("✓", "green") if not problem else ("·", "dim")
    return Text.assemble((f"  {mark} ", style), name, (f"  {problem}" if problem else "", "dim"))
