"""Functions of the language: what each takes and gives, and equality of names, mails and URIs.

Source: Mixer 1.4, expression language reference and its externs.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

import idna
import re2

from meshbus.mixer.values import (
    BOOL,
    DNS_NAME,
    EMAIL_ADDRESS,
    INT64,
    IP_ADDRESS,
    STRING,
    STRING_MAP,
    TIMESTAMP,
    URI,
    Timestamp,
    parse_ip,
    parse_timestamp,
)

ANY = ""
"""Of any type; all arguments marked so, and the result, are of one type."""


class EvaluationError(Exception):
    """An expression has no value for these attributes."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What a function takes and gives. `target` is the type of what a method is called on."""

    args: tuple[str, ...]
    result: str
    target: str | None = None


_COMPARISON = Signature((ANY, ANY), BOOL)
INTRINSICS: dict[str, Signature] = {
    "EQ": _COMPARISON,
    "NEQ": _COMPARISON,
    "LT": _COMPARISON,
    "LEQ": _COMPARISON,
    "GT": _COMPARISON,
    "GEQ": _COMPARISON,
    "LOR": Signature((BOOL, BOOL), BOOL),
    "LAND": Signature((BOOL, BOOL), BOOL),
    "INDEX": Signature((STRING_MAP, STRING), STRING),
    "OR": Signature((ANY, ANY), ANY),
    "conditional": Signature((BOOL, ANY, ANY), ANY),
    "ADD": Signature((ANY, ANY), ANY),
    "size": Signature((STRING,), INT64),
}
"""Operators, and functions that do not evaluate all arguments or take several types."""


_LEADING_ZEROS = re.compile(r"\b0+(?=[0-9])")


def _ip(text: str) -> IPv4Address | IPv6Address:
    # Go of those days read zeros before the numbers of IPv4.
    address = parse_ip(text if ":" in text else _LEADING_ZEROS.sub("", text))
    if address is None:
        raise EvaluationError(f"could not convert {text} to IP_ADDRESS")
    return address


def _timestamp(text: str) -> Timestamp:
    timestamp = parse_timestamp(text)
    if timestamp is None:
        raise EvaluationError(f"could not convert '{text}' to TIMESTAMP. expected format: RFC 3339")
    return timestamp


def _dns_name(text: str) -> str:
    normal = unicodedata.normalize("NFC", text)
    out = []
    for label in normal.removesuffix(".").split("."):
        try:
            if not label:
                raise idna.IDNAError("nothing between dots")
            out.append(_dns_label(label))
        except (idna.IDNAError, UnicodeError) as error:
            raise EvaluationError(
                f"error converting '{text}' to dns name: 'idna: invalid label \"{label or text}\"'"
            ) from error
    return ".".join(out) + ("." if normal.endswith(".") else "")


def _dns_label(label: str) -> str:
    """What a label reads as. Which ASCII characters it has, and how many, nobody asks.

    Source: golang.org/x/net/idna, Profile.validateLabel.
    """
    if label.startswith("xn--"):
        return idna.ulabel(label)
    if label[0] == "-" or label[-1] == "-" or label[2:4] == "--":
        raise idna.IDNAError("hyphens in the wrong place")
    if not label.isascii():
        idna.check_initial_combiner(label)
        idna.check_bidi(label)
        for at, letter in enumerate(label):
            if letter in "\u200c\u200d" and not idna.valid_contextj(label, at):
                raise idna.IDNAError("a joiner in the wrong place")
    return label


def _email(text: str) -> str:
    local, domain = _email_parts(text)
    try:
        _dns_name(domain)
    except EvaluationError as error:
        raise EvaluationError(f"error converting '{text}' to e-mail: '{error}'") from error
    if not local:
        raise EvaluationError(f"error converting '{text}' to e-mail: no local part")
    return text


_ATOM = r"[^\s()<>\[\]:;@\\,.\"\x00-\x1f\x7f]+"
_ATOMS = rf"{_ATOM}(?:\.{_ATOM})*"
_MAIL = re.compile(rf'\s*(<?)({_ATOMS}|"(?:[^"\\]|\\.)*")@({_ATOMS})(>?)\s*')


def _email_parts(text: str) -> tuple[str, str]:
    found = _MAIL.fullmatch(text)
    if found is None or bool(found[1]) != bool(found[4]):
        if "<" in text.strip()[1:]:
            raise EvaluationError(
                f"error converting '{text}' to e-mail: display names are not allowed"
            )
        raise EvaluationError(f"error converting '{text}' to e-mail: 'not local-part@domain'")
    return found[2], found[3]


_SCHEME = re.compile(r"[a-zA-Z][-+.a-zA-Z0-9]*:")
_BAD_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_HOST = re.compile(
    r"""(?:[-\w.~!$&'()*+,;=:\[\]<>"]|[^\x00-\x7f]|%25|%[89a-fA-F][0-9a-fA-F])*""", re.ASCII
)
_USER = re.compile(r"[-\w.:~!$&'()*+,;=%@]*", re.ASCII)
"""What Go's net/url takes before and after the `@` of an authority."""


def _uri(text: str) -> str:
    if not text:
        raise EvaluationError("error converting string to uri: empty string")
    _split_uri(text)
    return text


