"""What a message of MODEL holds: an envelope of msgpack arrays around the body of one row.

Readers decode the envelope first and the body only when they need it. Fields are appended, never
reordered: an older reader ignores what it does not know, a newer one uses the defaults.
"""

import hashlib
import zlib

import msgspec

from meshbus.model.keys import Key

ENVELOPE_VERSION = 1
COMPRESS_FROM_BYTES = 8192


class Envelope(msgspec.Struct, array_like=True, frozen=True):
    """One row's message."""

    v: int
    """Version of the envelope."""
    kind: str
    """Table of the row, `<plane>.<kind>`."""
    source: tuple[str, str]
    """Where the row came from: (origin, its version there), e.g. ("files", "reviews.yaml")."""
    ts: float
    """When the writer wrote it, seconds since the epoch by the writer's clock."""
    digest: bytes
    """8 bytes of BLAKE2b over the body before compression; equal digests are equal rows."""
    writer: str
    """Which process wrote it, for people; the fence decides who may write."""
    batch: tuple[str, int, int] | None = None
    """(id, index from 1, size) of the atomic batch it travelled in."""
    encoding: int = 0
    """0: body is msgpack; 1: body is zlib of msgpack."""
    body: bytes = b""
    """The row, encoded as its Struct of `meshbus.model.rows`."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Envelope)


def digest_of(body: bytes) -> bytes:
    """8 bytes that stand for the content of a body."""
    return hashlib.blake2b(body, digest_size=8).digest()


def seal(
    key: Key, body: bytes, *, ts: float, writer: str, source: tuple[str, str] = ("", "")
) -> bytes:
    """The message for a row whose body is already encoded."""
    packed = zlib.compress(body, 1) if len(body) >= COMPRESS_FROM_BYTES else body
    return _encoder.encode(
        Envelope(
            v=ENVELOPE_VERSION,
            kind=key.table,
            source=source,
            ts=ts,
            digest=digest_of(body),
            writer=writer,
            encoding=1 if packed is not body else 0,
            body=packed,
        )
    )


def unseal(message: bytes) -> Envelope:
    """The envelope of a message, its body decompressed.

    Raises:
        msgspec.DecodeError, zlib.error: The message is not an envelope of ours.
    """
    envelope = _decoder.decode(message)
    if envelope.encoding == 1:
        return msgspec.structs.replace(envelope, encoding=0, body=zlib.decompress(envelope.body))
    return envelope
