"""Matches on strings, and the expressions in them.

Source: https://istio.io/latest/docs/reference/config/networking/virtual-service/#StringMatch and
https://github.com/google/re2/wiki/Syntax
"""

import re2
from msgspec import UnsetType

from meshbus.api.networking.virtual_service import StringMatch
from meshbus.validate.malformed import independent
from meshbus.validate.report import Findings

LONGEST_REGEX = 1024
"""Envoy limits the size of compiled programs, which are always larger than their source."""


def regex_problem(pattern: str) -> str | None:
    """Why it is not an RE2 expression."""
    if len(pattern) > LONGEST_REGEX:
        return f"the expression is longer than {LONGEST_REGEX}"
    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(pattern, options)
    except re2.error as error:
        return f"{pattern!r} is not an RE2 expression: {_text(error)}"
    return None


def _text(error: Exception) -> str:
    reason = error.args[0] if error.args else error
    return reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)


@independent
def check_string_match(
    match: StringMatch | UnsetType, path: str, out: Findings, *, empty_prefix: bool = False
) -> None:
    """A match; an empty prefix is refused but for URIs, where it means every path."""
    if isinstance(match, UnsetType):
        return
    if match.prefix == "" and not empty_prefix:
        out.error(f"{path}.prefix", "prefix string match should not be empty")
    if isinstance(match.regex, str):
        if not match.regex:
            out.error(f"{path}.regex", "regex string match should not be empty")
        elif problem := regex_problem(match.regex):
            out.error(f"{path}.regex", problem)