def _split_uri(text: str) -> SplitResult:
    def fail(reason: str) -> EvaluationError:
        return EvaluationError(f"error converting string to uri '{text}': 'parse {text}: {reason}'")

    if _CONTROL.search(text):
        raise fail("invalid control character")
    if text.startswith(":"):
        raise fail("missing protocol scheme")
    before_query = re.split(r"[?#]", text, maxsplit=1)[0]
    has_scheme = _SCHEME.match(text)
    if has_scheme is None and ":" in before_query.split("/", 1)[0]:
        raise fail("first path segment in URL cannot contain colon")
    opaque = has_scheme is not None and not text[has_scheme.end() :].startswith("/")
    for part in ("" if opaque else before_query, text.partition("#")[2]):
        bad = _BAD_ESCAPE.search(part)
        if bad:
            raise fail(f'invalid URL escape "{part[bad.start() : bad.start() + 3]}"')
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError as error:
        raise fail(str(error)) from error
    user, _, host = parts.netloc.rpartition("@")
    if not _HOST.fullmatch(host):
        raise fail("invalid character in host name")
    if not _USER.fullmatch(user):
        raise fail("invalid userinfo")
    return parts


def _match(text: str, pattern: str) -> bool:
    if pattern.endswith("*"):
        return text.startswith(pattern[:-1])
    if pattern.startswith("*"):
        return text.endswith(pattern[1:])
    return text == pattern


@lru_cache(maxsize=1024)
def _regex(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = 1 << 20
    try:
        return re2.compile(pattern, options=options)
    except re2.error as error:
        raise EvaluationError(f"error parsing regexp: {error}: `{pattern}`") from error


def _matches(pattern: str, text: str) -> bool:
    return _regex(pattern).search(text) is not None


def _lower(text: str) -> str:
    """Letter by letter, whatever is next to it."""
    return "".join(map(str.lower, text))


def _empty() -> Mapping[str, str]:
    return {}


def _conditional_string(condition: bool, yes: str, no: str) -> str:
    return yes if condition else no


EXTERNS: dict[str, tuple[Signature, Callable[..., Any]]] = {
    "ip": (Signature((STRING,), IP_ADDRESS), _ip),
    "timestamp": (Signature((STRING,), TIMESTAMP), _timestamp),
    "dnsName": (Signature((STRING,), DNS_NAME), _dns_name),
    "email": (Signature((STRING,), EMAIL_ADDRESS), _email),
    "uri": (Signature((STRING,), URI), _uri),
    "match": (Signature((STRING, STRING), BOOL), _match),
    "matches": (Signature((STRING,), BOOL, target=STRING), _matches),
    "startsWith": (Signature((STRING,), BOOL, target=STRING), str.startswith),
    "endsWith": (Signature((STRING,), BOOL, target=STRING), str.endswith),
    "emptyStringMap": (Signature((), STRING_MAP), _empty),
    "conditionalString": (Signature((BOOL, STRING, STRING), STRING), _conditional_string),
    "toLower": (Signature((STRING,), STRING), _lower),
}
"""Functions that evaluate all arguments; a method's target is its first. `"re".matches(text)`: the
target is the pattern (RE2, found anywhere in the text)."""


def signature(name: str) -> Signature | None:
    """What a function takes and gives; None if there is none of that name."""
    if name in INTRINSICS:
        return INTRINSICS[name]
    return EXTERNS[name][0] if name in EXTERNS else None


# --------------------------------------------------------------------------- equality


def equal_dns_names(one: str, other: str) -> bool:
    """As a resolver would see them: case does not count, nor the final dot of one of them."""
    first, second = _lookup_form(one), _lookup_form(other)
    if first.endswith(".") != second.endswith("."):
        first, second = first.removesuffix("."), second.removesuffix(".")
    return first == second


@lru_cache(maxsize=4096)
def _lookup_form(name: str) -> str:
    try:
        mapped = idna.uts46_remap(name, std3_rules=True, transitional=False)
        return ".".join(label and _dns_label(label) for label in mapped.split("."))
    except (idna.IDNAError, UnicodeError) as error:
        raise EvaluationError(f"not a dns name: '{name}'") from error


def equal_emails(one: str, other: str) -> bool:
    """The same mailbox: domains as DNS names, local parts letter by letter."""
    local, domain = _email_parts(one)
    other_local, other_domain = _email_parts(other)
    return _unquoted(local) == _unquoted(other_local) and equal_dns_names(domain, other_domain)


def _unquoted(local: str) -> str:
    return re.sub(r"\\(.)", r"\1", local[1:-1]) if local.startswith('"') else local


def equal_uris(one: str, other: str) -> bool:
    """The same URI: schemes regardless of case, hosts of http and https as DNS names."""
    first, second = _split_uri(one), _split_uri(other)
    if first.scheme != second.scheme:
        return False
    if first.scheme in {"http", "https"}:
        if not equal_dns_names(first.hostname or "", second.hostname or ""):
            return False
        if first.port != second.port:
            return False
        if _userinfo(first) != _userinfo(second):
            return False
        first, second = first._replace(netloc=""), second._replace(netloc="")
    asks = [bool(re.match(r"[^#?]*\?", text)) for text in (one, other)]
    return asks[0] == asks[1] and urlunsplit(first) == urlunsplit(second)


def _userinfo(parts: SplitResult) -> str:
    return parts.netloc.rpartition("@")[0]
