"""The end of an Envoy of this machine: new connections are told to go elsewhere, those that are
there may end.

Source: Istio, `terminationDrainDuration` of ProxyConfig, and its agent (pkg/envoy/agent.go).
"""

import asyncio
from pathlib import Path

from meshbus.local.bootstrap import ADMIN_SOCKET
from meshbus.local.probe import ask_envoy
from meshbus.local.proxy_start import ProxyStart

_DRAIN = "/drain_listeners?inboundonly&graceful&skip_exit"
_CONNECTIONS = "/stats?filter=^listener.*downstream_cx_active"
_LOOK_S = 0.2


async def drain(folder: Path, start: ProxyStart) -> None:
    """Until its time is over, and where it waits for that, nobody is connected any more.

    Args:
        folder: Where its admin socket is.
    """
    await ask_envoy(folder, ADMIN_SOCKET, _DRAIN, method="POST")
    await asyncio.sleep(start.drain_s)
    while start.until_idle and await _connections(folder):  # noqa: ASYNC110 - Envoy has no event
        await asyncio.sleep(_LOOK_S)


async def _connections(folder: Path) -> int:
    """Of others with its listeners; 0 if it does not answer."""
    status, text = await ask_envoy(folder, ADMIN_SOCKET, _CONNECTIONS)
    if status != 200:
        return 0
    lines = (line.rpartition(": ") for line in text.splitlines())
    return sum(
        int(number)
        for name, _, number in lines
        if name.endswith(".downstream_cx_active") and ".admin." not in name and number.isdigit()
    )
