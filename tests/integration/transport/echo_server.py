"""A carrier that sends every message back and ends a call when its peer does."""

import contextlib
from collections.abc import AsyncIterator

from meshbus_xds_gateway.carrier import Batch, Carrier, Limits, Signal, Status, Tls
from meshbus_xds_gateway.carrier_choice import make_carrier

END = b"end me"
"""Ends the call with a status, and asks the peer to leave the connection."""


@contextlib.asynccontextmanager
async def echoing(transport: str, tls: Tls | None = None) -> AsyncIterator[tuple[Carrier, int]]:
    """The carrier and its port."""
    carrier = make_carrier(transport)

    def handle(batch: Batch) -> None:
        for stream, event in batch:
            if event == END:
                carrier.close(stream, Status.UNAVAILABLE, "another one has room", leave=True)
            elif isinstance(event, bytes):
                carrier.send([(event, [stream])])
            elif event is Signal.HALF_CLOSED:
                carrier.close(stream, Status.OK)

    port = await carrier.start("127.0.0.1:0", handle, tls, Limits())
    try:
        yield carrier, port
    finally:
        await carrier.stop(0)
