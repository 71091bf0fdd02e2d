"""Row keys and the NATS subjects that carry them.

A row of the stream MODEL has the subject `m.<cluster>.<plane>.<kind>.<namespace>.<name>[.<shard>]`.
Tokens are escaped so that any Kubernetes name or host fits: every byte outside `[-_a-zA-Z0-9]`
becomes `=XX` (hex); an empty token is `-`, a literal `-` is `=2D`.
"""

from typing import NamedTuple

MODEL_PREFIX = "m"
_PLAIN = frozenset(b"-_abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")


class Key(NamedTuple):
    """The identity of a row. `namespace` is empty for what belongs to the whole cluster."""

    cluster: str
    plane: str
    kind: str
    namespace: str
    name: str
    shard: str = ""

    @property
    def table(self) -> str:
        """`<plane>.<kind>`: the table of `World` that holds the row."""
        return f"{self.plane}.{self.kind}"

    def __str__(self) -> str:
        tail = f"/{self.shard}" if self.shard else ""
        return f"{self.cluster}/{self.plane}.{self.kind}/{self.namespace}/{self.name}{tail}"


def escape_token(text: str) -> str:
    """One subject token for any text; `unescape_token` is its inverse."""
    if text == "":
        return "-"
    if text == "-":
        return "=2D"
    raw = text.encode()
    if all(byte in _PLAIN for byte in raw):
        return text
    return "".join(chr(byte) if byte in _PLAIN else f"={byte:02X}" for byte in raw)


_ESCAPED = {f"{byte:02X}": chr(byte) for byte in range(0x80)}


def unescape_token(token: str) -> str:
    """The text of one subject token.

    Raises:
        ValueError: The token is not an escaped one.
    """
    if token == "-":  # noqa: S105 - a subject token, not a secret
        return ""
    if "=" not in token:
        return token
    head, *parts = token.split("=")
    try:
        # A follower does this for every row: bytes one by one would be most of its time.
        return head + "".join([_ESCAPED[part[:2]] + part[2:] for part in parts])
    except KeyError:
        return _unescape_bytes(token)


def _unescape_bytes(token: str) -> str:
    """Any escapes: of text that is not ASCII, or none of ours."""
    out = bytearray()
    position = 0
    while position < len(token):
        if token[position] == "=":
            out.append(int(token[position + 1 : position + 3], 16))
            position += 3
        else:
            out += token[position].encode()
            position += 1
    return out.decode()


def subject_of(key: Key) -> str:
    """The MODEL subject of a row."""
    tokens = [MODEL_PREFIX, *(escape_token(part) for part in key[:5])]
    if key.shard:
        tokens.append(escape_token(key.shard))
    return ".".join(tokens)


def key_of(subject: str) -> Key:
    """The key that a MODEL subject carries.

    Raises:
        ValueError: Not the subject of a row (fences and control subjects are not).
    """
    tokens = subject.split(".")
    if len(tokens) not in (6, 7) or tokens[0] != MODEL_PREFIX:
        raise ValueError(f"not the subject of a row: {subject}")
    return Key(*[unescape_token(token) for token in tokens[1:]])


def fence_subject(writer: str) -> str:
    """The subject whose last sequence proves who may write as `writer`; see `meshbus.bus`."""
    return f"{MODEL_PREFIX}.ctl.fence.{escape_token(writer)}"
