"""DNS messages: a question in, an answer out. Pure.

Only what a resolver between applications and other resolvers needs: the one question of a query,
answers of A, AAAA and CNAME, truncation, EDNS payload sizes, and of somebody else's answer its
code, its addresses and how long it lives.
Source: RFC 1035 (messages), RFC 2308 (negative answers), RFC 6891 (EDNS).
"""

import ipaddress
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

A, NS, CNAME, SOA, AAAA, OPT, ANY = 1, 2, 5, 6, 28, 41, 255
IN = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = 0, 1, 2, 3, 4, 5
HEADER_BYTES = 12
PLAIN_UDP_BYTES = 512
OUR_UDP_BYTES = 1232
"""What fits every path without fragments."""
MAX_BYTES = 65535
MAX_NAME_BYTES = 255
_RESPONSE, _AUTHORITATIVE, _TRUNCATED, _RECURSION, _AVAILABLE = 0x8000, 0x400, 0x200, 0x100, 0x80
_OPCODE = 0x7800
_header = struct.Struct("!HHHHHH")
_record = struct.Struct("!HHIH")


class Malformed(Exception):
    """Not a message that can be understood; `code` is what its sender should be told."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Question(NamedTuple):
    """What is asked."""

    name: str
    """In lower case, without the dot at the end."""
    type: int
    klass: int


class Query(NamedTuple):
    """A query as it came."""

    id: int
    flags: int
    question: Question
    wire: bytes
    """The question as it was written: case is given back as it came."""
    payload: int
    """Bytes that the asker takes by UDP."""
    edns: bool
    checks: bool
    """It asks for signatures (DO)."""


class Record(NamedTuple):
    """One record of an answer."""

    type: int
    data: bytes


class Lifetime(NamedTuple):
    """What somebody else's answer says of itself."""

    code: int
    seconds: int
    """How long it may be kept; 0: not at all."""
    truncated: bool


def parse_query(message: bytes) -> Query:
    """The query of a message.

    Raises:
        Malformed: It is none; it cannot be answered when its code is negative.
    """
    if len(message) < HEADER_BYTES:
        raise Malformed(-1, "shorter than a header")
    number, flags, questions, *counts = _header.unpack_from(message)
    if flags & _RESPONSE:
        raise Malformed(-1, "an answer, not a question")
    if flags & _OPCODE:
        raise Malformed(NOTIMP, "not a standard query")
    if questions != 1:
        raise Malformed(FORMERR, "one question at a time")
    name, end = _plain_name(message, HEADER_BYTES)
    if end + 4 > len(message):
        raise Malformed(FORMERR, "the question is cut off")
    kind, klass = struct.unpack_from("!HH", message, end)
    end += 4
    wire = message[HEADER_BYTES:end]
    payload, edns, checks = PLAIN_UDP_BYTES, False, False
    for record in _records(message, end, sum(counts)):
        if record.type == OPT:
            payload, edns = max(PLAIN_UDP_BYTES, record.klass), True
            checks = bool(record.ttl & 0x8000)
    return Query(number, flags, Question(name, kind, klass), wire, payload, edns, checks)


def answer(
    query: Query,
    records: Sequence[Record] = (),
    *,
    code: int = NOERROR,
    ttl_s: int = 0,
    authoritative: bool = True,
) -> bytes:
    """The answer to a query; records of type CNAME lead from each to the next."""
    flags = _RESPONSE | (query.flags & _RECURSION) | _AVAILABLE | code
    if authoritative:
        flags |= _AUTHORITATIVE
    out = bytearray(_header.pack(query.id, flags, 1, len(records), 0, 1 if query.edns else 0))
    out += query.wire
    owner = b"\xc0\x0c"
    for kind, data in records:
        out += owner + _record.pack(kind, IN, ttl_s, len(data)) + data
        if kind == CNAME:
            owner = data
    if query.edns:
        out += b"\0" + _record.pack(OPT, OUR_UDP_BYTES, 0, 0)
    return bytes(out)


def refusal(message: bytes, code: int) -> bytes:
    """What the sender of something that is no query gets."""
    number, flags = struct.unpack_from("!HH", message)
    return _header.pack(number, _RESPONSE | (flags & (_OPCODE | _RECURSION)) | code, 0, 0, 0, 0)


def fitting(query: Query, message: bytes) -> bytes:
    """An answer that the asker takes by UDP: itself, or one that says to ask by TCP."""
    if len(message) <= min(query.payload, OUR_UDP_BYTES if query.edns else PLAIN_UDP_BYTES):
        return message
    _, flags, *_ = _header.unpack_from(message)
    short = answer(query, code=flags & 0xF, authoritative=bool(flags & _AUTHORITATIVE))
    return short[:2] + struct.pack("!H", flags | _TRUNCATED) + short[4:]


