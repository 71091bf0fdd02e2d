"""Sticky sessions, which Istio's API has as labels of a Service alone: an annotation of a
DestinationRule.

`traffic.meshbus.io/sticky-session: '{"cookie": {"name": "session", "ttl": "1h"}}'`
"""

import msgspec
from msgspec import UNSET

from meshbus.api.shape import AnyDuration, Maybe, Shape, Text

STICKY_SESSION = "traffic.meshbus.io/sticky-session"


class SessionCookie(Shape, frozen=True, kw_only=True):
    """A cookie that the proxy of the caller sets: it names the endpoint."""

    name: Text
    """Its name."""
    path: str = "/"
    """Paths that it is for."""
    ttl: AnyDuration = "0s"
    """How long clients keep it; until they end if 0."""


class StickySession(Shape, frozen=True, kw_only=True):
    """Requests of one session go to one endpoint, as long as it is there, whatever others come and
    go: what answers the first says which."""

    cookie: Maybe[SessionCookie] = UNSET
    """The session is in a cookie."""
    header: str = ""
    """The session is in this header, of answers and of requests."""
    strict: bool = False
    """Whether requests are answered with 503 when the endpoint is gone, instead of by another."""


def read_sticky_session(text: str) -> StickySession:
    """The sticky session that an annotation says.

    Raises:
        ValueError: It is none.
    """
    try:
        found = msgspec.json.decode(text, type=StickySession)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from error
    if (found.cookie is UNSET) == (not found.header):
        raise ValueError("one of cookie and header is needed")
    if found.cookie is not UNSET and not found.cookie.path.startswith("/"):
        raise ValueError("cookie.path must begin with /")
    return found
