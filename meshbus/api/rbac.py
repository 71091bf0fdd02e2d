"""Kinds of rbac.istio.io of Istio 1.4.

Source: https://istio.io/v1.4/docs/reference/config/security/istio.rbac.v1alpha1/
"""

from typing import Literal

from msgspec import UNSET

from meshbus.api.shape import Maybe, Shape

EnforcementMode = Literal["ENFORCED", "PERMISSIVE"]


class Constraint(Shape, frozen=True, kw_only=True):
    """A further condition."""

    key: str = ""
    """An attribute."""
    values: list[str] = []
    """Values it may have."""


class AccessRule(Shape, frozen=True, kw_only=True):
    """Requests that a role may make."""

    services: list[str] = []
    """Services."""
    hosts: list[str] = []
    """Hosts."""
    not_hosts: list[str] = []
    """Hosts that are not meant."""
    paths: list[str] = []
    """Paths."""
    not_paths: list[str] = []
    """Paths that are not meant."""
    methods: list[str] = []
    """Methods."""
    not_methods: list[str] = []
    """Methods that are not meant."""
    ports: list[int] = []
    """Ports."""
    not_ports: list[int] = []
    """Ports that are not meant."""
    constraints: list[Constraint] = []
    """Further conditions."""


class ServiceRole(Shape, frozen=True, kw_only=True):
    """What a role may do."""

    rules: list[AccessRule] = []
    """Requests."""


class Subject(Shape, frozen=True, kw_only=True):
    """Who has a role."""

    user: str = ""
    """A user."""
    names: list[str] = []
    """Names."""
    not_names: list[str] = []
    """Names that are not meant."""
    group: str = ""
    """A group."""
    groups: list[str] = []
    """Groups."""
    not_groups: list[str] = []
    """Groups that are not meant."""
    namespaces: list[str] = []
    """Namespaces."""
    not_namespaces: list[str] = []
    """Namespaces that are not meant."""
    ips: list[str] = []
    """Addresses."""
    not_ips: list[str] = []
    """Addresses that are not meant."""
    properties: dict[str, str] = {}
    """Attributes."""


class RoleRef(Shape, frozen=True, kw_only=True):
    """A role."""

    kind: str = ""
    """`ServiceRole`."""
    name: str = ""
    """Its name."""


class ServiceRoleBinding(Shape, frozen=True, kw_only=True):
    """Who has a role."""

    subjects: list[Subject] = []
    """Who."""
    role_ref: Maybe[RoleRef] = UNSET
    """The role."""
    mode: EnforcementMode = "ENFORCED"
    """Whether it takes effect."""
    actions: list[AccessRule] = []
    """What they may do, instead of a role."""
    role: str = ""
    """The role by name; `/NAME` is of the root namespace."""


class Target(Shape, frozen=True, kw_only=True):
    """Services and namespaces."""

    workload_selectors: list[dict[str, str]] = []
    """Without effect."""
    services: list[str] = []
    """Services."""
    namespaces: list[str] = []
    """Namespaces."""


class RbacConfig(Shape, frozen=True, kw_only=True):
    """Where roles are needed."""

    mode: Literal["OFF", "ON", "ON_WITH_INCLUSION", "ON_WITH_EXCLUSION"] = "OFF"
    """Where."""
    inclusion: Maybe[Target] = UNSET
    """Only there, with ON_WITH_INCLUSION."""
    exclusion: Maybe[Target] = UNSET
    """Everywhere but there, with ON_WITH_EXCLUSION."""
    enforcement_mode: EnforcementMode = "ENFORCED"
    """Whether it takes effect."""
