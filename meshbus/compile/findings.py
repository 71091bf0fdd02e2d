"""What could not be compiled, and a guard that keeps one object's fault to itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from meshbus.compile.resources import Resource
from meshbus.model.keys import Key


class NotCompiledError(Exception):
    """A part of an object that cannot be compiled; becomes a Finding."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
        self.message = message


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """A part of an object that has no effect, and why."""

    object: Key
    path: str
    """Field of the object, e.g. `spec.http[0].route[1]`."""
    message: str


@dataclass(frozen=True, slots=True)
class Part:
    """What a node contributes to a snapshot."""

    resources: tuple[Resource, ...] = ()
    findings: tuple[Finding, ...] = ()


class Report:
    """Collects findings while one node runs."""

    __slots__ = ("_findings",)

    def __init__(self) -> None:
        self._findings: dict[Finding, None] = {}

    def add(self, key: Key, path: str, message: str) -> None:
        """Note one."""
        self._findings[Finding(key, path, message)] = None

    def extend(self, findings: tuple[Finding, ...]) -> None:
        """Take over those of a part."""
        for finding in findings:
            self._findings[finding] = None

    def findings(self) -> tuple[Finding, ...]:
        """All, each once, sorted."""
        return tuple(sorted(self._findings))

    @contextmanager
    def guard(self, key: Key, path: str) -> Iterator[None]:
        """Whatever goes wrong inside concerns this object alone.

        Rows may come from a newer or an unvalidated source: a fault in one object must not take
        down the resources of all others, so every exception becomes a finding here.
        """
        try:
            yield
        except NotCompiledError as fault:
            self.add(key, fault.path or path, fault.message)
        except Exception as error:  # noqa: BLE001 - the wall between objects, see above
            self.add(key, path, f"cannot be compiled: {type(error).__name__}: {error}")
