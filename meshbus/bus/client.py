"""The client of nats-py, with a short way for messages that come by the hundred thousand.

nats-py builds an object for each message, parses its headers letter by letter and hands it through
two queues and a task: more than half of what following MODEL cost. A raw subscription gets the
parts of a message as they stand in the protocol, in a plain call.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from nats.aio.client import Client


class RawMessage(NamedTuple):
    """A message as it came."""

    subject: str
    reply: str
    data: bytes
    headers: bytes
    """The header block, its first line included; empty: none."""


class RawClient(Client):  # type: ignore[misc]
    """A client with raw subscriptions besides all others."""

    def __init__(self) -> None:
        super().__init__()
        self._raw: dict[int, Callable[[RawMessage], None]] = {}

    async def subscribe_raw(self, subject: str, received: Callable[[RawMessage], None]) -> Any:
        """Call `received`, which must not wait, with each message of a subject."""
        subscription = await self.subscribe(subject)
        self._raw[subscription._id] = received
        return subscription

    async def flush(self, timeout: int = 10) -> None:
        """Until the server has done what was asked of it before.

        nats-py 2.16 writes the ping to the socket at once, and commands such as SUB by a task a
        moment later: its answer proves nothing about those (a request to what was just served
        found nobody, once in some dozen times on a busy machine).
        """
        await self._flush_pending(force_flush=True)
        await super().flush(timeout)

    async def unsubscribe_raw(self, subscription: Any) -> None:
        """No more of them."""
        self._raw.pop(subscription._id, None)
        await subscription.unsubscribe()

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        # The one method that nats-py's parser calls with every message.
        received = self._raw.get(sid)
        if received is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        self.stats["in_msgs"] += 1
        self.stats["in_bytes"] += len(data)
        received(RawMessage(subject.decode(), reply.decode(), data, headers or b""))


def headers_of(block: bytes) -> dict[str, str]:
    """The headers of a block; of an answer of the server also `Status` and `Description`.

    Source: https://docs.nats.io/reference/reference-protocols/nats-protocol (HMSG).
    """
    first, *lines = block.decode("utf-8", "replace").split("\r\n")
    out: dict[str, str] = {}
    _, _, status = first.partition(" ")
    if status:
        out["Status"], _, out["Description"] = status.partition(" ")
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            out[name] = value.strip()
    return out
