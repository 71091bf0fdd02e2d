"""Types of attributes and how their values look in Python, in JSON and as text.

| type | Python | JSON |
|---|---|---|
| STRING, DNS_NAME, EMAIL_ADDRESS, URI | str | string |
| INT64 | int | number |
| DOUBLE | float | number |
| BOOL | bool | boolean |
| IP_ADDRESS | IPv4Address, IPv6Address | `{"$ip": "10.0.0.1"}` |
| TIMESTAMP | Timestamp | `{"$time": "2015-01-02T15:04:05Z"}` |
| DURATION | Duration | `{"$duration": "1m30s"}` |
| STRING_MAP | Mapping[str, str] | `{"$strmap": {...}}`, also a plain object |

Source: istio.policy.v1beta1 ValueType.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple

STRING = "STRING"
INT64 = "INT64"
DOUBLE = "DOUBLE"
BOOL = "BOOL"
TIMESTAMP = "TIMESTAMP"
IP_ADDRESS = "IP_ADDRESS"
EMAIL_ADDRESS = "EMAIL_ADDRESS"
URI = "URI"
DNS_NAME = "DNS_NAME"
DURATION = "DURATION"
STRING_MAP = "STRING_MAP"
TYPES = frozenset(
    {
        STRING, INT64, DOUBLE, BOOL, TIMESTAMP, IP_ADDRESS,
        EMAIL_ADDRESS, URI, DNS_NAME, DURATION, STRING_MAP,
    }
)  # fmt: skip
TEXTS = frozenset({STRING, EMAIL_ADDRESS, URI, DNS_NAME})
"""Types whose values are str."""


class Timestamp(NamedTuple):
    """An instant: nanoseconds since the epoch."""

    nanos: int


class Duration(NamedTuple):
    """A length of time in nanoseconds."""

    nanos: int


Value = (
    str | int | float | bool | Timestamp | Duration | IPv4Address | IPv6Address | Mapping[str, str]
)

_UNITS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d{1,2}):(\d\d):(\d\d)(?:\.(\d+))?(?:Z|([+-])(\d\d):(\d\d))", re.ASCII
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse_duration(text: str) -> Duration | None:
    """The length of time that Go's `time.ParseDuration` reads, None if it reads none."""
    sign, rest = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if rest == "0":
        return Duration(0)
    position = total = 0
    for found in _PART.finditer(rest):
        if found.start() != position:
            return None
        whole, _, part = found[1].partition(".")
        unit = _UNITS[found[2]]
        total += int(whole or "0") * unit + (int(part) * unit // 10 ** len(part) if part else 0)
        position = found.end()
    if not rest or position != len(rest) or total >= 1 << 63:
        return None
    return Duration(sign * total)


def format_duration(duration: Duration) -> str:
    """As Go prints it: `1h2m0.5s`, `1.5ms`, `0s`."""
    nanos = abs(duration.nanos)
    sign = "-" if duration.nanos < 0 else ""
    if nanos < 1_000_000_000:
        for unit, size in (("ms", 1_000_000), ("µs", 1_000), ("ns", 1)):
            if nanos >= size:
                return f"{sign}{_decimal(nanos, size)}{unit}"
        return "0s"
    hours, rest = divmod(nanos, _UNITS["h"])
    minutes, rest = divmod(rest, _UNITS["m"])
    out = sign + (f"{hours}h" if hours else "")
    out += f"{minutes}m" if hours or minutes else ""
    return f"{out}{_decimal(rest, _UNITS['s'])}s"


def _decimal(value: int, size: int) -> str:
    whole, rest = divmod(value, size)
    if not rest:
        return str(whole)
    return f"{whole}.{str(rest).zfill(len(str(size)) - 1).rstrip('0')}"


def parse_timestamp(text: str) -> Timestamp | None:
    """The instant of an RFC 3339 text, None if it is not one."""
    found = _TIME.fullmatch(text)
    if found is None:
        return None
    year, month, day, hour, minute, second = (int(found[i]) for i in range(1, 7))
    offset = timedelta()
    if found[8]:
        offset = timedelta(hours=int(found[9]), minutes=int(found[10]))
        offset = -offset if found[8] == "-" else offset
    try:
        whole = datetime(year, month, day, hour, minute, second, tzinfo=timezone(offset))
    except ValueError:
        return None
    seconds = (whole - _EPOCH) // timedelta(seconds=1)
    return Timestamp(seconds * 1_000_000_000 + int((found[7] or "0").ljust(9, "0")[:9]))


def format_timestamp(timestamp: Timestamp, *, digits: int | None = None) -> str:
    """RFC 3339 in UTC; as many digits of the second as there are, or exactly `digits`."""
    seconds, nanos = divmod(timestamp.nanos, 1_000_000_000)
    whole = (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    part = str(nanos).zfill(9)
    part = part.rstrip("0") if digits is None else part[:digits]
    return f"{whole}.{part}Z" if part else f"{whole}Z"


def parse_ip(text: str) -> IPv4Address | IPv6Address | None:
    """An address; an IPv4 address inside IPv6 is the IPv4 address. None if it is none."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return None
        return address.ipv4_mapped or address
    return address


def from_json(value: Any, kind: str | None = None) -> Value:
    """The value of its JSON form; `kind` is its type where it is declared.

    Raises:
        ValueError: No value of any type, or a tag whose content cannot be read.
    """
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return float(value) if kind == DOUBLE else value
    if isinstance(value, float):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"not a value of an attribute: {value!r}")
    parsed: Value | None
    match value:
        case {"$ip": str(text), **others} if not others:
            parsed = parse_ip(text)
        case {"$time": str(text), **others} if not others:
            parsed = parse_timestamp(text)
        case {"$duration": str(text), **others} if not others:
            parsed = parse_duration(text)
        case {"$strmap": dict(content), **others} if not others:
            parsed = _string_map(content)
        case _:
            parsed = _string_map(value)
    if parsed is None:
        raise ValueError(f"not a value of an attribute: {value!r}")
    return parsed


def _string_map(content: dict[Any, Any]) -> Mapping[str, str] | None:
    fits = all(isinstance(k, str) and isinstance(v, str) for k, v in content.items())
    return content if fits else None


def to_json(value: Value) -> Any:
    """The JSON form of a value."""
    match value:
        case Timestamp():
            return {"$time": format_timestamp(value)}
        case Duration():
            return {"$duration": format_duration(value)}
        case IPv4Address() | IPv6Address():
            return {"$ip": str(value)}
        case Mapping():
            return {"$strmap": dict(value)}
        case _:
            return value


def to_text(value: Value) -> str:
    """How adapters see a value as text: dimensions of quotas, entries of lists.

    Source: Mixer 1.4, adapter.Stringify.
    """
    match value:
        case bool():
            return "true" if value else "false"
        case float():
            return repr(value).removesuffix(".0")
        case Timestamp():
            return format_timestamp(value, digits=6)
        case Duration():
            return format_duration(value)
        case Mapping():
            return "&".join(f"{k}={v}" for k, v in sorted(value.items()))
        case _:
            return str(value)


def fits(value: Value, kind: str) -> bool:
    """Whether a value is of a type."""
    match kind:
        case "BOOL":
            return isinstance(value, bool)
        case "INT64":
            return isinstance(value, int) and not isinstance(value, bool)
        case "DOUBLE":
            return isinstance(value, float)
        case "TIMESTAMP":
            return isinstance(value, Timestamp)
        case "DURATION":
            return isinstance(value, Duration)
        case "IP_ADDRESS":
            return isinstance(value, IPv4Address | IPv6Address)
        case "STRING_MAP":
            return isinstance(value, Mapping)
        case _:
            return isinstance(value, str)
