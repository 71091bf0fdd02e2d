"""What the rest of Meshbus may ask of the bus. `meshbus.bus.connection` (NATS) and
`meshbus.bus.memory` (a fake) do it, and pass the same contract tests.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

MODEL = "MODEL"
MODEL_H = "MODEL_H"
STATUS = "STATUS"
LEASE = "LEASE"
EVENTS = "EVENTS"
CERTS = "CERTS"


class BusError(Exception):
    """Root of what the bus raises.

    BusError
    ├── BusUnavailable   not connected, no answer in time, no stream: try again
    ├── WriteConflict    the fence or the expected revision has moved: somebody else writes
    ├── NoResponders     nobody serves the subject
    └── TooLarge         a message over the limit: it was not sent
    """


class BusUnavailable(BusError): ...


class WriteConflict(BusError): ...


class NoResponders(BusError): ...


class TooLarge(BusError): ...


class Message(NamedTuple):
    """A message of a stream."""

    subject: str
    data: bytes
    """Empty: a tombstone."""
    sequence: int


class Change(NamedTuple):
    """A message to write. `data` None writes a tombstone."""

    subject: str
    data: bytes | None


class Fence(NamedTuple):
    """Proof of the right to write: `sequence` is the last one of the fence subject."""

    subject: str
    sequence: int


class Applier(Protocol):
    """Takes what a follower delivers. Synchronous: apply to memory, never wait.

    A fresh follow is `begin`, messages, `end`; the state built since `begin` replaces the old one
    at `end` and not before. After `end`, `apply` gets each batch whole (a batch of one writer is
    never split).
    """

    def begin(self) -> None: ...

    def apply(self, messages: Sequence[Message]) -> None: ...

    def end(self, sequence: int) -> None: ...


class FollowerHandle(Protocol):
    """A running follower."""

    @property
    def synced(self) -> bool:
        """The first snapshot is whole."""

    @property
    def sequence(self) -> int:
        """Last sequence applied."""

    async def wait_synced(self) -> None: ...

    async def run(self) -> None:
        """Follow until cancelled; survives restarts of the server and loss of the stream."""


Handler = Callable[[bytes], Awaitable[bytes]]


class Bus(Protocol):
    """One connection, one identity."""

    @property
    def connected(self) -> bool: ...

    async def ensure_streams(self) -> None:
        """Create or update the streams, now and after each reconnect; does nothing when they
        are as they should be."""

    def follower(
        self, stream: str, filters: Sequence[str], applier: Applier, *, name: str = ""
    ) -> FollowerHandle: ...

    async def commit(
        self, changes: Sequence[Change], fence: Fence, *, timeout: float = 10.0
    ) -> int:
        """Write changes to MODEL as one atomic batch under a fence; at most 1000.

        Returns:
            The sequence of the last one: the id of the change.
        Raises:
            WriteConflict: The fence has moved; nothing was written.
            TooLarge: One of them is over the limit; nothing was written.
            BusUnavailable: Not known to be written; read back before writing again.
        """

    async def take_fence(self, subject: str, holder: str) -> Fence:
        """Become the writer: all fences taken before are void from now on."""

    async def last(self, stream: str, subject: str) -> Message | None:
        """The last message of a subject, which may have wildcards, read from the stream's
        leader."""

    async def publish(
        self,
        stream: str,
        subject: str,
        data: bytes,
        *,
        expect: int | None = None,
        ttl_s: float | None = None,
    ) -> int:
        """Store one message of STATUS, LEASE, EVENTS or CERTS; `expect` is the sequence that the
        subject's last message must have (0: none).

        Raises:
            WriteConflict: `expect` does not hold.
        """

    async def request(self, subject: str, data: bytes, *, timeout: float = 2.0) -> bytes:
        """Ask one of those that serve a subject."""

    async def serve(self, subject: str, handler: Handler, *, queue: str = "") -> None:
        """Answer requests; `queue`: replicas share them."""

    def on_reconnect(self, callback: Callable[[], None]) -> None: ...

    async def close(self) -> None: ...
