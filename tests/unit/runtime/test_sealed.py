import base64

import pytest

from meshbus.runtime.sealed import SealError, recipient, seal


def test_only_the_recipient_opens_it() -> None:
    one, two = recipient(), recipient()
    box = seal(one.public_key, b"secret")
    assert b"secret" not in base64.b64decode(box)
    assert one.open(box) == b"secret"
    with pytest.raises(SealError):
        two.open(box)


def test_damage_is_noticed() -> None:
    one = recipient()
    raw = bytearray(base64.b64decode(seal(one.public_key, b"secret")))
    raw[-1] ^= 1
    with pytest.raises(SealError):
        one.open(base64.b64encode(bytes(raw)).decode())
    with pytest.raises(SealError):
        one.open("???")
    with pytest.raises(SealError):
        seal("short", b"x")
