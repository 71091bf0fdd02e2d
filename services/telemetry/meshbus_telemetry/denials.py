"""Refusals, and what is audited, counted by who, where and why, told once a window. Pure."""

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from meshbus_telemetry.access import RBAC, Access, identity_of
from meshbus_telemetry.parties import UNKNOWN, Party

MAX_KINDS = 1000
"""Kinds of refusals in one window; more are counted and not told."""
MAX_EVENTS = 100
SAMPLES = 3
_RULE = re.compile(
    r"ns\[(?P<namespace>.*?)\]-(?P<kind>policy|servicerole)\[(?P<name>.*?)\]-rule\[(?P<rule>\d+)\]"
)
_KINDS = {"policy": "AuthorizationPolicy", "servicerole": "ServiceRole"}


class _Refusal(NamedTuple):
    namespace: str
    workload: str
    port: int
    protocol: str
    source: Party
    cause: str
    rule: str
    action: str
    """`ALLOW` or `DENY` of what runs dry; empty: it was refused."""


@dataclass
class _Count:
    first: float
    last: float = 0.0
    count: int = 0
    samples: dict[tuple[str, str, str, int], None] = field(default_factory=dict)


AUDIT = "audit"
"""The cause of what was not refused but is to be told."""


class Event(NamedTuple):
    """One event to publish."""

    verb: str
    """`denied` or `audited`."""
    kind: str
    namespace: str
    name: str
    data: dict[str, Any]


class Denials:
    """Refusals of the window that is open."""

    def __init__(self) -> None:
        self._counts: dict[_Refusal, _Count] = {}
        self.left_out = 0
        """Refusals over the limits, which no event tells."""

    def add(self, access: Access, now: float) -> None:
        """Take one request."""
        if access.cause:
            self._count(access, access.cause, access.rule, "", now)
        for dry in access.dry_run:
            self._count(access, RBAC, dry.rule, dry.action, now)
        if access.audited:
            self._count(access, AUDIT, "", "", now)

    def _count(self, access: Access, cause: str, rule: str, action: str, now: float) -> None:
        at = access.at
        refusal = _Refusal(
            at.namespace,
            at.workload,
            access.port,
            access.protocol,
            access.source,
            cause,
            rule,
            action,
        )
        count = self._counts.get(refusal)
        if count is None:
            if len(self._counts) >= MAX_KINDS:
                self.left_out += 1
                return
            count = self._counts[refusal] = _Count(now)
        count.count += 1
        count.last = now
        if len(count.samples) < SAMPLES and access.protocol == "http":
            count.samples[access.method, access.path, access.host, access.status] = None

    def take(self) -> list[Event]:
        """Events of the window, the most frequent first; a new one begins."""
        counts, self._counts = self._counts, {}
        ordered = sorted(counts.items(), key=lambda item: -item[1].count)
        self.left_out += sum(count.count for _, count in ordered[MAX_EVENTS:])
        return [_event(refusal, count) for refusal, count in ordered[:MAX_EVENTS]]


def _event(refusal: _Refusal, count: _Count) -> Event:
    found = _RULE.search(refusal.rule)
    data = {
        "workload": f"{refusal.namespace}/{refusal.workload}",
        "port": refusal.port,
        "protocol": refusal.protocol,
        "source": {
            "principal": identity_of(refusal.source),
            "namespace": _known(refusal.source.namespace),
            "workload": _known(refusal.source.workload),
        },
        "cause": refusal.cause,
        "rule": refusal.rule,
        "dryRun": bool(refusal.action),
        "action": refusal.action or ("DENY" if refusal.rule else "ALLOW"),
        "count": count.count,
        "first": count.first,
        "last": count.last,
        "samples": [
            {"method": method, "path": path, "host": host, "status": status}
            for method, path, host, status in count.samples
        ],
    }
    if refusal.cause != RBAC:
        data["action"] = "AUDIT" if refusal.cause == AUDIT else ""
    if found is None:
        verb = "audited" if refusal.cause == AUDIT else "denied"
        return Event(verb, "Workload", _known(refusal.namespace), _known(refusal.workload), data)
    data["ruleIndex"] = int(found["rule"])
    return Event("denied", _KINDS[found["kind"]], found["namespace"], found["name"], data)


def _known(text: str) -> str:
    return "" if text == UNKNOWN else text
