"""Bytes of xDS: responses joined from framed resources, requests decoded once.

Source: envoy/service/discovery/v3/discovery.proto.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.message import DecodeError

from meshbus.compile.resources import Resource, field
from meshbus_xds_gateway.session_state import ProtocolError, Push


@lru_cache(maxsize=64)
def _delta_type(type_url: str) -> bytes:
    return field(4, type_url.encode())


def delta_response(push: Push) -> bytes:
    """A `DeltaDiscoveryResponse`: of one change as it is, of several joined.

    Resources go as they were framed when they were compiled; nothing is encoded again.
    """
    if len(push.changes) == 1:
        return push.changes[0].data
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


def decode_delta(data: bytes) -> Any:
    """A `DeltaDiscoveryRequest`.

    Raises:
        ProtocolError: It is none.
    """
    return _decode(discovery_pb2.DeltaDiscoveryRequest(), data)


def decode_sotw(data: bytes) -> Any:
    """A `DiscoveryRequest`.

    Raises:
        ProtocolError: It is none.
    """
    return _decode(discovery_pb2.DiscoveryRequest(), data)


def _decode(message: Any, data: bytes) -> Any:
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise ProtocolError("the request is not a discovery request") from error
    if not message.type_url:
        raise ProtocolError("the request has no type_url")
    return message
