"""What analysis says: codes and levels are those of Istio's analysis messages.

Source: https://istio.io/latest/docs/reference/config/analysis/
"""

from collections.abc import Callable, Iterator

import msgspec

from meshbus.analyze.objects import Object, Objects

LEVELS = {
    "IST0002": "Warning",
    "IST0101": "Error",
    "IST0102": "Info",
    "IST0103": "Warning",
    "IST0106": "Error",
    "IST0107": "Warning",
    "IST0108": "Warning",
    "IST0109": "Error",
    "IST0110": "Error",
    "IST0111": "Error",
    "IST0112": "Error",
    "IST0116": "Warning",
    "IST0118": "Info",
    "IST0122": "Warning",
    "IST0123": "Warning",
    "IST0125": "Warning",
    "IST0126": "Error",
    "IST0127": "Warning",
    "IST0128": "Warning",
    "IST0129": "Warning",
    "IST0130": "Warning",
    "IST0131": "Info",
    "IST0132": "Warning",
    "IST0133": "Warning",
    "IST0134": "Warning",
    "IST0135": "Info",
    "IST0137": "Warning",
    "IST0138": "Warning",
    "IST0139": "Error",
    "IST0140": "Warning",
    "IST0144": "Warning",
    "IST0145": "Error",
    "IST0146": "Warning",
    "IST0147": "Error",
    "IST0148": "Info",
    "IST0149": "Error",
    "IST0150": "Warning",
    "IST0151": "Warning",
    "IST0152": "Error",
    "IST0153": "Error",
    "IST0154": "Error",
    "IST0155": "Warning",
    "IST0157": "Warning",
    "IST0158": "Warning",
    "IST0159": "Error",
    "IST0160": "Error",
    "IST0161": "Error",
    "IST0162": "Warning",
    "IST0163": "Warning",
    "IST0164": "Info",
    "IST0165": "Warning",
    "IST0166": "Warning",
    "IST0167": "Warning",
    "IST0171": "Warning",
    "IST0173": "Error",
    "IST0174": "Warning",
    "IST0175": "Warning",
    "IST0176": "Warning",
    "IST0177": "Warning",
}
"""Of each code: Error, Warning or Info."""
_SUPPRESS = "galley.istio.io/analyze-suppress"


class Message(msgspec.Struct, frozen=True):
    """One thing that was found."""

    code: str
    level: str
    """Error, Warning or Info."""
    message: str
    """One sentence."""
    object: str
    """`KIND NAMESPACE/NAME`."""
    place: int = -1
    """Index of the document among the input; -1: nobody wrote it."""
    path: str = ""
    """Field of the document that it is about; empty: the object."""


Analyzer = Callable[[Objects], Iterator[Message]]


def about(one: Object, code: str, message: str, path: str = "") -> Message:
    """A message about an object, or about a field of it."""
    return Message(code, LEVELS[code], message, one.reference, one.place, path)


def not_found(one: Object, what: str, name: str, path: str = "", field: str = "") -> Message:
    """Something is named, there, and does not exist.

    Args:
        path: Field that names it, to be told.
        field: The same, where the words say enough without it.
    """
    place = f" ({path})" if path else ""
    return about(one, "IST0101", f"Referenced {what} not found: {name!r}{place}", path or field)


def suppressed(one: Object, code: str) -> bool:
    """The object asks not to be told of this."""
    codes = {part.strip() for part in one.annotations.get(_SUPPRESS, "").split(",")}
    return code in codes or "*" in codes
