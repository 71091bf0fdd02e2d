"""What moves the bytes of streams: the contract that `carrier_grpc` and `carrier_native` keep.

A carrier owns sockets, TLS, HTTP/2 and the framing of gRPC, and knows nothing of xDS. A stream is a
number. Everything that happens is handed over in batches, in the order of each stream:

    opened, message*, [half closed], closed

`BLOCKED` and `WRITABLE` tell about a peer that does not read: a stream is blocked when a message
has to wait behind another one that waits. What is sent nevertheless waits too; it is the sender's
part to send nothing to a blocked stream. It is writable when nothing waits any more.

All methods are called on the event loop's thread, and so is the handler of batches.
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol


class Opened(NamedTuple):
    """A peer has called a method."""

    path: str
    """`/package.Service/Method`."""
    metadata: tuple[tuple[str, str | bytes], ...]
    """Of the call, names in lower case; values of `-bin` names are bytes."""
    peer: str
    """`ADDRESS:PORT`, the address of version 6 in brackets."""
    certificate: bytes | None
    """The peer's verified certificate (DER), if it was asked for and came."""

    def __repr__(self) -> str:
        # Metadata holds tokens, and traces of errors show values.
        return f"Opened({self.path!r}, {self.peer!r})"


class Closed(NamedTuple):
    """The stream is no more; nothing follows."""

    reason: str


class Signal(enum.Enum):
    """What needs no words."""

    HALF_CLOSED = "half closed"
    """The peer will send no more messages; it may still read."""
    BLOCKED = "blocked"
    WRITABLE = "writable"


Event = Opened | bytes | Signal | Closed
"""`bytes`: one message, whole."""
Batch = Sequence[tuple[int, Event]]
"""(stream, what happened), in order."""
Handler = Callable[[Batch], None]


class Status(enum.IntEnum):
    """How a call ends. Source: https://grpc.io/docs/guides/status-codes/"""

    OK = 0
    INVALID_ARGUMENT = 3
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a listener proves itself with. Never printed: it has a private key."""

    key_pem: bytes = field(repr=False)
    chain_pem: bytes
    """The certificate and those that signed it, without the root."""


@dataclass(frozen=True, slots=True)
class Tls:
    """How a listener speaks TLS. `Carrier.renew` changes its certificate."""

    certificate: Certificate
    client_roots_pem: bytes = b""
    """Roots that clients' certificates are checked with; empty: they are not asked for one."""
    require_client: bool = False
    """A client without certificate is refused in the handshake. False: a carrier asks for one if
    it can let clients without any pass."""
    ticket_keys: tuple[bytes, ...] = field(default=(), repr=False)
    """Keys of session tickets, `TICKET_KEY_BYTES` each: the first encrypts, all decrypt. Processes
    that share them resume each other's sessions. Empty: keys of its own. A carrier may be one that
    resumes nothing."""


TICKET_KEY_BYTES = 48
LINGER_S = 10.0
"""How long a stream that is closed waits for a peer that does not take what was sent before."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What peers are allowed. What is beyond is refused, never kept."""

    max_connections: int = 20_000
    max_streams: int = 10_000
    """Streams at one time, over all connections."""
    max_streams_per_connection: int = 100
    max_message_bytes: int = 16 << 20
    max_metadata_bytes: int = 32 << 10
    """Of one call, as HTTP/2 counts them (name, value and 32 for each)."""
    keepalive_s: float = 30.0
    """Between two pings of the server."""
    keepalive_timeout_s: float = 10.0
    """A connection whose ping is not answered for so long is dropped."""
    connection_age_s: float = 2700.0
    """After about so long peers are asked not to begin calls on a connection any more, where a
    carrier cannot ask it of a single one (`leave`). Calls go on."""
    reuse_port: bool = False
    """Several processes listen on the same port and share what comes."""


class CarrierError(Exception):
    """It cannot listen, or what it was given (address, certificate, key) is not usable."""


class Carrier(Protocol):
    """Moves the bytes of one listener."""

    name: ClassVar[str]
    """As the setting `transport` names it."""

    async def start(self, listen: str, handler: Handler, tls: Tls | None, limits: Limits) -> int:
        """Listen at `HOST:PORT` (port 0: any); gives the port. Batches go to `handler`.

        Raises:
            CarrierError: It cannot.
        """

    def send(self, messages: Sequence[tuple[bytes, Sequence[int]]]) -> None:
        """Send each message to its streams. Streams that are gone are skipped: their `Closed` is on
        its way or was there. A message is shared by its streams, not copied for each.
        """

    def close(self, stream: int, status: Status, message: str = "", *, leave: bool = False) -> None:
        """End a call once what was sent before is gone, or `LINGER_S` later; `Closed` follows.

        Args:
            leave: Ask the peer not to use this connection again (GOAWAY), so that its next call may
                reach another process. A carrier that cannot ends the call only.
        """

    def pause(self, stream: int) -> None:
        """Read no more of a stream's messages: HTTP/2 stops the peer. Some may still come."""

    def resume(self, stream: int) -> None:
        """Read on after `pause`."""

    def renew(self, certificate: Certificate) -> None:
        """Use a newer certificate for connections from now on.

        Raises:
            CarrierError: It is not usable; the one before stays.
        """

    def rotate_tickets(self, keys: Sequence[bytes]) -> None:
        """Other `Tls.ticket_keys` from the next handshake on; where there were some at the start.

        Raises:
            CarrierError: They are not usable, or the carrier has keys of its own.
        """

    def counters(self) -> Mapping[str, int]:
        """What it has counted since it started, by name."""

    async def stop(self, grace_s: float) -> None:
        """Listen no more, let streams end for so long, then end them; all have been `Closed`."""
