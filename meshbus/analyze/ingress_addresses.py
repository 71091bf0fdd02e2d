"""At which addresses Ingress objects are served: those of the Service before the gateways. Pure.

Source: Istio, MeshConfig reference, `ingressService`; Kubernetes, `IngressLoadBalancerStatus`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from meshbus.api.addresses import is_ip

DEFAULT_SERVICE = "istio-ingressgateway"


def ingress_service(mesh: Mapping[str, Any]) -> str:
    """Name of the Service before the gateways, in the namespace of the control plane.

    Args:
        mesh: Fields of the mesh config.
    """
    return str(mesh.get("ingressService") or DEFAULT_SERVICE)


def addresses_of(spec: Mapping[str, Any], balancer: Iterable[Mapping[str, Any]]) -> list[str]:
    """Addresses and names that a Service is reached at from outside, sorted, each once.

    Args:
        spec: Of the Service.
        balancer: `status.loadBalancer.ingress` of it.
    """
    if spec.get("type") == "ExternalName":
        return [str(spec["externalName"])] if spec.get("externalName") else []
    found = {str(one.get("ip") or one.get("hostname") or "") for one in balancer}
    found |= {str(one) for one in spec.get("externalIPs") or ()}
    return sorted(found - {""})


def load_balancer_status(addresses: Iterable[str]) -> list[dict[str, str]]:
    """`status.loadBalancer.ingress` of an Ingress that is served at these addresses."""
    return [{"ip" if is_ip(one) else "hostname": one} for one in addresses]
