"""The end of an Envoy of this machine: those who are connected are told to go elsewhere, requests
that are under way may end.

Source: Istio, `terminationDrainDuration` of ProxyConfig, and its agent (pkg/envoy/agent.go).
"""

import asyncio
import time
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from meshbus.local.bootstrap import ADMIN_SOCKET
from meshbus.local.probe import ask_envoy
from meshbus.local.proxy_start import ProxyStart

_LOOK_S = 0.1
_QUIET_S = 0.5
"""Nobody has come for so long: callers have heard that it goes."""
_CONNECTIONS = r"^listener.*downstream_cx_active$"


class _Load(NamedTuple):
    """What an Envoy is at work with."""

    active: int
    begun: int
    """Since it runs."""


async def drain(folder: Path, start: ProxyStart, *, gateway: bool = False) -> None:
    """Until nobody needs it any more: no request is under way and none has come for a moment, or,
    where it is to wait for that, nobody is connected. At least and at most as long as `start` says.

    Args:
        folder: Where its admin socket is.
        gateway: All its listeners serve others, not those alone that are for its application.
    """
    scope = "" if gateway else "inboundonly&"
    ask = f"/drain_listeners?{scope}graceful&skip_exit"
    await ask_envoy(folder, ADMIN_SOCKET, ask, method="POST")
    began = quiet_since = time.monotonic()
    seen: _Load | None = None
    while True:
        load = await (_connections(folder) if start.until_idle else _requests(folder, gateway))
        now = time.monotonic()
        if load is None or now - began >= start.longest_drain_s:
            return
        if load.active or load != seen:
            seen, quiet_since = load, now
        elif now - quiet_since >= _QUIET_S and now - began >= start.shortest_drain_s:
            return
        await asyncio.sleep(_LOOK_S)


async def _requests(folder: Path, gateway: bool) -> _Load | None:
    """Requests of HTTP, and connections of TCP, that come in; None if it does not answer."""
    way = "outbound" if gateway else "[iI]nbound"
    wanted = rf"^(http\.{way}.*\.downstream_rq|cluster\.{way}.*\.upstream_rq)_(active|total)$"
    return await _count(folder, wanted)


async def _connections(folder: Path) -> _Load | None:
    """Connections of others with its listeners; None if it does not answer."""
    return await _count(folder, _CONNECTIONS)


async def _count(folder: Path, wanted: str) -> _Load | None:
    path = f"/stats?usedonly&filter={quote(wanted, safe='')}"
    status, text = await ask_envoy(folder, ADMIN_SOCKET, path)
    if status != 200:
        return None
    active = begun = 0
    for line in text.splitlines():
        name, _, number = line.rpartition(": ")
        if not number.isdigit() or name.startswith("listener.admin."):
            continue
        if name.endswith("_active"):
            active += int(number)
        else:
            begun += int(number)
    return _Load(active, begun)
