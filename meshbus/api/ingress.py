"""Ingress and IngressClass of Kubernetes: hosts and paths for the gateway of a mesh.

Source: https://kubernetes.io/docs/reference/kubernetes-api/service-resources/ingress-v1/
"""

from typing import Literal

from msgspec import UNSET

from meshbus.api.shape import Free, Int32, Maybe, Shape


class ServiceBackendPort(Shape, frozen=True, kw_only=True):
    """A port of a service, by name or number."""

    one_of = (("name", "number"),)

    name: Maybe[str] = UNSET
    """Its name."""
    number: Maybe[Int32] = UNSET
    """Its number."""


class IngressServiceBackend(Shape, frozen=True, kw_only=True):
    """A service."""

    name: str
    """Its name, in the namespace of the Ingress."""
    port: Maybe[ServiceBackendPort] = UNSET
    """Which port of it."""


class IngressBackend(Shape, frozen=True, kw_only=True):
    """Where requests go."""

    one_of = (("service", "resource"),)

    service: Maybe[IngressServiceBackend] = UNSET
    """A service."""
    resource: Maybe[Free] = UNSET
    """An object of another kind."""


class HTTPIngressPath(Shape, frozen=True, kw_only=True):
    """Requests for a path."""

    path: str = ""
    """The path."""
    path_type: Literal["Exact", "Prefix", "ImplementationSpecific"]
    """How it is matched; `ImplementationSpecific`: exactly, or what is before `.*` or `/*`."""
    backend: IngressBackend
    """Where they go."""


class HTTPIngressRuleValue(Shape, frozen=True, kw_only=True):
    """Paths of one host."""

    paths: list[HTTPIngressPath]
    """The longest that matches counts."""


class IngressRule(Shape, frozen=True, kw_only=True):
    """Requests for a host."""

    host: str = ""
    """The host, or `*.suffix`; empty: any."""
    http: Maybe[HTTPIngressRuleValue] = UNSET
    """Its paths."""


class IngressTLS(Shape, frozen=True, kw_only=True):
    """TLS of some hosts."""

    hosts: list[str] = []
    """The hosts; empty: any."""
    secret_name: str = ""
    """Secret with certificate and key, in the namespace of the gateway."""


class IngressSpec(Shape, frozen=True, kw_only=True):
    """What a gateway takes from outside."""

    ingress_class_name: Maybe[str] = UNSET
    """The IngressClass, which says who carries it out."""
    default_backend: Maybe[IngressBackend] = UNSET
    """Where requests go that no rule is for."""
    tls: list[IngressTLS] = []
    """TLS."""
    rules: list[IngressRule] = []
    """Hosts and paths."""


class IngressClassSpec(Shape, frozen=True, kw_only=True):
    """Who carries out Ingress objects of a class."""

    controller: str = ""
    """`istio.io/ingress-controller`: the gateways of this mesh."""
    parameters: Maybe[Free] = UNSET
    """For the controller."""
