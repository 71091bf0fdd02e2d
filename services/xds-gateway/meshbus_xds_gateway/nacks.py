"""Refusals told to people: as problems of the report, as events, in the log."""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from meshbus.api.kinds import all_kinds
from meshbus.compile.resources import SHORT_NAMES
from meshbus.model.keys import Key
from meshbus.model.requests import ProxyProblemInfo
from meshbus.model.status import ProxyProblem
from meshbus.runtime.events import publish_event
from meshbus.runtime.service import Context
from meshbus_xds_gateway.fleet import Client
from meshbus_xds_gateway.losses import object_key
from meshbus_xds_gateway.quarantine import Quarantines
from meshbus_xds_gateway.verdicts import Refusal

MAX_PROBLEMS = 100
MAX_MESSAGE = 2000
LEFT_OUT_HERE = "it is left out here"


_KINDS = {info.table: info.kind for info in all_kinds()}


def kind_of_row(key: Key) -> str:
    """The kind of the object that a row of `cfg` holds: by its table, for rows that discovery alone
    needs are not kept here, and others may have gone."""
    return _KINDS.get(key.kind, key.kind) if key.plane == "cfg" else key.kind


def object_name(key: Key) -> str:
    """`Kind namespace/name` of an object."""
    kind = kind_of_row(key)
    return f"{kind} {key.namespace}/{key.name}" if key.namespace else f"{kind} {key.name}"


def problem_of(refusal: Refusal, objects: Iterable[Key], left_out: bool = False) -> ProxyProblem:
    """One refusal for the report, as that of these objects."""
    origins = sorted(objects)
    return ProxyProblem(
        proxy=refusal.proxy,
        type_url=refusal.resource.type_url,
        resources=[refusal.resource.name],
        objects=[object_name(key) for key in origins],
        object_keys=[object_key(key) for key in origins],
        message=refusal.message[:MAX_MESSAGE],
        sequence=refusal.sequence,
        left_out=left_out,
    )


def problems(clients: Iterable[Client], quarantines: Quarantines) -> list[ProxyProblem]:
    """Every refusal that still keeps something from a connected proxy, and each object that is left
    out because of one, each once, bounded."""
    seen: dict[tuple[str, ...], ProxyProblem] = {}
    for left in quarantines.left_out()[:MAX_PROBLEMS]:
        if quarantines.count(left):
            resource = left.refusal.resource
            problem = problem_of(left.refusal, [left.object], left_out=True)
            key = (left.refusal.proxy, resource.type_url, resource.name, str(left.object))
            seen[key] = msgspec.structs.replace(problem, sequence=left.sequence)
    for client in clients:
        for blocked in client.session.blocked.values():
            refusal = blocked.refusal
            resource = refusal.resource
            key = (refusal.proxy, resource.type_url, resource.name, resource.version)
            if key not in seen:
                seen[key] = problem_of(refusal, quarantines.objects_of(refusal))
            if len(seen) >= MAX_PROBLEMS:
                break
    return [seen[key] for key in sorted(seen)]


def problems_of_client(client: Client, quarantines: Quarantines) -> list[ProxyProblemInfo]:
    """What one proxy does not get."""
    return [
        ProxyProblemInfo(what, ", ".join(map(object_name, objects)), message)
        for _, what, objects, message in _refused(client, quarantines)
    ]


def rejections(client: Client, change: int, quarantines: Quarantines) -> list[dict[str, str]]:
    """Refusals of one proxy that concern a change: of its version or a later one, once it is known
    whose fault they are."""
    return [
        {
            "proxy": client.id,
            "resource": what,
            "object": ", ".join(map(object_name, objects)),
            "message": message,
        }
        for sequence, what, objects, message in _refused(client, quarantines, decided=True)
        if sequence >= change
    ]


def is_undecided(client: Client, change: int, quarantines: Quarantines) -> bool:
    """It is not known yet whether what a proxy refuses concerns a change."""
    return quarantines.concerns(client) or any(
        blocked.sequence >= change and quarantines.is_undecided(blocked.refusal)
        for blocked in client.session.blocked.values()
    )


def _refused(
    client: Client, quarantines: Quarantines, *, decided: bool = False
) -> Iterator[tuple[int, str, list[Key], str]]:
    """Model version, resource, objects and message of what a proxy does not get."""
    for (type_url, name), blocked in sorted(client.session.blocked.items()):
        if decided and quarantines.is_undecided(blocked.refusal):
            continue
        objects = sorted(quarantines.objects_of(blocked.refusal))
        message = blocked.refusal.message[:MAX_MESSAGE]
        yield blocked.sequence, f"{_short(type_url)} {name}", objects, message
    for left in quarantines.at(client):
        resource = left.refusal.resource
        message = f"{left.refusal.message[:MAX_MESSAGE]} ({LEFT_OUT_HERE})"
        what = f"{_short(resource.type_url)} {resource.name}"
        yield left.sequence, what, [left.object], message


def _short(type_url: str) -> str:
    return SHORT_NAMES.get(type_url, type_url)


def quarantined(quarantines: Quarantines) -> list[dict[str, Any]]:
    """Every object that is left out, for `/debug/xds-gateway/quarantine`."""
    return [
        {
            "object": object_name(left.object),
            "revision": left.revision,
            "type": _short(left.refusal.resource.type_url),
            "leftOutOf": sorted(left.names),
            "proxies": quarantines.count(left),
            "refusedBy": left.refusal.proxy,
            "message": left.refusal.message[:MAX_MESSAGE],
            "sequence": left.sequence,
        }
        for left in quarantines.left_out()
    ]


async def announce(context: Context[Any], refusal: Refusal, objects: Iterable[Key]) -> None:
    """Publish `nacked` for each of the objects that a refusal is told of."""
    problem = problem_of(refusal, objects)
    data = {
        "proxy": problem.proxy,
        "typeUrl": problem.type_url,
        "resource": refusal.resource.name,
        "message": problem.message,
        "sequence": problem.sequence,
    }
    for key in sorted(objects):
        kind = kind_of_row(key)
        await publish_event(
            context.bus, context.cluster, kind, key.namespace, key.name, "nacked", data
        )
