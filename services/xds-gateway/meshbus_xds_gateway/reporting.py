"""The gateway's report on STATUS: how far its proxies are and what they refuse."""

from collections.abc import Sequence
from typing import Any

import msgspec

from meshbus.bus.interface import STATUS, BusError
from meshbus.model.status import GatewayReport, status_subject
from meshbus.runtime.service import Context
from meshbus_xds_gateway.fleet import Fleet
from meshbus_xds_gateway.load import Load
from meshbus_xds_gateway.nacks import problems
from meshbus_xds_gateway.streams import XdsServer

MOVING_S = 1.0
"""Between reports while something moves."""
QUIET_S = 10.0
"""Between reports otherwise: STATUS is kept in memory and may have been lost."""


async def report(
    context: Context[Any], fleet: Fleet, load: Load, servers: Sequence[XdsServer]
) -> None:
    """Publish reports, and shed streams that others have room for, until cancelled."""
    subject = status_subject(context.cluster, context.name, context.pod, "report")
    reconnected = [True]
    context.bus.on_reconnect(lambda: reconnected.__setitem__(0, True))
    last: GatewayReport | None = None
    last_at = 0.0
    while True:
        now = context.clock.monotonic()
        fleet.look()
        load.look()
        shed(context, fleet, load, servers)
        current = GatewayReport(
            pod=context.pod,
            sequence=fleet.sequence,
            proxies=len(fleet.clients),
            converged=fleet.converged(),
            problems=problems(fleet.clients, fleet.quarantines),
            cpu=round(load.cpu, 1),
            memory=round(load.memory, 1),
            waiting=sum(server.waiting for server in servers),
            losses=fleet.losses.at(fleet.sequence),
        )
        if fleet.synced and (current != last or reconnected[0] or now - last_at >= QUIET_S):
            try:
                await context.bus.publish(STATUS, subject, msgspec.json.encode(current))
                last, last_at, reconnected[0] = current, now, False
            except BusError as error:
                context.log.debug("report not published", error=str(error))
        await context.clock.sleep(MOVING_S)


def shed(context: Context[Any], fleet: Fleet, load: Load, servers: Sequence[XdsServer]) -> None:
    """End streams of which an overloaded replica has more than its share."""
    count = load.to_shed(len(fleet.clients))
    if count:
        ended = 0
        for server in servers:
            ended += server.shed(count - ended)
        context.log.info("streams are shed", count=ended, cpu=round(load.cpu, 2))
