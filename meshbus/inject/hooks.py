"""What the kubelet runs in the proxy's container when it starts and when it ends.

Only a shell that can open a connection is needed, which upstream's image has. The admin interface
listens on the pod's loopback alone.
"""

from typing import Any

from msgspec import UNSET

from meshbus.api.durations import SECOND_NS, nanoseconds
from meshbus.api.mesh.proxy_config import MeshProxyConfig

_DEFAULT_DRAIN_S = 5
_LONGEST_DRAIN_S = 3600

_ASK = (
    'ask() { exec 3<>"/dev/tcp/127.0.0.1/$1" || return 1; '
    'printf "%s %s HTTP/1.1\\r\\nhost: localhost\\r\\nconnection: close\\r\\n'
    'content-length: 0\\r\\n\\r\\n" "$2" "$3" >&3; cat <&3; exec 3>&-; }; '
)
_HOLD = (
    _ASK
    + 'until ask PORT GET /healthz/ready 2>/dev/null | grep -q "^HTTP/1.1 200"; do sleep 0.5; done'
)
_DRAIN = (
    _ASK + "ask PORT POST /healthcheck/fail >/dev/null; "
    'ask PORT POST "/drain_listeners?SCOPEgraceful&skip_exit" >/dev/null; sleep SECONDS'
)
_UNTIL_IDLE = (
    '; busy() { ask PORT GET "/stats?filter=^listener.*downstream_cx_active" '
    '| grep -v "admin\\|status\\|15021\\|15020\\|15090" '
    '| tr -d "\\r" | awk -F": " \'/_active: /{s+=$2} END{exit s==0}\'; }; '
    "while busy; do sleep 1; done"
)


def hold_hook(ready_port: int) -> dict[str, Any]:
    """postStart of a sidecar that starts before the application: ends when it is ready."""
    return _run(_HOLD.replace("PORT", str(ready_port)))


def drain_hook(proxy: MeshProxyConfig, *, gateway: bool) -> dict[str, Any]:
    """preStop: new connections are told to go elsewhere, those that are there may end. What an
    application calls out by goes on; all listeners of a gateway are drained.

    The pod is out of every load balancer before it is over; with
    EXIT_ON_ZERO_ACTIVE_CONNECTIONS it waits until the last connection has ended, as long as
    the pod's grace period lets it.
    """
    idle = waits_until_idle(proxy)
    seconds = drain_seconds(proxy, idle=idle)
    script = _DRAIN + (_UNTIL_IDLE if idle else "")
    script = script.replace("SCOPE", "" if gateway else "inboundonly&")
    script = script.replace("PORT", str(proxy.proxy_admin_port)).replace("SECONDS", str(seconds))
    return _run(script)


def waits_until_idle(proxy: MeshProxyConfig) -> bool:
    """Whether a proxy that is to end goes on until its last connection has ended."""
    return proxy.proxy_metadata.get("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "").lower() == "true"


def drain_seconds(proxy: MeshProxyConfig, *, idle: bool) -> int:
    """How long it waits at least."""
    wish = proxy.termination_drain_duration
    if idle:
        wish = proxy.proxy_metadata.get("MINIMUM_DRAIN_DURATION", "5s")
    if wish is UNSET or not isinstance(wish, str):
        return _DEFAULT_DRAIN_S
    length = nanoseconds(wish)
    if length is None or length < 0:
        return _DEFAULT_DRAIN_S
    return min(-(-length // SECOND_NS), _LONGEST_DRAIN_S)


def _run(script: str) -> dict[str, Any]:
    return {"exec": {"command": ["/bin/bash", "-c", script]}}
