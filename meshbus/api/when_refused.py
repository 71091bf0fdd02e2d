"""What becomes of an EnvoyFilter whose patch an Envoy refuses, as an annotation of it:

`traffic.meshbus.io/when-refused: hold`: nothing is sent without it. The resources concerned stay at
their last good content, and what others want of them waits: for patches that must never be missing,
as those that let nobody in. Otherwise, `leave-out`: it goes, and the rest goes on.
"""

from collections.abc import Mapping

WHEN_REFUSED = "traffic.meshbus.io/when-refused"
HOLD, LEAVE_OUT = "hold", "leave-out"


def when_refused_problem(annotations: Mapping[str, str]) -> str | None:
    """Why the annotation says nothing."""
    value = annotations.get(WHEN_REFUSED, LEAVE_OUT)
    if value in (HOLD, LEAVE_OUT):
        return None
    return f"{value!r} is neither {HOLD} nor {LEAVE_OUT}"


def holds(annotations: Mapping[str, str]) -> bool:
    """Nothing may be sent without the object."""
    return annotations.get(WHEN_REFUSED) == HOLD
