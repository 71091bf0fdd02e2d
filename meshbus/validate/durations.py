"""Rules of durations.

Source: Istio, ValidateDuration.
"""

from meshbus.api.durations import MILLISECOND_NS, nanoseconds


def duration_problem(text: str) -> str | None:
    """Why it is not a duration of at least 1ms and whole milliseconds."""
    value = nanoseconds(text)
    if value is None:
        return f"{text!r} is not a duration (`5s`, `250ms`, `1h30m`)"
    if value < MILLISECOND_NS:
        return "must be a valid duration of at least 1ms"
    if value % MILLISECOND_NS:
        return "only whole milliseconds are supported"
    return None
