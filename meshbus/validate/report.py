"""What validation says about one object."""

import msgspec


class Violation(msgspec.Struct, frozen=True):
    """One thing that is wrong, and where."""

    path: str
    """Path of the field in the document: `spec.http[0].route[1].weight`."""
    code: str
    """`Required`, `Unknown`, `Type`, `Enum`, `Invalid`, `Conflict`, `Duplicate`, `TooLong`,
    `Unsupported`, ..."""
    message: str
    """One sentence that says what to do about it."""


class Report(msgspec.Struct, frozen=True):
    """The verdict on one object: errors refuse it, warnings do not."""

    errors: list[Violation]
    warnings: list[Violation] = []

    @property
    def valid(self) -> bool:
        """Whether there is no error."""
        return not self.errors


class Findings:
    """Collects violations while one object is looked at."""

    __slots__ = ("errors", "warnings")

    def __init__(self) -> None:
        self.errors: list[Violation] = []
        self.warnings: list[Violation] = []

    def error(self, path: str, message: str, code: str = "Invalid") -> None:
        """Something that refuses the object."""
        self.errors.append(Violation(path, code, message))

    def warn(self, path: str, message: str, code: str = "Warning") -> None:
        """Something that works, but hardly as meant."""
        self.warnings.append(Violation(path, code, message))

    def required(self, path: str, message: str = "") -> None:
        """A field that is missing."""
        self.error(path, message or "is required", "Required")

    def report(self) -> Report:
        """The verdict."""
        return Report(self.errors, self.warnings)
