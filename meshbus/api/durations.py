"""Durations as people write them: `1h30m`, `5s`, `250ms`.

Source: https://pkg.go.dev/time#ParseDuration, which Istio's and Kubernetes' APIs read them with.
"""

import re
from fractions import Fraction

_UNITS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_LONGEST_NS = 2**63 - 1
_LONGEST_TEXT = 64
MILLISECOND_NS = 10**6
SECOND_NS = 10**9


def nanoseconds(text: str) -> int | None:
    """The duration in nanoseconds, cut to whole ones; None if it is not one."""
    if len(text) > _LONGEST_TEXT:
        return None
    sign, rest = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if rest == "0":
        return 0
    total, position = Fraction(0), 0
    for part in _PART.finditer(rest):
        if part.start() != position:
            return None
        total += Fraction(part[1].rstrip(".") or "0") * _UNITS[part[2]]
        position = part.end()
    if not position or position != len(rest) or total > _LONGEST_NS:
        return None
    return sign * int(total)
