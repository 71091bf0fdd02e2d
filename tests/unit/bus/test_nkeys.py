import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshbus.bus.nkeys import UserKey


def test_seed_round_trip() -> None:
    key = UserKey.generate()
    again = UserKey.from_seed(key.seed + "\n")
    assert again.public == key.public
    assert key.public.startswith("U")
    assert key.seed.startswith("SU")


def test_signature_is_of_the_public_key() -> None:
    key = UserKey(bytes(range(32)))
    public = Ed25519PrivateKey.from_private_bytes(bytes(range(32))).public_key()
    public.verify(base64.b64decode(key.sign("nonce")), b"nonce")


@pytest.mark.parametrize("text", ["", "SU", "not base32!", "SUAAAA", UserKey.generate().public])
def test_bad_seed(text: str) -> None:
    with pytest.raises(ValueError):
        UserKey.from_seed(text)


def test_damaged_seed() -> None:
    seed = UserKey.generate().seed
    damaged = seed[:10] + ("A" if seed[10] != "A" else "B") + seed[11:]
    with pytest.raises(ValueError):
        UserKey.from_seed(damaged)
