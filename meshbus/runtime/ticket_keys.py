"""Keys of TLS session tickets that processes of one machine share: made in memory by the one that
started the others, given to them over a socket of theirs alone, never on the bus nor on a disk.

A ring of keys is `current, next, previous...`: the first encrypts, all decrypt. The next key is
known to everybody a whole turn before it is used, so that a process which hears of a turn a little
later still resumes what another one has handed out.
"""

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Mapping

import msgspec

KEY_BYTES = 48
PREVIOUS = 2
"""Keys that are still taken after their turn: tickets live half a day."""
ROTATE_S = 6 * 3600.0
CHANNEL = "MESHBUS_WORKER_CHANNEL"
"""Variable with the descriptor that a worker hears from its supervisor on."""

_LENGTH = struct.Struct(">I")
_LONGEST = 64 * 1024


class Told(msgspec.Struct, frozen=True):
    """What a supervisor tells its workers. Never printed: it has keys."""

    ticket_keys: list[bytes]
    workers: int = 1
    """How many there are."""

    def __repr__(self) -> str:
        """Without the keys."""
        return f"Told({len(self.ticket_keys)} keys)"


class TicketRing:
    """The keys as their maker has them."""

    def __init__(self, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        self._random = random_bytes
        self._keys = [random_bytes(KEY_BYTES), random_bytes(KEY_BYTES)]

    @property
    def keys(self) -> tuple[bytes, ...]:
        """Current, next, previous ones."""
        return tuple(self._keys)

    def turn(self) -> None:
        """The next key becomes the current one; the oldest is forgotten."""
        current, following, *previous = self._keys
        self._keys = [following, self._random(KEY_BYTES), current, *previous[: PREVIOUS - 1]]


class SupervisorGoneError(Exception):
    """Who started this worker has ended; so does the worker, or nobody would keep it."""


class WorkerChannel:
    """What a worker hears from its supervisor. `run` it for as long as the process lives."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._first = asyncio.Event()
        self._callbacks: list[Callable[[tuple[bytes, ...]], None]] = []
        self.ticket_keys: tuple[bytes, ...] = ()
        self.workers = 1

    async def ready(self) -> None:
        """Until the supervisor has told the keys."""
        await self._first.wait()

    def on_ticket_keys(self, callback: Callable[[tuple[bytes, ...]], None]) -> None:
        """Call with the keys whenever they are others."""
        self._callbacks.append(callback)

    async def run(self) -> None:
        """Until cancelled.

        Raises:
            SupervisorGoneError: The supervisor has ended.
        """
        reader, writer = await asyncio.open_connection(sock=self._socket)
        try:
            while True:
                (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
                if length > _LONGEST:
                    raise SupervisorGoneError("the supervisor says what is not understood")
                told = msgspec.msgpack.decode(await reader.readexactly(length), type=Told)
                self.ticket_keys, self.workers = tuple(told.ticket_keys), told.workers
                self._first.set()
                for callback in self._callbacks:
                    callback(self.ticket_keys)
        except (asyncio.IncompleteReadError, OSError) as error:
            raise SupervisorGoneError("the supervisor of this worker has ended") from error
        finally:
            writer.close()


def message(told: Told) -> bytes:
    """As it travels."""
    data = msgspec.msgpack.encode(told)
    return _LENGTH.pack(len(data)) + data


def channel_of(env: Mapping[str, str]) -> WorkerChannel | None:
    """The channel of this process; None: nobody supervises it as a worker."""
    descriptor = env.get(CHANNEL, "")
    if not descriptor.isdigit():
        return None
    sock = socket.socket(fileno=int(descriptor))
    sock.setblocking(False)
    os.set_inheritable(sock.fileno(), False)
    return WorkerChannel(sock)
