"""ReferenceGrant: what of a namespace objects of other namespaces may name.

Source: https://gateway-api.sigs.k8s.io/api-types/referencegrant/
"""

from typing import Annotated

from msgspec import Meta, field

from meshbus.api.shape import Shape

_GROUP = r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
Group = Annotated[str, Meta(max_length=253, pattern=_GROUP)]
Kind = Annotated[
    str, Meta(min_length=1, max_length=63, pattern=r"^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$")
]
NamespaceName = Annotated[
    str, Meta(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
]


class ReferenceGrantFrom(Shape, frozen=True, kw_only=True):
    """Who may name it."""

    group: Group
    """API group of the object; empty for core kinds."""
    kind: Kind
    """Its kind."""
    namespace: NamespaceName
    """Its namespace."""


class ReferenceGrantTo(Shape, frozen=True, kw_only=True):
    """What may be named."""

    group: Group
    """API group of the object; empty for core kinds."""
    kind: Kind
    """Its kind."""
    name: Annotated[str, Meta(min_length=1, max_length=253)] | None = None
    """Its name; all of the kind if unset."""


class ReferenceGrant(Shape, frozen=True, kw_only=True):
    """What of its namespace objects of other namespaces may name."""

    from_: Annotated[list[ReferenceGrantFrom], Meta(min_length=1, max_length=16)] = field(
        name="from"
    )
    """Who."""
    to: Annotated[list[ReferenceGrantTo], Meta(min_length=1, max_length=16)]
    """What."""
