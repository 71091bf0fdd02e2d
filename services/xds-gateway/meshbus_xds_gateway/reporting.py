"""The gateway's report on STATUS: how far its proxies are and what they refuse."""

from typing import Any

import msgspec

from meshbus.bus.interface import STATUS, BusError
from meshbus.model.status import GatewayReport, status_subject
from meshbus.runtime.service import Context
from meshbus_xds_gateway.fleet import Fleet
from meshbus_xds_gateway.nacks import problems

MOVING_S = 1.0
"""Between reports while something moves."""
QUIET_S = 10.0
"""Between reports otherwise: STATUS is kept in memory and may have been lost."""


async def report(context: Context[Any], fleet: Fleet) -> None:
    """Publish reports until cancelled."""
    subject = status_subject(context.cluster, context.name, context.pod, "report")
    reconnected = [True]
    context.bus.on_reconnect(lambda: reconnected.__setitem__(0, True))
    last: GatewayReport | None = None
    last_at = 0.0
    while True:
        now = context.clock.monotonic()
        fleet.look()
        current = GatewayReport(
            pod=context.pod,
            sequence=fleet.sequence,
            proxies=len(fleet.clients),
            converged=fleet.converged(),
            problems=problems(fleet.clients, fleet.world),
        )
        if fleet.synced and (current != last or reconnected[0] or now - last_at >= QUIET_S):
            try:
                await context.bus.publish(STATUS, subject, msgspec.json.encode(current))
                last, last_at, reconnected[0] = current, now, False
            except BusError as error:
                context.log.debug("report not published", error=str(error))
        await context.clock.sleep(MOVING_S)