def for_asker(query: Query, message: bytes) -> bytes:
    """Somebody else's answer to the same question, as this asker asked it."""
    end = HEADER_BYTES + len(query.wire)
    return struct.pack("!H", query.id) + message[2:HEADER_BYTES] + query.wire + message[end:]


def question_to(query: Query, number: int) -> bytes:
    """The query as it is sent on."""
    flags = _RECURSION | (query.flags & 0x30)
    out = _header.pack(number, flags, 1, 0, 0, 1) + query.wire
    return out + b"\0" + _record.pack(OPT, OUR_UDP_BYTES, 0x8000 if query.checks else 0, 0)


def is_answer(query: Query, number: int, message: bytes) -> bool:
    """A message is the answer to what was sent on as `number`."""
    if len(message) < HEADER_BYTES:
        return False
    found, flags, questions, *_ = _header.unpack_from(message)
    if found != number or not flags & _RESPONSE or questions != 1:
        return False
    return message[HEADER_BYTES : HEADER_BYTES + len(query.wire)].lower() == query.wire.lower()


def lifetime(query: Query, message: bytes, *, most_s: int, negative_s: int) -> Lifetime:
    """How long an answer may be kept: its shortest record; without answers what the zone says, at
    most `negative_s`.

    Raises:
        Malformed: It is not a whole message.
    """
    _, flags, _, answers, authorities, _ = _header.unpack_from(message)
    code = flags & 0xF
    begin = HEADER_BYTES + len(query.wire)
    ttls = []
    negative = 0
    for index, record in enumerate(_records(message, begin, answers + authorities)):
        if index < answers:
            ttls.append(record.ttl)
        elif record.type == SOA and len(record.data) >= 20:
            negative = min(record.ttl, int(struct.unpack("!I", record.data[-4:])[0]))
    truncated = bool(flags & _TRUNCATED)
    if truncated or code not in (NOERROR, NXDOMAIN):
        return Lifetime(code, 0, truncated)
    if code == NOERROR and ttls:
        return Lifetime(code, max(0, min(most_s, *ttls)), truncated)
    return Lifetime(code, max(0, min(negative_s, negative)), truncated)


def addresses_of(query: Query, message: bytes, kind: int) -> list[bytes]:
    """The addresses of one family in an answer, aliases left out.

    Raises:
        Malformed: It is not a whole message.
    """
    _, _, _, answers, *_ = _header.unpack_from(message)
    begin = HEADER_BYTES + len(query.wire)
    return [r.data for r in _records(message, begin, answers) if r.type == kind]


def address_records(addresses: Sequence[str], kind: int) -> list[Record]:
    """Records of the addresses of one family."""
    found = (ipaddress.ip_address(text).packed for text in addresses)
    return [Record(kind, data) for data in found if len(data) == (4 if kind == A else 16)]


def name_bytes(name: str) -> bytes:
    """A name as it stands in a message.

    Raises:
        ValueError: It is too long.
    """
    out = b""
    for label in name.split("."):
        data = label.encode("latin-1", "replace")
        if not 0 < len(data) < 64:
            raise ValueError(f"{name}: a label has 1 to 63 bytes")
        out += bytes([len(data)]) + data
    if len(out) >= MAX_NAME_BYTES:
        raise ValueError(f"{name}: too long")
    return out + b"\0"


class _Found(NamedTuple):
    type: int
    klass: int
    ttl: int
    data: bytes


def _records(message: bytes, begin: int, count: int) -> Iterator[_Found]:
    place = begin
    for _ in range(count):
        place = _after_name(message, place)
        if place + 10 > len(message):
            raise Malformed(FORMERR, "a record is cut off")
        kind, klass, ttl, size = _record.unpack_from(message, place)
        place += 10
        if place + size > len(message):
            raise Malformed(FORMERR, "a record is cut off")
        yield _Found(kind, klass, ttl, message[place : place + size])
        place += size


def _after_name(message: bytes, place: int) -> int:
    """The place behind a name, of which nothing else is asked."""
    while place < len(message):
        size = message[place]
        if size >= 0xC0:
            return place + 2
        place += 1 + size
        if not size:
            return place
        if size > 63:
            break
    raise Malformed(FORMERR, "a name is cut off")


def _plain_name(message: bytes, place: int) -> tuple[str, int]:
    """A name without pointers, and the place behind it."""
    labels: list[str] = []
    begin = place
    while place < len(message):
        size = message[place]
        if size > 63:
            break
        if not size:
            return ".".join(labels).lower(), place + 1
        labels.append(message[place + 1 : place + 1 + size].decode("latin-1"))
        place += 1 + size
        if place - begin >= MAX_NAME_BYTES:
            break
    raise Malformed(FORMERR, "the name of the question cannot be read")
