"""Compiled resources: encoded once, framed once, shared by content.

A resource is kept as the bytes that go on the wire. Its version is a hash of its content, so any
replica gives the same version to the same resource, and a proxy that reconnects is sent only what
differs.
"""

import base64
import hashlib
import weakref
from collections.abc import Iterable
from typing import Any

from meshbus.compile.engine import Reader
from meshbus.compile.one_set import one_set
from meshbus.model.keys import Key

TYPE_PREFIX = "type.googleapis.com/"
CDS = TYPE_PREFIX + "envoy.config.cluster.v3.Cluster"
EDS = TYPE_PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"
LDS = TYPE_PREFIX + "envoy.config.listener.v3.Listener"
RDS = TYPE_PREFIX + "envoy.config.route.v3.RouteConfiguration"
SDS = TYPE_PREFIX + "envoy.extensions.transport_sockets.tls.v3.Secret"
ECDS = TYPE_PREFIX + "envoy.config.core.v3.TypedExtensionConfig"
VHDS = TYPE_PREFIX + "envoy.config.route.v3.VirtualHost"
RTDS = TYPE_PREFIX + "envoy.service.runtime.v3.Runtime"

SHORT_NAMES = {
    CDS: "cds",
    EDS: "eds",
    LDS: "lds",
    RDS: "rds",
    SDS: "sds",
    ECDS: "ecds",
    VHDS: "vhds",
    RTDS: "rtds",
}
"""Type URLs as counters and logs name them."""


class Resource:
    """One Envoy resource. Equal resources are one object: compare with `is` or `==`."""

    __slots__ = ("__weakref__", "_body_size", "framed", "name", "origins", "type_url", "version")

    type_url: str
    name: str
    version: str
    """11 characters: url-safe base64 of 8 bytes of BLAKE2b over the body."""
    framed: bytes
    """One entry of `DeltaDiscoveryResponse.resources`, with tag and length: entries are joined."""
    origins: frozenset[Key]
    """Config rows it came from: objects people wrote, not endpoints or the mesh config."""

    def __init__(
        self, type_url: str, name: str, body: bytes, origins: frozenset[Key], digest: bytes = b""
    ) -> None:
        self.type_url = type_url
        self.name = name
        self._body_size = len(body)
        self.origins = origins
        self.version = _short(digest or _digest(body))
        self.framed = frame(type_url, name, self.version, body)

    @property
    def body(self) -> bytes:
        """The message, serialized deterministically: contents of the `Any`. Cut out of `framed`, so
        that the bytes are kept once."""
        end = len(self.framed) - len(field(3, self.name.encode()))
        return self.framed[end - self._body_size : end]

    def __repr__(self) -> str:
        return f"<{SHORT_NAMES.get(self.type_url, self.type_url)} {self.name} {self.version}>"


_interned: "weakref.WeakValueDictionary[int, Resource]" = weakref.WeakValueDictionary()
"""By a hash of all that it is made of, or the next number that is free."""


def resource_of(type_url: str, name: str, body: bytes, origins: Iterable[Key] = ()) -> Resource:
    """The one Resource of this content."""
    keys = one_set(origins)
    digest = _digest(body)
    number = hash((type_url, name, digest, keys))
    while (found := _interned.get(number)) is not None:
        if (
            found.origins is keys
            and found.name == name
            and found.type_url == type_url
            and found.body == body
        ):
            return found
        number += 1
    made = _interned[number] = Resource(type_url, name, body, keys, digest)
    return made


def encode(
    reader: Reader, type_url: str, name: str, message: Any, origins: Iterable[Key] = ()
) -> Resource:
    """Serialize a protobuf message to a Resource; counted."""
    reader.encoded(SHORT_NAMES[type_url])
    return resource_of(type_url, name, message.SerializeToString(deterministic=True), origins)


def _digest(body: bytes) -> bytes:
    """Made once for a body, which may be megabytes: the version is the beginning of it."""
    return hashlib.blake2b(body, digest_size=16).digest()


def _short(digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest[:8])[:11].decode()


_ONE_BYTE = tuple(bytes((value,)) for value in range(1 << 7))


def varint(value: int) -> bytes:
    """A non-negative number as protobuf writes it."""
    if value < len(_ONE_BYTE):
        return _ONE_BYTE[value]
    if value < 1 << 14:
        return bytes((value & 0x7F | 0x80, value >> 7))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, data: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def frame(type_url: str, name: str, version: str, body: bytes) -> bytes:
    """A `DeltaDiscoveryResponse.resources` entry.

    Source: envoy/service/discovery/v3/discovery.proto: Resource{version=1, resource=2, name=3},
    DeltaDiscoveryResponse.resources=2; google/protobuf/any.proto: Any{type_url=1, value=2}.
    """
    # Lengths first, so that a long body is copied once.
    kind, tail = field(1, type_url.encode()), field(3, name.encode())
    opens = _TAG_2 + varint(len(body))
    wraps = _TAG_2 + varint(len(kind) + len(opens) + len(body))
    head = field(1, version.encode())
    size = len(head) + len(wraps) + len(kind) + len(opens) + len(body) + len(tail)
    return b"".join((_TAG_2, varint(size), head, wraps, kind, opens, body, tail))


_TAG_2 = varint(2 << 3 | 2)
