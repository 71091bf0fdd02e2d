"""Conditions of objects that say that something is wrong.

Source: Istio, analysis message IST0171.
"""

from collections.abc import Iterator
from typing import Any

from meshbus.analyze.messages import Message, about
from meshbus.analyze.objects import (
    GATEWAY_API,
    NETWORKING,
    SECURITY,
    Object,
    Objects,
    records,
    text,
)

_BOUND = ("istio.io/WaypointBound",)
_ROUTED = ("Accepted", "Programmed", "ResolvedRefs")
_LOOKED_AT = {
    ("", "Service"): _BOUND,
    (NETWORKING, "ServiceEntry"): _BOUND,
    (SECURITY, "AuthorizationPolicy"): ("ZtunnelAccepted", "WaypointAccepted"),
    (GATEWAY_API, "Gateway"): _ROUTED,
    (GATEWAY_API, "HTTPRoute"): _ROUTED,
    (GATEWAY_API, "GRPCRoute"): _ROUTED,
}


def negative(objects: Objects) -> Iterator[Message]:
    """No condition is false."""
    for (group, kind), types in _LOOKED_AT.items():
        for one in objects.of(group, kind):
            for path, condition in _conditions(one):
                name, reason = text(condition.get("type")), text(condition.get("reason"))
                partly = name == "WaypointAccepted" and reason == "PartiallyInvalid"
                if name in types and (condition.get("status") == "False" or partly):
                    message = f"{name} is not true: {reason}: {text(condition.get('message'))}"
                    yield about(one, "IST0171", message, path)


def _conditions(one: Object) -> Iterator[tuple[str, dict[str, Any]]]:
    for at, condition in enumerate(records(one.status.get("conditions"))):
        yield f"status.conditions[{at}]", condition
    for index, parent in enumerate(records(one.status.get("parents"))):
        for at, condition in enumerate(records(parent.get("conditions"))):
            yield f"status.parents[{index}].conditions[{at}]", condition
