"""MeshNetworks: which workloads reach each other by themselves, and which through gateways.

Source: https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/ (MeshNetworks)
"""

from msgspec import UNSET

from meshbus.api.shape import Maybe, Shape, UInt32


class NetworkEndpoints(Shape, frozen=True, kw_only=True):
    """Workloads of a network."""

    one_of = (("fromCidr", "fromRegistry"),)

    from_cidr: Maybe[str] = UNSET
    """Those at addresses of a range."""
    from_registry: Maybe[str] = UNSET
    """Those of a cluster, by its name."""


class NetworkGateway(Shape, frozen=True, kw_only=True):
    """A way into a network: it passes mutual TLS on by SNI."""

    one_of = (("registryServiceName", "address"),)

    registry_service_name: Maybe[str] = UNSET
    """Host of its service: the addresses at which that is reached from outside; of type NodePort
    with annotation `traffic.istio.io/nodeSelector` those of nodes, at node ports."""
    address: Maybe[str] = UNSET
    """Its address, or a name that is looked up."""
    port: UInt32 = 0
    """Its port."""
    locality: str = ""
    """Where it is."""


class Network(Shape, frozen=True, kw_only=True):
    """A network: within it, addresses lead to workloads."""

    endpoints: list[NetworkEndpoints] = []
    """Which workloads are in it."""
    gateways: list[NetworkGateway] = []
    """How it is entered from others."""


class MeshNetworks(Shape, frozen=True, kw_only=True):
    """The networks of a mesh."""

    networks: dict[str, Network] = {}
    """By name."""
