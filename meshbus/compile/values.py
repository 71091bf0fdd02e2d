"""Values of the API as Envoy wants them: durations, numbers, percentages, matchers, `Any`."""

import re
from typing import Any

from envoy.config.core.v3 import address_pb2, base_pb2, config_source_pb2
from envoy.type.matcher.v3 import regex_pb2, string_pb2
from envoy.type.v3 import percent_pb2
from google.protobuf import any_pb2, duration_pb2, wrappers_pb2

from meshbus.compile.findings import NotCompiledError

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")
_NANOS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}


UNIX = "unix://"
"""Before the path of a socket, where an address may stand too."""


def nanos_of(text: str, path: str = "") -> int:
    """Nanoseconds of a Go duration (`1h30m`, `1.5s`) or of `0`.

    Raises:
        NotCompiledError: Not a duration.
    """
    if text == "0":
        return 0
    position = 0
    total = 0
    for found in _DURATION.finditer(text):
        if found.start() != position:
            break
        whole, _, part = found[1].partition(".")
        unit = _NANOS[found[2]]
        total += int(whole or "0") * unit
        if part:
            total += int(part) * unit // 10 ** len(part)
        position = found.end()
    if not text or position != len(text):
        raise NotCompiledError(path, f"not a duration: {text!r}")
    return total


def duration_of_nanos(nanos: int) -> duration_pb2.Duration:
    """A protobuf duration."""
    return duration_pb2.Duration(seconds=nanos // 1_000_000_000, nanos=nanos % 1_000_000_000)


def duration(text: str, path: str = "") -> duration_pb2.Duration:
    """A protobuf duration of a Go duration.

    Raises:
        NotCompiledError: Not a duration.
    """
    return duration_of_nanos(nanos_of(str(text), path))


def seconds(value: float) -> duration_pb2.Duration:
    """A protobuf duration of seconds."""
    return duration_of_nanos(round(value * 1_000_000_000))


def uint32(value: int) -> wrappers_pb2.UInt32Value:
    """A wrapped number: set, also when 0."""
    return wrappers_pb2.UInt32Value(value=int(value))


def boolean(value: bool) -> wrappers_pb2.BoolValue:
    """A wrapped boolean: set, also when false."""
    return wrappers_pb2.BoolValue(value=value)


def any_of(message: Any) -> any_pb2.Any:
    """A message in an `Any`, serialized deterministically."""
    return any_pb2.Any(
        type_url="type.googleapis.com/" + message.DESCRIPTOR.full_name,
        value=message.SerializeToString(deterministic=True),
    )


def extension(name: str, message: Any) -> base_pb2.TransportSocket:
    """A named transport socket of a typed config."""
    return base_pb2.TransportSocket(name=name, typed_config=any_of(message))


def percent(value: float) -> percent_pb2.FractionalPercent:
    """A percentage, exact to a ten-thousandth of a percent."""
    return percent_pb2.FractionalPercent(
        numerator=round(float(value) * 10_000), denominator=percent_pb2.FractionalPercent.MILLION
    )


def runtime_percent(value: float) -> base_pb2.RuntimeFractionalPercent:
    """The same, as most filters want it."""
    return base_pb2.RuntimeFractionalPercent(default_value=percent(value))


def regex(pattern: str) -> regex_pb2.RegexMatcher:
    """RE2, which matches the whole text."""
    return regex_pb2.RegexMatcher(regex=pattern)


def string_matcher(match: dict[str, Any], path: str = "") -> string_pb2.StringMatcher:
    """Istio's StringMatch {exact | prefix | regex}.

    Raises:
        NotCompiledError: None of the three is set.
    """
    if "exact" in match:
        return string_pb2.StringMatcher(exact=str(match["exact"]))
    if "prefix" in match:
        return string_pb2.StringMatcher(prefix=str(match["prefix"]))
    if "regex" in match:
        return string_pb2.StringMatcher(safe_regex=regex(str(match["regex"])))
    raise NotCompiledError(path, "one of exact, prefix and regex is needed")


def is_presence(match: dict[str, Any] | None) -> bool:
    """An empty StringMatch, or the regex `*`, asks only that the thing is there.

    Source: Istio, canBeConvertedToPresentMatch (pilot/pkg/networking/core/route).
    """
    return (
        not match or not (match.keys() & {"exact", "prefix", "regex"}) or match.get("regex") == "*"
    )


def data_source(path: str) -> base_pb2.DataSource:
    """A file on the proxy's disk."""
    return base_pb2.DataSource(filename=path)


def address(host: str, port: int) -> address_pb2.Address:
    """A TCP socket address."""
    return address_pb2.Address(
        socket_address=address_pb2.SocketAddress(address=host, port_value=port)
    )


def listener_address(bind: str, port: int) -> address_pb2.Address:
    """What a listener binds: an IP address and port, or a Unix socket (`unix://PATH`)."""
    if bind.startswith(UNIX):
        return address_pb2.Address(pipe=address_pb2.Pipe(path=bind.removeprefix(UNIX)))
    return address(bind, port)


def ads() -> config_source_pb2.ConfigSource:
    """The config source of everything that comes by xDS: the proxy's ADS stream. It never gives up
    waiting (`initial_fetch_timeout` 0)."""
    return config_source_pb2.ConfigSource(
        ads=config_source_pb2.AggregatedConfigSource(),
        initial_fetch_timeout=duration_pb2.Duration(),
        resource_api_version=config_source_pb2.ApiVersion.V3,
    )
