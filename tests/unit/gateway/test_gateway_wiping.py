"""Private keys in memory: overwritten when the last who holds them lets them go."""

import ctypes

from meshbus_xds_gateway.secret_resources import certificate_secret
from meshbus_xds_gateway.wiping import KeyResource, wipe

from meshbus.compile.resources import SDS

KEY = b"-----BEGIN PRIVATE KEY-----\nnobody's\n-----END PRIVATE KEY-----\n"


def content(address: int, size: int) -> bytes:
    """What is at the place of a `bytes` object, whoever it belongs to by now."""
    return ctypes.string_at(address + bytes.__basicsize__ - 1, size)


def test_bytes_are_overwritten_where_they_are() -> None:
    key = bytes(bytearray(KEY))
    wipe(key)
    assert key == bytes(len(KEY))
    one = b"a"
    wipe(one)
    assert one == b"a", "short ones are shared"


def test_a_resource_is_wiped_with_its_last_holder(monkeypatch) -> None:
    wiped: list[bytes] = []

    def noting(data: bytes) -> None:
        wiped.append(bytes(bytearray(data)))
        wipe(data)
        assert content(id(data), len(data)) == bytes(len(data))

    monkeypatch.setattr("meshbus_xds_gateway.wiping.wipe", noting)
    first = KeyResource(SDS, "default", KEY, ())
    held = [first]
    del first
    assert not wiped, "a proxy still has it"
    held.clear()
    assert len(wiped) == 1
    assert KEY in wiped[0]

    on_its_way = KeyResource(SDS, "default", KEY, ())
    message = on_its_way.framed
    del on_its_way
    assert KEY in message, "what is being sent is whole"
    assert len(wiped) == 1


def test_a_certificate_is_what_is_delivered_and_its_message_is_wiped(monkeypatch) -> None:
    wiped: list[bytes] = []
    monkeypatch.setattr(
        "meshbus_xds_gateway.secret_resources.wipe", lambda data: wiped.append(bytes(data))
    )
    resource = certificate_secret("default", b"chain", KEY)
    assert KEY in resource.body
    assert len(wiped) == 1
    assert KEY in wiped[0]
