"""Bytes of xDS: responses joined from framed resources, requests decoded once.

Source: envoy/service/discovery/v3/discovery.proto.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from copy import copy
from functools import lru_cache
from typing import Any

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.message import DecodeError

from meshbus.compile.resources import Resource, field
from meshbus_xds_gateway.content import Change
from meshbus_xds_gateway.held_before import KnownVersions
from meshbus_xds_gateway.session_state import ProtocolError, Push


@lru_cache(maxsize=64)
def _delta_type(type_url: str) -> bytes:
    return field(4, type_url.encode())


def delta_response(push: Push) -> bytes:
    """A `DeltaDiscoveryResponse`: of one change as it is, of several joined.

    Resources go as they were framed when they were compiled; nothing is encoded again.
    """
    if isinstance(push, Change):
        return push.data
    parts = [resource.framed for change in push.changes for resource in change.updates]
    parts.append(_delta_type(push.type_url))
    parts.append(field(5, push.nonce.encode()))
    parts.extend(field(6, name.encode()) for name in push.removed)
    return b"".join(parts)


def sotw_response(type_url: str, version: str, nonce: str, resources: Iterable[Resource]) -> bytes:
    """`DiscoveryResponse`: version_info=1, resources=2 (Any), type_url=4, nonce=5."""
    parts = [field(1, version.encode())]
    url = field(1, type_url.encode())
    parts.extend(field(2, url + field(2, resource.body)) for resource in resources)
    parts.append(_delta_type(type_url))
    parts.append(field(5, nonce.encode()))
    return b"".join(parts)


class DeltaRequest:
    """A `DeltaDiscoveryRequest`, its long fields ready for use.

    `names` and `known` of equal uploads may be the same objects: hundreds of proxies of a class
    come back at once and upload the same.
    """

    __slots__ = (
        "error_detail",
        "known",
        "names",
        "node",
        "response_nonce",
        "type_url",
        "unsubscribed",
    )

    def __init__(self, message: Any, node: Any) -> None:
        """Takes over the message; `node` is of another."""
        self.node = node
        self.type_url: str = message.type_url
        self.response_nonce: str = message.response_nonce
        self.names = frozenset(message.resource_names_subscribe)
        self.unsubscribed = tuple(message.resource_names_unsubscribe)
        self.error_detail = message.error_detail if message.HasField("error_detail") else None
        """Why a response was refused; None: it was taken."""
        has_known = bool(message.initial_resource_versions)
        self.known: Mapping[str, str] = KnownVersions(message) if has_known else _NOTHING_KNOWN


_NOTHING_KNOWN: Mapping[str, str] = {}
_LONG = 4096
"""Bytes of a request that is worth remembering."""
_SHORT = 128
"""Bytes of an acknowledgement at most: thousands of proxies say the same of the same response."""
_MOST_SHORT = 256
_acknowledgements: dict[bytes, DeltaRequest] = {}
_REMEMBERED_BYTES = 16 * 1024 * 1024
_ONCE = 4096
"""Requests that came once, of which only a number is kept."""


class _Uploads:
    """Long requests, without the node, and what they say: those that came last, and not for the
    first time. Of a fleet that comes back half are like no other."""

    def __init__(self) -> None:
        self._once: OrderedDict[int, None] = OrderedDict()
        self._held: OrderedDict[bytes, DeltaRequest] = OrderedDict()
        self._bytes = 0
        self.used = False
        """One came since `rest`."""

    def rest(self) -> bool:
        """Let go of all of them when none came since the last time. True: there were some."""
        idle = not self.used and bool(self._once)
        if idle:
            self._held.clear()
            self._once.clear()
            self._bytes = 0
        self.used = False
        return idle

    def get(self, data: bytes) -> DeltaRequest | None:
        self.used = True
        found = self._held.get(data)
        if found is not None:
            self._held.move_to_end(data)
        return found

    def keep(self, data: bytes, request: DeltaRequest) -> None:
        number = hash(data)
        if number not in self._once:
            self._once[number] = None
            if len(self._once) > _ONCE:
                self._once.popitem(last=False)
            return
        self._held[data] = request
        self._bytes += len(data)
        while self._bytes > _REMEMBERED_BYTES:
            self._bytes -= len(self._held.popitem(last=False)[0])


_uploads = _Uploads()


def forget_uploads() -> bool:
    """Call now and then: long requests that nobody sends any more are let go of. True: some
    were."""
    return _uploads.rest()


def decode_delta(data: bytes) -> DeltaRequest:
    """A `DeltaDiscoveryRequest`.

    Raises:
        ProtocolError: It is none.
    """
    if len(data) <= _SHORT and data[:1] != _NODE:
        found = _acknowledgements.get(data)
        if found is None:
            node = _decode_any(discovery_pb2.DeltaDiscoveryRequest(), data).node
            found = DeltaRequest(_decode(discovery_pb2.DeltaDiscoveryRequest(), data), node)
            if len(_acknowledgements) >= _MOST_SHORT:
                _acknowledgements.clear()
            _acknowledgements[data] = found
        return found
    at = _after_node(data)
    node = _decode_any(discovery_pb2.DeltaDiscoveryRequest(), data[:at]).node
    if len(data) - at < _LONG:
        return DeltaRequest(_decode(discovery_pb2.DeltaDiscoveryRequest(), data), node)
    rest = data[at:]
    found = _uploads.get(rest)
    if found is None:
        found = DeltaRequest(_decode(discovery_pb2.DeltaDiscoveryRequest(), rest), node)
        _uploads.keep(rest, found)
        return found
    again = copy(found)
    again.node = node
    return again


def _after_node(data: bytes) -> int:
    """Where the first field ends, if it is `node`, which is each proxy's own; else 0."""
    if not data or data[0] != _NODE_TAG:
        return 0
    length, shift, at = 0, 0, 1
    while at < len(data) and shift < 35:
        byte = data[at]
        length |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return at + length if at + length <= len(data) else 0
    return 0


_NODE_TAG = 0x0A
_NODE = bytes([_NODE_TAG])


class SotwRequest:
    """A `DiscoveryRequest`."""

    __slots__ = ("error_detail", "names", "node", "response_nonce", "type_url")

    def __init__(self, message: Any) -> None:
        self.node = message.node
        self.type_url: str = message.type_url
        self.response_nonce: str = message.response_nonce
        self.names = frozenset(message.resource_names)
        self.error_detail = message.error_detail if message.HasField("error_detail") else None
        """Why a response was refused; None: it was taken."""


def decode_sotw(data: bytes) -> SotwRequest:
    """A `DiscoveryRequest`.

    Raises:
        ProtocolError: It is none.
    """
    return SotwRequest(_decode(discovery_pb2.DiscoveryRequest(), data))


def _decode(message: Any, data: bytes) -> Any:
    message = _decode_any(message, data)
    if not message.type_url:
        raise ProtocolError("the request has no type_url")
    return message


def _decode_any(message: Any, data: bytes) -> Any:
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise ProtocolError("the request is not a discovery request") from error
    return message
