"""Rules of MeshNetworks.

Source: https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/ (MeshNetworks);
pkg/config/validation of 1.31, ValidateMeshNetworks.
"""

from msgspec import UnsetType

from meshbus.api.addresses import is_ip
from meshbus.api.mesh.mesh_networks import MeshNetworks, Network, NetworkGateway
from meshbus.validate.malformed import independent
from meshbus.validate.metadata import ObjectName
from meshbus.validate.names import fqdn_problem, is_label, subnet_problem
from meshbus.validate.report import Findings


@independent
def check(spec: MeshNetworks, name: ObjectName, out: Findings) -> None:
    """Everything but its shape."""
    for network, held in spec.networks.items():
        _check_network(held, f"spec.networks.{network}", out)


@independent
def _check_network(network: Network, path: str, out: Findings) -> None:
    for index, members in enumerate(network.endpoints):
        at = f"{path}.endpoints[{index}]"
        if isinstance(members.from_cidr, str):
            if problem := subnet_problem(members.from_cidr):
                out.error(f"{at}.fromCidr", problem)
        elif isinstance(members.from_registry, str):
            if not is_label(members.from_registry):
                message = f"{members.from_registry!r} is not the name of a registry: no dots"
                out.error(f"{at}.fromRegistry", message)
        else:
            out.required(at, "fromCidr or fromRegistry must be set")
    for index, gateway in enumerate(network.gateways):
        _check_gateway(gateway, f"{path}.gateways[{index}]", out)


@independent
def _check_gateway(gateway: NetworkGateway, path: str, out: Findings) -> None:
    where, service = gateway.address, gateway.registry_service_name
    if isinstance(service, str):
        if problem := fqdn_problem(service):
            out.error(f"{path}.registryServiceName", problem)
    elif isinstance(where, str) and not is_ip(where) and fqdn_problem(where):
        out.error(f"{path}.address", f"{where!r} is neither an IP address nor a name")
    if isinstance(where, UnsetType) and isinstance(service, UnsetType):
        out.required(path, "registryServiceName or address must be set")
    if not 1 <= gateway.port <= 65535:
        out.error(f"{path}.port", f"{gateway.port}: port must be between 1-65535")
