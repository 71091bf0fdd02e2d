"""A change of roots, step by step: pure.

announce (everyone is given both roots) -> sign (leaves come from the new one) -> drop (the old one
is taken away). No step is made before the fleet has acknowledged the one before, so that at every
moment each side can check the other. The phase is on disk before it is acted on; every action may
be repeated.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

STEADY, ANNOUNCE, SIGN, DROP = "steady", "announce", "sign", "drop"
WARN_S = 60 * 86400
"""How long before a root ends it is warned about."""
_NAMED = 5


class Rotation(msgspec.Struct, frozen=True):
    """A change of roots under way."""

    old: str
    """Fingerprint of the root that is to go."""
    new: str
    phase: str
    started: float
    since: float
    """When the phase began, seconds since the epoch."""


@dataclass(frozen=True)
class Facts:
    """What is known now."""

    now: float
    bundle: int
    """MODEL sequence of the trust row that this phase asks for; 0: it is not written yet."""
    gateways: Mapping[str, int] = field(default_factory=dict)
    """By replica: the version that all its proxies have acknowledged."""
    silent: tuple[str, ...] = ()
    """Replicas that do not report and may still serve proxies."""
    expected: bool = False
    """Certificates of workloads are in use: somebody must be there to report."""
    old_leaves: int = 0
    """Certificates below the old root that may still be in use."""
    peers_s: float = 0.0
    """How long other meshes may take to learn of a new root."""
    stale_servers: tuple[str, ...] = ()
    """Services that may not know the new root yet, and would refuse who shows its leaves."""


def begin(old: str, new: str, now: float) -> Rotation:
    """The first step."""
    return Rotation(old, new, ANNOUNCE, now, now)


def waits_for(rotation: Rotation, facts: Facts) -> str:
    """Why the next step cannot be made yet; empty: it can."""
    if rotation.phase == SIGN:
        if facts.old_leaves:
            return f"{facts.old_leaves} certificates below the old root are still in use"
        return _behind(facts)
    if rotation.phase == ANNOUNCE and facts.now < rotation.since + facts.peers_s:
        return "other meshes may not have got the new root yet"
    return _behind(facts) or (
        "services that have not got the new root yet: " + _few(facts.stale_servers)
        if rotation.phase == ANNOUNCE and facts.stale_servers
        else ""
    )


def step(rotation: Rotation, facts: Facts) -> Rotation | None:
    """Where it stands now: itself, the next phase, or None when it is over."""
    if waits_for(rotation, facts):
        return rotation
    following = {ANNOUNCE: SIGN, SIGN: DROP}.get(rotation.phase)
    if following is None:
        return None
    return msgspec.structs.replace(rotation, phase=following, since=facts.now)


def warnings(name: str, ends: float, now: float) -> list[str]:
    """What is to be said about the end of a certificate."""
    left = ends - now
    if left > WARN_S:
        return []
    if left <= 0:
        return [f"the {name} has expired"]
    return [f"the {name} ends in {left / 86400:.0f} days: rotate it"]


def _behind(facts: Facts) -> str:
    if not facts.bundle:
        return "the bundle of roots is not written yet"
    if facts.silent:
        return "gateways that do not report: " + _few(facts.silent)
    if facts.expected and not facts.gateways:
        return "no gateway reports, and certificates of workloads are in use"
    behind = [pod for pod, converged in facts.gateways.items() if converged < facts.bundle]
    if behind:
        return f"proxies have not acknowledged change {facts.bundle} at: " + _few(tuple(behind))
    return ""


def _few(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(sorted(names)[:_NAMED]) + more
