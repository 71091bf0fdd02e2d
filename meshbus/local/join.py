"""Join tokens: asked of the ca, opened here, kept in a file that only the Envoy's user reads."""

import time
from pathlib import Path

import msgspec

from meshbus.bus.interface import Bus
from meshbus.local.bootstrap import TOKEN_FILE
from meshbus.local.desired import InstanceSpec
from meshbus.local.home import write_private
from meshbus.model.requests import JOIN_TOKEN, JoinTokenReply, JoinTokenRequest
from meshbus.runtime.calls import CallError, call
from meshbus.runtime.sealed import SealError, recipient

TTL_S = 3600
RETRY_S = 0.2
_EXPIRY_FILE = "token-expires"


async def fetch_token(
    bus: Bus, instance: InstanceSpec, folder: Path, *, owner: int | None = None
) -> None:
    """Get a token for an instance and put it into the folder of its Envoy.

    Raises:
        CallError: The ca refused or is away.
    """
    key = recipient()
    reply = await call(
        bus,
        JOIN_TOKEN,
        JoinTokenRequest(
            namespace=instance.namespace,
            service_account=instance.spec.service_account,
            instance=instance.name,
            workload=instance.workload,
            public_key=key.public_key,
            ttl_s=TTL_S,
            gateway=instance.spec.gateway,
        ),
        JoinTokenReply,
    )
    try:
        token = key.open(reply.sealed)
    except SealError as error:
        raise CallError("internal", f"the ca's answer cannot be opened: {error}") from error
    write_private(folder / TOKEN_FILE, token, owner=owner)
    write_private(folder / _EXPIRY_FILE, msgspec.json.encode(reply.expires), owner=owner)


def renew_in_s(folder: Path, now: float | None = None) -> float:
    """Seconds until the token in a folder has to be renewed, half its remaining life; 0 when there
    is none or it is over."""
    try:
        expires = msgspec.json.decode((folder / _EXPIRY_FILE).read_bytes(), type=float)
        if not (folder / TOKEN_FILE).stat().st_size:
            return 0.0
    except (OSError, msgspec.MsgspecError):
        return 0.0
    left = expires - (time.time() if now is None else now)
    return max(0.0, left - TTL_S / 2)
