"""Users and groups of OpenShift: each namespace has a range of its own, in its annotations. Pure.

Source: https://docs.redhat.com/en/documentation/openshift_container_platform, "About pre-allocated
security context constraints values"; Istio, sidecars on OpenShift: the last of the range.
"""

from collections.abc import Mapping
from typing import NamedTuple

UID_RANGE = "openshift.io/sa.scc.uid-range"
GROUPS = "openshift.io/sa.scc.supplemental-groups"
_HIGHEST = 2**32 - 2


class Identity(NamedTuple):
    """Who the proxy runs as."""

    user: int
    group: int
    given: int = 0
    """The user that the platform gives containers that name none; 0: none. Where a proxy has it,
    nobody has wished for it."""


def identity_of(annotations: Mapping[str, str]) -> Identity | None:
    """Who proxies of a namespace run as; None where the platform does not say.

    The last user of the range, because applications get the first one.

    Args:
        annotations: Of the namespace.
    """
    users = _range(annotations.get(UID_RANGE, ""))
    if users is None:
        return None
    # Several ranges are a list; the first counts.
    groups = _range(str(annotations.get(GROUPS) or "").split(",")[0]) or users
    return Identity(users[1], groups[1], users[0])


def _range(text: object) -> tuple[int, int] | None:
    """First and last of `FIRST/SIZE` or `FIRST-LAST`."""
    if not isinstance(text, str):
        return None
    for separator in "/-":
        first, found, second = text.strip().partition(separator)
        if found and first.isascii() and first.isdigit() and second.isascii() and second.isdigit():
            begin, number = int(first), int(second)
            last = begin + number - 1 if separator == "/" else number
            return (begin, last) if 0 < begin <= last <= _HIGHEST else None
    return None
