"""Parts of objects as somebody wrote them. What has another shape than it should counts as absent:
rows may come from a newer or unvalidated source, and no object may take down the others."""

from collections.abc import Mapping
from typing import Any


def fields(value: Any) -> Mapping[str, Any]:
    """An object's fields."""
    return value if isinstance(value, Mapping) else {}


def entries(value: Any) -> list[Mapping[str, Any]]:
    """A list of objects; entries of another kind are left out."""
    return [v for v in value if isinstance(v, Mapping)] if isinstance(value, list) else []


def texts(value: Any) -> list[str]:
    """A list of texts."""
    return [str(v) for v in value] if isinstance(value, list) else []


def number(value: Any) -> int:
    """A number that is not negative; 0 if it is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def pairs(value: Any) -> tuple[tuple[str, str], ...]:
    """Names and values, such as labels, sorted."""
    return tuple(sorted((str(k), str(v)) for k, v in fields(value).items()))
