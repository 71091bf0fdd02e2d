"""What the structs of the kinds are built of: the base class and the types of their fields.

A field that is not required has a default. `Maybe[X] = UNSET` is a message that may be left out, or
a scalar or list of which a rule asks whether it is set: an empty one is. Another scalar's or list's
default is what leaving it out means; `X | None = None` may also be written as null.
In protobuf JSON the number of a name of an enumeration is its place, unless `numbers` says another.
Constraints sit in the type (`msgspec.Meta`), so that validation and the JSON Schemas agree.
"""

from typing import Annotated, Any, ClassVar, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, UnsetType

T = TypeVar("T")
Maybe: TypeAlias = T | UnsetType
"""A value that may be left out."""

Int32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
UInt32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
UInt64 = Annotated[int, Meta(ge=0)]
NonNegative = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Port = Annotated[int, Meta(ge=1, le=65535)]
PortOrUnset = Annotated[int, Meta(ge=0, le=65535)]
Text = Annotated[str, Meta(min_length=1)]
"""A string that must not be empty."""
Duration = Annotated[str, Meta(extra={"format": "duration"})]
"""`1h30m`, `5s`, `250ms`: decimal numbers with a unit, at least 1ms."""
AnyDuration = Annotated[str, Meta(extra={"format": "any-duration"})]
"""A duration that may also be zero or negative."""
Timestamp = Annotated[str, Meta(extra={"format": "date-time"})]
Bytes = Annotated[str, Meta(extra={"format": "byte"})]
"""Base64."""
Free = dict[str, Any]
"""An object of any content."""


class Shape(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The base of every struct here: immutable, camelCase on the wire, unknown fields refused."""

    one_of: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Groups of fields (wire names) of which at most one may be set."""
    required_together: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Groups of fields (wire names) of which exactly one must be set."""
