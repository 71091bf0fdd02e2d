"""Refusals told to people: as problems of the report, as events, in the log."""

from collections.abc import Iterable
from typing import Any

from meshbus.api.kinds import all_kinds
from meshbus.compile.resources import SHORT_NAMES
from meshbus.model.keys import Key
from meshbus.model.requests import ProxyProblemInfo
from meshbus.model.status import ProxyProblem
from meshbus.runtime.events import publish_event
from meshbus.runtime.service import Context
from meshbus_xds_gateway.fleet import Client
from meshbus_xds_gateway.losses import object_key
from meshbus_xds_gateway.verdicts import Refusal

MAX_PROBLEMS = 100
MAX_MESSAGE = 2000


_KINDS = {info.table: info.kind for info in all_kinds()}


def kind_of_row(key: Key) -> str:
    """The kind of the object that a row of `cfg` holds: by its table, for rows that discovery alone
    needs are not kept here, and others may have gone."""
    return _KINDS.get(key.kind, key.kind) if key.plane == "cfg" else key.kind


def object_name(key: Key) -> str:
    """`Kind namespace/name` of an object."""
    kind = kind_of_row(key)
    return f"{kind} {key.namespace}/{key.name}" if key.namespace else f"{kind} {key.name}"


def problem_of(refusal: Refusal) -> ProxyProblem:
    """One refusal for the report."""
    origins = sorted(refusal.resource.origins)
    return ProxyProblem(
        proxy=refusal.proxy,
        type_url=refusal.resource.type_url,
        resources=[refusal.resource.name],
        objects=[object_name(key) for key in origins],
        object_keys=[object_key(key) for key in origins],
        message=refusal.message[:MAX_MESSAGE],
        sequence=refusal.sequence,
    )


def problems(clients: Iterable[Client]) -> list[ProxyProblem]:
    """Every refusal that still keeps something from a connected proxy, each once, bounded."""
    seen: dict[tuple[str, str, str, str], ProxyProblem] = {}
    for client in clients:
        for blocked in client.session.blocked.values():
            refusal = blocked.refusal
            resource = refusal.resource
            key = (refusal.proxy, resource.type_url, resource.name, resource.version)
            if key not in seen:
                seen[key] = problem_of(refusal)
            if len(seen) >= MAX_PROBLEMS:
                break
    return [seen[key] for key in sorted(seen)]


def problems_of_client(client: Client) -> list[ProxyProblemInfo]:
    """What one proxy does not get."""
    return [
        ProxyProblemInfo(
            resource=f"{SHORT_NAMES.get(type_url, type_url)} {name}",
            object=", ".join(object_name(key) for key in sorted(blocked.refusal.resource.origins)),
            message=blocked.refusal.message[:MAX_MESSAGE],
        )
        for (type_url, name), blocked in sorted(client.session.blocked.items())
    ]


def rejections(client: Client, change: int) -> list[dict[str, str]]:
    """Refusals of one proxy that concern a change: of its version or a later one."""
    return [
        {
            "proxy": client.id,
            "resource": f"{SHORT_NAMES.get(type_url, type_url)} {name}",
            "object": ", ".join(
                object_name(key) for key in sorted(blocked.refusal.resource.origins)
            ),
            "message": blocked.refusal.message[:MAX_MESSAGE],
        }
        for (type_url, name), blocked in sorted(client.session.blocked.items())
        if blocked.sequence >= change
    ]


async def announce(context: Context[Any], refusal: Refusal) -> None:
    """Publish `nacked` for each object that a refused resource came from."""
    problem = problem_of(refusal)
    data = {
        "proxy": problem.proxy,
        "typeUrl": problem.type_url,
        "resource": refusal.resource.name,
        "message": problem.message,
        "sequence": problem.sequence,
    }
    for key in sorted(refusal.resource.origins):
        kind = kind_of_row(key)
        await publish_event(
            context.bus, context.cluster, kind, key.namespace, key.name, "nacked", data
        )
