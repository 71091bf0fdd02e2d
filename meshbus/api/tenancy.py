"""Tenants: who of those that share a mesh owns which hosts, and how much of it (`meshbus.io`)."""

from typing import Annotated

from msgspec import UNSET, Meta

from meshbus.api.shape import Maybe, NonNegative, Shape

_HOST = r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
_KIND = r"^[A-Za-z][A-Za-z0-9]*$"


class LabelRequirement(Shape, frozen=True, kw_only=True):
    """One requirement on labels."""

    key: Annotated[str, Meta(min_length=1, max_length=317)]
    """Name of the label."""
    operator: Annotated[str, Meta(pattern=r"^(In|NotIn|Exists|DoesNotExist)$")]
    """`In`, `NotIn`, `Exists` or `DoesNotExist`."""
    values: Annotated[list[str], Meta(max_length=64)] = []
    """Values for `In` and `NotIn`."""


class LabelSelector(Shape, frozen=True, kw_only=True):
    """Labels that are chosen; all requirements must be met."""

    match_labels: Annotated[dict[str, str], Meta(max_length=64)] = {}
    """Labels that must have these values."""
    match_expressions: Annotated[list[LabelRequirement], Meta(max_length=64)] = []
    """Further requirements."""


class Quota(Shape, frozen=True, kw_only=True):
    """How much a tenant may have; what is over it has no effect, the youngest first."""

    objects: Maybe[NonNegative] = UNSET
    """Objects of the mesh in all its namespaces together."""
    by_kind: Annotated[
        dict[Annotated[str, Meta(pattern=_KIND, max_length=63)], NonNegative], Meta(max_length=64)
    ] = {}
    """Objects of single kinds, by kind: `VirtualService`."""


class Tenant(Shape, frozen=True, kw_only=True):
    """One of those that share a mesh: its namespaces, the hosts that are its own, its quota."""

    namespaces: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=63)]], Meta(max_length=1000)
    ] = []
    """Its namespaces, by name."""
    namespace_selector: Maybe[LabelSelector] = UNSET
    """Further namespaces, by their labels."""
    hosts: Annotated[
        list[Annotated[str, Meta(pattern=_HOST, max_length=253)]], Meta(max_length=1000)
    ] = []
    """Hosts that nobody else's objects may name: `shop.example.com`, `*.shop.example.com`."""
    quota: Maybe[Quota] = UNSET
    """How much it may have; left out: as much as it likes."""
