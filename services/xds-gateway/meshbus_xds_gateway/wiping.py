"""Keys are overwritten in memory when nobody needs them any more, as far as Python can.

What is ours is wiped: the PEM of a key, the message it was put into, and the resource that is kept
while its proxies are connected. What is not: buffers of protobuf, of sockets and of TLS, which are
freed as they are. OpenSSL clears the key itself when the object is gone.
"""

import ctypes
import platform
import sys
from collections.abc import Iterable

from meshbus.compile.resources import Resource
from meshbus.model.keys import Key

_CPYTHON = platform.python_implementation() == "CPython"
_HEADER = bytes.__basicsize__ - 1
"""From the address of a `bytes` to its content."""
_OURS = 2
"""References to what one name alone holds, as `sys.getrefcount` counts them."""


def wipe(data: bytes) -> None:
    """Overwrite bytes with zeros. They must be the caller's own: whoever else has them sees it."""
    if _CPYTHON and len(data) > 1:  # shorter ones are shared by all
        ctypes.memset(id(data) + _HEADER, 0, len(data))


class KeyResource(Resource):
    """A resource with a private key in it: wiped when the last who held it lets it go."""

    __slots__ = ()

    def __init__(self, type_url: str, name: str, body: bytes, origins: Iterable[Key]) -> None:
        super().__init__(type_url, name, body, frozenset(origins))

    def __del__(self) -> None:
        if not _OURS:  # the interpreter ends, and has taken the module apart
            return
        # A message that is on its way to a proxy may be these very bytes.
        if sys.getrefcount(self.framed) <= _OURS:
            wipe(self.framed)
